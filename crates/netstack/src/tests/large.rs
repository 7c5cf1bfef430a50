//! Runs of segments: what is sent as one, and what came as one.

use std::time::Duration;

use packet::{gro, gso, ip, tcp};

use super::{
    pair::{A, B, Link, Pair},
    scenario::{ACK, IRS, MSS, Wire, millis},
};
use crate::{Received, Stack, Transmit};

/// Everything that goes out now, in runs of up to `segments_max`, as packets.
fn packets(stack: &mut Stack, now: std::time::Instant, segments_max: usize) -> Vec<Vec<u8>> {
    let (mut out, mut packets) = ([0; 1_420], Vec::new());
    let mut part = [0; 1_420];
    while let Some(transmit) = stack.poll_transmit_large(now, segments_max, &mut out) {
        match transmit {
            Transmit::Packet(length) => packets.push(out[..length].to_vec()),
            Transmit::Large(mut large) => {
                assert!((2..=segments_max).contains(&large.segments()));
                while let Some(length) = large.next_into(&mut part) {
                    packets.push(part[..length].to_vec());
                }
            }
        }
    }
    packets
}

#[test]
fn a_run_is_the_segments_one_by_one() {
    for (length, nagle) in [
        (10 * MSS, false),
        (5 * MSS + 77, false),
        (7 * MSS + 1, true),
    ] {
        let wires = [1, 64].map(|segments_max| {
            let mut wire = Wire::with_sack();
            wire.stack.set_nagle(wire.now, wire.id, nagle).unwrap();
            // Not all pieces begin at an even place.
            for part in [1, 4_095, length - 4_096] {
                let bytes: Vec<_> = (0..part)
                    .map(|at| u8::try_from(at % 251).unwrap())
                    .collect();
                let taken = wire.stack.send(wire.now, wire.id, &bytes);
                assert_eq!(taken, Ok(part));
            }
            wire.stack.shutdown(wire.now, wire.id);
            packets(&mut wire.stack, wire.now, segments_max)
        });
        assert!(wires[0].len() > 5);
        assert_eq!(wires[0], wires[1]);
    }
}

#[test]
fn a_super_packet_splits_into_the_same_segments() {
    let mut wire = Wire::with_sack();
    wire.send(8 * MSS);
    let mut out = [0; 1_420];
    let Some(Transmit::Large(mut large)) = wire.stack.poll_transmit_large(wire.now, 64, &mut out)
    else {
        panic!("a run")
    };
    assert_eq!(
        (large.segments(), large.size(), large.length()),
        (8, MSS, 8 * MSS)
    );
    let mut whole = vec![0; 100];
    let offload = large.emit_head(&mut whole);
    whole.truncate(offload.header_length);
    large
        .pieces()
        .for_each(|piece| whole.extend_from_slice(piece));
    let mut split = gso::split(&whole, offload.kind, offload.size).unwrap();
    let (mut expected, mut part) = ([0; 1_420], [0; 1_420]);
    while let Some(length) = split.next_into(&mut expected) {
        assert_eq!(large.next_into(&mut part), Some(length));
        // Identifications mean nothing where nothing is fragmented (RFC 6864, 4.1).
        assert_eq!(part[..4], expected[..4]);
        assert_eq!(part[12..length], expected[12..length]);
    }
    assert_eq!(large.next_into(&mut part), None);
    // What the kernel completes is the right checksum.
    let (start, offset) = (offload.checksum_start, offload.checksum_offset);
    gso::complete_checksum(&mut whole, start, offset).unwrap();
    let parsed = ip::parse(&whole).unwrap();
    let (source, destination) = (parsed.header.source, parsed.header.destination);
    tcp::parse(source, destination, parsed.payload).unwrap();
}

#[test]
fn the_pace_bounds_a_run() {
    // One window of 20 segments in 50 ms of slow start is less than one segment in a millisecond.
    let link = Link {
        delay: millis(50),
        ..Link::default()
    };
    let mut pair = Pair::new(1, link);
    pair.run = 64;
    let ids = pair.connect(true);
    pair.run_for(Duration::from_secs(1));
    pair.stacks[A]
        .send(pair.now, ids[A], &[7; 200_000])
        .unwrap();
    pair.drain();
    pair.runs.clear();
    pair.run_for(Duration::from_secs(2));
    let longest = pair.runs.iter().max();
    assert!(longest.is_some_and(|&longest| longest <= 3), "{longest:?}");
}

#[test]
fn merged_segments_are_taken_as_one_and_acknowledged_once() {
    let mut wire = Wire::established();
    let data: Vec<_> = (0..20 * MSS)
        .map(|at| u8::try_from(at % 253).unwrap())
        .collect();
    // The quick ones first.
    for at in 0..16 {
        wire.get(ACK, 1 + at, 1, b"x").unwrap();
        wire.sent();
    }
    wire.recv();
    let mut run: Option<gro::Run> = None;
    for (at, part) in data.chunks(MSS).enumerate() {
        let sequence = 17 + u32::try_from(at * MSS).unwrap();
        let header = wire.header(ACK, sequence, 1);
        let packet = super::scenario::packet(wire.remote, wire.local, header, part);
        match &mut run {
            Some(run) => assert!(run.append(&packet)),
            None => run = gro::Run::begin(&packet, Vec::new()).ok(),
        }
    }
    let (merged, _) = run.unwrap().finish();
    wire.stack.handle_merged(wire.now, &merged).unwrap();
    let end = 17 + u32::try_from(data.len()).unwrap();
    wire.expect(&[(ACK, 1, end, 0)]);
    let mut out = vec![0; data.len()];
    let received = wire.stack.recv(wire.now, wire.id, &mut out);
    assert_eq!((received, &out), (Ok(Received::Bytes(data.len())), &data));
    wire.sent();
    // A run is no measure of the peer's segments: two of them are acknowledged at once.
    let mut at = end;
    for _ in 0..2 {
        wire.get(ACK, at, 1, &[1; MSS]).unwrap();
        at += u32::try_from(MSS).unwrap();
    }
    wire.expect(&[(ACK, 1, at, 0)]);
}

#[test]
fn a_batch_costs_one_look_up_and_one_acknowledgement() {
    let mut wire = Wire::established();
    let mut sequence = 1;
    // The quick ones first.
    for _ in 0..16 {
        wire.get(ACK, sequence, 1, b"x").unwrap();
        wire.sent();
        sequence += 1;
    }
    for (interrupted, look_ups) in [(false, 1), (true, 39)] {
        // Nobody's segment, so that the batch begins with a search.
        let stranger = |wire: &mut Wire| {
            let header = tcp::Header {
                source_port: 9,
                ..wire.header(ACK, 1, 1)
            };
            let nobody = std::net::SocketAddr::new(wire.remote.ip(), 9);
            let segment = super::scenario::packet(nobody, wire.local, header, &[]);
            wire.stack.handle_packet(wire.now, &segment).unwrap_err();
        };
        stranger(&mut wire);
        wire.sent();
        let before = wire.stack.look_ups();
        for part in 0..20 {
            if interrupted && part > 0 {
                stranger(&mut wire);
            }
            wire.get(ACK, sequence, 1, &[1; MSS]).unwrap();
            sequence += u32::try_from(MSS).unwrap();
        }
        assert_eq!(wire.stack.look_ups() - before, look_ups);
        let sent = wire.sent().into_iter().map(|(header, _)| header);
        let sent: Vec<_> = sent
            .filter(|header| !header.flags.has(tcp::Flags::RST))
            .collect();
        assert_eq!(sent.len(), 1, "{sent:?}");
        assert_eq!(sent[0].acknowledgement, IRS.wrapping_add(sequence));
        wire.recv();
    }
}

#[test]
fn whatever_is_not_tcp_to_us_goes_the_usual_way() {
    let mut pair = Pair::new(1, Link::default());
    let refused = pair.stacks[B].handle_merged(pair.now, &[0; 20]);
    assert_eq!(refused, Err(crate::Discard::IpMalformed));
    let now = pair.now;
    pair.stacks[A]
        .ping(now, super::pair::address(B, true), 1, 8)
        .unwrap();
    let mut out = [0; 1_420];
    let length = pair.stacks[A].poll_transmit(now, &mut out).unwrap();
    pair.stacks[B].handle_merged(now, &out[..length]).unwrap();
    assert!(pair.stacks[B].poll_transmit(now, &mut out).is_some());
}
