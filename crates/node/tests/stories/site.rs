//! Stories of hosts in LANs behind nodes: two offices with the same addresses.
//!
//! ```text
//!   11 laptop ─── gateway ─┬─ 12 ─── paris: 192.168.1.0/24
//!                          └─ 13 ─── rome: 192.168.1.0/24, 10.9.0.0/16
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use model::{
    id::{NodeId, RuleId, SiteId},
    map,
    policy::{Rule, SiteReach},
    site::{Mode, SitePrefix},
};
use netstack::{CloseReason, ConnectionId, EchoRequest, Received};
use node::{Attachment, Discard, Event, Reason};
use packet::{icmp::Unreachable, ip, udp};

use crate::world::{GATEWAY, Installation, World, ip as address, label, netstack, prefix, raw};

const PARIS: i64 = 1;
const ROME: i64 = 2;

/// The two offices, with these rules for the laptop: which site, which hosts, what.
fn installation(rules: &[(i64, Option<&str>, &str)]) -> Installation {
    let mut installation = Installation::new();
    let org = installation.org(1);
    let sites = [
        (PARIS, "paris", 12, &["192.168.1.0/24"][..]),
        (ROME, "rome", 13, &["192.168.1.0/24", "10.9.0.0/16"]),
    ];
    for (id, name, node, prefixes) in sites {
        let prefixes = prefixes.iter().map(|text| text.parse().expect("a prefix"));
        let numbered = (1..).map(RuleId).zip(rules);
        let about = numbered.filter(|(_, (site, ..))| *site == id);
        let site = map::Site {
            name: label(name),
            node: NodeId(node),
            standbys: Vec::new(),
            prefixes: prefixes.collect(),
            aliases: Vec::new(),
            mode: Mode::default(),
            may_reach: Vec::new(),
            reached_by: about
                .map(|(rule, (_, hosts, _))| SiteReach {
                    rule,
                    hosts: hosts.map(|text| text.parse().expect("a prefix")),
                })
                .collect(),
        };
        org.sites.insert(SiteId(id), site);
    }
    let traffic = |text: &str| Rule {
        traffic: vec![text.parse().expect("traffic")],
    };
    let texts = rules.iter().map(|(.., text)| traffic(text));
    org.rules = Some((1..).map(RuleId).zip(texts).collect());
    let laptop = org.nodes.get_mut(&NodeId(11)).expect("the laptop");
    laptop.may_reach = (1..).map(RuleId).take(rules.len()).collect();
    installation
}

fn host(site: i64, host: [u8; 4]) -> IpAddr {
    let site = SitePrefix::new(prefix(1), SiteId(site)).expect("a site");
    IpAddr::V6(site.embed(Ipv4Addr::from(host)))
}

const DEVICE: [u8; 4] = [192, 168, 1, 10];

/// The laptop's connection, and what comes of it at the node that leads to the site.
fn connect(world: &mut World, to: SocketAddr, through: u8) -> (ConnectionId, Option<ConnectionId>) {
    let now = world.now;
    world.take(through, |_| None::<()>);
    let id = world.stack(11).connect(now, to).expect("a free port");
    world.run(Duration::from_millis(100));
    let accepted = |event: &Event| {
        if let Event::Stack(netstack::Event::Accepted(listener)) = event {
            Some(*listener)
        } else {
            None
        }
    };
    let listener = world.take(through, accepted).pop();
    let held = listener.and_then(|listener| {
        assert!(world.node(through).listens_for_site(listener));
        world.stack(through).accept(listener)
    });
    (id, held)
}

fn refusal(world: &mut World, id: ConnectionId) -> Option<CloseReason> {
    world.run(Duration::from_millis(200));
    world.stack(11).close_reason(id)
}

/// Sends `word` from the laptop over a connection to a device of a site, and back.
fn talk(world: &mut World, site: i64, through: u8, word: &[u8]) {
    let to = SocketAddr::new(host(site, DEVICE), 22);
    let (id, held) = connect(world, to, through);
    let held = held.expect("the node holds the connection");
    assert_eq!(world.stack(through).local(held), Some(to));
    let now = world.now;
    world.stack(through).admit(now, held).expect("it is there");
    world.run(Duration::from_millis(100));
    for (from, id, to, other) in [(11, id, through, held), (through, held, 11, id)] {
        let now = world.now;
        let sent = world.stack(from).send(now, id, word);
        assert_eq!(sent, Ok(word.len()), "{from} to {to}");
        world.run(Duration::from_millis(100));
        let mut bytes = [0; 64];
        let now = world.now;
        let received = world.stack(to).recv(now, other, &mut bytes);
        assert_eq!(received, Ok(Received::Bytes(word.len())));
        assert!(bytes.starts_with(word));
    }
}

#[test]
fn two_sites_with_one_prefix_are_both_reached_through_their_own_nodes() {
    let installation = installation(&[(PARIS, None, "all"), (ROME, None, "all")]);
    let mut world = World::standing(&installation, &[11, 12, 13]);
    talk(&mut world, PARIS, 12, b"in paris");
    talk(&mut world, ROME, 13, b"in rome");
}

#[test]
fn a_node_with_an_interface_serves_its_site_by_its_stack_and_itself_by_the_interface() {
    let installation = installation(&[(PARIS, None, "all")]);
    let mut world = World::new();
    world.add(GATEWAY, netstack(GATEWAY));
    world.add(11, netstack(11));
    world.add(12, Attachment::Tun);
    world.publish(&installation);
    world.run(Duration::from_secs(1));
    talk(&mut world, PARIS, 12, b"in paris");
    let interface = &world.hosts[&12].packets;
    assert!(interface.is_empty(), "nothing of it is for the machine");
}

#[test]
fn datagrams_and_echo_requests_come_out_at_the_node_and_are_answered_in_the_hosts_name() {
    let installation = installation(&[(PARIS, None, "all")]);
    let mut world = World::standing(&installation, &[11, 12]);
    let to = SocketAddr::new(host(PARIS, DEVICE), 53);
    let socket = world.stack(11).bind("[::]:0".parse().expect("an address"));
    let socket = socket.expect("a free port");
    world.stack(11).send_to(socket, to, b"who?").expect("room");
    let now = world.now;
    let echo = world.stack(11).ping(now, to.ip(), 1, 32).expect("room");
    world.run(Duration::from_millis(100));

    let asked = world.take(12, |event| {
        if let Event::Stack(
            event @ (netstack::Event::FlowOpened(_) | netstack::Event::EchoRequested(_)),
        ) = event
        {
            Some(*event)
        } else {
            None
        }
    });
    let (mut flows, mut echoes) = (0, 0);
    for event in asked {
        if let netstack::Event::FlowOpened(prefix) = event {
            let flow = world.stack(12).accept_flow(prefix).expect("a flow");
            assert_eq!(world.stack(12).udp_local(flow), Some(to));
            let remote = world.stack(12).udp_remote(flow).expect("a peer");
            world.stack(12).send_to(flow, remote, b"me").expect("room");
            flows += 1;
        } else if let netstack::Event::EchoRequested(prefix) = event {
            let request = world.stack(12).accept_echo(prefix).expect("a request");
            let EchoRequest { id, to: asked, .. } = request;
            assert_eq!(asked, to.ip());
            world.stack(12).answer_echo(id).expect("it is kept");
            echoes += 1;
        }
    }
    assert_eq!((flows, echoes), (1, 1));
    world.run(Duration::from_millis(100));
    let mut bytes = [0; 16];
    let (length, from, _) = world
        .stack(11)
        .recv_from(socket, &mut bytes)
        .expect("it came");
    assert_eq!((&bytes[..length], from), (&b"me"[..], to));
    let replied = world.take(11, |event| {
        if let Event::Stack(netstack::Event::EchoReply { id, from, .. }) = event {
            Some((*id, *from))
        } else {
            None
        }
    });
    assert_eq!(replied, [(echo, to.ip())]);
}

#[test]
fn rules_say_which_hosts_are_reached_and_the_rest_is_prohibited() {
    let part = Some("192.168.1.8/29");
    let installation = installation(&[(PARIS, part, "22"), (ROME, None, "ping")]);
    let mut world = World::standing(&installation, &[11, 12, 13]);
    talk(&mut world, PARIS, 12, b"port 22");
    let refused = [
        (PARIS, DEVICE, 23, 12),
        (PARIS, [192, 168, 1, 16], 22, 12),
        (ROME, DEVICE, 22, 13),
    ];
    for (site, device, port, through) in refused {
        let before = world.node(GATEWAY).counters().clone();
        let to = SocketAddr::new(host(site, device), port);
        let (id, held) = connect(&mut world, to, through);
        assert_eq!(held, None, "{to}");
        let prohibited = CloseReason::Unreachable(Unreachable::Prohibited);
        assert_eq!(refusal(&mut world, id), Some(prohibited), "{to}");
        let policy = Discard::Node(Reason::Policy);
        let count = world.node(GATEWAY).counters().count(policy);
        assert_eq!(count, before.count(policy) + 1, "the gateway holds it back");
    }
}

#[test]
fn outside_the_prefixes_of_a_site_there_is_nobody() {
    let installation = installation(&[(PARIS, None, "all"), (ROME, None, "all")]);
    let mut world = World::standing(&installation, &[11, 12, 13]);
    let nobody = CloseReason::Unreachable(Unreachable::Host);
    for (site, device, reached) in [
        (PARIS, [10, 9, 0, 1], false),
        (ROME, [10, 9, 0, 1], true),
        (PARIS, [192, 168, 2, 1], false),
        (PARIS, [127, 0, 0, 1], false),
        (ROME + 1, DEVICE, false),
    ] {
        let to = SocketAddr::new(host(site, device), 80);
        let through = if site == PARIS { 12 } else { 13 };
        let (id, held) = connect(&mut world, to, through);
        assert_eq!(held.is_some(), reached, "{to}");
        if !reached {
            assert_eq!(refusal(&mut world, id), Some(nobody), "{to}");
        }
    }
    // Another organisation does not reach them at all.
    let to = SocketAddr::new(host(PARIS, DEVICE), 80);
    world.add(21, netstack(21));
    world.publish(&installation);
    world.run(Duration::from_secs(1));
    let now = world.now;
    let id = world.stack(21).connect(now, to).expect("a free port");
    world.run(Duration::from_millis(200));
    assert_eq!(world.stack(21).close_reason(id), Some(nobody));
}

#[test]
fn a_node_speaks_for_the_hosts_of_its_own_site_and_for_no_others() {
    let mut installation = installation(&[(PARIS, None, "all")]);
    installation.org(1).rules = None;
    let mut world = World::standing(&installation, &[11]);
    world.add(12, Attachment::Tun);
    world.publish(&installation);
    world.run(Duration::from_secs(1));
    world
        .stack(11)
        .bind("[::]:7".parse().expect("an address"))
        .expect("free");
    let mut say = |source| {
        let (destination, before) = (address(11), received(&mut world));
        let datagram = udp::Datagram {
            source_port: 9,
            destination_port: 7,
            payload: b"x",
        };
        let mut body = [0; udp::HEADER + 1];
        udp::emit(source, destination, &datagram, &mut body);
        world.send_packet(12, &raw(source, destination, ip::UDP, &body));
        world.run(Duration::from_millis(100));
        received(&mut world) > before
    };
    assert!(say(host(PARIS, DEVICE)));
    for source in [
        host(ROME, DEVICE),
        host(PARIS, [192, 168, 2, 1]),
        address(13),
    ] {
        assert!(!say(source), "{source}");
    }
}

/// How many datagrams came to the laptop.
fn received(world: &mut World) -> usize {
    let readable = |event: &Event| {
        matches!(event, Event::Stack(netstack::Event::UdpReadable(_))).then_some(())
    };
    world.take(11, readable).len()
}

#[test]
fn a_site_that_goes_is_heard_no_more() {
    let mut installation = installation(&[(PARIS, None, "all")]);
    let mut world = World::standing(&installation, &[11, 12]);
    let to = SocketAddr::new(host(PARIS, DEVICE), 22);
    let (_, held) = connect(&mut world, to, 12);
    assert!(held.is_some());
    installation.org(1).sites.clear();
    // The gateway still leads there.
    let now = world.now;
    let map = installation.map_of(12);
    world.node(12).apply(now, &map);
    let (id, held) = connect(&mut world, to, 12);
    assert_eq!((held, refusal(&mut world, id)), (None, None));
    world.publish(&installation);
    let (id, held) = connect(&mut world, to, 12);
    assert_eq!(held, None);
    let nobody = CloseReason::Unreachable(Unreachable::Host);
    assert_eq!(refusal(&mut world, id), Some(nobody));
}
