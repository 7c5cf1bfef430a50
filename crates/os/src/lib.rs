//! The machine: clock, randomness, TUN, UDP, netlink, files and processes; the only unsafe code.
//!
//! Everything here is a thin, safe door to one service of Linux. Nothing here knows what the
//! bytes mean.

#![expect(
    unsafe_code,
    reason = "system calls stand in this crate so that they stand nowhere else"
)]

pub mod account;
pub mod clock;
pub mod echo;
pub mod file;
pub mod link;
pub mod net;
pub mod poll;
pub mod privilege;
pub mod process;
pub mod random;
pub mod reactor;
pub mod signal;
pub mod tcp;
pub mod terminal;
pub mod tun;
pub mod udp;
pub mod unix;
