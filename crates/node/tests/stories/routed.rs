//! Stories of two offices in routed mode: hosts that know each other by their own addresses.
//!
//! ```text
//!   192.168.1.10 ── 12 ══ gateway ══ 13 ── 192.168.2.20
//! ```

use std::{
    net::{IpAddr, SocketAddrV4},
    time::Duration,
};

use model::{
    id::{NodeId, RuleId, SiteId},
    map,
    policy::{Rule, SiteReach},
    site::{Ipv4Prefix, Mode},
};
use node::{Attachment, Discard, Event, Probe, Reason};
use packet::{
    icmp::{self, Cause, Message, Unreachable},
    ip, tcp, translate, udp,
};

use crate::world::{GATEWAY, Installation, World, label, netstack, raw};

const HERE: [u8; 4] = [192, 168, 1, 10];
const THERE: [u8; 4] = [192, 168, 2, 20];

/// Two offices with these addresses; hosts of the first may ask names of those of the second.
fn installation(prefixes: [&str; 2]) -> Installation {
    installation_in(Mode::Routed, prefixes)
}

fn installation_in(mode: Mode, prefixes: [&str; 2]) -> Installation {
    let mut installation = Installation::new();
    let org = installation.org(1);
    let reach = SiteReach {
        rule: RuleId(1),
        hosts: None,
    };
    for (id, node, prefix) in [(1, 12, prefixes[0]), (2, 13, prefixes[1])] {
        let site = map::Site {
            name: label(&format!("office{id}")),
            node: NodeId(node),
            standbys: Vec::new(),
            prefixes: vec![prefix.parse().expect("a prefix")],
            aliases: Vec::new(),
            mode,
            may_reach: if id == 1 { vec![reach] } else { Vec::new() },
            reached_by: if id == 2 { vec![reach] } else { Vec::new() },
        };
        org.sites.insert(SiteId(id), site);
    }
    let rule = Rule {
        traffic: ["53/udp", "53/tcp"]
            .map(|traffic| traffic.parse().expect("traffic"))
            .into(),
    };
    org.rules = Some([(RuleId(1), rule)].into());
    installation
}

/// The gateway and both nodes with interfaces, which have every route that they want.
fn world(installation: &Installation) -> World {
    let mut world = World::new();
    world.add(GATEWAY, netstack(GATEWAY));
    for node in [12, 13] {
        world.add(node, Attachment::Tun);
    }
    world.publish(installation);
    for node in [12, 13] {
        let routes = world.node(node).site_routes();
        world.node(node).set_site_routes(routes);
    }
    world.run(Duration::from_secs(1));
    world
}

/// A datagram between two hosts.
fn datagram(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
    let (source, destination) = (IpAddr::from(from.0), IpAddr::from(to.0));
    let datagram = udp::Datagram {
        source_port: from.1,
        destination_port: to.1,
        payload: b"a name",
    };
    let mut body = [0; udp::HEADER + 6];
    udp::emit(source, destination, &datagram, &mut body);
    raw(source, destination, ip::UDP, &body)
}

/// The first segment of a connection between two hosts of Ethernets.
fn syn(from: ([u8; 4], u16), to: ([u8; 4], u16), flags: tcp::Flags) -> Vec<u8> {
    let (source, destination) = (IpAddr::from(from.0), IpAddr::from(to.0));
    let header = tcp::Header {
        source_port: from.1,
        destination_port: to.1,
        flags,
        options: tcp::Options {
            maximum_segment_size: Some(1460),
            ..tcp::Options::default()
        },
        ..tcp::Header::default()
    };
    let mut body = [0; tcp::HEADER + 4];
    let segment = tcp::Segment {
        header,
        payload: &[],
    };
    tcp::emit(source, destination, &segment, &mut body);
    raw(source, destination, ip::TCP, &body)
}

/// Lets a node's machine send a packet, and returns what the other node's machine got.
fn carry(world: &mut World, from: u8, packet: &[u8], to: u8) -> Vec<Vec<u8>> {
    world.send_packet(from, packet);
    world.run(Duration::from_millis(200));
    std::mem::take(&mut world.hosts.get_mut(&to).expect("a host").packets)
}

fn prefix(text: &str) -> Ipv4Prefix {
    text.parse().expect("a prefix")
}

#[test]
fn a_host_sees_the_other_ones_own_address_and_answers_it() {
    let installation = installation(["192.168.1.0/24", "192.168.2.0/24"]);
    let mut world = world(&installation);
    let wanted = world.node(12).site_routes();
    assert_eq!(wanted, [prefix("192.168.2.0/24")].into());
    let (question, answer) = ((HERE, 1000), (THERE, 53));
    for (from, sent, to) in [
        (12, datagram(question, answer), 13),
        (13, datagram(answer, question), 12),
    ] {
        let arrived = carry(&mut world, from, &sent, to);
        let [arrived] = &arrived[..] else {
            panic!("{arrived:?}");
        };
        // The gateway is one hop; the kernels at both ends count themselves.
        let mut expected = ip::parse(&sent).expect("well-formed");
        expected.header.hop_limit -= 1;
        assert_eq!(ip::parse(arrived), Ok(expected));
        assert!(ip::v4_checksum_holds(arrived));
    }
}

#[test]
fn both_hosts_are_told_what_segments_the_network_carries() {
    let mut world = world(&installation(["192.168.1.0/24", "192.168.2.0/24"]));
    let (client, server) = ((HERE, 1000), (THERE, 53));
    let both = tcp::Flags::SYN.with(tcp::Flags::ACK);
    for (from, sent, to) in [
        (12, syn(client, server, tcp::Flags::SYN), 13),
        (13, syn(server, client, both), 12),
    ] {
        let arrived = carry(&mut world, from, &sent, to);
        let [arrived] = &arrived[..] else {
            panic!("{arrived:?}");
        };
        let packet = ip::parse(arrived).expect("well-formed");
        let (source, destination) = (packet.header.source, packet.header.destination);
        let segment = tcp::parse(source, destination, packet.payload);
        let options = segment.expect("its checksum holds").header.options;
        // IPv4 with 1,252 bytes, less both headers.
        assert_eq!(options.maximum_segment_size, Some(1212));
    }
}

/// Both offices, whose nodes decide; answers come back at none of them.
fn undecided() -> World {
    world(&installation_in(
        Mode::Auto,
        ["192.168.1.0/24", "192.168.2.0/24"],
    ))
}

#[test]
fn a_node_that_decides_takes_what_is_opened_by_its_stack_until_answers_come_back() {
    let mut world = undecided();
    let nothing = Vec::<Vec<u8>>::new();
    let dial = |port| syn((HERE, port), (THERE, 53), tcp::Flags::SYN);
    assert_eq!(carry(&mut world, 12, &dial(1000), 13), nothing);
    assert_eq!(world.stack(13).connections(), 1, "the stack holds it");
    world.node(13).set_returning(SiteId(2), true);
    // What the stack has begun stays there, and the rest is the kernel's.
    assert_eq!(carry(&mut world, 12, &dial(1000), 13), nothing);
    assert_eq!(carry(&mut world, 12, &dial(1001), 13).len(), 1);
    world.node(13).set_returning(SiteId(2), false);
    let acknowledgement = syn((HERE, 1001), (THERE, 53), tcp::Flags::ACK);
    let goes_on = carry(&mut world, 12, &acknowledgement, 13);
    assert_eq!(goes_on.len(), 1, "what the kernel has begun stays there");
    assert_eq!(carry(&mut world, 12, &dial(1002), 13), nothing);
    assert_eq!(world.stack(13).connections(), 2);
}

#[test]
fn what_a_host_opens_is_its_own_whatever_comes_back() {
    let mut world = undecided();
    world.node(13).set_returning(SiteId(2), true);
    let both = tcp::Flags::SYN.with(tcp::Flags::ACK);
    let (client, server) = ((HERE, 1000), (THERE, 53));
    for (sent, answer) in [
        (datagram(client, server), datagram(server, client)),
        (
            syn(client, server, tcp::Flags::SYN),
            syn(server, client, both),
        ),
    ] {
        assert_eq!(carry(&mut world, 12, &sent, 13).len(), 1);
        let answered = carry(&mut world, 13, &answer, 12);
        assert_eq!(answered.len(), 1, "the answer goes to the host");
    }
}

#[test]
fn a_host_is_asked_as_if_by_another_site_and_its_answer_goes_no_further() {
    let mut world = undecided();
    let host = SocketAddrV4::new(THERE.into(), 9);
    let probe = Probe {
        host,
        source_port: 50_000,
        sequence: 7,
    };
    let now = world.now;
    assert!(world.node(13).probe_return(now, probe));
    world.run(Duration::from_millis(10));
    let asked = std::mem::take(&mut world.hosts.get_mut(&13).expect("a host").packets);
    let [asked] = &asked[..] else {
        panic!("{asked:?}");
    };
    let packet = ip::parse(asked).expect("well-formed");
    let foreigner = IpAddr::from([192, 168, 1, 1]);
    assert_eq!(packet.header.source, foreigner);
    assert_eq!(packet.header.destination, IpAddr::from(THERE));
    let header = tcp::Header {
        source_port: 9,
        destination_port: 50_000,
        acknowledgement: 8,
        flags: tcp::Flags::RST.with(tcp::Flags::ACK),
        ..tcp::Header::default()
    };
    let mut body = [0; tcp::HEADER];
    let segment = tcp::Segment {
        header,
        payload: &[],
    };
    tcp::emit(THERE.into(), foreigner, &segment, &mut body);
    let refusal = raw(THERE.into(), foreigner, ip::TCP, &body);
    assert_eq!(carry(&mut world, 13, &refusal, 12), Vec::<Vec<u8>>::new());
    let returned = world.take(13, |event| {
        if let Event::HostReturned { host } = event {
            Some(*host)
        } else {
            None
        }
    });
    assert_eq!(returned, [host]);
    world.node(13).set_site_routes([].into());
    assert!(!world.node(13).probe_return(now, probe), "as nobody");
}

#[test]
fn what_no_rule_allows_is_refused_to_the_host_itself() {
    let installation = installation(["192.168.1.0/24", "192.168.2.0/24"]);
    let mut world = world(&installation);
    let sent = datagram((THERE, 1000), (HERE, 53));
    let told = carry(&mut world, 13, &sent, 13);
    let [error] = &told[..] else {
        panic!("{told:?}");
    };
    let parsed = ip::parse(error).expect("well-formed");
    let (source, destination) = (parsed.header.source, parsed.header.destination);
    assert_eq!(source, IpAddr::from(translate::DUMMY_V4));
    assert_eq!(destination, IpAddr::from(THERE));
    match icmp::parse(source, destination, parsed.payload) {
        Ok(Message::Error { cause, quote }) => {
            // Communication with the host is administratively prohibited (RFC 7915, 5.2).
            assert_eq!(cause, Cause::Unreachable(Unreachable::Other(10)));
            let quoted = ip::parse_quote(quote).expect("well-formed").header;
            assert_eq!(quoted.source, IpAddr::from(THERE));
            assert_eq!(quoted.destination, IpAddr::from(HERE));
        }
        other => panic!("{other:?}"),
    }
    let counters = world.node(GATEWAY).counters();
    assert_eq!(counters.count(Discard::Node(Reason::Policy)), 1);
    assert_eq!(world.hosts[&12].packets, Vec::<Vec<u8>>::new());
}

#[test]
fn without_the_route_a_site_is_not_routed() {
    let installation = installation(["192.168.1.0/24", "192.168.2.0/24"]);
    let mut world = world(&installation);
    let sent = datagram((HERE, 1000), (THERE, 53));
    // The machine of the second node routes the first one's addresses elsewhere.
    world.node(13).set_site_routes([].into());
    assert_eq!(carry(&mut world, 12, &sent, 13), Vec::<Vec<u8>>::new());
    world.node(12).set_site_routes([].into());
    carry(&mut world, 12, &sent, 13);
    let counters = world.node(12).counters();
    assert_eq!(counters.count(Discard::Node(Reason::NoPeer)), 1);
}

#[test]
fn sites_that_share_addresses_are_not_routed_to_each_other() {
    for prefixes in [
        ["192.168.1.0/24", "192.168.1.0/24"],
        ["192.168.0.0/16", "192.168.2.0/24"],
    ] {
        let mut world = world(&installation(prefixes));
        assert_eq!(world.node(12).site_routes(), [].into());
        assert_eq!(world.node(13).site_routes(), [].into());
    }
}

#[test]
fn a_host_cannot_speak_for_one_of_another_site() {
    let installation = installation(["192.168.1.0/24", "192.168.2.0/24"]);
    let mut world = world(&installation);
    let forged = datagram(([192, 168, 2, 99], 1000), (THERE, 53));
    assert_eq!(carry(&mut world, 12, &forged, 13), Vec::<Vec<u8>>::new());
    let counters = world.node(12).counters();
    assert_eq!(counters.count(Discard::Node(Reason::NoPeer)), 1);
}
