//! Which packets pass, in which order.

use model::{
    address::{Kind, OrgPrefix},
    id::{NodeId, OrgId},
    key::PublicKey,
    map::{NetworkMap, Own, Role, State},
};
use packet::{
    icmp::{self, Cause, Echo, Message, Unreachable},
    tcp, udp,
};

use super::*;

mod naive;

const A: u64 = 1;
const B: u64 = 2;

fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "the base of virtual time")]
    Instant::now()
}

fn address(node: u64) -> IpAddr {
    IpAddr::V6(OrgPrefix::new([7; 5]).address(Kind::Node, node))
}

/// An organisation in which A may reach B as `traffic` says.
fn orgs(traffic: Option<&str>) -> Orgs {
    let rule = |text: &str| Rule {
        traffic: text
            .split(' ')
            .map(|word| word.parse().expect("traffic"))
            .collect(),
    };
    let rules = traffic.map(|text| (RuleId(1), rule(text)));
    let node = |id: u64| Node {
        name: format!("node-{id}").parse().expect("a label"),
        public_key: PublicKey([u8::try_from(id).expect("small"); 32]),
        address: OrgPrefix::new([7; 5]).address(Kind::Node, id),
        owner: None,
        may_reach: (id == A).then_some(RuleId(1)).into_iter().collect(),
        reached_by: (id == B)
            .then_some(Reach {
                rule: RuleId(1),
                port: None,
            })
            .into_iter()
            .collect(),
    };
    let org = Org {
        name: "acme".parse().expect("a label"),
        prefix: OrgPrefix::new([7; 5]),
        gateway: None,
        nodes: [(NodeId(1), node(A)), (NodeId(2), node(B))].into(),
        services: BTreeMap::new(),
        sites: BTreeMap::new(),
        rules: Some(rules.into_iter().collect()),
        ssh: None,
    };
    applied(org)
}

/// A gateway's view of an organisation.
fn applied(org: Org) -> Orgs {
    let map = NetworkMap {
        serial: 1,
        own: Own {
            id: NodeId(9),
            name: "gate".parse().expect("a label"),
            role: Role::Gateway,
            state: State::Active,
            capture: None,
        },
        orgs: [(OrgId(1), org)].into(),
    };
    let mut orgs = Orgs::default();
    orgs.apply(start(), &map, None);
    orgs
}

fn packet(from: u64, to: u64, next_header: u8, payload: &[u8]) -> Vec<u8> {
    between(address(from), address(to), next_header, payload)
}

fn between(source: IpAddr, destination: IpAddr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let header = ip::Header {
        source,
        destination,
        next_header,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    let mut out = vec![0; ip::V6_HEADER + payload.len()];
    ip::emit_header(&header, payload.len(), &mut out);
    out[ip::V6_HEADER..].copy_from_slice(payload);
    out
}

fn datagram(from: (u64, u16), to: (u64, u16)) -> Vec<u8> {
    let mut payload = [0; udp::HEADER];
    payload[..2].copy_from_slice(&from.1.to_be_bytes());
    payload[2..4].copy_from_slice(&to.1.to_be_bytes());
    packet(from.0, to.0, ip::UDP, &payload)
}

fn segment(from: (u64, u16), to: (u64, u16), flags: tcp::Flags) -> Vec<u8> {
    let header = tcp::Header {
        source_port: from.1,
        destination_port: to.1,
        flags,
        ..tcp::Header::default()
    };
    let mut payload = [0; tcp::HEADER];
    tcp::emit_header(&header, &mut payload);
    packet(from.0, to.0, ip::TCP, &payload)
}

fn message(from: u64, to: u64, message: &Message<'_>, room: usize) -> Vec<u8> {
    let mut payload = vec![0; icmp::HEADER + room];
    icmp::emit(address(from), address(to), message, &mut payload);
    packet(from, to, ip::ICMPV6, &payload)
}

/// Sends `packets` in turn and compares which of them pass.
#[track_caller]
fn check(traffic: Option<&str>, packets: &[(Vec<u8>, bool)]) {
    let orgs = orgs(traffic);
    let mut filter = Filter::new(1);
    for (number, (packet, passes)) in packets.iter().enumerate() {
        let admitted = filter.admits(start(), &orgs, packet);
        assert_eq!(admitted, *passes, "packet {number}");
    }
}

#[test]
fn an_answer_passes_only_after_its_question() {
    let question = datagram((A, 4096), (B, 53));
    let answer = datagram((B, 53), (A, 4096));
    let other = datagram((B, 53), (A, 4097));
    check(
        Some("53/udp"),
        &[
            (answer.clone(), false),
            (question, true),
            (answer, true),
            (other, false),
        ],
    );
}

#[test]
fn a_reply_passes_only_after_its_request_and_a_request_back_does_not() {
    let echo = Echo {
        identifier: 7,
        sequence: 1,
        payload: b"",
    };
    let request = |from, to| message(from, to, &Message::EchoRequest(echo), 0);
    let reply = message(B, A, &Message::EchoReply(echo), 0);
    check(
        Some("22"),
        &[
            (reply.clone(), false),
            (request(B, A), false),
            (request(A, B), true),
            (reply, true),
            (request(B, A), false),
        ],
    );
}

#[test]
fn a_segment_without_syn_passes_where_its_connection_may_be() {
    let ack = tcp::Flags::ACK;
    let syn = tcp::Flags::SYN;
    check(
        Some("22"),
        &[
            (segment((B, 22), (A, 4096), ack), true),
            (segment((B, 22), (A, 4097), syn), false),
            (segment((B, 23), (A, 4096), ack), false),
            (segment((A, 4096), (B, 22), ack), true),
            (segment((A, 4096), (B, 23), ack), false),
        ],
    );
}

#[test]
fn an_error_passes_when_its_conversation_may_be() {
    let error = |offending: &[u8]| {
        let cause = Cause::Unreachable(Unreachable::Port);
        let quote = offending;
        message(B, A, &Message::Error { cause, quote }, quote.len())
    };
    check(
        Some("53/udp"),
        &[
            (error(&datagram((A, 4096), (B, 54))), false),
            (error(&datagram((A, 4096), (B, 53))), true),
        ],
    );
}

#[test]
fn a_fragment_passes_between_nodes_that_may_speak_at_all() {
    let fragment = |from, to| {
        // RFC 8200, 4.5: next header, reserved, offset of eight octets, identification.
        packet(from, to, 44, &[ip::UDP, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0])
    };
    check(
        Some("53/udp"),
        &[(fragment(A, B), true), (fragment(B, A), true)],
    );
    check(None, &[(fragment(A, B), false)]);
    check(Some("53/udp"), &[(fragment(A, 3), false)]);
}

#[test]
fn what_cannot_be_read_or_is_from_nobody_does_not_pass() {
    let cut = packet(A, B, ip::UDP, &[0, 53]);
    let stranger = datagram((3, 4096), (B, 53));
    check(
        Some("all"),
        &[(cut, false), (stranger, false), (vec![0x60; 40], false)],
    );
}

#[test]
fn a_changed_rule_is_asked_again_once_for_each_conversation() {
    let question = datagram((A, 4096), (B, 53));
    let answer = datagram((B, 53), (A, 4096));
    let mut filter = Filter::new(1);
    let (with, without) = (orgs(Some("53/udp")), orgs(None));
    assert!(filter.admits(start(), &with, &question));
    filter.changed();
    assert!(filter.admits(start(), &with, &answer));
    filter.changed();
    assert!(!filter.admits(start(), &without, &answer));
    // It was forgotten: the rule's return does not bring the answer back.
    filter.changed();
    assert!(!filter.admits(start(), &with, &answer));
}

#[test]
fn the_own_side_is_answered_whatever_the_rules_are() {
    let orgs = orgs(None);
    let mut filter = Filter::new(1);
    let answer = datagram((B, 53), (A, 4096));
    assert!(!filter.admits(start(), &orgs, &answer));
    filter.sent(start(), &datagram((A, 4096), (B, 53)));
    assert!(filter.admits(start(), &orgs, &answer));
    filter.changed();
    assert!(filter.admits(start(), &orgs, &answer));
}
