-- How the hosts of a site and the network reach each other.

ALTER TABLE site ADD COLUMN mode TEXT NOT NULL DEFAULT 'masquerade'
    CHECK (mode IN ('masquerade', 'routed'));
