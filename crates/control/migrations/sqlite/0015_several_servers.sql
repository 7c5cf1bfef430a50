-- Each server on one PostgreSQL has a gateway of its own; rows may come from there by a copy.

DROP INDEX node_builtin;
