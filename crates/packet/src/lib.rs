//! Bytes on the wire: total parsers and exact emitters for IP, TCP, UDP and ICMP, and capture
//! files.
//!
//! A parser never panics and never reads outside its input; what it accepts, the emitter writes
//! back unchanged. Nothing here has state.

pub mod checksum;
pub mod ecn;
pub mod flow;
pub mod gro;
pub mod gso;
pub mod icmp;
pub mod ip;
pub mod pcap_filter;
pub mod pcapng;
pub mod spread;
pub mod tcp;
pub mod translate;
pub mod udp;
pub mod vnet;
