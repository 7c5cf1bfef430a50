//! Stories of DNS messages.

use std::collections::BTreeMap;

use hickory_proto::op::MessageType;
use model::{
    address::{Kind as AddressKind, OrgPrefix},
    id::NodeId,
    key::PublicKey,
    map,
};
use proptest::{collection::vec, prelude::*};

use super::*;

const ID: u16 = 0xbeef;

fn asker() -> Ipv6Addr {
    OrgPrefix::new([1; 5]).address(AddressKind::Node, 1)
}

/// The organisation `acme` with `nodes` nodes `n0`, `n1`, ..; all offer the service `web`.
fn zone(nodes: u8) -> Zone {
    let prefix = OrgPrefix::new([1; 5]);
    let label = |text: &str| text.parse().expect("a well-formed label");
    let node = |byte: u8| map::Node {
        name: label(&format!("n{byte}")),
        public_key: PublicKey([byte; 32]),
        address: prefix.address(AddressKind::Node, u64::from(byte) + 1),
        owner: None,
        may_reach: Vec::new(),
        reached_by: Vec::new(),
    };
    let offer = |byte: u8| map::Service {
        node: NodeId(i64::from(byte)),
        port: 80,
        target: None,
    };
    let org = map::Org {
        name: label("acme"),
        prefix,
        gateway: None,
        nodes: (0..nodes)
            .map(|byte| (NodeId(i64::from(byte)), node(byte)))
            .collect(),
        services: BTreeMap::from([(label("web"), (0..nodes).map(offer).collect())]),
        sites: BTreeMap::new(),
        rules: None,
        ssh: None,
    };
    Zone::new(&org, (1 << 32) + 9)
}

fn question(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(ID, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = DnsName::from_ascii(name).expect("a name");
    message.add_query(Query::query(name, record_type));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_version(0);
    message.set_edns(edns);
    message
}

fn send(nodes: u8, message: &Message, transport: Transport) -> (usize, Message) {
    let bytes = message.to_vec().expect("a message");
    let answer = answer(&zone(nodes), asker(), &bytes, transport, 1).expect("an answer");
    let parsed = Message::from_vec(&answer).expect("a well-formed answer");
    assert_eq!(parsed.metadata.id, ID);
    assert_eq!(parsed.metadata.message_type, MessageType::Response);
    (answer.len(), parsed)
}

fn ask(name: &str, record_type: RecordType) -> Message {
    send(2, &question(name, record_type), Transport::Udp).1
}

#[track_caller]
fn check(name: &str, record_type: RecordType, code: ResponseCode, answers: usize) {
    let answer = ask(name, record_type);
    assert_eq!(answer.metadata.response_code, code, "{name}");
    assert_eq!(answer.answers.len(), answers, "{name}");
    let ours = code != ResponseCode::Refused;
    assert_eq!(answer.metadata.authoritative, ours, "{name}");
    assert!(!answer.metadata.recursion_available, "{name}");
    assert!(answer.metadata.recursion_desired, "{name}");
    // A negative answer says by the SOA record how long it holds (RFC 2308).
    let negative = ours && answers == 0;
    let soa = answer
        .authorities
        .iter()
        .any(|r| r.record_type() == RecordType::SOA);
    assert_eq!(soa, negative, "{name}");
}

#[test]
fn names_are_answered_nodata_is_not_nxdomain_and_foreign_names_are_refused() {
    check("n1.internal.", RecordType::AAAA, ResponseCode::NoError, 1);
    check(
        "n1.acme.internal.",
        RecordType::AAAA,
        ResponseCode::NoError,
        1,
    );
    check(
        "web.svc.internal.",
        RecordType::AAAA,
        ResponseCode::NoError,
        2,
    );
    check(
        "_whoami.internal.",
        RecordType::TXT,
        ResponseCode::NoError,
        1,
    );
    check("internal.", RecordType::SOA, ResponseCode::NoError, 1);
    check("n1.internal.", RecordType::A, ResponseCode::NoError, 0);
    check("n1.internal.", RecordType::ANY, ResponseCode::NoError, 0);
    check("svc.internal.", RecordType::AAAA, ResponseCode::NoError, 0);
    check("n9.internal.", RecordType::AAAA, ResponseCode::NXDomain, 0);
    check(
        "n1.umbrella.internal.",
        RecordType::AAAA,
        ResponseCode::NXDomain,
        0,
    );
    check("example.com.", RecordType::AAAA, ResponseCode::Refused, 0);
    check(".", RecordType::NS, ResponseCode::Refused, 0);
}

#[test]
fn the_case_of_the_question_comes_back() {
    let answer = ask("N1.iNTernaL.", RecordType::AAAA);
    let [query] = &answer.queries[..] else {
        panic!("one question");
    };
    assert_eq!(query.name().to_ascii(), "N1.iNTernaL.");
    let [record] = &answer.answers[..] else {
        panic!("one answer");
    };
    assert_eq!(record.name.to_ascii(), "N1.iNTernaL.");
    assert_eq!(record.ttl, TTL);
}

#[test]
fn what_does_not_fit_a_datagram_is_cut_and_complete_over_tcp() {
    // One record takes 28 bytes: 100 of them exceed 1,232.
    let plain = question("web.svc.internal.", RecordType::AAAA);
    for (message, size_max) in [
        (plain.clone(), 512),
        (with_edns(plain.clone(), 100), 512),
        (with_edns(plain.clone(), 1232), 1232),
        (with_edns(plain.clone(), 4096), 1232),
    ] {
        let (length, answer) = send(100, &message, Transport::Udp);
        assert!(answer.metadata.truncation && answer.answers.is_empty());
        assert!(length <= size_max);
        assert_eq!(answer.edns.is_some(), message.edns.is_some());
        assert_eq!(answer.queries.len(), 1);
    }
    let (_, answer) = send(30, &with_edns(plain.clone(), 1232), Transport::Udp);
    assert_eq!(
        (answer.metadata.truncation, answer.answers.len()),
        (false, 30)
    );
    let (_, answer) = send(255, &plain, Transport::Tcp);
    assert_eq!(
        (answer.metadata.truncation, answer.answers.len()),
        (false, 255)
    );
}

#[test]
fn an_answer_gets_no_answer() {
    let mut message = question("n1.internal.", RecordType::AAAA);
    message.metadata.message_type = MessageType::Response;
    let bytes = message.to_vec().expect("a message");
    for length in 0..=bytes.len() {
        let answer = answer(&zone(1), asker(), &bytes[..length], Transport::Udp, 1);
        assert_eq!(answer, None);
    }
}

#[test]
fn other_operations_classes_and_versions_are_refused_by_their_code() {
    let mut update = question("n1.internal.", RecordType::AAAA);
    update.metadata.op_code = OpCode::Update;
    let code = |message: &Message| send(1, message, Transport::Udp).1.metadata.response_code;
    assert_eq!(code(&update), ResponseCode::NotImp);

    let mut chaos = question("n1.internal.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), ResponseCode::Refused);

    let mut two = question("n1.internal.", RecordType::AAAA);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&two), ResponseCode::FormErr);

    let mut future = with_edns(question("n1.internal.", RecordType::AAAA), 1232);
    future.edns.as_mut().expect("just set").set_version(1);
    // The library has two names for code 16, and reads it as the other one.
    assert_eq!(u16::from(code(&future)), u16::from(ResponseCode::BADVERS));

    let bytes = question("n1.internal.", RecordType::AAAA)
        .to_vec()
        .expect("a message");
    let cut = answer(&zone(1), asker(), &bytes[..20], Transport::Udp, 1).expect("an answer");
    let cut = Message::from_vec(&cut).expect("a well-formed answer");
    assert_eq!(cut.metadata.response_code, ResponseCode::FormErr);
}

proptest! {
    #[test]
    fn any_bytes_get_one_bounded_answer_or_none(bytes in vec(any::<u8>(), 0..600)) {
        let answer = answer(&zone(3), asker(), &bytes, Transport::Udp, 1);
        prop_assert!(answer.is_none_or(|answer| answer.len() <= usize::from(UDP_PAYLOAD_MAX)));
    }

    #[test]
    fn a_mutated_question_gets_one_bounded_answer_or_none(
        at in 0_usize..33,
        byte in any::<u8>(),
    ) {
        let message = question("web.svc.internal.", RecordType::AAAA);
        let mut bytes = message.to_vec().expect("a message");
        let at = at % bytes.len();
        bytes[at] = byte;
        let answer = answer(&zone(3), asker(), &bytes, Transport::Udp, 1);
        prop_assert!(answer.is_none_or(|answer| answer.len() <= usize::from(UDP_PAYLOAD_MAX)));
    }
}
