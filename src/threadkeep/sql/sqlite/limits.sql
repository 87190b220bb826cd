-- Limits of an owner.

-- name: take_request
-- Counts a request of an owner, if there is one left: each comes back `share` ms after the one before it, a
-- minute's worth of them at most. `wait_ms` is 0, or else how long it takes until there is one: then nothing
-- was counted. Made again, it may count twice.
INSERT INTO request_rates AS r (owner, full_at, wait_ms)
SELECT :owner, now + :share, 0 FROM clock WHERE true
ON CONFLICT (owner) DO UPDATE
SET full_at = CASE WHEN r.full_at - excluded.full_at + 2 * :share <= 60000
                   THEN max(r.full_at + :share, excluded.full_at) ELSE r.full_at END,
    wait_ms = max(0, r.full_at - excluded.full_at + 2 * :share - 60000)
RETURNING wait_ms;
