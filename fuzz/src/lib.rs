//! The bodies of all fuzz targets: each takes bytes and panics when a promise is broken.
//!
//! `fuzz_targets` hands them libFuzzer's bytes; `tests/replay.rs` hands them the corpus, on stable.

pub mod api;
pub mod corpus;
pub mod input;
pub mod model;
pub mod netstack;
pub mod offload;
pub mod packet;
pub mod resolver;
pub mod socks;
pub mod uapi;
pub mod wireguard;

/// A target: it takes any bytes.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("api_bodies", api::bodies),
    ("model_config", model::config),
    ("model_map", model::map),
    ("model_text", model::text),
    ("model_token", model::token),
    ("netstack_packets", netstack::packets),
    ("netstack_pair", netstack::pair),
    ("node_resolver", resolver::messages),
    ("packet_icmp", packet::icmp),
    ("packet_ip", packet::ip),
    ("packet_offload", offload::packets),
    ("packet_tcp", packet::tcp),
    ("packet_udp", packet::udp),
    ("socks_messages", socks::messages),
    ("uapi_requests", uapi::requests),
    ("wireguard_device", wireguard::device),
    ("wireguard_messages", wireguard::messages),
];
