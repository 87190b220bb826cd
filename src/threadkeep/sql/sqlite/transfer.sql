-- Sessions that are copied, come from elsewhere, or get another owner.

-- name: fork_session
-- Copies the items 1 to `keep` of a session into a new one, `fork_id`. They are of no run there: what becomes
-- of the runs that made them is nothing to the copy. No row: there is no such session, or not that far on,
-- or not in that epoch.
INSERT INTO sessions
  (session_id, owner, title, metadata, epoch, seq, parent_session_id, created_at, updated_at, expires_at,
   temporary, remembered_seq)
SELECT :fork_id, owner, title, metadata, :new_epoch, :keep, session_id, clock.now, clock.now, expires_at,
       temporary, :keep
FROM sessions, clock
WHERE session_id = :session_id AND owner = :owner AND epoch = :epoch AND seq >= :keep;
INSERT INTO items (session_id, seq, data, run_id, created_at)
SELECT f.session_id, i.seq, i.data, NULL, i.created_at
FROM sessions f JOIN items i ON i.session_id = f.parent_session_id AND i.seq <= :keep
WHERE f.session_id = :fork_id AND f.owner = :owner AND f.epoch = :new_epoch;
SELECT session_id, title, metadata, epoch, seq, run_id, approved_tools, temporary, parent_session_id,
       created_at, updated_at, expires_at
FROM sessions WHERE session_id = :fork_id AND owner = :owner AND epoch = :new_epoch;

-- name: stage_items
-- Stores items that are to be imported, under an id that no session has: nobody sees them. They are numbered
-- from `first_seq` on.
INSERT INTO items (session_id, seq, data, run_id, created_at)
WITH item AS MATERIALIZED (SELECT key, value FROM json_each(:items)),
run AS MATERIALIZED (SELECT key, value FROM json_each(:run_ids)),
time AS MATERIALIZED (SELECT key, value FROM json_each(:times))
SELECT :staged_id, :first_seq + item.key, item.value, nullif(run.value, ''), CAST(time.value AS INTEGER)
FROM item JOIN run ON run.key = item.key JOIN time ON time.key = item.key
WHERE NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :staged_id);

-- name: unstage_items
-- Removes items that were not imported after all.
DELETE FROM items
WHERE session_id = :staged_id
  AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :staged_id);

-- name: import_session
-- Makes a session of the items that lie under `staged_id`, `count` of them. No row: its id is taken, by
-- whomever, and nothing was changed.
INSERT INTO sessions
  (session_id, owner, title, metadata, epoch, seq, temporary, parent_session_id, created_at, updated_at)
SELECT :session_id, :owner, :title, :metadata, :new_epoch, :count, :temporary, :parent_session_id, :created_at,
       :updated_at
WHERE :count = (SELECT count(*) FROM items WHERE session_id = :staged_id)
  AND NOT EXISTS (SELECT 1 FROM items WHERE session_id = :session_id)
  AND NOT EXISTS (SELECT 1 FROM sessions WHERE session_id = :staged_id)
ON CONFLICT (session_id) DO NOTHING;
UPDATE items SET session_id = :session_id
WHERE session_id = :staged_id
  AND EXISTS (
    SELECT 1 FROM sessions s
    WHERE s.session_id = :session_id AND s.owner = :owner AND s.epoch = :new_epoch);
SELECT session_id, title, metadata, epoch, seq, run_id, approved_tools, temporary, parent_session_id,
       created_at, updated_at, expires_at
FROM sessions WHERE session_id = :session_id AND owner = :owner AND epoch = :new_epoch;

-- name: assign_sessions
-- Gives sessions of an owner to another one, with their runs and approvals; not those that a run has, or
-- waits for. A run loses its Idempotency-Key, which the new owner may have used; the keys of runs that go on
-- with others stay (runs.continuation_key). Its rows are the sessions that were given.
UPDATE approvals SET owner = :new_owner
WHERE session_id IN (
  SELECT s.session_id FROM sessions s
  WHERE s.session_id IN (SELECT value FROM json_each(:session_ids)) AND s.owner = :owner
    AND s.run_id IS NULL AND NOT EXISTS (
      SELECT 1 FROM runs q WHERE q.session_id = s.session_id AND q.finished_at IS NULL));
UPDATE runs
SET owner = :new_owner,
    idempotency_key = CASE WHEN substr(idempotency_key, 1, 1) = char(1) THEN idempotency_key END
WHERE session_id IN (
  SELECT s.session_id FROM sessions s
  WHERE s.session_id IN (SELECT value FROM json_each(:session_ids)) AND s.owner = :owner
    AND s.run_id IS NULL AND NOT EXISTS (
      SELECT 1 FROM runs q WHERE q.session_id = s.session_id AND q.finished_at IS NULL));
UPDATE sessions SET owner = :new_owner, indexed_epoch = -1 - abs(random() / 2)
WHERE session_id IN (SELECT value FROM json_each(:session_ids)) AND owner = :owner
  AND run_id IS NULL AND NOT EXISTS (
    SELECT 1 FROM runs q WHERE q.session_id = sessions.session_id AND q.finished_at IS NULL)
RETURNING session_id, seq,
          (SELECT count(*) FROM runs r WHERE r.session_id = sessions.session_id) AS runs,
          (SELECT count(*) FROM approvals a WHERE a.session_id = sessions.session_id) AS approvals;
