//! Stories of aliases: two offices with one prefix, whose hosts machines elsewhere know by other
//! IPv4 addresses.
//!
//! ```text
//!   192.168.1.10 ── 12 ══ gateway ══ 13 ── 192.168.1.20
//!   is 10.99.1.10            ║             is 10.99.2.20
//!                   11 ══════╝
//! ```

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use model::{
    id::{NodeId, RuleId, SiteId},
    map,
    policy::{Rule, SiteReach},
    site::{Ipv4Prefix, Mode, SitePrefix},
};
use node::{Attachment, Discard, Event, MACHINE_V4, Reason};
use packet::{
    icmp::{self, Cause, Message, Unreachable},
    ip, translate, udp,
};

use crate::world::{
    GATEWAY, Installation, World, ip as address, label, netstack, prefix as org, raw,
};

const HERE: [u8; 4] = [192, 168, 1, 10];
const THERE: [u8; 4] = [192, 168, 1, 20];

/// By which the other side knows them.
const HERE_FROM_THERE: [u8; 4] = [10, 99, 1, 10];
const THERE_FROM_HERE: [u8; 4] = [10, 99, 2, 20];

/// Both offices in these modes, each with an alias if it shall have one. The laptop, and hosts of
/// the first, may ask names of one host of the second.
fn installation(modes: [Mode; 2], has_alias: [bool; 2]) -> Installation {
    let mut installation = Installation::new();
    let org = installation.org(1);
    let reach = |hosts: &str| SiteReach {
        rule: RuleId(1),
        hosts: Some(hosts.parse().expect("a prefix")),
    };
    for (at, id, node) in [(0, 1, 12), (1, 2, 13)] {
        let alias = format!("192.168.1.0/24=10.99.{id}.0/24");
        let alias = alias.parse().expect("an alias");
        let site = map::Site {
            name: label(&format!("office{id}")),
            node: NodeId(node),
            standbys: Vec::new(),
            prefixes: vec!["192.168.1.0/24".parse().expect("a prefix")],
            aliases: has_alias[at].then_some(alias).into_iter().collect(),
            mode: modes[at],
            // Rules have the addresses that hosts have themselves.
            may_reach: if id == 1 {
                vec![reach("192.168.1.10")]
            } else {
                Vec::new()
            },
            reached_by: if id == 2 {
                vec![reach("192.168.1.20")]
            } else {
                Vec::new()
            },
        };
        org.sites.insert(SiteId(id), site);
    }
    let traffic = vec!["53/udp".parse().expect("traffic")];
    org.rules = Some([(RuleId(1), Rule { traffic })].into());
    let laptop = org.nodes.get_mut(&NodeId(11)).expect("the laptop");
    laptop.may_reach = vec![RuleId(1)];
    installation
}

/// The gateway and all nodes with interfaces, which have every route that they want.
fn world(installation: &Installation) -> World {
    let mut world = World::new();
    world.add(GATEWAY, netstack(GATEWAY));
    for node in [11, 12, 13] {
        world.add(node, Attachment::Tun);
    }
    world.publish(installation);
    for node in [11, 12, 13] {
        let routes = world.node(node).site_routes();
        world.node(node).set_site_routes(routes);
    }
    world.run(Duration::from_secs(1));
    world
}

/// A datagram between two addresses of one family.
fn datagram(from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    datagram_of(64, from, to)
}

/// The same with another hop limit.
fn datagram_of(hop_limit: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let datagram = udp::Datagram {
        source_port: from.1,
        destination_port: to.1,
        payload: b"a name",
    };
    let mut body = [0; udp::HEADER + 6];
    udp::emit(from.0, to.0, &datagram, &mut body);
    let header = ip::Header {
        source: from.0,
        destination: to.0,
        next_header: ip::UDP,
        hop_limit,
        traffic_class: 0,
        fragment: None,
    };
    let at = ip::header_length(to.0);
    let mut packet = vec![0; at + body.len()];
    ip::emit_header(&header, body.len(), &mut packet);
    packet[at..].copy_from_slice(&body);
    packet
}

/// The error of a router or a host about a packet.
fn error(from: IpAddr, cause: Cause, packet: &[u8]) -> Vec<u8> {
    let to = ip::addresses(packet).expect("well-formed").source;
    let message = Message::Error {
        cause,
        quote: packet,
    };
    let mut body = vec![0; icmp::HEADER + packet.len()];
    icmp::emit(from, to, &message, &mut body);
    raw(from, to, ip::ICMP, &body)
}

/// Lets a node's machine send a packet, and returns what the other node's machine got.
fn carry(world: &mut World, from: u8, packet: &[u8], to: u8) -> Vec<Vec<u8>> {
    world.send_packet(from, packet);
    world.run(Duration::from_millis(200));
    taken(world, to)
}

fn taken(world: &mut World, from: u8) -> Vec<Vec<u8>> {
    std::mem::take(&mut world.hosts.get_mut(&from).expect("a host").packets)
}

#[track_caller]
fn only(packets: Vec<Vec<u8>>) -> Vec<u8> {
    let [packet] = <[_; 1]>::try_from(packets).expect("one packet");
    packet
}

/// Takes an ICMP error apart: from where it comes, and about a packet from where to where.
#[track_caller]
fn told(packet: &[u8]) -> (IpAddr, Cause, [IpAddr; 2]) {
    assert!(ip::v4_checksum_holds(packet));
    let parsed = ip::parse(packet).expect("well-formed");
    let (source, destination) = (parsed.header.source, parsed.header.destination);
    match icmp::parse(source, destination, parsed.payload) {
        Ok(Message::Error { cause, quote }) => {
            let quoted = ip::parse_quote(quote).expect("well-formed").header;
            (source, cause, [quoted.source, quoted.destination])
        }
        other => panic!("{other:?}"),
    }
}

fn prefix(text: &str) -> Ipv4Prefix {
    text.parse().expect("a prefix")
}

#[test]
fn hosts_of_two_routed_offices_with_one_prefix_see_each_others_alias() {
    let mut world = world(&installation([Mode::Routed; 2], [true; 2]));
    assert_eq!(
        world.node(12).site_routes(),
        [prefix("10.99.2.0/24")].into()
    );
    assert_eq!(
        world.node(13).site_routes(),
        [prefix("10.99.1.0/24")].into()
    );
    assert_eq!(
        world.node(12).site_source(),
        None,
        "its hosts are the source"
    );
    let (here, there) = (IpAddr::from(HERE), IpAddr::from(THERE));
    let (far_here, far_there) = (HERE_FROM_THERE.into(), THERE_FROM_HERE.into());
    let question = datagram((here, 1000), (far_there, 53));
    let arrived = only(carry(&mut world, 12, &question, 13));
    // The gateway is one hop.
    let expected = datagram_of(63, (far_here, 1000), (there, 53));
    assert_eq!(ip::parse(&arrived), ip::parse(&expected));
    assert!(ip::v4_checksum_holds(&arrived));
    let answer = datagram((there, 53), (far_here, 1000));
    let arrived = only(carry(&mut world, 13, &answer, 12));
    let expected = datagram_of(63, (far_there, 53), (here, 1000));
    assert_eq!(ip::parse(&arrived), ip::parse(&expected));
    // To whom an error is about a packet, that is the one that he sent.
    let port = Cause::Unreachable(Unreachable::Port);
    let refusal = error(there, port, &datagram((far_here, 1000), (there, 53)));
    let refusal = only(carry(&mut world, 13, &refusal, 12));
    assert_eq!(told(&refusal), (far_there, port, [here, far_there]));
    let opening = datagram((there, 1001), (far_here, 53));
    let refusal = only(carry(&mut world, 13, &opening, 13));
    let (_, cause, quoted) = told(&refusal);
    assert_eq!(cause, Cause::Unreachable(Unreachable::Other(10)), "no rule");
    assert_eq!(quoted, [there, far_here]);
}

#[test]
fn a_rule_about_one_host_lets_no_other_one_through_by_its_alias() {
    let mut world = world(&installation([Mode::Routed; 2], [true; 2]));
    let neighbour = IpAddr::from([192, 168, 1, 11]);
    let other = IpAddr::from([10, 99, 2, 21]);
    for (from, to) in [(neighbour, THERE_FROM_HERE.into()), (HERE.into(), other)] {
        let question = datagram((from, 1000), (to, 53));
        assert_eq!(carry(&mut world, 12, &question, 13), Vec::<Vec<u8>>::new());
    }
    let counters = world.node(GATEWAY).counters();
    assert_eq!(counters.count(Discard::Node(Reason::Policy)), 2);
}

#[test]
fn a_machine_speaks_to_an_alias_by_ipv4_and_to_the_same_host_by_ipv6() {
    let mut world = world(&installation([Mode::Masquerade, Mode::Routed], [true; 2]));
    let both = [prefix("10.99.1.0/24"), prefix("10.99.2.0/24")];
    assert_eq!(world.node(11).site_routes(), both.into());
    assert_eq!(world.node(11).site_source(), Some(MACHINE_V4));
    let site = SitePrefix::new(org(1), SiteId(2)).expect("a site");
    let embedded = |host: [u8; 4]| IpAddr::V6(site.embed(host.into()));
    let far = IpAddr::from(THERE_FROM_HERE);
    for (own, far, asked) in [
        (IpAddr::V4(MACHINE_V4), far, embedded(THERE_FROM_HERE)),
        (address(11), embedded(THERE), embedded(THERE)),
    ] {
        let question = datagram((own, 1000), (far, 53));
        assert_eq!(carry(&mut world, 11, &question, 13), Vec::<Vec<u8>>::new());
        let opened = world.take(13, |event| {
            if let Event::Stack(netstack::Event::FlowOpened(prefix)) = event {
                Some(*prefix)
            } else {
                None
            }
        });
        let [prefix] = opened[..] else {
            panic!("{opened:?}");
        };
        let flow = world.stack(13).accept_flow(prefix).expect("a flow");
        assert_eq!(world.stack(13).udp_local(flow), Some((asked, 53).into()));
        let peer = SocketAddr::from((address(11), 1000));
        assert_eq!(world.stack(13).udp_remote(flow), Some(peer));
        world.stack(13).send_to(flow, peer, b"me").expect("room");
        world.run(Duration::from_millis(100));
        let answer = only(taken(&mut world, 11));
        assert!(ip::v4_checksum_holds(&answer));
        let parsed = ip::parse(&answer).expect("well-formed");
        let (source, destination) = (parsed.header.source, parsed.header.destination);
        assert_eq!((source, destination), (far, own));
        let answer = udp::parse(source, destination, parsed.payload);
        assert_eq!(answer.expect("its checksum holds").payload, b"me");
    }
}

#[test]
fn a_machine_is_told_about_what_it_sent_to_an_alias() {
    let mut world = world(&installation([Mode::Masquerade, Mode::Routed], [true; 2]));
    let (machine, far) = (IpAddr::V4(MACHINE_V4), IpAddr::from(THERE_FROM_HERE));
    let dummy = IpAddr::V4(translate::DUMMY_V4);
    // No router on the way has an IPv4 address, and the sender drops what seems to be his own.
    let short = datagram_of(1, (machine, 1000), (far, 53));
    let error = only(carry(&mut world, 11, &short, 11));
    let (from, cause, quoted) = told(&error);
    assert_eq!((from, quoted), (dummy, [machine, far]));
    assert!(matches!(cause, Cause::TimeExceeded { .. }), "{cause:?}");
    let refused = datagram((machine, 1000), (far, 54));
    let error = only(carry(&mut world, 11, &refused, 11));
    let (from, cause, quoted) = told(&error);
    assert_eq!((from, quoted), (dummy, [machine, far]));
    assert_eq!(cause, Cause::Unreachable(Unreachable::Other(10)));
    // Its own node has nobody for it.
    let nobody = datagram((IpAddr::from([172, 16, 0, 1]), 1000), (far, 53));
    assert_eq!(carry(&mut world, 11, &nobody, 13), Vec::<Vec<u8>>::new());
    let counters = world.node(11).counters();
    assert_eq!(counters.count(Discard::Node(Reason::NoPeer)), 1);
}

#[test]
fn a_routed_office_without_an_alias_knows_one_with_the_same_prefix_by_its_own() {
    let mut world = world(&installation(
        [Mode::Routed, Mode::Masquerade],
        [false, true],
    ));
    assert_eq!(
        world.node(12).site_routes(),
        [prefix("10.99.2.0/24")].into()
    );
    assert_eq!(
        world.node(13).site_routes(),
        [].into(),
        "it has no other address"
    );
    let question = datagram((HERE.into(), 1000), (THERE_FROM_HERE.into(), 53));
    assert_eq!(carry(&mut world, 12, &question, 12), Vec::<Vec<u8>>::new());
}
