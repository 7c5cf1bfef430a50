-- LANs behind a node. The id is part of the addresses of their hosts, so it is never given again,
-- and has 24 bits (RFC 6052, 2.2).

CREATE TABLE site (
    id       INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id BETWEEN 1 AND 16777215),
    org      INTEGER NOT NULL REFERENCES org (id),
    name     TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 63),
    node     INTEGER NOT NULL REFERENCES node (id),
    -- IPv4 prefixes, separated by commas.
    prefixes TEXT NOT NULL CHECK (length(prefixes) >= 1),
    created  INTEGER NOT NULL,
    UNIQUE (org, name)
);
CREATE INDEX site_node ON site (node);
