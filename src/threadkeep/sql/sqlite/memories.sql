-- Memories: facts and preferences of an owner. Their words are in the search index under the number of their
-- version, in a scope of their own; each change leaves the index as it must be.

-- name: save_memory
-- Stores a memory where its path is free. `saved` = 0: it is not, and the row is what is there. One that has ended
-- before now, and of which nothing says since when it held, began then.
INSERT INTO memories
  (memory_id, owner, path_key, path, description, contents, keywords, pinned, version, search_no,
   source_session, source_seq, source_at, created_at, updated_at, valid_from, valid_to)
SELECT :memory_id, :owner, :path_key, :path, :description, :contents, :keywords, :pinned, 1, :search_no,
       :source_session, :source_seq, :source_at, now, now,
       coalesce(:valid_from, min(now, coalesce(:valid_to, now))), :valid_to
FROM clock WHERE true
ON CONFLICT (owner, path_key) DO NOTHING;
INSERT INTO postings (scope, term, search_no, block, hits)
WITH words AS MATERIALIZED (SELECT key, value FROM json_each(:terms)),
told AS MATERIALIZED (SELECT key, value FROM json_each(:hits))
SELECT :scope, words.value, m.search_no, 0, told.value
FROM memories m JOIN words JOIN told ON told.key = words.key
WHERE m.memory_id = :memory_id AND m.owner = :owner;
SELECT memory_id, path, description, contents, keywords, pinned, version, search_no, source_session, source_seq,
       created_at, updated_at, valid_from, valid_to, superseded_by, memory_id = :memory_id AS saved
FROM memories WHERE owner = :owner AND path_key = :path_key;

-- name: update_memory
-- Changes a memory, if it is in that version still. `supersedes` = 1: what it was is kept, and held until the new
-- one does. No row: it is in another version, or not there.
INSERT INTO memory_history
  (memory_id, version, owner, description, contents, source_session, source_seq, source_at, valid_from, valid_to,
   superseded_by)
SELECT memory_id, version, owner, description, contents, source_session, source_seq, source_at, valid_from,
       max(valid_from, coalesce(:valid_from, now)), version + 1
FROM memories, clock
WHERE :supersedes = 1 AND memory_id = :memory_id AND owner = :owner AND version = :version;
DELETE FROM postings WHERE search_no IN
  (SELECT search_no FROM memories WHERE memory_id = :memory_id AND owner = :owner AND version = :version);
UPDATE memories
SET description = :description, contents = :contents, keywords = :keywords, pinned = :pinned,
    version = version + 1, search_no = :search_no, updated_at = (SELECT now FROM clock),
    source_session = CASE WHEN :supersedes = 1 THEN :source_session ELSE source_session END,
    source_seq = CASE WHEN :supersedes = 1 THEN :source_seq ELSE source_seq END,
    source_at = CASE WHEN :supersedes = 1 THEN :source_at ELSE source_at END,
    valid_from = coalesce(:valid_from, CASE WHEN :supersedes = 1
      THEN (SELECT min(now, coalesce(:valid_to, now)) FROM clock) ELSE valid_from END),
    valid_to = :valid_to, superseded_by = :superseded_by
WHERE memory_id = :memory_id AND owner = :owner AND version = :version;
INSERT INTO postings (scope, term, search_no, block, hits)
WITH words AS MATERIALIZED (SELECT key, value FROM json_each(:terms)),
told AS MATERIALIZED (SELECT key, value FROM json_each(:hits))
SELECT :scope, words.value, m.search_no, 0, told.value
FROM memories m JOIN words JOIN told ON told.key = words.key
WHERE m.memory_id = :memory_id AND m.owner = :owner AND m.search_no = :search_no;
SELECT memory_id, path, description, contents, keywords, pinned, version, search_no, source_session, source_seq,
       created_at, updated_at, valid_from, valid_to, superseded_by
FROM memories WHERE memory_id = :memory_id AND owner = :owner AND search_no = :search_no;

-- name: delete_memory
-- Removes a memory, all that it was, and its words in the index. No row: it is not there.
DELETE FROM postings WHERE search_no IN
  (SELECT search_no FROM memories WHERE memory_id = :memory_id AND owner = :owner);
DELETE FROM memory_history WHERE memory_id IN
  (SELECT memory_id FROM memories WHERE memory_id = :memory_id AND owner = :owner);
DELETE FROM memories WHERE memory_id = :memory_id AND owner = :owner
RETURNING 1 AS gone;

-- name: get_memory
-- One memory, by its id or its path, with the item that it comes from if that is its owner's, and not another one
-- that has its place now.
SELECT m.memory_id, m.path, m.description, m.contents, m.keywords, m.pinned, m.version, m.search_no,
       m.source_session, m.source_seq, m.created_at, m.updated_at, m.valid_from, m.valid_to, m.superseded_by,
       i.data
FROM memories m
LEFT JOIN sessions s ON s.session_id = m.source_session AND s.owner = :owner
LEFT JOIN items i ON i.session_id = s.session_id AND i.seq = m.source_seq AND i.created_at = m.source_at
WHERE m.owner = :owner AND m.memory_id = coalesce(
  (SELECT p.memory_id FROM memories p WHERE p.owner = :owner AND p.path_key = :path_key), :memory_id);

-- name: list_memories
-- An owner's memories, last changed first, from behind the one of an id (all when it is '').
SELECT memory_id, path, description, contents, keywords, pinned, version, search_no, source_session, source_seq,
       created_at, updated_at, valid_from, valid_to, superseded_by
FROM memories
WHERE owner = :owner
  AND (:after = '' OR (updated_at, memory_id)
       < (SELECT a.updated_at, a.memory_id FROM memories a WHERE a.memory_id = :after AND a.owner = :owner))
ORDER BY owner, updated_at DESC, memory_id DESC
LIMIT :limit;

-- name: list_memory_ids
-- An owner's memories by the keys of their paths, which never change, from behind a given one.
SELECT memory_id, path_key, updated_at FROM memories
WHERE owner = :owner AND path_key > :after
ORDER BY path_key LIMIT :limit;

-- name: list_versions
-- What a memory was before, the latest first.
SELECT version, description, contents, source_session, source_seq, valid_from, valid_to, superseded_by
FROM memory_history WHERE memory_id = :memory_id AND owner = :owner
ORDER BY version DESC LIMIT :limit;

-- name: read_memories
-- Memories by their numbers in the index, in that order, those that hold now; `was` is the description of the
-- version before, which held from `was_from`.
SELECT m.memory_id, m.path, m.description, m.contents, m.keywords, m.pinned, m.version, m.search_no,
       m.source_session, m.source_seq, m.created_at, m.updated_at, m.valid_from, m.valid_to, m.superseded_by,
       h.description AS was, h.contents AS was_contents, h.valid_from AS was_from
FROM json_each(:search_nos) n, clock
JOIN memories m ON m.search_no = CAST(n.value AS INTEGER) AND m.owner = :owner
LEFT JOIN memory_history h ON h.memory_id = m.memory_id AND h.version = (
  SELECT max(version) FROM memory_history WHERE memory_id = m.memory_id)
WHERE m.valid_from <= now AND (m.valid_to IS NULL OR m.valid_to > now)
ORDER BY n.key;

-- name: read_latest_memories
-- Memories that hold now: the `limit` that are pinned and were changed last, then as many others. As
-- `read_memories` gives them.
SELECT m.memory_id, m.path, m.description, m.contents, m.keywords, m.pinned, m.version, m.search_no,
       m.source_session, m.source_seq, m.created_at, m.updated_at, m.valid_from, m.valid_to, m.superseded_by,
       h.description AS was, h.contents AS was_contents, h.valid_from AS was_from
FROM (
  SELECT * FROM (
    SELECT p.* FROM memories p
    WHERE p.owner = :owner AND p.pinned = 1
      AND p.valid_from <= (SELECT now FROM clock) AND coalesce(p.valid_to > (SELECT now FROM clock), true)
    ORDER BY p.updated_at DESC LIMIT :limit)
  UNION ALL
  SELECT * FROM (
    SELECT o.* FROM memories o
    WHERE o.owner = :owner AND o.pinned = 0
      AND o.valid_from <= (SELECT now FROM clock) AND coalesce(o.valid_to > (SELECT now FROM clock), true)
    ORDER BY o.owner, o.updated_at DESC, o.memory_id DESC LIMIT :limit)) m
LEFT JOIN memory_history h ON h.memory_id = m.memory_id AND h.version = (
  SELECT max(version) FROM memory_history WHERE memory_id = m.memory_id)
ORDER BY m.pinned DESC, m.updated_at DESC, m.memory_id DESC;

-- name: delete_memories
-- Removes memories of an owner, with all that they were, `limit` of them at most. The rows are what went, by table.
CREATE TEMP TABLE IF NOT EXISTS chosen (id TEXT NOT NULL PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS gone (name TEXT NOT NULL, count INTEGER NOT NULL) STRICT;
DELETE FROM gone;
INSERT INTO chosen SELECT memory_id FROM memories WHERE owner = :owner LIMIT :limit;
DELETE FROM postings WHERE search_no IN
  (SELECT m.search_no FROM chosen c JOIN memories m ON m.memory_id = c.id);
INSERT INTO gone VALUES ('postings', changes());
DELETE FROM memory_history WHERE memory_id IN (SELECT id FROM chosen);
INSERT INTO gone VALUES ('memory_history', changes());
DELETE FROM memories WHERE memory_id IN (SELECT id FROM chosen);
INSERT INTO gone VALUES ('memories', changes());
DELETE FROM chosen;
SELECT name, count FROM gone;

-- name: claim_session_to_remember
-- A session, changed in the last `recent` ms but not in the last `quiet` ms, in which nobody has looked for what is
-- worth to be remembered behind `remembered_seq`; for `lease` ms it is the caller's.
UPDATE sessions SET remembered_until = (SELECT now FROM clock) + :lease
WHERE session_id = (
  SELECT s.session_id FROM sessions s
  WHERE s.expires_at IS NULL AND s.updated_at > (SELECT now FROM clock) - :recent
    AND s.updated_at <= (SELECT now FROM clock) - :quiet
    AND s.remembered_seq < s.seq AND s.temporary = 0 AND s.run_id IS NULL
    AND s.remembered_until <= (SELECT now FROM clock)
  ORDER BY s.updated_at LIMIT 1)
RETURNING session_id, owner, epoch, seq, remembered_seq;

-- name: end_remembering
-- Says up to where somebody has looked. No row: the session was cut back or deleted meanwhile, or that was said.
UPDATE sessions SET remembered_seq = min(:seq, seq), remembered_until = 0
WHERE session_id = :session_id AND owner = :owner AND epoch = :epoch AND remembered_seq < :seq
RETURNING remembered_seq;

-- name: forget_sources
-- Sees to it that the messages from which a memory comes, and what it was before, are not recalled any more.
INSERT OR IGNORE INTO forgotten (owner, seq, at)
SELECT owner, source_seq, source_at FROM memories
WHERE memory_id = :memory_id AND owner = :owner AND source_seq IS NOT NULL AND source_at IS NOT NULL
UNION
SELECT owner, source_seq, source_at FROM memory_history
WHERE memory_id = :memory_id AND owner = :owner AND source_seq IS NOT NULL AND source_at IS NOT NULL;
