-- The schema is made by the driver before this runs; `threadkeep.` stands for its name.
-- Items and events are kept as text: jsonb would change them, and refuse NUL and lone surrogates.

-- owner '' is nobody's: what one person alone on a laptop makes.
-- epoch is random and new after every change that is not an append; seq is that of the newest item.
-- run_id is the run that has the session; it counts only while run_alive_at is renewed. run_items is how
-- many items that run has stored behind its input, and run_added how many of them in its last write.
CREATE TABLE threadkeep.sessions (
  session_id text PRIMARY KEY,
  owner text NOT NULL,
  title text,
  metadata text NOT NULL DEFAULT '{}',
  epoch bigint NOT NULL,
  seq bigint NOT NULL DEFAULT 0 CHECK (seq >= 0),
  run_id text,
  run_alive_at timestamptz(3) NOT NULL DEFAULT '-infinity',
  run_items bigint NOT NULL DEFAULT 0,
  run_added bigint NOT NULL DEFAULT 0,
  parent_session_id text,
  created_at timestamptz(3) NOT NULL,
  updated_at timestamptz(3) NOT NULL
) WITH (fillfactor = 70);  -- room to update a row where it lies

CREATE INDEX sessions_by_owner ON threadkeep.sessions (owner, updated_at DESC, session_id DESC);

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

-- alive_at is renewed by the process at work; a run that did not for long has lost its process.
CREATE TABLE threadkeep.runs (
  run_id text PRIMARY KEY,
  session_id text NOT NULL,
  owner text NOT NULL,
  status text NOT NULL
    CHECK (status IN ('queued', 'in_progress', 'completed', 'failed', 'cancelled', 'incomplete')),
  idempotency_key text,
  request_hash text NOT NULL,
  cancel_requested boolean NOT NULL DEFAULT false,
  alive_at timestamptz(3) NOT NULL,
  created_at timestamptz(3) NOT NULL,
  finished_at timestamptz(3)
) WITH (fillfactor = 70);

CREATE INDEX runs_by_session ON threadkeep.runs (session_id);
CREATE UNIQUE INDEX runs_by_key ON threadkeep.runs (owner, idempotency_key)
  WHERE idempotency_key IS NOT NULL;
CREATE INDEX runs_ended ON threadkeep.runs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX runs_waiting ON threadkeep.runs (session_id, run_id) WHERE status = 'queued';

CREATE TABLE threadkeep.run_events (
  run_id text NOT NULL,
  seq bigint NOT NULL,
  data text NOT NULL,
  PRIMARY KEY (run_id, seq)
);
