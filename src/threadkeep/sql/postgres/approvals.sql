-- What a person has to decide before a run goes on; see sessions.sql.

-- name: list_approvals
-- An owner's approvals from behind a given one, in the order they came; with a `status` those alone, with a
-- `session_id` those of that session.
SELECT approval_id, run_id, session_id, kind, call, status, always, reason, created_at, decided_at,
       expires_at, response_id
FROM threadkeep.approvals_now
WHERE owner = :owner AND approval_id > :after AND (:status::text = '' OR status = :status::text)
  AND (:session_id::text = '' OR session_id = :session_id::text)
ORDER BY owner, approval_id
LIMIT :limit;

-- name: get_approval
-- One approval of an owner. checkpoint_version: see runs.
SELECT a.approval_id, a.run_id, a.session_id, a.kind, a.call, a.status, a.always, a.reason, a.created_at,
       a.decided_at, a.expires_at, a.response_id, r.checkpoint_version
FROM threadkeep.approvals_now a JOIN threadkeep.runs r ON r.run_id = a.run_id
WHERE a.approval_id = :approval_id AND a.owner = :owner;

-- name: decide_approvals
-- Decides approvals of one run, all or none, and adds `tools` to what its session asks for no more. No row:
-- one of them can't be decided any more. Their rows are locked first, so that of two who decide at once one
-- finds them decided.
WITH waiting AS MATERIALIZED (
  SELECT approval_id FROM threadkeep.approvals
  WHERE approval_id = ANY (:approval_ids::text[]) AND owner = :owner AND run_id = :run_id
    AND status = 'pending' AND expires_at > clock_timestamp()
  ORDER BY approval_id FOR UPDATE),
session AS (
  UPDATE threadkeep.sessions s
  SET approved_tools = (
    SELECT coalesce(jsonb_agg(DISTINCT tool), '[]')::text
    FROM jsonb_array_elements(s.approved_tools::jsonb || to_jsonb(:tools::text[])) AS all_of (tool))
  WHERE s.owner = :owner AND s.open_run_id = :run_id
    AND s.open_epoch = s.epoch AND s.open_seq = s.seq
    AND cardinality(:approval_ids::text[]) = (SELECT count(*) FROM waiting)
  RETURNING s.session_id),
decided AS (
  UPDATE threadkeep.approvals a
  SET status = new.status, reason = nullif(new.reason, ''),
      always = (cardinality(:tools::text[]) > 0)::int, decided_at = clock_timestamp()
  FROM session, unnest(:approval_ids::text[], :statuses::text[], :reasons::text[])
    AS new (approval_id, status, reason)
  WHERE a.approval_id = new.approval_id
  RETURNING a.approval_id)
SELECT approval_id FROM decided
UNION ALL
SELECT approval_id FROM (
  SELECT a.approval_id, a.status FROM threadkeep.approvals a
  WHERE :retried::boolean AND a.approval_id = ANY (:approval_ids::text[]) AND a.owner = :owner
  OFFSET 0 FOR UPDATE) done
WHERE status = (:statuses::text[])[array_position(:approval_ids::text[], approval_id)]
  AND NOT EXISTS (SELECT FROM decided);

-- name: count_pending_approvals
-- How many approvals of an owner's run nobody has decided yet.
SELECT count(*) AS count FROM threadkeep.approvals
WHERE run_id = :run_id AND owner = :owner AND status = 'pending';

-- name: read_decisions
-- What was decided about the calls of an owner's journal, by their keys, oldest first.
SELECT approval_id, run_id, kind, key, status, reason FROM threadkeep.approvals
WHERE journal_id = :journal_id AND owner = :owner AND status <> 'pending'
ORDER BY approval_id;

-- name: read_checkpoint
-- Where an owner's run has stopped.
SELECT checkpoint FROM threadkeep.runs
WHERE run_id = :run_id AND owner = :owner AND checkpoint IS NOT NULL;

-- name: list_decided_runs
-- Runs that wait for nobody any more and were not gone on with for `stale_after` ms, but for those that only
-- newer releases can go on with. Each is gone on with once (runs.continuation_key), whatever became of that.
SELECT r.run_id, r.session_id, r.owner
FROM threadkeep.sessions s
JOIN threadkeep.runs r ON r.run_id = s.open_run_id AND r.status = 'incomplete'
WHERE s.open_run_id IS NOT NULL AND s.run_id IS NULL
  AND s.open_epoch = s.epoch AND s.open_seq = s.seq
  AND r.checkpoint_version <= :checkpoint_version::bigint
  AND EXISTS (SELECT 1 FROM threadkeep.approvals a WHERE a.run_id = r.run_id)
  AND NOT EXISTS (
    SELECT 1 FROM threadkeep.runs c WHERE c.owner = r.owner AND c.idempotency_key = chr(1) || r.run_id)
  AND NOT EXISTS (
    SELECT 1 FROM threadkeep.approvals a
    WHERE a.run_id = r.run_id AND (
      a.status = 'pending'
      OR a.decided_at > clock_timestamp() - :stale_after::bigint * interval '1 ms'))
LIMIT :limit;

-- name: close_approvals
-- Cancels a run that waits for somebody to decide: nobody can any more. No row: it does not wait.
WITH session AS (
  UPDATE threadkeep.sessions s SET open_run_id = NULL
  WHERE s.owner = :owner AND s.open_run_id = :run_id
    AND s.open_epoch = s.epoch AND s.open_seq = s.seq
    AND EXISTS (SELECT 1 FROM threadkeep.approvals a WHERE a.run_id = :run_id AND a.status = 'pending')
  RETURNING s.session_id),
run AS (
  UPDATE threadkeep.runs r SET status = 'cancelled' FROM session WHERE r.run_id = :run_id
  RETURNING r.run_id)
SELECT run_id FROM run
UNION ALL
SELECT run_id FROM threadkeep.runs
WHERE :retried::boolean AND run_id = :run_id AND owner = :owner AND status = 'cancelled'
  AND NOT EXISTS (SELECT FROM run);

-- name: claim_approvals_to_tell
-- Claims approvals that the webhook is to be called for now, `limit` of them at most: nobody else does before
-- `lease` ms are over. Those that are not pending any more are done with. tell_tries: see record_telling.
-- Those that others are just claiming are passed over. When the answer is lost they come again, as those of
-- a process that has died.
WITH due AS MATERIALIZED (
  SELECT approval_id FROM threadkeep.approvals WHERE tell_at <= clock_timestamp()
  ORDER BY tell_at LIMIT :limit FOR UPDATE SKIP LOCKED)
UPDATE threadkeep.approvals a
SET tell_at = CASE WHEN n.status = 'pending'
                   THEN clock_timestamp() + :lease::bigint * interval '1 ms' END,
    tell_tries = a.tell_tries + 1
FROM due JOIN threadkeep.approvals_now n ON n.approval_id = due.approval_id
WHERE a.approval_id = due.approval_id
RETURNING a.approval_id, a.owner, a.tell_tries, a.tell_at IS NOT NULL AS is_pending;

-- name: record_telling
-- An approval that was claimed is done with, or the webhook is called again in `again_after` ms; the latter
-- is for who has claimed it last to say, which `tell_tries` tells.
UPDATE threadkeep.approvals
SET tell_at = clock_timestamp() + :again_after::bigint * interval '1 ms'
WHERE approval_id = :approval_id AND owner = :owner AND tell_at IS NOT NULL
  AND (:again_after::bigint IS NULL OR tell_tries = :tell_tries);
