-- Messages found by their words: what is read of the search index for them, and the messages.

-- name: read_newest_postings
-- Where terms are said, of each the newest `limit` hits at most, session number `without_no` left out; `place` is
-- that of the term. The entry that would have been too much has no hits: older ones are not given.
SELECT t.place - 1 AS place, p.search_no, p.block,
       CASE WHEN p.through <= :limit::bigint THEN p.hits ELSE '' END AS hits
FROM unnest(:terms::text[]) WITH ORDINALITY AS t (term, place)
CROSS JOIN LATERAL (
  SELECT c.search_no, c.block, c.hits, c.count,
         sum(c.count) OVER (ORDER BY c.search_no DESC, c.block DESC) AS through
  FROM (
    SELECT q.search_no, q.block, q.hits, 1 + length(q.hits) - length(replace(q.hits, ',', '')) AS count
    FROM threadkeep.postings q
    WHERE q.scope = :scope AND q.term = t.term AND q.search_no <> :without_no
    ORDER BY q.search_no DESC, q.block DESC LIMIT :limit::bigint + 1) c) p
WHERE p.through - p.count <= :limit::bigint;

-- name: read_postings_at
-- The entries of terms at places, each `search_no:block`, up to `limit` hits in the order of terms, then places;
-- `place` is that of the term. The entry that would have been too much has no hits: others may be missing.
SELECT place - 1 AS place, search_no, block, CASE WHEN through <= :limit::bigint THEN hits ELSE '' END AS hits
FROM (
  SELECT t.place, p.search_no, p.block, p.hits, p.count,
         sum(p.count) OVER (ORDER BY t.place, n.number) AS through
  FROM unnest(:terms::text[]) WITH ORDINALITY AS t (term, place)
  CROSS JOIN unnest(:places::text[]) WITH ORDINALITY AS n (at, number)
  CROSS JOIN LATERAL (
    SELECT q.search_no, q.block, q.hits, 1 + length(q.hits) - length(replace(q.hits, ',', '')) AS count
    FROM threadkeep.postings q
    WHERE q.scope = :scope AND q.term = t.term AND q.search_no = split_part(n.at, ':', 1)::bigint
      AND q.block = split_part(n.at, ':', 2)::bigint OFFSET 0) p) found
WHERE through - count <= :limit::bigint;

-- name: read_passages
-- Items of an owner's sessions at places, each `search_no:seq`, in that order; those that are gone or
-- forgotten are left out.
SELECT s.session_id, s.search_no, i.seq, i.data, (extract(epoch FROM i.created_at) * 1000)::bigint AS created_at
FROM unnest(:places::text[]) WITH ORDINALITY AS n (at, number)
CROSS JOIN LATERAL (
  SELECT k.session_id, k.search_no FROM threadkeep.sessions k
  WHERE k.search_no = split_part(n.at, ':', 1)::bigint AND k.owner = :owner OFFSET 0) s
JOIN threadkeep.items i ON i.session_id = s.session_id AND i.seq = split_part(n.at, ':', 2)::bigint
WHERE NOT EXISTS (
  SELECT 1 FROM threadkeep.forgotten f
  WHERE f.owner = :owner AND f.seq = i.seq AND f.at = (extract(epoch FROM i.created_at) * 1000)::bigint)
ORDER BY n.number;
