-- What `threadkeep sessions doctor` looks at and repairs, whoever owns it; see sessions.sql.

-- name: list_all_sessions
-- Sessions by their id, from behind a given one.
SELECT session_id, seq, metadata FROM threadkeep.sessions
WHERE session_id > :after ORDER BY session_id LIMIT :limit;

-- name: list_item_sessions
-- The session ids that items have, from behind a given one; whether there is such a session. Each is
-- found by a step in the index, however many items it has; no more steps are made than LIMIT asks for.
-- (EXISTS would be answered from a hash of all sessions.)
WITH RECURSIVE found AS (
  SELECT min(session_id) AS session_id FROM threadkeep.items WHERE session_id > :after
  UNION ALL
  SELECT (SELECT min(i.session_id) FROM threadkeep.items i WHERE i.session_id > found.session_id)
  FROM found WHERE found.session_id IS NOT NULL)
SELECT session_id,
       (SELECT true FROM threadkeep.sessions s WHERE s.session_id = ids.session_id) IS NOT NULL AS known
FROM (SELECT session_id FROM found LIMIT :limit) ids
WHERE session_id IS NOT NULL
ORDER BY session_id;

-- name: read_whole_sessions
-- All that is stored under some session ids, as of one moment. No `epoch`: items, and no session.
-- `busy`: a run that is alive has it. `waits`: the run of the item has ended with a call to be decided on.
SELECT w.session_id, s.owner, s.epoch, s.seq AS head, s.metadata,
       s.run_id IS NOT NULL
         AND s.run_alive_at > clock_timestamp() - :stale_after::bigint * interval '1 ms' AS busy,
       i.seq, i.data, coalesce(r.status = 'incomplete', false) AS waits
FROM unnest(:session_ids::text[]) WITH ORDINALITY AS w (session_id, place)
LEFT JOIN threadkeep.sessions s ON s.session_id = w.session_id
LEFT JOIN threadkeep.items i ON i.session_id = w.session_id
LEFT JOIN threadkeep.runs r ON r.run_id = i.run_id
WHERE s.session_id IS NOT NULL OR i.session_id IS NOT NULL
ORDER BY w.place, i.seq;

-- name: list_silent_runs
-- Runs that have not ended and gave no sign of life for `stale_after` ms, by their id, from behind a given
-- one; of one session, or of all when it is ''.
SELECT run_id, session_id, status,
       (extract(epoch FROM clock_timestamp() - alive_at) * 1000)::bigint AS silent_for
FROM threadkeep.runs
WHERE status IN ('queued', 'in_progress')
  AND alive_at <= clock_timestamp() - :stale_after::bigint * interval '1 ms'
  AND run_id > :after AND (:session_id::text = '' OR session_id = :session_id::text)
ORDER BY run_id
LIMIT :limit;

-- name: rebuild_session
-- Keeps the whole session as a fork under `fork_id`, then makes its items those given: each is the seq of
-- one that stays, or a new one as JSON. Only if nothing changed since (epoch, seq) was read and no run that
-- is alive has the session; one that is not has lost it. A row that is needed anew is changed where it
-- lies: one statement may touch it only once.
WITH head AS (
  UPDATE threadkeep.sessions
  SET seq = cardinality(:items::text[]), epoch = :new_epoch, run_id = NULL
  WHERE session_id = :session_id AND owner = :owner AND epoch = :epoch AND seq = :seq
    AND (run_id IS NULL
         OR run_alive_at <= clock_timestamp() - :stale_after::bigint * interval '1 ms')
  RETURNING epoch, seq),
fork AS (
  INSERT INTO threadkeep.sessions
    (session_id, owner, title, metadata, epoch, seq, parent_session_id, created_at, updated_at,
     expires_at, temporary, set_aside, remembered_seq)
  SELECT :fork_id, s.owner, s.title, :fork_metadata, :fork_epoch, s.seq, s.session_id, s.created_at,
         s.updated_at, s.expires_at, s.temporary, 1, s.seq
  FROM threadkeep.sessions s
  WHERE s.session_id = :session_id AND EXISTS (SELECT FROM head)),
copied AS (
  INSERT INTO threadkeep.items (session_id, seq, data, run_id, created_at)
  SELECT :fork_id, i.seq, i.data, i.run_id, i.created_at
  FROM threadkeep.items i
  WHERE i.session_id = :session_id AND EXISTS (SELECT FROM head)),
given AS (
  SELECT item, place, CASE WHEN item ~ '^[0-9]+$' THEN item::bigint END AS stays
  FROM unnest(:items::text[]) WITH ORDINALITY AS g (item, place)),
wanted AS (
  SELECT g.place, g.stays, coalesce(o.data, g.item) AS data, o.run_id,
         coalesce(o.created_at, clock_timestamp()) AS created_at
  FROM given g
  LEFT JOIN threadkeep.items o ON o.session_id = :session_id AND o.seq = g.stays
  WHERE EXISTS (SELECT FROM head)),
changed AS (
  UPDATE threadkeep.items t
  SET data = w.data, run_id = w.run_id, created_at = w.created_at
  FROM wanted w
  WHERE t.session_id = :session_id AND t.seq = w.place AND w.stays IS DISTINCT FROM w.place),
added AS (
  INSERT INTO threadkeep.items (session_id, seq, data, run_id, created_at)
  SELECT :session_id, w.place, w.data, w.run_id, w.created_at
  FROM wanted w
  WHERE NOT EXISTS (
    SELECT FROM threadkeep.items t WHERE t.session_id = :session_id AND t.seq = w.place)),
removed AS (
  DELETE FROM threadkeep.items
  WHERE session_id = :session_id AND seq > cardinality(:items::text[])
    AND EXISTS (SELECT FROM head))
SELECT epoch, seq FROM head
UNION ALL
SELECT epoch, seq FROM (
  SELECT epoch, seq FROM threadkeep.sessions
  WHERE :retried::boolean AND session_id = :session_id OFFSET 0 FOR UPDATE) done
WHERE epoch = :new_epoch AND NOT EXISTS (SELECT FROM head);

-- name: adopt_items
-- Makes a session for items that have none. No row: it is there, also when this was made again.
INSERT INTO threadkeep.sessions (session_id, owner, epoch, seq, created_at, updated_at)
SELECT session_id, :owner, :new_epoch, max(seq), min(created_at), max(created_at)
FROM threadkeep.items WHERE session_id = :session_id GROUP BY session_id
ON CONFLICT DO NOTHING
RETURNING epoch, seq;
