-- Who may reach what. Times are seconds since the Unix epoch.

CREATE TABLE rule (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    org     INTEGER NOT NULL REFERENCES org (id),
    -- Selectors and traffic, separated by commas, which none of them holds.
    source  TEXT NOT NULL CHECK (length(source) >= 1),
    target  TEXT NOT NULL CHECK (length(target) >= 1),
    traffic TEXT NOT NULL CHECK (length(traffic) >= 1),
    comment TEXT NOT NULL CHECK (length(comment) <= 255),
    created INTEGER NOT NULL
);
CREATE INDEX rule_org ON rule (org);

CREATE TABLE node_tag (
    node INTEGER NOT NULL REFERENCES node (id),
    tag  TEXT NOT NULL CHECK (length(tag) BETWEEN 1 AND 63),
    PRIMARY KEY (node, tag)
);

-- What nodes could reach before there were rules they can reach after it.
INSERT INTO rule (org, source, target, traffic, comment, created)
SELECT id, '*', '*', 'all', 'as it was before there were rules', created
FROM org WHERE removed IS NULL;
