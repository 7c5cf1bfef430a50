-- A site may leave it to its node how its hosts and the network reach each other. SQLite changes a
-- constraint only with its column.

ALTER TABLE site ADD COLUMN chosen TEXT NOT NULL DEFAULT 'masquerade'
    CHECK (chosen IN ('masquerade', 'routed', 'auto'));
UPDATE site SET chosen = mode;
ALTER TABLE site DROP COLUMN mode;
ALTER TABLE site RENAME COLUMN chosen TO mode;
