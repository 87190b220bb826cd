-- Times are integers: milliseconds since 1970, by the database's clock.
CREATE VIEW clock AS
SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) AS now;

-- owner '' is nobody's: what one person alone on a laptop makes.
-- epoch is random and new after every change that is not an append; seq is that of the newest item.
-- run_id is the run that has the session: nobody else may, until it has ended. run_attempt counts who has
-- worked on it, run_alive_at is renewed by whoever does. run_items is how many items that run has stored
-- behind its input.
-- open_run_id is a run that ended before its turn was done, and can be gone on with as long as the session
-- ends at (open_epoch, open_seq); open_hash is that of its input, and NULL when somebody has to decide.
CREATE TABLE sessions (
  session_id TEXT NOT NULL PRIMARY KEY,
  owner TEXT NOT NULL,
  title TEXT,
  metadata TEXT NOT NULL DEFAULT '{}',
  epoch INTEGER NOT NULL,
  seq INTEGER NOT NULL DEFAULT 0 CHECK (seq >= 0),
  run_id TEXT,
  run_attempt INTEGER NOT NULL DEFAULT 0,
  run_alive_at INTEGER NOT NULL DEFAULT 0,
  run_items INTEGER NOT NULL DEFAULT 0,
  open_run_id TEXT,
  open_hash TEXT,
  open_epoch INTEGER,
  open_seq INTEGER,
  parent_session_id TEXT,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_by_owner ON sessions (owner, updated_at DESC, session_id DESC);
CREATE INDEX sessions_open ON sessions (open_run_id) WHERE open_run_id IS NOT NULL;

-- Clustered by session, so that a history is read in one sweep. seq is dense: 1..sessions.seq.
CREATE TABLE items (
  session_id TEXT NOT NULL,
  seq INTEGER NOT NULL CHECK (seq > 0),
  data TEXT NOT NULL,
  run_id TEXT,
  created_at INTEGER NOT NULL,
  PRIMARY KEY (session_id, seq)
) STRICT, WITHOUT ROWID;

-- alive_at is renewed by the process at work; a run that did not for long has lost its process, and is
-- taken over by another: attempt counts them. request is what it takes to make the run again, and NULL
-- when only its own process can. journal_id is the run whose steps it goes on from, mostly itself.
-- The input lies at base_seq + 1 .. base_seq + input_count; fork_id is the branch that was cut off for
-- it, and made whether the session was new. followed_until: somebody elsewhere wants to hear of news.
CREATE TABLE runs (
  run_id TEXT NOT NULL PRIMARY KEY,
  session_id TEXT NOT NULL,
  owner TEXT NOT NULL,
  status TEXT NOT NULL
    CHECK (status IN ('queued', 'in_progress', 'completed', 'failed', 'cancelled', 'incomplete')),
  idempotency_key TEXT,
  request_hash TEXT NOT NULL,
  request TEXT,
  journal_id TEXT NOT NULL,
  attempt INTEGER NOT NULL DEFAULT 1,
  base_seq INTEGER NOT NULL DEFAULT 0,
  input_count INTEGER NOT NULL DEFAULT 0,
  fork_id TEXT NOT NULL DEFAULT '',
  made INTEGER NOT NULL DEFAULT 0,
  stop_requested TEXT NOT NULL DEFAULT ''
    CHECK (stop_requested IN ('', 'cancel', 'interrupt', 'rollback')),
  followed_until INTEGER NOT NULL DEFAULT 0,
  alive_at INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  finished_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX runs_by_session ON runs (session_id);
CREATE UNIQUE INDEX runs_by_key ON runs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX runs_ended ON runs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX runs_waiting ON runs (session_id, run_id) WHERE status = 'queued';
CREATE INDEX runs_unfinished ON runs (run_id) WHERE finished_at IS NULL;
CREATE UNIQUE INDEX runs_working ON runs (session_id) WHERE status = 'in_progress';

CREATE TABLE run_events (
  run_id TEXT NOT NULL,
  seq INTEGER NOT NULL,
  data TEXT NOT NULL,
  PRIMARY KEY (run_id, seq)
) STRICT, WITHOUT ROWID;

-- The journal: what a model answered, at which place of a run. A run that is made again is given it.
CREATE TABLE model_calls (
  journal_id TEXT NOT NULL,
  key TEXT NOT NULL,
  request_hash TEXT NOT NULL,
  response TEXT NOT NULL,
  PRIMARY KEY (journal_id, key)
) STRICT, WITHOUT ROWID;

-- The ledger of tools: the intent before a call, its outcome behind it. `repeatable`: the tool says that
-- it may run again. approval_id is the decision by which it was made again.
CREATE TABLE tool_calls (
  journal_id TEXT NOT NULL,
  key TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('intended', 'done', 'failed')),
  repeatable INTEGER NOT NULL,
  call TEXT NOT NULL,
  output TEXT NOT NULL,
  approval_id TEXT,
  PRIMARY KEY (journal_id, key)
) STRICT, WITHOUT ROWID;

-- What a person has to decide before a run goes on: `key` is the tool call's in the journal.
CREATE TABLE approvals (
  approval_id TEXT NOT NULL PRIMARY KEY,
  run_id TEXT NOT NULL,
  session_id TEXT NOT NULL,
  owner TEXT NOT NULL,
  journal_id TEXT NOT NULL,
  key TEXT NOT NULL,
  call TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('pending', 'approved', 'rejected')),
  reason TEXT,
  created_at INTEGER NOT NULL,
  decided_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX approvals_by_owner ON approvals (owner, approval_id);
CREATE INDEX approvals_by_run ON approvals (run_id);
CREATE INDEX approvals_by_session ON approvals (session_id);
