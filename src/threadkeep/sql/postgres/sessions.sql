-- Sessions and their items: the statements of SQLite, each as one statement of Postgres, so that each
-- is one round trip. `threadkeep.` stands for the schema's name. Times leave as milliseconds.
--
-- READ COMMITTED has a trap: a row that was locked by somebody else is read anew after the wait, but
-- every other table is still seen as it was when the statement began. So whatever decides is a column
-- of the locked sessions row; and reads beside a write may miss what was committed during the wait,
-- which the caller sees by the numbers.
--
-- A call whose connection died is made again, and then `:retried`: it may have been done already. The
-- driver gives each call a random `:call_id`, the same for every attempt. A change is recognised by its
-- new epoch, in a row that is locked to see what the wait may have brought (OFFSET 0 keeps the planner
-- from looking at the epoch before it has the lock).

-- name: append_items
-- Stores items behind the newest one; makes the session if it is new. `full`: it stood behind seq
-- `room_until`, so nothing was written.
WITH done AS (
  SELECT FROM threadkeep.items
  WHERE :retried::boolean AND session_id = :session_id AND call_id = :call_id::bigint),
head AS (
  INSERT INTO threadkeep.sessions AS s
    (session_id, owner, title, epoch, seq, created_at, updated_at)
  SELECT :session_id, :owner, :title, :new_epoch, cardinality(:items::text[]),
         clock_timestamp(), clock_timestamp()
  WHERE NOT EXISTS (SELECT FROM done)
  ON CONFLICT (session_id) DO UPDATE
  SET seq = s.seq + cardinality(:items::text[]),
      title = coalesce(s.title, excluded.title),
      updated_at = clock_timestamp()
  WHERE s.owner = excluded.owner AND s.seq <= :room_until::bigint
  RETURNING s.epoch, s.seq, s.updated_at),
stored AS (
  INSERT INTO threadkeep.items (session_id, seq, data, run_id, created_at, call_id)
  SELECT :session_id, head.seq - cardinality(:items::text[]) + new.place, new.data, NULL,
         head.updated_at, CASE WHEN new.place = 1 THEN :call_id::bigint END
  FROM head, unnest(:items::text[]) WITH ORDINALITY AS new (data, place))
SELECT head.epoch, head.seq, head.epoch IS NULL AND NOT EXISTS (SELECT FROM done) AS full,
       head.epoch IS NOT NULL OR EXISTS (SELECT FROM done) OR EXISTS (
         SELECT 1 FROM threadkeep.sessions o WHERE o.session_id = :session_id AND o.owner = :owner) AS owned
FROM (SELECT) AS always LEFT JOIN head ON true;

-- name: read_items
-- What came after (epoch, seq); everything when the epoch moved, or when the item at seq is another
-- one than was read (its time differs: the database was set back). `base` says after which seq.
SELECT s.epoch, s.seq AS head, s.owner = :owner AS owned, b.base, i.seq, i.data,
       (extract(epoch FROM i.created_at) * 1000)::bigint AS created_at
FROM threadkeep.sessions s
CROSS JOIN LATERAL (
  SELECT CASE WHEN s.epoch = :epoch AND EXISTS (
    SELECT 1 FROM threadkeep.items k
    WHERE k.session_id = :session_id AND k.seq = :seq  -- not s.session_id: it would be hashed
      AND (extract(epoch FROM k.created_at) * 1000)::bigint = :tag)
  THEN :seq::bigint ELSE 0 END AS base) b
LEFT JOIN threadkeep.items i
  ON i.session_id = s.session_id AND i.seq > b.base AND i.seq <= s.seq AND s.owner = :owner
WHERE s.session_id = :session_id
ORDER BY i.seq;

-- name: read_latest_items
-- The newest items, newest first.
SELECT s.epoch, s.seq AS head, s.owner = :owner AS owned, i.seq, i.data,
       (extract(epoch FROM i.created_at) * 1000)::bigint AS created_at, i.run_id
FROM threadkeep.sessions s
LEFT JOIN LATERAL (
  SELECT k.seq, k.data, k.created_at, k.run_id FROM threadkeep.items k
  WHERE k.session_id = s.session_id AND k.seq <= :before AND s.owner = :owner
  ORDER BY k.seq DESC LIMIT :limit) i ON true
WHERE s.session_id = :session_id
ORDER BY i.seq DESC;

-- name: read_first_items
-- The items after a given one, oldest first.
SELECT s.epoch, s.seq AS head, s.owner = :owner AS owned, i.seq, i.data,
       (extract(epoch FROM i.created_at) * 1000)::bigint AS created_at, i.run_id
FROM threadkeep.sessions s
LEFT JOIN LATERAL (
  SELECT k.seq, k.data, k.created_at, k.run_id FROM threadkeep.items k
  WHERE k.session_id = s.session_id AND k.seq > :after AND s.owner = :owner
  ORDER BY k.seq LIMIT :limit) i ON true
WHERE s.session_id = :session_id
ORDER BY i.seq;

-- name: cut_items
-- Removes every item after seq `keep`, if nothing changed since (epoch, seq) was read.
WITH head AS (
  UPDATE threadkeep.sessions
  SET seq = least(seq, :keep),
      epoch = :new_epoch,
      remembered_seq = least(remembered_seq, :keep),
      title = CASE WHEN :keep::bigint > 0 THEN title END,  -- it was made from what is gone
      approved_tools = CASE WHEN :keep::bigint > 0 THEN approved_tools ELSE '[]' END,
      updated_at = clock_timestamp()
  WHERE session_id = :session_id AND owner = :owner AND epoch = :epoch AND seq = :seq
  RETURNING epoch, seq),
cut AS (
  DELETE FROM threadkeep.items
  WHERE session_id = :session_id AND seq > :keep::bigint AND EXISTS (SELECT FROM head))
SELECT epoch, seq FROM head
UNION ALL
SELECT epoch, seq FROM (
  SELECT epoch, seq FROM threadkeep.sessions
  WHERE :retried::boolean AND session_id = :session_id OFFSET 0 FOR UPDATE) done
WHERE epoch = :new_epoch AND NOT EXISTS (SELECT FROM head);

-- name: remove_item
-- Removes one item and closes the gap, if nothing changed since (epoch, seq) was read. What lies
-- behind it is moved by being stored anew: one statement may change a row only once.
WITH head AS (
  UPDATE threadkeep.sessions
  SET seq = seq - 1,
      epoch = :new_epoch,
      remembered_seq = least(remembered_seq, :item_seq::bigint - 1),
      title = CASE WHEN seq > 1 THEN title END,
      updated_at = clock_timestamp()
  WHERE session_id = :session_id AND owner = :owner AND epoch = :epoch AND seq = :seq
  RETURNING epoch, seq),
moved AS (
  UPDATE threadkeep.items t
  SET data = n.data, run_id = n.run_id, created_at = n.created_at
  FROM threadkeep.items n
  WHERE t.session_id = :session_id AND t.seq >= :item_seq::bigint
    AND n.session_id = t.session_id AND n.seq = t.seq + 1 AND EXISTS (SELECT FROM head)),
removed AS (
  DELETE FROM threadkeep.items
  WHERE session_id = :session_id AND seq = :seq::bigint AND EXISTS (SELECT FROM head))
SELECT epoch, seq FROM head
UNION ALL
SELECT epoch, seq FROM (
  SELECT epoch, seq FROM threadkeep.sessions
  WHERE :retried::boolean AND session_id = :session_id OFFSET 0 FOR UPDATE) done
WHERE epoch = :new_epoch AND NOT EXISTS (SELECT FROM head);

-- name: branch_session
-- Keeps the whole session as a fork under `fork_id`, then removes every item after seq `keep` here,
-- if nothing changed since (epoch, seq) was read and no run has the session.
WITH head AS (
  UPDATE threadkeep.sessions
  SET seq = least(seq, :keep), epoch = :new_epoch, remembered_seq = least(remembered_seq, :keep),
      updated_at = clock_timestamp()
  WHERE session_id = :session_id AND owner = :owner AND epoch = :epoch AND seq = :seq
    AND run_id IS NULL
  RETURNING epoch, seq),
fork AS (
  INSERT INTO threadkeep.sessions
    (session_id, owner, title, metadata, epoch, seq, parent_session_id, created_at, updated_at,
     expires_at, temporary, set_aside, remembered_seq)
  SELECT :fork_id, s.owner, s.title, s.metadata, :fork_epoch, s.seq, s.session_id, s.created_at,
         s.updated_at, s.expires_at, s.temporary, 1, s.seq
  FROM threadkeep.sessions s
  WHERE s.session_id = :session_id AND EXISTS (SELECT FROM head)),
copied AS (
  INSERT INTO threadkeep.items (session_id, seq, data, run_id, created_at)
  SELECT :fork_id, i.seq, i.data, i.run_id, i.created_at
  FROM threadkeep.items i
  WHERE i.session_id = :session_id AND EXISTS (SELECT FROM head)),
cut AS (
  DELETE FROM threadkeep.items
  WHERE session_id = :session_id AND seq > :keep::bigint AND EXISTS (SELECT FROM head))
SELECT epoch, seq FROM head
UNION ALL
SELECT epoch, seq FROM (
  SELECT epoch, seq FROM threadkeep.sessions
  WHERE :retried::boolean AND session_id = :session_id OFFSET 0 FOR UPDATE) done
WHERE epoch = :new_epoch AND NOT EXISTS (SELECT FROM head);

-- name: get_session
-- One session of an owner, without its items.
SELECT session_id, title, metadata, epoch, seq, run_id, open_run_id, open_hash, approved_tools, search_no,
       temporary, parent_session_id,
       (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at,
       (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at
FROM threadkeep.sessions WHERE session_id = :session_id AND owner = :owner;

-- name: change_session
-- Changes what is given of a session, and not its place in the list: the title when it is `titled` (NULL:
-- untitled), when it goes if that is `timed` (in ms since 1970; NULL: when its owner's others do), the metadata
-- and the tools when they are not NULL. `tools`: only these, of those that need no approval in it, need none.
-- No row: no such session.
UPDATE threadkeep.sessions s
SET title = CASE WHEN :titled::bigint = 1 THEN :title::text ELSE title END,
    indexed_epoch = CASE WHEN :titled::bigint = 1 THEN -1 - (random() * 1e15)::bigint ELSE indexed_epoch END,
    metadata = coalesce(:metadata::text, metadata),
    expires_at = CASE WHEN :timed::bigint = 1
                      THEN 'epoch'::timestamptz + :expires_at::bigint * interval '1 ms'
                      ELSE expires_at END,
    approved_tools = CASE WHEN :tools::text[] IS NULL THEN approved_tools ELSE (
      SELECT coalesce(jsonb_agg(known.tool), '[]')::text
      FROM jsonb_array_elements_text(s.approved_tools::jsonb) AS known (tool)
      WHERE known.tool = ANY (:tools::text[])) END
WHERE session_id = :session_id AND owner = :owner
RETURNING session_id, title, metadata, epoch, seq, run_id, approved_tools, temporary, parent_session_id,
          (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
          (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at,
          (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at;

-- name: list_sessions
-- An owner's sessions, last changed first, from behind the one named (all when it is '').
SELECT session_id, title, metadata, epoch, seq, run_id, approved_tools, temporary, parent_session_id,
       (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at,
       (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at
FROM threadkeep.sessions
WHERE owner = :owner
  AND (:after::text = '' OR (updated_at, session_id)
       < (SELECT a.updated_at, a.session_id FROM threadkeep.sessions a
          WHERE a.session_id = :after::text AND a.owner = :owner))
ORDER BY owner, threadkeep.sessions.updated_at DESC, session_id DESC
LIMIT :limit;

-- name: delete_session
-- Removes a session with all that belongs to it, as it was when the statement began. `gone` is false
-- when it, or a memory that comes from it, was changed meanwhile: what was added is not seen, so nothing was
-- removed. No row: there is no such session.
WITH seen AS MATERIALIZED (
  SELECT epoch, seq, run_id, run_alive_at, indexed_epoch, indexed_seq, remembered_seq FROM threadkeep.sessions
  WHERE session_id = :session_id AND owner = :owner),
told AS MATERIALIZED (
  SELECT memory_id, version FROM threadkeep.memories WHERE source_session = :session_id AND owner = :owner),
held AS MATERIALIZED (
  SELECT memory_id, version FROM threadkeep.memories WHERE source_session = :session_id AND owner = :owner
  FOR UPDATE),
gone AS (
  DELETE FROM threadkeep.sessions s USING seen
  WHERE s.session_id = :session_id AND s.owner = :owner
    AND s.epoch = seen.epoch AND s.seq = seen.seq
    AND s.run_id IS NOT DISTINCT FROM seen.run_id AND s.run_alive_at = seen.run_alive_at
    AND s.indexed_epoch = seen.indexed_epoch AND s.indexed_seq = seen.indexed_seq
    AND s.remembered_seq = seen.remembered_seq
    AND NOT EXISTS (SELECT * FROM told EXCEPT SELECT * FROM held)
  RETURNING s.session_id, s.search_no),
postings AS (
  DELETE FROM threadkeep.postings USING gone WHERE postings.search_no = gone.search_no),
memories AS (
  DELETE FROM threadkeep.memories m USING gone WHERE m.source_session = gone.session_id AND m.owner = :owner
  RETURNING m.memory_id, m.search_no),
memory_words AS (
  DELETE FROM threadkeep.postings USING memories WHERE postings.search_no = memories.search_no),
memory_history AS (
  DELETE FROM threadkeep.memory_history h USING gone
  WHERE h.owner = :owner
    AND (h.source_session = gone.session_id OR h.memory_id IN (SELECT memory_id FROM memories))),
items AS (
  DELETE FROM threadkeep.items USING gone WHERE items.session_id = gone.session_id),
runs AS (
  DELETE FROM threadkeep.runs USING gone WHERE runs.session_id = gone.session_id
  RETURNING runs.run_id, runs.journal_id),
events AS (
  DELETE FROM threadkeep.run_events USING runs WHERE run_events.run_id = runs.run_id),
answers AS (
  DELETE FROM threadkeep.model_calls WHERE journal_id IN (SELECT runs.journal_id FROM runs)),
calls AS (
  DELETE FROM threadkeep.tool_calls WHERE journal_id IN (SELECT runs.journal_id FROM runs)),
approvals AS (
  DELETE FROM threadkeep.approvals USING gone WHERE approvals.session_id = gone.session_id),
still AS (
  SELECT FROM threadkeep.sessions
  WHERE session_id = :session_id AND owner = :owner AND NOT EXISTS (SELECT FROM gone)
  OFFSET 0 FOR UPDATE)
SELECT true AS gone FROM gone
UNION ALL
SELECT NOT EXISTS (SELECT FROM still)
WHERE NOT EXISTS (SELECT FROM gone) AND (:retried::boolean OR EXISTS (SELECT FROM seen));
