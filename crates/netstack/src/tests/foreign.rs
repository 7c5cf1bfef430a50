//! A gateway in user mode: connections to addresses behind it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use packet::icmp::Unreachable;

use super::pair::{A, B, Link, Pair, address};
use crate::{
    CloseReason, ConnectionId, Discard, Event, Limits, ListenError, ListenerId, Prefix, Received,
    Refusal, State,
};

/// A host behind B.
fn host(v6: bool, number: u16) -> SocketAddr {
    let address: IpAddr = if v6 {
        std::net::Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, number).into()
    } else {
        let [high, low] = number.to_be_bytes();
        std::net::Ipv4Addr::new(192, 168, high, low).into()
    };
    SocketAddr::new(address, 443)
}

fn gateway(limits: Limits, v6: bool) -> (Pair, ListenerId) {
    let mut pair = Pair::with_limits(1, Link::default(), limits);
    let length = if v6 { 64 } else { 16 };
    let prefix = Prefix::new(host(v6, 0).ip(), length).unwrap();
    let listener = pair.stacks[B].listen_prefix(prefix, 1_000).unwrap();
    (pair, listener)
}

/// A's connection to a host behind B, held at B.
fn held(pair: &mut Pair, listener: ListenerId, to: SocketAddr) -> [ConnectionId; 2] {
    let a = pair.stacks[A].connect(pair.now, to).unwrap();
    pair.run_for(Duration::from_millis(15));
    assert_eq!(pair.events(B), [Event::Accepted(listener)]);
    let b = pair.stacks[B].accept(listener).unwrap();
    assert_eq!(pair.stacks[B].local(b), Some(to), "whom the peer wants");
    assert_eq!(pair.stacks[B].remote(b), pair.stacks[A].local(a));
    [a, b]
}

#[test]
fn a_syn_is_answered_when_the_owner_has_connected_onward() {
    for v6 in [false, true] {
        let (mut pair, listener) = gateway(Limits::default(), v6);
        let [a, b] = held(&mut pair, listener, host(v6, 7));
        // Onward takes its time; the SYN comes again and again.
        pair.run_for(Duration::from_secs(5));
        assert_eq!(pair.stacks[A].state(a), Some(State::SynSent));
        assert_eq!(pair.sent[B], 0);
        assert!(pair.discards[&Discard::TcpUnacceptable] >= 2);
        pair.stacks[B].admit(pair.now, b).unwrap();
        pair.run_for(Duration::from_millis(50));
        assert_eq!(pair.events(A), [Event::Connected(a)]);
        assert_eq!(pair.events(B), [Event::Connected(b)]);
        pair.watched = [Some(a), Some(b)];
        for (from, id, to, peer) in [(A, a, B, b), (B, b, A, a)] {
            pair.stacks[from].send(pair.now, id, b"through").unwrap();
            pair.run_for(Duration::from_millis(50));
            let mut out = [0; 10];
            let received = pair.stacks[to].recv(pair.now, peer, &mut out);
            assert_eq!(received, Ok(Received::Bytes(7)));
        }
        pair.stacks[A].release(pair.now, a);
        pair.stacks[B].release(pair.now, b);
        pair.run_for(Duration::from_secs(61));
        assert_eq!(pair.stacks[B].connections(), 0);
        assert!(pair.is_silent());
    }
}

#[test]
fn a_refusal_is_told_as_what_it_is() {
    let host_unreachable = Refusal::Unreachable(Unreachable::Host);
    for v6 in [false, true] {
        for (refusal, told) in [
            (Refusal::Reset, Some(CloseReason::Refused)),
            (
                host_unreachable,
                Some(CloseReason::Unreachable(Unreachable::Host)),
            ),
            (Refusal::Silence, None),
        ] {
            let (mut pair, listener) = gateway(Limits::default(), v6);
            let [a, b] = held(&mut pair, listener, host(v6, 7));
            pair.stacks[B].refuse(pair.now, b, refusal).unwrap();
            pair.run_for(Duration::from_millis(50));
            assert_eq!(pair.stacks[A].close_reason(a), told, "{refusal:?}");
            assert_eq!(pair.stacks[B].connections(), 0);
            assert!(pair.stacks[B].refuse(pair.now, b, refusal).is_err());
        }
    }
}

#[test]
fn a_connection_without_a_word_ends_and_one_whose_peer_gives_up_is_told() {
    let (mut pair, listener) = gateway(Limits::default(), false);
    let [_, b] = held(&mut pair, listener, host(false, 7));
    pair.run_for(Duration::from_secs(31));
    let closed = Event::Closed(b, CloseReason::TimedOut);
    assert_eq!(pair.events(B), [closed]);
    pair.stacks[B].release(pair.now, b);
    assert_eq!(pair.stacks[B].connections(), 0);
    // One that nobody has accepted goes as well.
    pair.stacks[A].connect(pair.now, host(false, 8)).unwrap();
    pair.run_for(Duration::from_millis(15));
    pair.stacks[B].release_listener(pair.now, listener);
    pair.run_for(Duration::from_millis(50));
    assert_eq!(pair.stacks[B].connections(), 0);
    assert!(pair.is_silent());
}

#[test]
fn one_peer_holds_at_most_half_of_what_may_be_held() {
    let limits = Limits {
        half_open_max: 100,
        ..Limits::default()
    };
    let (mut pair, listener) = gateway(limits, false);
    for number in 0..200 {
        pair.stacks[A]
            .connect(pair.now, host(false, number))
            .unwrap();
    }
    pair.run_for(Duration::from_millis(15));
    assert_eq!(pair.stacks[B].connections(), 50);
    assert_eq!(pair.discards[&Discard::TcpBacklogFull], 150);
    // Another peer is served.
    let other: IpAddr = std::net::Ipv4Addr::new(10, 0, 0, 9).into();
    pair.stacks[A].set_addresses(&[other]);
    let a = pair.stacks[A].connect(pair.now, host(false, 7)).unwrap();
    pair.run_for(Duration::from_millis(15));
    let ids: Vec<_> = std::iter::from_fn(|| pair.stacks[B].accept(listener)).collect();
    let from = |&&id: &&ConnectionId| pair.stacks[B].remote(id) == pair.stacks[A].local(a);
    assert_eq!(ids.iter().filter(from).count(), 1);
}

#[test]
fn only_what_somebody_asked_for_is_answered_in_the_name_of_others() {
    let (mut pair, _) = gateway(Limits::default(), false);
    let prefix = Prefix::new(host(false, 0).ip(), 16).unwrap();
    let again = pair.stacks[B].listen_prefix(prefix, 1);
    assert_eq!(again, Err(ListenError::InUse));
    let any = "0.0.0.0:53".parse().unwrap();
    pair.stacks[B].bind(any).unwrap();
    pair.stacks[B].listen(any, 1).unwrap();
    let socket = pair.stacks[A]
        .bind(SocketAddr::new(address(A, false), 0))
        .unwrap();
    let foreign = SocketAddr::new(host(false, 7).ip(), 53);
    pair.stacks[A].send_to(socket, foreign, b"query").unwrap();
    pair.stacks[A].ping(pair.now, foreign.ip(), 1, 8).unwrap();
    pair.run_for(Duration::from_millis(50));
    assert_eq!(pair.discards[&Discard::NotForUs], 2);
    assert_eq!(pair.sent[B], 0, "no answer in the name of a host");
    // A connection to the port where B itself listens is still held for its owner.
    pair.stacks[A].connect(pair.now, foreign).unwrap();
    // Outside the prefix nothing is taken.
    let outside = "172.16.0.1:80".parse().unwrap();
    pair.stacks[A].connect(pair.now, outside).unwrap();
    pair.run_for(Duration::from_millis(50));
    assert_eq!(pair.discards[&Discard::NotForUs], 3);
    assert_eq!((pair.sent[B], pair.stacks[B].connections()), (0, 1));
}
