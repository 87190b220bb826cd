-- Memories: facts and preferences of an owner. Their words are in the search index under the number of their
-- version, in a scope of their own; each change leaves the index as it must be.
-- A call whose connection died is made again, and then `:retried`; see sessions.sql.

-- name: save_memory
-- Stores a memory where its path is free. `saved` is false: it is not, and the row is what is there. One that has ended
-- before now, and of which nothing says since when it held, began then.
WITH saved AS (
  INSERT INTO threadkeep.memories AS m
    (memory_id, owner, path_key, path, description, contents, keywords, pinned, version, search_no,
     source_session, source_seq, source_at, created_at, updated_at, valid_from, valid_to)
  VALUES (:memory_id, :owner, :path_key, :path, :description, :contents, :keywords, :pinned, 1, :search_no,
          :source_session, :source_seq, :source_at, clock_timestamp(), clock_timestamp(),
          coalesce('epoch'::timestamptz + :valid_from::bigint * interval '1 ms',
                   least(clock_timestamp(), 'epoch'::timestamptz + :valid_to::bigint * interval '1 ms')),
          'epoch'::timestamptz + :valid_to::bigint * interval '1 ms')
  ON CONFLICT (owner, path_key) DO UPDATE SET path_key = m.path_key
  RETURNING m.*),
indexed AS (
  INSERT INTO threadkeep.postings (scope, term, search_no, block, hits)
  SELECT :scope, word.term, saved.search_no, 0, word.hits
  FROM saved, unnest(:terms::text[], :hits::text[]) AS word (term, hits)
  WHERE saved.memory_id = :memory_id AND saved.search_no = :search_no::bigint  -- in its first version still
  ON CONFLICT DO NOTHING)
SELECT memory_id, path, description, contents, keywords, pinned, version, search_no, source_session, source_seq,
       (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at,
       (extract(epoch FROM valid_from) * 1000)::bigint AS valid_from,
       (extract(epoch FROM valid_to) * 1000)::bigint AS valid_to, superseded_by, memory_id = :memory_id AS saved
FROM saved;

-- name: update_memory
-- Changes a memory, if it is in that version still. `supersedes` = 1: what it was is kept, and held until the new
-- one does. No row: it is in another version, or not there.
WITH seen AS (
  SELECT * FROM threadkeep.memories
  WHERE memory_id = :memory_id AND owner = :owner AND version = :version::bigint FOR UPDATE),
kept AS (
  INSERT INTO threadkeep.memory_history
    (memory_id, version, owner, description, contents, source_session, source_seq, source_at, valid_from, valid_to,
     superseded_by)
  SELECT memory_id, version, owner, description, contents, source_session, source_seq, source_at, valid_from,
         greatest(valid_from, coalesce('epoch'::timestamptz + :valid_from::bigint * interval '1 ms',
                                       clock_timestamp())), version + 1
  FROM seen WHERE :supersedes::bigint = 1),
unindexed AS (
  DELETE FROM threadkeep.postings p USING seen WHERE p.search_no = seen.search_no),
changed AS (
  UPDATE threadkeep.memories m
  SET description = :description, contents = :contents, keywords = :keywords, pinned = :pinned,
      version = m.version + 1, search_no = :search_no::bigint, updated_at = clock_timestamp(),
      source_session = CASE WHEN :supersedes::bigint = 1 THEN :source_session::text ELSE m.source_session END,
      source_seq = CASE WHEN :supersedes::bigint = 1 THEN :source_seq::bigint ELSE m.source_seq END,
      source_at = CASE WHEN :supersedes::bigint = 1 THEN :source_at::bigint ELSE m.source_at END,
      valid_from = coalesce('epoch'::timestamptz + :valid_from::bigint * interval '1 ms',
        CASE WHEN :supersedes::bigint = 1
             THEN least(clock_timestamp(), 'epoch'::timestamptz + :valid_to::bigint * interval '1 ms')
             ELSE m.valid_from END),
      valid_to = 'epoch'::timestamptz + :valid_to::bigint * interval '1 ms', superseded_by = :superseded_by::text
  FROM seen WHERE m.memory_id = seen.memory_id
  RETURNING m.*),
indexed AS (
  INSERT INTO threadkeep.postings (scope, term, search_no, block, hits)
  SELECT :scope, word.term, changed.search_no, 0, word.hits
  FROM changed, unnest(:terms::text[], :hits::text[]) AS word (term, hits)),
done AS (
  SELECT * FROM changed
  UNION ALL
  SELECT * FROM (
    SELECT * FROM threadkeep.memories
    WHERE :retried::boolean AND memory_id = :memory_id AND owner = :owner OFFSET 0 FOR UPDATE) again
  WHERE again.search_no = :search_no::bigint AND NOT EXISTS (SELECT FROM changed))
SELECT memory_id, path, description, contents, keywords, pinned, version, search_no, source_session, source_seq,
       (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at,
       (extract(epoch FROM valid_from) * 1000)::bigint AS valid_from,
       (extract(epoch FROM valid_to) * 1000)::bigint AS valid_to, superseded_by
FROM done;

-- name: delete_memory
-- Removes a memory, all that it was, and its words in the index. `gone` is false when it was changed meanwhile:
-- what was added is not seen, so nothing was removed. No row: it is not there.
WITH seen AS MATERIALIZED (
  SELECT version FROM threadkeep.memories WHERE memory_id = :memory_id AND owner = :owner),
gone AS (
  DELETE FROM threadkeep.memories m USING seen
  WHERE m.memory_id = :memory_id AND m.owner = :owner AND m.version = seen.version
  RETURNING m.memory_id, m.search_no),
history AS (
  DELETE FROM threadkeep.memory_history h USING gone WHERE h.memory_id = gone.memory_id),
unindexed AS (
  DELETE FROM threadkeep.postings p USING gone WHERE p.search_no = gone.search_no),
still AS (
  SELECT FROM threadkeep.memories
  WHERE memory_id = :memory_id AND owner = :owner AND NOT EXISTS (SELECT FROM gone) OFFSET 0 FOR UPDATE)
SELECT true AS gone FROM gone
UNION ALL
SELECT NOT EXISTS (SELECT FROM still)
WHERE NOT EXISTS (SELECT FROM gone) AND (:retried::boolean OR EXISTS (SELECT FROM seen));

-- name: get_memory
-- One memory, by its id or its path, with the item that it comes from if that is its owner's, and not another one
-- that has its place now.
SELECT m.memory_id, m.path, m.description, m.contents, m.keywords, m.pinned, m.version, m.search_no,
       m.source_session, m.source_seq,
       (extract(epoch FROM m.created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM m.updated_at) * 1000)::bigint AS updated_at,
       (extract(epoch FROM m.valid_from) * 1000)::bigint AS valid_from,
       (extract(epoch FROM m.valid_to) * 1000)::bigint AS valid_to, m.superseded_by, i.data
FROM threadkeep.memories m
LEFT JOIN threadkeep.sessions s ON s.session_id = m.source_session AND s.owner = :owner
LEFT JOIN threadkeep.items i ON i.session_id = s.session_id AND i.seq = m.source_seq
  AND (extract(epoch FROM i.created_at) * 1000)::bigint = m.source_at
WHERE m.owner = :owner AND m.memory_id = coalesce(
  (SELECT p.memory_id FROM threadkeep.memories p WHERE p.owner = :owner AND p.path_key = :path_key), :memory_id::text);

-- name: list_memories
-- An owner's memories, last changed first, from behind the one of an id (all when it is '').
SELECT memory_id, path, description, contents, keywords, pinned, version, search_no, source_session, source_seq,
       (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at,
       (extract(epoch FROM valid_from) * 1000)::bigint AS valid_from,
       (extract(epoch FROM valid_to) * 1000)::bigint AS valid_to, superseded_by
FROM threadkeep.memories
WHERE owner = :owner
  AND (:after::text = '' OR (updated_at, memory_id)
       < (SELECT a.updated_at, a.memory_id FROM threadkeep.memories a
          WHERE a.memory_id = :after::text AND a.owner = :owner))
ORDER BY owner, threadkeep.memories.updated_at DESC, memory_id DESC
LIMIT :limit;

-- name: list_memory_ids
-- An owner's memories by the keys of their paths, which never change, from behind a given one.
SELECT memory_id, path_key, (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at FROM threadkeep.memories
WHERE owner = :owner AND path_key > :after
ORDER BY path_key LIMIT :limit;

-- name: list_versions
-- What a memory was before, the latest first.
SELECT version, description, contents, source_session, source_seq,
       (extract(epoch FROM valid_from) * 1000)::bigint AS valid_from,
       (extract(epoch FROM valid_to) * 1000)::bigint AS valid_to, superseded_by
FROM threadkeep.memory_history WHERE memory_id = :memory_id AND owner = :owner
ORDER BY version DESC LIMIT :limit;

-- name: read_memories
-- Memories by their numbers in the index, in that order, those that hold now; `was` is the description of the
-- version before, which held from `was_from`.
SELECT m.memory_id, m.path, m.description, m.contents, m.keywords, m.pinned, m.version, m.search_no,
       m.source_session, m.source_seq,
       (extract(epoch FROM m.created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM m.updated_at) * 1000)::bigint AS updated_at,
       (extract(epoch FROM m.valid_from) * 1000)::bigint AS valid_from,
       (extract(epoch FROM m.valid_to) * 1000)::bigint AS valid_to, m.superseded_by,
       h.description AS was, h.contents AS was_contents,
       (extract(epoch FROM h.valid_from) * 1000)::bigint AS was_from
FROM unnest(:search_nos::text[]) WITH ORDINALITY AS n (search_no, place)
CROSS JOIN LATERAL (
  SELECT * FROM threadkeep.memories k WHERE k.search_no = n.search_no::bigint AND k.owner = :owner OFFSET 0) m
LEFT JOIN LATERAL (
  SELECT v.description, v.contents, v.valid_from FROM threadkeep.memory_history v
  WHERE v.memory_id = m.memory_id ORDER BY v.version DESC LIMIT 1) h ON true
WHERE m.valid_from <= clock_timestamp() AND (m.valid_to IS NULL OR m.valid_to > clock_timestamp())
ORDER BY n.place;

-- name: read_latest_memories
-- Memories that hold now: the `limit` that are pinned and were changed last, then as many others. As
-- `read_memories` gives them.
SELECT m.memory_id, m.path, m.description, m.contents, m.keywords, m.pinned, m.version, m.search_no,
       m.source_session, m.source_seq,
       (extract(epoch FROM m.created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM m.updated_at) * 1000)::bigint AS updated_at,
       (extract(epoch FROM m.valid_from) * 1000)::bigint AS valid_from,
       (extract(epoch FROM m.valid_to) * 1000)::bigint AS valid_to, m.superseded_by,
       h.description AS was, h.contents AS was_contents,
       (extract(epoch FROM h.valid_from) * 1000)::bigint AS was_from
FROM (
  (SELECT * FROM threadkeep.memories
   WHERE owner = :owner AND pinned = 1
     AND valid_from <= clock_timestamp() AND (valid_to IS NULL OR valid_to > clock_timestamp())
   ORDER BY updated_at DESC LIMIT :limit)
  UNION ALL
  (SELECT * FROM threadkeep.memories
   WHERE owner = :owner AND pinned = 0
     AND valid_from <= clock_timestamp() AND (valid_to IS NULL OR valid_to > clock_timestamp())
   ORDER BY owner, updated_at DESC, memory_id DESC LIMIT :limit)) m
LEFT JOIN LATERAL (
  SELECT v.description, v.contents, v.valid_from FROM threadkeep.memory_history v
  WHERE v.memory_id = m.memory_id ORDER BY v.version DESC LIMIT 1) h ON true
ORDER BY m.pinned DESC, m.updated_at DESC, m.memory_id DESC;

-- name: delete_memories
-- Removes memories of an owner, with all that they were, `limit` of them at most; not one that is changed meanwhile.
-- The rows are what went, by table.
WITH seen AS MATERIALIZED (
  SELECT memory_id, version FROM threadkeep.memories WHERE owner = :owner LIMIT :limit),
memories AS (
  DELETE FROM threadkeep.memories m USING seen WHERE m.memory_id = seen.memory_id AND m.version = seen.version
  RETURNING m.memory_id, m.search_no),
memory_history AS (
  DELETE FROM threadkeep.memory_history h USING memories WHERE h.memory_id = memories.memory_id RETURNING 1),
postings AS (
  DELETE FROM threadkeep.postings p USING memories WHERE p.search_no = memories.search_no RETURNING 1)
SELECT 'memories' AS name, count(*) AS count FROM memories
UNION ALL SELECT 'memory_history', count(*) FROM memory_history
UNION ALL SELECT 'postings', count(*) FROM postings;

-- name: claim_session_to_remember
-- A session, changed in the last `recent` ms but not in the last `quiet` ms, in which nobody has looked for what is
-- worth to be remembered behind `remembered_seq`; for `lease` ms it is the caller's.
UPDATE threadkeep.sessions
SET remembered_until = (extract(epoch FROM clock_timestamp()) * 1000)::bigint + :lease::bigint
WHERE session_id = (
  SELECT s.session_id FROM threadkeep.sessions s
  WHERE s.expires_at IS NULL AND s.updated_at > now() - :recent::bigint * interval '1 ms'
    AND s.updated_at <= now() - :quiet::bigint * interval '1 ms'
    AND s.remembered_seq < s.seq AND s.temporary = 0 AND s.run_id IS NULL
    AND s.remembered_until <= (extract(epoch FROM now()) * 1000)::bigint
  ORDER BY s.updated_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING session_id, owner, epoch, seq, remembered_seq;

-- name: end_remembering
-- Says up to where somebody has looked. No row: the session was cut back or deleted meanwhile, or that was said.
UPDATE threadkeep.sessions SET remembered_seq = least(:seq, seq), remembered_until = 0
WHERE session_id = :session_id AND owner = :owner AND epoch = :epoch AND remembered_seq < :seq::bigint
RETURNING remembered_seq;

-- name: forget_sources
-- Sees to it that the messages from which a memory comes, and what it was before, are not recalled any more.
INSERT INTO threadkeep.forgotten (owner, seq, at)
SELECT owner, source_seq, source_at FROM threadkeep.memories
WHERE memory_id = :memory_id AND owner = :owner AND source_seq IS NOT NULL AND source_at IS NOT NULL
UNION
SELECT owner, source_seq, source_at FROM threadkeep.memory_history
WHERE memory_id = :memory_id AND owner = :owner AND source_seq IS NOT NULL AND source_at IS NOT NULL
ON CONFLICT DO NOTHING;
