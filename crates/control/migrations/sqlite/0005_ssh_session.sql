-- Recorded sessions. Times are seconds since the Unix epoch.

CREATE TABLE ssh_session (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    org       INTEGER NOT NULL REFERENCES org (id),
    -- Records outlive the rows of nodes and certificates.
    node      INTEGER NOT NULL,
    node_name TEXT NOT NULL,
    "user"    INTEGER REFERENCES "user" (id),
    serial    INTEGER NOT NULL,
    account   TEXT NOT NULL,
    source    TEXT NOT NULL,
    terminal  INTEGER NOT NULL CHECK (terminal IN (0, 1)),
    command   TEXT,
    begun     INTEGER NOT NULL,
    ended     INTEGER,
    status    INTEGER,
    pieces    INTEGER NOT NULL DEFAULT 0,
    bytes     INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX ssh_session_org ON ssh_session (org);
CREATE INDEX ssh_session_begun ON ssh_session (begun);

CREATE TABLE ssh_session_piece (
    session INTEGER NOT NULL REFERENCES ssh_session (id),
    number  INTEGER NOT NULL,
    text    TEXT NOT NULL,
    PRIMARY KEY (session, number)
);
