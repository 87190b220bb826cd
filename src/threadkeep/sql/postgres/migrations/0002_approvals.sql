-- What a person decides outlives the process that asked.

-- approved_tools: a JSON list of 'agent/tool', what needs no approval any more in this session. A run keeps
-- what held when it began, so that it is the same when it is made again.
ALTER TABLE threadkeep.sessions ADD COLUMN approved_tools text NOT NULL DEFAULT '[]';
ALTER TABLE threadkeep.runs ADD COLUMN approved_tools text NOT NULL DEFAULT '[]';

-- checkpoint is where a run has stopped to wait for approvals: the SDK's RunState, and what it takes to go
-- on from there. checkpoint_run_id is the run whose checkpoint this one goes on from, '' when it began by
-- itself. checkpoint_version is that of the RunState: a release that does not know it must not touch it.
ALTER TABLE threadkeep.runs ADD COLUMN checkpoint text;
ALTER TABLE threadkeep.runs ADD COLUMN checkpoint_run_id text NOT NULL DEFAULT '';
ALTER TABLE threadkeep.runs ADD COLUMN checkpoint_version bigint NOT NULL DEFAULT 0;

-- in_doubt: a call that may have happened; needs_approval: one that was not made. tell_at: when the webhook
-- is to be called for it, NULL when that is done; tell_tries: how often it was tried.
ALTER TABLE threadkeep.approvals ADD COLUMN kind text NOT NULL DEFAULT 'in_doubt'
  CHECK (kind IN ('in_doubt', 'needs_approval'));
ALTER TABLE threadkeep.approvals ADD COLUMN always bigint NOT NULL DEFAULT 0;
ALTER TABLE threadkeep.approvals ADD COLUMN expires_at timestamptz(3) NOT NULL DEFAULT 'epoch';
ALTER TABLE threadkeep.approvals ADD COLUMN tell_at timestamptz(3);
ALTER TABLE threadkeep.approvals ADD COLUMN tell_tries bigint NOT NULL DEFAULT 0;
UPDATE threadkeep.approvals SET expires_at = created_at + interval '7 days';

CREATE INDEX approvals_to_tell ON threadkeep.approvals (tell_at) WHERE tell_at IS NOT NULL;
CREATE INDEX approvals_by_journal ON threadkeep.approvals (journal_id);

-- Approvals as they are now. closed: the session has gone on without it, or the run was cancelled.
-- response_id is the run that goes on with the turn (runs.continuation_key).
CREATE VIEW threadkeep.approvals_now AS
SELECT a.approval_id, a.run_id, a.session_id, a.owner, a.journal_id, a.kind, a.key, a.call,
       CASE
         WHEN a.status <> 'pending' THEN a.status
         WHEN NOT EXISTS (
           SELECT 1 FROM threadkeep.sessions s
           WHERE s.session_id = a.session_id AND s.open_run_id = a.run_id
             AND s.open_epoch = s.epoch AND s.open_seq = s.seq) THEN 'closed'
         WHEN a.expires_at <= clock_timestamp() THEN 'expired'
         ELSE 'pending'
       END AS status,
       a.always, a.reason,
       (extract(epoch FROM a.created_at) * 1000)::bigint AS created_at,
       (extract(epoch FROM a.decided_at) * 1000)::bigint AS decided_at,
       (extract(epoch FROM a.expires_at) * 1000)::bigint AS expires_at,
       a.tell_at, a.tell_tries,
       (SELECT r.run_id FROM threadkeep.runs r
        WHERE r.owner = a.owner AND r.idempotency_key = chr(1) || a.run_id) AS response_id
FROM threadkeep.approvals a;
