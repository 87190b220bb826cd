-- What is said can be sealed.

-- The key of an owner's contents, wrapped by a master key that is not in here; master_id tells which. It is made
-- when something of the owner is stored first. shared: sessions sealed with it were given to somebody else, so it
-- must outlive its owner, who is NULL then.
CREATE TABLE threadkeep.owner_keys (
  key_id text PRIMARY KEY,
  owner text UNIQUE,
  wrapped text NOT NULL,
  master_id text NOT NULL,
  shared bigint NOT NULL DEFAULT 0,
  created_at timestamptz(3) NOT NULL
);
