-- A person belongs to one organisation and has a role in it; whoever belongs to several has a row
-- in each. Operators keep the installation and act in every organisation.

-- A table that others refer to can be made anew inside a transaction only.
PRAGMA defer_foreign_keys = ON;

CREATE TEMP TABLE person AS
SELECT u.id, u.name, u.created, (SELECT MIN(id) FROM org) AS org FROM "user" u;
-- Administrators acted in every organisation, and have a row wherever they left a trace.
CREATE TEMP TABLE trace AS
SELECT "user", org FROM node WHERE "user" IS NOT NULL
UNION SELECT "user", org FROM token WHERE "user" IS NOT NULL AND org IS NOT NULL
UNION SELECT t."user", n.org FROM token t JOIN node n ON n.id = t.node WHERE t."user" IS NOT NULL
UNION SELECT "user", org FROM ssh_certificate WHERE "user" IS NOT NULL
UNION SELECT "user", org FROM ssh_session WHERE "user" IS NOT NULL;
INSERT INTO person (id, name, created, org)
SELECT NULL, p.name, p.created, t.org FROM trace t JOIN person p ON p.id = t."user"
WHERE t.org <> p.org;

DROP TABLE "user";
CREATE TABLE "user" (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    org      INTEGER NOT NULL REFERENCES org (id),
    name     TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 63),
    role     TEXT NOT NULL CHECK (role IN ('admin', 'developer', 'guest')),
    operator INTEGER NOT NULL CHECK (operator IN (0, 1)),
    created  INTEGER NOT NULL,
    removed  INTEGER,
    CHECK (operator = 0 OR role = 'admin')
);
INSERT INTO "user" (id, org, name, role, operator, created)
SELECT id, org, name, 'admin', 1, created FROM person ORDER BY id NULLS LAST;
CREATE UNIQUE INDEX user_name ON "user" (org, name) WHERE removed IS NULL;

UPDATE node SET "user" = (
    SELECT u.id FROM "user" u JOIN person p ON p.name = u.name
    WHERE p.id = node."user" AND u.org = node.org
) WHERE "user" IS NOT NULL;
UPDATE ssh_certificate SET "user" = (
    SELECT u.id FROM "user" u JOIN person p ON p.name = u.name
    WHERE p.id = ssh_certificate."user" AND u.org = ssh_certificate.org
) WHERE "user" IS NOT NULL;
UPDATE ssh_session SET "user" = (
    SELECT u.id FROM "user" u JOIN person p ON p.name = u.name
    WHERE p.id = ssh_session."user" AND u.org = ssh_session.org
) WHERE "user" IS NOT NULL;

-- What signs a person in is called a login token, because not everybody is an administrator.
CREATE TEMP TABLE old_token AS SELECT * FROM token;
DROP TABLE token;
CREATE TABLE token (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    kind     TEXT NOT NULL CHECK (kind IN ('login', 'join', 'gateway', 'session', 'node')),
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
    CHECK ((kind IN ('login', 'session')) = ("user" IS NOT NULL)),
    CHECK ((kind IN ('login', 'join')) = (org IS NOT NULL)),
    -- A node's token lives as long as the node; every other ends within a year.
    CHECK ((kind = 'node') = (expires IS NULL)),
    CHECK (expires IS NULL OR expires - created BETWEEN 1 AND 31536000)
);
INSERT INTO token
SELECT t.id, CASE t.kind WHEN 'admin' THEN 'login' ELSE t.kind END, t.hash, t.org, t.node,
       (SELECT u.id FROM "user" u JOIN person p ON p.name = u.name
        WHERE p.id = t."user"
              AND u.org = COALESCE(t.org, (SELECT n.org FROM node n WHERE n.id = t.node))),
       t.uses, t.uses_max, t.created, t.expires, t.revoked
FROM old_token t;
CREATE INDEX token_node ON token (node) WHERE node IS NOT NULL;
CREATE INDEX token_user ON token ("user") WHERE "user" IS NOT NULL;

DROP TABLE old_token;
DROP TABLE trace;
DROP TABLE person;
