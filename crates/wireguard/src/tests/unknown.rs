//! Initiators that are no peers yet.

use super::*;

fn stranger() -> (Pair, PublicKey) {
    let mut pair = Pair::new();
    pair.devices[B].remove_peer(pair.peers[B]);
    (pair, secret(1).public_key())
}

fn ticket(events: &[Event]) -> Option<(PublicKey, Ticket)> {
    events.iter().find_map(|event| {
        if let Event::UnknownInitiator {
            public_key, ticket, ..
        } = event
        {
            Some((*public_key, *ticket))
        } else {
            None
        }
    })
}

#[test]
fn nobody_asks_unless_the_caller_wants_it() {
    let (mut pair, _) = stranger();
    pair.send(A, 60);
    assert_eq!(pair.discards[B][&Discard::UnknownInitiator], 1);
    assert!(pair.events[B].is_empty() && pair.sent(B, 2) == 0);
}

#[test]
fn the_kept_initiation_is_answered_once_its_initiator_is_a_peer() {
    let (mut pair, key) = stranger();
    pair.devices[B].set_unknown_initiators(true);
    pair.send(A, 60);
    let (claimed, ticket) = ticket(&pair.events[B]).expect("reported");
    assert_eq!(claimed, key);
    assert_eq!(pair.sent(B, 2), 0);
    pair.pass(Duration::from_millis(300));
    let peer = pair.devices[B].add_peer(pair.now, key).unwrap();
    pair.peers[B] = peer;
    pair.devices[B].allow(peer, Prefix::host(INNER[A].parse().unwrap()));
    assert!(pair.devices[B].answer_unknown(pair.now, ticket));
    assert!(!pair.devices[B].answer_unknown(pair.now, ticket), "once");
    pair.drive();
    assert_eq!(
        (pair.sent(A, 1), pair.delivered[B].len()),
        (1, 1),
        "without a retry"
    );
    pair.assert_alive();
}

#[test]
fn a_kept_initiation_is_worthless_once_its_initiator_began_anew() {
    let (mut pair, key) = stranger();
    pair.devices[B].set_unknown_initiators(true);
    pair.send(A, 60);
    let (_, ticket) = ticket(&pair.events[B]).expect("reported");
    pair.devices[B].add_peer(pair.now, key).unwrap();
    assert!(!pair.devices[B].answer_unknown(pair.now + REKEY_TIMEOUT, ticket));
}

#[test]
fn a_forgotten_or_forged_or_never_added_one_is_not_answered() {
    let (mut pair, _) = stranger();
    pair.devices[B].set_unknown_initiators(true);
    pair.send(A, 60);
    let (_, first) = ticket(&pair.events[B]).expect("reported");
    assert!(
        !pair.devices[B].answer_unknown(pair.now, first),
        "never added"
    );
    pair.pass(SECOND * 6);
    let (_, second) = ticket(&pair.events[B][1..]).expect("reported again");
    pair.devices[B].forget_unknown(second);
    pair.devices[B]
        .add_peer(pair.now, secret(1).public_key())
        .unwrap();
    assert!(!pair.devices[B].answer_unknown(pair.now, second));
}

#[test]
fn a_flood_of_strangers_is_bounded() {
    let mut b = device(2);
    b.set_unknown_initiators(true);
    b.set_load(Some(false));
    let mut kept = 0;
    for n in 10..=250 {
        let mut a = device(n);
        let peer = a.add_peer(base(), secret(2).public_key()).unwrap();
        a.set_endpoint(peer, Some("192.0.2.1:1".parse().unwrap()));
        a.initiate(base(), peer);
        let initiation = a.poll_transmit().unwrap().datagram;
        for _ in 0..10 {
            let source = "192.0.2.9:9".parse().unwrap();
            let mut initiation = initiation.clone();
            let received = b.handle_datagram(base(), source, &mut initiation);
            kept += usize::from(received == Received::Handled);
        }
    }
    assert_eq!(kept, 1024);
}
