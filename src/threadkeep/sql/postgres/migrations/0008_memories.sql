-- Facts and preferences of an owner, which outlast conversations.

-- What is said in a session that is temporary is not remembered, nor found; remembered_seq is up to where a model
-- has looked for what is worth it, and remembered_until until when (ms since 1970) somebody has it do so. What a
-- session was before it was cut back is set_aside: it is not recalled.
ALTER TABLE threadkeep.sessions ADD COLUMN temporary bigint NOT NULL DEFAULT 0;
ALTER TABLE threadkeep.sessions ADD COLUMN set_aside bigint NOT NULL DEFAULT 0;
ALTER TABLE threadkeep.sessions ADD COLUMN remembered_seq bigint NOT NULL DEFAULT 0;
ALTER TABLE threadkeep.sessions ADD COLUMN remembered_until bigint NOT NULL DEFAULT 0;

-- A memory as it is held now. path_key is the SHA-256 of its path, by which it is looked up (sealed: a keyed hash of
-- that); search_no its number in the search index, another one for each version. It holds from valid_from to valid_to, and where superseded_by is set another
-- memory holds in its place. source_… is the message that it comes from, by its place and by when it was stored (ms
-- since 1970): another one may have that place later.
CREATE TABLE threadkeep.memories (
  memory_id text PRIMARY KEY,
  owner text NOT NULL,
  path_key text NOT NULL,
  path text NOT NULL,
  description text NOT NULL,
  contents text NOT NULL,
  keywords text NOT NULL,
  pinned bigint NOT NULL,
  version bigint NOT NULL,
  search_no bigint NOT NULL,
  source_session text,
  source_seq bigint,
  source_at bigint,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  valid_from timestamptz NOT NULL,
  valid_to timestamptz,
  superseded_by text
);

CREATE UNIQUE INDEX memories_by_path ON threadkeep.memories (owner, path_key);
CREATE UNIQUE INDEX memories_by_search_no ON threadkeep.memories (search_no);
CREATE INDEX memories_by_time ON threadkeep.memories (owner, updated_at DESC, memory_id DESC);
CREATE INDEX memories_pinned ON threadkeep.memories (owner, updated_at DESC) WHERE pinned = 1;
CREATE INDEX memories_by_source ON threadkeep.memories (source_session) WHERE source_session IS NOT NULL;

-- What a memory was before; superseded_by is the version that took its place.
CREATE TABLE threadkeep.memory_history (
  memory_id text NOT NULL,
  version bigint NOT NULL,
  owner text NOT NULL,
  description text NOT NULL,
  contents text NOT NULL,
  source_session text,
  source_seq bigint,
  source_at bigint,
  valid_from timestamptz NOT NULL,
  valid_to timestamptz NOT NULL,
  superseded_by bigint NOT NULL,
  PRIMARY KEY (memory_id, version)
);

CREATE INDEX memory_history_by_owner ON threadkeep.memory_history (owner);
CREATE INDEX memory_history_by_source ON threadkeep.memory_history (source_session) WHERE source_session IS NOT NULL;

-- What is temporary is not indexed.
DROP INDEX threadkeep.sessions_to_index;
CREATE INDEX sessions_to_index ON threadkeep.sessions (owner, session_id)
WHERE (indexed_epoch <> epoch OR indexed_seq <> seq) AND temporary = 0;
