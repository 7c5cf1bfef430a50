//! Every reason why a packet is not delivered is provoked, and seen in status and capture.

mod scene;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use model::address::Kind;
use netstack::Prefix;
use node::{Attachment, Discard, Reason};
use packet::{
    ecn::Ecn,
    icmp::{Echo, Message},
    ip,
    tcp::{self, Flags, Options, Timestamps},
};
use wireguard::{COOKIE_REPLY, PresharedKey, STAGED_PACKETS_MAX};

use self::scene::{NODE, NODE_V4, PEER, Scene, Tcp, datagram, device, message};
use crate::world::{Installation, ip as ip_of, netstack, prefix, raw};

/// How a node is brought to discard something.
enum Provocation {
    /// By this; the scene is as it is then.
    Story(fn() -> Scene),
    /// Not by anybody outside the program, for this reason.
    Never(&'static str),
}

use Provocation::{Never, Story};

#[test]
fn every_discard_is_counted_in_the_status_and_told_in_the_capture_under_its_name() {
    let mut never = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for discard in Discard::all() {
        let name = discard.name();
        let mut scene = match provocation(discard) {
            Story(story) => story(),
            Never(why) => {
                never.insert(name, why);
                continue;
            }
        };
        // What became of packets that were seen before is told with the next one.
        scene.now += Duration::from_secs(10);
        scene.shake();
        let [counted, told] = scene.discards();
        assert!(counted.contains_key(&name), "{name}: {counted:?}");
        assert_eq!(counted, told, "{name}: each is counted once and told once");
        seen.extend(counted.into_keys());
    }
    never.retain(|name, _| seen.contains(name));
    assert_eq!(never, BTreeMap::new(), "these were provoked nevertheless");
}

fn provocation(discard: Discard) -> Provocation {
    match discard {
        Discard::WireGuard(discard) => of_wireguard(discard),
        Discard::Netstack(discard) => of_netstack(discard),
        Discard::Node(reason) => of_node(reason),
    }
}

fn of_wireguard(discard: wireguard::Discard) -> Provocation {
    use wireguard::Discard;
    match discard {
        Discard::Length => Story(|| received(&[1, 0, 0, 0, 7])),
        Discard::MessageType => Story(|| received(&[9; 64])),
        Discard::Mac1 => Story(wrong_mac1),
        Discard::NoPrivateKey => Never("a node has a key from its first moment on"),
        Discard::RateLimited => Story(more_handshakes_than_a_source_has_under_load),
        Discard::Handshake => Story(another_preshared_key),
        Discard::UnknownInitiator => Story(stranger),
        Discard::ReplayedInitiation => Story(|| initiation_again(Duration::from_secs(1))),
        Discard::InitiationFlood => Story(|| initiation_again(Duration::ZERO)),
        Discard::UnknownIndex => Story(|| received(&[&[4, 0, 0, 0][..], &[7; 44]].concat())),
        Discard::Cookie => Story(forged_cookie_reply),
        Discard::SessionExpired => Story(late_data),
        Discard::Tag => Story(changed_data),
        Discard::Duplicate => Story(data_twice),
        Discard::TooOld => Story(data_behind_the_window),
        Discard::NotIp => Story(|| opened(&[0xff; 40])),
        Discard::SourceNotAllowed => Story(foreign_source),
        Discard::NoRoute => Never("a node chooses the peer itself, and counts node.no_peer"),
        Discard::NotEct => Story(mark_that_nobody_allowed),
        Discard::UnknownPeer => Story(peer_that_goes),
        Discard::NoEndpoint => Story(|| forwarded(&to(ip_of(12), 64))),
        Discard::StagedOverflow => Story(more_packets_than_wait),
        Discard::StagedAbandoned => Story(silence),
        Discard::QueueFull => Story(strangers_at_a_gateway),
    }
}

fn of_netstack(discard: netstack::Discard) -> Provocation {
    use netstack::Discard;
    match discard {
        Discard::IpMalformed => Story(|| opened(&raw(ip_of(PEER), ip_of(NODE), 0, &[]))),
        Discard::IpChecksum => Story(wrong_header_checksum),
        Discard::IpAddress => Story(|| opened(&raw(multicast(), ip_of(NODE), ip::UDP, &[0; 8]))),
        Discard::NotForUs => Story(|| opened(&to(ip_of(13), 64))),
        Discard::UnknownProtocol => Story(|| opened(&raw(ip_of(PEER), ip_of(NODE), 132, &[0; 8]))),
        Discard::Fragment => Story(fragments_that_overlap),
        Discard::TcpMalformed => Story(|| opened(&raw(ip_of(PEER), ip_of(NODE), ip::TCP, &[0; 8]))),
        Discard::TcpChecksum => Story(|| opened(&changed(lone_segment()))),
        Discard::TcpNoSocket => Story(|| opened(&lone_segment())),
        Discard::TcpUnacceptable => Story(|| segment(|tcp| tcp.segment(90_000, b"late", |_| {}))),
        Discard::TcpPaws => Story(old_timestamp),
        Discard::TcpChallenged => {
            Story(|| segment(|tcp| tcp.segment(100, &[], |header| header.flags = Flags::RST)))
        }
        Discard::TcpNoRoom => Story(more_gaps_than_a_connection_has),
        Discard::TcpBacklogFull => Story(more_connections_than_wait),
        Discard::UdpMalformed => Story(|| opened(&raw(ip_of(PEER), ip_of(NODE), ip::UDP, &[0; 4]))),
        Discard::UdpChecksum => Story(|| opened(&changed(datagram(ip_of(NODE), [1, 9], b"9")))),
        Discard::UdpNoSocket => Story(|| opened(&datagram(ip_of(NODE), [1, 9], b"9"))),
        Discard::UdpQueueFull => Story(datagrams_that_nobody_reads),
        Discard::FlowsFull => Story(flows_that_nobody_takes),
        Discard::IcmpMalformed => Story(|| icmp(&[0; 4])),
        Discard::IcmpChecksum => Story(|| icmp(&[128, 0, 1, 1, 0, 0, 0, 0])),
        Discard::IcmpUnrelated => Story(|| opened(&message(&Message::EchoReply(ECHO)))),
        Discard::AnswersFull => Story(more_requests_than_answers_wait),
    }
}

fn of_node(reason: Reason) -> Provocation {
    match reason {
        Reason::NotIp => Story(|| sent(&[0xff; 40])),
        Reason::NoPeer => Story(|| forwarded(&to(nobody(), 64))),
        Reason::OtherOrg => Story(|| forwarded(&to(ip_of(22), 64))),
        Reason::NotServed => Never(
            "a peer of a gateway may use addresses of organisations in the map only, and anything \
             else is wireguard.source_not_allowed",
        ),
        Reason::Policy => Story(no_rule),
        Reason::HopLimit => Story(|| forwarded(&to(ip_of(12), 1))),
        Reason::TooBig => Story(|| forwarded(&raw(ip_of(PEER), ip_of(12), ip::UDP, &[0; 1_300]))),
        Reason::NoAttachment => Story(gateway_without_a_stack),
        Reason::NoRoom => Story(slot_without_room),
        Reason::QueueFull => Story(packets_that_nobody_takes),
        Reason::InterfaceDown => Story(|| not_taken(Reason::InterfaceDown)),
        Reason::NotSent => Story(|| not_taken(Reason::NotSent)),
    }
}

const ECHO: Echo<'_> = Echo {
    identifier: 1,
    sequence: 1,
    payload: b"echo",
};

/// Enough to exceed any queue that is filled here by hand.
const MANY: u16 = 600;

/// A node with a stack, and a session with its peer.
fn standing() -> Scene {
    let mut scene = Scene::plain(netstack(NODE));
    scene.shake();
    scene
}

/// It gets a datagram.
fn received(datagram: &[u8]) -> Scene {
    let mut scene = standing();
    scene.datagram(datagram);
    scene
}

/// It gets a packet through the tunnel.
fn opened(packet: &[u8]) -> Scene {
    let mut scene = standing();
    scene.packet(packet);
    scene
}

fn icmp(body: &[u8]) -> Scene {
    opened(&raw(ip_of(PEER), ip_of(NODE), ip::ICMPV6, body))
}

/// It gets a packet of its TUN interface.
fn sent(packet: &[u8]) -> Scene {
    let mut scene = Scene::plain(Attachment::Tun);
    scene.own(packet, 64);
    scene
}

/// A gateway gets a packet through the tunnel.
fn forwarded(packet: &[u8]) -> Scene {
    forwarded_by(netstack(NODE), &Installation::new(), packet)
}

fn forwarded_by(attachment: Attachment, installation: &Installation, packet: &[u8]) -> Scene {
    let mut scene = Scene::gateway(attachment, installation);
    scene.shake();
    scene.packet(packet);
    scene
}

/// A packet of the peer.
fn to(destination: IpAddr, hop_limit: u8) -> Vec<u8> {
    let mut packet = raw(ip_of(PEER), destination, ip::UDP, &[0; 16]);
    packet[7] = hop_limit;
    packet
}

fn nobody() -> IpAddr {
    IpAddr::V6(prefix(1).address(Kind::Node, 99))
}

fn multicast() -> IpAddr {
    "ff02::1".parse().expect("an address")
}

/// Changes the last octet.
fn changed(mut bytes: Vec<u8>) -> Vec<u8> {
    *bytes.last_mut().expect("it is not empty") ^= 1;
    bytes
}

fn wrong_mac1() -> Scene {
    let mut scene = Scene::plain(netstack(NODE));
    let mut initiation = scene.initiation();
    // The last 32 octets are mac1 and mac2 (whitepaper 5.4.2).
    let mac1 = initiation.len() - 32;
    initiation[mac1] ^= 1;
    scene.datagram(&initiation);
    scene
}

fn more_handshakes_than_a_source_has_under_load() -> Scene {
    let mut scene = Scene::plain(netstack(NODE));
    let flood = |scene: &mut Scene, initiation: &[u8]| {
        for _ in 0..MANY {
            scene.datagram(initiation);
        }
        scene.drain();
    };
    let initiation = scene.initiation();
    flood(&mut scene, &initiation);
    let cookie = |datagram: &&mut Vec<u8>| datagram.len() == COOKIE_REPLY;
    let reply = scene.sent.iter_mut().find(cookie).expect("a cookie reply");
    let source = crate::world::endpoint(NODE);
    scene.peer.handle_datagram(scene.now, source, reply);
    scene.sent.clear();
    // The peer's next initiation shows the cookie.
    scene.now += Duration::from_secs(10);
    let initiation = scene.initiation();
    flood(&mut scene, &initiation);
    scene
}

/// The node takes the response of its peer for forged.
fn another_preshared_key() -> Scene {
    let mut scene = Scene::plain(Attachment::Tun);
    scene.share_key(Some(PresharedKey::new([9; 32])));
    let packet = raw(ip_of(NODE), ip_of(PEER), ip::UDP, &[0; 16]);
    scene.own(&packet, 64);
    scene.exchange();
    scene.share_key(None);
    scene
}

fn stranger() -> Scene {
    let mut scene = standing();
    let (mut device, node) = device(scene.now, 13, NODE);
    device.initiate(scene.now, node);
    let initiation = device.poll_transmit().expect("an initiation");
    scene.datagram(&initiation.datagram);
    scene
}

fn initiation_again(later: Duration) -> Scene {
    let mut scene = Scene::plain(netstack(NODE));
    let initiation = scene.initiation();
    scene.datagram(&initiation);
    scene.now += later;
    scene.datagram(&initiation);
    scene
}

fn forged_cookie_reply() -> Scene {
    let mut scene = sent(&raw(ip_of(NODE), ip_of(PEER), ip::UDP, &[0; 16]));
    scene.drain();
    let initiation = scene.sent.pop().expect("an initiation");
    let mut reply = [0; COOKIE_REPLY];
    reply[0] = 3;
    // Its sender index is the receiver index here (whitepaper 5.4.7).
    reply[4..8].copy_from_slice(&initiation[4..8]);
    scene.datagram(&reply);
    scene
}

fn late_data() -> Scene {
    let mut scene = standing();
    let late = scene.seal(&to(ip_of(NODE), 64));
    scene.wait(wireguard::REJECT_AFTER_TIME);
    scene.datagram(&late);
    scene
}

fn changed_data() -> Scene {
    let mut scene = standing();
    let data = scene.seal(&to(ip_of(NODE), 64));
    scene.datagram(&changed(data));
    scene
}

fn data_twice() -> Scene {
    let mut scene = standing();
    let keepalive = scene.seal(&[]);
    scene.datagram(&keepalive);
    scene.datagram(&keepalive);
    scene
}

fn data_behind_the_window() -> Scene {
    let mut scene = standing();
    let old = scene.seal(&[]);
    let mut newest = Vec::new();
    // The window has 8,192 places.
    for _ in 0..8_192 {
        newest = scene.seal(&[]);
    }
    scene.datagram(&newest);
    scene.datagram(&old);
    scene
}

fn foreign_source() -> Scene {
    let foreign = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    opened(&raw(foreign, NODE_V4, ip::UDP, &[0; 16]))
}

fn mark_that_nobody_allowed() -> Scene {
    let mut scene = standing();
    let data = scene.seal(&to(ip_of(NODE), 64));
    scene.datagram_with(Ecn::Ce, &data);
    scene
}

/// A packet that waits for a peer which the next configuration has not.
fn peer_that_goes() -> Scene {
    let mut scene = sent(&raw(ip_of(NODE), ip_of(PEER), ip::UDP, &[0; 16]));
    scene.forget_peer();
    scene
}

fn more_packets_than_wait() -> Scene {
    let packet = raw(ip_of(NODE), ip_of(PEER), ip::UDP, &[0; 16]);
    let mut scene = sent(&packet);
    for _ in 0..STAGED_PACKETS_MAX {
        scene.own(&packet, 64);
    }
    scene
}

fn silence() -> Scene {
    let mut scene = sent(&raw(ip_of(NODE), ip_of(PEER), ip::UDP, &[0; 16]));
    scene.wait(wireguard::REKEY_ATTEMPT_TIME * 2);
    scene
}

/// Initiations that the control plane is asked about, slowly enough that it is no load.
fn strangers_at_a_gateway() -> Scene {
    let mut scene = Scene::gateway(netstack(NODE), &Installation::new());
    let (mut device, node) = device(scene.now, 99, crate::world::GATEWAY);
    device.initiate(scene.now, node);
    let initiation = device.poll_transmit().expect("an initiation").datagram;
    for _ in 0..2 * MANY {
        scene.now += Duration::from_millis(1);
        scene.datagram(&initiation);
        scene.drain();
    }
    scene
}

fn wrong_header_checksum() -> Scene {
    let mut packet = datagram(NODE_V4, [1, 9], b"9");
    packet[10] ^= 1;
    opened(&packet)
}

/// Two pieces of which the second begins inside the first (RFC 8200, 4.5).
fn fragments_that_overlap() -> Scene {
    let mut scene = standing();
    for offset in [0, 8] {
        let header = [ip::UDP, 0, 0, offset | 1, 0, 0, 0, 7];
        let body = [&header[..], &[0; 24]].concat();
        scene.packet(&raw(ip_of(PEER), ip_of(NODE), 44, &body));
    }
    scene
}

fn lone_segment() -> Vec<u8> {
    let header = tcp::Header {
        source_port: 4_000,
        destination_port: Tcp::PORT,
        flags: Flags::SYN,
        ..tcp::Header::default()
    };
    scene::segment(&header, &[])
}

fn listening(backlog: usize) -> Scene {
    let mut scene = standing();
    let stack = scene.node.stack().expect("it has one");
    stack.listen(Tcp::local(), backlog).expect("a free port");
    scene
}

/// A segment of a connection.
fn segment(make: impl Fn(&Tcp) -> Vec<u8>) -> Scene {
    let mut scene = listening(8);
    let connection = Tcp::open(&mut scene, 4_000, Options::default());
    scene.packet(&make(&connection));
    scene
}

fn old_timestamp() -> Scene {
    let mut scene = listening(8);
    let stamped = |value| Options {
        timestamps: Some(Timestamps { value, echo: 0 }),
        ..Options::default()
    };
    let connection = Tcp::open(&mut scene, 4_000, stamped(1_000));
    scene.packet(&connection.segment(1, b"old", |header| header.options = stamped(999)));
    scene
}

fn more_gaps_than_a_connection_has() -> Scene {
    let mut scene = listening(8);
    let connection = Tcp::open(&mut scene, 4_000, Options::default());
    for gap in 0..MANY {
        let at = 2 + 2 * u32::from(gap);
        scene.packet(&connection.segment(at, b"x", |_| {}));
        scene.exchange();
    }
    scene
}

fn more_connections_than_wait() -> Scene {
    let mut scene = listening(1);
    Tcp::open(&mut scene, 4_001, Options::default());
    scene.packet(&lone_segment());
    scene
}

fn datagrams_that_nobody_reads() -> Scene {
    let mut scene = standing();
    let stack = scene.node.stack().expect("it has one");
    let local = SocketAddr::new(ip_of(NODE), 53);
    stack.bind(local).expect("a free port");
    for _ in 0..MANY {
        scene.packet(&datagram(ip_of(NODE), [1, 53], &[0; 1_000]));
    }
    scene
}

fn flows_that_nobody_takes() -> Scene {
    let mut scene = standing();
    let stack = scene.node.stack().expect("it has one");
    let host = ip_of(22);
    let prefix = Prefix::new(host, 64).expect("few bits");
    stack.bind_prefix(prefix, 1).expect("a free prefix");
    for port in [1, 2] {
        scene.packet(&datagram(host, [port, 53], b"?"));
    }
    scene
}

fn more_requests_than_answers_wait() -> Scene {
    let mut scene = standing();
    let request = message(&Message::EchoRequest(ECHO));
    for _ in 0..MANY {
        scene.packet(&request);
    }
    scene
}

fn no_rule() -> Scene {
    let mut installation = Installation::new();
    installation.org(1).rules = Some(BTreeMap::new());
    forwarded_by(netstack(NODE), &installation, &to(ip_of(12), 64))
}

fn gateway_without_a_stack() -> Scene {
    let resolver = IpAddr::V6(prefix(1).resolver());
    forwarded_by(Attachment::None, &Installation::new(), &to(resolver, 64))
}

fn slot_without_room() -> Scene {
    let mut scene = Scene::plain(Attachment::Tun);
    let packet = raw(ip_of(NODE), ip_of(PEER), ip::UDP, &[0; 16]);
    scene.own(&packet, 0);
    scene
}

fn packets_that_nobody_takes() -> Scene {
    let mut scene = Scene::plain(Attachment::Tun);
    let packet = raw(ip_of(NODE), ip_of(NODE), ip::UDP, &[0; 16]);
    for _ in 0..MANY {
        scene.own(&packet, 64);
    }
    scene
}

/// The caller tells that nobody took what came out of the node.
fn not_taken(reason: Reason) -> Scene {
    let mut scene = Scene::plain(Attachment::Tun);
    scene.shake();
    scene.packet(&to(ip_of(NODE), 64));
    scene.node.discard(reason, 1);
    scene
}
