-- The search index: which sessions are not in it as they are, what is added, what is found; see sessions.sql.
-- A statement that adds to it and is made again finds that it was done, and says so by no row.

-- name: list_to_index
-- Sessions of an owner that the index does not hold as they are, or of everybody where that is NULL; but for one. They
-- come in the order of sessions_to_index, which the planner, who takes them for many, would not use without it.
SELECT session_id, owner, epoch, seq, search_no, indexed_epoch, indexed_seq, set_aside,
       (extract(epoch FROM created_at) * 1000)::bigint AS created_at
FROM (
  (SELECT * FROM threadkeep.sessions
   WHERE owner = :owner::text AND (indexed_epoch <> epoch OR indexed_seq <> seq) AND temporary = 0
     AND session_id <> :without
   ORDER BY owner, session_id LIMIT :limit)
  UNION ALL
  (SELECT * FROM threadkeep.sessions
   WHERE :owner::text IS NULL AND (indexed_epoch <> epoch OR indexed_seq <> seq) AND temporary = 0
     AND session_id <> :without
   ORDER BY owner, session_id LIMIT :limit)) s;

-- name: reset_index
-- Takes a session out of the index, if nobody else indexed it since it was read; `reset_epoch` is negative.
-- No row: somebody did.
WITH head AS (
  UPDATE threadkeep.sessions SET indexed_epoch = :reset_epoch, indexed_seq = 0
  WHERE session_id = :session_id AND owner = :owner
    AND indexed_epoch = :indexed_epoch AND indexed_seq = :indexed_seq
  RETURNING search_no, indexed_epoch),
gone AS (
  DELETE FROM threadkeep.postings p USING head WHERE p.search_no = head.search_no)
SELECT indexed_epoch FROM head;

-- name: index_session
-- Adds to the index what a session holds behind `indexed_seq`, up to `seq`, if that was not done meanwhile and
-- the session is in that epoch still. No row: it is not, or it was.
WITH head AS (
  UPDATE threadkeep.sessions
  SET search_no = coalesce(search_no, :search_no), indexed_epoch = :epoch, indexed_seq = :seq
  WHERE session_id = :session_id AND owner = :owner AND epoch = :epoch AND seq >= :seq
    AND indexed_epoch = :indexed_epoch AND indexed_seq = :indexed_seq
  RETURNING search_no, indexed_seq),
added AS (
  INSERT INTO threadkeep.postings AS p (scope, term, search_no, block, hits)
  SELECT :scope, new.term, head.search_no, new.block::bigint, new.hits
  FROM head, unnest(:terms::text[], :blocks::text[], :hits::text[]) AS new (term, block, hits)
  ON CONFLICT (scope, term, search_no, block) DO UPDATE SET hits = p.hits || ',' || excluded.hits)
SELECT indexed_seq FROM head;

-- name: list_terms
-- The terms of a scope from `first` to before `beyond`. Each is found by a step in the index, however often
-- it is said.
WITH RECURSIVE found AS (
  SELECT min(term) AS term FROM threadkeep.postings
  WHERE scope = :scope AND term >= :first AND term < :beyond
  UNION ALL
  SELECT (SELECT min(p.term) FROM threadkeep.postings p
          WHERE p.scope = :scope AND p.term > found.term AND p.term < :beyond)
  FROM found WHERE found.term IS NOT NULL)
SELECT term FROM (SELECT term FROM found LIMIT :limit) terms
WHERE term IS NOT NULL
ORDER BY term;

-- name: read_postings
-- Where terms are said, of each the newest `limit` places at least, or all; `place` is that of the term.
SELECT t.place - 1 AS place, p.search_no, p.block, p.hits
FROM unnest(:terms::text[]) WITH ORDINALITY AS t (term, place)
CROSS JOIN LATERAL (
  SELECT q.search_no, q.block, q.hits FROM threadkeep.postings q
  WHERE q.scope = :scope AND q.term = t.term
  ORDER BY q.search_no DESC, q.block DESC LIMIT :limit + 1) p;

-- name: read_postings_of
-- Where terms are said in some sessions; `place` is that of the term.
SELECT t.place - 1 AS place, p.search_no, p.block, p.hits
FROM unnest(:terms::text[]) WITH ORDINALITY AS t (term, place)
CROSS JOIN unnest(:search_nos::text[]) AS n (search_no)
CROSS JOIN LATERAL (
  SELECT q.search_no, q.block, q.hits FROM threadkeep.postings q
  WHERE q.scope = :scope AND q.term = t.term AND q.search_no = n.search_no::bigint OFFSET 0) p;

-- name: read_found
-- Sessions of an owner by their numbers in the index, in that order; each with one of its items, by its seq.
SELECT s.session_id, s.title, s.metadata, s.epoch, s.seq, s.run_id, s.approved_tools, s.temporary,
       s.parent_session_id,
       (extract(epoch FROM s.created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM s.updated_at) * 1000)::bigint AS updated_at,
       (extract(epoch FROM s.expires_at) * 1000)::bigint AS expires_at,
       i.seq AS item_seq, i.data
FROM unnest(:search_nos::text[], :seqs::text[]) WITH ORDINALITY AS n (search_no, seq, place)
CROSS JOIN LATERAL (
  SELECT * FROM threadkeep.sessions k
  WHERE k.search_no = n.search_no::bigint AND k.owner = :owner OFFSET 0) s
LEFT JOIN threadkeep.items i ON i.session_id = s.session_id AND i.seq = n.seq::bigint
ORDER BY n.place;
