//! Counters at their limits.

use super::*;

fn force_counter(pair: &mut Pair, side: usize, counter: u64) {
    let place = pair.peers[side].index;
    let session = pair.devices[side].table_for_test().peer(place).current();
    session.expect("connected").force_counter(counter);
}

#[test]
fn a_new_handshake_begins_after_2_to_the_60_messages() {
    let mut pair = Pair::connected();
    // The responder's counter counts as well as the initiator's.
    force_counter(&mut pair, B, REKEY_AFTER_MESSAGES - 10);
    for _ in 0..10 {
        pair.send(B, 60);
    }
    assert_eq!(pair.sent(B, 1), 0);
    pair.now += REKEY_TIMEOUT;
    pair.send(B, 60);
    assert_eq!(pair.sent(B, 1), 1);
    pair.assert_alive();
    assert_eq!(pair.delivered[A].len(), 12);
}

#[test]
fn a_used_up_session_is_silent_until_it_is_replaced() {
    let mut pair = Pair::connected();
    force_counter(&mut pair, A, REJECT_AFTER_MESSAGES - 3);
    pair.deaf[B] = true;
    pair.now += REKEY_TIMEOUT;
    for _ in 0..10 {
        pair.send(A, 60);
    }
    assert_eq!(pair.sent(A, 4), 3, "three counters were left");
    assert_eq!(pair.sent(A, 1), 1, "and rekeying was tried");
    let last = pair.wire.iter().rfind(|sent| sent.bytes[0] == 4).unwrap();
    let counter = u64::from_le_bytes(last.bytes[8..16].try_into().unwrap());
    assert_eq!(counter, REJECT_AFTER_MESSAGES - 1);
    pair.deaf[B] = false;
    pair.pass(SECOND * 6);
    assert_eq!(
        pair.delivered[B].len(),
        10,
        "staged packets follow the new handshake"
    );
    pair.assert_alive();
}

#[test]
fn no_counter_is_sealed_twice_across_a_rekey() {
    let mut pair = Pair::connected();
    for _ in 0..500 {
        pair.send(A, 60);
        pair.pass(SECOND);
    }
    let mut seen = std::collections::BTreeSet::new();
    for sent in pair.wire.iter().filter(|sent| sent.bytes[0] == 4) {
        assert!(seen.insert((sent.from, sent.bytes[4..16].to_vec())));
    }
}

#[test]
fn ten_thousand_half_open_handshakes_leave_one_session_and_one_pending() {
    let mut pair = Pair::new();
    let peer = pair.peers[A];
    for _ in 0..10_000 {
        pair.devices[A].initiate(pair.now, peer);
        let initiation = pair.devices[A].poll_transmit().unwrap().datagram;
        assert!(pair.deliver(B, pair.addresses[A], initiation));
        assert!(pair.devices[B].poll_transmit().is_some());
        pair.now += SECOND * 6;
    }
    assert_eq!(pair.devices[A].table_for_test().index_count(), 1);
    assert_eq!(pair.devices[B].table_for_test().index_count(), 1);
    pair.assert_alive();
}

#[test]
fn packets_for_peers_that_do_not_answer_are_bounded_over_all_peers() {
    let mut device = device(1);
    let (mut staged, mut refused) = (0u64, 0);
    for n in 0..600u32 {
        let mut key = [0x42; KEY];
        key[..4].copy_from_slice(&n.to_le_bytes());
        let peer = device.add_peer(base(), PublicKey(key)).unwrap();
        device.set_endpoint(peer, Some("203.0.113.1:1".parse().unwrap()));
        for _ in 0..STAGED_PACKETS_MAX {
            let seal = device.seal_to(base(), peer, &mut [0; 80], 40);
            if seal == (Seal::Staged { peer }) {
                staged += 1;
            } else {
                assert_eq!(seal, Seal::Discarded(Discard::QueueFull));
                refused += 1;
            }
        }
    }
    assert_eq!((staged, refused), (65_536, 600 * 128 - 65_536));
    // All is given up, and there is room again.
    let mut dropped = 0;
    while let Some(due) = device
        .poll_timeout()
        .filter(|due| *due < base() + SECOND * 100)
    {
        device.handle_timeout(due);
        while device.poll_transmit().is_some() {}
        while let Some(event) = device.poll_event() {
            if let Event::Discarded { count, .. } = event {
                dropped += count;
            }
        }
    }
    assert_eq!(dropped, staged);
    let peer = device.peers().next().map(|status| status.id).unwrap();
    let later = base() + SECOND * 100;
    assert_eq!(
        device.seal_to(later, peer, &mut [0; 80], 40),
        Seal::Staged { peer }
    );
}

#[test]
fn a_device_moves_between_threads_and_halves_are_shared() {
    fn moves<T: Send>() {}
    fn is_shared<T: Send + Sync>() {}
    moves::<Device>();
    is_shared::<Sealing>();
    is_shared::<Opening>();
}
