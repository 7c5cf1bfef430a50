//! The WireGuard protocol as a state machine without IO.
