//! UDP, ICMP echo, ICMP errors and fragments.

use std::{net::SocketAddr, time::Duration};

use packet::{
    icmp::{Cause, Unreachable},
    ip, udp,
};

use super::pair::{A, B, Link, Pair, address, base, config};
use crate::{BindError, Discard, EchoFailure, Event, PingError, SendToError, Stack, UdpFailure};

#[test]
fn a_datagram_finds_its_socket_and_the_answer_comes_from_the_address_that_was_asked() {
    for v6 in [false, true] {
        let mut pair = Pair::new(1, Link::default());
        let any = SocketAddr::new(crate::stack::unspecified(address(B, v6)), 53);
        let server = pair.stacks[B].bind(any).unwrap();
        let client = pair.stacks[A]
            .bind(SocketAddr::new(address(A, v6), 0))
            .unwrap();
        let remote = SocketAddr::new(address(B, v6), 53);
        pair.stacks[A].send_to(client, remote, b"question").unwrap();
        pair.run_for(Duration::from_millis(50));
        assert_eq!(pair.events(B), [Event::UdpReadable(server)]);
        let mut out = [0; 100];
        let (length, from, to) = pair.stacks[B].recv_from(server, &mut out).unwrap();
        assert_eq!((&out[..length], to), (&b"question"[..], remote.ip()));
        assert_eq!(Some(from), pair.stacks[A].udp_local(client));
        pair.stacks[B]
            .send_from(server, Some(to), from, b"answer")
            .unwrap();
        pair.run_for(Duration::from_millis(50));
        let (length, from, _) = pair.stacks[A].recv_from(client, &mut out).unwrap();
        assert_eq!((&out[..length], from), (&b"answer"[..], remote));
        assert!(pair.is_silent());
    }
}

#[test]
fn a_port_without_a_socket_is_refused_to_the_sender() {
    for v6 in [false, true] {
        let mut pair = Pair::new(1, Link::default());
        let client = pair.stacks[A]
            .bind(SocketAddr::new(address(A, v6), 0))
            .unwrap();
        let remote = SocketAddr::new(address(B, v6), 9);
        pair.stacks[A].send_to(client, remote, b"anybody?").unwrap();
        pair.run_for(Duration::from_millis(50));
        let cause = Cause::Unreachable(Unreachable::Port);
        let failed = Event::UdpFailed(client, UdpFailure { remote, cause });
        assert_eq!(pair.events(A), [failed]);
        assert_eq!(pair.discards[&Discard::UdpNoSocket], 1);
        // Errors are few, whatever comes.
        for _ in 0..200 {
            pair.stacks[A].send_to(client, remote, b"anybody?").unwrap();
        }
        pair.run_for(Duration::from_millis(50));
        assert_eq!(pair.sent[B], 50);
    }
}

#[test]
fn what_cannot_be_bound_or_sent_is_an_error() {
    let mut stack = Stack::new(config(A, 1));
    let own = SocketAddr::new(address(A, false), 53);
    let other = SocketAddr::new(address(B, false), 53);
    let id = stack.bind(own).unwrap();
    assert_eq!(stack.bind(own), Err(BindError::InUse));
    assert_eq!(stack.bind(other), Err(BindError::Address));
    let v6 = SocketAddr::new(address(B, true), 53);
    assert_eq!(stack.send_to(id, v6, b""), Err(SendToError::Address));
    assert_eq!(
        stack.send_to(id, other, &[0; 1_393]),
        Err(SendToError::TooLong)
    );
    assert_eq!(stack.send_to(id, other, &[0; 1_392]), Ok(()));
    for _ in 1..512 {
        stack.send_to(id, other, b"").unwrap();
    }
    assert_eq!(stack.send_to(id, other, b""), Err(SendToError::QueueFull));
    stack.release_udp(id);
    assert_eq!(stack.send_to(id, other, b""), Err(SendToError::Stale));
    assert_ne!(stack.bind(own), Ok(id));
}

#[test]
fn a_socket_that_nobody_reads_is_bounded() {
    let mut pair = Pair::new(1, Link::default());
    let server = pair.stacks[B]
        .bind(SocketAddr::new(address(B, true), 53))
        .unwrap();
    let client = pair.stacks[A]
        .bind(SocketAddr::new(address(A, true), 0))
        .unwrap();
    let remote = SocketAddr::new(address(B, true), 53);
    for _ in 0..300 {
        pair.stacks[A].send_to(client, remote, &[1; 1_024]).unwrap();
    }
    pair.run_for(Duration::from_millis(50));
    // Each counts 64 bytes more than its data.
    let room = (256 << 10) / (1_024 + 64);
    assert_eq!(pair.discards[&Discard::UdpQueueFull], 300 - room);
    assert_eq!(pair.events(B), [Event::UdpReadable(server)]);
}

#[test]
fn an_echo_is_answered_and_timed_and_its_failure_is_told() {
    for v6 in [false, true] {
        let mut pair = Pair::new(1, Link::default());
        let (from, now) = (address(B, v6), pair.now);
        let id = pair.stacks[A].ping(now, from, 7, 56).unwrap();
        pair.run_for(Duration::from_millis(50));
        let round_trip = Duration::from_millis(20);
        assert_eq!(
            pair.events(A),
            [Event::EchoReply {
                id,
                sequence: 7,
                from,
                round_trip
            }]
        );
        pair.link.loss = 1_000;
        let id = pair.stacks[A].ping(pair.now, from, 8, 0).unwrap();
        pair.run_for(Duration::from_secs(11));
        let (elapsed, failure) = (Duration::from_secs(10), EchoFailure::TimedOut);
        assert_eq!(
            pair.events(A),
            [Event::EchoFailed {
                id,
                sequence: 8,
                from,
                elapsed,
                failure
            }]
        );
        assert!(pair.is_silent());
    }
}

#[test]
fn pings_without_an_answer_are_bounded() {
    let mut stack = Stack::new(config(A, 1));
    let now = base();
    let mut out = [0; 1_500];
    for sequence in 0..1_024 {
        stack.ping(now, address(B, true), sequence, 0).unwrap();
        stack.poll_transmit(now, &mut out).unwrap();
    }
    assert_eq!(
        stack.ping(now, address(B, true), 0, 0),
        Err(PingError::TooMany)
    );
    stack.handle_timeout(now + Duration::from_secs(10));
    while stack.poll_event().is_some() {}
    assert!(stack.ping(now, address(B, true), 0, 0).is_ok());
}

/// The fragments of a datagram with `payload`, cut at multiples of eight.
fn fragments(v6: bool, payload: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let (source, destination) = (address(B, v6), address(A, v6));
    let mut whole = vec![0; udp::HEADER + payload.len()];
    let datagram = udp::Datagram {
        source_port: 5,
        destination_port: 53,
        payload,
    };
    udp::emit(source, destination, &datagram, &mut whole);
    let edges: Vec<_> = [0]
        .iter()
        .chain(cuts)
        .copied()
        .chain([whole.len()])
        .collect();
    let piece = |edge: &[usize]| {
        let more = edge[1] < whole.len();
        let body = &whole[edge[0]..edge[1]];
        let offset = u16::try_from(edge[0]).unwrap();
        let mut extension = Vec::new();
        if v6 {
            extension.extend_from_slice(&[ip::UDP, 0]);
            extension.extend_from_slice(&(offset | u16::from(more)).to_be_bytes());
            extension.extend_from_slice(&[0, 0, 0, 9]);
        }
        let next_header = if v6 { 44 } else { ip::UDP };
        let header = crate::stack::header(source, destination, next_header);
        let mut out = vec![0; 60_000];
        let at = ip::emit_header(&header, extension.len() + body.len(), &mut out);
        out.truncate(at);
        if !v6 {
            let flags = (offset / 8) | if more { 0x2000 } else { 0 };
            out[4..6].copy_from_slice(&[0, 9]);
            out[6..8].copy_from_slice(&flags.to_be_bytes());
            out[10..12].fill(0);
            let checksum = packet::checksum::Sum::default().add(&out).finish();
            out[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        out.extend_from_slice(&extension);
        out.extend_from_slice(body);
        out
    };
    edges.windows(2).map(piece).collect()
}

#[test]
fn fragments_in_any_order_make_a_datagram() {
    for v6 in [false, true] {
        let mut stack = Stack::new(config(A, 1));
        let id = stack.bind(SocketAddr::new(address(A, v6), 53)).unwrap();
        let payload: Vec<u8> = (0..5_000_u32)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect();
        let pieces = fragments(v6, &payload, &[1_376, 2_752, 4_128]);
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
            for at in order {
                stack.handle_packet(base(), &pieces[at]).unwrap();
            }
            let mut out = [0; 6_000];
            let (length, ..) = stack.recv_from(id, &mut out).unwrap();
            assert_eq!(out[..length], payload);
        }
        assert_eq!(stack.poll_timeout(), None);
    }
}

#[test]
fn fragments_that_overlap_or_never_end_go() {
    let mut stack = Stack::new(config(A, 1));
    let id = stack.bind(SocketAddr::new(address(A, true), 53)).unwrap();
    let payload = [3; 3_000];
    let pieces = fragments(true, &payload, &[1_376]);
    let shifted = fragments(true, &payload, &[1_368]);
    let now = base();
    stack.handle_packet(now, &pieces[0]).unwrap();
    assert_eq!(
        stack.handle_packet(now, &shifted[1]),
        Err(Discard::Fragment)
    );
    // Nothing of that packet is taken any more, whichever of the two was forged.
    for piece in &pieces {
        assert_eq!(stack.handle_packet(now, piece), Err(Discard::Fragment));
    }
    assert_eq!(stack.recv_from(id, &mut [0; 10]), None);
    // What waits is given up after a minute.
    let deadline = stack.poll_timeout().unwrap();
    assert_eq!(deadline - now, Duration::from_secs(60));
    stack.handle_timeout(deadline);
    assert_eq!(stack.poll_timeout(), None);
}

#[test]
fn a_fragment_that_comes_twice_does_no_harm() {
    let mut stack = Stack::new(config(A, 1));
    let id = stack.bind(SocketAddr::new(address(A, true), 53)).unwrap();
    let pieces = fragments(true, &[3; 3_000], &[1_376]);
    stack.handle_packet(base(), &pieces[0]).unwrap();
    let again = stack.handle_packet(base(), &pieces[0]);
    assert_eq!(again, Err(Discard::Fragment));
    stack.handle_packet(base(), &pieces[1]).unwrap();
    let (length, ..) = stack.recv_from(id, &mut [0; 4_000]).unwrap();
    assert_eq!(length, 3_000);
}
