//! Stories of members who lie: identity by source address, and organisations kept apart.

use std::{net::IpAddr, time::Duration};

use model::config::Config;
use node::{Attachment, Discard, Reason};
use packet::{
    icmp::{self, Cause, Echo, Message, Unreachable},
    ip, udp,
};

use crate::world::{
    GATEWAY, Installation, World, endpoint, ip as address, netstack, prefix, public_key, raw,
    secret,
};

/// Two organisations whose nodes all have TUN interfaces, so that everything that arrives is
/// seen; each sends whatever it likes, whatever its map says.
fn liars() -> World {
    let mut world = World::new();
    world.add(GATEWAY, netstack(GATEWAY));
    let installation = Installation::new();
    let now = world.now;
    world
        .node(GATEWAY)
        .apply(now, &installation.map_of(GATEWAY));
    for host in HOSTS {
        world.add(host, Attachment::Tun);
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = {}\nMTU = 1276\n[Peer]\nPublicKey = {}\n\
             AllowedIPs = ::/0, 0.0.0.0/0\nEndpoint = {}\nPersistentKeepalive = 25\n",
            secret(host).to_base64(),
            address(host),
            public_key(GATEWAY),
            endpoint(GATEWAY),
        );
        let config = Config::parse(text.as_bytes()).expect("a well-formed file");
        world.node(host).apply_config(now, &config);
    }
    world.run(Duration::from_secs(1));
    world
}

const HOSTS: [u8; 6] = [11, 12, 13, 21, 22, 23];

fn datagram(source: IpAddr, destination: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    let datagram = udp::Datagram {
        source_port: 4000,
        destination_port: port,
        payload,
    };
    let mut body = vec![0; udp::HEADER + payload.len()];
    udp::emit(source, destination, &datagram, &mut body);
    raw(source, destination, ip::UDP, &body)
}

fn icmp_packet(source: IpAddr, destination: IpAddr, message: &Message<'_>) -> Vec<u8> {
    let mut body = vec![0; 1280];
    let length = icmp::emit(source, destination, message, &mut body);
    raw(source, destination, ip::ICMPV6, &body[..length])
}

fn fragment(source: IpAddr, destination: IpAddr, offset: u16) -> Vec<u8> {
    let position = (offset | 1).to_be_bytes();
    let mut body = vec![ip::UDP, 0, position[0], position[1], 0, 0, 0, 9];
    body.extend([0; 64]);
    raw(source, destination, 44, &body)
}

/// Everything that one can send from `source` to `destination`; `quoted` is somebody else.
fn forms(source: IpAddr, destination: IpAddr, quoted: IpAddr) -> Vec<Vec<u8>> {
    let echo = Echo {
        identifier: 1,
        sequence: 1,
        payload: b"hello",
    };
    let cause = Cause::Unreachable(Unreachable::Port);
    let too_big = Cause::PacketTooBig { mtu: 1280 };
    // An error looks as if it answered a packet that the victim had sent.
    let quote = datagram(destination, quoted, 53, b"quoted");
    let quote = &quote[..];
    vec![
        datagram(source, destination, 9, b"hello"),
        datagram(source, destination, 53, b"hello"),
        icmp_packet(source, destination, &Message::EchoRequest(echo)),
        icmp_packet(source, destination, &Message::EchoReply(echo)),
        icmp_packet(source, destination, &Message::Error { cause, quote }),
        icmp_packet(
            source,
            destination,
            &Message::Error {
                cause: too_big,
                quote,
            },
        ),
        fragment(source, destination, 0),
        fragment(source, destination, 64),
    ]
}

/// Takes what arrived at each host but ICMP errors of its own resolver.
fn arrivals(world: &mut World) -> Vec<(u8, Vec<u8>)> {
    let mut arrived = Vec::new();
    for host in HOSTS {
        let packets = &mut world.hosts.get_mut(&host).expect("a known host").packets;
        for packet in std::mem::take(packets) {
            let parsed = ip::parse(&packet).expect("an IP packet");
            let resolver = IpAddr::V6(prefix(host / 10).resolver());
            let from_resolver = parsed.header.source == resolver
                && matches!(
                    icmp::parse(resolver, parsed.header.destination, parsed.payload),
                    Ok(Message::Error { .. })
                );
            if !from_resolver {
                arrived.push((host, packet));
            }
        }
    }
    arrived
}

#[test]
fn no_packet_crosses_between_organisations_in_any_form() {
    let mut world = liars();
    for from in HOSTS {
        for to in HOSTS.into_iter().filter(|to| to / 10 != from / 10) {
            // Its own address, a neighbour's, the victim's neighbour's, the victim's own, and the
            // resolvers' as sources; the victim and its resolver as destinations.
            let neighbour = from / 10 * 10 + (from % 10) % 3 + 1;
            let other = to / 10 * 10 + (to % 10) % 3 + 1;
            let resolvers = [from, to].map(|host| IpAddr::V6(prefix(host / 10).resolver()));
            let sources = [
                address(from),
                address(neighbour),
                address(other),
                address(to),
            ];
            for source in sources.into_iter().chain(resolvers) {
                for destination in [address(to), resolvers[1]] {
                    for packet in forms(source, destination, address(other)) {
                        world.send_packet(from, &packet);
                    }
                }
            }
            world.run(Duration::from_millis(100));
            let arrived = arrivals(&mut world);
            assert_eq!(arrived, [], "{from} to {to}");
        }
    }
    let counters = world.node(GATEWAY).counters();
    let forged = Discard::WireGuard(wireguard::Discard::SourceNotAllowed);
    assert!(counters.count(forged) > 0);
    assert!(counters.count(Discard::Node(Reason::OtherOrg)) > 0);
    // Everything that was sent is counted, under one of the two.
    let sent = 6 * 3 * 6 * 2 * 8;
    let counted = counters.count(forged) + counters.count(Discard::Node(Reason::OtherOrg));
    assert_eq!(counted, sent);
    assert_eq!(counters.total(), sent, "{:?}", counters.occurred());
}

#[test]
fn a_forged_source_of_the_own_organisation_is_dropped_at_the_gateway() {
    let mut world = liars();
    for packet in forms(address(13), address(12), address(11)) {
        world.send_packet(11, &packet);
    }
    let v4 = |byte| IpAddr::from([10, 70, 0, byte]);
    world.send_packet(11, &datagram(v4(1), v4(2), 9, b"hello"));
    world.run(Duration::from_secs(1));
    assert_eq!(arrivals(&mut world), []);
    let forged = Discard::WireGuard(wireguard::Discard::SourceNotAllowed);
    assert_eq!(world.node(GATEWAY).counters().count(forged), 9);

    // The same forms with the true source arrive.
    let honest = forms(address(11), address(12), address(13));
    for packet in &honest {
        world.send_packet(11, packet);
    }
    world.run(Duration::from_secs(1));
    let arrived = arrivals(&mut world);
    assert_eq!(arrived.len(), honest.len());
    for ((host, packet), mut sent) in arrived.into_iter().zip(honest) {
        assert_eq!(host, 12);
        // The gateway is a router: the hop limit shows it.
        sent[7] -= 1;
        assert_eq!(packet, sent);
    }
}

#[test]
fn an_address_of_another_organisation_is_answered_like_one_that_nobody_has() {
    let mut world = liars();
    let mut answers = Vec::new();
    // A node of another organisation, a node that it does not have, and an unknown organisation.
    let nowhere = IpAddr::V6(prefix(9).resolver());
    for destination in [address(21), address(29), nowhere] {
        world.send_packet(11, &datagram(address(11), destination, 9, b"hello"));
        world.run(Duration::from_millis(100));
        let packets = std::mem::take(&mut world.hosts.get_mut(&11).expect("a host").packets);
        let [answer] = &packets[..] else {
            panic!("one answer");
        };
        let parsed = ip::parse(answer).expect("an IP packet");
        let message = icmp::parse(
            parsed.header.source,
            parsed.header.destination,
            parsed.payload,
        );
        let Ok(Message::Error { cause, .. }) = message else {
            panic!("an ICMP error");
        };
        answers.push((parsed.header.source, cause));
    }
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
}

#[test]
fn icmp_errors_are_rate_limited_for_each_organisation() {
    let mut world = liars();
    for _ in 0..500 {
        world.send_packet(11, &datagram(address(11), address(19), 9, b"hello"));
    }
    world.send_packet(21, &datagram(address(21), address(29), 9, b"hello"));
    world.run(Duration::from_millis(50));
    let count = |world: &World, host: u8| world.hosts[&host].packets.len();
    assert!(
        (1..=60).contains(&count(&world, 11)),
        "{}",
        count(&world, 11)
    );
    assert_eq!(
        count(&world, 21),
        1,
        "another organisation has its own share"
    );
}

#[test]
fn a_packet_at_its_last_hop_goes_no_further() {
    let mut world = liars();
    let mut packet = datagram(address(11), address(12), 9, b"hello");
    packet[7] = 1;
    world.send_packet(11, &packet);
    world.run(Duration::from_millis(100));
    let packets = &world.hosts[&11].packets;
    assert_eq!(packets.len(), 1, "time exceeded");
    assert!(world.hosts[&12].packets.is_empty());
    let reason = Discard::Node(Reason::HopLimit);
    assert_eq!(world.node(GATEWAY).counters().count(reason), 1);
}

#[test]
fn a_full_packet_of_a_peer_that_pads_less_is_forwarded_too() {
    let mut world = liars();
    // A peer does not pad beyond its own MTU (of 1,276), but the gateway's is larger.
    let headers = ip::V6_HEADER + udp::HEADER;
    for length in 1256..=1276 {
        let packet = datagram(address(11), address(12), 9, &vec![1; length - headers]);
        world.send_packet(11, &packet);
    }
    world.run(Duration::from_millis(100));
    let lengths: Vec<_> = arrivals(&mut world)
        .iter()
        .map(|(_, packet)| packet.len())
        .collect();
    assert_eq!(lengths, (1256..=1276).collect::<Vec<_>>());
}

#[test]
fn a_map_that_gives_away_an_address_of_another_organisation_is_not_followed() {
    let mut world = liars();
    let mut installation = Installation::new();
    let taken = [(24, address(12)), (25, IpAddr::V6(prefix(2).resolver()))];
    for (host, stolen) in taken {
        let (id, mut node) = crate::world::member(host, "thief");
        let IpAddr::V6(stolen) = stolen else {
            panic!("an IPv6 address");
        };
        node.address = stolen;
        installation.org(2).nodes.insert(id, node);
    }
    let now = world.now;
    world
        .node(GATEWAY)
        .apply(now, &installation.map_of(GATEWAY));
    assert_eq!(world.node(GATEWAY).status(now).peers_total, 6);
    world.send_packet(11, &datagram(address(11), address(12), 9, b"hello"));
    world.run(Duration::from_millis(100));
    let arrived = arrivals(&mut world);
    assert_eq!(arrived.len(), 1);
    assert_eq!(arrived[0].0, 12);
}
