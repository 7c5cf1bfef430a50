//! A gateway in user mode: UDP flows and echo requests to addresses behind it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use packet::icmp::{Cause, Unreachable};

use super::pair::{A, B, Link, Pair, address};
use crate::{
    BindError, Discard, EchoFailure, Event, Limits, Prefix, PrefixId, SendToError, Stale,
    UdpFailure, UdpId,
};

/// A host behind B.
fn host(v6: bool, number: u16) -> SocketAddr {
    let address: IpAddr = if v6 {
        std::net::Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, number).into()
    } else {
        let [high, low] = number.to_be_bytes();
        std::net::Ipv4Addr::new(192, 168, high, low).into()
    };
    SocketAddr::new(address, 53)
}

fn gateway(limits: Limits, v6: bool) -> (Pair, PrefixId) {
    let mut pair = Pair::with_limits(1, Link::default(), limits);
    let length = if v6 { 64 } else { 16 };
    let prefix = Prefix::new(host(v6, 0).ip(), length).unwrap();
    let id = pair.stacks[B].bind_prefix(prefix, 1_000).unwrap();
    (pair, id)
}

fn client(pair: &mut Pair, v6: bool) -> UdpId {
    let local = SocketAddr::new(address(A, v6), 0);
    pair.stacks[A].bind(local).unwrap()
}

fn pass(pair: &mut Pair) {
    pair.run_for(Duration::from_millis(50));
}

#[test]
fn a_flow_is_a_socket_that_answers_in_the_name_of_the_host() {
    for v6 in [false, true] {
        let (mut pair, prefix) = gateway(Limits::default(), v6);
        let a = client(&mut pair, v6);
        let to = host(v6, 7);
        for question in [&b"first"[..], b"second"] {
            pair.stacks[A].send_to(a, to, question).unwrap();
        }
        pass(&mut pair);
        assert_eq!(pair.events(B), [Event::FlowOpened(prefix)]);
        let b = pair.stacks[B].accept_flow(prefix).unwrap();
        assert_eq!(pair.stacks[B].accept_flow(prefix), None, "one flow");
        assert_eq!(pair.events(B), [Event::UdpReadable(b)]);
        assert_eq!(pair.stacks[B].udp_local(b), Some(to), "whom the peer wants");
        assert_eq!(pair.stacks[B].udp_remote(b), pair.stacks[A].udp_local(a));
        let mut out = [0; 100];
        let peer = pair.stacks[B].udp_remote(b).unwrap();
        for question in [&b"first"[..], b"second"] {
            let (length, from, at) = pair.stacks[B].recv_from(b, &mut out).unwrap();
            assert_eq!((&out[..length], from, at), (question, peer, to.ip()));
        }
        pair.stacks[B].send_to(b, peer, b"answer").unwrap();
        let other = SocketAddr::new(peer.ip(), 9);
        let refused = pair.stacks[B].send_to(b, other, b"to another");
        assert_eq!(refused, Err(SendToError::Address));
        pass(&mut pair);
        let (length, from, _) = pair.stacks[A].recv_from(a, &mut out).unwrap();
        assert_eq!((&out[..length], from), (&b"answer"[..], to));
        // Another host, or another port of ours, is another flow.
        pair.stacks[A].send_to(a, host(v6, 8), b"x").unwrap();
        let second = client(&mut pair, v6);
        pair.stacks[A].send_to(second, to, b"x").unwrap();
        pass(&mut pair);
        let flows = std::iter::from_fn(|| pair.stacks[B].accept_flow(prefix));
        assert_eq!(flows.count(), 2);
    }
}

#[test]
fn a_flow_ends_when_it_is_not_used_for_a_while() {
    let (mut pair, prefix) = gateway(Limits::default(), true);
    let a = client(&mut pair, true);
    pair.stacks[A].send_to(a, host(true, 7), b"x").unwrap();
    pass(&mut pair);
    let b = pair.stacks[B].accept_flow(prefix).unwrap();
    let peer = pair.stacks[B].udp_remote(b).unwrap();
    assert_eq!(pair.events(B).len(), 2);
    // An answer is a use as well.
    pair.run_for(Duration::from_secs(299));
    pair.stacks[B].send_to(b, peer, b"still there").unwrap();
    pair.run_for(Duration::from_secs(299));
    assert_eq!(pair.events(B), []);
    pair.run_for(Duration::from_secs(2));
    assert_eq!(pair.events(B), [Event::FlowExpired(b)]);
    let gone = pair.stacks[B].send_to(b, peer, b"late");
    assert_eq!(gone, Err(SendToError::Stale));
    assert!(pair.is_silent());
    // One that nobody accepts goes without a word.
    pair.stacks[A].send_to(a, host(true, 7), b"x").unwrap();
    pass(&mut pair);
    assert_eq!(pair.events(B), [Event::FlowOpened(prefix)]);
    pair.run_for(Duration::from_secs(301));
    assert_eq!(pair.stacks[B].accept_flow(prefix), None);
    assert!(pair.is_silent());
}

#[test]
fn errors_pass_both_ways() {
    for v6 in [false, true] {
        let (mut pair, prefix) = gateway(Limits::default(), v6);
        let a = client(&mut pair, v6);
        let remote = host(v6, 7);
        pair.stacks[A].send_to(a, remote, b"x").unwrap();
        pass(&mut pair);
        let b = pair.stacks[B].accept_flow(prefix).unwrap();
        let now = pair.now;
        pair.stacks[B]
            .refuse_flow(now, b, Unreachable::Port)
            .unwrap();
        pass(&mut pair);
        let cause = Cause::Unreachable(Unreachable::Port);
        let failure = UdpFailure { remote, cause };
        assert_eq!(pair.events(A), [Event::UdpFailed(a, failure)]);
        // The peer has closed its socket: the flow hears of it.
        let peer = pair.stacks[B].udp_remote(b).unwrap();
        pair.stacks[A].release_udp(a);
        pair.events(B);
        pair.stacks[B].send_to(b, peer, b"late").unwrap();
        pass(&mut pair);
        let remote = peer;
        let failure = UdpFailure { remote, cause };
        assert_eq!(pair.events(B), [Event::UdpFailed(b, failure)]);
        let own = pair.stacks[B].bind(SocketAddr::new(address(B, v6), 0));
        let refused = pair.stacks[B].refuse_flow(pair.now, own.unwrap(), Unreachable::Port);
        assert_eq!(refused, Err(Stale), "no flow");
    }
}

#[test]
fn an_echo_request_is_answered_by_the_word_of_the_owner() {
    for v6 in [false, true] {
        let (mut pair, prefix) = gateway(Limits::default(), v6);
        let to = host(v6, 7).ip();
        let asked = |pair: &mut Pair, sequence| {
            let id = pair.stacks[A].ping(pair.now, to, sequence, 56).unwrap();
            pair.run_for(Duration::from_millis(15));
            assert_eq!(pair.events(B), [Event::EchoRequested(prefix)]);
            let request = pair.stacks[B].accept_echo(prefix).unwrap();
            assert_eq!((request.from, request.to), (address(A, v6), to));
            assert_eq!((request.sequence, request.payload_length), (sequence, 56));
            (id, request.id)
        };
        let (id, request) = asked(&mut pair, 1);
        pair.stacks[B].answer_echo(request).unwrap();
        assert_eq!(pair.stacks[B].answer_echo(request), Err(Stale));
        pass(&mut pair);
        let reply = pair.events(A);
        let [Event::EchoReply { id: of, from, .. }] = reply[..] else {
            panic!("{reply:?}")
        };
        assert_eq!((of, from), (id, to));
        let (_, request) = asked(&mut pair, 2);
        let (now, host) = (pair.now, Unreachable::Host);
        pair.stacks[B].refuse_echo(now, request, host).unwrap();
        pass(&mut pair);
        let told = pair.events(A);
        let [Event::EchoFailed { failure, .. }] = told[..] else {
            panic!("{told:?}")
        };
        assert_eq!(failure, EchoFailure::Icmp(Cause::Unreachable(host)));
        // Without a word it is forgotten.
        let (_, request) = asked(&mut pair, 3);
        pair.run_for(Duration::from_secs(11));
        assert_eq!(pair.stacks[B].answer_echo(request), Err(Stale));
        assert!(pair.is_silent());
    }
}

#[test]
fn one_peer_holds_at_most_half_of_the_flows_and_of_their_memory() {
    let limits = Limits {
        flows_max: 100,
        flow_bytes_max: 64 << 10,
        ..Limits::default()
    };
    let (mut pair, prefix) = gateway(limits, false);
    let a = client(&mut pair, false);
    for number in 0..200 {
        pair.stacks[A].send_to(a, host(false, number), b"").unwrap();
    }
    for sequence in 0..10 {
        let to = host(false, sequence).ip();
        pair.stacks[A].ping(pair.now, to, sequence, 0).unwrap();
    }
    pass(&mut pair);
    // Echo requests count as well: fifty of both are held.
    assert_eq!(pair.discards[&Discard::FlowsFull], 200 + 10 - 50);
    for _ in 0..100 {
        let (to, data) = (host(false, 1), &[1; 1_000]);
        pair.stacks[A].send_to(a, to, data).unwrap();
    }
    pass(&mut pair);
    let full = pair.discards[&Discard::UdpQueueFull];
    assert!((65..75).contains(&full), "{full}");
    // Another peer is served.
    let other: IpAddr = std::net::Ipv4Addr::new(10, 0, 0, 9).into();
    pair.stacks[A].set_addresses(&[other]);
    let second = pair.stacks[A].bind(SocketAddr::new(other, 0)).unwrap();
    pair.stacks[A]
        .send_to(second, host(false, 7), b"x")
        .unwrap();
    pass(&mut pair);
    let ids: Vec<_> = std::iter::from_fn(|| pair.stacks[B].accept_flow(prefix)).collect();
    let served = |&&id: &&UdpId| pair.stacks[B].udp_remote(id) == pair.stacks[A].udp_local(second);
    assert_eq!(ids.iter().filter(served).count(), 1);
    // What is given back is free again.
    while let Some(request) = pair.stacks[B].accept_echo(prefix) {
        pair.stacks[B].answer_echo(request.id).unwrap();
    }
    for id in ids {
        pair.stacks[B].release_udp(id);
    }
    pair.discards.clear();
    pair.stacks[A].set_addresses(&[address(A, false)]);
    for number in 0..50 {
        pair.stacks[A].send_to(a, host(false, number), b"").unwrap();
    }
    pass(&mut pair);
    assert_eq!(pair.discards, std::collections::BTreeMap::new());
}

#[test]
fn only_what_somebody_asked_for_is_taken() {
    let (mut pair, prefix) = gateway(Limits::default(), false);
    let all = Prefix::new(host(false, 0).ip(), 16).unwrap();
    assert_eq!(pair.stacks[B].bind_prefix(all, 1), Err(BindError::InUse));
    let a = client(&mut pair, false);
    // TCP to a host, and anything to an address outside.
    pair.stacks[A].connect(pair.now, host(false, 7)).unwrap();
    let outside = "172.16.0.1:80".parse().unwrap();
    pair.stacks[A].send_to(a, outside, b"x").unwrap();
    pass(&mut pair);
    assert_eq!(pair.discards[&Discard::NotForUs], 2);
    assert_eq!(pair.sent[B], 0);
    // A prefix that is given back takes its waiting flows along.
    pair.stacks[A].send_to(a, host(false, 7), b"x").unwrap();
    pass(&mut pair);
    pair.stacks[B].release_prefix(prefix);
    pair.stacks[A].send_to(a, host(false, 7), b"x").unwrap();
    pass(&mut pair);
    assert_eq!(pair.stacks[B].accept_flow(prefix), None);
    assert_eq!(pair.discards[&Discard::NotForUs], 3);
    let again = pair.stacks[B].bind_prefix(all, 1).unwrap();
    assert_ne!(again, prefix);
}
