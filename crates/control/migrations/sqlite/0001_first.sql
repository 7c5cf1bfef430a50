-- The nouns of the control plane. Times are seconds since the Unix epoch.

CREATE TABLE installation (
    id        INTEGER PRIMARY KEY CHECK (id = 1),
    -- Grows with every change that a node can see.
    serial    INTEGER NOT NULL CHECK (serial >= 1),
    -- SHA-256 of the SubjectPublicKeyInfo of the authority that tokens pin.
    authority BLOB CHECK (length(authority) = 32),
    created   INTEGER NOT NULL
);

CREATE TABLE org (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    name    TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 63),
    -- Never given again, so that an old address cannot mean another tenant.
    prefix  TEXT NOT NULL UNIQUE,
    gateway INTEGER REFERENCES node (id),
    -- The installation's serial at the last change that members of the org can see.
    serial  INTEGER NOT NULL,
    created INTEGER NOT NULL,
    removed INTEGER
);
CREATE UNIQUE INDEX org_name ON org (name) WHERE removed IS NULL;

CREATE TABLE "user" (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    name    TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 63),
    role    TEXT NOT NULL CHECK (role IN ('admin')),
    created INTEGER NOT NULL
);

CREATE TABLE node (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    role       TEXT NOT NULL CHECK (role IN ('client', 'gateway')),
    org        INTEGER REFERENCES org (id),
    name       TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 63),
    public_key BLOB NOT NULL CHECK (length(public_key) = 32),
    -- Unique against removed nodes too, whose rows stay for 30 days.
    address    TEXT UNIQUE,
    endpoint   TEXT,
    builtin    INTEGER NOT NULL CHECK (builtin IN (0, 1)),
    "user"     INTEGER REFERENCES "user" (id),
    enrolled   INTEGER NOT NULL,
    removed    INTEGER,
    CHECK ((role = 'client') = (org IS NOT NULL)),
    CHECK ((role = 'client') = (address IS NOT NULL)),
    CHECK ((role = 'gateway') = (endpoint IS NOT NULL)),
    CHECK (builtin = 0 OR role = 'gateway')
);
CREATE UNIQUE INDEX node_name ON node (COALESCE(org, 0), name) WHERE removed IS NULL;
CREATE UNIQUE INDEX node_public_key ON node (public_key) WHERE removed IS NULL;
CREATE UNIQUE INDEX node_builtin ON node (builtin) WHERE builtin = 1 AND removed IS NULL;
CREATE INDEX node_org ON node (org) WHERE removed IS NULL;
CREATE INDEX node_removed ON node (removed) WHERE removed IS NOT NULL;

CREATE TABLE token (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    kind     TEXT NOT NULL CHECK (kind IN ('admin', 'join', 'gateway', 'session', 'node')),
    -- SHA-256 of the secret, which is random and long, so that no salt is needed.
    hash     BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    org      INTEGER REFERENCES org (id),
    node     INTEGER REFERENCES node (id),
    "user"   INTEGER REFERENCES "user" (id),
    uses     INTEGER NOT NULL CHECK (uses >= 0),
    uses_max INTEGER CHECK (uses_max >= 1),
    created  INTEGER NOT NULL,
    expires  INTEGER,
    revoked  INTEGER,
    CHECK (uses_max IS NULL OR uses <= uses_max),
    CHECK ((kind IN ('session', 'node')) = (uses_max IS NULL)),
    CHECK ((kind IN ('session', 'node')) = (node IS NOT NULL)),
    CHECK ((kind IN ('admin', 'session')) = ("user" IS NOT NULL)),
    CHECK ((kind IN ('admin', 'join')) = (org IS NOT NULL)),
    -- A node's token lives as long as the node; every other ends within a year.
    CHECK ((kind = 'node') = (expires IS NULL)),
    CHECK (expires IS NULL OR expires - created BETWEEN 1 AND 31536000)
);
CREATE INDEX token_node ON token (node) WHERE node IS NOT NULL;

CREATE TABLE service (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    node    INTEGER NOT NULL REFERENCES node (id),
    name    TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 63),
    port    INTEGER NOT NULL CHECK (port BETWEEN 1 AND 65535),
    target  TEXT NOT NULL,
    created INTEGER NOT NULL,
    UNIQUE (node, name),
    UNIQUE (node, port)
);

CREATE TABLE audit (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    time    INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    org     INTEGER REFERENCES org (id)
);
CREATE INDEX audit_org ON audit (org);
