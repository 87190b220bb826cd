-- Messages that are not recalled any more, since a memory that came from them was deleted: by their owner, their seq
-- and when they were stored (ms since 1970), which they have in forks too.
CREATE TABLE forgotten (
  owner TEXT NOT NULL,
  seq INTEGER NOT NULL,
  at INTEGER NOT NULL,
  PRIMARY KEY (owner, seq, at)
) STRICT, WITHOUT ROWID;
