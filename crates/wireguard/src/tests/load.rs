//! Handshakes under load, and the flood that makes it.

use super::*;

#[test]
fn a_thousand_spaced_handshakes_get_no_cookie() {
    let mut pair = Pair::new();
    let peer = pair.peers[A];
    for _ in 0..1_000 {
        pair.devices[A].initiate(pair.now, peer);
        pair.drive();
        pair.now += REKEY_TIMEOUT;
    }
    assert_eq!(
        (pair.sent(A, 1), pair.sent(B, 2), pair.sent(B, 3)),
        (1_000, 1_000, 0)
    );
}

#[test]
fn under_load_a_handshake_completes_through_a_cookie() {
    for (a, b) in [
        ("192.0.2.1:1", "192.0.2.2:2"),
        ("[2001:db8::1]:1", "[2001:db8::2]:2"),
    ] {
        let mut pair = Pair::with_addresses(a, b);
        pair.devices[B].set_load(Some(true));
        pair.send(A, 60);
        assert_eq!((pair.sent(B, 3), pair.delivered[B].len()), (1, 0));
        pair.pass(SECOND * 6);
        assert_eq!((pair.sent(A, 1), pair.delivered[B].len()), (2, 1));
        pair.assert_alive();
    }
}

#[test]
fn when_both_are_under_load_both_cookies_are_used() {
    let mut pair = Pair::new();
    pair.devices[A].set_load(Some(true));
    pair.devices[B].set_load(Some(true));
    pair.send(A, 60);
    pair.pass(SECOND * 18);
    assert_eq!((pair.sent(A, 3), pair.sent(B, 3)), (1, 1));
    assert_eq!(pair.delivered[B].len(), 1);
    pair.assert_alive();
}

#[test]
fn a_cookie_of_one_port_does_not_serve_another() {
    let mut pair = Pair::new();
    pair.devices[B].set_load(Some(true));
    pair.send(A, 60);
    pair.addresses[A] = "192.0.2.1:1112".parse().unwrap();
    pair.pass(SECOND * 6);
    assert_eq!((pair.sent(B, 3), pair.delivered[B].len()), (2, 0));
    pair.pass(SECOND * 6);
    assert_eq!(pair.delivered[B].len(), 1);
}

#[test]
fn while_idle_a_garbage_mac2_is_still_answered() {
    let mut pair = Pair::new();
    let peer = pair.peers[A];
    pair.devices[A].initiate(pair.now, peer);
    let mut initiation = pair.devices[A].poll_transmit().unwrap().datagram;
    initiation[132..].fill(0xa5);
    assert!(pair.deliver(B, pair.addresses[A], initiation));
    assert_eq!(
        pair.devices[B].poll_transmit().unwrap().datagram.len(),
        RESPONSE
    );
}

#[test]
fn a_second_initiation_within_twenty_milliseconds_is_silent() {
    let mut pair = Pair::new();
    let peer = pair.peers[A];
    let mut initiations = Vec::new();
    for _ in 0..3 {
        pair.devices[A].initiate(pair.now, peer);
        initiations.push(pair.devices[A].poll_transmit().unwrap().datagram);
        pair.now += SECOND * 6;
    }
    let from = pair.addresses[A];
    let mut initiations = initiations.into_iter();
    assert!(pair.deliver(B, from, initiations.next().unwrap()));
    pair.now += Duration::from_millis(19);
    let second = initiations.next().unwrap();
    assert!(!pair.deliver(B, from, second.clone()));
    assert_eq!(pair.discards[B][&Discard::InitiationFlood], 1);
    pair.now += Duration::from_millis(1);
    assert!(pair.deliver(B, from, second));
}

#[test]
fn a_flood_turns_load_on_costs_no_agreement_and_leaves_sessions_alone() {
    let mut pair = Pair::connected();
    let mut forged = vec![0; INITIATION];
    forged[0] = 1;
    let keys = cookie::MacKeys::new(&secret(2).public_key());
    let mut cookies = 0;
    for n in 0..2_000u32 {
        forged[8..12].copy_from_slice(&n.to_le_bytes());
        keys.sign(&mut forged, None, pair.now);
        let source = SocketAddr::from(([203, 0, 113, 5], 1_000));
        pair.deliver(B, source, forged.clone());
        while let Some(sent) = pair.devices[B].poll_transmit() {
            assert!(sent.datagram.len() <= INITIATION, "no amplification");
            cookies += 1;
        }
    }
    // One of the burst of 512 went into the handshake of the pair itself.
    assert_eq!(pair.discards[B][&Discard::Handshake], 511);
    assert_eq!(cookies, 2_000 - 511);
    pair.assert_alive();
    // After a cookie a source has five at once: the rest is refused.
    let mut load = Pair::new();
    load.devices[B].set_load(Some(true));
    let peer = load.peers[A];
    for _ in 0..2 {
        load.devices[A].initiate(load.now, peer);
        load.drive();
        load.now += SECOND * 6;
    }
    load.clear();
    load.devices[A].initiate(load.now, peer);
    let initiation = load.devices[A].poll_transmit().unwrap().datagram;
    for _ in 0..8 {
        load.deliver(B, load.addresses[A], initiation.clone());
    }
    assert_eq!(load.discards[B][&Discard::RateLimited], 3);
}
