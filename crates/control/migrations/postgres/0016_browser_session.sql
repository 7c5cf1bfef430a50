-- A browser in which a provider signed a person in keeps a refresh token as a device does: it stays
-- signed in for the day, and the provider is asked all along.

-- Who she is at the provider.
ALTER TABLE browser ADD COLUMN subject TEXT;
-- Sealed by the master key; without one nobody asks the provider.
ALTER TABLE browser ADD COLUMN refresh_token BYTEA;
-- When the provider last said yes, and when to ask it again.
ALTER TABLE browser ADD COLUMN confirmed BIGINT;
ALTER TABLE browser ADD COLUMN due BIGINT;
-- The third of the constraints of the table, which got its name from the database.
ALTER TABLE browser DROP CONSTRAINT browser_check2;
-- Within the hour if a provider could say no and is not asked.
ALTER TABLE browser ADD CONSTRAINT browser_confirmed
    CHECK (issuer IS NULL OR expires - created <= 3600 OR refresh_token IS NOT NULL);
ALTER TABLE browser ADD CONSTRAINT browser_refresh CHECK (CASE WHEN refresh_token IS NULL
    THEN subject IS NULL AND confirmed IS NULL AND due IS NULL
    ELSE issuer IS NOT NULL AND subject IS NOT NULL AND confirmed IS NOT NULL
         AND due IS NOT NULL END);
CREATE INDEX browser_due ON browser (due);
