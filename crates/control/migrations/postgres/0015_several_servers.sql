-- Each server on one database has a gateway of its own.

DROP INDEX node_builtin;
