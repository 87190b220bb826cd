-- The search index: which sessions are not in it as they are, what is added, what is found.

-- name: list_to_index
-- Sessions of an owner that the index does not hold as they are, or of everybody where that is NULL; but for one.
SELECT * FROM (
  SELECT session_id, owner, epoch, seq, search_no, indexed_epoch, indexed_seq, set_aside,
         created_at
  FROM sessions
  WHERE owner = :owner AND (indexed_epoch <> epoch OR indexed_seq <> seq) AND temporary = 0
    AND session_id <> :without
  ORDER BY owner, session_id LIMIT :limit)
UNION ALL
SELECT * FROM (
  SELECT session_id, owner, epoch, seq, search_no, indexed_epoch, indexed_seq, set_aside,
         created_at
  FROM sessions
  WHERE :owner IS NULL AND (indexed_epoch <> epoch OR indexed_seq <> seq) AND temporary = 0
    AND session_id <> :without
  ORDER BY owner, session_id LIMIT :limit);

-- name: reset_index
-- Takes a session out of the index, if nobody else indexed it since it was read; `reset_epoch` is negative.
-- No row: somebody did.
DELETE FROM postings WHERE search_no = (
  SELECT s.search_no FROM sessions s
  WHERE s.session_id = :session_id AND s.owner = :owner
    AND s.indexed_epoch = :indexed_epoch AND s.indexed_seq = :indexed_seq);
UPDATE sessions SET indexed_epoch = :reset_epoch, indexed_seq = 0
WHERE session_id = :session_id AND owner = :owner
  AND indexed_epoch = :indexed_epoch AND indexed_seq = :indexed_seq
RETURNING indexed_epoch;

-- name: index_session
-- Adds to the index what a session holds behind `indexed_seq`, up to `seq`, if that was not done meanwhile and
-- the session is in that epoch still. No row: it is not, or it was.
INSERT INTO postings (scope, term, search_no, block, hits)
WITH term AS MATERIALIZED (SELECT key, value FROM json_each(:terms)),
block AS MATERIALIZED (SELECT key, value FROM json_each(:blocks)),
hits AS MATERIALIZED (SELECT key, value FROM json_each(:hits))
SELECT :scope, term.value, coalesce(s.search_no, :search_no), CAST(block.value AS INTEGER), hits.value
FROM sessions s, term
JOIN block ON block.key = term.key
JOIN hits ON hits.key = term.key
WHERE s.session_id = :session_id AND s.owner = :owner AND s.epoch = :epoch AND s.seq >= :seq
  AND s.indexed_epoch = :indexed_epoch AND s.indexed_seq = :indexed_seq
ON CONFLICT (scope, term, search_no, block) DO UPDATE SET hits = postings.hits || ',' || excluded.hits;
UPDATE sessions
SET search_no = coalesce(search_no, :search_no), indexed_epoch = :epoch, indexed_seq = :seq
WHERE session_id = :session_id AND owner = :owner AND epoch = :epoch AND seq >= :seq
  AND indexed_epoch = :indexed_epoch AND indexed_seq = :indexed_seq
RETURNING indexed_seq;

-- name: list_terms
-- The terms of a scope from `first` to before `beyond`. Each is found by a step in the index, however often
-- it is said.
SELECT term FROM (
  WITH RECURSIVE found (term) AS (
    SELECT min(term) FROM postings WHERE scope = :scope AND term >= :first AND term < :beyond
    UNION ALL
    SELECT (SELECT min(p.term) FROM postings p
            WHERE p.scope = :scope AND p.term > found.term AND p.term < :beyond)
    FROM found WHERE found.term IS NOT NULL
    LIMIT :limit)
  SELECT term FROM found)
WHERE term IS NOT NULL
ORDER BY term;

-- name: read_postings
-- Where terms are said, of each the newest `limit` places at least, or all; `place` is that of the term.
SELECT t.key AS place, p.search_no, p.block, p.hits
FROM json_each(:terms) t CROSS JOIN postings p ON p.scope = :scope AND p.term = t.value
WHERE p.search_no >= coalesce((
  SELECT q.search_no FROM postings q WHERE q.scope = :scope AND q.term = t.value
  ORDER BY q.search_no DESC, q.block DESC LIMIT 1 OFFSET :limit), 0);

-- name: read_postings_of
-- Where terms are said in some sessions; `place` is that of the term. CROSS JOIN keeps the order: SQLite, which knows
-- nothing of what is in the table, would read all entries of the owner.
SELECT t.key AS place, p.search_no, p.block, p.hits
FROM json_each(:terms) t CROSS JOIN json_each(:search_nos) n
CROSS JOIN postings p ON p.scope = :scope AND p.term = t.value AND p.search_no = CAST(n.value AS INTEGER);

-- name: read_found
-- Sessions of an owner by their numbers in the index, in that order; each with one of its items, by its seq.
SELECT s.session_id, s.title, s.metadata, s.epoch, s.seq, s.run_id, s.approved_tools, s.temporary,
       s.parent_session_id,
       s.created_at, s.updated_at, s.expires_at, i.seq AS item_seq, i.data
FROM json_each(:search_nos) n
JOIN json_each(:seqs) q ON q.key = n.key
JOIN sessions s ON s.search_no = CAST(n.value AS INTEGER) AND s.owner = :owner
LEFT JOIN items i ON i.session_id = s.session_id AND i.seq = CAST(q.value AS INTEGER)
ORDER BY n.key;
