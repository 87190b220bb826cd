-- Runs and their streamed events; see sessions.sql. What a run at work writes is fenced: it must still
-- have its session (`sessions.run_id`, compared in the row that the statement locks), or else somebody
-- took that over, or deleted it, and nothing is written.

-- A call whose connection died is made again, and then `:retried`; see sessions.sql.

-- name: queue_run
-- Stores a run that waits for its session. No row: the session is somebody else's.
WITH run AS (
  INSERT INTO threadkeep.runs (run_id, session_id, owner, status, alive_at, created_at)
  SELECT :run_id, :session_id, :owner, 'queued', clock_timestamp(), clock_timestamp()
  WHERE NOT EXISTS (
    SELECT 1 FROM threadkeep.sessions WHERE session_id = :session_id AND owner <> :owner)
  ON CONFLICT DO NOTHING
  RETURNING run_id),
event AS (
  INSERT INTO threadkeep.run_events (run_id, seq, data) SELECT run_id, 0, :created FROM run)
SELECT run_id FROM run
UNION ALL
SELECT run_id FROM threadkeep.runs WHERE :retried::boolean AND run_id = :run_id;

-- name: begin_turn
-- Stores a run and its input, takes the session for it, and returns what came after (epoch, seq) as
-- read_items does. `busy`: another run that is alive has the session or has waited for longer, and
-- nothing was written. Made again, it finds that its run has the session: not busy, and nothing to read
-- here.
WITH head AS (
  INSERT INTO threadkeep.sessions AS s
    (session_id, owner, title, epoch, seq, run_id, run_alive_at, created_at, updated_at)
  SELECT :session_id, :owner, :title, :new_epoch, cardinality(:items::text[]), :run_id,
         clock_timestamp(), clock_timestamp(), clock_timestamp()
  WHERE NOT EXISTS (
    SELECT 1 FROM threadkeep.runs q
    WHERE q.session_id = :session_id AND q.status = 'queued' AND q.run_id < :run_id
      AND q.alive_at > clock_timestamp() - :stale_after::bigint * interval '1 ms')
  ON CONFLICT (session_id) DO UPDATE
  SET seq = s.seq + cardinality(:items::text[]),
      run_id = excluded.run_id,
      run_alive_at = clock_timestamp(),
      title = coalesce(s.title, excluded.title),
      updated_at = clock_timestamp()
  WHERE s.owner = excluded.owner
    AND (s.run_id IS NULL
         OR s.run_alive_at <= clock_timestamp() - :stale_after::bigint * interval '1 ms')
  RETURNING s.epoch, s.seq, s.updated_at),
run AS (
  INSERT INTO threadkeep.runs (run_id, session_id, owner, status, alive_at, created_at)
  SELECT :run_id, :session_id, :owner, 'in_progress', head.updated_at, head.updated_at FROM head
  ON CONFLICT (run_id) DO UPDATE SET status = 'in_progress'),
event AS (
  INSERT INTO threadkeep.run_events (run_id, seq, data) SELECT :run_id, 0, :created FROM head
  ON CONFLICT DO NOTHING),
stored AS (
  INSERT INTO threadkeep.items (session_id, seq, data, run_id, created_at)
  SELECT :session_id, head.seq - cardinality(:items::text[]) + new.place, new.data, :run_id,
         head.updated_at
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
       head.epoch IS NULL AND NOT (:retried::boolean AND EXISTS (
         SELECT 1 FROM threadkeep.sessions o
         WHERE o.session_id = :session_id AND o.run_id = :run_id)) AS busy, known.base, news.seq, news.data,
       (extract(epoch FROM news.created_at) * 1000)::bigint AS created_at
FROM (SELECT) AS always
LEFT JOIN head ON true
LEFT JOIN known ON true
LEFT JOIN news ON true
ORDER BY news.seq;

-- name: append_run_items
-- Stores items of a run behind the newest one. No row: the run has lost its session.
WITH done AS (
  SELECT FROM threadkeep.items
  WHERE :retried::boolean AND session_id = :session_id AND call_id = :call_id::bigint),
head AS (
  UPDATE threadkeep.sessions
  SET seq = seq + cardinality(:items::text[]), updated_at = clock_timestamp()
  WHERE session_id = :session_id AND owner = :owner AND run_id = :run_id
    AND NOT EXISTS (SELECT FROM done)
  RETURNING epoch, seq, updated_at),
stored AS (
  INSERT INTO threadkeep.items (session_id, seq, data, run_id, created_at, call_id)
  SELECT :session_id, head.seq - cardinality(:items::text[]) + new.place, new.data, :run_id,
         head.updated_at, CASE WHEN new.place = 1 THEN :call_id::bigint END
  FROM head, unnest(:items::text[]) WITH ORDINALITY AS new (data, place))
SELECT epoch, seq FROM head
UNION ALL
SELECT s.epoch, s.seq FROM threadkeep.sessions s, done WHERE s.session_id = :session_id;

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

-- name: add_run_events
-- Stores events of a run that is still this process's, as a sign of life too. No row: it was lost.
WITH session AS (
  UPDATE threadkeep.sessions SET run_alive_at = clock_timestamp()
  WHERE run_id = :run_id
    AND session_id = (SELECT r.session_id FROM threadkeep.runs r WHERE r.run_id = :run_id)
  RETURNING session_id),
alive AS (
  UPDATE threadkeep.runs SET alive_at = clock_timestamp()
  WHERE run_id = :run_id
    AND (status = 'queued' OR status = 'in_progress' AND EXISTS (SELECT FROM session))
  RETURNING cancel_requested),
stored AS (
  INSERT INTO threadkeep.run_events (run_id, seq, data)
  SELECT :run_id, :first_seq::bigint + new.place - 1, new.data
  FROM alive, unnest(:events::text[]) WITH ORDINALITY AS new (data, place)
  ON CONFLICT DO NOTHING)
SELECT cancel_requested FROM alive;

-- name: finish_run
-- Stores the last events of a run with its end, and gives its session free. No row: it was lost.
-- A session that was taken back whole is no hindrance.
WITH session AS (
  UPDATE threadkeep.sessions SET run_id = NULL
  WHERE run_id = :run_id
    AND session_id = (SELECT r.session_id FROM threadkeep.runs r WHERE r.run_id = :run_id)
  RETURNING session_id),
ended AS (
  UPDATE threadkeep.runs r SET status = :status, finished_at = clock_timestamp()
  WHERE r.run_id = :run_id
    AND (r.status = 'queued' OR r.status = 'in_progress' AND (
      EXISTS (SELECT FROM session)
      OR NOT EXISTS (SELECT 1 FROM threadkeep.sessions s WHERE s.session_id = r.session_id)))
  RETURNING r.status),
stored AS (
  INSERT INTO threadkeep.run_events (run_id, seq, data)
  SELECT :run_id, :first_seq::bigint + new.place - 1, new.data
  FROM ended, unnest(:events::text[]) WITH ORDINALITY AS new (data, place)
  ON CONFLICT DO NOTHING)
SELECT status FROM ended
UNION ALL
SELECT r.status FROM threadkeep.runs r JOIN threadkeep.run_events e ON e.run_id = r.run_id
WHERE :retried::boolean AND r.run_id = :run_id AND r.status = :status
  AND e.seq = :first_seq::bigint + cardinality(:events::text[]) - 1
  AND e.data = (:events::text[])[cardinality(:events::text[])];

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

-- name: read_run_events
-- The events of an owner's run after a given one, in order.
SELECT e.seq, e.data
FROM threadkeep.runs r JOIN threadkeep.run_events e ON e.run_id = r.run_id AND e.seq > :after
WHERE r.run_id = :run_id AND r.owner = :owner
ORDER BY e.seq;

-- name: request_cancel
-- Asks whichever process has the run to stop it.
UPDATE threadkeep.runs SET cancel_requested = true
WHERE run_id = :run_id AND owner = :owner AND status IN ('queued', 'in_progress')
RETURNING run_id;
