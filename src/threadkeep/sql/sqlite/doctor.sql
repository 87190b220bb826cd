-- What `threadkeep sessions doctor` looks at and repairs, whoever owns it.

-- name: list_all_sessions
-- Sessions by their id, from behind a given one.
SELECT session_id, seq, metadata FROM sessions
WHERE session_id > :after ORDER BY session_id LIMIT :limit;

-- name: list_item_sessions
-- The session ids that items have, from behind a given one; whether there is such a session. Each is
-- found by a step in the index, however many items it has.
SELECT session_id, EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = ids.session_id) AS known
FROM (
  WITH RECURSIVE found (session_id) AS (
    SELECT min(session_id) FROM items WHERE session_id > :after
    UNION ALL
    SELECT (SELECT min(i.session_id) FROM items i WHERE i.session_id > found.session_id)
    FROM found WHERE found.session_id IS NOT NULL
    LIMIT :limit)
  SELECT session_id FROM found) ids
WHERE session_id IS NOT NULL
ORDER BY session_id;

-- name: read_whole_sessions
-- All that is stored under some session ids, as of one moment. No `epoch`: items, and no session.
-- `busy`: a run that is alive has it. `waits`: the run of the item has ended with a call to be decided on.
SELECT w.value AS session_id, s.owner, s.epoch, s.seq AS head, s.metadata,
       s.run_id IS NOT NULL AND s.run_alive_at > (SELECT now FROM clock) - :stale_after AS busy,
       i.seq, i.data, coalesce(r.status = 'incomplete', 0) AS waits
FROM json_each(:session_ids) w
LEFT JOIN sessions s ON s.session_id = w.value
LEFT JOIN items i ON i.session_id = w.value
LEFT JOIN runs r ON r.run_id = i.run_id
WHERE s.session_id IS NOT NULL OR i.session_id IS NOT NULL
ORDER BY w.key, i.seq;

-- name: list_silent_runs
-- Runs that have not ended and gave no sign of life for `stale_after` ms, by their id, from behind a given
-- one; of one session, or of all when it is ''.
SELECT run_id, session_id, status, (SELECT now FROM clock) - alive_at AS silent_for
FROM runs
WHERE status IN ('queued', 'in_progress') AND alive_at <= (SELECT now FROM clock) - :stale_after
  AND run_id > :after AND (:session_id = '' OR session_id = :session_id)
ORDER BY run_id
LIMIT :limit;

-- name: rebuild_session
-- Keeps the whole session as a fork under `fork_id`, then makes its items those given: each is the seq of
-- one that stays, or a new one as JSON. Only if nothing changed since (epoch, seq) was read and no run that
-- is alive has the session; one that is not has lost it.
INSERT INTO sessions
  (session_id, owner, title, metadata, epoch, seq, parent_session_id, created_at, updated_at, expires_at,
   temporary, set_aside, remembered_seq)
SELECT :fork_id, owner, title, :fork_metadata, :fork_epoch, seq, session_id, created_at, updated_at,
       expires_at, temporary, 1, seq
FROM sessions
WHERE session_id = :session_id AND owner = :owner AND epoch = :epoch AND seq = :seq
  AND (run_id IS NULL OR run_alive_at <= (SELECT now FROM clock) - :stale_after);
UPDATE items SET session_id = :fork_id
WHERE session_id = :session_id AND EXISTS (
    SELECT 1 FROM sessions f WHERE f.session_id = :fork_id AND f.epoch = :fork_epoch AND f.owner = :owner);
INSERT INTO items (session_id, seq, data, run_id, created_at)
SELECT :session_id, j.key + 1, coalesce(o.data, j.value), o.run_id, coalesce(o.created_at, c.now)
FROM json_each(:items) j
JOIN clock c
LEFT JOIN items o ON o.session_id = :fork_id
  AND o.seq = CASE WHEN j.value GLOB '[0-9]*' THEN CAST(j.value AS INTEGER) END
WHERE EXISTS (
    SELECT 1 FROM sessions f WHERE f.session_id = :fork_id AND f.epoch = :fork_epoch AND f.owner = :owner);
UPDATE sessions SET seq = json_array_length(:items), epoch = :new_epoch, run_id = NULL
WHERE session_id = :session_id AND EXISTS (
    SELECT 1 FROM sessions f WHERE f.session_id = :fork_id AND f.epoch = :fork_epoch AND f.owner = :owner)
RETURNING epoch, seq;

-- name: adopt_items
-- Makes a session for items that have none. No row: it is there.
INSERT OR IGNORE INTO sessions (session_id, owner, epoch, seq, created_at, updated_at)
SELECT session_id, :owner, :new_epoch, max(seq), min(created_at), max(created_at)
FROM items WHERE session_id = :session_id GROUP BY session_id
RETURNING epoch, seq;
