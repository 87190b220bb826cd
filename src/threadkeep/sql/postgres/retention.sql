-- What goes for good: sessions whose time is over, and all of an owner. Every table is covered; a test says so.
-- A run that has ended writes nothing any more, so what the snapshot of a statement has of it is all. Made again,
-- a deletion removes what the first attempt left, and counts that alone.

-- name: count_owner
-- How much there is of an owner, by table.
SELECT 'sessions' AS name, count(*) AS count FROM threadkeep.sessions WHERE owner = :owner
UNION ALL
SELECT 'items', count(*)
FROM threadkeep.sessions s JOIN threadkeep.items i ON i.session_id = s.session_id WHERE s.owner = :owner
UNION ALL
SELECT 'runs', count(*) FROM threadkeep.runs WHERE owner = :owner
UNION ALL
SELECT 'run_events', count(*)
FROM threadkeep.runs r JOIN threadkeep.run_events e ON e.run_id = r.run_id WHERE r.owner = :owner
UNION ALL
SELECT 'model_calls', count(*) FROM threadkeep.model_calls
WHERE journal_id IN (SELECT journal_id FROM threadkeep.runs WHERE owner = :owner)
UNION ALL
SELECT 'tool_calls', count(*) FROM threadkeep.tool_calls
WHERE journal_id IN (SELECT journal_id FROM threadkeep.runs WHERE owner = :owner)
UNION ALL
SELECT 'approvals', count(*) FROM threadkeep.approvals WHERE owner = :owner
UNION ALL
SELECT 'postings', count(*) FROM (
  SELECT s.search_no FROM threadkeep.sessions s WHERE s.owner = :owner
  UNION ALL SELECT m.search_no FROM threadkeep.memories m WHERE m.owner = :owner) n
JOIN threadkeep.postings p ON p.search_no = n.search_no
UNION ALL
SELECT 'memories', count(*) FROM threadkeep.memories WHERE owner = :owner
UNION ALL
SELECT 'memory_history', count(*) FROM threadkeep.memory_history WHERE owner = :owner
UNION ALL
SELECT 'forgotten', count(*) FROM threadkeep.forgotten WHERE owner = :owner
UNION ALL
SELECT 'owner_keys', count(*) FROM threadkeep.owner_keys WHERE owner = :owner
UNION ALL
SELECT 'request_rates', count(*) FROM threadkeep.request_rates WHERE owner = :owner;

-- name: stop_owner
-- Asks whichever processes have runs of an owner to stop them, and ends those whose process gave no sign of
-- life for `stale_after` ms. `at_work` is how many are left.
WITH seen AS MATERIALIZED (
  SELECT run_id, session_id FROM threadkeep.runs WHERE owner = :owner AND finished_at IS NULL),
freed AS (
  UPDATE threadkeep.sessions s SET run_id = NULL
  FROM seen
  WHERE s.session_id = seen.session_id AND s.run_id = seen.run_id AND s.owner = :owner
    AND s.run_alive_at <= statement_timestamp() - :stale_after::bigint * interval '1 ms'
  RETURNING seen.run_id),
ended AS (
  UPDATE threadkeep.runs r SET status = 'cancelled', finished_at = clock_timestamp()
  FROM seen
  WHERE r.run_id = seen.run_id AND r.finished_at IS NULL
    AND r.alive_at <= statement_timestamp() - :stale_after::bigint * interval '1 ms'
    AND (r.run_id IN (SELECT run_id FROM freed) OR NOT EXISTS (
      SELECT 1 FROM threadkeep.sessions s WHERE s.session_id = r.session_id AND s.run_id = r.run_id))
  RETURNING r.run_id),
asked AS (
  UPDATE threadkeep.runs r SET stop_requested = 'cancel'
  FROM seen
  WHERE r.run_id = seen.run_id AND r.finished_at IS NULL AND r.stop_requested IN ('', 'rollback')
    AND r.run_id NOT IN (SELECT run_id FROM ended))
SELECT count(*) AS at_work FROM seen WHERE run_id NOT IN (SELECT run_id FROM ended);

-- name: delete_sessions
-- Removes sessions with all that belongs to them, `limit` of them at most: those of an owner, or where that
-- is NULL those of everybody whose time is over, by their own or as nobody changed them for `older_than` ms
-- (NULL: never). Not one that a run is at work on, or waits for; nor one that is changed meanwhile, or has a memory
-- that is: of it more is there than this statement sees. The rows are what went, by table.
WITH due AS MATERIALIZED (
  SELECT s.session_id, s.owner, s.epoch, s.seq, s.run_id, s.run_alive_at, s.updated_at, s.expires_at,
         s.indexed_epoch, s.indexed_seq, s.remembered_seq FROM (
    SELECT * FROM threadkeep.sessions WHERE owner = :owner::text
    UNION ALL
    SELECT * FROM threadkeep.sessions WHERE :owner::text IS NULL AND expires_at <= now()
    UNION ALL
    SELECT * FROM threadkeep.sessions
    WHERE :owner::text IS NULL AND expires_at IS NULL
      AND updated_at <= now() - :older_than::bigint * interval '1 ms') s
  WHERE NOT EXISTS (
    SELECT 1 FROM threadkeep.runs r WHERE r.session_id = s.session_id AND r.finished_at IS NULL)
  LIMIT :limit),
told AS MATERIALIZED (
  SELECT due.session_id, m.memory_id, m.version
  FROM due JOIN threadkeep.memories m ON m.source_session = due.session_id AND m.owner = due.owner),
held AS MATERIALIZED (
  SELECT m.memory_id, m.version FROM threadkeep.memories m
  WHERE m.memory_id IN (SELECT memory_id FROM told) FOR UPDATE),
sessions AS (
  DELETE FROM threadkeep.sessions s USING due
  WHERE s.session_id = due.session_id AND s.epoch = due.epoch AND s.seq = due.seq
    AND s.run_id IS NOT DISTINCT FROM due.run_id AND s.run_alive_at = due.run_alive_at
    AND s.updated_at = due.updated_at AND s.expires_at IS NOT DISTINCT FROM due.expires_at
    AND s.indexed_epoch = due.indexed_epoch AND s.indexed_seq = due.indexed_seq
    AND s.remembered_seq = due.remembered_seq
    AND s.session_id NOT IN (
      SELECT told.session_id FROM told
      WHERE NOT EXISTS (
        SELECT FROM held WHERE held.memory_id = told.memory_id AND held.version = told.version))
  RETURNING s.session_id, s.search_no, s.owner),
memories AS (
  DELETE FROM threadkeep.memories m USING sessions
  WHERE m.source_session = sessions.session_id AND m.owner = sessions.owner
  RETURNING m.memory_id, m.search_no),
memory_history AS (
  DELETE FROM threadkeep.memory_history h
  WHERE h.memory_id IN (SELECT memory_id FROM memories)
    OR (h.source_session, h.owner) IN (SELECT session_id, owner FROM sessions)
  RETURNING 1),
postings AS (
  DELETE FROM threadkeep.postings p
  WHERE p.search_no IN (SELECT search_no FROM sessions UNION ALL SELECT search_no FROM memories) RETURNING 1),
items AS (
  DELETE FROM threadkeep.items i USING sessions WHERE i.session_id = sessions.session_id RETURNING 1),
runs AS (
  DELETE FROM threadkeep.runs r USING sessions WHERE r.session_id = sessions.session_id
  RETURNING r.run_id, r.journal_id),
run_events AS (
  DELETE FROM threadkeep.run_events e USING runs WHERE e.run_id = runs.run_id RETURNING 1),
model_calls AS (
  DELETE FROM threadkeep.model_calls WHERE journal_id IN (SELECT runs.journal_id FROM runs) RETURNING 1),
tool_calls AS (
  DELETE FROM threadkeep.tool_calls WHERE journal_id IN (SELECT runs.journal_id FROM runs) RETURNING 1),
approvals AS (
  DELETE FROM threadkeep.approvals a USING sessions WHERE a.session_id = sessions.session_id RETURNING 1)
SELECT 'sessions' AS name, count(*) AS count FROM sessions
UNION ALL SELECT 'items', count(*) FROM items
UNION ALL SELECT 'runs', count(*) FROM runs
UNION ALL SELECT 'run_events', count(*) FROM run_events
UNION ALL SELECT 'model_calls', count(*) FROM model_calls
UNION ALL SELECT 'tool_calls', count(*) FROM tool_calls
UNION ALL SELECT 'approvals', count(*) FROM approvals
UNION ALL SELECT 'postings', count(*) FROM postings
UNION ALL SELECT 'memories', count(*) FROM memories
UNION ALL SELECT 'memory_history', count(*) FROM memory_history;

-- name: delete_stray_runs
-- Removes what an owner has without a session: runs that have ended, with all that belongs to them, `limit` of
-- them at most; approvals; its rate; and what is not recalled. The rows are what went, by table.
WITH chosen AS MATERIALIZED (
  SELECT r.run_id FROM threadkeep.runs r
  WHERE r.owner = :owner AND r.finished_at IS NOT NULL
    AND NOT EXISTS (
      SELECT 1 FROM threadkeep.sessions s WHERE s.session_id = r.session_id AND s.owner = :owner)
  LIMIT :limit),
runs AS (
  DELETE FROM threadkeep.runs r USING chosen WHERE r.run_id = chosen.run_id
  RETURNING r.run_id, r.journal_id),
run_events AS (
  DELETE FROM threadkeep.run_events e USING runs WHERE e.run_id = runs.run_id RETURNING 1),
model_calls AS (
  DELETE FROM threadkeep.model_calls WHERE journal_id IN (SELECT runs.journal_id FROM runs) RETURNING 1),
tool_calls AS (
  DELETE FROM threadkeep.tool_calls WHERE journal_id IN (SELECT runs.journal_id FROM runs) RETURNING 1),
approvals AS (
  DELETE FROM threadkeep.approvals a
  WHERE a.owner = :owner AND NOT EXISTS (
    SELECT 1 FROM threadkeep.sessions s WHERE s.session_id = a.session_id AND s.owner = :owner)
  RETURNING 1),
forgotten AS (
  DELETE FROM threadkeep.forgotten WHERE owner = :owner RETURNING 1),
request_rates AS (
  DELETE FROM threadkeep.request_rates WHERE owner = :owner RETURNING 1)
SELECT 'runs' AS name, count(*) AS count FROM runs
UNION ALL SELECT 'run_events', count(*) FROM run_events
UNION ALL SELECT 'model_calls', count(*) FROM model_calls
UNION ALL SELECT 'tool_calls', count(*) FROM tool_calls
UNION ALL SELECT 'approvals', count(*) FROM approvals
UNION ALL SELECT 'request_rates', count(*) FROM request_rates
UNION ALL SELECT 'forgotten', count(*) FROM forgotten;
