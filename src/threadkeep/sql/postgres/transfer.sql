-- Sessions that are copied, come from elsewhere, or get another owner; see sessions.sql.
--
-- A statement that makes a session and is made again while its first attempt is still under way waits for
-- that in ON CONFLICT, and finds its own epoch there.

-- name: fork_session
-- Copies the items 1 to `keep` of a session into a new one, `fork_id`. They are of no run there: what becomes
-- of the runs that made them is nothing to the copy. No row: there is no such session, or not that far on,
-- or not in that epoch.
WITH head AS (
  INSERT INTO threadkeep.sessions AS f
    (session_id, owner, title, metadata, epoch, seq, parent_session_id, created_at, updated_at,
     expires_at, temporary, remembered_seq)
  SELECT :fork_id, s.owner, s.title, s.metadata, :new_epoch, :keep, s.session_id, clock_timestamp(),
         clock_timestamp(), s.expires_at, s.temporary, :keep
  FROM threadkeep.sessions s
  WHERE s.session_id = :session_id AND s.owner = :owner AND s.epoch = :epoch AND s.seq >= :keep
  ON CONFLICT (session_id) DO UPDATE SET epoch = f.epoch
  WHERE :retried::boolean AND f.epoch = excluded.epoch
  RETURNING f.*),
copied AS (
  INSERT INTO threadkeep.items (session_id, seq, data, run_id, created_at)
  SELECT :fork_id, i.seq, i.data, NULL, i.created_at
  FROM threadkeep.items i
  WHERE i.session_id = :session_id AND i.seq <= :keep AND EXISTS (SELECT FROM head)
  ON CONFLICT DO NOTHING),
found AS (
  SELECT * FROM head
  UNION ALL
  SELECT * FROM threadkeep.sessions
  WHERE :retried::boolean AND session_id = :fork_id AND owner = :owner AND epoch = :new_epoch
    AND NOT EXISTS (SELECT FROM head))
SELECT session_id, title, metadata, epoch, seq, run_id, approved_tools, temporary, parent_session_id,
       (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at,
       (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at
FROM found;

-- name: stage_items
-- Stores items that are to be imported, under an id that no session has: nobody sees them. They are numbered
-- from `first_seq` on.
INSERT INTO threadkeep.items (session_id, seq, data, run_id, created_at)
SELECT :staged_id, :first_seq::bigint + new.place - 1, new.data, nullif(new.run_id, ''),
       'epoch'::timestamptz + new.time::bigint * interval '1 ms'
FROM unnest(:items::text[], :run_ids::text[], :times::text[])
  WITH ORDINALITY AS new (data, run_id, time, place)
WHERE NOT EXISTS (SELECT FROM threadkeep.sessions s WHERE s.session_id = :staged_id)
ON CONFLICT DO NOTHING;

-- name: unstage_items
-- Removes items that were not imported after all.
DELETE FROM threadkeep.items
WHERE session_id = :staged_id
  AND NOT EXISTS (SELECT FROM threadkeep.sessions s WHERE s.session_id = :staged_id);

-- name: import_session
-- Makes a session of the items that lie under `staged_id`, `count` of them. No row: its id is taken, by
-- whomever, and nothing was changed.
WITH head AS (
  INSERT INTO threadkeep.sessions AS s
    (session_id, owner, title, metadata, epoch, seq, temporary, parent_session_id, created_at, updated_at)
  SELECT :session_id, :owner, :title, :metadata, :new_epoch, :count, :temporary, :parent_session_id,
         'epoch'::timestamptz + :created_at::bigint * interval '1 ms',
         'epoch'::timestamptz + :updated_at::bigint * interval '1 ms'
  WHERE :count = (SELECT count(*) FROM threadkeep.items WHERE session_id = :staged_id)
    AND NOT EXISTS (SELECT FROM threadkeep.items WHERE session_id = :session_id)
    AND NOT EXISTS (SELECT FROM threadkeep.sessions WHERE session_id = :staged_id)
  ON CONFLICT (session_id) DO UPDATE SET epoch = s.epoch
  WHERE :retried::boolean AND s.epoch = excluded.epoch
  RETURNING s.*),
moved AS (
  UPDATE threadkeep.items SET session_id = :session_id
  WHERE session_id = :staged_id AND EXISTS (SELECT FROM head)),
found AS (
  SELECT * FROM head
  UNION ALL
  SELECT * FROM threadkeep.sessions
  WHERE :retried::boolean AND session_id = :session_id AND owner = :owner AND epoch = :new_epoch
    AND NOT EXISTS (SELECT FROM head))
SELECT session_id, title, metadata, epoch, seq, run_id, approved_tools, temporary, parent_session_id,
       (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at,
       (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at
FROM found;

-- name: assign_sessions
-- Gives sessions of an owner to another one, with their runs and approvals; not those that a run has, or
-- waits for. A run loses its Idempotency-Key, which the new owner may have used; the keys of runs that go on
-- with others stay (runs.continuation_key). Its rows are the sessions that were given.
WITH given AS (
  UPDATE threadkeep.sessions s SET owner = :new_owner, indexed_epoch = -1 - (random() * 1e15)::bigint
  WHERE s.session_id = ANY (:session_ids::text[]) AND s.owner = :owner
    AND s.run_id IS NULL AND NOT EXISTS (
      SELECT FROM threadkeep.runs q WHERE q.session_id = s.session_id AND q.finished_at IS NULL)
  RETURNING s.session_id, s.seq),
runs AS (
  UPDATE threadkeep.runs r
  SET owner = :new_owner,
      idempotency_key = CASE WHEN left(r.idempotency_key, 1) = chr(1) THEN r.idempotency_key END
  FROM given WHERE r.session_id = given.session_id),
approvals AS (
  UPDATE threadkeep.approvals a SET owner = :new_owner
  FROM given WHERE a.session_id = given.session_id),
found AS (
  SELECT session_id, seq FROM given
  UNION ALL
  SELECT session_id, seq FROM (
    SELECT session_id, seq, owner FROM threadkeep.sessions
    WHERE :retried::boolean AND session_id = ANY (:session_ids::text[]) OFFSET 0 FOR UPDATE) done
  WHERE done.owner = :new_owner AND NOT EXISTS (
    SELECT FROM given WHERE given.session_id = done.session_id))
SELECT session_id, seq,
       (SELECT count(*) FROM threadkeep.runs r WHERE r.session_id = found.session_id) AS runs,
       (SELECT count(*) FROM threadkeep.approvals a WHERE a.session_id = found.session_id) AS approvals
FROM found;
