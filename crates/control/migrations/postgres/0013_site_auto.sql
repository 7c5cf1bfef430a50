-- A site may leave it to its node how its hosts and the network reach each other.

ALTER TABLE site DROP CONSTRAINT site_mode_check;
ALTER TABLE site ADD CONSTRAINT site_mode_check
    CHECK (mode IN ('masquerade', 'routed', 'auto'));
