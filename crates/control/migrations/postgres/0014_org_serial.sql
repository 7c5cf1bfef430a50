-- Gateways ask for the organisations that changed after a serial.

CREATE INDEX org_serial ON org (serial);
