-- The history that databricks-openai has stored, made ours. `peer.` stands for the schema where it lies,
-- `peer.sessions` and `peer.messages` for its tables; `threadkeep.` for our schema. For Postgres alone.

-- name: find_peer_tables
-- The schema that has both tables, the first one on the original's search path; whether this role may
-- read them.
SELECT n.nspname AS peer_schema, bool_and(has_schema_privilege(n.oid, 'USAGE')
                                          AND has_table_privilege(c.oid, 'SELECT')) AS readable
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
     (SELECT :first::text[] || ARRAY[current_user, 'public']::text[] AS path) AS search
WHERE n.nspname = ANY (search.path) AND c.relname = ANY (:tables::text[])
  AND c.relkind IN ('r', 'v', 'p')
GROUP BY n.nspname, search.path
HAVING count(*) = 2
ORDER BY array_position(search.path, n.nspname::text)
LIMIT 1;

-- name: adopt_session
-- Takes over a session that is unknown here, with all its items, in their order, as they are. No row:
-- it holds nothing there. `opening` is its first message of a user; NULL when it was known already.
WITH old AS (
  SELECT row_number() OVER (ORDER BY m.created_at, m.id) AS place, m.message_data, m.created_at
  FROM peer.messages m WHERE m.session_id = :session_id),
head AS (
  INSERT INTO threadkeep.sessions (session_id, owner, epoch, seq, created_at, updated_at)
  SELECT s.session_id, '', :new_epoch, (SELECT count(*) FROM old), s.created_at, s.updated_at
  FROM peer.sessions s WHERE s.session_id = :session_id AND EXISTS (SELECT FROM old)
  ON CONFLICT DO NOTHING
  RETURNING session_id),
stored AS (
  INSERT INTO threadkeep.items (session_id, seq, data, created_at)
  SELECT head.session_id, old.place, old.message_data, old.created_at FROM old, head)
SELECT CASE WHEN head.session_id IS NOT NULL THEN (
  SELECT old.message_data FROM old WHERE old.message_data ~ '"role": ?"user"'
  ORDER BY old.place LIMIT 1) END AS opening
FROM (SELECT) AS always LEFT JOIN head ON true
WHERE EXISTS (SELECT FROM old);

-- name: title_session
-- Names a session that was adopted.
UPDATE threadkeep.sessions SET title = :title
WHERE session_id = :session_id AND owner = '' AND title IS NULL;

-- name: count_peer_sessions
-- How many there are.
SELECT count(*) AS count FROM peer.sessions WHERE session_id > '';

-- name: list_peer_sessions
-- Sessions there, by their id, from behind a given one; whether each is known here, and begins here as
-- it is there.
SELECT s.session_id, here.known, here.digest IS NOT DISTINCT FROM there.digest AS same
FROM (
  SELECT p.session_id FROM peer.sessions p WHERE p.session_id > :after
  ORDER BY p.session_id LIMIT :limit) s
CROSS JOIN LATERAL (
  SELECT count(*) AS count,
         md5(string_agg(md5(m.message_data), '' ORDER BY m.created_at, m.id)) AS digest
  FROM peer.messages m WHERE m.session_id = s.session_id) there
CROSS JOIN LATERAL (
  SELECT EXISTS (
           SELECT FROM threadkeep.sessions k WHERE k.session_id = s.session_id) AS known,
         (SELECT md5(string_agg(md5(i.data), '' ORDER BY i.seq)) FROM threadkeep.items i
          WHERE i.session_id = s.session_id AND i.seq <= there.count) AS digest) here
ORDER BY s.session_id;
