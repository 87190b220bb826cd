-- What a person decides outlives the process that asked.

-- approved_tools: a JSON list of 'agent/tool', what needs no approval any more in this session. A run keeps
-- what held when it began, so that it is the same when it is made again.
ALTER TABLE sessions ADD COLUMN approved_tools TEXT NOT NULL DEFAULT '[]';
ALTER TABLE runs ADD COLUMN approved_tools TEXT NOT NULL DEFAULT '[]';

-- checkpoint is where a run has stopped to wait for approvals: the SDK's RunState, and what it takes to go
-- on from there. checkpoint_run_id is the run whose checkpoint this one goes on from, '' when it began by
-- itself. checkpoint_version is that of the RunState: a release that does not know it must not touch it.
ALTER TABLE runs ADD COLUMN checkpoint TEXT;
ALTER TABLE runs ADD COLUMN checkpoint_run_id TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN checkpoint_version INTEGER NOT NULL DEFAULT 0;

-- in_doubt: a call that may have happened; needs_approval: one that was not made. tell_at: when the webhook
-- is to be called for it, NULL when that is done; tell_tries: how often it was tried.
ALTER TABLE approvals ADD COLUMN kind TEXT NOT NULL DEFAULT 'in_doubt'
  CHECK (kind IN ('in_doubt', 'needs_approval'));
ALTER TABLE approvals ADD COLUMN always INTEGER NOT NULL DEFAULT 0;
ALTER TABLE approvals ADD COLUMN expires_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE approvals ADD COLUMN tell_at INTEGER;
ALTER TABLE approvals ADD COLUMN tell_tries INTEGER NOT NULL DEFAULT 0;
UPDATE approvals SET expires_at = created_at + 7 * 24 * 3600 * 1000;

CREATE INDEX approvals_to_tell ON approvals (tell_at) WHERE tell_at IS NOT NULL;
CREATE INDEX approvals_by_journal ON approvals (journal_id);

-- Approvals as they are now. closed: the session has gone on without it, or the run was cancelled.
-- response_id is the run that goes on with the turn (runs.continuation_key).
CREATE VIEW approvals_now AS
SELECT a.approval_id, a.run_id, a.session_id, a.owner, a.journal_id, a.kind, a.key, a.call,
       CASE
         WHEN a.status <> 'pending' THEN a.status
         WHEN NOT EXISTS (
           SELECT 1 FROM sessions s
           WHERE s.session_id = a.session_id AND s.open_run_id = a.run_id
             AND s.open_epoch = s.epoch AND s.open_seq = s.seq) THEN 'closed'
         WHEN a.expires_at <= (SELECT now FROM clock) THEN 'expired'
         ELSE 'pending'
       END AS status,
       a.always, a.reason, a.created_at, a.decided_at, a.expires_at, a.tell_at, a.tell_tries,
       (SELECT r.run_id FROM runs r
        WHERE r.owner = a.owner AND r.idempotency_key = char(1) || a.run_id) AS response_id
FROM approvals a;
