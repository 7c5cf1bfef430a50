//! Random and mutated packets: no panic, and no change to what connections deliver.

use std::{net::SocketAddr, time::Duration};

use packet::{
    ip,
    tcp::{self, Flags, Header, Segment},
};

use super::pair::{A, B, Link, Pair, Seeded, address};
use crate::Received;

fn count(default: u64) -> u64 {
    let given = std::env::var("MALFORMED_PACKETS").ok();
    given
        .and_then(|count| count.parse().ok())
        .unwrap_or(default)
}

/// Anything from noise to a nearly right segment of the watched connection's peer.
fn malformed(random: &mut Seeded, ports: (u16, u16)) -> Vec<u8> {
    let v6 = random.chance(500);
    let (source, destination) = (address(A, v6), address(B, v6));
    let length = usize::try_from(random.below(120)).unwrap();
    let mut noise: Vec<u8> = (0..length).map(|_| random.byte()).collect();
    if random.chance(100) {
        return noise;
    }
    let next_header = [ip::TCP, ip::TCP, ip::UDP, ip::ICMP, ip::ICMPV6, 44, 0, 60];
    let next_header = next_header[usize::try_from(random.below(8)).unwrap()];
    let mut out = vec![0; 300];
    let header = crate::stack::header(source, destination, next_header);
    let at = ip::emit_header(&header, noise.len(), &mut out);
    if next_header == ip::TCP && random.chance(700) {
        let header = Header {
            source_port: ports.0,
            destination_port: if random.chance(500) { ports.1 } else { 80 },
            sequence: random.word(),
            acknowledgement: random.word(),
            flags: Flags(random.byte()),
            window: random.half(),
            ..Header::default()
        };
        noise.truncate(30);
        let segment = Segment {
            header,
            payload: &noise,
        };
        let length = tcp::emit(source, destination, &segment, &mut out[at..]);
        let header = crate::stack::header(source, destination, ip::TCP);
        ip::emit_header(&header, length, &mut out);
        out.truncate(at + length);
    } else {
        out.truncate(at);
        out.extend_from_slice(&noise);
    }
    if random.chance(300) {
        let index = usize::try_from(random.below(out.len() as u64)).unwrap();
        out[index] ^= 1 << random.below(8);
    }
    out
}

#[test]
fn a_flood_of_malformed_packets_changes_no_delivered_byte() {
    let mut pair = Pair::new(3, Link::default());
    let ids = pair.connect(true);
    let local = pair.stacks[A].local(ids[A]).unwrap();
    let mut random = Seeded(99);
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    for round in 0..count(200_000) {
        let packet = malformed(&mut random, (local.port(), 80));
        // Whether it is discarded, and why, is not the question here.
        let _ = pair.stacks[B].handle_packet(pair.now, &packet);
        if round % 64 == 0 {
            let bytes = round.to_le_bytes();
            let taken = pair.stacks[A].send(pair.now, ids[A], &bytes).unwrap();
            sent.extend_from_slice(&bytes[..taken]);
            let mut out = [0; 4_096];
            while let Received::Bytes(length) =
                pair.stacks[B].recv(pair.now, ids[B], &mut out).unwrap()
            {
                received.extend_from_slice(&out[..length]);
            }
            pair.run_for(Duration::from_millis(3));
            while pair.stacks[B].poll_event().is_some() {}
        }
    }
    pair.run_for(Duration::from_secs(2));
    let mut out = vec![0; 1 << 20];
    if let Received::Bytes(length) = pair.stacks[B].recv(pair.now, ids[B], &mut out).unwrap() {
        received.extend_from_slice(&out[..length]);
    }
    assert!(!sent.is_empty());
    assert_eq!(received, sent);
}

/// A SYN from an address that never answers.
fn stray_syn(random: &mut Seeded, remote: SocketAddr) -> Vec<u8> {
    let source = std::net::Ipv4Addr::from_bits(0x0b00_0000 | random.word() >> 8).into();
    let header = Header {
        source_port: random.half() | 1,
        destination_port: remote.port(),
        sequence: random.word(),
        flags: Flags::SYN,
        ..Header::default()
    };
    let mut packet = vec![0; 40];
    let segment = Segment {
        header,
        payload: &[],
    };
    let destination = remote.ip();
    tcp::emit(source, destination, &segment, &mut packet[20..]);
    let header = crate::stack::header(source, destination, ip::TCP);
    ip::emit_header(&header, 20, &mut packet);
    packet
}

/// Gives stack B so many stray SYNs and loses what it answers.
fn flood(pair: &mut Pair, random: &mut Seeded, remote: SocketAddr, count: usize) {
    let mut out = [0; 1_500];
    // What is not for the strays has left before.
    pair.drain();
    for _ in 0..count {
        let packet = stray_syn(random, remote);
        pair.stacks[B].handle_packet(pair.now, &packet).unwrap();
        while pair.stacks[B].poll_transmit(pair.now, &mut out).is_some() {}
    }
}

#[test]
fn an_honest_peer_connects_during_a_flood_of_100_000_syns() {
    for bare in [false, true] {
        let mut pair = Pair::new(3, Link::default());
        pair.link.bare = bare;
        let (listener, remote) = pair.listen(false);
        let mut random = Seeded(5);
        flood(&mut pair, &mut random, remote, 2_000);
        assert_eq!(pair.stacks[B].accept(listener), None);
        let id = pair.stacks[A].connect(pair.now, remote).unwrap();
        let (mut passive, mut received) = (None, 0);
        for _ in 0..98 {
            flood(&mut pair, &mut random, remote, 1_000);
            pair.run_for(Duration::from_millis(2));
            assert!(pair.stacks[B].connections() <= 1_025);
            passive = passive.or_else(|| pair.stacks[B].accept(listener));
            if pair.events(A).contains(&crate::Event::Connected(id)) {
                let taken = pair.stacks[A].send(pair.now, id, &[7; 100_000]);
                assert_eq!(taken, Ok(100_000));
            }
            received += passive.map_or(0, |passive| read(&mut pair, passive));
        }
        let passive = passive.expect("the cookie came back");
        assert_eq!(
            pair.stacks[A].close_reason(id),
            None,
            "the flood does not disturb it"
        );
        for _ in 0..100 {
            pair.run_for(Duration::from_millis(20));
            received += read(&mut pair, passive);
        }
        assert_eq!(received, 100_000, "bare {bare}");
        // The others are given up.
        pair.run_for(Duration::from_secs(60));
        assert_eq!(pair.stacks[B].connections(), 1);
    }
}

fn read(pair: &mut Pair, id: crate::ConnectionId) -> usize {
    let mut received = 0;
    let mut out = [0; 65_536];
    while let Ok(Received::Bytes(length)) = pair.stacks[B].recv(pair.now, id, &mut out) {
        assert!(out[..length].iter().all(|&byte| byte == 7));
        received += length;
    }
    received
}

#[test]
fn a_cookie_grants_what_the_syn_asked_for_and_a_guessed_one_nothing() {
    let mut pair = Pair::new(3, Link::default());
    let (listener, remote) = pair.listen(false);
    let mut random = Seeded(5);
    flood(&mut pair, &mut random, remote, 2_000);
    // An ACK of what we never sent.
    let mut guess = stray_syn(&mut random, remote);
    let (source, destination) = ip::parse(&guess)
        .map(|packet| (packet.header.source, packet.header.destination))
        .unwrap();
    guess[33] = Flags::ACK.0;
    for _ in 0..10_000 {
        guess[28..32].copy_from_slice(&random.word().to_be_bytes());
        guess[36..38].fill(0);
        tcp::fill_checksum(source, destination, &mut guess[20..]);
        let taken = pair.stacks[B].handle_packet(pair.now, &guess);
        assert_eq!(taken, Err(crate::Discard::TcpNoSocket));
        pair.drain();
    }
    // A window beyond 64 KiB needs the scale.
    let id = pair.stacks[A].connect(pair.now, remote).unwrap();
    pair.run_for(Duration::from_millis(50));
    let passive = pair.stacks[B].accept(listener).unwrap();
    let mut received = 0;
    while received < 100_000 {
        pair.stacks[A].send(pair.now, id, &[7; 10_000]).unwrap();
        pair.run_for(Duration::from_millis(50));
        received += read(&mut pair, passive);
    }
    let window = pair.stacks[A].send_window(id);
    assert!(window > 65_535, "{window}");
    assert_eq!(pair.stacks[B].remote(passive), pair.stacks[A].local(id));
}
