-- How fast an owner may send requests, where that is limited: full_at is when all of a minute can be had
-- again (ms since 1970), wait_ms what the last one was told to wait, 0 when it was taken.
CREATE TABLE request_rates (
  owner TEXT NOT NULL PRIMARY KEY,
  full_at INTEGER NOT NULL,
  wait_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
