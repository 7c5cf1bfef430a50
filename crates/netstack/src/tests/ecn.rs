//! Explicit congestion notification (RFC 3168): what is agreed, what is marked, what a mark does.

use std::time::Duration;

use packet::{
    ip,
    tcp::{self, Flags, Header, Options, Segment},
};

use super::{
    pair::{A, B, Link, Pair, config},
    scenario::{ACK, MSS, SYN, SYN_ACK, Wire, millis},
    transfer::transfer,
};
use crate::{CongestionControl, Discard, Stack};

const SETUP: Flags = Flags(0x02 | 0x40 | 0x80);
const AGREED: Flags = Flags(0x12 | 0x40);
const ECE: Flags = Flags::ECE;
const CWR: Flags = Flags::CWR;

/// An active open that has asked.
fn asking() -> Wire {
    let mut stack = Stack::new(config(A, 7));
    stack.set_ecn(true);
    Wire::opening_on(stack, SETUP)
}

/// A connection with SACK of which both sides have agreed, and the first flight of ten segments.
fn agreed() -> Wire {
    let mut wire = asking();
    wire.wait(millis(100));
    let mut header = wire.header(AGREED, 0, 1);
    header.options = Options {
        maximum_segment_size: Some(1380),
        sack_permitted: true,
        ..Options::default()
    };
    wire.write(header, &[]).unwrap();
    assert_eq!(wire.sent_one().0.flags, ACK);
    wire
}

/// What goes out, with the mark of each packet.
fn sent(wire: &mut Wire) -> Vec<(u8, Header, usize)> {
    let mut out = [0; 1_500];
    let mut sent = Vec::new();
    while let Some(length) = wire.stack.poll_transmit(wire.now, &mut out) {
        let packet = ip::parse(&out[..length]).unwrap();
        let (source, destination) = (packet.header.source, packet.header.destination);
        let segment = tcp::parse(source, destination, packet.payload).unwrap();
        let mark = packet.header.traffic_class & 3;
        sent.push((mark, segment.header, segment.payload.len()));
    }
    sent
}

/// Writes a segment whose packet has that mark.
fn write(wire: &mut Wire, mark: u8, header: Header, payload: &[u8]) -> Result<(), Discard> {
    let (from, to) = (wire.remote, wire.local);
    let mut out = vec![0; 2_000];
    let mut ip = crate::stack::header(from.ip(), to.ip(), ip::TCP);
    ip.traffic_class = mark;
    let length = tcp::HEADER + header.options.length() + payload.len();
    let at = ip::emit_header(&ip, length, &mut out);
    let segment = Segment { header, payload };
    tcp::emit(from.ip(), to.ip(), &segment, &mut out[at..]);
    wire.stack.handle_packet(wire.now, &out[..at + length])
}

#[test]
fn a_syn_that_was_not_answered_asks_no_more() {
    // RFC 3168, 6.1.1.1.
    let mut wire = asking();
    let (_, sent) = wire.wait_for_segment();
    assert_eq!(sent[0].0.flags, SYN);
}

#[test]
fn a_peer_that_does_not_agree_gets_no_mark() {
    let mut wire = asking();
    wire.get(SYN_ACK, 0, 1, &[]).unwrap();
    wire.send(MSS);
    assert!(sent(&mut wire).iter().all(|&(mark, ..)| mark == 0));
    wire.get(ACK.with(ECE), 1, 1, &[]).unwrap();
    assert!(sent(&mut wire).is_empty());
}

#[test]
fn only_data_that_goes_out_for_the_first_time_is_marked() {
    // RFC 3168, 6.1.4 and 6.1.5.
    let mut wire = agreed();
    wire.send(MSS);
    let first = sent(&mut wire);
    assert_eq!((first[0].0, first[0].2), (0b10, MSS));
    let again = loop {
        wire.wait_for_timer();
        if let [again] = sent(&mut wire)[..] {
            break again;
        }
    };
    assert_eq!((again.0, again.2), (0, MSS));
    wire.get(ACK, 1, 1, &[1; MSS]).unwrap();
    let acknowledgement = sent(&mut wire)[0];
    assert_eq!((acknowledgement.0, acknowledgement.2), (0, 0));
}

#[test]
fn a_mark_is_echoed_until_the_peer_has_reduced_its_window() {
    // RFC 3168, 6.1.3.
    let mut wire = agreed();
    let data = [1; 100];
    let header = wire.header(ACK, 1, 1);
    write(&mut wire, 0b11, header, &data).unwrap();
    assert_eq!(sent(&mut wire)[0].1.flags, ACK.with(ECE));
    let header = wire.header(ACK, 101, 1);
    write(&mut wire, 0b10, header, &data).unwrap();
    assert_eq!(sent(&mut wire)[0].1.flags, ACK.with(ECE));
    let header = wire.header(ACK.with(CWR), 201, 1);
    write(&mut wire, 0b10, header, &data).unwrap();
    assert_eq!(sent(&mut wire)[0].1.flags, ACK);
    // Marked again at once.
    let header = wire.header(ACK.with(CWR), 301, 1);
    write(&mut wire, 0b11, header, &data).unwrap();
    assert_eq!(sent(&mut wire)[0].1.flags, ACK.with(ECE));
}

#[test]
fn an_echo_reduces_the_window_once_for_each_flight_and_repeats_nothing() {
    // RFC 3168, 6.1.2, and RFC 8511, 3.1 for how far.
    let mut wire = agreed();
    wire.send(40 * MSS);
    assert_eq!(sent(&mut wire).len(), 10);
    let before = wire.stack.cwnd(wire.id);
    wire.wait(millis(100));
    let at = |segments| u32::try_from(1 + segments * MSS).unwrap();
    wire.get(ACK.with(ECE), 1, at(1), &[]).unwrap();
    let after = wire.stack.cwnd(wire.id);
    assert!(
        after < before && after > before * 8 / 10,
        "{after} of {before}"
    );
    wire.get(ACK.with(ECE), 1, at(2), &[]).unwrap();
    wire.get(ACK.with(ECE), 1, at(9), &[]).unwrap();
    let within = wire.stack.cwnd(wire.id);
    assert!(within >= after, "{within} of {after}");
    let mut flags = Vec::new();
    for _ in 0..4 {
        flags.extend(sent(&mut wire).iter().map(|&(_, header, _)| header.flags));
        wire.wait_for_timer();
    }
    assert!(flags[0].has(CWR), "{flags:?}");
    assert!(!flags[1..].iter().any(|flags| flags.has(CWR)), "{flags:?}");
}

#[test]
fn a_router_that_marks_makes_room_without_a_single_loss() {
    // 100 Mbit/s that marks above 60 kB and drops above 500 kB.
    let link = Link {
        delay: millis(10),
        rate: Some((12_500_000, 500_000)),
        marked_above: Some(60_000),
        ..Link::default()
    };
    for control in [CongestionControl::Cubic, CongestionControl::Bbr] {
        let length = 20_000_000;
        let mut pair = Pair::new(1, link);
        for stack in &mut pair.stacks {
            stack.set_ecn(true);
            stack.set_default_congestion_control(control);
        }
        let took = transfer(&mut pair, [length, 0], true, 0);
        let [sent, _] = pair.sent;
        // 1,348 octets fit beside IPv6 and timestamps.
        let least = u64::try_from(length.div_ceil(1_348)).unwrap();
        assert!(pair.marks > 0, "{control:?}");
        assert!(sent < least + 20, "{control:?}: {sent} of {least}");
        assert!(took < Duration::from_millis(2_200), "{control:?}: {took:?}");
        assert_eq!(pair.stacks[B].connections(), 0);
    }
}
