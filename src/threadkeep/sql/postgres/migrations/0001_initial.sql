-- The schema is made by the driver before this runs; `threadkeep.` stands for its name.
-- Items and events are kept as text: jsonb would change them, and refuse NUL and lone surrogates.

-- owner '' is nobody's: what one person alone on a laptop makes.
-- epoch is random and new after every change that is not an append; seq is that of the newest item.
-- run_id is the run that has the session: nobody else may, until it has ended. run_attempt counts who has
-- worked on it, run_alive_at is renewed by whoever does. run_items is how many items that run has stored
-- behind its input, and run_added how many of them in its last write.
-- open_run_id is a run that ended before its turn was done, and can be gone on with as long as the session
-- ends at (open_epoch, open_seq); open_hash is that of its input, and NULL when somebody has to decide.
CREATE TABLE threadkeep.sessions (
  session_id text PRIMARY KEY,
  owner text NOT NULL,
  title text,
  metadata text NOT NULL DEFAULT '{}',
  epoch bigint NOT NULL,
  seq bigint NOT NULL DEFAULT 0 CHECK (seq >= 0),
  run_id text,
  run_attempt bigint NOT NULL DEFAULT 0,
  run_alive_at timestamptz(3) NOT NULL DEFAULT '-infinity',
  run_items bigint NOT NULL DEFAULT 0,
  run_added bigint NOT NULL DEFAULT 0,
  open_run_id text,
  open_hash text,
  open_epoch bigint,
  open_seq bigint,
  parent_session_id text,
  created_at timestamptz(3) NOT NULL,
  updated_at timestamptz(3) NOT NULL
) WITH (fillfactor = 70);  -- room to update a row where it lies

CREATE INDEX sessions_by_owner ON threadkeep.sessions (owner, updated_at DESC, session_id DESC);
CREATE INDEX sessions_open ON threadkeep.sessions (open_run_id) WHERE open_run_id IS NOT NULL;

-- seq is dense: 1..sessions.seq.
CREATE TABLE threadkeep.items (
  session_id text NOT NULL,
  seq bigint NOT NULL CHECK (seq > 0),
  data text NOT NULL,
  run_id text,
  created_at timestamptz(3) NOT NULL,
  call_id bigint,  -- of the call that appended, on the first item of each
  PRIMARY KEY (session_id, seq)
);

-- An append that is made again, because nobody knows whether it was done, is done once.
CREATE UNIQUE INDEX items_by_call ON threadkeep.items (session_id, call_id) WHERE call_id IS NOT NULL;

-- alive_at is renewed by the process at work; a run that did not for long has lost its process, and is
-- taken over by another: attempt counts them. request is what it takes to make the run again, and NULL
-- when only its own process can. journal_id is the run whose steps it goes on from, mostly itself.
-- The input lies at base_seq + 1 .. base_seq + input_count; fork_id is the branch that was cut off for
-- it, and made whether the session was new. followed_until: somebody elsewhere wants to hear of news.
CREATE TABLE threadkeep.runs (
  run_id text PRIMARY KEY,
  session_id text NOT NULL,
  owner text NOT NULL,
  status text NOT NULL
    CHECK (status IN ('queued', 'in_progress', 'completed', 'failed', 'cancelled', 'incomplete')),
  idempotency_key text,
  request_hash text NOT NULL,
  request text,
  journal_id text NOT NULL,
  attempt bigint NOT NULL DEFAULT 1,
  base_seq bigint NOT NULL DEFAULT 0,
  input_count bigint NOT NULL DEFAULT 0,
  fork_id text NOT NULL DEFAULT '',
  made boolean NOT NULL DEFAULT false,
  stop_requested text NOT NULL DEFAULT ''
    CHECK (stop_requested IN ('', 'cancel', 'interrupt', 'rollback')),
  followed_until timestamptz(3) NOT NULL DEFAULT '-infinity',
  alive_at timestamptz(3) NOT NULL,
  created_at timestamptz(3) NOT NULL,
  finished_at timestamptz(3)
) WITH (fillfactor = 70);

CREATE INDEX runs_by_session ON threadkeep.runs (session_id);
CREATE UNIQUE INDEX runs_by_key ON threadkeep.runs (owner, idempotency_key)
  WHERE idempotency_key IS NOT NULL;
CREATE INDEX runs_ended ON threadkeep.runs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX runs_waiting ON threadkeep.runs (session_id, run_id) WHERE status = 'queued';
CREATE INDEX runs_unfinished ON threadkeep.runs (run_id) WHERE finished_at IS NULL;
CREATE UNIQUE INDEX runs_working ON threadkeep.runs (session_id) WHERE status = 'in_progress';

CREATE TABLE threadkeep.run_events (
  run_id text NOT NULL,
  seq bigint NOT NULL,
  data text NOT NULL,
  PRIMARY KEY (run_id, seq)
);

-- The journal: what a model answered, at which place of a run. A run that is made again is given it.
CREATE TABLE threadkeep.model_calls (
  journal_id text NOT NULL,
  key text NOT NULL,
  request_hash text NOT NULL,
  response text NOT NULL,
  PRIMARY KEY (journal_id, key)
);

-- The ledger of tools: the intent before a call, its outcome behind it. `repeatable`: the tool says that
-- it may run again. approval_id is the decision by which it was made again.
CREATE TABLE threadkeep.tool_calls (
  journal_id text NOT NULL,
  key text NOT NULL,
  status text NOT NULL CHECK (status IN ('intended', 'done', 'failed')),
  repeatable boolean NOT NULL,
  call text NOT NULL,
  output text NOT NULL,
  approval_id text,
  PRIMARY KEY (journal_id, key)
) WITH (fillfactor = 70);

-- What a person has to decide before a run goes on: `key` is the tool call's in the journal.
CREATE TABLE threadkeep.approvals (
  approval_id text PRIMARY KEY,
  run_id text NOT NULL,
  session_id text NOT NULL,
  owner text NOT NULL,
  journal_id text NOT NULL,
  key text NOT NULL,
  call text NOT NULL,
  status text NOT NULL CHECK (status IN ('pending', 'approved', 'rejected')),
  reason text,
  created_at timestamptz(3) NOT NULL,
  decided_at timestamptz(3)
);

CREATE INDEX approvals_by_owner ON threadkeep.approvals (owner, approval_id);
CREATE INDEX approvals_by_run ON threadkeep.approvals (run_id);
CREATE INDEX approvals_by_session ON threadkeep.approvals (session_id);
