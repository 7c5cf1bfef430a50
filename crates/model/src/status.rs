//! What a node tells people about itself: the stable form of `ginnel status --json`.

mod details;
mod site;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::{id::OrgId, key::PublicKey, map::Role, name::Label};

pub use self::{
    details::{HEARD_MAX, Handshake, Heard, PeerDetails, Session},
    site::{ReturnPath, Site, SiteNode, StaticRoute},
};

/// The state of one node at one moment.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Status {
    /// Its name; `None` with a plain configuration or before the first map.
    #[serde(default)]
    pub name: Option<Label>,
    /// Its part in the network; `None` as above.
    #[serde(default)]
    pub role: Option<Role>,
    /// Serial of the map it works by; `None` as above.
    #[serde(default)]
    pub serial: Option<u64>,
    /// Its public key; `None` when a plain configuration has not been applied yet.
    #[serde(default)]
    pub public_key: Option<PublicKey>,
    /// Its own addresses inside the network.
    pub addresses: Vec<IpAddr>,
    /// Its organisation, or for a gateway all that it serves.
    pub orgs: Vec<Org>,
    /// Its WireGuard peers, at most [`PEERS_MAX`], those with the latest handshake first.
    pub peers: Vec<Peer>,
    /// How many WireGuard peers it has in all.
    pub peers_total: u64,
    /// To how many of them a tunnel stands.
    #[serde(default)]
    pub peers_up: u64,
    /// What was exchanged with all peers since the node started, also with those that are gone.
    #[serde(default)]
    pub traffic: Traffic,
    /// How often something happened since the node started.
    #[serde(default)]
    pub happened: Happened,
    /// Sites with several nodes: those that the gateway leads to, at most [`SITES_MAX`], or those
    /// behind the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carried: Vec<Carried>,
    /// Packets that were not delivered, by reason; reasons that never occurred are left out.
    pub discards: BTreeMap<String, u64>,
    /// What keeps the node from working, most basic first; empty when nothing does.
    pub problems: Vec<Problem>,
}

/// What passes as one at a node, so that it costs less.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Offload {
    /// Packets that the interface passes larger than its MTU: "TCP and UDP", "TCP", "checksums
    /// only" or "off"; `None` in user mode.
    #[serde(default)]
    pub tun: Option<String>,
    /// Whether packets that follow each other are written to the interface as one; `None` in user
    /// mode.
    #[serde(default)]
    pub joined: Option<bool>,
    /// Whether several datagrams are sent as one.
    pub runs_sent: bool,
    /// Whether several datagrams are received as one; `None` where that could not be tried.
    #[serde(default)]
    pub runs_received: Option<bool>,
}

/// A site with several nodes, one of which carries it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Carried {
    /// Name of its organisation.
    pub org: Label,
    /// Its name.
    pub site: Label,
    /// Its nodes, the preferred one first; at most four.
    pub nodes: Vec<SiteNode>,
}

/// An organisation that the node belongs to or serves.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Org {
    /// Its id.
    pub id: OrgId,
    /// Its name.
    pub name: Label,
    /// Its prefix as text.
    pub prefix: String,
    /// How many nodes it has.
    pub nodes: u64,
}

/// A WireGuard peer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Peer {
    /// Name of the node behind it; `None` with a plain configuration.
    #[serde(default)]
    pub name: Option<Label>,
    /// Its public key.
    pub public_key: PublicKey,
    /// Where its datagrams go; `None` while unknown.
    #[serde(default)]
    pub endpoint: Option<SocketAddr>,
    /// Its allowed IPs as text.
    pub allowed_ips: Vec<String>,
    /// Whether a tunnel stands.
    pub tunnel: Tunnel,
    /// Age of the last handshake.
    #[serde(default)]
    pub last_handshake_seconds: Option<u64>,
    /// What was received from it and sent to it.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Interval of persistent keepalives; `None` when off.
    #[serde(default)]
    pub persistent_keepalive_seconds: Option<u16>,
    /// The longest IP packet, in bytes, that passes through the tunnel without being fragmented
    /// outside (RFC 8899), looked for from 512 to 1,420; a gateway shows what each node has told
    /// it. `None` while unknown, and of plain clients.
    #[serde(default)]
    pub path_mtu_bytes: Option<u16>,
}

/// Datagrams that are authentic or were sealed; the numbers only grow.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Traffic {
    /// Datagrams received.
    #[serde(default)]
    pub received_datagrams: u64,
    /// Bytes received, with all headers of WireGuard.
    pub received_bytes: u64,
    /// Datagrams sent.
    #[serde(default)]
    pub sent_datagrams: u64,
    /// Bytes sent, with all headers of WireGuard.
    pub sent_bytes: u64,
}

/// How often something happened to tunnels; the numbers only grow.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Happened {
    /// A handshake was completed.
    pub handshakes_completed: u64,
    /// A handshake was given up, because nobody answered.
    pub handshakes_abandoned: u64,
    /// A peer was heard from another address.
    pub endpoints_moved: u64,
    /// Another node carried a site from then on: one that the gateway leads to, or one behind the
    /// node.
    #[serde(default)]
    pub sites_moved: u64,
}

/// A TCP connection of a node in user mode.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Connection {
    /// Our address and port inside the network.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// Its state as RFC 9293 names it.
    pub state: String,
    /// Data of a full segment.
    pub segment_bytes: u32,
    /// The congestion control: `cubic` or `bbr`.
    pub congestion_control: String,
    /// The congestion window.
    pub cwnd_bytes: u32,
    /// Where slow start ends; `None` before a loss.
    #[serde(default)]
    pub ssthresh_bytes: Option<u32>,
    /// The pace of new data, in a second; `None` before the first round trip.
    #[serde(default)]
    pub pacing_rate_bytes: Option<u64>,
    /// The smoothed round-trip time; `None` before the first round trip.
    #[serde(default)]
    pub smoothed_rtt_us: Option<u64>,
    /// How much it varies.
    pub rtt_variation_us: u64,
    /// The retransmission timeout.
    pub retransmission_timeout_us: u64,
    /// Segments that were sent again.
    pub retransmissions: u64,
    /// Data on its way.
    pub in_flight_bytes: u64,
    /// What the peer lets us have on the way.
    pub send_window_bytes: u64,
    /// What we let the peer have on the way.
    pub receive_window_bytes: u64,
    /// Data that is sent and not acknowledged, or waits to be sent.
    pub send_queue_bytes: u64,
    /// Data that nobody has read yet.
    pub receive_queue_bytes: u64,
    /// Data that the peer has acknowledged.
    pub acknowledged_bytes: u64,
    /// Data that has come.
    pub received_bytes: u64,
}

/// How a tunnel to a peer stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tunnel {
    /// The last handshake is young enough for its keys to be used.
    Up,
    /// There is no key, and none was asked for lately.
    Idle,
    /// Initiations were sent, and nobody has answered them.
    Unanswered,
    /// The endpoint is a name that has not been resolved.
    Unresolved,
    /// It is not known where to send to: the peer has to begin.
    NoEndpoint,
}

/// Something that a person has to know about, and what she can do.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Problem {
    /// Where on the way it is.
    pub hop: Hop,
    /// What is wrong.
    pub message: String,
    /// What to do about it, in one line.
    pub remedy: String,
}

/// A stretch of the way from a node to its goal.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hop {
    /// The public DNS gives no address for an endpoint.
    Dns,
    /// A WireGuard handshake is not answered.
    Handshake,
    /// The network map lacks something that is needed.
    Map,
}

/// No more connections are listed than this, which fit one answer of an agent.
pub const CONNECTIONS_MAX: usize = 64;

/// A status lists no more peers than this; a gateway may have very many.
pub const PEERS_MAX: usize = 1_000;

/// Nor more sites with several nodes than this.
pub const SITES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_read_the_names_that_the_manual_gives() {
        let status = Status {
            name: None,
            role: Some(Role::Client),
            serial: Some(3),
            public_key: Some(PublicKey([1; 32])),
            addresses: vec![IpAddr::from([10, 0, 0, 1])],
            orgs: Vec::new(),
            peers: vec![Peer {
                name: None,
                public_key: PublicKey([2; 32]),
                endpoint: Some(SocketAddr::from(([192, 0, 2, 1], 51820))),
                allowed_ips: vec!["10.0.0.0/8".to_owned()],
                tunnel: Tunnel::NoEndpoint,
                last_handshake_seconds: Some(7),
                traffic: Traffic {
                    received_bytes: 1,
                    sent_bytes: 2,
                    ..Traffic::default()
                },
                persistent_keepalive_seconds: Some(25),
                path_mtu_bytes: None,
            }],
            peers_total: 1,
            peers_up: 0,
            traffic: Traffic::default(),
            happened: Happened::default(),
            carried: Vec::new(),
            discards: BTreeMap::from([("node.no_peer".to_owned(), 1)]),
            problems: Vec::new(),
        };
        let json = serde_json::to_value(&status).expect("plain data");
        assert_eq!(json["role"], "client");
        assert_eq!(json["peers"][0]["tunnel"], "no_endpoint");
        assert_eq!(json["peers"][0]["endpoint"], "192.0.2.1:51820");
        assert_eq!(json["peers"][0]["sent_bytes"], 2);
        assert_eq!(json["discards"]["node.no_peer"], 1);
        let read: Status = serde_json::from_value(json).expect("its own form");
        assert_eq!(read, status);
    }
}
