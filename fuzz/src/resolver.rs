//! The resolver: one DNS message from a member of an organisation.

use std::sync::OnceLock;

use model::{map::NetworkMap, zone::Zone};
use node::resolver::{Transport, UDP_PAYLOAD_MAX, answer};

use crate::corpus::MAPS;

/// The answer has the question's id, is an answer, fits its transport, and an answer to it is
/// nothing: two resolvers cannot make each other speak for ever.
pub fn messages(data: &[u8]) {
    static ZONE: OnceLock<Zone> = OnceLock::new();
    let zone = ZONE.get_or_init(|| {
        let map: NetworkMap = serde_json::from_str(MAPS[0]).expect("our own map");
        let org = map.orgs.values().next().expect("it has an organisation");
        Zone::new(org, map.serial)
    });
    let asker = "fd01:203:405:1::1".parse().expect("an address");
    for transport in [Transport::Udp, Transport::Tcp] {
        let Some(message) = answer(zone, asker, data, transport, 7) else {
            continue;
        };
        assert_eq!(message[..2], data[..2], "the question's id");
        assert_eq!(message[2] & 0x80, 0x80, "an answer");
        assert!(transport == Transport::Tcp || message.len() <= usize::from(UDP_PAYLOAD_MAX));
        assert_eq!(answer(zone, asker, &message, transport, 7), None);
    }
}
