//! Key agreements that are computed away from the device.

use super::*;

/// A pair whose sides both defer.
fn deferring() -> Pair {
    let mut pair = Pair::new();
    for device in &mut pair.devices {
        device.set_deferred_agreements(true);
    }
    pair
}

/// Lets A begin and returns what it sent.
fn initiation(pair: &mut Pair) -> Vec<u8> {
    let peer = pair.peers[A];
    pair.devices[A].initiate(pair.now, peer);
    pair.devices[A].poll_transmit().expect("initiates").datagram
}

/// Hands an initiation to B and returns the agreement after its first stage.
fn claimed(pair: &mut Pair) -> Agreement {
    let message = initiation(pair);
    assert!(pair.deliver(B, pair.addresses[A], message));
    let device = &mut pair.devices[B];
    let mut agreement = device.poll_agreement().expect("one waits");
    agreement.compute();
    let next = device.handle_agreement(pair.now, agreement);
    let mut next = next.expect("the initiator is a peer");
    next.compute();
    next
}

fn discards(device: &mut Device) -> Vec<Discard> {
    let mut discards = Vec::new();
    while let Some(event) = device.poll_event() {
        if let Event::Discarded { discard, .. } = event {
            discards.push(discard);
        }
    }
    discards
}

#[test]
fn a_deferred_handshake_completes_as_one_that_is_not() {
    let mut pair = deferring();
    pair.send(A, 60);
    assert_eq!((pair.delivered[B].len(), pair.sent(B, 2)), (1, 1));
    pair.assert_alive();
    pair.pass(REKEY_AFTER_TIME + SECOND);
    pair.send(A, 60);
    assert_eq!(pair.sent(B, 2), 2);
    pair.assert_alive();
}

#[test]
fn a_message_that_waits_stops_nothing_else() {
    let mut pair = Pair::connected();
    pair.devices[B].set_deferred_agreements(true);
    pair.now += SECOND * 6;
    let message = initiation(&mut pair);
    assert!(pair.deliver(B, pair.addresses[A], message));
    assert!(
        pair.devices[B].poll_transmit().is_none(),
        "nothing is computed"
    );
    let datagram = pair.seal(A, 60);
    assert!(pair.deliver(B, pair.addresses[A], datagram));
    assert_eq!(pair.delivered[B].len(), 1);
    pair.drive();
    assert_eq!(pair.sent(B, 2), 1);
}

#[test]
fn an_answer_for_a_peer_that_is_gone_is_discarded() {
    let mut pair = deferring();
    let agreement = claimed(&mut pair);
    pair.devices[B].remove_peer(pair.peers[B]);
    assert!(
        pair.devices[B]
            .handle_agreement(pair.now, agreement)
            .is_none()
    );
    assert_eq!(discards(&mut pair.devices[B]), [Discard::UnknownPeer]);
    assert!(pair.devices[B].poll_transmit().is_none());
}

#[test]
fn an_answer_with_a_key_that_is_gone_is_discarded() {
    let mut pair = deferring();
    let agreement = claimed(&mut pair);
    let message = initiation_after(&mut pair);
    assert!(pair.deliver(B, pair.addresses[A], message));
    pair.devices[B].set_private_key(pair.now, Some(secret(9)));
    assert!(pair.devices[B].poll_agreement().is_none(), "forgotten too");
    assert!(
        pair.devices[B]
            .handle_agreement(pair.now, agreement)
            .is_none()
    );
    assert_eq!(discards(&mut pair.devices[B]), [Discard::Handshake]);
}

fn initiation_after(pair: &mut Pair) -> Vec<u8> {
    pair.now += SECOND * 6;
    initiation(pair)
}

#[test]
fn of_two_answers_to_one_initiation_the_first_counts() {
    let mut pair = deferring();
    let agreement = claimed(&mut pair);
    pair.devices[B].handle_agreement(pair.now, agreement);
    let response = pair.devices[B].poll_transmit().expect("answers").datagram;
    for _ in 0..2 {
        assert!(pair.deliver(A, pair.addresses[B], response.clone()));
    }
    pair.drive();
    let completed = |event: &Event| matches!(event, Event::HandshakeCompleted { .. });
    let count = pair.events[A]
        .iter()
        .filter(|event| completed(event))
        .count();
    assert_eq!(count, 1);
    let discarded = Event::Discarded {
        discard: Discard::UnknownIndex,
        count: 1,
    };
    assert!(pair.events[A].contains(&discarded));
    pair.assert_alive();
}

#[test]
fn a_replayed_initiation_behind_a_newer_one_is_discarded() {
    let mut pair = deferring();
    let older = claimed(&mut pair);
    let message = initiation_after(&mut pair);
    assert!(pair.deliver(B, pair.addresses[A], message));
    pair.compute(B);
    assert!(pair.devices[B].poll_transmit().is_some());
    assert!(pair.devices[B].handle_agreement(pair.now, older).is_none());
    assert_eq!(
        discards(&mut pair.devices[B]),
        [Discard::ReplayedInitiation]
    );
    assert!(pair.devices[B].poll_transmit().is_none());
}

#[test]
fn a_queue_that_grows_asks_for_cookies_instead() {
    let mut pair = deferring();
    let message = initiation(&mut pair);
    let flood = |pair: &mut Pair, count| {
        for _ in 0..count {
            pair.deliver(B, pair.addresses[A], message.clone());
        }
        let mut cookies = 0;
        while let Some(sent) = pair.devices[B].poll_transmit() {
            assert_eq!(sent.datagram.len(), COOKIE_REPLY);
            cookies += 1;
        }
        cookies
    };
    assert_eq!(flood(&mut pair, 150), 50);
    let mut waiting = 0;
    while pair.devices[B].poll_agreement().is_some() {
        waiting += 1;
    }
    assert_eq!(waiting, 100);
}

#[test]
fn an_awaited_response_waits_in_a_queue_that_asks_strangers_for_cookies() {
    let mut pair = deferring();
    let message = initiation(&mut pair);
    for _ in 0..100 {
        pair.deliver(B, pair.addresses[A], message.clone());
    }
    let peer = pair.peers[B];
    pair.devices[B].set_endpoint(peer, Some(pair.addresses[A]));
    pair.devices[B].initiate(pair.now, peer);
    let sent = pair.devices[B].poll_transmit().expect("an initiation");
    pair.deliver(A, pair.addresses[B], sent.datagram);
    pair.compute(A);
    let response = pair.devices[A].poll_transmit().expect("a response");
    pair.deliver(B, pair.addresses[A], response.datagram);
    assert!(pair.devices[B].poll_transmit().is_none(), "no cookie");
    assert_eq!(pair.devices[B].waiting_agreements(), 101);
}
