//! Stories of nodes that reach each other through a gateway.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use model::{
    key::PublicKey,
    status::{Hop, Tunnel},
};
use netstack::{CloseReason, ConnectionId, EchoFailure, Received};
use node::{Discard, Event, Reason};
use packet::icmp::{Cause, Unreachable};

use crate::world::{GATEWAY, Installation, World, endpoint, ip, netstack, public_key};

/// Bytes under way from one host to another.
pub(crate) struct Transfer {
    from: (u8, ConnectionId),
    to: u8,
    accepted: Option<ConnectionId>,
    total: usize,
    sent: usize,
    pub(crate) received: usize,
    pub(crate) closed: Option<CloseReason>,
}

impl Transfer {
    /// Opens a connection to a port that `to` publishes.
    pub(crate) fn begin(world: &mut World, from: u8, to: u8, port: u16, total: usize) -> Self {
        let now = world.now;
        let remote = SocketAddr::new(ip(to), port);
        let id = world.stack(from).connect(now, remote).expect("a free port");
        Self {
            from: (from, id),
            to,
            accepted: None,
            total,
            sent: 0,
            received: 0,
            closed: None,
        }
    }

    /// Does on both sides what the shell would.
    pub(crate) fn pump(&mut self, world: &mut World) {
        let now = world.now;
        let (from, id) = self.from;
        while self.sent < self.total {
            let length = (self.total - self.sent).min(16_384);
            let bytes: Vec<_> = (self.sent..self.sent + length).map(byte).collect();
            match world.stack(from).send(now, id, &bytes) {
                Ok(0) => break,
                Ok(length) => self.sent += length,
                Err(_) => break,
            }
            if self.sent == self.total {
                world.stack(from).shutdown(now, id);
            }
        }
        self.closed = self.closed.or(world.stack(from).close_reason(id));
        if self.accepted.is_none() {
            let listener = world
                .node(self.to)
                .services()
                .map(|(listener, _)| listener)
                .next();
            let listener = listener.expect("a published port");
            self.accepted = world.stack(self.to).accept(listener);
        }
        if let Some(id) = self.accepted {
            let mut bytes = [0; 16_384];
            while let Ok(Received::Bytes(length)) = world.stack(self.to).recv(now, id, &mut bytes) {
                for (at, &got) in (self.received..).zip(&bytes[..length]) {
                    assert_eq!(got, byte(at), "byte {at}");
                }
                self.received += length;
            }
        }
    }

    pub(crate) fn run(&mut self, world: &mut World, duration: Duration) {
        let end = world.now + duration;
        self.pump(world);
        while self.received < self.total && world.step(end) {
            self.pump(world);
        }
    }

    pub(crate) fn done(&self) -> bool {
        self.received == self.total
    }
}

fn byte(at: usize) -> u8 {
    u8::try_from(at % 251).expect("smaller than 251")
}

pub(crate) fn ping(world: &mut World, from: u8, to: u8) -> bool {
    let now = world.now;
    world.take(from, |_| None::<()>);
    world
        .stack(from)
        .ping(now, ip(to), 1, 32)
        .expect("room for a request");
    world.run(Duration::from_secs(2));
    let reply = |event: &Event| {
        if let Event::Stack(netstack::Event::EchoReply { from, .. }) = event {
            Some(*from)
        } else {
            None
        }
    };
    world.take(from, reply) == [ip(to)]
}

#[test]
fn clients_of_one_organisation_ping_each_other_through_the_gateway() {
    let mut world = World::standing(&Installation::new(), &[11, 12, 21, 22]);
    for (from, to) in [(11, 12), (12, 11), (21, 22)] {
        assert!(ping(&mut world, from, to), "{from} to {to}");
    }
}

#[test]
fn a_transfer_passes_through_the_gateway_to_a_published_service() {
    let mut installation = Installation::new();
    installation.publish(12, "files", 8080);
    let mut world = World::standing(&installation, &[11, 12]);
    let (_, published) = world.node(12).services().next().expect("a listener");
    assert_eq!(published.name.as_str(), "files");
    assert_eq!(published.target.as_deref(), Some("127.0.0.1:8080"));

    let mut transfer = Transfer::begin(&mut world, 11, 12, 8080, 2_000_000);
    transfer.run(&mut world, Duration::from_secs(60));
    assert!(transfer.done(), "{} bytes", transfer.received);

    // A service that is withdrawn is refused from then on.
    installation.org(1).services.clear();
    world.publish(&installation);
    assert_eq!(world.node(12).services().count(), 0);
    let now = world.now;
    let remote = SocketAddr::new(ip(12), 8080);
    let id = world.stack(11).connect(now, remote).expect("a free port");
    world.run(Duration::from_secs(2));
    assert_eq!(world.stack(11).close_reason(id), Some(CloseReason::Refused));
}

#[test]
fn a_destination_that_nobody_has_is_answered_at_once_and_counted() {
    let mut installation = Installation::new();
    let mut world = World::standing(&installation, &[11, 12]);
    installation.remove(13);
    world.publish(&installation);
    let now = world.now;
    world.take(11, |_| None::<()>);
    world
        .stack(11)
        .ping(now, ip(13), 7, 8)
        .expect("room for a request");
    world.run(Duration::from_millis(100));
    let failed = |event: &Event| {
        if let Event::Stack(netstack::Event::EchoFailed { from, .. }) = event {
            Some(*from)
        } else {
            None
        }
    };
    let resolver = crate::world::prefix(1).resolver();
    assert_eq!(world.take(11, failed), [IpAddr::V6(resolver)]);
    let counters = world.node(GATEWAY).counters();
    assert_eq!(counters.count(Discard::Node(Reason::NoPeer)), 1);
}

/// Sends an echo request that may go over so many hops; returns who answered, and why it went no
/// further.
fn probe(world: &mut World, to: u8, hop_limit: u8) -> (IpAddr, Option<EchoFailure>) {
    let now = world.now;
    world.take(11, |_| None::<()>);
    let stack = world.stack(11);
    let sent = stack.ping_within(now, ip(to), 1, 32, hop_limit);
    sent.expect("room for a request");
    world.run(Duration::from_secs(2));
    let answer = |event: &Event| {
        if let Event::Stack(netstack::Event::EchoReply { from, .. }) = event {
            Some((*from, None))
        } else if let Event::Stack(netstack::Event::EchoFailed { from, failure, .. }) = event {
            Some((*from, Some(*failure)))
        } else {
            None
        }
    };
    let answers = world.take(11, answer);
    *answers.first().expect("an answer")
}

#[test]
fn the_gateway_tells_that_a_hop_limit_ends_there_whatever_is_behind_it() {
    let mut installation = Installation::new();
    let mut world = World::standing(&installation, &[11, 12]);
    let gateway = IpAddr::V6(crate::world::prefix(1).resolver());
    let ends = |cause| (gateway, Some(EchoFailure::Icmp(cause)));
    let exceeded = ends(Cause::TimeExceeded { code: 0 });
    assert_eq!(probe(&mut world, 12, 1), exceeded);
    assert_eq!(probe(&mut world, 12, 2), (ip(12), None));
    assert_eq!(probe(&mut world, 13, 1), exceeded);
    // Whoever may not reach a node learns no more about it than that.
    installation.org(1).rules = Some(BTreeMap::new());
    world.publish(&installation);
    assert_eq!(probe(&mut world, 12, 1), exceeded);
    let prohibited = ends(Cause::Unreachable(Unreachable::Prohibited));
    assert_eq!(probe(&mut world, 12, 2), prohibited);
}

#[test]
fn a_gateway_that_does_not_answer_is_named_in_the_status() {
    let installation = Installation::new();
    let mut world = World::new();
    world.add(11, netstack(11));
    world.publish(&installation);
    world.run(Duration::from_secs(20));
    let now = world.now;
    let status = world.node(11).status(now);
    let [peer] = &status.peers[..] else {
        panic!("one peer");
    };
    assert_eq!(peer.tunnel, Tunnel::Unanswered);
    let [problem] = &status.problems[..] else {
        panic!("one problem: {:?}", status.problems);
    };
    assert_eq!(problem.hop, Hop::Handshake);
    assert!(
        problem.message.contains("gateway gate"),
        "{}",
        problem.message
    );
    assert!(
        problem.message.contains("192.0.2.200:51820"),
        "{}",
        problem.message
    );

    // As soon as the gateway is there the problem is gone, with nobody doing anything.
    world.add(GATEWAY, netstack(GATEWAY));
    world.publish(&installation);
    world.run(Duration::from_secs(20));
    let now = world.now;
    let status = world.node(11).status(now);
    assert_eq!(status.problems, []);
    assert_eq!(status.peers[0].tunnel, Tunnel::Up);
    assert_eq!(status.peers[0].endpoint, Some(endpoint(GATEWAY)));
}

#[test]
fn a_gateway_that_restarts_with_its_endpoints_carries_traffic_again_within_three_seconds() {
    let installation = Installation::new();
    let mut world = World::standing(&installation, &[11, 12]);
    assert!(ping(&mut world, 11, 12));
    let endpoints = world.node(GATEWAY).endpoints();
    assert_eq!(endpoints.len(), 2);

    world.hosts.remove(&GATEWAY);
    world.run(Duration::from_secs(30));
    world.add(GATEWAY, netstack(GATEWAY));
    world.publish(&installation);
    world.node(GATEWAY).restore_endpoints(&endpoints);
    world.run(Duration::from_millis(900));
    assert!(ping(&mut world, 11, 12), "within 3 seconds of virtual time");
}

#[test]
fn a_gateway_that_knows_no_endpoint_after_a_restart_is_called_when_its_server_answers() {
    let installation = Installation::new();
    let mut world = World::standing(&installation, &[11, 12]);
    assert!(ping(&mut world, 11, 12));
    world.run(Duration::from_secs(10));
    let since = world.now;
    world.hosts.remove(&GATEWAY);
    world.run(Duration::from_secs(1));
    world.add(GATEWAY, netstack(GATEWAY));
    world.publish(&installation);
    let completed = |event: &Event| {
        let completed = matches!(event, Event::HandshakeCompleted { .. });
        completed.then_some(())
    };
    let handshakes = |world: &mut World| {
        let now = world.now;
        let mut count = 0;
        for number in [11, 12] {
            world.node(number).initiate_again(now, since);
        }
        world.run(Duration::from_millis(900));
        for number in [11, 12] {
            count += world.take(number, completed).len();
        }
        count
    };
    world.take(11, completed);
    world.take(12, completed);
    assert_eq!(handshakes(&mut world), 2);
    assert!(ping(&mut world, 11, 12));
    world.run(Duration::from_secs(6));
    assert_eq!(handshakes(&mut world), 0, "the session is newer");
}

#[test]
fn an_unknown_initiator_is_answered_on_the_same_initiation() {
    let mut installation = Installation::new();
    let full = installation.clone();
    installation.remove(12);
    let mut world = World::standing(&installation, &[11]);
    world.add(12, netstack(12));
    let now = world.now;
    world.node(12).apply(now, &full.map_of(12));
    world.run(Duration::from_millis(100));
    let unknown = |event: &Event| {
        if let Event::UnknownInitiator {
            public_key, ticket, ..
        } = event
        {
            Some((*public_key, *ticket))
        } else {
            None
        }
    };
    let unknown = world.take(GATEWAY, unknown);
    let [(key, ticket)] = unknown[..] else {
        panic!("one unknown initiator: {unknown:?}");
    };
    assert_eq!(key, public_key(12));

    let (id, node) = crate::world::member(12, "db");
    let now = world.now;
    assert!(
        world
            .node(GATEWAY)
            .insert_node(now, model::id::OrgId(1), id, &node)
    );
    assert!(world.node(GATEWAY).answer_unknown(now, ticket));
    assert!(
        !world.node(GATEWAY).answer_unknown(now, ticket),
        "answered once"
    );
    world.run(Duration::from_millis(100));
    let completed = |event: &Event| {
        if let Event::HandshakeCompleted { public_key } = event {
            Some(*public_key)
        } else {
            None
        }
    };
    // Long before the client would have initiated again, which takes 5 s.
    assert_eq!(world.take(12, completed), [public_key(GATEWAY)]);
    assert!(ping(&mut world, 11, 12));
}

#[test]
fn a_stranger_gets_nothing() {
    let mut world = World::standing(&Installation::new(), &[11]);
    let mut stranger = Installation::new();
    let (id, mut node) = crate::world::member(14, "stranger");
    node.public_key = PublicKey(public_key(14).0);
    stranger.org(1).nodes.insert(id, node);
    world.add(14, netstack(14));
    let now = world.now;
    world.node(14).apply(now, &stranger.map_of(14));
    world.run(Duration::from_millis(500));
    let ticket = |event: &Event| {
        if let Event::UnknownInitiator { ticket, .. } = event {
            Some(*ticket)
        } else {
            None
        }
    };
    for ticket in world.take(GATEWAY, ticket) {
        world.node(GATEWAY).forget_unknown(ticket);
    }
    assert!(!ping(&mut world, 14, 11));
    let now = world.now;
    assert_eq!(
        world.node(14).status(now).peers[0].traffic.received_bytes,
        0
    );
}

#[test]
fn a_node_that_is_offline_is_reported_at_once() {
    let mut world = World::standing(&Installation::new(), &[11]);
    let now = world.now;
    let remote = SocketAddr::new(ip(12), 22);
    let id = world.stack(11).connect(now, remote).expect("a free port");
    world.run(Duration::from_millis(100));
    let reason = world.stack(11).close_reason(id);
    assert_eq!(reason, Some(CloseReason::Unreachable(Unreachable::Host)));
    let offline = Discard::WireGuard(wireguard::Discard::NoEndpoint);
    assert_eq!(world.node(GATEWAY).counters().count(offline), 1);
}

#[test]
fn a_node_reaches_what_it_publishes_itself() {
    let mut installation = Installation::new();
    installation.publish(11, "files", 8080);
    let mut world = World::standing(&installation, &[11]);
    assert!(ping(&mut world, 11, 11));
    let mut transfer = Transfer::begin(&mut world, 11, 11, 8080, 100_000);
    transfer.run(&mut world, Duration::from_secs(5));
    assert!(transfer.done(), "{} bytes", transfer.received);
}

#[test]
fn a_peer_is_told_with_its_sessions_timers_and_where_it_was_heard() {
    let mut world = World::standing(&Installation::new(), &[11]);
    assert!(ping(&mut world, 11, 11));
    let now = world.now;
    let key = world.node(11).peer_named("gate").expect("its gateway");
    assert_eq!(key, public_key(GATEWAY));
    assert_eq!(world.node(11).peer_named(&key.to_string()), Some(key));
    assert_eq!(world.node(11).peer_named("db"), None);
    let ours = world.node(11).peer_details(now, &key).expect("a peer");
    let theirs = world.node(GATEWAY).peer_details(now, &public_key(11));
    let theirs = theirs.expect("a peer");
    let (session, other) = (&ours.sessions[0], &theirs.sessions[0]);
    assert_eq!(
        (session.place.as_str(), session.initiator),
        ("current", true)
    );
    assert_eq!((other.place.as_str(), other.initiator), ("current", false));
    let indices = (session.local_index, session.remote_index);
    assert_eq!(indices, (other.remote_index, other.local_index));
    assert_eq!(session.age_ms + session.expires_in_ms, 180_000);
    assert_eq!(ours.handshake.initiation_index, None);
    assert_eq!(ours.handshake.attempts, 0);
    // A client keeps its mapping open.
    assert!(ours.timers_due_ms["persistent_keepalive"] <= 25_000);
    assert!(!theirs.timers_due_ms.contains_key("persistent_keepalive"));
    // The gateway had no endpoint for it before it was heard.
    assert_eq!(theirs.endpoints.len(), 1);
    assert_eq!(theirs.endpoints[0].endpoint, endpoint(11));
    assert_eq!(ours.endpoints, []);
    let datagrams = theirs.peer.traffic.received_datagrams;
    assert_eq!(datagrams, ours.peer.traffic.sent_datagrams);
    let told = world.node(GATEWAY).status(now);
    assert_eq!(told.traffic.received_datagrams, datagrams);
    assert_eq!(told.happened.handshakes_completed, 1);
    assert_eq!((told.happened.endpoints_moved, told.peers_up), (1, 1));
}

#[test]
fn a_gateway_lists_its_peers_with_the_latest_handshake_first() {
    let mut world = World::standing(&Installation::new(), &[11, 21]);
    let now = world.now;
    let status = world.node(GATEWAY).status(now);
    assert_eq!(status.peers_total, 6);
    assert_eq!(status.orgs.len(), 2);
    assert_eq!(status.problems, []);
    let up = |peer: &model::status::Peer| peer.tunnel == Tunnel::Up;
    assert!(status.peers[..2].iter().all(up));
    assert!(!status.peers[2..].iter().any(up));
    assert_eq!(status.peers[0].allowed_ips.len(), 1);
}
