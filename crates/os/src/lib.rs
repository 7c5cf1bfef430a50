//! The machine: clock, randomness, TUN, UDP and netlink; the only unsafe code.
