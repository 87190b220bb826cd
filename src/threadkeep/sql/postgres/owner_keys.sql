-- The keys that contents are sealed with; see sealing.py.

-- name: get_owner_key
-- The key of an owner.
SELECT key_id, wrapped, master_id FROM threadkeep.owner_keys WHERE owner = :owner;

-- name: get_key
-- A key by its id, whoever's.
SELECT key_id, wrapped, master_id FROM threadkeep.owner_keys WHERE key_id = :key_id;

-- name: add_owner_key
-- Gives an owner a key, who has none.
INSERT INTO threadkeep.owner_keys (key_id, owner, wrapped, master_id, created_at)
VALUES (:key_id, :owner, :wrapped, :master_id, clock_timestamp())
ON CONFLICT DO NOTHING;

-- name: list_keys
-- The keys that another master than this one has wrapped, from behind a given one.
SELECT key_id, wrapped, master_id FROM threadkeep.owner_keys
WHERE master_id <> :master_id AND key_id > :after
ORDER BY key_id LIMIT :limit;

-- name: rewrap_key
-- Wraps a key by another master. No row: that was done already.
UPDATE threadkeep.owner_keys SET wrapped = :wrapped, master_id = :master_id
WHERE key_id = :key_id AND master_id = :old_master_id
RETURNING key_id;

-- name: count_keys
-- How many keys there are, and how many of them these masters have wrapped.
SELECT count(*) AS count,
       count(*) FILTER (WHERE master_id = ANY (:master_ids::text[])) AS known
FROM threadkeep.owner_keys;

-- name: share_owner_key
-- Says that what an owner's key has sealed is given to somebody else.
UPDATE threadkeep.owner_keys SET shared = 1 WHERE owner = :owner;

-- name: destroy_owner_key
-- Destroys an owner's key, unless others need it. No row: it is not there, or they do.
DELETE FROM threadkeep.owner_keys WHERE owner = :owner AND shared = 0 RETURNING key_id;

-- name: leave_owner_key
-- Takes an owner's key away from them, which others need.
UPDATE threadkeep.owner_keys SET owner = NULL WHERE owner = :owner AND shared = 1;
