-- Nothing is kept for ever by accident, and nothing goes that somebody still wants.

-- expires_at is when a session goes that somebody has set a time for; NULL: as long after its last change as
-- SESSION_RETENTION_DAYS says, or never. That is looked up and not stored, so a turn writes nothing more for
-- it, and another setting holds for what is there.
ALTER TABLE threadkeep.sessions ADD COLUMN expires_at timestamptz(3);

CREATE INDEX sessions_expiring ON threadkeep.sessions (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX sessions_idle ON threadkeep.sessions (updated_at) WHERE expires_at IS NULL;
