-- Up to which serial the user certificates of a node count no more.

CREATE TABLE ssh_cut (
    node   INTEGER PRIMARY KEY REFERENCES node (id),
    org    INTEGER NOT NULL REFERENCES org (id),
    serial INTEGER NOT NULL
);
CREATE INDEX ssh_cut_org ON ssh_cut (org);
