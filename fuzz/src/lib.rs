//! The bodies of all fuzz targets: each takes bytes and panics when a promise is broken.
//!
//! `fuzz_targets` hands them libFuzzer's bytes; `tests/replay.rs` hands them the corpus, on stable.

pub mod api;
pub mod capture;
pub mod connection;
pub mod corpus;
pub mod foreign;
pub mod input;
pub mod model;
pub mod netstack;
pub mod offload;
pub mod packet;
pub mod resolver;
pub mod shell;
pub mod socks;
pub mod uapi;
pub mod wireguard;

// Parts of the binary, each under the name that it has there.
#[allow(dead_code, unused_imports, reason = "the rest is the binary's")]
#[path = "../../crates/ginnel/src/ssh"]
mod ssh {
    pub(crate) mod acceptance;
    mod algorithms;
    mod channels;
    pub(crate) mod server;
}

#[allow(dead_code, reason = "the rest is the binary's")]
#[path = "../../crates/ginnel/src/replay"]
mod replay {
    mod message;
    pub(crate) mod recording;
    pub(crate) mod story;
}

#[allow(dead_code, reason = "the rest is the binary's")]
#[path = "../../crates/ginnel/src/cert"]
mod cert {
    use std::time::Duration;

    use russh::keys::{Certificate, PrivateKey};
    use tokio::io::{AsyncRead, AsyncWrite};

    mod agent;

    /// The binary's own is open to its parent only.
    pub(crate) async fn add(
        agent: &mut (impl AsyncRead + AsyncWrite + Unpin),
        key: &PrivateKey,
        certificate: &Certificate,
        lifetime: Duration,
    ) -> anyhow::Result<()> {
        agent::add(agent, key, certificate, lifetime).await
    }
}

/// In place of the binary's remedies, which a person reads.
mod remedy {
    pub(crate) trait Advise<T> {
        fn remedy(self, text: &str) -> anyhow::Result<T>;
    }

    impl<T> Advise<T> for anyhow::Result<T> {
        fn remedy(self, _: &str) -> anyhow::Result<T> {
            self
        }
    }

    pub(crate) fn advise(text: &'static str, _: &str) -> anyhow::Error {
        anyhow::Error::msg(text)
    }
}

/// A target: it takes any bytes.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("api_bodies", api::bodies),
    ("model_config", model::config),
    ("model_map", model::map),
    ("model_text", model::text),
    ("model_token", model::token),
    ("netstack_connection", connection::run),
    ("netstack_foreign", foreign::run),
    ("netstack_packets", netstack::packets),
    ("netstack_pair", netstack::pair),
    ("node_resolver", resolver::messages),
    ("packet_filter", capture::filters),
    ("packet_icmp", packet::icmp),
    ("packet_ip", packet::ip),
    ("packet_offload", offload::packets),
    ("packet_options", packet::options),
    ("packet_tcp", packet::tcp),
    ("packet_translate", packet::translate),
    ("packet_udp", packet::udp),
    ("replay_files", capture::files),
    ("socks_messages", socks::messages),
    ("ssh_acceptance", shell::acceptance),
    ("ssh_agent", shell::agent),
    ("ssh_bytes", shell::bytes),
    ("ssh_logins", shell::logins),
    ("uapi_requests", uapi::requests),
    ("wireguard_device", wireguard::device),
    ("wireguard_messages", wireguard::messages),
];
