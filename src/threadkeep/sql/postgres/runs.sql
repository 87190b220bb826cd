-- Runs, their events and their journals; see sessions.sql. What a run at work writes is fenced: it must
-- still have its session, in the attempt that writes (`sessions.run_id` and `run_attempt`, compared in the
-- row that the statement locks), or else somebody took the run over, or deleted its session, and nothing
-- is written.
-- A call whose connection died is made again, and then `:retried`; see sessions.sql.

-- name: queue_run
-- Stores a run that waits for its session; `stored` is false when `limit` runs wait already. No row: the
-- session is somebody else's.
WITH run AS (
  INSERT INTO threadkeep.runs
    (run_id, session_id, owner, idempotency_key, request_hash, request, journal_id, status, alive_at,
     created_at)
  SELECT :run_id, :session_id, :owner, :idempotency_key, :request_hash, :request, :run_id, 'queued',
         clock_timestamp(), clock_timestamp()
  WHERE NOT EXISTS (
    SELECT 1 FROM threadkeep.sessions WHERE session_id = :session_id AND owner <> :owner)
    AND (SELECT count(*) FROM threadkeep.runs q
         WHERE q.session_id = :session_id AND q.status = 'queued' AND q.run_id <> :run_id)
        < :limit::bigint
  ON CONFLICT (run_id) DO UPDATE SET alive_at = excluded.alive_at WHERE runs.owner = excluded.owner
  RETURNING run_id),
event AS (
  INSERT INTO threadkeep.run_events (run_id, seq, data)
  SELECT run_id, 0, :created::text FROM run WHERE :created::text <> ''
  ON CONFLICT DO NOTHING)
SELECT EXISTS (SELECT FROM run) AS stored
WHERE NOT EXISTS (
  SELECT 1 FROM threadkeep.sessions WHERE session_id = :session_id AND owner <> :owner);

-- name: begin_turn
-- Stores a run and its input, takes the session for it, and returns what came after (epoch, seq) as
-- read_items does. `busy`: another run has the session, which `busy_run_id` may name, or has waited for
-- longer, or has not ended yet since its session was taken back; or the input is that of a run that can
-- be gone on with (`open_run_id`); or the session is `full`: it stands behind seq `room_until`; or the run,
-- which `waits` in the database, was deleted, ended or taken over there (its row is locked, before that of
-- the session, so that none of these can happen meanwhile). Then nothing was written. Made again, it finds
-- what was done: not busy, and nothing to read here. While that can't be seen yet, it breaks on the
-- `call_id` of the first item, and is made once more.
WITH mine AS (
  SELECT FROM threadkeep.runs
  WHERE :waits::boolean AND run_id = :run_id AND attempt = :attempt::bigint
    AND (status = 'queued' OR :retried::boolean AND status = 'in_progress')
  FOR UPDATE),
done AS (
  SELECT FROM threadkeep.items
  WHERE :retried::boolean AND session_id = :session_id AND call_id = :call_id::bigint),
head AS (
  INSERT INTO threadkeep.sessions AS s
    (session_id, owner, title, epoch, seq, run_id, run_attempt, temporary, run_alive_at, created_at, updated_at)
  SELECT :session_id, :owner, :title, :new_epoch, cardinality(:items::text[]), :run_id, :attempt::bigint,
         :temporary, clock_timestamp(), clock_timestamp(), clock_timestamp()
  WHERE NOT EXISTS (SELECT FROM done) AND (NOT :waits::boolean OR EXISTS (SELECT FROM mine))
    AND NOT EXISTS (
      SELECT 1 FROM threadkeep.runs q
      WHERE q.session_id = :session_id AND (q.status = 'queued' AND q.run_id < :run_id
        OR q.status = 'in_progress' AND q.run_id <> :run_id))
  ON CONFLICT (session_id) DO UPDATE
  SET seq = s.seq + cardinality(:items::text[]),
      run_id = excluded.run_id,
      run_attempt = excluded.run_attempt,
      run_alive_at = clock_timestamp(),
      run_items = 0,
      open_run_id = NULL,
      title = coalesce(s.title, excluded.title),
      updated_at = clock_timestamp()
  WHERE s.owner = excluded.owner AND s.seq <= :room_until::bigint
    AND (s.run_id IS NULL OR :retried::boolean AND s.run_id = excluded.run_id)
    AND (s.open_run_id IS NOT NULL AND s.open_hash = :input_hash::text
         AND s.open_epoch = s.epoch AND s.open_seq = s.seq) IS NOT TRUE
  RETURNING s.epoch, s.seq, s.approved_tools, s.updated_at),
run AS (
  INSERT INTO threadkeep.runs
    (run_id, session_id, owner, idempotency_key, request_hash, request, journal_id, status, base_seq,
     input_count, fork_id, made, approved_tools, alive_at, created_at)
  SELECT :run_id, :session_id, :owner, :idempotency_key, :request_hash, :request, :run_id, 'in_progress',
         head.seq - cardinality(:items::text[]), cardinality(:items::text[]), :fork_id::text,
         head.epoch = :new_epoch::bigint, head.approved_tools, head.updated_at, head.updated_at
  FROM head
  ON CONFLICT (run_id) DO UPDATE
  SET status = 'in_progress', base_seq = excluded.base_seq, input_count = excluded.input_count,
      fork_id = excluded.fork_id, made = excluded.made, approved_tools = excluded.approved_tools,
      alive_at = excluded.alive_at
  WHERE runs.owner = excluded.owner
  RETURNING run_id),
event AS (
  INSERT INTO threadkeep.run_events (run_id, seq, data)
  SELECT run_id, 0, :created::text FROM run WHERE :created::text <> ''
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
  SELECT seq, data, created_at FROM stored),
other AS (
  SELECT o.owner, CASE WHEN o.owner = :owner THEN o.run_id END AS run_id,
         o.owner = :owner AND o.seq > :room_until::bigint AS full,
         CASE WHEN o.owner = :owner AND o.open_hash = :input_hash::text
                AND o.open_epoch = o.epoch AND o.open_seq = o.seq
              THEN o.open_run_id END AS open_run_id
  FROM threadkeep.sessions o WHERE o.session_id = :session_id AND NOT EXISTS (SELECT FROM head))
SELECT head.epoch, head.seq AS head,
       head.epoch IS NOT NULL OR other.owner IS NULL OR other.owner = :owner AS owned,
       head.epoch IS NULL AND NOT EXISTS (SELECT FROM done) AS busy,
       other.run_id AS busy_run_id, other.open_run_id, other.full, head.approved_tools,
       known.base, news.seq, news.data,
       (extract(epoch FROM news.created_at) * 1000)::bigint AS created_at
FROM (SELECT) AS always
LEFT JOIN head ON true
LEFT JOIN known ON true
LEFT JOIN news ON true
LEFT JOIN other ON true
ORDER BY news.seq;

-- name: resume_turn
-- Goes on with the turn of a run that has ended, in another run, which is stored: takes the session and
-- cuts off what the turn has behind its input; what others wrote there stays. No row: the session has gone
-- on, or is another run's; or the run, which `waits` in the database, is not there any more. Made again, it
-- finds what was done in its own row; or, when it had to wait for that, in the session's, which is read anew.
WITH mine AS (
  SELECT FROM threadkeep.runs
  WHERE :waits::boolean AND run_id = :run_id AND attempt = :attempt::bigint AND status = 'queued'
  FOR UPDATE),
seen AS MATERIALIZED (
  SELECT s.epoch, s.seq, r.journal_id, r.base_seq, r.input_count, r.fork_id, r.made, s.approved_tools,
         CASE WHEN r.checkpoint IS NULL THEN r.checkpoint_run_id ELSE r.run_id END AS checkpoint_run_id,
         r.checkpoint_version
  FROM threadkeep.sessions s JOIN threadkeep.runs r ON r.run_id = s.open_run_id
  WHERE s.session_id = :session_id AND s.owner = :owner AND s.open_run_id = :open_run_id),
kept AS (
  SELECT i.data, i.created_at,
         seen.base_seq + seen.input_count + row_number() OVER (ORDER BY i.seq) AS place
  FROM seen JOIN threadkeep.items i
    ON i.session_id = :session_id AND i.seq > seen.base_seq + seen.input_count AND i.run_id IS NULL),
head AS (
  UPDATE threadkeep.sessions s
  SET seq = seen.base_seq + seen.input_count + (SELECT count(*) FROM kept), epoch = :new_epoch, run_id = :run_id,
      run_attempt = :attempt::bigint, run_alive_at = clock_timestamp(), run_items = 0,
      open_run_id = NULL, updated_at = clock_timestamp()
  FROM seen
  WHERE s.session_id = :session_id AND s.owner = :owner AND s.run_id IS NULL
    AND s.open_run_id = :open_run_id AND s.open_epoch = s.epoch AND s.open_seq = s.seq
    AND s.epoch = seen.epoch AND s.seq = seen.seq
    AND (NOT :waits::boolean OR EXISTS (SELECT FROM mine))
    AND NOT EXISTS (
      SELECT 1 FROM threadkeep.runs q
      WHERE q.session_id = :session_id AND q.status = 'queued' AND q.run_id < :run_id)
  RETURNING s.seq, s.updated_at),
moved AS (
  UPDATE threadkeep.items i SET data = kept.data, run_id = NULL, created_at = kept.created_at
  FROM kept WHERE i.session_id = :session_id AND i.seq = kept.place AND EXISTS (SELECT FROM head)),
cut AS (
  DELETE FROM threadkeep.items i USING head
  WHERE i.session_id = :session_id AND i.seq > head.seq),
run AS (
  INSERT INTO threadkeep.runs
    (run_id, session_id, owner, idempotency_key, request_hash, request, journal_id, status, base_seq,
     input_count, fork_id, made, approved_tools, checkpoint_run_id, checkpoint_version, alive_at,
     created_at)
  SELECT :run_id, :session_id, :owner, :idempotency_key, :request_hash, :request, seen.journal_id,
         'in_progress', seen.base_seq, seen.input_count, seen.fork_id, seen.made, seen.approved_tools,
         seen.checkpoint_run_id, seen.checkpoint_version, head.updated_at, head.updated_at
  FROM head, seen
  ON CONFLICT (run_id) DO UPDATE
  SET status = 'in_progress', journal_id = excluded.journal_id, base_seq = excluded.base_seq,
      input_count = excluded.input_count, fork_id = excluded.fork_id, made = excluded.made,
      approved_tools = excluded.approved_tools, checkpoint_run_id = excluded.checkpoint_run_id,
      checkpoint_version = excluded.checkpoint_version, alive_at = excluded.alive_at
  WHERE runs.owner = excluded.owner
  RETURNING run_id),
event AS (
  INSERT INTO threadkeep.run_events (run_id, seq, data) SELECT run_id, 0, :created FROM run
  ON CONFLICT DO NOTHING)
SELECT journal_id, base_seq, input_count, fork_id, made, approved_tools, checkpoint_run_id FROM head, seen
UNION ALL
SELECT journal_id, base_seq, input_count, fork_id, made, approved_tools, checkpoint_run_id
FROM threadkeep.runs
WHERE :retried::boolean AND run_id = :run_id AND owner = :owner AND attempt = :attempt::bigint
  AND status = 'in_progress'
UNION ALL
SELECT journal_id, base_seq, input_count, fork_id, made, approved_tools, checkpoint_run_id FROM seen
WHERE :retried::boolean AND NOT EXISTS (SELECT FROM head) AND EXISTS (
  SELECT FROM (
    SELECT run_id FROM threadkeep.sessions WHERE session_id = :session_id OFFSET 0 FOR UPDATE) taken
  WHERE taken.run_id = :run_id);

-- name: take_back_turn
-- Undoes what admitted a turn, if nothing was stored since, and nobody else wrote behind seq `keep`: removes
-- the input, which lies there; puts back from the fork what was cut off for it, and removes that fork;
-- removes a session that the turn had `made`, and then its run waits again, until it ends (else another
-- run could not make the session anew). No row: it was not undone. Where an item is put back in the place
-- of a removed one, its row is changed, because one statement may touch a row only once.
WITH fork AS (
  SELECT f.session_id, f.seq FROM threadkeep.sessions f
  WHERE f.session_id = :fork_id AND f.owner = :owner),
others AS (
  SELECT FROM threadkeep.items
  WHERE session_id = :session_id AND seq > :keep::bigint AND run_id IS NULL),
gone AS (
  DELETE FROM threadkeep.sessions
  WHERE :made::bigint = 1 AND session_id = :session_id AND owner = :owner AND run_id = :run_id AND run_attempt = :attempt
    AND epoch = :epoch AND seq = :seq AND :keep::bigint = 0
    AND NOT EXISTS (SELECT FROM others)
  RETURNING session_id),
head AS (
  UPDATE threadkeep.sessions
  SET seq = greatest(:keep::bigint, coalesce((SELECT fork.seq FROM fork), 0)),
      epoch = :new_epoch,
      title = CASE WHEN :keep::bigint > 0 OR :fork_id::text <> '' THEN title END,
      updated_at = clock_timestamp()
  WHERE (:made::bigint = 0 OR :keep::bigint > 0)
    AND session_id = :session_id AND owner = :owner AND run_id = :run_id AND run_attempt = :attempt
    AND epoch = :epoch AND seq = :seq AND NOT EXISTS (SELECT FROM others)
  RETURNING session_id),
waits AS (
  UPDATE threadkeep.runs SET status = 'queued'
  WHERE run_id = :run_id AND owner = :owner AND EXISTS (SELECT FROM gone)),
undone AS (SELECT session_id FROM gone UNION ALL SELECT session_id FROM head),
replaced AS (
  UPDATE threadkeep.items t
  SET data = f.data, run_id = f.run_id, created_at = f.created_at
  FROM threadkeep.items f JOIN fork ON fork.session_id = f.session_id
  WHERE t.session_id = :session_id AND t.seq > :keep::bigint AND f.seq = t.seq
    AND EXISTS (SELECT FROM undone)),
removed AS (
  DELETE FROM threadkeep.items t
  WHERE t.session_id = :session_id AND t.seq > :keep::bigint AND EXISTS (SELECT FROM undone)
    AND NOT EXISTS (
      SELECT 1 FROM threadkeep.items f JOIN fork ON fork.session_id = f.session_id
      WHERE f.seq = t.seq)),
restored AS (
  INSERT INTO threadkeep.items (session_id, seq, data, run_id, created_at)
  SELECT :session_id, f.seq, f.data, f.run_id, f.created_at
  FROM threadkeep.items f JOIN fork ON fork.session_id = f.session_id
  WHERE f.seq > :seq::bigint AND EXISTS (SELECT FROM undone)),
fork_items AS (
  DELETE FROM threadkeep.items
  WHERE session_id = (SELECT session_id FROM fork) AND EXISTS (SELECT FROM undone)),
fork_gone AS (
  DELETE FROM threadkeep.sessions
  WHERE session_id = :fork_id AND owner = :owner AND EXISTS (SELECT FROM undone)),
done AS (
  SELECT epoch FROM threadkeep.sessions
  WHERE :retried::boolean AND session_id = :session_id OFFSET 0 FOR UPDATE)
SELECT session_id FROM undone
UNION ALL
SELECT :session_id::text
WHERE :retried::boolean AND NOT EXISTS (SELECT FROM undone) AND (
  EXISTS (SELECT FROM done WHERE epoch = :new_epoch::bigint)
  OR :made::bigint = 1 AND :keep::bigint = 0 AND NOT EXISTS (SELECT FROM done));

-- name: write_run
-- What a run has to store, in one: events from number `first_seq` on; items, of which `first_item` came
-- before; steps of its journal; a sign of life; and with a `status` its end, which gives its session free, `open`
-- to be gone on with where `open` is 1, from its `checkpoint` if it has one. What is stored already is not stored
-- again. No row: the run was lost. A session that is not its own any more is no hindrance to its end.
WITH session AS (
  UPDATE threadkeep.sessions
  SET run_added = greatest(0, :first_item::bigint + cardinality(:items::text[]) - run_items),
      seq = seq + greatest(0, :first_item::bigint + cardinality(:items::text[]) - run_items),
      run_items = greatest(run_items, :first_item::bigint + cardinality(:items::text[])),
      run_alive_at = clock_timestamp(),
      run_id = CASE WHEN :status::text = '' THEN run_id END,
      title = coalesce(title, :title::text),
      open_run_id = CASE WHEN :open::bigint = 1 THEN run_id END,
      open_hash = :open_hash::text,
      open_epoch = epoch,
      open_seq = seq + greatest(0, :first_item::bigint + cardinality(:items::text[]) - run_items),
      updated_at = CASE WHEN cardinality(:items::text[]) > 0 THEN clock_timestamp()
                        ELSE updated_at END
  WHERE session_id = :session_id AND owner = :owner
    AND run_id = :run_id AND run_attempt = :attempt::bigint
  RETURNING seq, run_added, updated_at),
run AS (
  UPDATE threadkeep.runs r
  SET alive_at = clock_timestamp(),
      status = CASE WHEN :status::text = '' THEN r.status ELSE :status::text END,
      request = CASE WHEN :status::text = 'completed' THEN NULL ELSE r.request END,
      checkpoint = :checkpoint::text,
      checkpoint_version = CASE WHEN :checkpoint::text IS NULL THEN r.checkpoint_version
                                ELSE :checkpoint_version::bigint END,
      finished_at = CASE WHEN :status::text <> '' THEN clock_timestamp() END
  WHERE r.run_id = :run_id AND r.owner = :owner AND r.session_id = :session_id
    AND r.attempt = :attempt::bigint
    AND (r.status = 'queued' OR r.status = 'in_progress' AND (
      EXISTS (SELECT FROM session)
      OR :status::text <> '' AND NOT EXISTS (
        SELECT 1 FROM threadkeep.sessions s
        WHERE s.session_id = r.session_id AND s.run_id = r.run_id)))
  RETURNING r.journal_id, r.stop_requested, r.followed_until > clock_timestamp() AS is_followed),
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
  ON CONFLICT DO NOTHING),
answered AS (
  INSERT INTO threadkeep.model_calls (journal_id, key, request_hash, response)
  SELECT :journal_id, new.key, new.request_hash, new.response
  FROM run, unnest(:model_keys::text[], :model_requests::text[], :model_responses::text[])
    AS new (key, request_hash, response)
  WHERE run.journal_id = :journal_id
  ON CONFLICT DO NOTHING),
called AS (
  INSERT INTO threadkeep.tool_calls AS t
    (journal_id, key, status, repeatable, call, output, approval_id)
  SELECT :journal_id, new.key, new.status, new.repeatable = 'true', new.call, new.output,
         nullif(new.approval_id, '')
  FROM run, unnest(:tool_keys::text[], :tool_states::text[], :tool_repeatable::text[],
                   :tool_calls::text[], :tool_outputs::text[], :tool_approvals::text[])
    AS new (key, status, repeatable, call, output, approval_id)
  WHERE run.journal_id = :journal_id
  ON CONFLICT (journal_id, key) DO UPDATE
  SET status = excluded.status, call = excluded.call, output = excluded.output,
      approval_id = coalesce(excluded.approval_id, t.approval_id)),
asked AS (
  INSERT INTO threadkeep.approvals
    (approval_id, run_id, session_id, owner, journal_id, kind, key, call, status, created_at, expires_at,
     tell_at)
  SELECT new.approval_id, :run_id, :session_id, :owner, :journal_id, :approval_kind, new.key, new.call,
         'pending', clock_timestamp(),
         clock_timestamp() + :approval_expiry::bigint * interval '1 ms', clock_timestamp()
  FROM run, unnest(:approval_ids::text[], :approval_keys::text[], :approval_calls::text[])
    AS new (approval_id, key, call)
  ON CONFLICT DO NOTHING)
SELECT stop_requested,
       CASE WHEN is_followed THEN pg_notify(:channel, :run_id)::text END AS followers_told,
       CASE WHEN :status::text <> '' AND EXISTS (
         SELECT 1 FROM threadkeep.runs q WHERE q.session_id = :session_id AND q.status = 'queued')
       THEN pg_notify(:channel, :session_id)::text END AS waiting_told
FROM run
UNION ALL
SELECT '', NULL, NULL FROM (
  SELECT status FROM threadkeep.runs
  WHERE :retried::boolean AND run_id = :run_id AND owner = :owner AND attempt = :attempt::bigint
  OFFSET 0 FOR UPDATE) ended
WHERE ended.status = :status::text AND NOT EXISTS (SELECT FROM run);

-- name: release_run
-- Gives a run up without ending it, so that another process takes it over at once.
WITH session AS (
  UPDATE threadkeep.sessions
  SET run_alive_at = clock_timestamp() - :stale_after::bigint * interval '1 ms'
  WHERE session_id = :session_id AND owner = :owner AND run_id = :run_id AND run_attempt = :attempt)
UPDATE threadkeep.runs SET alive_at = clock_timestamp() - :stale_after::bigint * interval '1 ms'
WHERE run_id = :run_id AND owner = :owner AND attempt = :attempt AND finished_at IS NULL;

-- name: claim_lost_run
-- Takes over one run whose process gave no sign of life for `stale_after` ms, for its next attempt; not one
-- of `own`, which the caller works on, nor from a checkpoint that only newer releases know. `has_session`:
-- whether it has its session still. One time for all: Postgres may look at the session later than at the run.
WITH lost AS MATERIALIZED (
  SELECT r.run_id, r.session_id, r.status, r.attempt + 1 AS attempt FROM threadkeep.runs r
  WHERE r.finished_at IS NULL AND r.request IS NOT NULL
    AND r.alive_at <= statement_timestamp() - :stale_after::bigint * interval '1 ms'
    AND r.checkpoint_version <= :checkpoint_version::bigint
    AND r.run_id <> ALL (:own::text[])
  ORDER BY random() LIMIT 1),  -- not the one that all the others try for
session AS (
  UPDATE threadkeep.sessions s
  SET run_attempt = lost.attempt, run_alive_at = clock_timestamp()
  FROM lost
  WHERE lost.status = 'in_progress' AND s.session_id = lost.session_id AND s.run_id = lost.run_id
    AND s.run_alive_at <= statement_timestamp() - :stale_after::bigint * interval '1 ms'
  RETURNING s.run_id)
UPDATE threadkeep.runs r
SET attempt = lost.attempt, alive_at = clock_timestamp()
FROM lost
WHERE r.run_id = lost.run_id AND r.finished_at IS NULL AND r.status = lost.status
  AND r.attempt < lost.attempt AND r.alive_at <= statement_timestamp() - :stale_after::bigint * interval '1 ms'
  AND (r.status = 'queued' OR EXISTS (SELECT FROM session) OR NOT EXISTS (
    SELECT 1 FROM threadkeep.sessions s WHERE s.session_id = r.session_id AND s.run_id = r.run_id))
RETURNING r.run_id, r.session_id, r.owner, r.status, r.idempotency_key, r.request_hash, r.request,
          r.journal_id, r.attempt, r.base_seq, r.input_count, r.fork_id, r.made, r.approved_tools,
          r.checkpoint_run_id,
          EXISTS (SELECT FROM session) AS has_session,
          (extract(epoch FROM r.created_at) * 1000)::bigint AS created_at;

-- name: end_lost_turns
-- Ends what has a session, or waits for it, when only its own process could go on with it and that gave
-- no sign of life for `stale_after` ms; or when it gave none for so long (`given_up_after`, NULL for
-- never) that nobody takes it over. Of one session, or of all when `session_id` is ''.
WITH lost AS MATERIALIZED (
  SELECT r.run_id, r.session_id, clock_timestamp() - interval '1 ms'
         * CASE WHEN r.request IS NULL THEN :stale_after::bigint ELSE :given_up_after::bigint END AS since
  FROM threadkeep.runs r
  WHERE r.finished_at IS NULL
    AND (:session_id::text = '' OR r.session_id = :session_id::text)),
session AS (
  UPDATE threadkeep.sessions s SET run_id = NULL
  FROM lost
  WHERE s.session_id = lost.session_id AND s.run_id = lost.run_id AND s.run_alive_at <= lost.since
  RETURNING lost.run_id)
UPDATE threadkeep.runs r SET status = 'failed', finished_at = clock_timestamp()
FROM lost
WHERE r.run_id = lost.run_id AND r.finished_at IS NULL AND r.alive_at <= lost.since
  AND (r.status = 'queued' OR r.run_id IN (SELECT run_id FROM session) OR NOT EXISTS (
    SELECT 1 FROM threadkeep.sessions s WHERE s.session_id = r.session_id AND s.run_id = r.run_id));

-- name: read_journal
-- The steps of an owner's run, its own and those of the runs that it goes on from.
SELECT 'model' AS kind, m.key, m.request_hash, m.response, NULL AS status, NULL AS call, NULL AS approval_id
FROM threadkeep.runs r JOIN threadkeep.model_calls m ON m.journal_id = r.run_id
WHERE r.run_id = :journal_id AND r.owner = :owner
UNION ALL
SELECT 'tool', t.key, NULL, t.output, t.status, t.call, t.approval_id
FROM threadkeep.runs r JOIN threadkeep.tool_calls t ON t.journal_id = r.run_id
WHERE r.run_id = :journal_id AND r.owner = :owner;

-- name: get_run
-- One run of an owner.
SELECT run_id, session_id, status, request, request_hash, base_seq, input_count, stop_requested,
       approved_tools, checkpoint_version,
       (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM finished_at) * 1000)::bigint AS finished_at,
       (SELECT max(e.seq) FROM threadkeep.run_events e WHERE e.run_id = r.run_id) AS last_seq
FROM threadkeep.runs r WHERE run_id = :run_id AND owner = :owner;

-- name: watch_run
-- Says for `watch_for` ms that somebody elsewhere wants to hear of a run: a signal by its id.
UPDATE threadkeep.runs
SET followed_until = clock_timestamp() + :watch_for::bigint * interval '1 ms'
WHERE run_id = :run_id AND owner = :owner AND finished_at IS NULL;

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
-- Removes runs that ended more than `older_than` ms ago, with their events and journals; `limit` of them at
-- most. `count` is how many. What they said stays in their sessions. A run is kept while another one of its
-- turn is, or while somebody may decide about one of its calls.
WITH old AS (
  SELECT o.run_id, o.journal_id FROM threadkeep.runs o
  WHERE o.finished_at <= clock_timestamp() - :older_than::bigint * interval '1 ms'
    AND NOT EXISTS (
      SELECT 1 FROM threadkeep.runs r
      WHERE r.session_id = o.session_id AND r.journal_id = o.journal_id
        AND (r.finished_at IS NULL
             OR r.finished_at > clock_timestamp() - :older_than::bigint * interval '1 ms'))
    AND NOT EXISTS (
      SELECT 1 FROM threadkeep.approvals_now a
      WHERE a.journal_id = o.journal_id AND a.status = 'pending')
  ORDER BY o.finished_at, o.run_id LIMIT :limit FOR UPDATE OF o SKIP LOCKED),
closed AS (
  UPDATE threadkeep.sessions s SET open_run_id = NULL FROM old WHERE s.open_run_id = old.run_id),
events AS (
  DELETE FROM threadkeep.run_events USING old WHERE run_events.run_id = old.run_id),
answers AS (
  DELETE FROM threadkeep.model_calls USING old WHERE model_calls.journal_id = old.journal_id),
calls AS (
  DELETE FROM threadkeep.tool_calls USING old WHERE tool_calls.journal_id = old.journal_id),
decisions AS (
  DELETE FROM threadkeep.approvals USING old WHERE approvals.run_id = old.run_id),
gone AS (
  DELETE FROM threadkeep.runs USING old WHERE runs.run_id = old.run_id RETURNING runs.run_id)
SELECT count(*) AS count FROM gone;

-- name: request_stop
-- Asks whichever process has the run to stop it: `cancel` and `interrupt` keep what it said, `rollback`
-- keeps nothing, and can't be asked for once a tool was called that can't be called again. What was asked
-- first stands, but for a rollback, which may be refused yet. No row: it has ended, or can't be rolled back.
UPDATE threadkeep.runs r
SET stop_requested = CASE WHEN r.stop_requested IN ('', 'rollback') THEN :how::text
                          ELSE r.stop_requested END
WHERE r.run_id = :run_id AND r.owner = :owner AND r.finished_at IS NULL
  AND (:how::text <> 'rollback' OR NOT EXISTS (
    SELECT 1 FROM threadkeep.tool_calls t WHERE t.journal_id = r.journal_id AND NOT t.repeatable))
RETURNING run_id;

-- name: refuse_rollback
-- Says that a run can't be rolled back any more.
UPDATE threadkeep.runs SET stop_requested = ''
WHERE run_id = :run_id AND owner = :owner AND attempt = :attempt AND stop_requested = 'rollback';
