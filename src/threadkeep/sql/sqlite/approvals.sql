-- What a person has to decide before a run goes on.

-- name: list_approvals
-- An owner's approvals from behind a given one, in the order they came; with a `status` those alone, with a
-- `session_id` those of that session.
SELECT approval_id, run_id, session_id, kind, call, status, always, reason, created_at, decided_at,
       expires_at, response_id
FROM approvals_now
WHERE owner = :owner AND approval_id > :after AND (:status = '' OR status = :status)
  AND (:session_id = '' OR session_id = :session_id)
ORDER BY owner, approval_id
LIMIT :limit;

-- name: get_approval
-- One approval of an owner. checkpoint_version: see runs.
SELECT a.approval_id, a.run_id, a.session_id, a.kind, a.call, a.status, a.always, a.reason, a.created_at,
       a.decided_at, a.expires_at, a.response_id, r.checkpoint_version
FROM approvals_now a JOIN runs r ON r.run_id = a.run_id
WHERE a.approval_id = :approval_id AND a.owner = :owner;

-- name: decide_approvals
-- Decides approvals of one run, all or none, and adds `tools` to what its session asks for no more. No row:
-- one of them can't be decided any more.
UPDATE sessions
SET approved_tools = (
  SELECT json_group_array(value) FROM (
    SELECT value FROM json_each(sessions.approved_tools) UNION SELECT value FROM json_each(:tools)))
WHERE owner = :owner AND open_run_id = :run_id
  AND json_array_length(:approval_ids) = (
    SELECT count(*) FROM approvals_now a JOIN json_each(:approval_ids) k ON k.value = a.approval_id
    WHERE a.owner = :owner AND a.run_id = :run_id AND a.status = 'pending');
UPDATE approvals
SET status = (SELECT json_extract(:statuses, '$[' || k.key || ']') FROM json_each(:approval_ids) k
              WHERE k.value = approval_id),
    reason = nullif((SELECT json_extract(:reasons, '$[' || k.key || ']') FROM json_each(:approval_ids) k
                     WHERE k.value = approval_id), ''),
    always = json_array_length(:tools) > 0, decided_at = (SELECT now FROM clock)
WHERE changes() = 1 AND approval_id IN (SELECT value FROM json_each(:approval_ids))
RETURNING approval_id;

-- name: count_pending_approvals
-- How many approvals of an owner's run nobody has decided yet.
SELECT count(*) AS count FROM approvals
WHERE run_id = :run_id AND owner = :owner AND status = 'pending';

-- name: read_decisions
-- What was decided about the calls of an owner's journal, by their keys, oldest first.
SELECT approval_id, run_id, kind, key, status, reason FROM approvals
WHERE journal_id = :journal_id AND owner = :owner AND status <> 'pending'
ORDER BY approval_id;

-- name: read_checkpoint
-- Where an owner's run has stopped.
SELECT checkpoint FROM runs
WHERE run_id = :run_id AND owner = :owner AND checkpoint IS NOT NULL;

-- name: list_decided_runs
-- Runs that wait for nobody any more and were not gone on with for `stale_after` ms, but for those that only
-- newer releases can go on with. Each is gone on with once (runs.continuation_key), whatever became of that.
SELECT r.run_id, r.session_id, r.owner
FROM sessions s
JOIN runs r ON r.run_id = s.open_run_id AND r.status = 'incomplete'
WHERE s.open_run_id IS NOT NULL AND s.run_id IS NULL
  AND s.open_epoch = s.epoch AND s.open_seq = s.seq
  AND r.checkpoint_version <= :checkpoint_version
  AND EXISTS (SELECT 1 FROM approvals a WHERE a.run_id = r.run_id)
  AND NOT EXISTS (
    SELECT 1 FROM runs c WHERE c.owner = r.owner AND c.idempotency_key = char(1) || r.run_id)
  AND NOT EXISTS (
    SELECT 1 FROM approvals a
    WHERE a.run_id = r.run_id AND (
      a.status = 'pending' OR a.decided_at > (SELECT now FROM clock) - :stale_after))
LIMIT :limit;

-- name: close_approvals
-- Cancels a run that waits for somebody to decide: nobody can any more. No row: it does not wait.
UPDATE sessions SET open_run_id = NULL
WHERE owner = :owner AND open_run_id = :run_id AND open_epoch = epoch AND open_seq = seq
  AND EXISTS (SELECT 1 FROM approvals a WHERE a.run_id = :run_id AND a.status = 'pending');
UPDATE runs SET status = 'cancelled' WHERE changes() = 1 AND run_id = :run_id
RETURNING run_id;

-- name: claim_approvals_to_tell
-- Claims approvals that the webhook is to be called for now, `limit` of them at most: nobody else does before
-- `lease` ms are over. Those that are not pending any more are done with. tell_tries: see record_telling.
UPDATE approvals
SET tell_at = CASE WHEN 'pending' = (
                     SELECT n.status FROM approvals_now n WHERE n.approval_id = approvals.approval_id)
                   THEN (SELECT now FROM clock) + :lease END,
    tell_tries = tell_tries + 1
WHERE approval_id IN (
  SELECT approval_id FROM approvals WHERE tell_at <= (SELECT now FROM clock)
  ORDER BY tell_at LIMIT :limit)
RETURNING approval_id, owner, tell_tries, tell_at IS NOT NULL AS is_pending;

-- name: record_telling
-- An approval that was claimed is done with, or the webhook is called again in `again_after` ms; the latter
-- is for who has claimed it last to say, which `tell_tries` tells.
UPDATE approvals SET tell_at = (SELECT now FROM clock) + :again_after
WHERE approval_id = :approval_id AND owner = :owner AND tell_at IS NOT NULL
  AND (:again_after IS NULL OR tell_tries = :tell_tries);
