-- Sessions and their items. A named statement is run in one transaction; its result is that of its
-- last query. Each says by its rows what it did: no row of a session means that there is none,
-- `owned` = 0 that it is somebody else's and nothing was changed.

-- name: append_items
-- Stores items behind the newest one; makes the session if it is new. `full`: it stood behind seq
-- `room_until`, so nothing was written.
INSERT INTO sessions (session_id, owner, epoch, created_at, updated_at)
SELECT :session_id, :owner, :new_epoch, now, now FROM clock WHERE true
ON CONFLICT (session_id) DO NOTHING;
UPDATE sessions
SET seq = seq + json_array_length(:items),
    title = coalesce(title, :title),
    updated_at = (SELECT now FROM clock)
WHERE session_id = :session_id AND owner = :owner AND seq <= :room_until;
INSERT INTO items (session_id, seq, data, run_id, created_at)
SELECT s.session_id, s.seq - json_array_length(:items) + j.key + 1, j.value, NULL, s.updated_at
FROM sessions s, json_each(:items) j
WHERE changes() > 0 AND s.session_id = :session_id;
SELECT epoch, seq, changes() = 0 AS full, owner = :owner AS owned
FROM sessions WHERE session_id = :session_id;

-- name: read_items
-- What came after (epoch, seq); everything when the epoch moved, or when the item at seq is another
-- one than was read (its time differs: the database was set back). `base` says after which seq.
SELECT s.epoch, s.seq AS head, s.owner = :owner AS owned, b.base, i.seq, i.data, i.created_at
FROM sessions s
JOIN (SELECT CASE WHEN EXISTS (
        SELECT 1 FROM sessions t JOIN items k ON k.session_id = t.session_id AND k.seq = :seq
        WHERE t.session_id = :session_id AND t.epoch = :epoch AND k.created_at = :tag)
      THEN :seq ELSE 0 END AS base) b
LEFT JOIN items i ON i.session_id = s.session_id AND i.seq > b.base AND s.owner = :owner
WHERE s.session_id = :session_id
ORDER BY i.seq;

-- name: read_latest_items
-- The newest items, newest first.
SELECT s.epoch, s.seq AS head, s.owner = :owner AS owned, i.seq, i.data, i.created_at, i.run_id
FROM sessions s
LEFT JOIN items i ON i.session_id = s.session_id AND i.seq <= :before AND s.owner = :owner
WHERE s.session_id = :session_id
ORDER BY i.seq DESC
LIMIT :limit;

-- name: read_first_items
-- The items after a given one, oldest first.
SELECT s.epoch, s.seq AS head, s.owner = :owner AS owned, i.seq, i.data, i.created_at, i.run_id
FROM sessions s
LEFT JOIN items i ON i.session_id = s.session_id AND i.seq > :after AND s.owner = :owner
WHERE s.session_id = :session_id
ORDER BY i.seq
LIMIT :limit;

-- name: cut_items
-- Removes every item after seq `keep`, if nothing changed since (epoch, seq) was read.
DELETE FROM items
WHERE session_id = :session_id AND seq > :keep
  AND EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id AND s.owner = :owner
              AND s.epoch = :epoch AND s.seq = :seq);
UPDATE sessions
SET seq = min(seq, :keep),
    epoch = :new_epoch,
    remembered_seq = min(remembered_seq, :keep),
    title = CASE WHEN :keep > 0 THEN title END,  -- it was made from what is gone
    approved_tools = CASE WHEN :keep > 0 THEN approved_tools ELSE '[]' END,
    updated_at = (SELECT now FROM clock)
WHERE session_id = :session_id AND owner = :owner AND epoch = :epoch AND seq = :seq
RETURNING epoch, seq;

-- name: remove_item
-- Removes one item and closes the gap, if nothing changed since (epoch, seq) was read.
DELETE FROM items
WHERE session_id = :session_id AND seq = :item_seq
  AND EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id AND s.owner = :owner
              AND s.epoch = :epoch AND s.seq = :seq);
UPDATE items SET seq = seq - 1
WHERE session_id = :session_id AND seq > :item_seq
  AND EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id AND s.owner = :owner
              AND s.epoch = :epoch AND s.seq = :seq);
UPDATE sessions
SET seq = seq - 1,
    epoch = :new_epoch,
    remembered_seq = min(remembered_seq, :item_seq - 1),
    title = CASE WHEN seq > 1 THEN title END,
    updated_at = (SELECT now FROM clock)
WHERE session_id = :session_id AND owner = :owner AND epoch = :epoch AND seq = :seq
RETURNING epoch, seq;

-- name: branch_session
-- Keeps the whole session as a fork under `fork_id`, then removes every item after seq `keep` here,
-- if nothing changed since (epoch, seq) was read and no run has the session.
INSERT INTO sessions
  (session_id, owner, title, metadata, epoch, seq, parent_session_id, created_at, updated_at, expires_at,
   temporary, set_aside, remembered_seq)
SELECT :fork_id, owner, title, metadata, :fork_epoch, seq, session_id, created_at, updated_at, expires_at,
       temporary, 1, seq
FROM sessions
WHERE session_id = :session_id AND owner = :owner AND epoch = :epoch AND seq = :seq
  AND run_id IS NULL;
INSERT INTO items (session_id, seq, data, run_id, created_at)
SELECT f.session_id, i.seq, i.data, i.run_id, i.created_at
FROM sessions f JOIN items i ON i.session_id = f.parent_session_id
WHERE f.session_id = :fork_id AND f.epoch = :fork_epoch AND f.owner = :owner;
DELETE FROM items
WHERE session_id = :session_id AND seq > :keep
  AND EXISTS (
    SELECT 1 FROM sessions f WHERE f.session_id = :fork_id AND f.epoch = :fork_epoch AND f.owner = :owner);
UPDATE sessions
SET seq = min(seq, :keep), epoch = :new_epoch, remembered_seq = min(remembered_seq, :keep),
    updated_at = (SELECT now FROM clock)
WHERE session_id = :session_id AND EXISTS (
    SELECT 1 FROM sessions f WHERE f.session_id = :fork_id AND f.epoch = :fork_epoch AND f.owner = :owner)
RETURNING epoch, seq;

-- name: get_session
-- One session of an owner, without its items.
SELECT session_id, title, metadata, epoch, seq, run_id, open_run_id, open_hash, approved_tools, search_no,
       temporary, parent_session_id, created_at, updated_at, expires_at
FROM sessions WHERE session_id = :session_id AND owner = :owner;

-- name: change_session
-- Changes what is given of a session, and not its place in the list: the title when it is `titled` (NULL:
-- untitled), when it goes if that is `timed` (in ms since 1970; NULL: when its owner's others do), the metadata
-- and the tools when they are not NULL. `tools`: only these, of those that need no approval in it, need none.
-- No row: no such session.
UPDATE sessions
SET title = CASE WHEN :titled = 1 THEN :title ELSE title END,
    indexed_epoch = CASE WHEN :titled = 1 THEN -1 - abs(random() / 2) ELSE indexed_epoch END,
    metadata = coalesce(:metadata, metadata),
    expires_at = CASE WHEN :timed = 1 THEN :expires_at ELSE expires_at END,
    approved_tools = CASE WHEN :tools IS NULL THEN approved_tools ELSE (
      SELECT json_group_array(k.value) FROM json_each(sessions.approved_tools) k
      WHERE k.value IN (SELECT value FROM json_each(:tools))) END
WHERE session_id = :session_id AND owner = :owner
RETURNING session_id, title, metadata, epoch, seq, run_id, approved_tools, temporary, parent_session_id,
          created_at, updated_at, expires_at;

-- name: list_sessions
-- An owner's sessions, last changed first, from behind the one named (all when it is '').
SELECT session_id, title, metadata, epoch, seq, run_id, approved_tools, temporary, parent_session_id,
       created_at, updated_at, expires_at
FROM sessions
WHERE owner = :owner
  AND (:after = '' OR (updated_at, session_id)
       < (SELECT a.updated_at, a.session_id FROM sessions a
          WHERE a.session_id = :after AND a.owner = :owner))
ORDER BY owner, updated_at DESC, session_id DESC
LIMIT :limit;

-- name: delete_session
-- Removes a session with all that belongs to it. No row: there is no such session.
DELETE FROM run_events WHERE run_id IN
  (SELECT r.run_id FROM runs r JOIN sessions s ON s.session_id = r.session_id
   WHERE s.session_id = :session_id AND s.owner = :owner);
DELETE FROM model_calls WHERE journal_id IN
  (SELECT r.journal_id FROM runs r JOIN sessions s ON s.session_id = r.session_id
   WHERE s.session_id = :session_id AND s.owner = :owner);
DELETE FROM tool_calls WHERE journal_id IN
  (SELECT r.journal_id FROM runs r JOIN sessions s ON s.session_id = r.session_id
   WHERE s.session_id = :session_id AND s.owner = :owner);
DELETE FROM approvals WHERE session_id IN
  (SELECT session_id FROM sessions WHERE session_id = :session_id AND owner = :owner);
DELETE FROM runs WHERE session_id IN
  (SELECT session_id FROM sessions WHERE session_id = :session_id AND owner = :owner);
DELETE FROM postings WHERE search_no IN
  (SELECT search_no FROM sessions WHERE session_id = :session_id AND owner = :owner
   UNION ALL SELECT search_no FROM memories WHERE source_session = :session_id AND owner = :owner);
DELETE FROM memory_history WHERE owner = :owner AND (source_session = :session_id OR memory_id IN
  (SELECT memory_id FROM memories WHERE source_session = :session_id AND owner = :owner));
DELETE FROM memories WHERE source_session = :session_id AND owner = :owner;
DELETE FROM items WHERE session_id IN
  (SELECT session_id FROM sessions WHERE session_id = :session_id AND owner = :owner);
DELETE FROM sessions WHERE session_id = :session_id AND owner = :owner
RETURNING 1 AS gone;
