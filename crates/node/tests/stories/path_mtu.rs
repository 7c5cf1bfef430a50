//! Stories of paths that carry less than the network's MTU, and say nothing about it.

use std::{net::IpAddr, time::Duration};

use node::Attachment;
use packet::{
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

/// Two nodes with TUN interfaces at a gateway, with paths that carry datagrams of so many bytes.
fn with_interfaces(carries: usize) -> World {
    let mut world = World::new();
    world.carries = carries;
    world.add(GATEWAY, netstack(GATEWAY));
    for host in [SENDER, RECEIVER] {
        world.add(host, Attachment::Tun);
    }
    world.publish(&Installation::new());
    world.run(Duration::from_secs(1));
    world
}

#[test]
fn a_gateway_lets_no_syn_state_more_than_the_network_takes() {
    let mut world = with_interfaces(usize::MAX);
    for flags in [Flags::SYN, Flags::SYN.with(Flags::ACK)] {
        let states = |stated, world: &mut World| arrives(world, SENDER, RECEIVER, flags, stated);
        assert_eq!(states(1_360, &mut world), Some(1_220));
        assert_eq!(states(1_220, &mut world), Some(1_220));
        assert_eq!(states(536, &mut world), Some(536));
    }
}

#[test]
fn connections_state_what_the_path_carries_in_both_directions() {
    // 32 bytes around a packet.
    let mut world = with_interfaces(1_200 + 32);
    let syn_ack = Flags::SYN.with(Flags::ACK);
    assert_eq!(
        arrives(&mut world, SENDER, RECEIVER, Flags::SYN, 1_360),
        Some(1_220),
        "nothing is known yet"
    );
    world.run(minute());
    assert_eq!(found(&mut world, SENDER), Some(1_200));
    assert_eq!(found(&mut world, RECEIVER), Some(1_200));
    for (from, to) in [(SENDER, RECEIVER), (RECEIVER, SENDER)] {
        for flags in [Flags::SYN, syn_ack] {
            let stated = arrives(&mut world, from, to, flags, 1_360);
            assert_eq!(stated, Some(1_200 - 60));
        }
    }
}

#[test]
fn one_end_of_a_short_path_suffices_for_both_directions() {
    let mut world = with_interfaces(usize::MAX);
    world.carries = 1_200 + 32;
    world.run(minute());
    // The receiver hears nothing, so only the sender looks again.
    let datagram = raw(address(RECEIVER), address(SENDER), ip::UDP, &[0; 1_100]);
    world.send_packet(RECEIVER, &datagram);
    world.run(minute());
    assert_eq!(found(&mut world, SENDER), Some(1_200));
    assert_eq!(found(&mut world, RECEIVER), Some(1_280));
    for (from, to) in [(SENDER, RECEIVER), (RECEIVER, SENDER)] {
        let stated = arrives(&mut world, from, to, Flags::SYN, 1_360);
        assert_eq!(stated, Some(1_200 - 60));
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
    for seconds in [1, 4] {
        world.run(Duration::from_secs(seconds));
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
    assert_eq!(found(&mut world, SENDER), Some(1_280));
    world.carries = 1_100;
    assert!(crate::reach::ping(&mut world, SENDER, RECEIVER));
    world.run(10 * minute());
    assert_eq!(found(&mut world, SENDER), Some(1_280), "it has not looked");
}

#[test]
fn another_path_is_looked_at_anew() {
    let mut installation = Installation::new();
    let mut world = with_interfaces(usize::MAX);
    let both = |world: &mut World| {
        arrives(world, SENDER, RECEIVER, Flags::SYN, 1_360);
        arrives(world, RECEIVER, SENDER, Flags::SYN, 1_360);
        world.run(minute());
        found(world, SENDER)
    };
    assert_eq!(both(&mut world), Some(1_280));
    installation.publish(RECEIVER, "files", 8080);
    world.publish(&installation);
    assert_eq!(
        found(&mut world, SENDER),
        Some(1_280),
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
    assert_eq!(both(&mut world), Some(1_280));
}
