-- What is said can be sealed.

-- The key of an owner's contents, wrapped by a master key that is not in here; master_id tells which. It is made
-- when something of the owner is stored first. shared: sessions sealed with it were given to somebody else, so it
-- must outlive its owner, who is NULL then.
CREATE TABLE owner_keys (
  key_id TEXT NOT NULL PRIMARY KEY,
  owner TEXT UNIQUE,
  wrapped TEXT NOT NULL,
  master_id TEXT NOT NULL,
  shared INTEGER NOT NULL DEFAULT 0,
  created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
