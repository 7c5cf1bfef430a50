-- Browsers in which a person has signed in to the web page. They have no node.

CREATE TABLE browser (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    "user"  INTEGER NOT NULL REFERENCES "user" (id),
    -- SHA-256 of the cookie's secret, which is random and long, so that no salt is needed.
    hash    BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    -- The identity provider that signed her in; none with a login token.
    issuer  TEXT,
    -- The session there, if it names one.
    sid     TEXT,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    CHECK (sid IS NULL OR issuer IS NOT NULL),
    -- Nobody confirms it meanwhile, so it ends within the day, and within the hour if a provider
    -- could say no.
    CHECK (expires - created BETWEEN 1 AND 43200),
    CHECK (issuer IS NULL OR expires - created <= 3600)
);
CREATE INDEX browser_user ON browser ("user");
