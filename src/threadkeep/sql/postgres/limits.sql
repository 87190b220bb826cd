-- Limits of an owner.

-- name: take_request
-- Counts a request of an owner, if there is one left: each comes back `share` ms after the one before it, a
-- minute's worth of them at most. `wait_ms` is 0, or else how long it takes until there is one: then nothing
-- was counted. Made again, it may count twice.
INSERT INTO threadkeep.request_rates AS r (owner, full_at, wait_ms)
VALUES (:owner, (extract(epoch FROM clock_timestamp()) * 1000)::bigint + :share::bigint, 0)
ON CONFLICT (owner) DO UPDATE
SET full_at = CASE WHEN r.full_at - excluded.full_at + 2 * :share::bigint <= 60000
                   THEN greatest(r.full_at + :share::bigint, excluded.full_at) ELSE r.full_at END,
    wait_ms = greatest(0, r.full_at - excluded.full_at + 2 * :share::bigint - 60000)
RETURNING wait_ms;
