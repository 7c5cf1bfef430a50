//! User-mode TCP, UDP and ICMP echo as a state machine without IO.
