-- Runs, their events and their journals. What a run at work writes is fenced: it must still have its
-- session, in the attempt that writes (`sessions.run_id` and `run_attempt`), or else somebody took the run
-- over, or deleted its session, and nothing is written.

-- name: queue_run
-- Stores a run that waits for its session; `stored` is 0 when `limit` runs wait already. No row: the
-- session is somebody else's.
INSERT INTO runs
  (run_id, session_id, owner, idempotency_key, request_hash, request, journal_id, status, alive_at,
   created_at)
SELECT :run_id, :session_id, :owner, :idempotency_key, :request_hash, :request, :run_id, 'queued', now, now
FROM clock
WHERE NOT EXISTS (SELECT 1 FROM sessions WHERE session_id = :session_id AND owner <> :owner)
  AND (SELECT count(*) FROM runs q
       WHERE q.session_id = :session_id AND q.status = 'queued' AND q.run_id <> :run_id) < :limit
ON CONFLICT (run_id) DO UPDATE SET alive_at = excluded.alive_at WHERE runs.owner = excluded.owner;
INSERT OR IGNORE INTO run_events (run_id, seq, data)
SELECT run_id, 0, :created FROM runs WHERE run_id = :run_id AND owner = :owner AND :created <> '';
SELECT EXISTS (SELECT 1 FROM runs WHERE run_id = :run_id AND owner = :owner) AS stored
WHERE NOT EXISTS (SELECT 1 FROM sessions WHERE session_id = :session_id AND owner <> :owner);

-- name: begin_turn
-- Stores a run and its input, takes the session for it, and returns what came after (epoch, seq) as
-- read_items does. `busy` = 1: another run has the session, which is `busy_run_id` then, or has waited
-- for longer, or has not ended yet since its session was taken back; or the input is that of a run that
-- can be gone on with (`open_run_id`); or the session is `full`: it stands behind seq `room_until`; or the
-- run, which `waits` in the database, was deleted, ended or taken over there. Then nothing was written.
INSERT INTO sessions (session_id, owner, epoch, temporary, created_at, updated_at)
SELECT :session_id, :owner, :new_epoch, :temporary, now, now FROM clock
WHERE (:waits = 0 OR EXISTS (
    SELECT 1 FROM runs r
    WHERE r.run_id = :run_id AND r.attempt = :attempt AND r.status = 'queued'))
  AND NOT EXISTS (
    SELECT 1 FROM runs q
    WHERE q.session_id = :session_id AND (q.status = 'queued' AND q.run_id < :run_id
      OR q.status = 'in_progress' AND q.run_id <> :run_id))
ON CONFLICT (session_id) DO NOTHING;
UPDATE sessions
SET seq = seq + json_array_length(:items),
    run_id = :run_id,
    run_attempt = :attempt,
    run_alive_at = (SELECT now FROM clock),
    run_items = 0,
    open_run_id = NULL,
    title = coalesce(title, :title),
    updated_at = (SELECT now FROM clock)
WHERE session_id = :session_id AND owner = :owner AND run_id IS NULL AND seq <= :room_until
  AND (open_run_id IS NOT NULL AND open_hash = :input_hash AND open_epoch = epoch AND open_seq = seq)
    IS NOT TRUE
  AND (:waits = 0 OR EXISTS (
    SELECT 1 FROM runs r
    WHERE r.run_id = :run_id AND r.attempt = :attempt AND r.status = 'queued'))
  AND NOT EXISTS (
    SELECT 1 FROM runs q
    WHERE q.session_id = :session_id AND q.status = 'queued' AND q.run_id < :run_id);
INSERT INTO runs
  (run_id, session_id, owner, idempotency_key, request_hash, request, journal_id, status, base_seq,
   input_count, fork_id, made, approved_tools, alive_at, created_at)
SELECT :run_id, s.session_id, s.owner, :idempotency_key, :request_hash, :request, :run_id, 'in_progress',
       s.seq - json_array_length(:items), json_array_length(:items), :fork_id, s.epoch = :new_epoch,
       s.approved_tools, s.updated_at, s.updated_at
FROM sessions s
WHERE s.session_id = :session_id AND s.owner = :owner AND s.run_id = :run_id AND s.run_attempt = :attempt
ON CONFLICT (run_id) DO UPDATE
SET status = 'in_progress', base_seq = excluded.base_seq, input_count = excluded.input_count,
    fork_id = excluded.fork_id, made = excluded.made, approved_tools = excluded.approved_tools,
    alive_at = excluded.alive_at
WHERE runs.owner = excluded.owner;
INSERT OR IGNORE INTO run_events (run_id, seq, data)
SELECT s.run_id, 0, :created FROM sessions s JOIN runs r ON r.run_id = s.run_id AND r.owner = s.owner
WHERE s.session_id = :session_id AND s.owner = :owner AND s.run_id = :run_id AND s.run_attempt = :attempt
  AND :created <> '';
INSERT INTO items (session_id, seq, data, run_id, created_at)
SELECT s.session_id, s.seq - json_array_length(:items) + j.key + 1, j.value, :run_id, s.updated_at
FROM sessions s, json_each(:items) j
WHERE s.session_id = :session_id AND s.owner = :owner AND s.run_id = :run_id AND s.run_attempt = :attempt;
SELECT s.epoch, s.seq AS head, s.owner IS NULL OR s.owner = :owner AS owned,
       s.run_id IS NOT :run_id OR s.run_attempt <> :attempt AS busy,
       CASE WHEN s.owner = :owner THEN s.run_id END AS busy_run_id,
       s.owner = :owner AND s.seq > :room_until AS full,
       CASE WHEN s.owner = :owner AND s.open_hash = :input_hash
              AND s.open_epoch = s.epoch AND s.open_seq = s.seq
            THEN s.open_run_id END AS open_run_id,
       s.approved_tools, b.base, i.seq, i.data, i.created_at
FROM (SELECT CASE WHEN EXISTS (
        SELECT 1 FROM sessions t JOIN items k ON k.session_id = t.session_id AND k.seq = :seq
        WHERE t.session_id = :session_id AND t.epoch = :epoch AND k.created_at = :tag)
      THEN :seq ELSE 0 END AS base) b
LEFT JOIN sessions s ON s.session_id = :session_id
LEFT JOIN items i
  ON i.session_id = s.session_id AND i.seq > b.base AND s.owner = :owner AND s.run_id = :run_id
    AND s.run_attempt = :attempt
ORDER BY i.seq;

-- name: resume_turn
-- Goes on with the turn of a run that has ended, in another run, which is stored: takes the session and
-- cuts off what the turn has behind its input; what others wrote there stays. No row: the session has gone
-- on, or is another run's; or the run, which `waits` in the database, is not there any more.
UPDATE sessions
SET seq = (
      SELECT r.base_seq + r.input_count + (
        SELECT count(*) FROM items i
        WHERE i.session_id = :session_id AND i.seq > r.base_seq + r.input_count AND i.run_id IS NULL)
      FROM runs r WHERE r.run_id = :open_run_id),
    epoch = :new_epoch, run_id = :run_id, run_attempt = :attempt,
    run_alive_at = (SELECT now FROM clock), run_items = 0, open_run_id = NULL,
    updated_at = (SELECT now FROM clock)
WHERE session_id = :session_id AND owner = :owner AND run_id IS NULL
  AND open_run_id = :open_run_id AND open_epoch = epoch AND open_seq = seq
  AND EXISTS (SELECT 1 FROM runs r WHERE r.run_id = :open_run_id)
  AND (:waits = 0 OR EXISTS (
    SELECT 1 FROM runs r
    WHERE r.run_id = :run_id AND r.attempt = :attempt AND r.status = 'queued'))
  AND NOT EXISTS (
    SELECT 1 FROM runs q
    WHERE q.session_id = :session_id AND q.status = 'queued' AND q.run_id < :run_id);
DELETE FROM items
WHERE session_id = :session_id AND run_id IS NOT NULL
  AND seq > (SELECT r.base_seq + r.input_count FROM runs r WHERE r.run_id = :open_run_id)
  AND EXISTS (SELECT 1 FROM sessions s
              WHERE s.session_id = :session_id AND s.run_id = :run_id AND s.epoch = :new_epoch);
UPDATE items AS i
SET seq = (
  SELECT r.base_seq + r.input_count + (
    SELECT count(*) FROM items k
    WHERE k.session_id = :session_id AND k.seq > r.base_seq + r.input_count AND k.seq <= i.seq)
  FROM runs r WHERE r.run_id = :open_run_id)
WHERE session_id = :session_id
  AND seq > (SELECT r.base_seq + r.input_count FROM runs r WHERE r.run_id = :open_run_id)
  AND EXISTS (SELECT 1 FROM sessions s
              WHERE s.session_id = :session_id AND s.run_id = :run_id AND s.epoch = :new_epoch);
INSERT INTO runs
  (run_id, session_id, owner, idempotency_key, request_hash, request, journal_id, status, base_seq,
   input_count, fork_id, made, approved_tools, checkpoint_run_id, checkpoint_version, alive_at, created_at)
SELECT :run_id, s.session_id, s.owner, :idempotency_key, :request_hash, :request, o.journal_id,
       'in_progress', o.base_seq, o.input_count, o.fork_id, o.made, s.approved_tools,
       CASE WHEN o.checkpoint IS NULL THEN o.checkpoint_run_id ELSE o.run_id END, o.checkpoint_version,
       s.updated_at, s.updated_at
FROM sessions s JOIN runs o ON o.run_id = :open_run_id
WHERE s.session_id = :session_id AND s.run_id = :run_id AND s.epoch = :new_epoch
ON CONFLICT (run_id) DO UPDATE
SET status = 'in_progress', journal_id = excluded.journal_id, base_seq = excluded.base_seq,
    input_count = excluded.input_count, fork_id = excluded.fork_id, made = excluded.made,
    approved_tools = excluded.approved_tools, checkpoint_run_id = excluded.checkpoint_run_id,
    checkpoint_version = excluded.checkpoint_version, alive_at = excluded.alive_at
WHERE runs.owner = excluded.owner;
INSERT OR IGNORE INTO run_events (run_id, seq, data)
SELECT r.run_id, 0, :created FROM runs r
WHERE r.run_id = :run_id AND r.owner = :owner AND r.status = 'in_progress';
SELECT journal_id, base_seq, input_count, fork_id, made, approved_tools, checkpoint_run_id FROM runs
WHERE run_id = :run_id AND owner = :owner AND status = 'in_progress';

-- name: take_back_turn
-- Undoes what admitted a turn, if nothing was stored since, and nobody else wrote behind seq `keep`: removes
-- the input, which lies there; puts back from the fork what was cut off for it, and removes that fork;
-- removes a session that the turn had `made`, and then its run waits again, until it ends. No row: it was
-- not undone.
UPDATE sessions
SET seq = max(:keep, coalesce(
      (SELECT f.seq FROM sessions f WHERE f.session_id = :fork_id AND f.owner = :owner), 0)),
    epoch = :new_epoch,
    title = CASE WHEN :keep > 0 OR :fork_id <> '' THEN title END,
    updated_at = (SELECT now FROM clock)
WHERE session_id = :session_id AND owner = :owner AND run_id = :run_id AND run_attempt = :attempt
  AND epoch = :epoch AND seq = :seq
  AND NOT EXISTS (SELECT 1 FROM items i
                  WHERE i.session_id = :session_id AND i.seq > :keep AND i.run_id IS NULL);
DELETE FROM items
WHERE session_id = :session_id AND seq > :keep
  AND EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id AND s.epoch = :new_epoch);
INSERT INTO items (session_id, seq, data, run_id, created_at)
SELECT :session_id, i.seq, i.data, i.run_id, i.created_at
FROM sessions s JOIN sessions f ON f.session_id = :fork_id AND f.owner = s.owner
JOIN items i ON i.session_id = f.session_id AND i.seq > :keep
WHERE s.session_id = :session_id AND s.epoch = :new_epoch;
DELETE FROM items
WHERE session_id = (SELECT session_id FROM sessions WHERE session_id = :fork_id AND owner = :owner)
  AND EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id AND s.epoch = :new_epoch);
DELETE FROM sessions
WHERE session_id = :fork_id AND owner = :owner
  AND EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id AND s.epoch = :new_epoch);
UPDATE runs SET status = CASE WHEN :made = 1 AND :keep = 0 THEN 'queued' ELSE status END
WHERE run_id = :run_id AND owner = :owner
  AND EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id AND s.epoch = :new_epoch)
RETURNING run_id;
DELETE FROM sessions
WHERE session_id = :session_id AND epoch = :new_epoch AND :made = 1 AND :keep = 0;

-- name: write_run
-- What a run has to store, in one: events from number `first_seq` on; items, of which `first_item` came
-- before; steps of its journal; a sign of life; and with a `status` its end, which gives its session
-- free, `open` to be gone on with where `open` is 1, from its `checkpoint` if it has one. What is stored already is not stored again. No row:
-- the run was lost. A session that is not its own any more is no hindrance to its end.
INSERT INTO items (session_id, seq, data, run_id, created_at)
SELECT s.session_id, s.seq + j.key + 1 + :first_item - s.run_items, j.value, :run_id,
       (SELECT now FROM clock)
FROM sessions s, json_each(:items) j
WHERE s.session_id = :session_id AND s.owner = :owner AND s.run_id = :run_id
  AND s.run_attempt = :attempt AND :first_item + j.key >= s.run_items;
UPDATE sessions
SET seq = seq + max(0, :first_item + json_array_length(:items) - run_items),
    run_items = max(run_items, :first_item + json_array_length(:items)),
    title = coalesce(title, :title),
    run_alive_at = (SELECT now FROM clock),
    updated_at = CASE WHEN json_array_length(:items) > 0 THEN (SELECT now FROM clock)
                      ELSE updated_at END
WHERE session_id = :session_id AND owner = :owner AND run_id = :run_id AND run_attempt = :attempt;
INSERT OR IGNORE INTO run_events (run_id, seq, data)
SELECT r.run_id, :first_seq + j.key, j.value
FROM runs r, json_each(:events) j
WHERE r.run_id = :run_id AND r.owner = :owner AND r.session_id = :session_id AND r.attempt = :attempt
  AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = r.session_id
                  AND s.run_id = r.run_id AND s.run_attempt <> :attempt)
  AND (r.status = 'queued' OR r.status = 'in_progress' AND (
    EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = r.session_id AND s.run_id = r.run_id)
    OR :status <> ''));
INSERT OR IGNORE INTO model_calls (journal_id, key, request_hash, response)
SELECT :journal_id, k.value, json_extract(:model_requests, '$[' || k.key || ']'),
       json_extract(:model_responses, '$[' || k.key || ']')
FROM sessions s JOIN runs r ON r.run_id = s.run_id AND r.journal_id = :journal_id, json_each(:model_keys) k
WHERE s.session_id = :session_id AND s.owner = :owner AND s.run_id = :run_id AND s.run_attempt = :attempt;
INSERT INTO tool_calls (journal_id, key, status, repeatable, call, output, approval_id)
SELECT :journal_id, k.value, json_extract(:tool_states, '$[' || k.key || ']'),
       json_extract(:tool_repeatable, '$[' || k.key || ']') = 'true',
       json_extract(:tool_calls, '$[' || k.key || ']'),
       json_extract(:tool_outputs, '$[' || k.key || ']'),
       nullif(json_extract(:tool_approvals, '$[' || k.key || ']'), '')
FROM sessions s JOIN runs r ON r.run_id = s.run_id AND r.journal_id = :journal_id, json_each(:tool_keys) k
WHERE s.session_id = :session_id AND s.owner = :owner AND s.run_id = :run_id AND s.run_attempt = :attempt
ON CONFLICT (journal_id, key) DO UPDATE
SET status = excluded.status, call = excluded.call, output = excluded.output,
    approval_id = coalesce(excluded.approval_id, approval_id);
INSERT OR IGNORE INTO approvals
  (approval_id, run_id, session_id, owner, journal_id, kind, key, call, status, created_at, expires_at,
   tell_at)
SELECT k.value, :run_id, :session_id, :owner, :journal_id, :approval_kind,
       json_extract(:approval_keys, '$[' || k.key || ']'),
       json_extract(:approval_calls, '$[' || k.key || ']'), 'pending', (SELECT now FROM clock),
       (SELECT now FROM clock) + :approval_expiry, (SELECT now FROM clock)
FROM sessions s, json_each(:approval_ids) k
WHERE s.session_id = :session_id AND s.owner = :owner AND s.run_id = :run_id AND s.run_attempt = :attempt;
UPDATE runs
SET alive_at = (SELECT now FROM clock),
    status = CASE WHEN :status = '' THEN status ELSE :status END,
    request = CASE WHEN :status = 'completed' THEN NULL ELSE request END,
    checkpoint = :checkpoint,
    checkpoint_version = CASE WHEN :checkpoint IS NULL THEN checkpoint_version
                              ELSE :checkpoint_version END,
    finished_at = CASE WHEN :status <> '' THEN (SELECT now FROM clock) END
WHERE run_id = :run_id AND owner = :owner AND session_id = :session_id AND attempt = :attempt
  AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = runs.session_id
                  AND s.run_id = runs.run_id AND s.run_attempt <> :attempt)
  AND (status = 'queued' OR status = 'in_progress' AND (
    EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = runs.session_id AND s.run_id = runs.run_id)
    OR :status <> ''))
RETURNING stop_requested;
UPDATE sessions
SET run_id = NULL, open_run_id = CASE WHEN :open = 1 THEN run_id END, open_hash = :open_hash,
    open_epoch = epoch, open_seq = seq
WHERE session_id = :session_id AND owner = :owner AND run_id = :run_id AND run_attempt = :attempt
  AND :status <> '';

-- name: release_run
-- Gives a run up without ending it, so that another process takes it over at once.
UPDATE sessions SET run_alive_at = (SELECT now FROM clock) - :stale_after
WHERE session_id = :session_id AND owner = :owner AND run_id = :run_id AND run_attempt = :attempt;
UPDATE runs SET alive_at = (SELECT now FROM clock) - :stale_after
WHERE run_id = :run_id AND owner = :owner AND attempt = :attempt AND finished_at IS NULL;

-- name: claim_lost_run
-- Takes over one run whose process gave no sign of life for `stale_after` ms; it is the next attempt's
-- then. Not one of `own`, which the caller works on: it was only busy; nor one that goes on from a
-- checkpoint that only newer releases know. `has_session`: whether it has its session still.
UPDATE sessions
SET run_attempt = (SELECT r.attempt + 1 FROM runs r WHERE r.run_id = sessions.run_id),
    run_alive_at = (SELECT now FROM clock)
WHERE (session_id, run_id) = (
  SELECT r.session_id, r.run_id FROM runs r
  WHERE r.finished_at IS NULL AND r.request IS NOT NULL
    AND r.alive_at <= (SELECT now FROM clock) - :stale_after
    AND r.checkpoint_version <= :checkpoint_version
    AND r.run_id NOT IN (SELECT value FROM json_each(:own))
  ORDER BY r.run_id LIMIT 1);
UPDATE runs SET attempt = attempt + 1, alive_at = (SELECT now FROM clock)
WHERE run_id = (
  SELECT r.run_id FROM runs r
  WHERE r.finished_at IS NULL AND r.request IS NOT NULL
    AND r.alive_at <= (SELECT now FROM clock) - :stale_after
    AND r.checkpoint_version <= :checkpoint_version
    AND r.run_id NOT IN (SELECT value FROM json_each(:own))
    AND NOT EXISTS (  -- time has gone on: its session was not lost yet
      SELECT 1 FROM sessions s
      WHERE s.session_id = r.session_id AND s.run_id = r.run_id AND s.run_attempt <= r.attempt)
  ORDER BY r.run_id LIMIT 1)
RETURNING run_id, session_id, owner, status, idempotency_key, request_hash, request, journal_id, attempt,
          base_seq, input_count, fork_id, made, approved_tools, checkpoint_run_id, created_at,
          EXISTS (SELECT 1 FROM sessions s
                  WHERE s.session_id = runs.session_id AND s.run_id = runs.run_id) AS has_session;

-- name: end_lost_turns
-- Ends what has a session, or waits for it, when only its own process could go on with it and that gave
-- no sign of life for `stale_after` ms; or when it gave none for so long (`given_up_after`, NULL for
-- never) that nobody takes it over. Of one session, or of all when `session_id` is ''.
UPDATE sessions SET run_id = NULL
WHERE run_id IN (
  SELECT r.run_id FROM runs r
  WHERE r.finished_at IS NULL AND (:session_id = '' OR r.session_id = :session_id)
    AND r.alive_at <= (SELECT now FROM clock)
      - CASE WHEN r.request IS NULL THEN :stale_after ELSE :given_up_after END)
  AND session_id IN (SELECT r.session_id FROM runs r WHERE r.finished_at IS NULL);
UPDATE runs SET status = 'failed', finished_at = (SELECT now FROM clock)
WHERE finished_at IS NULL AND (:session_id = '' OR session_id = :session_id)
  AND alive_at <= (SELECT now FROM clock)
    - CASE WHEN request IS NULL THEN :stale_after ELSE :given_up_after END
  AND NOT EXISTS (
    SELECT 1 FROM sessions s WHERE s.session_id = runs.session_id AND s.run_id = runs.run_id);

-- name: read_journal
-- The steps of an owner's run, its own and those of the runs that it goes on from.
SELECT 'model' AS kind, m.key, m.request_hash, m.response, NULL AS status, NULL AS call, NULL AS approval_id
FROM runs r JOIN model_calls m ON m.journal_id = r.run_id
WHERE r.run_id = :journal_id AND r.owner = :owner
UNION ALL
SELECT 'tool', t.key, NULL, t.output, t.status, t.call, t.approval_id
FROM runs r JOIN tool_calls t ON t.journal_id = r.run_id
WHERE r.run_id = :journal_id AND r.owner = :owner;

-- name: get_run
-- One run of an owner.
SELECT run_id, session_id, status, request, request_hash, base_seq, input_count, stop_requested,
       approved_tools, checkpoint_version, created_at, finished_at,
       (SELECT max(e.seq) FROM run_events e WHERE e.run_id = r.run_id) AS last_seq
FROM runs r WHERE run_id = :run_id AND owner = :owner;

-- name: watch_run
-- Says for `watch_for` ms that somebody elsewhere wants to hear of a run. Here everybody hears of all.
UPDATE runs SET followed_until = (SELECT now FROM clock) + :watch_for
WHERE run_id = :run_id AND owner = :owner AND finished_at IS NULL
  AND followed_until < (SELECT now FROM clock);

-- name: find_run_by_key
-- The run that an owner's request with this Idempotency-Key has started.
SELECT run_id, request_hash FROM runs
WHERE owner = :owner AND idempotency_key = :idempotency_key;

-- name: read_run_events
-- The events of an owner's run after a given one, in order.
SELECT e.seq, e.data
FROM runs r JOIN run_events e ON e.run_id = r.run_id AND e.seq > :after
WHERE r.run_id = :run_id AND r.owner = :owner
ORDER BY e.seq;

-- name: forget_old_runs
-- Removes runs that ended more than `older_than` ms ago, with their events and journals; `limit` of them at
-- most. `count` is how many. What they said stays in their sessions. A run is kept while another one of its
-- turn is, or while somebody may decide about one of its calls.
-- The table `chosen` is of the connection; see retention.sql.
CREATE TEMP TABLE IF NOT EXISTS chosen (id TEXT NOT NULL PRIMARY KEY) STRICT, WITHOUT ROWID;
INSERT INTO chosen
SELECT o.run_id FROM runs o
WHERE o.finished_at <= (SELECT now FROM clock) - :older_than
  AND NOT EXISTS (
    SELECT 1 FROM runs r
    WHERE r.session_id = o.session_id AND r.journal_id = o.journal_id
      AND (r.finished_at IS NULL OR r.finished_at > (SELECT now FROM clock) - :older_than))
  AND NOT EXISTS (
    SELECT 1 FROM approvals_now a WHERE a.journal_id = o.journal_id AND a.status = 'pending')
ORDER BY o.finished_at, o.run_id LIMIT :limit;
UPDATE sessions SET open_run_id = NULL WHERE open_run_id IN (SELECT id FROM chosen);
DELETE FROM run_events WHERE run_id IN (SELECT id FROM chosen);
DELETE FROM approvals WHERE run_id IN (SELECT id FROM chosen);
DELETE FROM model_calls WHERE journal_id IN
  (SELECT r.journal_id FROM chosen c JOIN runs r ON r.run_id = c.id);
DELETE FROM tool_calls WHERE journal_id IN
  (SELECT r.journal_id FROM chosen c JOIN runs r ON r.run_id = c.id);
DELETE FROM runs WHERE run_id IN (SELECT id FROM chosen);
DELETE FROM chosen;
SELECT changes() AS count;

-- name: request_stop
-- Asks whichever process has the run to stop it: `cancel` and `interrupt` keep what it said, `rollback`
-- keeps nothing, and can't be asked for once a tool was called that can't be called again. What was asked
-- first stands, but for a rollback, which may be refused yet. No row: it has ended, or can't be rolled back.
UPDATE runs
SET stop_requested = CASE WHEN stop_requested IN ('', 'rollback') THEN :how ELSE stop_requested END
WHERE run_id = :run_id AND owner = :owner AND finished_at IS NULL
  AND (:how <> 'rollback' OR NOT EXISTS (
    SELECT 1 FROM tool_calls t WHERE t.journal_id = runs.journal_id AND NOT t.repeatable))
RETURNING run_id;

-- name: refuse_rollback
-- Says that a run can't be rolled back any more.
UPDATE runs SET stop_requested = ''
WHERE run_id = :run_id AND owner = :owner AND attempt = :attempt AND stop_requested = 'rollback';
