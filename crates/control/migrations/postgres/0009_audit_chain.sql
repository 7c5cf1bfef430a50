-- The audit is a chain: each row has the hash of the one before and its own. The server chains the
-- rows that are older when it opens the database.

ALTER TABLE audit ADD COLUMN previous BYTEA CHECK (length(previous) = 32);
ALTER TABLE audit ADD COLUMN hash BYTEA CHECK (length(hash) = 32);

-- The last row that was deleted because of its age, and the last row; null until the first server
-- that knows of the chain has opened the database.
ALTER TABLE installation ADD COLUMN audit_past_id BIGINT;
ALTER TABLE installation ADD COLUMN audit_past BYTEA CHECK (length(audit_past) = 32);
ALTER TABLE installation ADD COLUMN audit_last_id BIGINT;
ALTER TABLE installation ADD COLUMN audit_last BYTEA CHECK (length(audit_last) = 32);

CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF OLD.hash IS NULL THEN
            RETURN NEW;
        END IF;
    ELSIF TG_OP = 'DELETE' THEN
        IF OLD.id <= (SELECT COALESCE(MAX(audit_past_id), 0) FROM installation) THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION 'the audit is append-only';
END
$$;
CREATE TRIGGER audit_change BEFORE UPDATE OR DELETE ON audit
FOR EACH ROW EXECUTE FUNCTION audit_append_only();
CREATE TRIGGER audit_truncate BEFORE TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only();
