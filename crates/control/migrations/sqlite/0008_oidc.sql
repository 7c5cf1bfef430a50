-- Sign-in by an identity provider: one for each organisation.

CREATE TABLE oidc_provider (
    org           INTEGER PRIMARY KEY REFERENCES org (id),
    issuer        TEXT NOT NULL CHECK (length(issuer) BETWEEN 1 AND 255),
    client_id     TEXT NOT NULL CHECK (length(client_id) BETWEEN 1 AND 255),
    -- Sealed by the master key; a public client has none.
    client_secret BLOB,
    -- Separated by spaces, as requests carry them.
    scopes        TEXT NOT NULL,
    groups_claim  TEXT NOT NULL,
    created       INTEGER NOT NULL
);

-- Which role the members of a group have.
CREATE TABLE oidc_role (
    org  INTEGER NOT NULL REFERENCES oidc_provider (org),
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    role TEXT NOT NULL CHECK (role IN ('admin', 'developer', 'guest')),
    PRIMARY KEY (org, name)
);

-- Who a person is at a provider. An e-mail address is nobody's identity.
CREATE TABLE oidc_identity (
    "user"  INTEGER PRIMARY KEY REFERENCES "user" (id),
    org     INTEGER NOT NULL REFERENCES org (id),
    issuer  TEXT NOT NULL CHECK (length(issuer) BETWEEN 1 AND 255),
    subject TEXT NOT NULL CHECK (length(subject) BETWEEN 1 AND 255)
);
CREATE INDEX oidc_identity_subject ON oidc_identity (org, issuer, subject);

-- The groups that a person was in when her provider was asked last, as far as rules can name them.
CREATE TABLE user_group (
    "user" INTEGER NOT NULL REFERENCES "user" (id),
    name   TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 63),
    PRIMARY KEY ("user", name)
);

-- What a device that was signed in by a provider needs to stay so.
CREATE TABLE oidc_session (
    node          INTEGER PRIMARY KEY REFERENCES node (id),
    "user"        INTEGER NOT NULL REFERENCES "user" (id),
    org           INTEGER NOT NULL REFERENCES org (id),
    issuer        TEXT NOT NULL,
    subject       TEXT NOT NULL,
    -- The session at the provider, if it names one.
    sid           TEXT,
    -- Sealed by the master key; without one the session ends by itself.
    refresh_token BLOB,
    begun         INTEGER NOT NULL,
    -- When the provider last said that the person is still there.
    confirmed     INTEGER NOT NULL,
    -- When to ask again, or when the session ends.
    due           INTEGER NOT NULL
);
CREATE INDEX oidc_session_due ON oidc_session (due);
CREATE INDEX oidc_session_user ON oidc_session ("user");
