//! The client against the real server over TLS, and against what is not a server.
