-- Lists of an organisation visit no rows of others.

CREATE INDEX ssh_certificate_org ON ssh_certificate (org);
CREATE INDEX token_org ON token (org) WHERE org IS NOT NULL;
