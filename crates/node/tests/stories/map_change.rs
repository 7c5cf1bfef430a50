//! Stories of maps that change while traffic flows.

use std::{collections::BTreeSet, time::Duration};

use model::{id::OrgId, key::PublicKey};
use netstack::CloseReason;
use node::{Discard, Event};
use packet::icmp::Unreachable;

use crate::{
    reach::{Transfer, ping},
    world::{GATEWAY, Installation, World, member, public_key, secret},
};

#[test]
fn a_removed_node_is_cut_off_at_once_with_a_transfer_running() {
    let mut installation = Installation::new();
    installation.publish(12, "files", 8080);
    let mut world = World::standing(&installation, &[11, 12, 13]);
    let mut transfer = Transfer::begin(&mut world, 11, 12, 8080, 50_000_000);
    transfer.run(&mut world, Duration::from_millis(500));
    assert!(transfer.received > 0 && !transfer.done());

    // Only the gateway hears of it: the node that is removed does not have to agree.
    installation.remove(11);
    let now = world.now;
    world
        .node(GATEWAY)
        .apply(now, &installation.map_of(GATEWAY));
    // What the gateway has sealed before is still under way.
    transfer.run(&mut world, Duration::from_millis(20));
    let received = transfer.received;
    transfer.run(&mut world, Duration::from_secs(10));
    assert_eq!(transfer.received, received);
    assert!(!ping(&mut world, 11, 12));
    assert!(ping(&mut world, 13, 12), "others are not disturbed");
}

#[test]
fn connections_to_a_node_that_was_removed_end_and_others_go_on() {
    let mut installation = Installation::new();
    installation.publish(12, "files", 8080);
    installation.publish(13, "pages", 8080);
    let mut world = World::standing(&installation, &[11, 12, 13]);
    let mut removed = Transfer::begin(&mut world, 11, 12, 8080, 50_000_000);
    let mut other = Transfer::begin(&mut world, 11, 13, 8080, 50_000_000);
    removed.run(&mut world, Duration::from_millis(100));
    other.run(&mut world, Duration::from_millis(100));
    assert!(removed.received > 0 && other.received > 0);

    installation.remove(12);
    for id in [GATEWAY, 11] {
        let now = world.now;
        world.node(id).apply(now, &installation.map_of(id));
    }
    removed.pump(&mut world);
    let unreachable = CloseReason::Unreachable(Unreachable::Host);
    assert_eq!(removed.closed, Some(unreachable));
    let received = other.received;
    other.run(&mut world, Duration::from_millis(500));
    assert!(other.received > received);
    assert_eq!(other.closed, None);
}

#[test]
fn a_node_that_came_and_went_between_two_maps_is_cut_off() {
    let mut installation = Installation::new();
    installation.remove(12);
    installation.remove(13);
    let mut world = World::standing(&installation, &[11]);
    let now = world.now;
    let before = installation.map_of(GATEWAY);

    // The gateway asked for it, and learns of another key of 11 so, too.
    let (id, node) = member(12, "db");
    let (renewed, mut other) = member(11, "renewed");
    other.public_key = public_key(13);
    let gateway = world.node(GATEWAY);
    assert!(gateway.insert_node(now, OrgId(1), id, &node));
    assert!(gateway.insert_node(now, OrgId(1), renewed, &other));
    assert_eq!(keys(&mut world), [public_key(12), public_key(13)].into());

    // Both was undone before the next map, whose difference says nothing of it.
    installation.serial += 2;
    let difference = installation.map_of(GATEWAY).difference(&before);
    assert!(difference.orgs.is_empty());
    let now = world.now;
    assert!(world.node(GATEWAY).apply_difference(now, &difference));
    let map = world.node(GATEWAY).map().cloned();
    assert_eq!(map, Some(installation.map_of(GATEWAY)));
    assert_eq!(keys(&mut world), [public_key(11)].into());
    let again = world.node(GATEWAY).apply_difference(now, &difference);
    assert!(!again, "it was to another map");
}

/// Returns the keys of the peers of organisation 1 that the gateway has.
fn keys(world: &mut World) -> BTreeSet<PublicKey> {
    let now = world.now;
    let others = [21, 22, 23].map(public_key);
    let peers = world.node(GATEWAY).status(now).peers;
    let keys = peers.iter().map(|peer| peer.public_key);
    keys.filter(|key| !others.contains(key)).collect()
}

#[test]
fn a_change_leaves_the_other_peers_undisturbed() {
    let mut installation = Installation::new();
    installation.publish(12, "files", 8080);
    let mut world = World::standing(&installation, &[11, 12, 21, 22]);
    let before = world.node(GATEWAY).counters().total();
    world.take(11, |_| None::<()>);
    world.take(12, |_| None::<()>);
    let mut transfer = Transfer::begin(&mut world, 11, 12, 8080, 1_000_000);
    for round in 0..20 {
        transfer.run(&mut world, Duration::from_millis(30));
        let name = format!("new{round}");
        let (id, node) = member(100 + round, &name);
        let mut node = node;
        node.address = crate::world::prefix(1).address(model::address::Kind::Node, 1000);
        installation.org(1).nodes.insert(id, node);
        if round == 10 {
            installation.remove(21);
        }
        world.publish(&installation);
        installation.org(1).nodes.remove(&id);
    }
    transfer.run(&mut world, Duration::from_secs(20));
    assert!(transfer.done());
    let lost = world.node(GATEWAY).counters().total() - before;
    let unknown = Discard::WireGuard(wireguard::Discard::UnknownIndex);
    let foreign = world.node(GATEWAY).counters().count(unknown);
    assert_eq!(
        lost,
        foreign,
        "{:?}",
        world.node(GATEWAY).counters().occurred()
    );
    let handshake = |event: &Event| {
        if let Event::HandshakeCompleted { .. } = event {
            Some(())
        } else {
            None
        }
    };
    assert_eq!(world.take(11, handshake), [], "no new handshake was needed");
    assert_eq!(world.take(12, handshake), []);
}

#[test]
fn a_node_that_enrols_again_with_a_new_key_keeps_its_address_and_the_old_key_is_dead() {
    let mut installation = Installation::new();
    let mut world = World::standing(&installation, &[11, 12]);
    assert!(ping(&mut world, 11, 12));

    let id = model::id::NodeId(12);
    let node = installation.org(1).nodes.get_mut(&id).expect("a member");
    node.public_key = public_key(19);
    world.publish(&installation);
    assert!(!ping(&mut world, 11, 12), "the old key is nobody");

    world.hosts.remove(&12);
    let now = world.now;
    let map = installation.map_of(12);
    world.add(12, crate::world::netstack(12));
    let wall = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
    let random = Box::new(crate::world::Seeded(99));
    let attachment = crate::world::netstack(12);
    *world.node(12) = node::Node::new(now, wall, random, &secret(19), attachment);
    world.node(12).apply(now, &map);
    world.run(Duration::from_secs(1));
    assert!(ping(&mut world, 11, 12));
}

#[test]
fn a_node_that_takes_another_key_goes_on_with_its_connections() {
    let mut installation = Installation::new();
    installation.publish(12, "files", 8080);
    let mut world = World::standing(&installation, &[11, 12]);
    let mut transfer = Transfer::begin(&mut world, 11, 12, 8080, 5_000_000);
    transfer.run(&mut world, Duration::from_millis(300));
    assert!(transfer.received > 0 && !transfer.done());
    let id = model::id::NodeId(11);
    let node = installation.org(1).nodes.get_mut(&id).expect("a member");
    node.public_key = public_key(19);
    world.publish(&installation);
    let now = world.now;
    world.node(11).set_private_key(now, &secret(19));
    transfer.run(&mut world, Duration::from_secs(10));
    assert!(transfer.done());
}
