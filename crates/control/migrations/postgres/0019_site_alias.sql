-- By which other IPv4 addresses machines know the hosts of a site: `PREFIX=ALIAS`, separated by
-- commas.

ALTER TABLE site ADD COLUMN aliases TEXT NOT NULL DEFAULT '';
