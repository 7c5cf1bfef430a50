-- The SSH certificate authority of each organisation. Times are seconds since the Unix epoch.

CREATE TABLE ssh_key (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    org           INTEGER NOT NULL REFERENCES org (id),
    -- What it signs: certificates of users, of hosts, or the statement of the keys of both.
    usage         TEXT NOT NULL CHECK (usage IN ('user', 'host', 'statement')),
    state         TEXT NOT NULL CHECK (state IN ('current', 'next', 'retired')),
    public_key    BLOB NOT NULL UNIQUE CHECK (length(public_key) = 32),
    -- The Ed25519 seed under the master key: nonce (12), AES-256-GCM (32), tag (16).
    sealed        BLOB NOT NULL CHECK (length(sealed) = 60),
    created       INTEGER NOT NULL,
    trusted_until INTEGER,
    CHECK ((state = 'retired') = (trusted_until IS NOT NULL)),
    CHECK (usage <> 'statement' OR state = 'current')
);
CREATE INDEX ssh_key_org ON ssh_key (org);
CREATE UNIQUE INDEX ssh_key_current ON ssh_key (org, usage) WHERE state = 'current';
CREATE UNIQUE INDEX ssh_key_next ON ssh_key (org, usage) WHERE state = 'next';

CREATE TABLE ssh_authority (
    org       INTEGER PRIMARY KEY REFERENCES org (id),
    -- Grows with every change of the keys.
    version   INTEGER NOT NULL CHECK (version >= 1),
    -- Of the statement of this version.
    signature BLOB NOT NULL CHECK (length(signature) = 64),
    recording TEXT NOT NULL CHECK (recording IN ('off', 'pty', 'all'))
);

CREATE TABLE ssh_certificate (
    -- Never given twice.
    serial       INTEGER PRIMARY KEY AUTOINCREMENT,
    kind         TEXT NOT NULL CHECK (kind IN ('user', 'host')),
    org          INTEGER NOT NULL REFERENCES org (id),
    node         INTEGER NOT NULL REFERENCES node (id),
    "user"       INTEGER REFERENCES "user" (id),
    key_id       TEXT NOT NULL CHECK (length(key_id) BETWEEN 1 AND 255),
    -- Separated by commas, which no principal holds.
    principals   TEXT NOT NULL CHECK (length(principals) >= 1),
    public_key   BLOB NOT NULL CHECK (length(public_key) = 32),
    valid_after  INTEGER NOT NULL,
    valid_before INTEGER NOT NULL CHECK (valid_before > valid_after),
    revoked      INTEGER,
    CHECK ((kind = 'user') = ("user" IS NOT NULL))
);
CREATE INDEX ssh_certificate_node ON ssh_certificate (node);
CREATE INDEX ssh_certificate_revoked ON ssh_certificate (org) WHERE revoked IS NOT NULL;
CREATE INDEX ssh_certificate_end ON ssh_certificate (valid_before);
