-- What a person has to decide before a run goes on.

-- name: list_approvals
-- An owner's approvals from behind a given one, in the order they came; with a `status` those alone.
-- `response_id` is the run that goes on with the turn (runs.continuation_key).
SELECT approval_id, run_id, session_id, call, status, reason, created_at, decided_at,
       (SELECT r.run_id FROM runs r
        WHERE r.owner = a.owner AND r.idempotency_key = char(1) || a.run_id) AS response_id
FROM approvals a
WHERE owner = :owner AND approval_id > :after AND (:status = '' OR status = :status)
ORDER BY owner, approval_id
LIMIT :limit;

-- name: get_approval
-- One approval of an owner; `open`: whether its session still waits for it.
SELECT a.approval_id, a.run_id, a.session_id, a.call, a.status, a.reason, a.created_at, a.decided_at,
       EXISTS (SELECT 1 FROM sessions s
               WHERE s.session_id = a.session_id AND s.open_run_id = a.run_id
                 AND s.open_epoch = s.epoch AND s.open_seq = s.seq) AS open,
       (SELECT r.run_id FROM runs r
        WHERE r.owner = a.owner AND r.idempotency_key = char(1) || a.run_id) AS response_id
FROM approvals a
WHERE a.approval_id = :approval_id AND a.owner = :owner;

-- name: decide_approval
-- Decides an approval that is pending, of a session that still waits for it. No row: it is not.
UPDATE approvals
SET status = :status, reason = :reason, decided_at = (SELECT now FROM clock)
WHERE approval_id = :approval_id AND owner = :owner AND status = 'pending'
  AND EXISTS (SELECT 1 FROM sessions s
              WHERE s.session_id = approvals.session_id AND s.open_run_id = approvals.run_id
                AND s.open_epoch = s.epoch AND s.open_seq = s.seq)
RETURNING run_id;

-- name: count_pending_approvals
-- How many approvals of a run nobody has decided yet.
SELECT count(*) AS count FROM approvals
WHERE run_id = :run_id AND status = 'pending';

-- name: read_decisions
-- What was decided about the tool calls of a journal, by their keys, oldest first.
SELECT approval_id, key, status FROM approvals
WHERE journal_id = :journal_id AND status <> 'pending'
ORDER BY approval_id;

-- name: list_decided_runs
-- Runs that wait for nobody any more and were not gone on with for `stale_after` ms.
SELECT r.run_id, r.session_id, r.owner
FROM sessions s
JOIN runs r ON r.run_id = s.open_run_id AND r.status = 'incomplete'
WHERE s.open_run_id IS NOT NULL AND s.run_id IS NULL
  AND s.open_epoch = s.epoch AND s.open_seq = s.seq
  AND EXISTS (SELECT 1 FROM approvals a WHERE a.run_id = r.run_id)
  AND NOT EXISTS (
    SELECT 1 FROM approvals a
    WHERE a.run_id = r.run_id AND (
      a.status = 'pending' OR a.decided_at > (SELECT now FROM clock) - :stale_after))
LIMIT :limit;
