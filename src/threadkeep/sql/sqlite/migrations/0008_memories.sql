-- Facts and preferences of an owner, which outlast conversations.

-- What is said in a session that is temporary is not remembered, nor found; remembered_seq is up to where a model
-- has looked for what is worth it, and remembered_until until when (ms since 1970) somebody has it do so. What a
-- session was before it was cut back is set_aside: it is not recalled.
ALTER TABLE sessions ADD COLUMN temporary INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN set_aside INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN remembered_seq INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN remembered_until INTEGER NOT NULL DEFAULT 0;

-- A memory as it is held now. path_key is the SHA-256 of its path, by which it is looked up (sealed: a keyed hash of
-- that); search_no its number in the search index, another one for each version. It holds from valid_from to valid_to, and where superseded_by is set another
-- memory holds in its place. source_… is the message that it comes from, by its place and by when it was stored (ms
-- since 1970): another one may have that place later.
CREATE TABLE memories (
  memory_id TEXT NOT NULL PRIMARY KEY,
  owner TEXT NOT NULL,
  path_key TEXT NOT NULL,
  path TEXT NOT NULL,
  description TEXT NOT NULL,
  contents TEXT NOT NULL,
  keywords TEXT NOT NULL,
  pinned INTEGER NOT NULL,
  version INTEGER NOT NULL,
  search_no INTEGER NOT NULL,
  source_session TEXT,
  source_seq INTEGER,
  source_at INTEGER,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  valid_from INTEGER NOT NULL,
  valid_to INTEGER,
  superseded_by TEXT
) STRICT;

CREATE UNIQUE INDEX memories_by_path ON memories (owner, path_key);
CREATE UNIQUE INDEX memories_by_search_no ON memories (search_no);
CREATE INDEX memories_by_time ON memories (owner, updated_at DESC, memory_id DESC);
CREATE INDEX memories_pinned ON memories (owner, updated_at DESC) WHERE pinned = 1;
CREATE INDEX memories_by_source ON memories (source_session) WHERE source_session IS NOT NULL;

-- What a memory was before; superseded_by is the version that took its place.
CREATE TABLE memory_history (
  memory_id TEXT NOT NULL,
  version INTEGER NOT NULL,
  owner TEXT NOT NULL,
  description TEXT NOT NULL,
  contents TEXT NOT NULL,
  source_session TEXT,
  source_seq INTEGER,
  source_at INTEGER,
  valid_from INTEGER NOT NULL,
  valid_to INTEGER NOT NULL,
  superseded_by INTEGER NOT NULL,
  PRIMARY KEY (memory_id, version)
) STRICT, WITHOUT ROWID;

CREATE INDEX memory_history_by_owner ON memory_history (owner);
CREATE INDEX memory_history_by_source ON memory_history (source_session) WHERE source_session IS NOT NULL;

-- What is temporary is not indexed.
DROP INDEX sessions_to_index;
CREATE INDEX sessions_to_index ON sessions (owner, session_id)
WHERE (indexed_epoch <> epoch OR indexed_seq <> seq) AND temporary = 0;
