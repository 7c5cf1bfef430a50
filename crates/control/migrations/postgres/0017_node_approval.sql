-- A node may wait until somebody approves it, and may have an end.

-- Since when it waits.
ALTER TABLE node ADD COLUMN pending BIGINT CHECK (pending IS NULL OR role = 'client');
ALTER TABLE node ADD COLUMN expires BIGINT CHECK (expires IS NULL OR role = 'client');
-- When its time was over, and the maps of others went on without it.
ALTER TABLE node ADD COLUMN expired BIGINT CHECK (expired IS NULL OR expires IS NOT NULL);
CREATE INDEX node_expires ON node (expires)
    WHERE expires IS NOT NULL AND expired IS NULL AND removed IS NULL;
-- Whether whoever joins by it waits.
ALTER TABLE token ADD COLUMN approval BIGINT
    CHECK (approval IS NULL OR (approval = 1 AND kind = 'join'));
