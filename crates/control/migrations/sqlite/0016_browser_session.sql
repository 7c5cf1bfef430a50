-- A browser in which a provider signed a person in keeps a refresh token as a device does: it stays
-- signed in for the day, and the provider is asked all along. SQLite changes the constraint of a
-- table only with the table.

CREATE TABLE browser_new (
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
    -- Who she is at the provider.
    subject TEXT,
    -- Sealed by the master key; without one nobody asks the provider.
    refresh_token BLOB,
    -- When the provider last said yes, and when to ask it again.
    confirmed     INTEGER,
    due           INTEGER,
    CHECK (sid IS NULL OR issuer IS NOT NULL),
    CHECK (expires - created BETWEEN 1 AND 43200),
    -- Within the hour if a provider could say no and is not asked.
    CONSTRAINT browser_confirmed
        CHECK (issuer IS NULL OR expires - created <= 3600 OR refresh_token IS NOT NULL),
    CONSTRAINT browser_refresh CHECK (CASE WHEN refresh_token IS NULL
        THEN subject IS NULL AND confirmed IS NULL AND due IS NULL
        ELSE issuer IS NOT NULL AND subject IS NOT NULL AND confirmed IS NOT NULL
             AND due IS NOT NULL END)
);
INSERT INTO browser_new (id, "user", hash, issuer, sid, created, expires)
    SELECT id, "user", hash, issuer, sid, created, expires FROM browser;
-- Ids are never given again, though their rows are gone.
DELETE FROM sqlite_sequence WHERE name = 'browser_new';
INSERT INTO sqlite_sequence (name, seq)
    SELECT 'browser_new', seq FROM sqlite_sequence WHERE name = 'browser';
DROP TABLE browser;
ALTER TABLE browser_new RENAME TO browser;
CREATE INDEX browser_user ON browser ("user");
CREATE INDEX browser_due ON browser (due);
