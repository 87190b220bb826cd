-- What `threadkeep copy` reads, writes and compares, whoever owns it. Everything but memories lies under the id
-- of a session; its row is written last, and says that all of it is there. Columns that mean something in one
-- database alone are left out: sessions.run_added and .remembered_until, items.call_id, runs.followed_until, and
-- what has to do with the search index.
-- Contents go by the names of their columns, in calls that have one `owner`. Pages end where the rows before
-- have `size` characters together, as they are stored; each row tells its own.

-- name: copy_place
-- What no two databases share: to find that both are one.
SELECT file AS place FROM pragma_database_list WHERE name = 'main';

-- name: count_copied
-- How much there is to copy.
SELECT count(*) AS sessions, coalesce(sum(seq), 0) AS items FROM sessions;

-- name: list_copied
-- The ids under which there is something, from behind a given one; `seq` is NULL where no session is.
SELECT session_id, max(seq) AS seq FROM (
  SELECT session_id, seq FROM (
    SELECT session_id, seq FROM sessions WHERE session_id > :after ORDER BY session_id LIMIT :limit)
  UNION ALL
  SELECT session_id, NULL FROM (
    SELECT DISTINCT session_id FROM runs WHERE session_id > :after ORDER BY session_id LIMIT :limit))
GROUP BY session_id
ORDER BY session_id
LIMIT :limit;

-- name: read_copied_heads
-- What is known of some ids without reading contents, for each. `tag` is the time of the item at the seq that
-- is given with the id.
SELECT w.value AS session_id, s.owner, s.epoch, s.seq, s.run_id, s.run_attempt, s.run_alive_at,
       s.run_items, s.open_run_id, s.open_hash, s.open_epoch, s.open_seq, s.approved_tools,
       s.temporary, s.set_aside, s.remembered_seq, s.parent_session_id, s.created_at, s.updated_at, s.expires_at,
       (SELECT count(*) FROM runs r WHERE r.session_id = w.value) AS runs,
       (SELECT i.created_at FROM items i
        WHERE i.session_id = w.value
          AND i.seq = CAST(json_extract(:seqs, '$[' || w.key || ']') AS INTEGER)) AS tag
FROM json_each(:session_ids) w LEFT JOIN sessions s ON s.session_id = w.value
ORDER BY w.key;

-- name: list_run_states
-- How far runs are, by their id from behind a given one.
SELECT r.run_id, r.attempt, r.finished_at IS NOT NULL AS finished,
       (SELECT count(*) FROM approvals a WHERE a.run_id = r.run_id AND a.status <> 'pending') AS decided
FROM runs r WHERE r.run_id > :after ORDER BY r.run_id LIMIT :limit;

-- name: read_run_states
-- How far some runs are.
SELECT r.run_id, r.attempt, r.finished_at IS NOT NULL AS finished,
       (SELECT count(*) FROM approvals a WHERE a.run_id = r.run_id AND a.status <> 'pending') AS decided
FROM json_each(:run_ids) w JOIN runs r ON r.run_id = w.value;

-- name: read_copied_session
-- The row of a session.
SELECT session_id, owner, title, metadata, epoch, seq, run_id, run_attempt, run_alive_at, run_items,
       open_run_id, open_hash, open_epoch, open_seq, approved_tools, temporary, set_aside, remembered_seq,
       parent_session_id, created_at, updated_at, expires_at
FROM sessions WHERE session_id = :session_id AND owner = :owner;

-- name: read_copied_items
-- A page of the items of a session, behind a given one.
SELECT i.seq, i.data, i.run_id, i.created_at, p.size
FROM (
  SELECT k.seq, k.size, sum(k.size) OVER (ORDER BY k.seq) - k.size AS before FROM (
    SELECT seq, length(data) AS size FROM items
    WHERE session_id = :session_id AND seq > :after ORDER BY seq LIMIT :limit) k) p
JOIN items i ON i.session_id = :session_id AND i.seq = p.seq
WHERE p.before < :size
  AND EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id AND s.owner = :owner)
ORDER BY i.seq;

-- name: list_copied_runs
-- The runs under an id, from behind a given one.
SELECT run_id, owner, journal_id FROM runs
WHERE session_id = :session_id AND run_id > :after ORDER BY run_id LIMIT :limit;

-- name: read_copied_run
-- The row of a run.
SELECT run_id, session_id, owner, status, idempotency_key, request_hash, request, journal_id, attempt,
       base_seq, input_count, fork_id, made, stop_requested, approved_tools, checkpoint,
       checkpoint_run_id, checkpoint_version, alive_at, created_at, finished_at
FROM runs WHERE run_id = :run_id AND owner = :owner;

-- name: read_copied_events
-- A page of the events of a run, behind a given one.
SELECT e.seq, e.data, p.size
FROM (
  SELECT k.seq, k.size, sum(k.size) OVER (ORDER BY k.seq) - k.size AS before FROM (
    SELECT seq, length(data) AS size FROM run_events
    WHERE run_id = :run_id AND seq > :after ORDER BY seq LIMIT :limit) k) p
JOIN run_events e ON e.run_id = :run_id AND e.seq = p.seq
WHERE p.before < :size AND EXISTS (SELECT 1 FROM runs r WHERE r.run_id = :run_id AND r.owner = :owner)
ORDER BY e.seq;

-- name: read_copied_model_calls
-- A page of what models answered in the journal of a run, behind a given key.
SELECT m.key, m.request_hash, m.response, p.size
FROM runs r
JOIN (
  SELECT k.key, k.size, sum(k.size) OVER (ORDER BY k.key) - k.size AS before FROM (
    SELECT key, length(response) AS size FROM model_calls
    WHERE journal_id = :journal_id AND key > :after ORDER BY key LIMIT :limit) k) p
JOIN model_calls m ON m.journal_id = :journal_id AND m.key = p.key
WHERE r.run_id = :run_id AND r.owner = :owner AND r.journal_id = :journal_id AND p.before < :size
ORDER BY m.key;

-- name: read_copied_tool_calls
-- A page of what tools did in the journal of a run, behind a given key.
SELECT t.key, t.status, t.repeatable, t.call, t.output, t.approval_id, p.size
FROM runs r
JOIN (
  SELECT k.key, k.size, sum(k.size) OVER (ORDER BY k.key) - k.size AS before FROM (
    SELECT key, length(call) + length(output) AS size FROM tool_calls
    WHERE journal_id = :journal_id AND key > :after ORDER BY key LIMIT :limit) k) p
JOIN tool_calls t ON t.journal_id = :journal_id AND t.key = p.key
WHERE r.run_id = :run_id AND r.owner = :owner AND r.journal_id = :journal_id AND p.before < :size
ORDER BY t.key;

-- name: read_copied_approvals
-- A page of the approvals of a run, behind a given one.
SELECT a.approval_id, a.run_id, a.session_id, a.owner, a.journal_id, a.kind, a.key, a.call, a.status,
       a.always, a.reason, a.created_at, a.decided_at, a.expires_at, a.tell_at, a.tell_tries, p.size
FROM (
  SELECT k.approval_id, k.size, sum(k.size) OVER (ORDER BY k.approval_id) - k.size AS before FROM (
    SELECT approval_id, length(call) AS size FROM approvals
    WHERE run_id = :run_id AND owner = :owner AND approval_id > :after
    ORDER BY approval_id LIMIT :limit) k) p
JOIN approvals a ON a.approval_id = p.approval_id
WHERE p.before < :size
ORDER BY a.approval_id;

-- name: copy_items
-- Stores items of a session that is not there yet.
INSERT INTO items (session_id, seq, data, run_id, created_at)
WITH seqs AS MATERIALIZED (SELECT key, value FROM json_each(:seq)),
texts AS MATERIALIZED (SELECT key, value FROM json_each(:data)),
runs AS MATERIALIZED (SELECT key, value FROM json_each(:run_id)),
times AS MATERIALIZED (SELECT key, value FROM json_each(:created_at))
SELECT :session_id, CAST(seqs.value AS INTEGER), texts.value, nullif(runs.value, ''),
       CAST(times.value AS INTEGER)
FROM seqs JOIN texts ON texts.key = seqs.key JOIN runs ON runs.key = seqs.key
JOIN times ON times.key = seqs.key
WHERE NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id)
ON CONFLICT DO NOTHING;

-- name: copy_run
-- Stores a run.
INSERT INTO runs
  (run_id, session_id, owner, status, idempotency_key, request_hash, request, journal_id, attempt,
   base_seq, input_count, fork_id, made, stop_requested, approved_tools, checkpoint, checkpoint_run_id,
   checkpoint_version, alive_at, created_at, finished_at)
VALUES
  (:run_id, :session_id, :owner, :status, :idempotency_key, :request_hash, :request, :journal_id, :attempt,
   :base_seq, :input_count, :fork_id, :made, :stop_requested, :approved_tools, :checkpoint,
   :checkpoint_run_id, :checkpoint_version, :alive_at, :created_at, :finished_at)
ON CONFLICT DO NOTHING;

-- name: copy_events
-- Stores events of a run.
INSERT INTO run_events (run_id, seq, data)
WITH seqs AS MATERIALIZED (SELECT key, value FROM json_each(:seq)),
texts AS MATERIALIZED (SELECT key, value FROM json_each(:data))
SELECT r.run_id, CAST(seqs.value AS INTEGER), texts.value
FROM runs r JOIN seqs JOIN texts ON texts.key = seqs.key
WHERE r.run_id = :run_id AND r.owner = :owner
ON CONFLICT DO NOTHING;

-- name: copy_model_calls
-- Stores what models answered in the journal of a run.
INSERT INTO model_calls (journal_id, key, request_hash, response)
WITH keys AS MATERIALIZED (SELECT key AS place, value FROM json_each(:key)),
hashes AS MATERIALIZED (SELECT key AS place, value FROM json_each(:request_hash)),
responses AS MATERIALIZED (SELECT key AS place, value FROM json_each(:response))
SELECT r.journal_id, keys.value, hashes.value, responses.value
FROM runs r JOIN keys JOIN hashes ON hashes.place = keys.place
JOIN responses ON responses.place = keys.place
WHERE r.run_id = :run_id AND r.owner = :owner AND r.journal_id = :journal_id
ON CONFLICT DO NOTHING;

-- name: copy_tool_calls
-- Stores what tools did in the journal of a run.
INSERT INTO tool_calls (journal_id, key, status, repeatable, call, output, approval_id)
WITH keys AS MATERIALIZED (SELECT key AS place, value FROM json_each(:key)),
states AS MATERIALIZED (SELECT key AS place, value FROM json_each(:status)),
kinds AS MATERIALIZED (SELECT key AS place, value FROM json_each(:repeatable)),
calls AS MATERIALIZED (SELECT key AS place, value FROM json_each(:call)),
outputs AS MATERIALIZED (SELECT key AS place, value FROM json_each(:output)),
decisions AS MATERIALIZED (SELECT key AS place, value FROM json_each(:approval_id))
SELECT r.journal_id, keys.value, states.value, CAST(kinds.value AS INTEGER), calls.value, outputs.value,
       nullif(decisions.value, '')
FROM runs r JOIN keys JOIN states ON states.place = keys.place JOIN kinds ON kinds.place = keys.place
JOIN calls ON calls.place = keys.place JOIN outputs ON outputs.place = keys.place
JOIN decisions ON decisions.place = keys.place
WHERE r.run_id = :run_id AND r.owner = :owner AND r.journal_id = :journal_id
ON CONFLICT DO NOTHING;

-- name: copy_approval
-- Stores an approval.
INSERT INTO approvals
  (approval_id, run_id, session_id, owner, journal_id, kind, key, call, status, always, reason, created_at,
   decided_at, expires_at, tell_at, tell_tries)
VALUES
  (:approval_id, :run_id, :session_id, :owner, :journal_id, :kind, :key, :call, :status, :always, :reason,
   :created_at, :decided_at, :expires_at, :tell_at, :tell_tries)
ON CONFLICT DO NOTHING;

-- name: copy_session
-- Stores the row of a session: all of it is there now. No row: somebody has made one of that id.
INSERT INTO sessions
  (session_id, owner, title, metadata, epoch, seq, run_id, run_attempt, run_alive_at, run_items,
   open_run_id, open_hash, open_epoch, open_seq, approved_tools, temporary, set_aside, remembered_seq,
   parent_session_id,
   created_at, updated_at, expires_at)
VALUES
  (:session_id, :owner, :title, :metadata, :epoch, :seq, :run_id, :run_attempt, :run_alive_at, :run_items,
   :open_run_id, :open_hash, :open_epoch, :open_seq, :approved_tools, :temporary, :set_aside, :remembered_seq,
   :parent_session_id, :created_at, :updated_at, :expires_at)
ON CONFLICT (session_id) DO NOTHING
RETURNING session_id;

-- name: uncopy_session
-- Removes the row of a session that is to be copied anew: nothing of it is shown from now on. No row: it was
-- changed since (epoch, seq) was read.
DELETE FROM sessions
WHERE session_id = :session_id AND owner = :owner AND epoch = :epoch AND seq = :seq
RETURNING session_id;

-- name: remove_copied_items
-- Removes items under an id that no session has, `limit` of them at most; `count` is how many.
DELETE FROM items
WHERE session_id = :session_id
  AND seq IN (SELECT seq FROM items WHERE session_id = :session_id ORDER BY seq LIMIT :limit)
  AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id);
SELECT changes() AS count;

-- name: remove_copied_runs
-- Removes runs under an id that no session has, with all that belongs to them.
DELETE FROM run_events WHERE run_id IN (
  SELECT r.run_id FROM runs r WHERE r.session_id = :session_id
    AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id));
DELETE FROM model_calls WHERE journal_id IN (
  SELECT r.journal_id FROM runs r WHERE r.session_id = :session_id
    AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id));
DELETE FROM tool_calls WHERE journal_id IN (
  SELECT r.journal_id FROM runs r WHERE r.session_id = :session_id
    AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id));
DELETE FROM approvals
WHERE session_id = :session_id
  AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id);
DELETE FROM runs
WHERE session_id = :session_id
  AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id);

-- name: list_copied_memories
-- Memories by their ids, from behind a given one.
SELECT memory_id, owner, path, description, contents, keywords, pinned, version, source_session, source_seq, source_at,
       created_at, updated_at, valid_from, valid_to, superseded_by
FROM memories WHERE memory_id > :after ORDER BY memory_id LIMIT :limit;

-- name: read_copied_memories
-- Some memories.
SELECT memory_id, owner, path, description, contents, keywords, pinned, version, source_session, source_seq, source_at,
       created_at, updated_at, valid_from, valid_to, superseded_by
FROM memories WHERE memory_id IN (SELECT value FROM json_each(:memory_ids));

-- name: read_copied_versions
-- What a memory was before.
SELECT version, description, contents, source_session, source_seq, source_at, valid_from, valid_to, superseded_by
FROM memory_history WHERE memory_id = :memory_id AND owner = :owner ORDER BY version;

-- name: copy_memory
-- Stores a memory with what it was before, and its words in the index. No row: somebody has made one of that id.
INSERT INTO memories
  (memory_id, owner, path_key, path, description, contents, keywords, pinned, version, search_no,
   source_session, source_seq, source_at, created_at, updated_at, valid_from, valid_to, superseded_by)
VALUES
  (:memory_id, :owner, :path_key, :path, :description, :contents, :keywords, :pinned, :version, :search_no,
   :source_session, :source_seq, :source_at, :created_at, :updated_at, :valid_from, :valid_to, :superseded_by)
ON CONFLICT (memory_id) DO NOTHING;
INSERT INTO memory_history
  (memory_id, version, owner, description, contents, source_session, source_seq, source_at, valid_from, valid_to,
   superseded_by)
WITH old AS MATERIALIZED (SELECT key, value FROM json_each(:versions)),
lines AS MATERIALIZED (SELECT key, value FROM json_each(:was)),
texts AS MATERIALIZED (SELECT key, value FROM json_each(:was_contents)),
sources AS MATERIALIZED (SELECT key, value FROM json_each(:was_sources)),
seqs AS MATERIALIZED (SELECT key, value FROM json_each(:was_seqs)),
times AS MATERIALIZED (SELECT key, value FROM json_each(:was_at)),
began AS MATERIALIZED (SELECT key, value FROM json_each(:was_from)),
ended AS MATERIALIZED (SELECT key, value FROM json_each(:was_to)),
following AS MATERIALIZED (SELECT key, value FROM json_each(:was_superseded_by))
SELECT m.memory_id, CAST(old.value AS INTEGER), m.owner, lines.value, texts.value, nullif(sources.value, ''),
       CAST(nullif(seqs.value, '') AS INTEGER), CAST(nullif(times.value, '') AS INTEGER),
       CAST(began.value AS INTEGER), CAST(ended.value AS INTEGER), CAST(following.value AS INTEGER)
FROM memories m JOIN old JOIN lines ON lines.key = old.key JOIN texts ON texts.key = old.key
JOIN sources ON sources.key = old.key JOIN seqs ON seqs.key = old.key JOIN times ON times.key = old.key
JOIN began ON began.key = old.key JOIN ended ON ended.key = old.key JOIN following ON following.key = old.key
WHERE m.memory_id = :memory_id AND m.owner = :owner AND m.search_no = :search_no;
INSERT INTO postings (scope, term, search_no, block, hits)
WITH words AS MATERIALIZED (SELECT key, value FROM json_each(:terms)),
told AS MATERIALIZED (SELECT key, value FROM json_each(:hits))
SELECT :scope, words.value, m.search_no, 0, told.value
FROM memories m JOIN words JOIN told ON told.key = words.key
WHERE m.memory_id = :memory_id AND m.owner = :owner AND m.search_no = :search_no;
SELECT memory_id FROM memories WHERE memory_id = :memory_id AND owner = :owner AND search_no = :search_no;

-- name: uncopy_memory
-- Removes a memory that is to be copied anew. No row: it was changed since its version was read.
DELETE FROM postings WHERE search_no IN
  (SELECT search_no FROM memories WHERE memory_id = :memory_id AND owner = :owner AND version = :version);
DELETE FROM memory_history WHERE memory_id IN
  (SELECT memory_id FROM memories WHERE memory_id = :memory_id AND owner = :owner AND version = :version);
DELETE FROM memories WHERE memory_id = :memory_id AND owner = :owner AND version = :version
RETURNING memory_id;

-- name: list_copied_forgotten
-- Messages that are not recalled any more, from behind a given one.
SELECT owner, seq, at FROM forgotten
WHERE (owner, seq, at) > (:owner, :seq, :at) ORDER BY owner, seq, at LIMIT :limit;

-- name: copy_forgotten
-- Stores some of an owner's.
INSERT OR IGNORE INTO forgotten (owner, seq, at)
SELECT :owner, CAST(s.value AS INTEGER), CAST(t.value AS INTEGER)
FROM json_each(:seqs) s JOIN json_each(:times) t ON t.key = s.key;
