-- Times are integers: milliseconds since 1970, by the database's clock.
CREATE VIEW clock AS
SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) AS now;

-- owner '' is nobody's: what one person alone on a laptop makes.
-- epoch is random and new after every change that is not an append; seq is that of the newest item.
-- run_id is the run that has the session; it counts only while run_alive_at is renewed. run_items is how
-- many items that run has stored behind its input.
CREATE TABLE sessions (
  session_id TEXT NOT NULL PRIMARY KEY,
  owner TEXT NOT NULL,
  title TEXT,
  metadata TEXT NOT NULL DEFAULT '{}',
  epoch INTEGER NOT NULL,
  seq INTEGER NOT NULL DEFAULT 0 CHECK (seq >= 0),
  run_id TEXT,
  run_alive_at INTEGER NOT NULL DEFAULT 0,
  run_items INTEGER NOT NULL DEFAULT 0,
  parent_session_id TEXT,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_by_owner ON sessions (owner, updated_at DESC, session_id DESC);

-- Clustered by session, so that a history is read in one sweep. seq is dense: 1..sessions.seq.
CREATE TABLE items (
  session_id TEXT NOT NULL,
  seq INTEGER NOT NULL CHECK (seq > 0),
  data TEXT NOT NULL,
  run_id TEXT,
  created_at INTEGER NOT NULL,
  PRIMARY KEY (session_id, seq)
) STRICT, WITHOUT ROWID;

-- alive_at is renewed by the process at work; a run that did not for long has lost its process.
CREATE TABLE runs (
  run_id TEXT NOT NULL PRIMARY KEY,
  session_id TEXT NOT NULL,
  owner TEXT NOT NULL,
  status TEXT NOT NULL
    CHECK (status IN ('queued', 'in_progress', 'completed', 'failed', 'cancelled', 'incomplete')),
  idempotency_key TEXT,
  request_hash TEXT NOT NULL,
  cancel_requested INTEGER NOT NULL DEFAULT 0,
  alive_at INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  finished_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX runs_by_session ON runs (session_id);
CREATE UNIQUE INDEX runs_by_key ON runs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX runs_ended ON runs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX runs_waiting ON runs (session_id, run_id) WHERE status = 'queued';

CREATE TABLE run_events (
  run_id TEXT NOT NULL,
  seq INTEGER NOT NULL,
  data TEXT NOT NULL,
  PRIMARY KEY (run_id, seq)
) STRICT, WITHOUT ROWID;
