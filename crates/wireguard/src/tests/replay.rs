//! Each kind of message, recorded and sent again: later, from elsewhere, after a restart.

use super::*;

const ELSEWHERE: &str = "203.0.113.66:6666";

fn elsewhere() -> SocketAddr {
    ELSEWHERE.parse().unwrap()
}

/// A session with all that went over the wire, a cookie reply and a keepalive included.
fn recorded() -> (Pair, Vec<Sent>) {
    let mut pair = Pair::new();
    pair.devices[B].set_load(Some(true));
    pair.send(A, 100);
    pair.devices[B].set_load(None);
    pair.pass(SECOND * 6);
    pair.send(B, 100);
    pair.pass(SECOND * 11);
    let mut kinds: Vec<_> = pair.wire.iter().map(|sent| sent.bytes[0]).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, [1, 2, 3, 4]);
    assert!(pair.wire.iter().any(|sent| sent.bytes.len() == KEEPALIVE));
    let wire = pair.wire.clone();
    pair.clear();
    (pair, wire)
}

/// Sends all of `wire` again from `source` (or its own); nothing may come of it.
#[track_caller]
fn check(pair: &mut Pair, wire: &[Sent], source: Option<SocketAddr>) {
    let before = [pair.endpoint(A), pair.endpoint(B)];
    for sent in wire {
        let source = source.unwrap_or(sent.source);
        let taken = pair.deliver(1 - sent.from, source, sent.bytes.clone());
        assert!(!taken, "type {}", sent.bytes[0]);
    }
    pair.drive();
    assert!(pair.wire.is_empty() && pair.delivered.iter().all(Vec::is_empty));
    assert_eq!([pair.endpoint(A), pair.endpoint(B)], before);
    pair.assert_alive();
    pair.clear();
}

#[test]
fn nothing_is_accepted_twice_at_once_later_or_from_elsewhere() {
    let (mut pair, wire) = recorded();
    check(&mut pair, &wire, None);
    check(&mut pair, &wire, Some(elsewhere()));
    for wait in [1, 30, 100, 200, 600] {
        pair.pass(SECOND * wait);
        pair.clear();
        pair.assert_alive();
        pair.clear();
        check(&mut pair, &wire, None);
        check(&mut pair, &wire, Some(elsewhere()));
    }
}

#[test]
fn a_restarted_responder_gives_an_old_initiation_no_session_and_keeps_the_endpoint() {
    let (mut pair, wire) = recorded();
    let endpoint = pair.endpoint(B);
    pair.devices[B] = device(2);
    let peer = pair.devices[B]
        .add_peer(pair.now, secret(1).public_key())
        .unwrap();
    pair.peers[B] = peer;
    pair.devices[B].allow(peer, Prefix::host(INNER[A].parse().unwrap()));
    pair.devices[B].set_endpoint(peer, endpoint);
    for sent in wire.iter().filter(|sent| sent.from == A) {
        pair.now += SECOND;
        pair.deliver(B, elsewhere(), sent.bytes.clone());
    }
    assert!(pair.delivered[B].is_empty(), "no old data is accepted");
    assert_eq!(pair.endpoint(B), endpoint);
    assert!(
        pair.devices[B]
            .status(peer)
            .unwrap()
            .last_handshake
            .is_none()
    );
    // An answer may go to the forger, data goes nowhere.
    while let Some(sent) = pair.devices[B].poll_transmit() {
        assert_eq!(sent.datagram.len(), RESPONSE);
    }
    pair.pass(SECOND * 20);
    pair.clear();
    // A finds out after its patience and shakes hands again.
    pair.send(A, 60);
    pair.pass(SECOND * 16);
    pair.assert_alive();
}

#[test]
fn an_initiation_is_refused_when_its_timestamp_is_equal_or_older() {
    let mut pair = Pair::new();
    let peer = pair.peers[A];
    let mut initiations = Vec::new();
    for _ in 0..2 {
        pair.devices[A].initiate(pair.now, peer);
        initiations.push(pair.devices[A].poll_transmit().unwrap().datagram);
        pair.now += SECOND * 6;
    }
    let second = initiations.pop().unwrap();
    let first = initiations.pop().unwrap();
    assert!(pair.deliver(B, pair.addresses[A], second.clone()));
    pair.now += SECOND;
    assert!(!pair.deliver(B, pair.addresses[A], first));
    assert!(!pair.deliver(B, pair.addresses[A], second));
    assert_eq!(pair.discards[B][&Discard::ReplayedInitiation], 2);
}

#[test]
fn a_clock_that_went_back_does_not_lock_an_initiator_out() {
    let mut pair = Pair::connected();
    let floor = pair.devices[A].timestamp_floor();
    let year = Duration::from_secs(365 * 86_400);
    // A restarts with the clock a year back and what it kept on disk.
    for (kept, works) in [(None, false), (Some(floor), true)] {
        let mut a = Device::new(pair.now, wall() - year, Box::new(Seeded::new(77)));
        a.set_private_key(pair.now, Some(secret(1)));
        if let Some(floor) = kept {
            a.raise_timestamp_floor(floor);
        }
        let peer = a.add_peer(pair.now, secret(2).public_key()).unwrap();
        a.allow(peer, Prefix::host(INNER[B].parse().unwrap()));
        a.set_endpoint(peer, Some(pair.addresses[B]));
        pair.devices[A] = a;
        pair.peers[A] = peer;
        pair.now += SECOND * 10;
        pair.clear();
        pair.send(A, 60);
        assert_eq!(pair.delivered[B].len() == 1, works);
    }
    assert!(pair.devices[A].timestamp_floor() > floor);
    // The clock goes back while it runs.
    pair.devices[A].set_wall_clock(pair.now, wall() - year * 2);
    pair.pass(SECOND * 200);
    pair.assert_alive();
}

#[test]
fn the_previous_session_still_opens_after_a_new_handshake() {
    let mut pair = Pair::connected();
    let late = pair.seal(A, 60);
    pair.now = base() + SECOND * 121;
    pair.send(A, 60);
    assert_eq!((pair.sent(A, 1), pair.sent(B, 2)), (1, 1));
    pair.clear();
    assert!(pair.deliver(B, pair.addresses[A], late));
    assert_eq!(pair.delivered[B].len(), 1);
    pair.assert_alive();
}

#[test]
fn data_up_to_8128_behind_is_delivered_and_older_is_not() {
    let mut pair = Pair::connected();
    let datagrams: Vec<_> = (0..8_131).map(|_| pair.seal(A, 60)).collect();
    let last = datagrams.len() - 1;
    assert!(pair.deliver(B, pair.addresses[A], datagrams[last].clone()));
    assert!(pair.deliver(B, pair.addresses[A], datagrams[last - 8_128].clone()));
    assert!(!pair.deliver(B, pair.addresses[A], datagrams[last - 8_129].clone()));
    assert_eq!(pair.discards[B][&Discard::TooOld], 1);
}

#[test]
fn roaming_follows_the_newest_packet_only() {
    let mut pair = Pair::connected();
    let (old, older) = (pair.addresses[A], pair.seal(A, 60));
    let newer = pair.seal(A, 60);
    assert!(pair.deliver(B, elsewhere(), newer));
    assert_eq!(pair.endpoint(B), Some(elsewhere()));
    assert!(pair.deliver(B, old, older));
    assert_eq!(
        pair.endpoint(B),
        Some(elsewhere()),
        "a late packet moves nothing back"
    );
    pair.drive();
    let moved = Event::EndpointMoved {
        peer: pair.peers[B],
        endpoint: elsewhere(),
    };
    assert_eq!(pair.events[B], [moved]);
}

#[test]
fn a_forged_packet_from_elsewhere_does_not_move_the_endpoint() {
    let mut pair = Pair::connected();
    let mut forged = pair.seal(A, 60);
    *forged.last_mut().unwrap() ^= 1;
    assert!(!pair.deliver(B, elsewhere(), forged));
    assert_eq!(pair.discards[B][&Discard::Tag], 1);
    assert_eq!(pair.endpoint(B), Some(pair.addresses[A]));
}

#[test]
fn a_cookie_reply_from_elsewhere_does_not_move_the_endpoint() {
    let mut pair = Pair::new();
    let peer = pair.peers[A];
    pair.devices[B].set_load(Some(true));
    pair.devices[A].initiate(pair.now, peer);
    let initiation = pair.devices[A].poll_transmit().unwrap().datagram;
    assert!(pair.deliver(B, pair.addresses[A], initiation));
    let reply = pair.devices[B].poll_transmit().unwrap();
    assert_eq!((reply.datagram.len(), reply.peer), (COOKIE_REPLY, None));
    assert!(pair.deliver(A, elsewhere(), reply.datagram.clone()));
    assert_eq!(pair.endpoint(A), Some(pair.addresses[B]));
    assert!(
        !pair.deliver(A, pair.addresses[B], reply.datagram),
        "a cookie is taken once"
    );
}
