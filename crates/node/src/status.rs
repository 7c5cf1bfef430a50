//! What a node says about itself: a snapshot for people and programs.

mod details;

use std::{
    net::IpAddr,
    time::{Duration, Instant, UNIX_EPOCH},
};

use model::{
    api::{GatewayTunnel, NodeTunnel, Timestamp, Transport},
    endpoint::Endpoint,
    id::{OrgId, SiteId},
    key::PublicKey,
    map::Role,
    status::{
        CONNECTIONS_MAX, Carried, Connection, Hop, Org, PEERS_MAX, Peer, Problem, SITES_MAX,
        SiteNode, Status, Traffic, Tunnel,
    },
};
use netstack::{CongestionControl, Statistics};
use wireguard::{PeerId, PeerStatus, REJECT_AFTER_TIME};

use crate::{
    node::{Link, Node, Source},
    path, roster,
};

/// So many initiations without an answer are no accident: the first was repeated after 5 s.
const ATTEMPTS_MAX: u32 = 2;

impl Node {
    /// Takes a snapshot. Its cost grows with the number of peers.
    #[must_use]
    pub fn status(&self, now: Instant) -> Status {
        let map = self.map();
        let mut peers: Vec<_> = self.device.peers().collect();
        let count = |length| u64::try_from(length).expect("a length fits 64 bits");
        let peers_total = count(peers.len());
        let up = peers.iter().filter(|peer| is_up(now, peer));
        let peers_up = count(up.count());
        peers.sort_by_key(|peer| std::cmp::Reverse(peer.last_handshake));
        peers.truncate(PEERS_MAX);
        let peers: Vec<_> = peers.iter().map(|peer| self.peer(now, peer)).collect();
        let problems = self.problems(&peers);
        Status {
            name: map.map(|map| map.own.name.clone()),
            role: map.map(|map| map.own.role),
            serial: map.map(|map| map.serial),
            public_key: self.device.public_key().map(|key| PublicKey(key.0)),
            addresses: self.addresses(),
            orgs: self.org_status(),
            peers,
            peers_total,
            peers_up,
            traffic: traffic(self.device.traffic()),
            happened: self.happened,
            carried: self.carried_status(now),
            discards: self.counters.occurred(),
            problems,
        }
    }

    /// Tells how the tunnels of at most `max` peers behind `last` stand, as far as they have had a
    /// handshake, and which peer is the last of these; `None` when there are no more. So whoever
    /// tells of very many can pause.
    #[must_use]
    pub fn tunnels_after(
        &self,
        last: Option<PeerId>,
        max: usize,
    ) -> (Vec<NodeTunnel>, Option<PeerId>) {
        let mut told = Vec::new();
        let mut last_seen = None;
        for peer in self.device.peers_after(last).take(max) {
            last_seen = Some(peer.id);
            told.extend(node_tunnel(&peer));
        }
        (told, last_seen)
    }

    /// Lists TCP connections of the stack, at most [`CONNECTIONS_MAX`], those with the most data
    /// first.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        let (Link::Tun(stack) | Link::Netstack(stack)) = &self.attachment else {
            return Vec::new();
        };
        let mut all: Vec<_> = stack.all_statistics().collect();
        all.sort_by_key(|told| std::cmp::Reverse(told.acknowledged + told.received));
        all.truncate(CONNECTIONS_MAX);
        all.iter().map(connection).collect()
    }

    /// Finds the peer of that name, or of that public key as text.
    #[must_use]
    pub fn peer_named(&self, name: &str) -> Option<PublicKey> {
        match name.parse() {
            Ok(key) => self.roster.peer(&key).map(|_| key),
            Err(_) => self.roster.named(name),
        }
    }

    /// Shows one peer.
    #[must_use]
    pub fn peer_status(&self, now: Instant, public_key: &PublicKey) -> Option<Peer> {
        let status = self.device.status(self.roster.peer(public_key)?.id)?;
        Some(self.peer(now, &status))
    }

    /// Shows the peer through which packets reach `destination`; `None` when nobody leads there.
    #[must_use]
    pub fn path(&self, now: Instant, destination: IpAddr) -> Option<Peer> {
        let peer = path::choose(&self.device, destination)?;
        let status = self.device.status(peer)?;
        Some(self.peer(now, &status))
    }

    fn org_status(&self) -> Vec<Org> {
        let orgs = self.map().into_iter().flat_map(|map| &map.orgs);
        orgs.map(|(id, org)| Org {
            id: *id,
            name: org.name.clone(),
            prefix: org.prefix.to_string(),
            nodes: u64::try_from(org.nodes.len()).expect("a length fits 64 bits"),
        })
        .collect()
    }

    fn carried_status(&self, now: Instant) -> Vec<Carried> {
        let Some(map) = self.map() else {
            return Vec::new();
        };
        let own = map.own.id;
        let behind = map.orgs.iter().flat_map(|(id, org)| {
            let sites = org.sites.iter().filter(|(_, site)| site.is_behind(own));
            sites.map(|(site, _)| (*id, *site))
        });
        let behind = behind.take(if self.is_gateway() { 0 } else { SITES_MAX });
        let known = self.carried_sites().into_iter();
        let known = known.map(|(org, site, _)| (org, site));
        let all = known
            .chain(behind)
            .filter_map(|(org, site)| self.carried(now, org, site));
        all.take(SITES_MAX).collect()
    }

    /// Shows which node carries a site that has several; `None` of another one, and while nothing
    /// is known.
    #[must_use]
    pub fn carried(&self, now: Instant, org: OrgId, site: SiteId) -> Option<Carried> {
        let nodes = self.site_nodes(now, org, site);
        let org = self.map()?.orgs.get(&org)?;
        let nodes = nodes.iter().filter_map(|told| {
            let (carries, health) = (told.carries, told.health);
            let name = org.nodes.get(&told.node)?.name.clone();
            Some(SiteNode {
                name,
                carries,
                health,
            })
        });
        let carried = Carried {
            org: org.name.clone(),
            site: org.sites.get(&site)?.name.clone(),
            nodes: nodes.collect(),
        };
        (!carried.nodes.is_empty()).then_some(carried)
    }

    fn peer(&self, now: Instant, status: &PeerStatus<'_>) -> Peer {
        let peer = self.roster.peer(&PublicKey(status.public_key.0));
        Peer {
            name: peer.and_then(|peer| peer.wanted.name.clone()),
            tunnel: tunnel(now, status, peer),
            path_mtu_bytes: peer.and_then(|peer| self.path_mtu_of(peer.id)),
            ..of_peer(now, status)
        }
    }

    /// Lists what keeps a client from its peers; a gateway's peers come and go as they like.
    fn problems(&self, peers: &[Peer]) -> Vec<Problem> {
        let mut problems = Vec::new();
        match &self.source {
            Source::Nothing => problems.push(problem(
                Hop::Map,
                "there is no network map yet".to_owned(),
                "wait for the control plane, or look at its address in the state directory",
            )),
            Source::Map(map) if map.own.role == Role::Gateway => return problems,
            Source::Map(map) if !map.own.state.is_active() => {
                let hindrance = map.own.hindrance().into_iter();
                problems.extend(
                    hindrance
                        .map(|(message, remedy)| problem(Hop::Map, message.to_owned(), &remedy)),
                );
            }
            Source::Map(map) => {
                for org in map.orgs.values() {
                    match &org.gateway {
                        None => problems.push(problem(
                            Hop::Map,
                            format!("the organisation {} has no gateway", org.name),
                            "start one with `ginnel gateway`, or ask the operator to",
                        )),
                        Some(gateway) if gateway.endpoint.parse::<Endpoint>().is_err() => {
                            problems.push(problem(
                                Hop::Map,
                                format!("the endpoint of gateway {} is malformed", gateway.name),
                                "ask the operator to start the gateway with --public HOST:PORT",
                            ));
                        }
                        Some(_) => {}
                    }
                }
            }
            Source::Config { .. } => {}
        }
        for (key, error) in self.roster.refused() {
            problems.push(problem(
                Hop::Map,
                format!("the key {key} cannot be a peer: {error}"),
                "enrol again, or correct the PublicKey of that peer",
            ));
        }
        problems.extend(peers.iter().filter_map(|peer| self.tunnel_problem(peer)));
        problems
    }

    fn tunnel_problem(&self, peer: &Peer) -> Option<Problem> {
        let name = match &peer.name {
            Some(name) => format!("gateway {name}"),
            None => format!("peer {}", peer.public_key),
        };
        let wanted = self.roster.peer(&peer.public_key)?.wanted.endpoint.as_ref();
        match (peer.tunnel, wanted, peer.endpoint) {
            (Tunnel::Unresolved, Some(endpoint), _) => Some(problem(
                Hop::Dns,
                format!("the endpoint {endpoint} of {name} has no address yet"),
                "see whether this machine resolves that name",
            )),
            (Tunnel::Unanswered, _, Some(endpoint)) => Some(problem(
                Hop::Handshake,
                format!("{name} at {endpoint} does not answer the WireGuard handshake"),
                "UDP to that address may be blocked, it may be down, or a key is wrong: try \
                 another network, then compare the public keys",
            )),
            (Tunnel::NoEndpoint, _, None) => Some(problem(
                Hop::Handshake,
                format!("{name} has no endpoint, and has not been heard"),
                "give it an Endpoint, or wait until it begins",
            )),
            (
                Tunnel::Up
                | Tunnel::Idle
                | Tunnel::Unresolved
                | Tunnel::Unanswered
                | Tunnel::NoEndpoint,
                _,
                _,
            ) => None,
        }
    }
}

fn problem(hop: Hop, message: String, remedy: &str) -> Problem {
    let remedy = remedy.to_owned();
    Problem {
        hop,
        message,
        remedy,
    }
}

/// Shows a peer of a device of which no more is known: it has no name.
#[must_use]
pub fn of_peer(now: Instant, status: &PeerStatus<'_>) -> Peer {
    let age = status
        .last_handshake
        .map(|then| now.saturating_duration_since(then));
    let allowed = status.allowed_ips.iter();
    Peer {
        name: None,
        public_key: PublicKey(status.public_key.0),
        endpoint: status.endpoint,
        allowed_ips: allowed
            .map(|prefix| format!("{}/{}", prefix.address(), prefix.bits()))
            .collect(),
        tunnel: tunnel(now, status, None),
        last_handshake_seconds: age.map(|age| age.as_secs()),
        traffic: traffic(status.traffic),
        persistent_keepalive_seconds: status.persistent_keepalive.map(Into::into),
        path_mtu_bytes: None,
    }
}

/// Shows what was exchanged with a peer or a device.
#[must_use]
pub fn traffic(told: wireguard::Traffic) -> Traffic {
    Traffic {
        received_datagrams: told.received_datagrams,
        received_bytes: told.received_bytes,
        sent_datagrams: told.sent_datagrams,
        sent_bytes: told.sent_bytes,
    }
}

/// How a tunnel stands that has had a handshake.
fn node_tunnel(peer: &PeerStatus<'_>) -> Option<NodeTunnel> {
    let since = peer.last_handshake_wall?.duration_since(UNIX_EPOCH).ok()?;
    let transport = match peer.endpoint?.ip().to_canonical() {
        IpAddr::V4(_) => Transport::UdpIpv4,
        IpAddr::V6(_) => Transport::UdpIpv6,
    };
    Some(NodeTunnel {
        public_key: PublicKey(peer.public_key.0),
        tunnel: GatewayTunnel {
            handshake: Timestamp(i64::try_from(since.as_secs()).ok()?),
            transport,
            received_bytes: peer.traffic.received_bytes,
            sent_bytes: peer.traffic.sent_bytes,
        },
    })
}

pub(crate) fn is_up(now: Instant, status: &PeerStatus<'_>) -> bool {
    let young = |then| now.saturating_duration_since(then) < REJECT_AFTER_TIME;
    status.last_handshake.is_some_and(young)
}

fn tunnel(now: Instant, status: &PeerStatus<'_>, peer: Option<&roster::Peer>) -> Tunnel {
    let attempts = peer.map_or(0, |peer| peer.attempts);
    if is_up(now, status) {
        Tunnel::Up
    } else if peer.is_some_and(|peer| peer.unresolved) {
        Tunnel::Unresolved
    } else if status.endpoint.is_none() {
        Tunnel::NoEndpoint
    } else if attempts >= ATTEMPTS_MAX {
        Tunnel::Unanswered
    } else {
        Tunnel::Idle
    }
}

fn connection(told: &Statistics) -> Connection {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let bytes = |length: usize| u64::try_from(length).expect("a length fits 64 bits");
    Connection {
        local: told.local,
        remote: told.remote,
        state: told.state.name().to_owned(),
        segment_bytes: told.segment_size,
        congestion_control: match told.congestion_control {
            CongestionControl::Cubic => "cubic".to_owned(),
            CongestionControl::Bbr => "bbr".to_owned(),
        },
        cwnd_bytes: told.cwnd,
        ssthresh_bytes: told.ssthresh,
        pacing_rate_bytes: told.pacing_rate,
        smoothed_rtt_us: told.smoothed_rtt.map(micros),
        rtt_variation_us: micros(told.rtt_variation),
        retransmission_timeout_us: micros(told.retransmission_timeout),
        retransmissions: told.retransmissions,
        in_flight_bytes: told.in_flight.into(),
        send_window_bytes: told.send_window.into(),
        receive_window_bytes: told.receive_window.into(),
        send_queue_bytes: bytes(told.send_queue),
        receive_queue_bytes: bytes(told.receive_queue),
        acknowledged_bytes: told.acknowledged,
        received_bytes: told.received,
    }
}
