//! Stories of paths that carry less than the network's MTU, and say nothing about it.

use std::{net::IpAddr, time::Duration};

use node::Attachment;
use packet::{
    icmp::{self, Cause, Message},
    ip,
    tcp::{self, Flags, Header, Options},
};

use crate::{
    reach::Transfer,
    world::{GATEWAY, Installation, World, endpoint, ip as address, netstack, raw},
};

const SENDER: u8 = 11;
const RECEIVER: u8 = 12;

fn minute() -> Duration {
    Duration::from_secs(60)
}

fn found(world: &mut World, host: u8) -> Option<u16> {
    let now = world.now;
    let status = world.node(host).status(now);
    status.peers.first().expect("the gateway").path_mtu_bytes
}

/// A SYN that states segments of so many bytes.
fn syn(source: u8, destination: u8, flags: Flags, stated: u16) -> Vec<u8> {
    let (source, destination) = (address(source), address(destination));
    let header = Header {
        source_port: 1000,
        destination_port: 80,
        sequence: 7,
        flags,
        window: 65_535,
        options: Options {
            maximum_segment_size: Some(stated),
            ..Options::default()
        },
        ..Header::default()
    };
    let mut segment = [0; tcp::HEADER + tcp::OPTIONS_MAX];
    let length = tcp::emit_header(&header, &mut segment);
    tcp::fill_checksum(source, destination, &mut segment[..length]);
    raw(source, destination, ip::TCP, &segment[..length])
}

/// What a SYN states when it arrives, if its checksum holds.
fn arrives(world: &mut World, from: u8, to: u8, flags: Flags, stated: u16) -> Option<u16> {
    world.send_packet(from, &syn(from, to, flags, stated));
    world.run(Duration::from_secs(1));
    let host = world.hosts.get_mut(&to).expect("a host");
    let packet = std::mem::take(&mut host.packets).pop()?;
    let parsed = ip::parse(&packet).expect("well-formed");
    let (source, destination): (IpAddr, IpAddr) = (address(from), address(to));
    let segment = tcp::parse(source, destination, parsed.payload).expect("its checksum holds");
    segment.header.options.maximum_segment_size
}

/// Two nodes with TUN interfaces at a gateway, with paths that carry datagrams of so many bytes;
/// nothing has happened yet.
fn with_interfaces(sender: usize, receiver: usize) -> World {
    let mut world = World::new();
    world.narrow = [(SENDER, sender), (RECEIVER, receiver)].into();
    world.add(GATEWAY, netstack(GATEWAY));
    for host in [SENDER, RECEIVER] {
        world.add(host, Attachment::Tun);
    }
    world.publish(&Installation::new());
    world
}

/// Around a packet.
const OVERHEAD: usize = 32;

#[test]
fn connections_state_what_the_paths_of_both_ends_carry() {
    let mut world = with_interfaces(usize::MAX, 1_340 + OVERHEAD);
    let syn_ack = Flags::SYN.with(Flags::ACK);
    world.run(Duration::from_millis(100));
    assert_eq!(
        arrives(&mut world, SENDER, RECEIVER, Flags::SYN, 1_360),
        Some(1_220),
        "the receiver still searches"
    );
    world.run(Duration::from_secs(1));
    assert_eq!(found(&mut world, SENDER), Some(1_420));
    assert_eq!(found(&mut world, RECEIVER), Some(1_328));
    for (from, to) in [(SENDER, RECEIVER), (RECEIVER, SENDER)] {
        for flags in [Flags::SYN, syn_ack] {
            let states = |stated, world: &mut World| arrives(world, from, to, flags, stated);
            assert_eq!(states(1_360, &mut world), Some(1_328 - 60));
            assert_eq!(states(536, &mut world), Some(536));
        }
    }
}

#[test]
fn a_gateway_knows_the_path_of_each_node_and_forgets_it_with_the_node() {
    let mut installation = Installation::new();
    let mut world = with_interfaces(usize::MAX, usize::MAX);
    world.run(Duration::from_secs(1));
    let known = |world: &mut World| {
        let now = world.now;
        let peers = world.node(GATEWAY).status(now).peers.into_iter();
        let told = peers.filter_map(|peer| peer.path_mtu_bytes);
        told.collect::<Vec<_>>()
    };
    assert_eq!(known(&mut world), [1_420, 1_420]);
    installation.remove(RECEIVER);
    world.publish(&installation);
    assert_eq!(known(&mut world), [1_420]);
    // One that starts anew hears it again in the next session.
    world.add(GATEWAY, netstack(GATEWAY));
    world.publish(&installation);
    assert_eq!(known(&mut world), Vec::<u16>::new());
    world.run(3 * minute());
    assert_eq!(known(&mut world), [1_420]);
}

#[test]
fn small_paths_are_stated_in_both_directions() {
    let mut world = with_interfaces(1_200 + OVERHEAD, 1_200 + OVERHEAD);
    world.run(Duration::from_secs(1));
    assert_eq!(found(&mut world, SENDER), Some(1_200));
    assert_eq!(found(&mut world, RECEIVER), Some(1_200));
    let syn_ack = Flags::SYN.with(Flags::ACK);
    for (from, to) in [(SENDER, RECEIVER), (RECEIVER, SENDER)] {
        for flags in [Flags::SYN, syn_ack] {
            let stated = arrives(&mut world, from, to, flags, 1_360);
            assert_eq!(stated, Some(1_200 - 60));
        }
    }
}

/// What a host with an interface is told about a packet of so many bytes to another: the largest
/// that passes, and by whom.
fn told(world: &mut World, from: u8, to: u8, length: usize) -> Option<(u32, IpAddr)> {
    world.hosts.get_mut(&from).expect("a host").packets.clear();
    let body = vec![0; length - ip::V6_HEADER];
    world.send_packet(from, &raw(address(from), address(to), ip::UDP, &body));
    world.run(Duration::from_millis(100));
    let packets = std::mem::take(&mut world.hosts.get_mut(&from).expect("a host").packets);
    let [error] = &packets[..] else {
        assert!(packets.is_empty());
        return None;
    };
    let parsed = ip::parse(error).expect("well-formed");
    let (source, destination) = (parsed.header.source, parsed.header.destination);
    assert_eq!(destination, address(from));
    match icmp::parse(source, destination, parsed.payload) {
        Ok(Message::Error {
            cause: Cause::PacketTooBig { mtu },
            ..
        }) => Some((mtu, source)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_sends_what_a_tunnel_does_not_carry_is_told_at_the_near_one_and_at_the_far_one() {
    let mut world = with_interfaces(usize::MAX, 1_340 + OVERHEAD);
    world.run(Duration::from_secs(1));
    assert_eq!(found(&mut world, RECEIVER), Some(1_328));
    let gateway = IpAddr::V6(crate::world::prefix(1).resolver());
    let both = [SENDER, RECEIVER];
    assert_eq!(told(&mut world, SENDER, RECEIVER, 1_328), None);
    let far = told(&mut world, SENDER, RECEIVER, 1_329);
    assert_eq!(far, Some((1_328, gateway)));
    let near = told(&mut world, RECEIVER, SENDER, 1_329);
    assert_eq!(near, Some((1_328, address(RECEIVER))));
    let own = told(&mut world, SENDER, RECEIVER, 1_421);
    assert_eq!(own, Some((1_420, address(SENDER))));
    let too_big = node::Discard::Node(node::Reason::TooBig);
    let counts = both.map(|host| world.node(host).counters().count(too_big));
    assert_eq!(counts, [1, 1]);
    assert_eq!(world.node(GATEWAY).counters().count(too_big), 1);
    // Who has told nothing, such as a plain client, takes what every IPv6 link takes.
    let silent = told(&mut world, SENDER, 13, 1_281);
    assert_eq!(silent, Some((1_280, gateway)));
}

#[test]
fn a_path_that_becomes_smaller_under_a_connection_carries_it_on() {
    for narrow in [SENDER, RECEIVER] {
        let mut installation = Installation::new();
        installation.publish(RECEIVER, "files", 8080);
        let mut world = World::standing(&installation, &[SENDER, RECEIVER]);
        world.fragments = false;
        let mut large = Transfer::begin(&mut world, SENDER, RECEIVER, 8080, 20_000_000);
        large.run(&mut world, Duration::from_millis(300));
        assert!(!large.done() && large.received > 0);
        world.narrow.insert(narrow, 1_340 + OVERHEAD);
        large.run(&mut world, Duration::from_secs(30));
        assert!(large.done(), "{} bytes", large.received);
        world.run(Duration::from_secs(20));
        assert_eq!(found(&mut world, narrow), Some(1_328));
    }
}

#[test]
fn where_fragments_are_lost_a_connection_meets_no_black_hole_once_the_path_is_known() {
    let mut installation = Installation::new();
    installation.publish(RECEIVER, "files", 8080);
    let mut world = World::new();
    world.carries = 1_100;
    world.fragments = false;
    for host in [GATEWAY, SENDER, RECEIVER] {
        world.add(host, netstack(host));
    }
    world.publish(&installation);
    // The first is opened while nothing is known, and the second while the search goes on.
    for milliseconds in [30, 300] {
        world.run(Duration::from_millis(milliseconds));
        let mut early = Transfer::begin(&mut world, SENDER, RECEIVER, 8080, 100_000);
        early.run(&mut world, minute());
        assert!(early.done(), "{} bytes", early.received);
    }
    world.run(minute());
    for host in [SENDER, RECEIVER] {
        assert_eq!(found(&mut world, host), Some(1_056));
    }
    let mut large = Transfer::begin(&mut world, SENDER, RECEIVER, 8080, 2_000_000);
    large.run(&mut world, minute());
    assert!(large.done(), "{} bytes", large.received);
    let connections = world.node(SENDER).connections();
    let large = connections.iter().max_by_key(|one| one.acknowledged_bytes);
    let large = large.expect("the last");
    assert_eq!(large.retransmissions, 0);
    // With the timestamps that each segment has.
    assert_eq!(large.segment_bytes + 12, 1_056 - 60);
}

#[test]
fn a_node_that_is_idle_or_pings_does_not_probe_again() {
    let mut world = World::standing(&Installation::new(), &[SENDER, RECEIVER]);
    assert_eq!(found(&mut world, SENDER), Some(1_420));
    world.carries = 1_100;
    assert!(crate::reach::ping(&mut world, SENDER, RECEIVER));
    world.run(10 * minute());
    assert_eq!(found(&mut world, SENDER), Some(1_420), "it has not looked");
}

#[test]
fn another_path_is_looked_at_anew() {
    let mut installation = Installation::new();
    let mut world = with_interfaces(usize::MAX, usize::MAX);
    world.run(Duration::from_secs(1));
    let both = |world: &mut World| {
        arrives(world, SENDER, RECEIVER, Flags::SYN, 1_360);
        arrives(world, RECEIVER, SENDER, Flags::SYN, 1_360);
        world.run(minute());
        found(world, SENDER)
    };
    assert_eq!(both(&mut world), Some(1_420));
    installation.publish(RECEIVER, "files", 8080);
    world.publish(&installation);
    assert_eq!(
        found(&mut world, SENDER),
        Some(1_420),
        "it is the same path"
    );
    let org = installation.org(1);
    let gateway = org.gateway.as_mut().expect("a gateway");
    gateway.endpoint = endpoint(GATEWAY + 1).to_string();
    world.publish(&installation);
    assert_eq!(found(&mut world, SENDER), None);
    let org = installation.org(1);
    let gateway = org.gateway.as_mut().expect("a gateway");
    gateway.endpoint = endpoint(GATEWAY).to_string();
    world.publish(&installation);
    world.run(minute());
    assert_eq!(both(&mut world), Some(1_420));
}
