//! Sessions from their handshake to their end, and keys that change while they run.

use super::*;

#[test]
fn an_initiator_rekeys_when_it_sends_after_120_seconds() {
    let mut pair = Pair::connected();
    pair.now = base() + REKEY_AFTER_TIME - Duration::from_millis(1);
    pair.send(A, 60);
    assert_eq!(pair.sent(A, 1), 0);
    pair.now = base() + REKEY_AFTER_TIME;
    pair.send(B, 60);
    assert_eq!(pair.sent(B, 1), 0, "the responder does not");
    pair.send(A, 60);
    assert_eq!(pair.sent(A, 1), 1);
    pair.assert_alive();
}

#[test]
fn a_session_whose_successor_does_not_come_is_overdue_at_both_ends_until_it_comes() {
    let mut pair = Pair::connected();
    let overdue = |pair: &Pair| [A, B].map(|side| pair.devices[side].is_overdue(pair.now));
    for (second, expected) in [(119, false), (126, true)] {
        pair.now = base() + SECOND * second;
        // Data passes, and nothing of a handshake.
        for (from, to) in [(A, B), (B, A)] {
            let datagram = pair.seal(from, 60);
            assert!(pair.deliver(to, pair.addresses[from], datagram));
        }
        assert_eq!(overdue(&pair), [expected; 2], "{second}");
    }
    pair.drive();
    pair.now += SECOND;
    pair.send(A, 60);
    pair.send(B, 60);
    assert_eq!(overdue(&pair), [false; 2]);
}

#[test]
fn an_initiator_that_only_receives_rekeys_once_before_the_session_ends() {
    let mut pair = Pair::connected();
    pair.deaf[A] = true;
    pair.now = base() + SECOND * 164;
    pair.send(B, 60);
    assert_eq!(pair.sent(A, 1), 0);
    for second in 165..170 {
        pair.now = base() + SECOND * second;
        pair.send(B, 60);
    }
    assert_eq!(pair.sent(A, 1), 1);
}

#[test]
fn a_handshake_that_is_asked_for_too_soon_begins_when_it_may() {
    let mut pair = Pair::connected();
    let peer = pair.peers[A];
    for second in 1..4 {
        pair.now = base() + SECOND * second;
        pair.devices[A].initiate(pair.now, peer);
        pair.drive();
    }
    assert_eq!(pair.sent(A, 1), 0);
    pair.pass(REKEY_TIMEOUT);
    assert_eq!(pair.sent(A, 1), 1);
    pair.pass(SECOND * 60);
    assert_eq!(pair.sent(A, 1), 1);
}

#[test]
fn a_handshake_that_is_asked_for_too_soon_is_none_when_the_other_side_begins_it() {
    let mut pair = Pair::connected();
    pair.now = base() + SECOND;
    pair.devices[A].initiate(pair.now, pair.peers[A]);
    // B sent the last response, and has the same bound.
    pair.now = base() + REKEY_TIMEOUT;
    pair.devices[B].initiate(pair.now, pair.peers[B]);
    pair.drive();
    pair.pass(SECOND * 60);
    assert_eq!((pair.sent(A, 1), pair.sent(B, 1)), (0, 1));
}

#[test]
fn a_session_neither_seals_nor_opens_after_180_seconds() {
    let mut pair = Pair::connected();
    let late = pair.seal(A, 60);
    let early = pair.seal(A, 60);
    pair.now = base() + REJECT_AFTER_TIME - Duration::from_millis(1);
    assert!(pair.deliver(B, pair.addresses[A], early));
    pair.now = base() + REJECT_AFTER_TIME;
    assert!(!pair.deliver(B, pair.addresses[A], late));
    assert_eq!(pair.discards[B][&Discard::SessionExpired], 1);
    let bytes = packet(INNER[B], INNER[A], 60);
    let peer = pair.peers[B];
    assert_eq!(
        seal(&mut pair.devices[B], pair.now, &bytes).0,
        Seal::Staged { peer }
    );
    assert!(pair.devices[B].sealing(pair.now, peer).is_none());
}

#[test]
fn keys_are_zeroed_540_seconds_after_the_last_session_was_made() {
    let mut pair = Pair::connected();
    pair.pass(REJECT_AFTER_TIME * 3 - Duration::from_millis(1));
    let zeroed = |pair: &Pair, side: usize| {
        let peer = pair.peers[side];
        pair.events[side].contains(&Event::SessionsZeroed { peer })
    };
    assert!(!zeroed(&pair, A) && !zeroed(&pair, B));
    pair.pass(SECOND);
    assert!(zeroed(&pair, A) && zeroed(&pair, B));
    assert!(
        pair.devices[A].poll_timeout().is_none(),
        "an idle peer needs no timer"
    );
    pair.assert_alive();
}

#[test]
fn sessions_hear_both_ways_at_every_second_after_the_handshake() {
    let mut pair = Pair::connected();
    for _ in 0..400 {
        pair.pass(SECOND);
        pair.assert_alive();
    }
    assert!(pair.discards.iter().all(BTreeMap::is_empty));
}

#[test]
fn a_packet_without_an_answer_for_fifteen_seconds_begins_a_handshake() {
    let mut pair = Pair::connected();
    pair.deaf[B] = true;
    pair.now = base() + SECOND;
    pair.send(A, 60);
    pair.pass(Duration::from_millis(14_999));
    assert_eq!(pair.sent(A, 1), 0);
    pair.pass(Duration::from_millis(335));
    assert_eq!(pair.sent(A, 1), 1);
}

#[test]
fn an_initiation_is_repeated_with_jitter_and_given_up_after_ninety_seconds() {
    let mut pair = Pair::new();
    pair.deaf[A] = true;
    let peer = pair.peers[A];
    for _ in 0..3 {
        pair.send(A, 60);
    }
    pair.pass(SECOND * 300);
    let at: Vec<_> = pair.wire.iter().map(|sent| sent.at).collect();
    assert!((17..=19).contains(&at.len()), "{}", at.len());
    let gaps: Vec<_> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let range = REKEY_TIMEOUT..=REKEY_TIMEOUT + REKEY_JITTER_MAX;
    assert!(gaps.iter().all(|gap| range.contains(gap)), "{gaps:?}");
    assert!(gaps.windows(2).any(|pair| pair[0] != pair[1]), "no jitter");
    let abandoned = Event::Discarded {
        discard: Discard::StagedAbandoned,
        count: 3,
    };
    assert!(pair.events[A].contains(&abandoned));
    assert!(pair.events[A].contains(&Event::HandshakeAbandoned { peer }));
    let ephemerals: std::collections::BTreeSet<_> = pair
        .wire
        .iter()
        .map(|sent| sent.bytes[4..40].to_vec())
        .collect();
    assert_eq!(
        ephemerals.len(),
        at.len(),
        "each with its own index and ephemeral"
    );
    pair.deaf[A] = false;
    pair.assert_alive();
}

#[test]
fn packets_that_come_during_a_handshake_wait_in_order_and_the_oldest_gives_way() {
    let mut pair = Pair::new();
    let count = STAGED_PACKETS_MAX + 3;
    for n in 0..count {
        let bytes = packet(INNER[A], INNER[B], 60 + n);
        assert!(matches!(
            seal(&mut pair.devices[A], pair.now, &bytes).0,
            Seal::Staged { .. }
        ));
    }
    pair.drive();
    let lengths: Vec<_> = pair.delivered[B].iter().map(Vec::len).collect();
    assert_eq!(lengths, (63..60 + count).collect::<Vec<_>>());
    let overflow = Event::Discarded {
        discard: Discard::StagedOverflow,
        count: 3,
    };
    assert!(pair.events[A].contains(&overflow));
}

#[test]
fn a_packet_staged_right_after_our_own_response_is_not_forgotten() {
    // B answered, but A's confirmation is lost and A dies: B's packet must not wait for ever.
    let mut pair = Pair::new();
    let (a, b) = (pair.peers[A], pair.peers[B]);
    pair.devices[B].set_endpoint(b, Some(pair.addresses[A]));
    pair.devices[A].initiate(pair.now, a);
    let initiation = pair.devices[A].poll_transmit().unwrap().datagram;
    assert!(pair.deliver(B, pair.addresses[A], initiation));
    assert!(pair.devices[B].poll_transmit().is_some());
    let bytes = packet(INNER[B], INNER[A], 60);
    assert_eq!(
        seal(&mut pair.devices[B], pair.now, &bytes).0,
        Seal::Staged { peer: b }
    );
    pair.deaf[A] = true;
    pair.pass(SECOND * 3);
    pair.deaf[A] = false;
    pair.pass(SECOND * 8);
    assert_eq!(pair.delivered[A].len(), 1);
}

#[test]
fn a_preshared_key_counts_from_the_next_handshake() {
    let mut pair = Pair::connected();
    let key = || Some(PresharedKey::new([7; KEY]));
    let peers = pair.peers;
    pair.devices[A].set_preshared_key(peers[A], key());
    pair.assert_alive();
    pair.pass(SECOND * 181);
    pair.clear();
    pair.send(A, 60);
    assert!(pair.delivered[B].is_empty(), "only one side has it");
    assert_eq!(pair.discards[A][&Discard::Handshake], 1);
    pair.devices[B].set_preshared_key(peers[B], key());
    pair.pass(SECOND * 6);
    assert_eq!(pair.delivered[B].len(), 1);
    pair.assert_alive();
    assert_eq!(
        pair.devices[A].status(peers[A]).unwrap().preshared_key,
        key().as_ref()
    );
    pair.devices[A].set_preshared_key(peers[A], Some(PresharedKey::new([0; KEY])));
    assert!(
        pair.devices[A]
            .status(peers[A])
            .unwrap()
            .preshared_key
            .is_none()
    );
}

#[test]
fn another_private_key_ends_every_session_and_the_next_packet_uses_it() {
    let mut pair = Pair::connected();
    let old = pair.seal(B, 60);
    pair.devices[A].set_private_key(pair.now, Some(secret(1)));
    pair.assert_alive();
    pair.devices[A].set_private_key(pair.now, Some(secret(5)));
    assert_eq!(pair.devices[A].public_key(), Some(secret(5).public_key()));
    assert!(!pair.deliver(A, pair.addresses[B], old));
    pair.devices[B].remove_peer(pair.peers[B]);
    let peer = pair.devices[B]
        .add_peer(pair.now, secret(5).public_key())
        .unwrap();
    pair.peers[B] = peer;
    pair.devices[B].allow(peer, Prefix::host(INNER[A].parse().unwrap()));
    pair.clear();
    pair.assert_alive();
    assert_eq!(
        pair.sent(A, 1),
        1,
        "at once, although the last handshake was just now"
    );
    pair.devices[A].set_private_key(pair.now, None);
    let bytes = packet(INNER[A], INNER[B], 60);
    let refused = seal(&mut pair.devices[A], pair.now, &bytes).0;
    assert_eq!(refused, Seal::Discarded(Discard::NoPrivateKey));
}

#[test]
fn another_endpoint_or_port_is_used_at_once() {
    let mut pair = Pair::connected();
    let peers = pair.peers;
    // B's socket is bound to another port; A is told.
    pair.addresses[B] = "198.51.100.2:7".parse().unwrap();
    pair.devices[A].set_endpoint(peers[A], Some(pair.addresses[B]));
    pair.assert_alive();
    // A's address changes; nobody is told.
    pair.addresses[A] = "[2001:db8::1]:9".parse().unwrap();
    pair.assert_alive();
    assert_eq!(pair.endpoint(B), Some(pair.addresses[A]));
    assert_eq!(pair.sent(A, 1) + pair.sent(B, 1), 0);
}

#[test]
fn a_removed_peer_is_deaf_and_dumb_at_once() {
    let mut pair = Pair::connected();
    let datagram = pair.seal(A, 60);
    let sealing = pair.devices[B]
        .sealing(pair.now, pair.peers[B])
        .expect("a session");
    let index = u32::from_le_bytes(datagram[4..8].try_into().unwrap());
    let (_, opening) = pair.devices[B].opening(index).expect("a session");
    assert!(pair.devices[B].remove_peer(pair.peers[B]));
    assert!(!pair.devices[B].remove_peer(pair.peers[B]));
    assert!(!pair.deliver(B, pair.addresses[A], datagram.clone()));
    assert!(
        sealing.reserve(pair.now, 1).is_none(),
        "halves in other threads refuse too"
    );
    let mut sealed = datagram[HEADER..].to_vec();
    let refused = opening.open(pair.now, 2, &mut sealed).err();
    assert_eq!(refused, Some(Discard::SessionExpired));
    let bytes = packet(INNER[B], INNER[A], 60);
    assert_eq!(
        seal(&mut pair.devices[B], pair.now, &bytes).0,
        Seal::Discarded(Discard::NoRoute)
    );
    assert!(pair.devices[B].poll_timeout().is_none());
    let refused = pair.devices[B].seal_to(pair.now, pair.peers[B], &mut [0; 64], 0);
    assert_eq!(refused, Seal::Discarded(Discard::UnknownPeer));
}

#[test]
fn halves_that_other_threads_use_do_the_same_as_the_device() {
    let mut pair = Pair::connected();
    let (now, peers) = (pair.now, pair.peers);
    let sealing = pair.devices[A].sealing(now, peers[A]).expect("a session");
    let bytes = packet(INNER[A], INNER[B], 60);
    let mut slot = vec![0; padded(60) + OVERHEAD];
    slot[HEADER..HEADER + 60].copy_from_slice(&bytes);
    let mut nonces = sealing.reserve(now, 1).expect("usable");
    let length = nonces.seal(&mut slot, 60, MTU_DEFAULT).expect("one nonce");
    pair.devices[A].note_sealed(now, peers[A], 1, length, true);
    let index = u32::from_le_bytes(slot[4..8].try_into().unwrap());
    let counter = u64::from_le_bytes(slot[8..16].try_into().unwrap());
    let (peer, opening) = pair.devices[B].opening(index).expect("a session");
    assert_eq!((peer, opening.index()), (peers[B], index));
    let opened = opening
        .open(now, counter, &mut slot[HEADER..length])
        .expect("fresh");
    assert_eq!(opened.text[..60], bytes);
    let from = "203.0.113.1:1".parse().unwrap();
    let heard = Heard::one(index, length, opened.newest);
    pair.devices[B].note_opened(now, from, &heard);
    assert_eq!(pair.endpoint(B), Some(from));
    pair.addresses[A] = from;
    pair.pass(SECOND * 11);
    assert_eq!(pair.sent(B, 4), 1, "the keepalive that data earns");
}
