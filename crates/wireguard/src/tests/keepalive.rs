//! What an idle and a busy pair send, counted over virtual hours.

use std::num::NonZeroU16;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn an_idle_pair_sends_one_keepalive_and_then_nothing_for_an_hour() {
    let mut pair = Pair::connected();
    pair.pass(HOUR);
    // A heard B's packet last; what A had sent before was answered by that packet.
    let sent: Vec<_> = pair
        .wire
        .iter()
        .map(|s| (s.from, s.at, s.bytes.len()))
        .collect();
    assert_eq!(sent, [(A, SECOND * 10, KEEPALIVE)]);
}

#[test]
fn a_pair_that_never_carried_data_sends_nothing_after_its_handshake() {
    let mut pair = Pair::new();
    let peer = pair.peers[A];
    pair.devices[A].initiate(pair.now, peer);
    pair.drive();
    pair.clear();
    pair.pass(HOUR);
    assert!(pair.wire.is_empty());
}

#[test]
fn a_packet_and_its_reply_within_one_millisecond_still_get_their_keepalive() {
    let mut pair = Pair::connected();
    pair.pass(SECOND * 30);
    pair.clear();
    pair.send(A, 60);
    pair.pass(Duration::from_micros(100));
    pair.send(B, 60);
    let replied = pair.now;
    pair.pass(SECOND * 60);
    let keepalives: Vec<_> = pair
        .wire
        .iter()
        .filter(|s| s.bytes.len() == KEEPALIVE)
        .collect();
    assert_eq!(keepalives.len(), 1);
    assert_eq!(
        (keepalives[0].from, keepalives[0].at),
        (A, replied - base() + SECOND * 10)
    );
    assert_eq!(
        pair.sent(A, 1) + pair.sent(B, 1),
        0,
        "nobody stopped hearing"
    );
}

#[test]
fn keepalives_are_not_answered_by_keepalives() {
    let mut pair = Pair::connected();
    pair.send(A, 60);
    pair.pass(SECOND * 100);
    assert!(
        pair.wire
            .iter()
            .filter(|s| s.bytes.len() == KEEPALIVE)
            .count()
            <= 2
    );
}

#[test]
fn a_stream_in_one_direction_is_answered_every_ten_seconds_and_keeps_its_session() {
    let mut pair = Pair::connected();
    for _ in 0..1_000 {
        pair.send(A, 60);
        pair.pass(Duration::from_millis(100));
    }
    assert_eq!(pair.delivered[B].len(), 1_000);
    let keepalives = pair.sent(B, 4);
    assert!((9..=10).contains(&keepalives), "{keepalives}");
    assert_eq!(pair.sent(A, 1) + pair.sent(B, 1), 0);
}

#[test]
fn persistent_keepalives_come_at_their_interval_and_begin_at_once() {
    let mut pair = Pair::new();
    let peer = pair.peers[A];
    pair.devices[A].set_persistent_keepalive(pair.now, peer, NonZeroU16::new(25));
    pair.drive();
    assert_eq!(
        pair.sent(A, 1),
        1,
        "without a session it begins a handshake"
    );
    pair.clear();
    pair.pass(SECOND * 115);
    let sent: Vec<_> = pair
        .wire
        .iter()
        .map(|s| (s.from, s.at.as_secs(), s.bytes.len()))
        .collect();
    assert_eq!(sent, [25, 50, 75, 100].map(|at| (A, at, KEEPALIVE)));
    pair.clear();
    pair.devices[A].set_persistent_keepalive(pair.now, peer, None);
    pair.pass(HOUR);
    assert!(pair.wire.is_empty());
}

#[test]
fn persistent_keepalives_rest_while_traffic_flows() {
    let mut pair = Pair::connected();
    let peer = pair.peers[A];
    pair.devices[A].set_persistent_keepalive(pair.now, peer, NonZeroU16::new(25));
    pair.drive();
    pair.clear();
    for _ in 0..20 {
        pair.send(A, 60);
        pair.pass(SECOND);
        pair.send(B, 60);
        pair.pass(SECOND * 4);
    }
    assert!(pair.wire.iter().all(|sent| sent.bytes.len() > KEEPALIVE));
}

#[test]
fn persistent_keepalives_keep_trying_and_recover_when_the_peer_comes_back() {
    let mut pair = Pair::new();
    let peer = pair.peers[A];
    pair.deaf[A] = true;
    pair.devices[A].set_persistent_keepalive(pair.now, peer, NonZeroU16::new(1));
    pair.pass(HOUR);
    let abandoned = |event: &&Event| **event == Event::HandshakeAbandoned { peer };
    assert!(pair.events[A].iter().filter(abandoned).count() > 30);
    let attempts = pair.sent(A, 1);
    assert!((600..=720).contains(&attempts), "{attempts}");
    pair.deaf[A] = false;
    pair.pass(SECOND * 7);
    assert!(pair.sent(B, 2) > 0);
    pair.assert_alive();
}

#[test]
fn pings_at_any_spacing_need_at_most_thirty_handshakes_an_hour() {
    for spacing in [1, 5, 20, 100] {
        let mut pair = Pair::connected();
        let mut pings = 0;
        while pair.now - base() < HOUR {
            pair.send(A, 60);
            pair.send(B, 60);
            pings += 1;
            pair.pass(SECOND * spacing);
        }
        assert_eq!(pair.delivered[A].len(), pings, "each {spacing} s");
        assert_eq!(pair.delivered[B].len(), pings, "each {spacing} s");
        let handshakes = pair.sent(A, 1) + pair.sent(B, 1);
        assert!(handshakes <= 30, "{handshakes} each {spacing} s");
    }
}
