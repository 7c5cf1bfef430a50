-- The audit is a chain: each row has the hash of the one before and its own. The server chains the
-- rows that are older when it opens the database.

ALTER TABLE audit ADD COLUMN previous BLOB CHECK (length(previous) = 32);
ALTER TABLE audit ADD COLUMN hash BLOB CHECK (length(hash) = 32);

-- The last row that was deleted because of its age, and the last row; null until the first server
-- that knows of the chain has opened the database.
ALTER TABLE installation ADD COLUMN audit_past_id INTEGER;
ALTER TABLE installation ADD COLUMN audit_past BLOB CHECK (length(audit_past) = 32);
ALTER TABLE installation ADD COLUMN audit_last_id INTEGER;
ALTER TABLE installation ADD COLUMN audit_last BLOB CHECK (length(audit_last) = 32);

CREATE TRIGGER audit_update BEFORE UPDATE ON audit WHEN OLD.hash IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER audit_delete BEFORE DELETE ON audit
WHEN OLD.id > (SELECT COALESCE(MAX(audit_past_id), 0) FROM installation)
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
