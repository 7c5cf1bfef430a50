-- Further nodes that lead to a site, in the order in which they are preferred: their ids, separated
-- by commas.

ALTER TABLE site ADD COLUMN standbys TEXT NOT NULL DEFAULT '';
