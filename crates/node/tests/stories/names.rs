//! Stories of names, asked of the gateway over the tunnel and of the node itself.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name as DnsName, RData, RecordType},
};
use model::zone::{Answer, Kind, Name, Question};
use netstack::Received;

use crate::world::{GATEWAY, Installation, World, address, prefix};

fn question(name: &str, record_type: RecordType) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    let name = DnsName::from_ascii(name).expect("a name");
    message.add_query(Query::query(name, record_type));
    message.to_vec().expect("a message")
}

fn resolver(org: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(prefix(org).resolver()), 53)
}

/// Asks over UDP; `None` when nothing comes within a second.
fn ask(world: &mut World, from: u8, resolver: SocketAddr, name: &str) -> Option<Message> {
    let unspecified = SocketAddr::new(IpAddr::from([0; 16]), 0);
    let id = world.stack(from).bind(unspecified).expect("a free port");
    let bytes = question(name, RecordType::AAAA);
    world
        .stack(from)
        .send_to(id, resolver, &bytes)
        .expect("room in the queue");
    world.run(Duration::from_secs(1));
    let mut answer = [0; 1500];
    let received = world.stack(from).recv_from(id, &mut answer);
    world.stack(from).release_udp(id);
    let (length, source, _) = received?;
    assert_eq!(
        source, resolver,
        "the answer comes from where the question went"
    );
    Some(Message::from_vec(&answer[..length]).expect("a well-formed answer"))
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let address = |record: &hickory_proto::rr::Record| {
        if let RData::AAAA(address) = &record.data {
            Some(IpAddr::V6(address.0))
        } else {
            None
        }
    };
    message.answers.iter().filter_map(address).collect()
}

#[test]
fn the_same_name_means_another_node_in_each_organisation() {
    let mut world = World::standing(&Installation::new(), &[11, 21]);
    for (from, db) in [(11, 12), (21, 22)] {
        let answer = ask(&mut world, from, resolver(from / 10), "db.internal.");
        let answer = answer.expect("an answer");
        assert_eq!(addresses(&answer), [IpAddr::V6(address(db))]);
    }
    let answer = ask(&mut world, 11, resolver(1), "db.umbrella.internal.");
    let code = answer.expect("an answer").metadata.response_code;
    assert_eq!(code, ResponseCode::NXDomain);
    assert!(ask(&mut world, 11, resolver(2), "db.internal.").is_none());
}

#[test]
fn a_name_follows_the_map_at_once() {
    let mut installation = Installation::new();
    let mut world = World::standing(&installation, &[11]);
    installation.remove(12);
    world.publish(&installation);
    let answer = ask(&mut world, 11, resolver(1), "db.internal.").expect("an answer");
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    let (id, node) = crate::world::member(14, "db");
    installation.org(1).nodes.insert(id, node);
    world.publish(&installation);
    let answer = ask(&mut world, 11, resolver(1), "db.internal.").expect("an answer");
    assert_eq!(addresses(&answer), [IpAddr::V6(address(14))]);
}

#[test]
fn a_node_answers_its_own_names_without_the_gateway() {
    let installation = Installation::new();
    let mut world = World::new();
    world.add(11, crate::world::netstack(11));
    world.publish(&installation);
    let ask = |world: &mut World, name: &str| {
        let name = Name::parse_relative(name);
        world.node(11).answer(
            &Question {
                name,
                kind: Kind::Aaaa,
            },
            1,
        )
    };
    assert_eq!(
        ask(&mut world, "db"),
        Some(Answer::Addresses(vec![address(12)]))
    );
    assert_eq!(ask(&mut world, "db.umbrella"), Some(Answer::NoSuchName));
    assert_eq!(world.node(11).dns_servers(), [resolver(1).ip()]);
}

#[test]
fn questions_over_tcp_are_answered_in_order_and_a_silent_connection_ends() {
    let mut world = World::standing(&Installation::new(), &[11]);
    let now = world.now;
    let id = world
        .stack(11)
        .connect(now, resolver(1))
        .expect("a free port");
    world.run(Duration::from_secs(1));
    let mut stream = Vec::new();
    for name in ["db.internal.", "nobody.internal.", "web.internal."] {
        let message = question(name, RecordType::AAAA);
        let length = u16::try_from(message.len()).expect("a short message");
        stream.extend(length.to_be_bytes());
        stream.extend(message);
    }
    // Cut in the middle of a length and of a message.
    for part in [&stream[..1], &stream[1..20], &stream[20..]] {
        let now = world.now;
        assert_eq!(world.stack(11).send(now, id, part), Ok(part.len()));
        world.run(Duration::from_millis(200));
    }
    let mut bytes = vec![0; 4096];
    let now = world.now;
    let Ok(Received::Bytes(length)) = world.stack(11).recv(now, id, &mut bytes) else {
        panic!("answers");
    };
    let mut rest = &bytes[..length];
    let mut counts = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        let message = Message::from_vec(&after[..length]).expect("a well-formed answer");
        counts.push(message.answers.len());
        rest = &after[length..];
    }
    assert_eq!(counts, [1, 0, 1]);

    world.run(Duration::from_secs(11));
    let now = world.now;
    assert_eq!(world.stack(11).recv(now, id, &mut bytes), Ok(Received::End));
    let leftover = world.take(GATEWAY, |event| {
        if let node::Event::Stack(event) = event {
            Some(*event)
        } else {
            None
        }
    });
    assert_eq!(leftover, [], "the resolver's sockets are its own business");
}
