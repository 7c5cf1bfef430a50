//! Answers that the responder never gave do not disturb a pending handshake.

use super::*;
use crate::{cookie::MacKeys, key, message};

/// A waits for an answer; returns its initiation and B's true answer.
fn waiting() -> (Pair, Vec<u8>, Vec<u8>) {
    let mut pair = Pair::new();
    let bytes = packet(INNER[A], INNER[B], 60);
    assert!(matches!(
        seal(&mut pair.devices[A], pair.now, &bytes).0,
        Seal::Staged { .. }
    ));
    let initiation = pair.devices[A].poll_transmit().unwrap().datagram;
    assert!(pair.deliver(B, pair.addresses[A], initiation.clone()));
    let response = pair.devices[B].poll_transmit().unwrap().datagram;
    (pair, initiation, response)
}

/// Hands `forged` to A, which must refuse it, stay silent and then take the true answer.
#[track_caller]
fn check(forge: impl FnOnce(&[u8], &[u8]) -> Vec<u8>) {
    let (mut pair, initiation, response) = waiting();
    let forged = forge(&initiation, &response);
    assert!(!pair.deliver(A, pair.addresses[B], forged));
    assert!(pair.devices[A].poll_transmit().is_none());
    assert_eq!(pair.endpoint(A), Some(pair.addresses[B]));
    assert!(pair.deliver(A, pair.addresses[B], response));
    pair.drive();
    assert_eq!(pair.delivered[B].len(), 1, "the staged packet arrives");
    assert_eq!(pair.sent(A, 1), 0, "one initiation was enough");
    pair.assert_alive();
}

/// Gives a forged message the mac1 that anyone can compute.
fn signed(mut bytes: Vec<u8>) -> Vec<u8> {
    MacKeys::new(&secret(1).public_key()).sign(&mut bytes, None, base());
    bytes
}

#[test]
fn garbage_with_the_right_index_and_mac1_is_refused() {
    check(|_, response| {
        let mut forged = response.to_vec();
        forged[message::RESPONSE_EPHEMERAL..60].fill(0x77);
        signed(forged)
    });
}

#[test]
fn an_all_zero_ephemeral_is_refused() {
    check(|_, response| {
        let mut forged = response.to_vec();
        forged[message::RESPONSE_EPHEMERAL..message::RESPONSE_EMPTY].fill(0);
        signed(forged)
    });
}

#[test]
fn a_truncated_or_long_response_is_refused() {
    check(|_, response| response[..RESPONSE - 1].to_vec());
    check(|_, response| [response, &[0]].concat());
}

#[test]
fn one_wrong_bit_of_the_tag_is_refused() {
    check(|_, response| {
        let mut forged = response.to_vec();
        forged[message::RESPONSE_EMPTY] ^= 1;
        signed(forged)
    });
}

#[test]
fn a_wrong_mac1_is_refused() {
    check(|_, response| {
        let mut forged = response.to_vec();
        forged[60] ^= 1;
        forged
    });
}

#[test]
fn another_index_is_refused() {
    check(|_, response| {
        let mut forged = response.to_vec();
        forged[message::RESPONSE_RECEIVER] ^= 1;
        signed(forged)
    });
}

#[test]
fn a_garbage_cookie_is_refused() {
    check(|initiation, _| {
        let mut forged = vec![0x33; COOKIE_REPLY];
        forged[..4].copy_from_slice(&message::COOKIE_REPLY_TYPE);
        forged[4..8].copy_from_slice(&initiation[4..8]);
        forged
    });
}

#[test]
fn a_reflected_initiation_is_refused() {
    check(|initiation, _| initiation.to_vec());
}

#[test]
fn early_data_is_refused() {
    check(|initiation, _| {
        let mut forged = vec![0; 64];
        forged[..4].copy_from_slice(&message::TRANSPORT_TYPE);
        forged[4..8].copy_from_slice(&initiation[4..8]);
        forged
    });
}

#[test]
fn a_forged_answer_from_another_port_is_refused() {
    let (mut pair, _, response) = waiting();
    let mut forged = response.clone();
    forged[message::RESPONSE_EMPTY] ^= 1;
    assert!(!pair.deliver(A, "198.51.100.2:9".parse().unwrap(), signed(forged)));
    assert_eq!(pair.endpoint(A), Some(pair.addresses[B]));
    assert!(pair.deliver(A, pair.addresses[B], response));
    pair.drive();
    pair.assert_alive();
}

#[test]
fn a_duplicate_of_the_response_changes_nothing() {
    let (mut pair, _, response) = waiting();
    assert!(pair.deliver(A, pair.addresses[B], response.clone()));
    pair.drive();
    pair.clear();
    assert!(!pair.deliver(A, "203.0.113.9:9".parse().unwrap(), response));
    assert_eq!(pair.endpoint(A), Some(pair.addresses[B]));
    pair.drive();
    assert!(pair.wire.is_empty());
    pair.assert_alive();
}

#[test]
fn reserved_bytes_that_are_not_zero_are_refused() {
    let mut pair = Pair::connected();
    let data = pair.seal(A, 60);
    let (_, initiation, response) = waiting();
    let mut cookie = vec![0; COOKIE_REPLY];
    cookie[0] = 3;
    for message in [data, initiation, response, cookie] {
        for at in 1..4 {
            let mut forged = message.clone();
            forged[at] = 1;
            let received = pair.devices[B].handle_datagram(base(), pair.addresses[A], &mut forged);
            assert_eq!(received, Received::Discarded(Discard::MessageType));
        }
    }
    pair.assert_alive();
}

#[test]
fn an_initiation_from_a_low_order_ephemeral_gets_no_answer() {
    let (mut pair, initiation, _) = waiting();
    let mut forged = initiation;
    forged[message::INITIATION_EPHEMERAL..message::INITIATION_STATIC].fill(0);
    MacKeys::new(&secret(2).public_key()).sign(&mut forged, None, base());
    pair.now += SECOND;
    assert!(!pair.deliver(B, pair.addresses[A], forged));
    assert_eq!(pair.discards[B][&Discard::Handshake], 1);
    assert!(pair.devices[B].poll_transmit().is_none());
}

/// As the kernel's self-test has it: seven such keys, and each with the highest bit set.
#[test]
fn nothing_is_sent_to_a_peer_of_low_order_and_its_addresses_lead_nowhere_else() {
    let mut device = device(1);
    let other = device.add_peer(base(), secret(2).public_key()).unwrap();
    device.allow(other, prefix("fd00::/16"));
    device.set_endpoint(other, Some("192.0.2.1:1".parse().unwrap()));
    let with_high_bit = key::LOW_ORDER.map(|mut point| {
        point[KEY - 1] |= 0x80;
        point
    });
    for point in key::LOW_ORDER.into_iter().chain(with_high_bit) {
        let peer = device.add_peer_of_any_key(base(), PublicKey(point));
        let peer = peer.expect("the kernel takes it too");
        device.allow(peer, prefix("fd00::b/128"));
        device.set_endpoint(peer, Some("192.0.2.1:2".parse().unwrap()));
        let (discarded, _) = seal(&mut device, base(), &packet("fd00::a", "fd00::b", 60));
        assert_eq!(discarded, Seal::Discarded(Discard::Handshake));
        device.initiate(base(), peer);
        device.set_persistent_keepalive(base(), peer, std::num::NonZeroU16::new(1));
        let mut now = base();
        for _ in 0..10 {
            now += SECOND;
            device.handle_timeout(now);
        }
        assert!(device.poll_transmit().is_none(), "{point:02x?}");
        assert_eq!(device.status(peer).unwrap().staged_packets, 0);
    }
}

#[test]
fn low_order_and_own_keys_are_no_peers_and_nothing_is_sent_to_them() {
    let mut a = device(1);
    for point in key::LOW_ORDER {
        let refused = a.add_peer(base(), PublicKey(point));
        assert_eq!(refused, Err(AddPeerError::LowOrder));
    }
    let own = secret(1).public_key();
    assert_eq!(a.add_peer(base(), own), Err(AddPeerError::OwnKey));
    // The key may come after the peer.
    let mut keyless = Device::new(base(), wall(), Box::new(Seeded::new(1)));
    let peer = keyless.add_peer(base(), own).unwrap();
    keyless.set_private_key(base(), Some(secret(1)));
    assert!(keyless.status(peer).is_none());
    assert_eq!(
        a.add_peer(base(), secret(2).public_key()).map(|_| ()),
        Ok(())
    );
    assert!(matches!(
        a.add_peer(base(), secret(2).public_key()),
        Err(AddPeerError::Exists(_))
    ));
}
