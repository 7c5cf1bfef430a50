//! Stories of a site with two nodes, of which the gateway chooses one.
//!
//! ```text
//!   11 laptop ─── gateway ─┬─ 12 ─┬─ paris: 192.168.1.0/24
//!                          └─ 13 ─┘
//! ```

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use model::{
    id::{NodeId, OrgId, SiteId},
    map,
    site::{Health, Mode, SitePrefix},
};
use node::{Attachment, Event};
use packet::ip;

use crate::world::{GATEWAY, Installation, World, ip as address, label, netstack, prefix, raw};

const PARIS: SiteId = SiteId(1);
const DEVICE: [u8; 4] = [192, 168, 1, 10];
const SECOND: Duration = Duration::from_secs(1);

/// Longer than a carrier that is out stays.
const OUT: Duration = Duration::from_millis(3_500);

fn installation() -> Installation {
    let mut installation = Installation::new();
    let site = map::Site {
        name: label("paris"),
        node: NodeId(12),
        standbys: vec![NodeId(13)],
        prefixes: vec!["192.168.1.0/24".parse().expect("a prefix")],
        aliases: Vec::new(),
        mode: Mode::default(),
        may_reach: Vec::new(),
        reached_by: Vec::new(),
    };
    installation.org(1).sites.insert(PARIS, site);
    installation
}

fn device() -> IpAddr {
    let site = SitePrefix::new(prefix(1), PARIS).expect("a site");
    IpAddr::V6(site.embed(Ipv4Addr::from(DEVICE)))
}

/// Which of both nodes are asked for an echo of the device.
fn asked(world: &mut World) -> Vec<u8> {
    for node in [12, 13] {
        world.take(node, |_| None::<()>);
    }
    let now = world.now;
    let echo = world.stack(11).ping(now, device(), 1, 8);
    echo.expect("room");
    world.run(Duration::from_millis(100));
    let mut asked = Vec::new();
    for node in [12, 13] {
        let prefixes = world.take(node, |event| {
            if let Event::Stack(netstack::Event::EchoRequested(prefix)) = event {
                Some(*prefix)
            } else {
                None
            }
        });
        for prefix in prefixes {
            let request = world.stack(node).accept_echo(prefix);
            request.expect("a request");
            asked.push(node);
        }
    }
    asked
}

fn health(world: &mut World, at: u8) -> Vec<(i64, bool, Health)> {
    let now = world.now;
    let nodes = world.node(at).site_nodes(now, OrgId(1), PARIS);
    let told = nodes.iter();
    told.map(|told| (told.node.0, told.carries, told.health))
        .collect()
}

#[test]
fn the_first_node_carries_the_site_until_it_falls_silent_and_again_after_the_hold() {
    let installation = installation();
    let mut world = World::standing(&installation, &[11, 12, 13]);
    let well = Health::Healthy;
    assert_eq!(asked(&mut world), [12]);
    assert_eq!(
        health(&mut world, GATEWAY),
        [(12, true, well), (13, false, well)]
    );
    // Its sessions stand: nobody has made another handshake for long.
    world.cut.push(12);
    world.run(OUT);
    assert_eq!(asked(&mut world), [13]);
    let out = [(12, false, Health::Silent), (13, true, well)];
    assert_eq!(health(&mut world, GATEWAY), out);
    world.run(3 * SECOND);
    assert_eq!(health(&mut world, 13), out, "the gateway tells the nodes");
    assert_eq!(
        health(&mut world, 12),
        [],
        "this one has heard nothing lately"
    );

    world.cut.clear();
    world.run(5 * SECOND);
    assert_eq!(asked(&mut world), [13], "it is not trusted at once");
    world.run(15 * SECOND);
    assert_eq!(asked(&mut world), [12]);
    let moved = |event: &Event| {
        if let Event::SiteChanged { site, former, .. } = event {
            former.map(|former| (*site, former))
        } else {
            None
        }
    };
    let told = world.take(GATEWAY, moved);
    let there_and_back = [(PARIS, NodeId(12)), (PARIS, NodeId(13))];
    assert_eq!(told, there_and_back, "and no more");
    let now = world.now;
    for at in [GATEWAY, 13] {
        assert_eq!(world.node(at).status(now).happened.sites_moved, 2);
    }
    let carried = world.node(GATEWAY).status(now).carried;
    let nodes = carried.iter().flat_map(|carried| &carried.nodes);
    let carriers = nodes
        .filter(|node| node.carries)
        .map(|node| node.name.as_str());
    assert_eq!(carriers.collect::<Vec<_>>(), ["db"]);
    assert_eq!(world.node(13).status(now).carried, carried);
}

#[test]
fn a_node_whose_machine_has_lost_the_lan_hands_the_site_over() {
    let installation = installation();
    let mut world = World::standing(&installation, &[11, 12, 13]);
    for (fault, expected) in [
        (Some(Health::NoLan), [13]),
        (Some(Health::NotForwarding), [13]),
    ] {
        world.node(12).set_site_fault(PARIS, fault);
        world.run(2 * SECOND);
        assert_eq!(asked(&mut world), expected);
        let [(_, carries, told), _] = health(&mut world, GATEWAY)[..] else {
            panic!("two nodes");
        };
        assert_eq!((carries, Some(told)), (false, fault));
        world.node(12).set_site_fault(PARIS, None);
        world.run(30 * SECOND);
        assert_eq!(asked(&mut world), [12]);
    }
}

#[test]
fn the_map_changes_nothing_about_who_carries_unless_it_names_others() {
    let mut installation = installation();
    let mut world = World::standing(&installation, &[11, 12, 13]);
    world.cut.push(12);
    world.run(OUT);
    assert_eq!(asked(&mut world), [13]);
    // Another change of the organisation.
    installation.org(1).name = label("renamed");
    world.publish(&installation);
    assert_eq!(asked(&mut world), [13]);
    // A restart of the gateway: it finds out anew.
    let endpoints = world.node(GATEWAY).endpoints();
    world.add(GATEWAY, netstack(GATEWAY));
    world.publish(&installation);
    world.node(GATEWAY).restore_endpoints(&endpoints);
    world.run(OUT);
    assert_eq!(asked(&mut world), [13]);
    // The standby leads alone now.
    let org = installation.org(1);
    let site = org.sites.get_mut(&PARIS).expect("the site");
    (site.node, site.standbys) = (NodeId(13), Vec::new());
    world.publish(&installation);
    assert_eq!(asked(&mut world), [13]);
    assert_eq!(health(&mut world, GATEWAY), []);
}

#[test]
fn a_node_that_does_not_carry_the_site_speaks_for_none_of_its_hosts() {
    let installation = installation();
    let mut world = World::new();
    for host in [GATEWAY, 11] {
        world.add(host, netstack(host));
    }
    for host in [12, 13] {
        world.add(host, Attachment::Tun);
    }
    world.publish(&installation);
    world.run(2 * SECOND);
    let forged = raw(device(), address(11), ip::UDP, &[0; 8]);
    let refused = |world: &mut World| {
        let discard = wireguard::Discard::SourceNotAllowed;
        world.node(GATEWAY).counters().count(discard.into())
    };
    let before = refused(&mut world);
    for (node, more) in [(13, 1), (12, 1)] {
        world.send_packet(node, &forged);
        world.run(SECOND);
        assert_eq!(refused(&mut world), before + more, "{node}");
    }
}

#[test]
fn a_gateway_that_the_organisation_does_not_use_finds_nothing_out() {
    let mut installation = installation();
    let mut world = World::standing(&installation, &[11, 12, 13]);
    let used = installation.org(1).gateway.clone();
    let mut other = used.clone();
    other.as_mut().expect("a gateway").id = NodeId(99);
    for (gateway, known) in [(other, 0), (used, 2)] {
        installation.org(1).gateway = gateway;
        installation.serial += 1;
        let now = world.now;
        let map = installation.map_of(GATEWAY);
        world.node(GATEWAY).apply(now, &map);
        assert_eq!(health(&mut world, GATEWAY).len(), known);
        world.run(5 * SECOND);
        let nodes = health(&mut world, GATEWAY);
        assert!(nodes.iter().all(|(_, _, told)| *told == Health::Healthy));
    }
    assert_eq!(asked(&mut world), [12]);
    let moved = world.take(GATEWAY, |event| {
        matches!(event, Event::SiteChanged { former, .. } if former.is_some()).then_some(())
    });
    assert_eq!(moved, []);
}
