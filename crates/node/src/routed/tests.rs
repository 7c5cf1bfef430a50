//! Translation in both directions: which addresses stand for each other, and any packet.

use std::collections::BTreeMap;

use model::{
    address::{Kind, OrgPrefix},
    id::{NodeId, OrgId},
    key::PublicKey,
    map::{self, Own, State},
};
use proptest::prelude::*;

use super::*;

/// The largest packet that is tried.
const PACKET_MAX: usize = 160;

fn org() -> OrgPrefix {
    OrgPrefix::new([1; 5])
}

fn address(node: i64) -> Ipv6Addr {
    org().address(Kind::Node, node.unsigned_abs())
}

/// Two offices with one prefix behind the nodes 1 and 2 as the node `own` sees them, which has
/// every route that it wants.
fn routed(own: i64) -> Routed {
    let node = |id: i64| {
        let node = map::Node {
            name: format!("n{id}").parse().expect("a label"),
            public_key: PublicKey([u8::try_from(id).expect("small"); 32]),
            address: address(id),
            owner: None,
            may_reach: Vec::new(),
            reached_by: Vec::new(),
        };
        (NodeId(id), node)
    };
    let site = |id: i64| {
        let alias = format!("192.168.1.0/24=10.99.{id}.0/24");
        let site = map::Site {
            name: format!("s{id}").parse().expect("a label"),
            node: NodeId(id),
            standbys: Vec::new(),
            prefixes: vec!["192.168.1.0/24".parse().expect("a prefix")],
            aliases: vec![alias.parse().expect("an alias")],
            mode: Mode::Routed,
            may_reach: Vec::new(),
            reached_by: Vec::new(),
        };
        (SiteId(id), site)
    };
    let acme = Org {
        name: "acme".parse().expect("a label"),
        prefix: org(),
        gateway: None,
        nodes: [1, 2, 3].map(node).into(),
        services: BTreeMap::new(),
        sites: [1, 2].map(site).into(),
        rules: None,
        ssh: None,
    };
    let map = NetworkMap {
        serial: 1,
        own: Own {
            id: NodeId(own),
            name: "own".parse().expect("a label"),
            role: Role::Client,
            state: State::Active,
            capture: None,
        },
        orgs: [(OrgId(1), acme)].into(),
    };
    let mut routed = Routed::default();
    routed.apply(&map);
    let wanted = routed.wanted();
    routed.set_routes(wanted);
    routed
}

/// An address that is often one of those that mean something.
fn ipv4() -> impl Strategy<Value = Ipv4Addr> {
    let host = (0_usize..5, any::<u8>()).prop_map(|(at, host)| match at {
        0 => Ipv4Addr::new(192, 168, 1, host),
        1 => Ipv4Addr::new(10, 99, 1, host),
        2 => Ipv4Addr::new(10, 99, 2, host),
        3 => MACHINE_V4,
        _ => translate::DUMMY_V4,
    });
    prop_oneof![4 => host, 1 => any::<u32>().prop_map(Ipv4Addr::from_bits)]
}

/// The same inside the network.
fn ipv6() -> impl Strategy<Value = Ipv6Addr> {
    let site = |id| SitePrefix::new(org(), SiteId(id)).expect("a site");
    prop_oneof![
        (1_i64..=2, ipv4()).prop_map(move |(id, host)| site(id).embed(host)),
        (1_i64..=3).prop_map(address),
    ]
}

/// A packet whose header is well-formed but for what was drawn, and whose rest is anything.
fn packet(source: IpAddr, destination: IpAddr, next_header: u8, body: &[u8]) -> Vec<u8> {
    let header = ip::Header {
        source,
        destination,
        next_header,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    let at = ip::header_length(destination);
    let mut packet = vec![0; at + body.len()];
    ip::emit_header(&header, body.len(), &mut packet);
    packet[at..].copy_from_slice(body);
    packet
}

proptest! {
    #[test]
    fn addresses_of_both_families_stand_for_each_other(
        own in 1_i64..=3, v4 in ipv4(), v6 in ipv6(),
    ) {
        let routed = routed(own);
        if let Some(embedded) = routed.embed(v4) {
            prop_assert_eq!(routed.extract(embedded), Some(v4));
        }
        if let Some(extracted) = routed.extract(v6) {
            prop_assert_eq!(routed.embed(extracted), Some(v6));
        }
    }

    #[test]
    fn what_one_node_sends_for_a_host_another_one_takes_with_the_alias(
        hosts: [u8; 2], ports: [u16; 2], payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let [here, there] = hosts;
        let datagram = |source: [u8; 4], destination: [u8; 4]| {
            let (source, destination) = (IpAddr::from(source), IpAddr::from(destination));
            let mut body = vec![0; packet::udp::HEADER + payload.len()];
            let [source_port, destination_port] = ports;
            let datagram = packet::udp::Datagram {
                source_port, destination_port, payload: &payload,
            };
            packet::udp::emit(source, destination, &datagram, &mut body);
            packet(source, destination, ip::UDP, &body)
        };
        let sent = datagram([192, 168, 1, here], [10, 99, 2, there]);
        let (mut carried, mut taken) = ([0; PACKET_MAX], [0; PACKET_MAX]);
        let length = routed(1).departing(&sent, address(1), &mut carried).expect("it leaves");
        let addresses = ip::addresses(&carried[..length]).expect("well-formed");
        let site = |id| SitePrefix::new(org(), SiteId(id)).expect("a site");
        let [source, destination] = [
            site(1).embed([10, 99, 1, here].into()), site(2).embed([10, 99, 2, there].into()),
        ];
        prop_assert_eq!(addresses.source, IpAddr::V6(source));
        prop_assert_eq!(addresses.destination, IpAddr::V6(destination));
        let length = routed(2).arriving(&carried[..length], &mut taken).expect("it arrives");
        // What is not covered by a checksum, such as the bit that forbids fragments, may differ.
        let expected = datagram([10, 99, 1, here], [192, 168, 1, there]);
        prop_assert_eq!(ip::parse(&taken[..length]), ip::parse(&expected));
        prop_assert!(ip::v4_checksum_holds(&taken[..length]));
    }

    #[test]
    fn any_packet_is_translated_or_not_and_stays_within_its_bounds(
        own in 1_i64..=3,
        v4 in (ipv4(), ipv4()),
        v6 in (ipv6(), ipv6()),
        next_header in prop_oneof![
            Just(ip::ICMP), Just(ip::ICMPV6), Just(ip::TCP), Just(ip::UDP), any::<u8>(),
        ],
        body in prop::collection::vec(any::<u8>(), 0..64),
        quoted in any::<bool>(),
    ) {
        let routed = routed(own);
        let body = if quoted {
            // An error that quotes a packet of the other direction.
            let mut error = vec![3, 3, 0, 0, 0, 0, 0, 0];
            error.extend(packet(v4.1.into(), v4.0.into(), ip::UDP, &body));
            error
        } else {
            body
        };
        let mut out = [0; PACKET_MAX];
        let sent = packet(v4.0.into(), v4.1.into(), next_header, &body);
        if let Some(length) = routed.departing(&sent, address(own), &mut out) {
            prop_assert!(ip::parse(&out[..length]).is_ok());
            prop_assert!(length <= sent.len() + translate::GROWTH);
        }
        let brought = packet(v6.0.into(), v6.1.into(), next_header, &body);
        if let Some(length) = routed.arriving(&brought, &mut out) {
            prop_assert!(ip::parse(&out[..length]).is_ok());
            prop_assert!(ip::v4_checksum_holds(&out[..length]));
            prop_assert!(length <= brought.len());
        }
        // Without a header either.
        let _taken = routed.departing(&body, address(own), &mut out);
        let _taken = routed.arriving(&body, &mut out);
    }
}
