-- What goes for good: sessions whose time is over, and all of an owner. Every table is covered; a test says so.
-- The tables `chosen` and `gone` are of the connection, and empty but for the length of a statement.

-- name: count_owner
-- How much there is of an owner, by table.
SELECT 'sessions' AS name, count(*) AS count FROM sessions WHERE owner = :owner
UNION ALL
SELECT 'items', count(*)
FROM sessions s JOIN items i ON i.session_id = s.session_id WHERE s.owner = :owner
UNION ALL
SELECT 'runs', count(*) FROM runs WHERE owner = :owner
UNION ALL
SELECT 'run_events', count(*)
FROM runs r JOIN run_events e ON e.run_id = r.run_id WHERE r.owner = :owner
UNION ALL
SELECT 'model_calls', count(*) FROM model_calls
WHERE journal_id IN (SELECT journal_id FROM runs WHERE owner = :owner)
UNION ALL
SELECT 'tool_calls', count(*) FROM tool_calls
WHERE journal_id IN (SELECT journal_id FROM runs WHERE owner = :owner)
UNION ALL
SELECT 'approvals', count(*) FROM approvals WHERE owner = :owner
UNION ALL
SELECT 'postings', count(*) FROM (
  SELECT s.search_no FROM sessions s WHERE s.owner = :owner
  UNION ALL SELECT m.search_no FROM memories m WHERE m.owner = :owner) n JOIN postings p ON p.search_no = n.search_no
UNION ALL
SELECT 'memories', count(*) FROM memories WHERE owner = :owner
UNION ALL
SELECT 'memory_history', count(*) FROM memory_history WHERE owner = :owner
UNION ALL
SELECT 'forgotten', count(*) FROM forgotten WHERE owner = :owner
UNION ALL
SELECT 'owner_keys', count(*) FROM owner_keys WHERE owner = :owner
UNION ALL
SELECT 'request_rates', count(*) FROM request_rates WHERE owner = :owner;

-- name: stop_owner
-- Asks whichever processes have runs of an owner to stop them, and ends those whose process gave no sign of
-- life for `stale_after` ms. `at_work` is how many are left.
UPDATE sessions SET run_id = NULL
WHERE owner = :owner AND run_id IN (
  SELECT r.run_id FROM runs r
  WHERE r.owner = :owner AND r.finished_at IS NULL
    AND r.alive_at <= (SELECT now FROM clock) - :stale_after);
UPDATE runs SET status = 'cancelled', finished_at = (SELECT now FROM clock)
WHERE owner = :owner AND finished_at IS NULL AND alive_at <= (SELECT now FROM clock) - :stale_after;
UPDATE runs SET stop_requested = 'cancel'
WHERE owner = :owner AND finished_at IS NULL AND stop_requested IN ('', 'rollback');
SELECT count(*) AS at_work FROM runs WHERE owner = :owner AND finished_at IS NULL;

-- name: delete_sessions
-- Removes sessions with all that belongs to them, `limit` of them at most: those of an owner, or where that
-- is NULL those of everybody whose time is over, by their own or as nobody changed them for `older_than` ms
-- (NULL: never). Not one that a run is at work on, or waits for. The rows are what went, by table.
CREATE TEMP TABLE IF NOT EXISTS chosen (id TEXT NOT NULL PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS gone (name TEXT NOT NULL, count INTEGER NOT NULL) STRICT;
DELETE FROM gone;
INSERT INTO chosen
SELECT due.session_id FROM (
  SELECT session_id FROM sessions WHERE owner = :owner
  UNION ALL
  SELECT session_id FROM sessions WHERE :owner IS NULL AND expires_at <= (SELECT now FROM clock)
  UNION ALL
  SELECT session_id FROM sessions
  WHERE :owner IS NULL AND expires_at IS NULL AND updated_at <= (SELECT now FROM clock) - :older_than) due
WHERE NOT EXISTS (
  SELECT 1 FROM runs r WHERE r.session_id = due.session_id AND r.finished_at IS NULL)
LIMIT :limit;
DELETE FROM run_events WHERE run_id IN
  (SELECT r.run_id FROM chosen c JOIN runs r ON r.session_id = c.id);
INSERT INTO gone VALUES ('run_events', changes());
DELETE FROM model_calls WHERE journal_id IN
  (SELECT r.journal_id FROM chosen c JOIN runs r ON r.session_id = c.id);
INSERT INTO gone VALUES ('model_calls', changes());
DELETE FROM tool_calls WHERE journal_id IN
  (SELECT r.journal_id FROM chosen c JOIN runs r ON r.session_id = c.id);
INSERT INTO gone VALUES ('tool_calls', changes());
DELETE FROM approvals WHERE session_id IN (SELECT id FROM chosen);
INSERT INTO gone VALUES ('approvals', changes());
DELETE FROM runs WHERE session_id IN (SELECT id FROM chosen);
INSERT INTO gone VALUES ('runs', changes());
DELETE FROM postings WHERE search_no IN (
  SELECT s.search_no FROM chosen c JOIN sessions s ON s.session_id = c.id
  UNION ALL SELECT m.search_no FROM chosen c JOIN sessions s ON s.session_id = c.id
  JOIN memories m ON m.source_session = s.session_id AND m.owner = s.owner);
INSERT INTO gone VALUES ('postings', changes());
DELETE FROM memory_history WHERE (memory_id, version) IN (
  SELECT h.memory_id, h.version FROM chosen c JOIN sessions s ON s.session_id = c.id
  JOIN memory_history h ON h.source_session = s.session_id AND h.owner = s.owner
  UNION ALL SELECT h.memory_id, h.version FROM chosen c JOIN sessions s ON s.session_id = c.id
  JOIN memories m ON m.source_session = s.session_id AND m.owner = s.owner
  JOIN memory_history h ON h.memory_id = m.memory_id);
INSERT INTO gone VALUES ('memory_history', changes());
DELETE FROM memories WHERE memory_id IN (
  SELECT m.memory_id FROM chosen c JOIN sessions s ON s.session_id = c.id
  JOIN memories m ON m.source_session = s.session_id AND m.owner = s.owner);
INSERT INTO gone VALUES ('memories', changes());
DELETE FROM items WHERE session_id IN (SELECT id FROM chosen);
INSERT INTO gone VALUES ('items', changes());
DELETE FROM sessions WHERE session_id IN (SELECT id FROM chosen);
INSERT INTO gone VALUES ('sessions', changes());
DELETE FROM chosen;
SELECT name, count FROM gone;

-- name: delete_stray_runs
-- Removes what an owner has without a session: runs that have ended, with all that belongs to them, `limit` of
-- them at most; approvals; its rate; and what is not recalled. The rows are what went, by table.
CREATE TEMP TABLE IF NOT EXISTS chosen (id TEXT NOT NULL PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS gone (name TEXT NOT NULL, count INTEGER NOT NULL) STRICT;
DELETE FROM gone;
INSERT INTO chosen
SELECT r.run_id FROM runs r
WHERE r.owner = :owner AND r.finished_at IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = r.session_id AND s.owner = :owner)
LIMIT :limit;
DELETE FROM run_events WHERE run_id IN (SELECT id FROM chosen);
INSERT INTO gone VALUES ('run_events', changes());
DELETE FROM model_calls WHERE journal_id IN
  (SELECT r.journal_id FROM chosen c JOIN runs r ON r.run_id = c.id);
INSERT INTO gone VALUES ('model_calls', changes());
DELETE FROM tool_calls WHERE journal_id IN
  (SELECT r.journal_id FROM chosen c JOIN runs r ON r.run_id = c.id);
INSERT INTO gone VALUES ('tool_calls', changes());
DELETE FROM approvals
WHERE owner = :owner
  AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = approvals.session_id AND s.owner = :owner);
INSERT INTO gone VALUES ('approvals', changes());
DELETE FROM forgotten WHERE owner = :owner;
INSERT INTO gone VALUES ('forgotten', changes());
DELETE FROM request_rates WHERE owner = :owner;
INSERT INTO gone VALUES ('request_rates', changes());
DELETE FROM runs WHERE run_id IN (SELECT id FROM chosen);
INSERT INTO gone VALUES ('runs', changes());
DELETE FROM chosen;
SELECT name, count FROM gone;
