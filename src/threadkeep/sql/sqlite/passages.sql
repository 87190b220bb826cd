-- Messages found by their words: what is read of the search index for them, and the messages.

-- name: read_newest_postings
-- Where terms are said, of each the newest `limit` hits at most, session number `without_no` left out; `place` is
-- that of the term. The entry that would have been too much has no hits: older ones are not given.
SELECT place, search_no, block, CASE WHEN through <= :limit THEN hits ELSE '' END AS hits
FROM (
  SELECT place, search_no, block, hits, count,
         sum(count) OVER (PARTITION BY place ORDER BY search_no DESC, block DESC) AS through
  FROM (
    SELECT t.key AS place, p.search_no, p.block, p.hits,
           1 + length(p.hits) - length(replace(p.hits, ',', '')) AS count
    FROM json_each(:terms) t CROSS JOIN postings p ON p.scope = :scope AND p.term = t.value
    WHERE p.search_no <> :without_no AND p.search_no >= coalesce((
      SELECT q.search_no FROM postings q
      WHERE q.scope = :scope AND q.term = t.value AND q.search_no <> :without_no
      ORDER BY q.search_no DESC, q.block DESC LIMIT 1 OFFSET :limit), 0)))
WHERE through - count <= :limit;

-- name: read_postings_at
-- The entries of terms at places, each `search_no:block`, up to `limit` hits in the order of terms, then places;
-- `place` is that of the term. The entry that would have been too much has no hits: others may be missing. CROSS
-- JOIN keeps the order: SQLite would read all entries of a session.
SELECT place, search_no, block, CASE WHEN through <= :limit THEN hits ELSE '' END AS hits
FROM (
  SELECT place, search_no, block, hits, count,
         sum(count) OVER (ORDER BY place, number) AS through
  FROM (
    SELECT t.key AS place, n.key AS number, p.search_no, p.block, p.hits,
           1 + length(p.hits) - length(replace(p.hits, ',', '')) AS count
    FROM json_each(:terms) t CROSS JOIN json_each(:places) n
    CROSS JOIN postings p ON p.scope = :scope AND p.term = t.value AND p.search_no = CAST(n.value AS INTEGER)
      AND p.block = CAST(substr(n.value, instr(n.value, ':') + 1) AS INTEGER)))
WHERE through - count <= :limit;

-- name: read_passages
-- Items of an owner's sessions at places, each `search_no:seq`, in that order; those that are gone or
-- forgotten are left out.
SELECT s.session_id, s.search_no, i.seq, i.data, i.created_at
FROM json_each(:places) n
JOIN sessions s ON s.search_no = CAST(n.value AS INTEGER) AND s.owner = :owner
JOIN items i ON i.session_id = s.session_id
  AND i.seq = CAST(substr(n.value, instr(n.value, ':') + 1) AS INTEGER)
WHERE NOT EXISTS (
  SELECT 1 FROM forgotten f WHERE f.owner = :owner AND f.seq = i.seq AND f.at = i.created_at)
ORDER BY n.key;
