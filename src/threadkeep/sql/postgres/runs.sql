-- Runs and their streamed events; see sessions.sql. What a run at work writes is fenced: it must still
-- have its session (`sessions.run_id`, compared in the row that the statement locks), or else somebody
-- took that over, or deleted it, and nothing is written.

-- A call whose connection died is made again, and then `:retried`; see sessions.sql.

-- name: queue_run
-- Stores a run that waits for its session. No row: the session is somebody else's.
WITH run AS (
  INSERT INTO threadkeep.runs
    (run_id, session_id, owner, idempotency_key, request_hash, status, alive_at, created_at)
  SELECT :run_id, :session_id, :owner, :idempotency_key, :request_hash, 'queued',
         clock_timestamp(), clock_timestamp()
  WHERE NOT EXISTS (
    SELECT 1 FROM threadkeep.sessions WHERE session_id = :session_id AND owner <> :owner)
  ON CONFLICT (run_id) DO UPDATE SET alive_at = excluded.alive_at
  RETURNING run_id),
event AS (
  INSERT INTO threadkeep.run_events (run_id, seq, data) SELECT run_id, 0, :created FROM run
  ON CONFLICT DO NOTHING)
SELECT run_id FROM run;

-- name: begin_turn
-- Stores a run and its input, takes the session for it, and returns what came after (epoch, seq) as
-- read_items does. `busy`: another run that is alive has the session or has waited for longer, and
-- nothing was written. Made again, it finds what was done: not busy, and nothing to read here. While
-- that can't be seen yet, it breaks on the `call_id` of the first item, and is made once more.
WITH done AS (
  SELECT FROM threadkeep.items
  WHERE :retried::boolean AND session_id = :session_id AND call_id = :call_id::bigint),
head AS (
  INSERT INTO threadkeep.sessions AS s
    (session_id, owner, title, epoch, seq, run_id, run_alive_at, created_at, updated_at)
  SELECT :session_id, :owner, :title, :new_epoch, cardinality(:items::text[]), :run_id,
         clock_timestamp(), clock_timestamp(), clock_timestamp()
  WHERE NOT EXISTS (SELECT FROM done) AND NOT EXISTS (
    SELECT 1 FROM threadkeep.runs q
    WHERE q.session_id = :session_id AND q.status = 'queued' AND q.run_id < :run_id
      AND q.alive_at > clock_timestamp() - :stale_after::bigint * interval '1 ms')
  ON CONFLICT (session_id) DO UPDATE
  SET seq = s.seq + cardinality(:items::text[]),
      run_id = excluded.run_id,
      run_alive_at = clock_timestamp(),
      run_items = 0,
      title = coalesce(s.title, excluded.title),
      updated_at = clock_timestamp()
  WHERE s.owner = excluded.owner
    AND (s.run_id IS NULL OR :retried::boolean AND s.run_id = excluded.run_id
         OR s.run_alive_at <= clock_timestamp() - :stale_after::bigint * interval '1 ms')
  RETURNING s.epoch, s.seq, s.updated_at),
run AS (
  INSERT INTO threadkeep.runs
    (run_id, session_id, owner, idempotency_key, request_hash, status, alive_at, created_at)
  SELECT :run_id, :session_id, :owner, :idempotency_key, :request_hash, 'in_progress',
         head.updated_at, head.updated_at
  FROM head
  ON CONFLICT (run_id) DO UPDATE SET status = 'in_progress'),
event AS (
  INSERT INTO threadkeep.run_events (run_id, seq, data) SELECT :run_id, 0, :created FROM head
  ON CONFLICT DO NOTHING),
stored AS (
  INSERT INTO threadkeep.items (session_id, seq, data, run_id, created_at, call_id)
  SELECT :session_id, head.seq - cardinality(:items::text[]) + new.place, new.data, :run_id,
         head.updated_at, CASE WHEN new.place = 1 THEN :call_id::bigint END
  FROM head, unnest(:items::text[]) WITH ORDINALITY AS new (data, place)
  RETURNING seq, data, created_at),
known AS (
  SELECT CASE WHEN head.epoch = :epoch AND EXISTS (
    SELECT 1 FROM threadkeep.items k
    WHERE k.session_id = :session_id AND k.seq = :seq
      AND (extract(epoch FROM k.created_at) * 1000)::bigint = :tag)
  THEN :seq::bigint ELSE 0 END AS base
  FROM head),
news AS (
  SELECT i.seq, i.data, i.created_at FROM threadkeep.items i, known
  WHERE i.session_id = :session_id AND i.seq > known.base
  UNION ALL
  SELECT seq, data, created_at FROM stored)
SELECT head.epoch, head.seq AS head,
       head.epoch IS NOT NULL OR NOT EXISTS (
         SELECT 1 FROM threadkeep.sessions o
         WHERE o.session_id = :session_id AND o.owner <> :owner) AS owned,
       head.epoch IS NULL AND NOT EXISTS (SELECT FROM done) AS busy, known.base, news.seq, news.data,
       (extract(epoch FROM news.created_at) * 1000)::bigint AS created_at
FROM (SELECT) AS always
LEFT JOIN head ON true
LEFT JOIN known ON true
LEFT JOIN news ON true
ORDER BY news.seq;

-- name: take_back_turn
-- Undoes what admitted a turn, if nothing was stored since: removes the input, which lies after seq
-- `keep`; puts back from the fork what was cut off for it, and removes that fork; removes a session
-- that the turn had `made`. Where an item is put back in the place of a removed one, its row is
-- changed, because one statement may touch a row only once.
WITH fork AS (
  SELECT f.session_id, f.seq, f.title FROM threadkeep.sessions f WHERE f.session_id = :fork_id),
gone AS (
  DELETE FROM threadkeep.sessions
  WHERE :made::bigint = 1 AND session_id = :session_id AND owner = :owner AND run_id = :run_id
    AND epoch = :epoch AND seq = :seq AND :keep::bigint = 0
  RETURNING session_id),
head AS (
  UPDATE threadkeep.sessions
  SET seq = greatest(:keep::bigint, coalesce((SELECT fork.seq FROM fork), 0)),
      epoch = :new_epoch,
      title = CASE WHEN :keep::bigint > 0 OR :fork_id::text <> '' THEN title END,
      updated_at = clock_timestamp()
  WHERE (:made::bigint = 0 OR :keep::bigint > 0)
    AND session_id = :session_id AND owner = :owner AND run_id = :run_id
    AND epoch = :epoch AND seq = :seq
  RETURNING session_id),
undone AS (SELECT session_id FROM gone UNION ALL SELECT session_id FROM head),
replaced AS (
  UPDATE threadkeep.items t
  SET data = f.data, run_id = f.run_id, created_at = f.created_at
  FROM threadkeep.items f
  WHERE t.session_id = :session_id AND t.seq > :keep::bigint
    AND f.session_id = :fork_id AND f.seq = t.seq AND EXISTS (SELECT FROM undone)),
removed AS (
  DELETE FROM threadkeep.items t
  WHERE t.session_id = :session_id AND t.seq > :keep::bigint AND EXISTS (SELECT FROM undone)
    AND NOT EXISTS (
      SELECT 1 FROM threadkeep.items f WHERE f.session_id = :fork_id AND f.seq = t.seq)),
restored AS (
  INSERT INTO threadkeep.items (session_id, seq, data, run_id, created_at)
  SELECT :session_id, f.seq, f.data, f.run_id, f.created_at
  FROM threadkeep.items f
  WHERE f.session_id = :fork_id AND f.seq > :seq::bigint AND EXISTS (SELECT FROM undone)),
fork_items AS (
  DELETE FROM threadkeep.items WHERE session_id = :fork_id AND EXISTS (SELECT FROM undone)),
fork_gone AS (
  DELETE FROM threadkeep.sessions WHERE session_id = :fork_id AND EXISTS (SELECT FROM undone))
SELECT session_id FROM undone;

-- name: write_run
-- What a run has to store, in one: events from number `first_seq` on; items, of which `first_item` came
-- before; a sign of life; and with a `status` its end, which gives its session free. What is stored
-- already is not stored again. No row: the run was lost. A session that was taken back whole is no
-- hindrance to the end.
WITH session AS (
  UPDATE threadkeep.sessions
  SET run_added = greatest(0, :first_item::bigint + cardinality(:items::text[]) - run_items),
      seq = seq + greatest(0, :first_item::bigint + cardinality(:items::text[]) - run_items),
      run_items = greatest(run_items, :first_item::bigint + cardinality(:items::text[])),
      run_alive_at = clock_timestamp(),
      run_id = CASE WHEN :status::text = '' THEN run_id END,
      updated_at = CASE WHEN cardinality(:items::text[]) > 0 THEN clock_timestamp()
                        ELSE updated_at END
  WHERE session_id = :session_id AND owner = :owner AND run_id = :run_id
  RETURNING seq, run_added, updated_at),
run AS (
  UPDATE threadkeep.runs r
  SET alive_at = clock_timestamp(),
      status = CASE WHEN :status::text = '' THEN r.status ELSE :status::text END,
      finished_at = CASE WHEN :status::text <> '' THEN clock_timestamp() END
  WHERE r.run_id = :run_id
    AND (r.status = 'queued' OR r.status = 'in_progress' AND (
      EXISTS (SELECT FROM session)
      OR :status::text <> '' AND NOT EXISTS (
        SELECT 1 FROM threadkeep.sessions s WHERE s.session_id = r.session_id)))
  RETURNING r.cancel_requested),
stored AS (
  INSERT INTO threadkeep.items (session_id, seq, data, run_id, created_at)
  SELECT :session_id, session.seq - cardinality(:items::text[]) + new.place, new.data, :run_id,
         session.updated_at
  FROM session, unnest(:items::text[]) WITH ORDINALITY AS new (data, place)
  WHERE new.place > cardinality(:items::text[]) - session.run_added),
told AS (
  INSERT INTO threadkeep.run_events (run_id, seq, data)
  SELECT :run_id, :first_seq::bigint + new.place - 1, new.data
  FROM run, unnest(:events::text[]) WITH ORDINALITY AS new (data, place)
  ON CONFLICT DO NOTHING)
SELECT cancel_requested FROM run
UNION ALL
SELECT false FROM (
  SELECT status FROM threadkeep.runs
  WHERE :retried::boolean AND run_id = :run_id OFFSET 0 FOR UPDATE) ended
WHERE ended.status = :status::text AND NOT EXISTS (SELECT FROM run);

-- name: end_lost_run
-- Ends a run whose process gave no sign of life for `stale_after` ms, with a last event.
WITH ended AS (
  UPDATE threadkeep.runs SET status = 'failed', finished_at = clock_timestamp()
  WHERE run_id = :run_id AND status IN ('queued', 'in_progress')
    AND alive_at <= clock_timestamp() - :stale_after::bigint * interval '1 ms'
  RETURNING session_id),
session AS (
  UPDATE threadkeep.sessions s SET run_id = NULL
  FROM ended WHERE s.session_id = ended.session_id AND s.run_id = :run_id)
INSERT INTO threadkeep.run_events (run_id, seq, data)
SELECT :run_id, :seq, :event FROM ended
ON CONFLICT DO NOTHING;

-- name: get_run
-- One run of an owner; `lost`: its process gave no sign of life for `stale_after` ms.
SELECT run_id, session_id, status,
       (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM finished_at) * 1000)::bigint AS finished_at,
       status IN ('queued', 'in_progress')
         AND alive_at <= clock_timestamp() - :stale_after::bigint * interval '1 ms' AS lost,
       (SELECT max(e.seq) FROM threadkeep.run_events e WHERE e.run_id = r.run_id) AS last_seq
FROM threadkeep.runs r WHERE run_id = :run_id AND owner = :owner;

-- name: find_run_by_key
-- The run that an owner's request with this Idempotency-Key has started.
SELECT run_id, request_hash FROM threadkeep.runs
WHERE owner = :owner AND idempotency_key = :idempotency_key;

-- name: read_run_events
-- The events of an owner's run after a given one, in order.
SELECT e.seq, e.data
FROM threadkeep.runs r JOIN threadkeep.run_events e ON e.run_id = r.run_id AND e.seq > :after
WHERE r.run_id = :run_id AND r.owner = :owner
ORDER BY e.seq;

-- name: forget_old_runs
-- Removes runs that ended more than `older_than` ms ago, with their events; `limit` of them at most.
-- `count` is how many. What they said stays in their sessions.
WITH old AS (
  SELECT run_id FROM threadkeep.runs
  WHERE finished_at <= clock_timestamp() - :older_than::bigint * interval '1 ms'
  ORDER BY finished_at, run_id LIMIT :limit FOR UPDATE SKIP LOCKED),
events AS (
  DELETE FROM threadkeep.run_events USING old WHERE run_events.run_id = old.run_id),
gone AS (
  DELETE FROM threadkeep.runs USING old WHERE runs.run_id = old.run_id RETURNING runs.run_id)
SELECT count(*) AS count FROM gone;

-- name: request_cancel
-- Asks whichever process has the run to stop it.
UPDATE threadkeep.runs SET cancel_requested = true
WHERE run_id = :run_id AND owner = :owner AND status IN ('queued', 'in_progress')
RETURNING run_id;
