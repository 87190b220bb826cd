-- What was said is found again.

-- search_no is the number of a session in the search index, which grows with the time it was made; NULL while it
-- is not in there. The index holds its items up to indexed_seq, as of indexed_epoch: what else there is, is
-- looked for by the index below, and indexed behind everybody's back or by whoever searches. A turn writes
-- nothing for it. indexed_epoch is negative when the session must be indexed anew.
ALTER TABLE sessions ADD COLUMN search_no INTEGER;
ALTER TABLE sessions ADD COLUMN indexed_epoch INTEGER NOT NULL DEFAULT -1;
ALTER TABLE sessions ADD COLUMN indexed_seq INTEGER NOT NULL DEFAULT 0;

CREATE UNIQUE INDEX sessions_by_search_no ON sessions (search_no) WHERE search_no IS NOT NULL;
CREATE INDEX sessions_to_index ON sessions (owner, session_id)
WHERE indexed_epoch <> epoch OR indexed_seq <> seq;

-- Where a word is said: hits are the seqs, one for each time, 0 for the title, of a block of 256 of a session.
-- scope is a number made of the owner: it leads the key, so that a search reads one owner's.
CREATE TABLE postings (
  scope INTEGER NOT NULL,
  term TEXT NOT NULL,
  search_no INTEGER NOT NULL,
  block INTEGER NOT NULL,
  hits TEXT NOT NULL,
  PRIMARY KEY (scope, term, search_no, block)
) STRICT, WITHOUT ROWID;

CREATE INDEX postings_by_session ON postings (search_no);
