-- Runs and their streamed events. What a run at work writes is fenced: it must still have its session
-- (`sessions.run_id`), or else somebody took that over, or deleted it, and nothing is written.

-- name: queue_run
-- Stores a run that waits for its session. No row: the session is somebody else's.
INSERT INTO runs
  (run_id, session_id, owner, idempotency_key, request_hash, status, alive_at, created_at)
SELECT :run_id, :session_id, :owner, :idempotency_key, :request_hash, 'queued', now, now FROM clock
WHERE NOT EXISTS (SELECT 1 FROM sessions WHERE session_id = :session_id AND owner <> :owner)
RETURNING run_id;
INSERT INTO run_events (run_id, seq, data)
SELECT run_id, 0, :created FROM runs WHERE run_id = :run_id;

-- name: begin_turn
-- Stores a run and its input, takes the session for it, and returns what came after (epoch, seq) as
-- read_items does. `busy` = 1: another run that is alive has the session or has waited for longer,
-- and nothing was written.
INSERT INTO sessions (session_id, owner, epoch, created_at, updated_at)
SELECT :session_id, :owner, :new_epoch, now, now FROM clock WHERE true
ON CONFLICT (session_id) DO NOTHING;
UPDATE sessions
SET seq = seq + json_array_length(:items),
    run_id = :run_id,
    run_alive_at = (SELECT now FROM clock),
    run_items = 0,
    title = coalesce(title, :title),
    updated_at = (SELECT now FROM clock)
WHERE session_id = :session_id AND owner = :owner
  AND (run_id IS NULL OR run_alive_at <= (SELECT now FROM clock) - :stale_after)
  AND NOT EXISTS (
    SELECT 1 FROM runs q
    WHERE q.session_id = :session_id AND q.status = 'queued' AND q.run_id < :run_id
      AND q.alive_at > (SELECT now FROM clock) - :stale_after);
INSERT INTO runs
  (run_id, session_id, owner, idempotency_key, request_hash, status, alive_at, created_at)
SELECT :run_id, s.session_id, s.owner, :idempotency_key, :request_hash, 'in_progress',
       s.updated_at, s.updated_at
FROM sessions s WHERE s.session_id = :session_id AND s.run_id = :run_id
ON CONFLICT (run_id) DO UPDATE SET status = 'in_progress';
INSERT OR IGNORE INTO run_events (run_id, seq, data)
SELECT s.run_id, 0, :created FROM sessions s
WHERE s.session_id = :session_id AND s.run_id = :run_id;
INSERT INTO items (session_id, seq, data, run_id, created_at)
SELECT s.session_id, s.seq - json_array_length(:items) + j.key + 1, j.value, :run_id, s.updated_at
FROM sessions s, json_each(:items) j
WHERE s.session_id = :session_id AND s.run_id = :run_id;
SELECT s.epoch, s.seq AS head, s.owner = :owner AS owned, s.run_id IS NOT :run_id AS busy,
       b.base, i.seq, i.data, i.created_at
FROM sessions s
JOIN (SELECT CASE WHEN EXISTS (
        SELECT 1 FROM sessions t JOIN items k ON k.session_id = t.session_id AND k.seq = :seq
        WHERE t.session_id = :session_id AND t.epoch = :epoch AND k.created_at = :tag)
      THEN :seq ELSE 0 END AS base) b
LEFT JOIN items i
  ON i.session_id = s.session_id AND i.seq > b.base AND s.owner = :owner AND s.run_id = :run_id
WHERE s.session_id = :session_id
ORDER BY i.seq;

-- name: take_back_turn
-- Undoes what admitted a turn, if nothing was stored since: removes the input, which lies after seq
-- `keep`; puts back from the fork what was cut off for it, and removes that fork; removes a session
-- that the turn had `made`.
DELETE FROM items
WHERE session_id = :session_id AND seq > :keep
  AND EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id AND s.owner = :owner
              AND s.run_id = :run_id AND s.epoch = :epoch AND s.seq = :seq);
UPDATE sessions
SET seq = max(:keep, coalesce((SELECT f.seq FROM sessions f WHERE f.session_id = :fork_id), 0)),
    epoch = :new_epoch,
    title = CASE WHEN :keep > 0 OR :fork_id <> '' THEN title END,
    updated_at = (SELECT now FROM clock)
WHERE session_id = :session_id AND owner = :owner AND run_id = :run_id
  AND epoch = :epoch AND seq = :seq;
INSERT INTO items (session_id, seq, data, run_id, created_at)
SELECT :session_id, i.seq, i.data, i.run_id, i.created_at
FROM items i JOIN sessions s ON s.session_id = :session_id AND s.epoch = :new_epoch
WHERE i.session_id = :fork_id AND i.seq > :keep;
DELETE FROM items
WHERE session_id = :fork_id
  AND EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id AND s.epoch = :new_epoch);
DELETE FROM sessions
WHERE session_id = :fork_id
  AND EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = :session_id AND s.epoch = :new_epoch);
DELETE FROM sessions
WHERE session_id = :session_id AND epoch = :new_epoch AND seq = 0 AND :made = 1;

-- name: write_run
-- What a run has to store, in one: events from number `first_seq` on; items, of which `first_item` came
-- before; a sign of life; and with a `status` its end, which gives its session free. What is stored
-- already is not stored again. No row: the run was lost. A session that was taken back whole is no
-- hindrance to the end.
INSERT INTO items (session_id, seq, data, run_id, created_at)
SELECT s.session_id, s.seq + j.key + 1 + :first_item - s.run_items, j.value, :run_id,
       (SELECT now FROM clock)
FROM sessions s, json_each(:items) j
WHERE s.session_id = :session_id AND s.owner = :owner AND s.run_id = :run_id
  AND :first_item + j.key >= s.run_items;
UPDATE sessions
SET seq = seq + max(0, :first_item + json_array_length(:items) - run_items),
    run_items = max(run_items, :first_item + json_array_length(:items)),
    run_alive_at = (SELECT now FROM clock),
    updated_at = CASE WHEN json_array_length(:items) > 0 THEN (SELECT now FROM clock)
                      ELSE updated_at END
WHERE session_id = :session_id AND owner = :owner AND run_id = :run_id;
INSERT OR IGNORE INTO run_events (run_id, seq, data)
SELECT r.run_id, :first_seq + j.key, j.value
FROM runs r, json_each(:events) j
WHERE r.run_id = :run_id
  AND (r.status = 'queued' OR r.status = 'in_progress' AND (
    EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = r.session_id AND s.run_id = r.run_id)
    OR :status <> '' AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = r.session_id)));
UPDATE runs
SET alive_at = (SELECT now FROM clock),
    status = CASE WHEN :status = '' THEN status ELSE :status END,
    finished_at = CASE WHEN :status <> '' THEN (SELECT now FROM clock) END
WHERE run_id = :run_id
  AND (status = 'queued' OR status = 'in_progress' AND (
    EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = runs.session_id AND s.run_id = runs.run_id)
    OR :status <> ''
    AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = runs.session_id)))
RETURNING cancel_requested;
UPDATE sessions SET run_id = NULL
WHERE session_id = :session_id AND run_id = :run_id AND :status <> '';

-- name: end_lost_run
-- Ends a run whose process gave no sign of life for `stale_after` ms, with a last event.
UPDATE runs SET status = 'failed', finished_at = (SELECT now FROM clock)
WHERE run_id = :run_id AND status IN ('queued', 'in_progress')
  AND alive_at <= (SELECT now FROM clock) - :stale_after;
INSERT OR IGNORE INTO run_events (run_id, seq, data)
SELECT :run_id, :seq, :event WHERE changes() = 1;  -- of the update above
UPDATE sessions SET run_id = NULL
WHERE session_id = (SELECT r.session_id FROM runs r WHERE r.run_id = :run_id AND r.status = 'failed')
  AND run_id = :run_id;

-- name: get_run
-- One run of an owner; `lost` = 1 when its process gave no sign of life for `stale_after` ms.
SELECT run_id, session_id, status, created_at, finished_at,
       status IN ('queued', 'in_progress')
         AND alive_at <= (SELECT now FROM clock) - :stale_after AS lost,
       (SELECT max(e.seq) FROM run_events e WHERE e.run_id = r.run_id) AS last_seq
FROM runs r WHERE run_id = :run_id AND owner = :owner;

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
-- Removes runs that ended more than `older_than` ms ago, with their events; `limit` of them at most.
-- `count` is how many. What they said stays in their sessions.
DELETE FROM run_events WHERE run_id IN (
  SELECT run_id FROM runs WHERE finished_at <= (SELECT now FROM clock) - :older_than
  ORDER BY finished_at, run_id LIMIT :limit);
DELETE FROM runs WHERE run_id IN (
  SELECT run_id FROM runs WHERE finished_at <= (SELECT now FROM clock) - :older_than
  ORDER BY finished_at, run_id LIMIT :limit);
SELECT changes() AS count;

-- name: request_cancel
-- Asks whichever process has the run to stop it.
UPDATE runs SET cancel_requested = 1
WHERE run_id = :run_id AND owner = :owner AND status IN ('queued', 'in_progress')
RETURNING run_id;
