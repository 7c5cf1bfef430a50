//! Stories of routers that are congested: what they mark goes through the tunnels (RFC 6040).

use std::time::Duration;

use node::Attachment;
use packet::{ecn::Ecn, ip};

use crate::world::{GATEWAY, Installation, World, ip as address, netstack, raw};

const SENDER: u8 = 11;
const RECEIVER: u8 = 12;

/// Two nodes with TUN interfaces at a gateway.
fn standing() -> World {
    let mut world = World::new();
    world.add(GATEWAY, netstack(GATEWAY));
    for host in [SENDER, RECEIVER] {
        world.add(host, Attachment::Tun);
    }
    world.publish(&Installation::new());
    world.run(Duration::from_secs(1));
    world
}

/// Sends a packet that says `ecn`; returns what it says when it arrives.
fn pass(world: &mut World, ecn: Ecn) -> Option<Ecn> {
    let mut packet = raw(address(SENDER), address(RECEIVER), ip::UDP, &[0; 64]);
    packet[1] |= ecn.bits() << 4;
    world.send_packet(SENDER, &packet);
    world.run(Duration::from_secs(1));
    let packets = &mut world.hosts.get_mut(&RECEIVER).expect("a host").packets;
    let arrived = std::mem::take(packets);
    arrived.first().map(|packet| Ecn::of_packet(packet))
}

#[test]
fn a_mark_before_or_behind_the_gateway_arrives() {
    let mut world = standing();
    let all = [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce];
    for ecn in all {
        assert_eq!(pass(&mut world, ecn), Some(ecn));
    }
    world.routers = |ecn| if ecn == Ecn::NotEct { ecn } else { Ecn::Ce };
    let marked = [Ecn::NotEct, Ecn::Ce, Ecn::Ce, Ecn::Ce];
    for (ecn, arrives) in all.into_iter().zip(marked) {
        assert_eq!(pass(&mut world, ecn), Some(arrives));
    }
}

#[test]
fn a_mark_that_nobody_allowed_counts_as_a_loss_where_it_is_found() {
    let mut world = standing();
    world.routers = |_| Ecn::Ce;
    assert_eq!(pass(&mut world, Ecn::NotEct), None);
    let counters = world.node(GATEWAY).counters();
    assert_eq!(counters.count(wireguard::Discard::NotEct.into()), 1);
    assert_eq!(pass(&mut world, Ecn::Ect0), Some(Ecn::Ce));
}
