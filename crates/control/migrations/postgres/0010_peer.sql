-- Plain WireGuard clients: nodes without a credential, which work by an exported configuration.

CREATE TABLE peer (
    node             BIGINT PRIMARY KEY REFERENCES node (id),
    -- Who has the private key: the device that made it, whoever has the exported configuration, or
    -- nobody yet.
    key_holder       TEXT NOT NULL CHECK (key_holder IN ('device', 'configuration', 'nobody')),
    expires          BIGINT,
    exported         BIGINT,
    -- The gateway that the exported configuration names.
    gateway_key      BYTEA CHECK (length(gateway_key) = 32),
    gateway_endpoint TEXT,
    CHECK ((exported IS NULL) = (gateway_key IS NULL)),
    CHECK ((exported IS NULL) = (gateway_endpoint IS NULL)),
    CHECK (key_holder <> 'configuration' OR exported IS NOT NULL)
);
CREATE INDEX peer_expires ON peer (expires) WHERE expires IS NOT NULL;
