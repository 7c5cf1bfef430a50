//! Stories of who may reach whom, and of rules that change while traffic flows.

use std::{net::SocketAddr, time::Duration};

use model::{
    address::Kind,
    id::{NodeId, RuleId},
    key::PublicKey,
    policy::{Reach, Rule},
};
use netstack::CloseReason;
use node::{Attachment, Discard, Reason};
use packet::{icmp::Unreachable, ip, tcp};

use crate::{
    reach::{Transfer, ping},
    world::{GATEWAY, Installation, World, ip as address, member, netstack, prefix, raw},
};

/// `acme` with `files` and `admin` at node 12, and these rules: who, whom, what.
fn installation(rules: &[(u8, u8, &str)]) -> Installation {
    let mut installation = Installation::new();
    installation.publish(12, "files", 8080);
    installation.publish(12, "admin", 9090);
    set(&mut installation, rules);
    installation
}

fn set(installation: &mut Installation, rules: &[(u8, u8, &str)]) {
    let org = installation.org(1);
    let traffic = |text: &str| Rule {
        traffic: vec![text.parse().expect("traffic")],
    };
    let texts = rules.iter().map(|(.., text)| traffic(text));
    org.rules = Some((1..).map(RuleId).zip(texts).collect());
    for (id, node) in &mut org.nodes {
        let of = |pick: fn(&(u8, u8, &str)) -> u8| {
            let numbered = (1..).map(RuleId).zip(rules);
            numbered.filter(move |(_, rule)| NodeId(pick(rule).into()) == *id)
        };
        node.may_reach = of(|rule| rule.0).map(|(rule, _)| rule).collect();
        let reached_by = of(|rule| rule.1).map(|(rule, _)| Reach { rule, port: None });
        node.reached_by = reached_by.collect();
    }
}

fn refused(world: &mut World, host: u8) -> u64 {
    let counters = world.node(host).counters();
    counters.count(Discard::Node(Reason::Policy))
}

#[test]
fn what_a_rule_allows_passes_and_the_sender_of_the_rest_is_told() {
    let installation = installation(&[(11, 12, "8080/tcp")]);
    let mut world = World::standing(&installation, &[11, 12, 13]);
    let mut transfer = Transfer::begin(&mut world, 11, 12, 8080, 100_000);
    transfer.run(&mut world, Duration::from_secs(5));
    assert!(transfer.done());
    assert!(
        ping(&mut world, 11, 12),
        "a rule lets echo requests through"
    );
    assert_eq!(refused(&mut world, GATEWAY), 0);

    for (from, to, port) in [(11, 12, 9090), (13, 12, 8080), (12, 11, 8080)] {
        let before = refused(&mut world, GATEWAY);
        let now = world.now;
        let remote = SocketAddr::new(address(to), port);
        let id = world.stack(from).connect(now, remote).expect("a port");
        world.run(Duration::from_millis(200));
        let reason = world.stack(from).close_reason(id);
        let prohibited = CloseReason::Unreachable(Unreachable::Prohibited);
        assert_eq!(reason, Some(prohibited), "{from} to {to}");
        assert_eq!(refused(&mut world, GATEWAY), before + 1);
        assert_eq!(refused(&mut world, to), 0, "the gateway holds it back");
    }
}

#[test]
fn a_node_refuses_by_itself_what_a_gateway_with_an_older_map_lets_through() {
    let mut installation = installation(&[(11, 12, "all")]);
    let mut world = World::standing(&installation, &[11, 12]);
    let old = installation.map_of(GATEWAY);
    set(&mut installation, &[]);
    world.publish(&installation);
    let now = world.now;
    world.node(GATEWAY).apply(now, &old);
    assert!(!ping(&mut world, 11, 12));
    assert_eq!(refused(&mut world, GATEWAY), 0);
    assert!(refused(&mut world, 12) > 0);
}

#[test]
fn a_rule_that_goes_cuts_its_flows_and_one_that_stays_keeps_them() {
    let mut installation = installation(&[(11, 12, "8080/tcp"), (13, 12, "8080/tcp")]);
    let mut world = World::standing(&installation, &[11, 12, 13]);
    let mut cut = Transfer::begin(&mut world, 11, 12, 8080, 50_000_000);
    cut.run(&mut world, Duration::from_millis(500));
    assert!(cut.received > 0 && !cut.done());
    set(&mut installation, &[(13, 12, "8080/tcp")]);
    let now = world.now;
    // Only the gateway hears of it.
    let map = installation.map_of(GATEWAY);
    world.node(GATEWAY).apply(now, &map);
    cut.run(&mut world, Duration::from_millis(20));
    let received = cut.received;
    cut.run(&mut world, Duration::from_secs(10));
    assert_eq!(cut.received, received);

    let before = refused(&mut world, GATEWAY);
    let mut kept = Transfer::begin(&mut world, 13, 12, 8080, 2_000_000);
    kept.run(&mut world, Duration::from_millis(100));
    assert!(!kept.done());
    set(&mut installation, &[(13, 12, "8080/tcp"), (13, 11, "all")]);
    world.publish(&installation);
    kept.run(&mut world, Duration::from_secs(20));
    assert!(kept.done());
    let retries = refused(&mut world, GATEWAY) - before;
    assert!(
        retries < 20,
        "only the one that was cut is refused: {retries}"
    );
}

/// The last packet is one that was under way: as with three nodes, so with two thousand.
#[test]
fn among_two_thousand_nodes_a_change_ends_an_open_flow_within_a_second_and_no_other() {
    let mut installation = installation(&[(11, 12, "8080/tcp"), (13, 12, "8080/tcp")]);
    crowd(&mut installation, 2_000);
    let mut world = World::standing(&installation, &[11, 12, 13]);
    for is_removed in [false, true] {
        let mut cut = Transfer::begin(&mut world, 11, 12, 8080, 50_000_000);
        let mut kept = Transfer::begin(&mut world, 13, 12, 8080, 50_000_000);
        cut.run(&mut world, Duration::from_millis(200));
        kept.run(&mut world, Duration::from_millis(200));
        assert!(cut.received > 0 && kept.received > 0 && !cut.done());

        let (before, allowed) = (installation.map_of(GATEWAY), installation.clone());
        if is_removed {
            installation.remove(11);
        } else {
            set(&mut installation, &[(13, 12, "8080/tcp")]);
        }
        // The gateway alone hears of it, as what changed.
        let difference = installation.map_of(GATEWAY).difference(&before);
        let now = world.now;
        assert!(world.node(GATEWAY).apply_difference(now, &difference));
        cut.run(&mut world, Duration::from_secs(1));
        let (ended, lasts) = (cut.received, kept.received);
        cut.run(&mut world, Duration::from_secs(5));
        assert_eq!(cut.received, ended, "removed: {is_removed}");
        kept.run(&mut world, Duration::from_millis(200));
        assert!(kept.received > lasts, "removed: {is_removed}");

        if !is_removed {
            let serial = installation.serial + 1;
            installation = Installation { serial, ..allowed };
            world.publish(&installation);
        }
    }
}

/// Adds nodes that say nothing, and a rule for each of them.
fn crowd(installation: &mut Installation, count: u64) {
    let org = installation.org(1);
    let rules = org.rules.get_or_insert_default();
    for number in 1_000..1_000 + count {
        let (_, mut node) = member(11, "crowd");
        let id = i64::try_from(number).expect("small");
        node.name = format!("crowd-{number}").parse().expect("a label");
        node.address = prefix(1).address(Kind::Node, number);
        let mut key = [0x55; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        node.public_key = PublicKey(key);
        node.may_reach.push(RuleId(id));
        node.reached_by.push(Reach {
            rule: RuleId(id),
            port: None,
        });
        org.nodes.insert(NodeId(id), node);
        let traffic = vec!["22/tcp".parse().expect("traffic")];
        rules.insert(RuleId(id), Rule { traffic });
    }
}

#[test]
fn an_open_connection_survives_a_gateway_that_starts_again() {
    let installation = installation(&[(11, 12, "8080/tcp")]);
    let mut world = World::standing(&installation, &[11, 12]);
    let mut transfer = Transfer::begin(&mut world, 11, 12, 8080, 3_000_000);
    transfer.run(&mut world, Duration::from_millis(300));
    assert!(transfer.received > 0 && !transfer.done());
    let endpoints = world.node(GATEWAY).endpoints();
    world.add(GATEWAY, netstack(GATEWAY));
    let now = world.now;
    let map = installation.map_of(GATEWAY);
    world.node(GATEWAY).apply(now, &map);
    world.node(GATEWAY).restore_endpoints(&endpoints);
    transfer.run(&mut world, Duration::from_secs(60));
    assert!(transfer.done());
}

#[test]
fn a_tun_is_given_answers_and_nothing_else() {
    let installation = installation(&[(11, 12, "22/tcp")]);
    let mut world = World::new();
    world.add(GATEWAY, netstack(GATEWAY));
    world.add(11, Attachment::Tun);
    world.add(12, Attachment::Tun);
    world.publish(&installation);
    world.run(Duration::from_secs(1));
    let segment = |from: u8, to: u8, source: u16, destination: u16, flags| {
        let header = tcp::Header {
            source_port: source,
            destination_port: destination,
            flags,
            ..tcp::Header::default()
        };
        let mut body = [0; tcp::HEADER];
        tcp::emit_header(&header, &mut body);
        raw(address(from), address(to), ip::TCP, &body)
    };
    let syn = tcp::Flags::SYN;
    let answer = tcp::Flags::SYN.with(tcp::Flags::ACK);
    for (from, to, source, destination, flags, passes) in [
        (11, 12, 4096, 22, syn, true),
        (12, 11, 22, 4096, answer, true),
        (12, 11, 22, 4096, syn, false),
        (11, 12, 4096, 23, syn, false),
        (12, 11, 4096, 22, syn, false),
        (12, 11, 23, 4096, answer, false),
    ] {
        let packet = segment(from, to, source, destination, flags);
        world.hosts.get_mut(&to).expect("a host").packets.clear();
        world.send_packet(from, &packet);
        world.run(Duration::from_millis(100));
        let given = &world.hosts[&to].packets;
        let given = given.iter().any(|given| given[40..] == packet[40..]);
        assert_eq!(given, passes, "{from} to {to}, {source} to {destination}");
    }
}
