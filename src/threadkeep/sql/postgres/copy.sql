-- What `threadkeep copy` reads, writes and compares, whoever owns it. Everything but memories lies under the id
-- of a session; its row is written last, and says that all of it is there. Columns that mean something in one
-- database alone are left out: sessions.run_added and .remembered_until, items.call_id, runs.followed_until, and
-- what has to do with the search index.
-- Contents go by the names of their columns, in calls that have one `owner`. Pages end where the rows before
-- have `size` characters together, as they are stored; each row tells its own.
-- What is stored already is not stored again, so what writes may be made again. Times have milliseconds here
-- too; '-infinity' is the other dialect's 0.

-- name: copy_place
-- What no two databases share: to find that both are one.
SELECT concat_ws(' ', extract(epoch FROM pg_postmaster_start_time()),
                 (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()),
                 (SELECT min(m.tableoid::bigint) FROM threadkeep.schema_migrations m)) AS place;

-- name: count_copied
-- How much there is to copy.
SELECT count(*) AS sessions, coalesce(sum(seq), 0)::bigint AS items FROM threadkeep.sessions;

-- name: list_copied
-- The ids under which there is something, from behind a given one; `seq` is NULL where no session is.
SELECT session_id, max(seq) AS seq FROM (
  SELECT session_id, seq FROM (
    SELECT session_id, seq FROM threadkeep.sessions
    WHERE session_id > :after ORDER BY session_id LIMIT :limit) s
  UNION ALL
  SELECT session_id, NULL FROM (
    SELECT DISTINCT session_id FROM threadkeep.runs
    WHERE session_id > :after ORDER BY session_id LIMIT :limit) r) found
GROUP BY session_id
ORDER BY session_id
LIMIT :limit;

-- name: read_copied_heads
-- What is known of some ids without reading contents, for each. `tag` is the time of the item at the seq that
-- is given with the id.
SELECT w.session_id, s.owner, s.epoch, s.seq, s.run_id, s.run_attempt,
       (extract(epoch FROM greatest(s.run_alive_at, 'epoch')) * 1000)::bigint AS run_alive_at,
       s.run_items, s.open_run_id, s.open_hash, s.open_epoch, s.open_seq, s.approved_tools,
       s.temporary, s.set_aside, s.remembered_seq, s.parent_session_id,
       (extract(epoch FROM s.created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM s.updated_at) * 1000)::bigint AS updated_at,
       (extract(epoch FROM s.expires_at) * 1000)::bigint AS expires_at,
       (SELECT count(*) FROM threadkeep.runs r WHERE r.session_id = w.session_id) AS runs,
       (SELECT (extract(epoch FROM i.created_at) * 1000)::bigint FROM threadkeep.items i
        WHERE i.session_id = w.session_id AND i.seq = w.seq::bigint) AS tag
FROM unnest(:session_ids::text[], :seqs::text[]) WITH ORDINALITY AS w (session_id, seq, place)
LEFT JOIN threadkeep.sessions s ON s.session_id = w.session_id
ORDER BY w.place;

-- name: list_run_states
-- How far runs are, by their id from behind a given one.
SELECT r.run_id, r.attempt, r.finished_at IS NOT NULL AS finished,
       (SELECT count(*) FROM threadkeep.approvals a
        WHERE a.run_id = r.run_id AND a.status <> 'pending') AS decided
FROM threadkeep.runs r WHERE r.run_id > :after ORDER BY r.run_id LIMIT :limit;

-- name: read_run_states
-- How far some runs are.
SELECT r.run_id, r.attempt, r.finished_at IS NOT NULL AS finished,
       (SELECT count(*) FROM threadkeep.approvals a
        WHERE a.run_id = r.run_id AND a.status <> 'pending') AS decided
FROM unnest(:run_ids::text[]) AS w (run_id) JOIN threadkeep.runs r ON r.run_id = w.run_id;

-- name: read_copied_session
-- The row of a session.
SELECT session_id, owner, title, metadata, epoch, seq, run_id, run_attempt,
       (extract(epoch FROM greatest(run_alive_at, 'epoch')) * 1000)::bigint AS run_alive_at, run_items,
       open_run_id, open_hash, open_epoch, open_seq, approved_tools, temporary, set_aside, remembered_seq,
       parent_session_id,
       (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at,
       (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at
FROM threadkeep.sessions WHERE session_id = :session_id AND owner = :owner;

-- name: read_copied_items
-- A page of the items of a session, behind a given one.
SELECT i.seq, i.data, i.run_id, (extract(epoch FROM i.created_at) * 1000)::bigint AS created_at, p.size
FROM (
  SELECT k.seq, k.size, sum(k.size) OVER (ORDER BY k.seq) - k.size AS before FROM (
    SELECT seq, length(data) AS size FROM threadkeep.items
    WHERE session_id = :session_id AND seq > :after ORDER BY seq LIMIT :limit) k) p
JOIN threadkeep.items i ON i.session_id = :session_id AND i.seq = p.seq
WHERE p.before < :size
  AND EXISTS (SELECT FROM threadkeep.sessions s WHERE s.session_id = :session_id AND s.owner = :owner)
ORDER BY i.seq;

-- name: list_copied_runs
-- The runs under an id, from behind a given one.
SELECT run_id, owner, journal_id FROM threadkeep.runs
WHERE session_id = :session_id AND run_id > :after ORDER BY run_id LIMIT :limit;

-- name: read_copied_run
-- The row of a run.
SELECT run_id, session_id, owner, status, idempotency_key, request_hash, request, journal_id, attempt,
       base_seq, input_count, fork_id, made::int::bigint AS made, stop_requested, approved_tools,
       checkpoint, checkpoint_run_id, checkpoint_version,
       (extract(epoch FROM alive_at) * 1000)::bigint AS alive_at,
       (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM finished_at) * 1000)::bigint AS finished_at
FROM threadkeep.runs WHERE run_id = :run_id AND owner = :owner;

-- name: read_copied_events
-- A page of the events of a run, behind a given one.
SELECT e.seq, e.data, p.size
FROM (
  SELECT k.seq, k.size, sum(k.size) OVER (ORDER BY k.seq) - k.size AS before FROM (
    SELECT seq, length(data) AS size FROM threadkeep.run_events
    WHERE run_id = :run_id AND seq > :after ORDER BY seq LIMIT :limit) k) p
JOIN threadkeep.run_events e ON e.run_id = :run_id AND e.seq = p.seq
WHERE p.before < :size
  AND EXISTS (SELECT FROM threadkeep.runs r WHERE r.run_id = :run_id AND r.owner = :owner)
ORDER BY e.seq;

-- name: read_copied_model_calls
-- A page of what models answered in the journal of a run, behind a given key.
SELECT m.key, m.request_hash, m.response, p.size
FROM threadkeep.runs r
CROSS JOIN (
  SELECT k.key, k.size, sum(k.size) OVER (ORDER BY k.key) - k.size AS before FROM (
    SELECT key, length(response) AS size FROM threadkeep.model_calls
    WHERE journal_id = :journal_id AND key > :after ORDER BY key LIMIT :limit) k) p
JOIN threadkeep.model_calls m ON m.journal_id = :journal_id AND m.key = p.key
WHERE r.run_id = :run_id AND r.owner = :owner AND r.journal_id = :journal_id AND p.before < :size
ORDER BY m.key;

-- name: read_copied_tool_calls
-- A page of what tools did in the journal of a run, behind a given key.
SELECT t.key, t.status, t.repeatable::int::bigint AS repeatable, t.call, t.output, t.approval_id, p.size
FROM threadkeep.runs r
CROSS JOIN (
  SELECT k.key, k.size, sum(k.size) OVER (ORDER BY k.key) - k.size AS before FROM (
    SELECT key, length(call) + length(output) AS size FROM threadkeep.tool_calls
    WHERE journal_id = :journal_id AND key > :after ORDER BY key LIMIT :limit) k) p
JOIN threadkeep.tool_calls t ON t.journal_id = :journal_id AND t.key = p.key
WHERE r.run_id = :run_id AND r.owner = :owner AND r.journal_id = :journal_id AND p.before < :size
ORDER BY t.key;

-- name: read_copied_approvals
-- A page of the approvals of a run, behind a given one.
SELECT a.approval_id, a.run_id, a.session_id, a.owner, a.journal_id, a.kind, a.key, a.call, a.status,
       a.always, a.reason,
       (extract(epoch FROM a.created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM a.decided_at) * 1000)::bigint AS decided_at,
       (extract(epoch FROM a.expires_at) * 1000)::bigint AS expires_at,
       (extract(epoch FROM a.tell_at) * 1000)::bigint AS tell_at, a.tell_tries, p.size
FROM (
  SELECT k.approval_id, k.size, sum(k.size) OVER (ORDER BY k.approval_id) - k.size AS before FROM (
    SELECT approval_id, length(call) AS size FROM threadkeep.approvals
    WHERE run_id = :run_id AND owner = :owner AND approval_id > :after
    ORDER BY approval_id LIMIT :limit) k) p
JOIN threadkeep.approvals a ON a.approval_id = p.approval_id
WHERE p.before < :size
ORDER BY a.approval_id;

-- name: copy_items
-- Stores items of a session that is not there yet.
INSERT INTO threadkeep.items (session_id, seq, data, run_id, created_at)
SELECT :session_id, new.seq::bigint, new.data, nullif(new.run_id, ''),
       'epoch'::timestamptz + new.created_at::bigint * interval '1 ms'
FROM unnest(:seq::text[], :data::text[], :run_id::text[], :created_at::text[])
  AS new (seq, data, run_id, created_at)
WHERE NOT EXISTS (SELECT FROM threadkeep.sessions s WHERE s.session_id = :session_id)
ON CONFLICT DO NOTHING;

-- name: copy_run
-- Stores a run.
INSERT INTO threadkeep.runs
  (run_id, session_id, owner, status, idempotency_key, request_hash, request, journal_id, attempt,
   base_seq, input_count, fork_id, made, stop_requested, approved_tools, checkpoint, checkpoint_run_id,
   checkpoint_version, alive_at, created_at, finished_at)
VALUES
  (:run_id, :session_id, :owner, :status, :idempotency_key, :request_hash, :request, :journal_id, :attempt,
   :base_seq, :input_count, :fork_id, :made::bigint = 1, :stop_requested, :approved_tools, :checkpoint,
   :checkpoint_run_id, :checkpoint_version,
   'epoch'::timestamptz + :alive_at::bigint * interval '1 ms',
   'epoch'::timestamptz + :created_at::bigint * interval '1 ms',
   'epoch'::timestamptz + :finished_at::bigint * interval '1 ms')
ON CONFLICT DO NOTHING;

-- name: copy_events
-- Stores events of a run.
INSERT INTO threadkeep.run_events (run_id, seq, data)
SELECT r.run_id, new.seq::bigint, new.data
FROM threadkeep.runs r, unnest(:seq::text[], :data::text[]) AS new (seq, data)
WHERE r.run_id = :run_id AND r.owner = :owner
ON CONFLICT DO NOTHING;

-- name: copy_model_calls
-- Stores what models answered in the journal of a run.
INSERT INTO threadkeep.model_calls (journal_id, key, request_hash, response)
SELECT r.journal_id, new.key, new.request_hash, new.response
FROM threadkeep.runs r,
     unnest(:key::text[], :request_hash::text[], :response::text[]) AS new (key, request_hash, response)
WHERE r.run_id = :run_id AND r.owner = :owner AND r.journal_id = :journal_id
ON CONFLICT DO NOTHING;

-- name: copy_tool_calls
-- Stores what tools did in the journal of a run.
INSERT INTO threadkeep.tool_calls (journal_id, key, status, repeatable, call, output, approval_id)
SELECT r.journal_id, new.key, new.status, new.repeatable = '1', new.call, new.output,
       nullif(new.approval_id, '')
FROM threadkeep.runs r,
     unnest(:key::text[], :status::text[], :repeatable::text[], :call::text[], :output::text[],
            :approval_id::text[]) AS new (key, status, repeatable, call, output, approval_id)
WHERE r.run_id = :run_id AND r.owner = :owner AND r.journal_id = :journal_id
ON CONFLICT DO NOTHING;

-- name: copy_approval
-- Stores an approval.
INSERT INTO threadkeep.approvals
  (approval_id, run_id, session_id, owner, journal_id, kind, key, call, status, always, reason, created_at,
   decided_at, expires_at, tell_at, tell_tries)
VALUES
  (:approval_id, :run_id, :session_id, :owner, :journal_id, :kind, :key, :call, :status, :always, :reason,
   'epoch'::timestamptz + :created_at::bigint * interval '1 ms',
   'epoch'::timestamptz + :decided_at::bigint * interval '1 ms',
   'epoch'::timestamptz + :expires_at::bigint * interval '1 ms',
   'epoch'::timestamptz + :tell_at::bigint * interval '1 ms', :tell_tries)
ON CONFLICT DO NOTHING;

-- name: copy_session
-- Stores the row of a session: all of it is there now. No row: somebody has made one of that id.
INSERT INTO threadkeep.sessions AS s
  (session_id, owner, title, metadata, epoch, seq, run_id, run_attempt, run_alive_at, run_items,
   open_run_id, open_hash, open_epoch, open_seq, approved_tools, temporary, set_aside, remembered_seq,
   parent_session_id,
   created_at, updated_at, expires_at)
VALUES
  (:session_id, :owner, :title, :metadata, :epoch, :seq, :run_id, :run_attempt,
   'epoch'::timestamptz + :run_alive_at::bigint * interval '1 ms', :run_items,
   :open_run_id, :open_hash, :open_epoch, :open_seq, :approved_tools, :temporary, :set_aside, :remembered_seq,
   :parent_session_id,
   'epoch'::timestamptz + :created_at::bigint * interval '1 ms',
   'epoch'::timestamptz + :updated_at::bigint * interval '1 ms',
   'epoch'::timestamptz + :expires_at::bigint * interval '1 ms')
ON CONFLICT (session_id) DO UPDATE SET epoch = s.epoch
WHERE :retried::boolean AND s.epoch = excluded.epoch AND s.seq = excluded.seq
RETURNING session_id;

-- name: uncopy_session
-- Removes the row of a session that is to be copied anew: nothing of it is shown from now on. No row: it was
-- changed since (epoch, seq) was read.
WITH gone AS (
  DELETE FROM threadkeep.sessions
  WHERE session_id = :session_id AND owner = :owner AND epoch = :epoch AND seq = :seq
  RETURNING session_id),
there AS (
  SELECT FROM threadkeep.sessions WHERE :retried::boolean AND session_id = :session_id OFFSET 0 FOR UPDATE)
SELECT session_id FROM gone
UNION ALL
SELECT :session_id
WHERE :retried::boolean AND NOT EXISTS (SELECT FROM gone) AND NOT EXISTS (SELECT FROM there);

-- name: remove_copied_items
-- Removes items under an id that no session has, `limit` of them at most; `count` is how many.
WITH gone AS (
  DELETE FROM threadkeep.items
  WHERE session_id = :session_id
    AND seq IN (
      SELECT seq FROM threadkeep.items WHERE session_id = :session_id ORDER BY seq LIMIT :limit)
    AND NOT EXISTS (SELECT FROM threadkeep.sessions s WHERE s.session_id = :session_id)
  RETURNING 1)
SELECT count(*) AS count FROM gone;

-- name: remove_copied_runs
-- Removes runs under an id that no session has, with all that belongs to them.
WITH runs AS (
  DELETE FROM threadkeep.runs
  WHERE session_id = :session_id
    AND NOT EXISTS (SELECT FROM threadkeep.sessions s WHERE s.session_id = :session_id)
  RETURNING run_id, journal_id),
run_events AS (
  DELETE FROM threadkeep.run_events e USING runs WHERE e.run_id = runs.run_id),
model_calls AS (
  DELETE FROM threadkeep.model_calls WHERE journal_id IN (SELECT runs.journal_id FROM runs)),
tool_calls AS (
  DELETE FROM threadkeep.tool_calls WHERE journal_id IN (SELECT runs.journal_id FROM runs))
DELETE FROM threadkeep.approvals
WHERE session_id = :session_id
  AND NOT EXISTS (SELECT FROM threadkeep.sessions s WHERE s.session_id = :session_id);

-- name: list_copied_memories
-- Memories by their ids, from behind a given one.
SELECT memory_id, owner, path, description, contents, keywords, pinned, version, source_session, source_seq, source_at,
       (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at,
       (extract(epoch FROM valid_from) * 1000)::bigint AS valid_from,
       (extract(epoch FROM valid_to) * 1000)::bigint AS valid_to, superseded_by
FROM threadkeep.memories WHERE memory_id > :after ORDER BY memory_id LIMIT :limit;

-- name: read_copied_memories
-- Some memories.
SELECT memory_id, owner, path, description, contents, keywords, pinned, version, source_session, source_seq, source_at,
       (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at,
       (extract(epoch FROM valid_from) * 1000)::bigint AS valid_from,
       (extract(epoch FROM valid_to) * 1000)::bigint AS valid_to, superseded_by
FROM threadkeep.memories WHERE memory_id = ANY (:memory_ids::text[]);

-- name: read_copied_versions
-- What a memory was before.
SELECT version, description, contents, source_session, source_seq, source_at,
       (extract(epoch FROM valid_from) * 1000)::bigint AS valid_from,
       (extract(epoch FROM valid_to) * 1000)::bigint AS valid_to, superseded_by
FROM threadkeep.memory_history WHERE memory_id = :memory_id AND owner = :owner ORDER BY version;

-- name: copy_memory
-- Stores a memory with what it was before, and its words in the index. No row: somebody has made one of that id.
WITH head AS (
  INSERT INTO threadkeep.memories AS m
    (memory_id, owner, path_key, path, description, contents, keywords, pinned, version, search_no,
     source_session, source_seq, source_at, created_at, updated_at, valid_from, valid_to, superseded_by)
  VALUES
    (:memory_id, :owner, :path_key, :path, :description, :contents, :keywords, :pinned, :version, :search_no,
     :source_session, :source_seq, :source_at,
     'epoch'::timestamptz + :created_at::bigint * interval '1 ms',
     'epoch'::timestamptz + :updated_at::bigint * interval '1 ms',
     'epoch'::timestamptz + :valid_from::bigint * interval '1 ms',
     'epoch'::timestamptz + :valid_to::bigint * interval '1 ms', :superseded_by)
  ON CONFLICT (memory_id) DO UPDATE SET version = m.version
  WHERE :retried::boolean AND m.search_no = excluded.search_no
  RETURNING m.memory_id, m.owner, m.search_no),
history AS (
  INSERT INTO threadkeep.memory_history
    (memory_id, version, owner, description, contents, source_session, source_seq, source_at, valid_from, valid_to,
     superseded_by)
  SELECT head.memory_id, old.version::bigint, head.owner, old.was, old.was_contents, nullif(old.source, ''),
         nullif(old.seq, '')::bigint, nullif(old.at, '')::bigint,
         'epoch'::timestamptz + old.began::bigint * interval '1 ms',
         'epoch'::timestamptz + old.ended::bigint * interval '1 ms', old.next::bigint
  FROM head, unnest(:versions::text[], :was::text[], :was_contents::text[], :was_sources::text[],
                    :was_seqs::text[], :was_at::text[], :was_from::text[], :was_to::text[],
                    :was_superseded_by::text[])
    AS old (version, was, was_contents, source, seq, at, began, ended, next)
  ON CONFLICT DO NOTHING),
indexed AS (
  INSERT INTO threadkeep.postings (scope, term, search_no, block, hits)
  SELECT :scope, word.term, head.search_no, 0, word.hits
  FROM head, unnest(:terms::text[], :hits::text[]) AS word (term, hits)
  ON CONFLICT DO NOTHING)
SELECT memory_id FROM head;

-- name: uncopy_memory
-- Removes a memory that is to be copied anew. No row: it was changed since its version was read.
WITH gone AS (
  DELETE FROM threadkeep.memories WHERE memory_id = :memory_id AND owner = :owner AND version = :version
  RETURNING memory_id, search_no),
history AS (
  DELETE FROM threadkeep.memory_history h USING gone WHERE h.memory_id = gone.memory_id),
unindexed AS (
  DELETE FROM threadkeep.postings p USING gone WHERE p.search_no = gone.search_no),
there AS (
  SELECT FROM threadkeep.memories WHERE :retried::boolean AND memory_id = :memory_id OFFSET 0 FOR UPDATE)
SELECT memory_id FROM gone
UNION ALL
SELECT :memory_id
WHERE :retried::boolean AND NOT EXISTS (SELECT FROM gone) AND NOT EXISTS (SELECT FROM there);

-- name: list_copied_forgotten
-- Messages that are not recalled any more, from behind a given one.
SELECT owner, seq, at FROM threadkeep.forgotten
WHERE (owner, seq, at) > (:owner::text, :seq::bigint, :at::bigint) ORDER BY owner, seq, at LIMIT :limit;

-- name: copy_forgotten
-- Stores some of an owner's.
INSERT INTO threadkeep.forgotten (owner, seq, at)
SELECT :owner, f.seq::bigint, f.at::bigint FROM unnest(:seqs::text[], :times::text[]) AS f (seq, at)
ON CONFLICT DO NOTHING;
