//! More packet traces written from the RFCs: how much goes out, when, and what ends it.

use std::time::Duration;

use packet::{
    icmp::Cause,
    tcp::{Header, Options, Timestamps},
};

use super::{
    pair::{A, B, address, config},
    recovery::{Path, RTT},
    scenario::{
        ACK, FIN_ACK, IRS, MSS, RST, SYN, SYN_ACK, Wire, listening, millis, packet, quote, sent,
    },
};
use crate::{CloseReason, Discard, Event, Received, State};

fn octets(segments: usize) -> u32 {
    u32::try_from(segments * MSS).unwrap()
}

/// Lengths of the segments that go out now.
fn lengths(wire: &mut Wire) -> Vec<usize> {
    let sent = wire.sent();
    sent.iter().map(|(_, payload)| payload.len()).collect()
}

// Slow start and the window.

#[test]
fn ten_segments_leave_first_and_two_for_each_that_is_acknowledged() {
    // RFC 6928, 2 and RFC 5681, 3.1.
    let mut wire = Wire::with_sack();
    wire.send(50 * MSS);
    assert_eq!(lengths(&mut wire), [MSS; 10]);
    wire.get(ACK, 1, 1 + octets(1), &[]).unwrap();
    assert_eq!(lengths(&mut wire), [MSS; 2]);
    // Octets count and not acknowledgements (RFC 3465, 2.2).
    wire.get(ACK, 1, 1 + octets(5), &[]).unwrap();
    assert_eq!(lengths(&mut wire), [MSS; 8]);
    // An acknowledgement of half a segment opens the window by half a segment.
    wire.get(ACK, 1, 1 + octets(5) + octets(1) / 2, &[])
        .unwrap();
    assert_eq!(lengths(&mut wire), [MSS; 1]);
}

#[test]
fn the_windows_of_the_peer_and_of_the_path_both_bound_the_flight() {
    let mut wire = Wire::opening();
    wire.window = 5_000;
    wire.establish(Options {
        maximum_segment_size: Some(1380),
        ..Options::default()
    });
    wire.send(10 * MSS);
    assert_eq!(lengths(&mut wire), [MSS; 3], "4,140 of 5,000");
    wire.window = 65_535;
    wire.get(ACK, 1, 1, &[]).unwrap();
    assert_eq!(lengths(&mut wire), [MSS; 7]);
}

#[test]
fn a_window_that_is_not_used_does_not_grow() {
    // RFC 7661, 4.3.
    let mut wire = Wire::with_sack();
    let before = wire.stack.cwnd(wire.id);
    let mut at = 1;
    for _ in 0..100 {
        wire.send(100);
        wire.expect(&[(ACK, at, 1, 100)]);
        at += 100;
        wire.get(ACK, 1, at, &[]).unwrap();
    }
    assert_eq!(wire.stack.cwnd(wire.id), before);
}

#[test]
fn a_window_that_stood_idle_shrinks_but_not_below_the_initial_one() {
    // RFC 5681, 4.1.
    let mut wire = Wire::with_sack();
    let initial = wire.stack.cwnd(wire.id);
    let mut acknowledged = 0;
    wire.send(100 * MSS);
    while acknowledged < 100 {
        acknowledged += lengths(&mut wire).len();
        wire.get(ACK, 1, 1 + octets(acknowledged), &[]).unwrap();
    }
    let grown = wire.stack.cwnd(wire.id);
    assert!(grown > 4 * initial, "{grown}");
    wire.wait(Duration::from_secs(3_600));
    wire.send(MSS);
    assert_eq!(lengths(&mut wire), [MSS]);
    assert_eq!(wire.stack.cwnd(wire.id), initial);
}

#[test]
fn after_a_loss_the_window_grows_by_little_in_a_round_trip_time() {
    // RFC 9438, 4.2: congestion avoidance.
    let mut path = Path::flight(true, 100);
    path.wire.wait(RTT);
    let echo = path.echo;
    path.ack(0, echo, &[(1, 10)]);
    let mut next = *path.sent().last().unwrap() + 1;
    path.wire.wait(RTT);
    for _ in 0..5 {
        let echo = path.echo;
        path.ack(next, echo, &[]);
        let end = path.wire.now + RTT;
        while path.wire.now < end {
            next += path
                .sent()
                .iter()
                .filter(|&&segment| segment >= next)
                .count();
            path.wire.wait(millis(1));
        }
    }
    let segments = path.cwnd() / (octets(1) - 12);
    assert!((7..=11).contains(&segments), "{segments}, from 7");
}

// Loss recovery.

#[test]
fn a_loss_reduces_the_window_to_seven_tenths_of_the_flight_when_recovery_ends() {
    // RFC 9438, 4.6 and RFC 6937, 3.1.
    let mut path = Path::flight(true, 0);
    let before = path.cwnd();
    path.wire.wait(RTT);
    let echo = path.echo;
    path.ack(0, echo, &[(1, 10)]);
    assert_eq!(path.sent(), [0]);
    path.wire.wait(RTT);
    let echo = path.echo;
    path.ack(10, echo, &[]);
    assert_eq!(path.cwnd(), before * 7 / 10);
}

#[test]
fn losses_of_one_flight_reduce_the_window_once() {
    // RFC 6675, 5: RecoveryPoint.
    let mut path = Path::flight(true, 0);
    let before = path.cwnd();
    path.wire.wait(RTT);
    let echo = path.echo;
    path.ack(0, echo, &[(1, 4)]);
    path.ack(0, echo, &[(5, 8), (1, 4)]);
    path.ack(0, echo, &[(9, 10), (5, 8), (1, 4)]);
    let mut sent = path.sent();
    path.wire.wait(RTT);
    while sent.len() < 3 {
        path.wire.wait_for_timer();
        sent.extend(path.sent());
    }
    sent.sort_unstable();
    assert_eq!(sent, [0, 4, 8]);
    path.wire.wait(millis(50));
    let echo = path.echo;
    path.ack(10, echo, &[]);
    assert_eq!(path.cwnd(), before * 7 / 10);
}

#[test]
fn what_is_left_of_a_lost_segment_goes_out_without_waiting_for_the_timer() {
    // RFC 9293, 3.8.6: a receiver may take a part of a segment, for whose end it had no room.
    let mut path = Path::flight(false, 0);
    path.wire.wait(RTT);
    path.ack(0, 0, &[(7, 10)]);
    let next = path.sent().len();
    assert!(
        (1..7).contains(&next),
        "more are lost than may go out: {next}"
    );
    let (part, left) = (500, MSS - 500);
    let mut header = path.wire.header(ACK, 1, path.at(next) + part);
    let at = |segment| path.wire.iss.wrapping_add(path.at(segment));
    header.options.sack.push(at(7), at(10));
    let begins = at(next).wrapping_add(part);
    path.wire.write(header, &[]).unwrap();
    let (first, payload) = &path.wire.sent()[0];
    assert_eq!((first.sequence, payload.len()), (begins, left));
}

#[test]
fn recovery_sends_seven_for_ten_that_arrive() {
    // RFC 6937, 3: proportional reduction, spread over the whole round-trip time.
    let mut path = Path::flight(true, 40);
    path.wire.wait(RTT);
    let echo = path.echo;
    let mut out = Vec::new();
    for last in 2..=10 {
        path.ack(0, echo, &[(1, last)]);
        out.push(path.sent().len());
    }
    let all: usize = out.iter().sum();
    assert!((6..=8).contains(&all), "{out:?}");
    let recovery = &out[out.iter().position(|&sent| sent > 0).unwrap() + 1..];
    assert!(recovery.iter().all(|&sent| sent <= 2), "no burst: {out:?}");
}

#[test]
fn heavy_losses_are_repaired_as_fast_as_what_arrives_tells() {
    // RFC 6937, 3.1: the slow-start reduction bound, once the pipe is below ssthresh.
    let mut path = Path::flight(true, 40);
    // Seven of ten are lost.
    path.wire.wait(RTT);
    let echo = path.echo;
    path.ack(0, echo, &[(7, 10)]);
    let mut round = path.sent();
    assert_eq!(round, [0, 1, 2], "as many as have arrived");
    let mut next = 3;
    while next < 7 {
        path.wire.wait(RTT);
        let echo = path.echo;
        path.ack(next, echo, &[(7, 10)]);
        let sent = path.sent();
        assert!(sent.len() <= 2 * round.len(), "{sent:?} after {round:?}");
        assert_eq!(sent[0], next);
        next += sent.iter().filter(|&&segment| segment < 7).count();
        round = sent;
    }
}

#[test]
fn a_retransmission_that_is_lost_too_is_found_by_what_was_sent_after_it() {
    // RFC 8985, 6.2, step 5: no timeout is needed.
    let mut path = Path::flight(true, 20);
    path.wire.wait(RTT);
    let echo = path.echo;
    path.ack(0, echo, &[(1, 10)]);
    let first = path.sent();
    assert_eq!(first[0], 0);
    assert!(first.len() > 1, "new data follows: {first:?}");
    path.wire.wait(RTT);
    let echo = path.echo;
    path.ack(0, echo, &[(10, 12), (1, 10)]);
    let mut second = path.sent();
    path.wire.wait(millis(26));
    second.extend(path.sent());
    assert!(second.contains(&0), "{second:?}");
}

#[test]
fn two_segments_that_overtake_are_no_loss_at_once_and_a_quarter_later_they_are() {
    // RFC 8985, 6.2, step 4.
    let mut path = Path::flight(true, 0);
    path.wire.wait(RTT);
    let echo = path.echo;
    path.ack(0, echo, &[(1, 3)]);
    assert!(!path.sent().contains(&0));
    path.wire.wait(RTT / 4 - millis(1));
    assert!(!path.sent().contains(&0));
    path.wire.wait(millis(1));
    assert!(path.sent().contains(&0));
}

#[test]
fn a_segment_that_comes_late_but_in_time_is_not_sent_again() {
    let mut path = Path::flight(true, 0);
    let before = path.cwnd();
    path.wire.wait(RTT);
    let echo = path.echo;
    path.ack(0, echo, &[(1, 3)]);
    path.wire.wait(millis(20));
    path.ack(10, echo, &[]);
    path.wire.wait(Duration::from_secs(10));
    assert_eq!(path.sent(), [] as [usize; 0]);
    assert!(path.cwnd() >= before);
}

#[test]
fn blocks_that_cannot_be_are_ignored() {
    // RFC 2018, 8 and RFC 6675, 4: below, above, empty, and the wrong way round.
    let mut path = Path::flight(false, 0);
    let before = path.cwnd();
    path.wire.wait(RTT);
    path.ack(2, 0, &[(1, 2), (11, 14), (5, 5), (8, 4)]);
    path.wire.wait(RTT / 3);
    assert_eq!(path.sent(), [] as [usize; 0]);
    assert!(path.cwnd() >= before);
}

#[test]
fn a_receiver_that_throws_away_what_it_had_reported_gets_it_again() {
    // RFC 2018, 8: reneging shows when the timeout finds the first segment reported.
    let mut path = Path::flight(true, 0);
    path.wire.wait(RTT);
    let echo = path.echo;
    path.ack(0, echo, &[(1, 10)]);
    assert_eq!(path.sent(), [0]);
    path.wire.wait(millis(50));
    let echo = path.echo;
    path.ack(1, echo, &[]);
    let mut sent = Vec::new();
    while !sent.contains(&9) {
        path.wire.wait_for_timer();
        sent.extend(path.sent());
        let ack = sent.iter().max().map_or(1, |&last| last + 1);
        let echo = path.echo;
        path.ack(ack, echo, &[]);
        sent.extend(path.sent());
    }
    sent.sort_unstable();
    sent.dedup();
    assert_eq!(sent, (1..10).collect::<Vec<_>>());
}

#[test]
fn a_receiver_without_sack_is_told_nothing() {
    // RFC 2018, 2: the option goes only to whom has permitted it.
    let mut wire = Wire::established();
    wire.get(ACK, 11, 1, &[1; 10]).unwrap();
    let (header, _) = wire.sent_one();
    assert_eq!(
        (header.acknowledgement, header.options),
        (IRS + 1, Options::default())
    );
}

#[test]
fn four_blocks_fit_beside_nothing_and_three_beside_timestamps() {
    // RFC 2018, 3.
    for (stamps, blocks) in [(false, 4), (true, 3)] {
        let mut wire = Wire::opening();
        let timestamps = stamps.then_some(Timestamps { value: 1, echo: 0 });
        wire.establish(Options {
            sack_permitted: true,
            timestamps,
            ..Options::default()
        });
        for at in 1..7 {
            let mut header = wire.header(ACK, 1 + at * 20, 1);
            header.options.timestamps = timestamps;
            wire.write(header, &[1; 10]).unwrap();
        }
        // What came at once is more than one acknowledgement reports.
        for (header, _) in wire.sent() {
            assert_eq!(header.options.sack.as_slice().len(), blocks);
        }
    }
}

#[test]
fn every_block_that_came_at_once_is_reported_and_the_latest_last() {
    // RFC 2018, 4: a block that is reported too late looks lost, and then reordered.
    let mut wire = Wire::with_sack();
    for at in 1..=10 {
        wire.get(ACK, 1 + at * 20, 1, &[1; 10]).unwrap();
    }
    let mut reported = Vec::new();
    for (header, _) in wire.sent() {
        let blocks = header.options.sack.as_slice();
        reported.extend(blocks.iter().rev().map(|(left, _)| (left - IRS - 1) / 20));
    }
    reported.dedup();
    let mut seen = reported.clone();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, (1..=10).collect::<Vec<_>>());
    assert_eq!(reported.last(), Some(&10));
}

#[test]
fn what_was_acknowledged_long_ago_and_comes_again_is_reported() {
    // RFC 2883, 4: a duplicate below the acknowledgement.
    let mut wire = Wire::with_sack();
    wire.get(ACK, 1, 1, &[1; 100]).unwrap();
    wire.sent();
    assert!(wire.get(ACK, 1, 1, &[1; 100]).is_err());
    let (header, _) = wire.sent_one();
    assert_eq!(header.acknowledgement, IRS + 101);
    assert_eq!(header.options.sack.as_slice(), [(IRS + 1, IRS + 101)]);
}

// Tail loss probes.

#[test]
fn a_probe_is_new_data_where_there_is_some() {
    // RFC 8985, 7.3.
    let mut path = Path::flight(true, 1);
    let (after, sent) = path.wire.wait_for_segment();
    assert!(after < millis(250), "{after:?}");
    let next = path.wire.iss.wrapping_add(path.at(10));
    assert_eq!((sent.len(), sent[0].0.sequence), (1, next));
}

#[test]
fn a_probe_that_repaired_a_loss_reduces_the_window_and_one_that_did_not_does_not() {
    // RFC 8985, 7.4: the DSACK tells that the original had arrived.
    for needless in [false, true] {
        let mut path = Path::flight(true, 0);
        let (before, original) = (path.cwnd(), path.echo);
        path.wire.wait(RTT);
        path.ack(9, original, &[]);
        let grown = path.cwnd();
        while path.sent() != [9] {
            path.wire.wait_for_timer();
        }
        let probe = path.echo;
        path.wire.wait(RTT);
        if needless {
            path.ack(10, probe, &[(9, 10)]);
            assert!(path.cwnd() >= grown);
        } else {
            path.ack(10, probe, &[]);
            assert!(path.cwnd() < before, "{} of {before}", path.cwnd());
        }
    }
}

// Options.

#[test]
fn a_scale_above_fourteen_counts_as_fourteen() {
    // RFC 7323, 2.3.
    let mut wire = Wire::opening();
    wire.establish(Options {
        window_scale: Some(200),
        ..Options::default()
    });
    wire.window = 2;
    wire.get(ACK, 1, 1, &[]).unwrap();
    assert_eq!(wire.stack.send_window(wire.id), 2 << 14);
}

#[test]
fn the_window_of_a_syn_is_not_scaled() {
    // RFC 7323, 2.2.
    let mut wire = Wire::opening();
    wire.window = 1_000;
    wire.establish(Options {
        window_scale: Some(7),
        ..Options::default()
    });
    assert_eq!(wire.stack.send_window(wire.id), 1_000);
}

#[test]
fn without_an_option_segments_are_as_long_as_every_host_takes() {
    // RFC 9293, 3.7.1.
    let mut wire = Wire::opening();
    wire.establish(Options::default());
    wire.send(1_000);
    assert_eq!(lengths(&mut wire), [536, 464]);
}

#[test]
fn options_take_their_room_from_the_data() {
    // RFC 6691, 2.
    let mut wire = Wire::opening();
    wire.establish(Options {
        maximum_segment_size: Some(1_000),
        timestamps: Some(Timestamps { value: 1, echo: 0 }),
        ..Options::default()
    });
    wire.send(2_000);
    assert_eq!(lengths(&mut wire), [988, 988, 24]);
}

#[test]
fn segments_exceed_neither_our_path_nor_a_tiny_claim_of_the_peer() {
    for (claim, longest) in [(9_000, MSS), (10, 88)] {
        let mut wire = Wire::opening();
        wire.establish(Options {
            maximum_segment_size: Some(claim),
            ..Options::default()
        });
        wire.send(2 * longest);
        assert_eq!(lengths(&mut wire), [longest; 2], "{claim}");
    }
}

/// A connection with timestamps whose peer's clock stands at 1,000.
fn stamped() -> Wire {
    let mut wire = Wire::opening();
    wire.establish(Options {
        timestamps: Some(Timestamps {
            value: 1_000,
            echo: 0,
        }),
        ..Options::default()
    });
    wire
}

fn stamped_header(wire: &Wire, sequence: u32, value: u32) -> Header {
    let mut header = wire.header(ACK, sequence, 1);
    header.options.timestamps = Some(Timestamps { value, echo: 0 });
    header
}

#[test]
fn a_clock_that_may_have_wrapped_is_believed_again() {
    // RFC 7323, 5.5: after 24 days of silence.
    let mut wire = stamped();
    wire.wait(Duration::from_secs(25 * 24 * 60 * 60));
    let header = stamped_header(&wire, 1, 999);
    wire.write(header, b"hello").unwrap();
    assert_eq!(wire.recv(), Received::Bytes(5));
}

#[test]
fn a_reset_needs_no_timestamp() {
    // RFC 7323, 5.2.
    let mut wire = stamped();
    wire.get(RST, 1, 0, &[]).unwrap();
    assert_eq!(wire.stack.close_reason(wire.id), Some(CloseReason::Reset));
}

#[test]
fn the_echo_is_that_of_the_segment_that_moved_the_acknowledgement() {
    // RFC 7323, 4.3: what lies behind a gap is not echoed.
    let mut wire = stamped();
    let header = stamped_header(&wire, 11, 1_010);
    wire.write(header, &[1; 10]).unwrap();
    let echo = |wire: &mut Wire| wire.sent_one().0.options.timestamps.unwrap().echo;
    assert_eq!(echo(&mut wire), 1_000);
    let header = stamped_header(&wire, 1, 1_005);
    wire.write(header, &[1; 10]).unwrap();
    assert_eq!(echo(&mut wire), 1_005);
}

#[test]
fn timestamps_wrap() {
    let mut wire = Wire::opening();
    wire.establish(Options {
        timestamps: Some(Timestamps {
            value: u32::MAX,
            echo: 0,
        }),
        ..Options::default()
    });
    let header = stamped_header(&wire, 1, 3);
    wire.write(header, b"hello").unwrap();
    let header = stamped_header(&wire, 6, u32::MAX - 1);
    assert_eq!(wire.write(header, b"old"), Err(Discard::TcpPaws));
}

// Small segments and small windows.

#[test]
fn nagle_lets_full_segments_go_and_keeps_the_rest_until_all_is_acknowledged() {
    // RFC 9293, 3.7.4.
    let mut wire = Wire::established();
    wire.stack.set_nagle(wire.now, wire.id, true).unwrap();
    wire.send(2 * MSS + 100);
    assert_eq!(lengths(&mut wire), [MSS; 2]);
    wire.get(ACK, 1, 1 + octets(1), &[]).unwrap();
    assert_eq!(lengths(&mut wire), [] as [usize; 0]);
    wire.get(ACK, 1, 1 + octets(2), &[]).unwrap();
    assert_eq!(lengths(&mut wire), [100]);
    // The end of the stream waits for nothing.
    wire.send(10);
    wire.stack.shutdown(wire.now, wire.id);
    wire.expect(&[(FIN_ACK, 101 + octets(2), 1, 10)]);
}

#[test]
fn a_window_that_is_open_a_crack_is_used_only_when_nothing_better_comes() {
    // RFC 9293, 3.8.6.2.1.
    let mut wire = Wire::established();
    wire.window = 100;
    wire.get(ACK, 1, 1, &[]).unwrap();
    wire.send(MSS);
    wire.expect(&[]);
    let (after, sent) = wire.wait_for_segment();
    assert_eq!((after, sent[0].1.len()), (millis(200), 100));
}

#[test]
fn a_window_is_not_announced_by_the_spoonful() {
    // RFC 9293, 3.8.6.2.2.
    let mut config = config(A, 7);
    config.limits.receive_bytes_max = 8_000;
    let mut wire = Wire::opening_with(config);
    wire.establish(Options::default());
    for at in 0..8 {
        wire.get(ACK, 1 + at * 1_000, 1, &[1; 1_000]).unwrap();
        wire.sent();
    }
    let mut spoon = [0; 100];
    for _ in 0..10 {
        wire.stack.recv(wire.now, wire.id, &mut spoon).unwrap();
        wire.expect(&[]);
    }
    assert_eq!(wire.recv(), Received::Bytes(7_000));
    assert_eq!(wire.sent_one().0.window, 8_000);
}

#[test]
fn a_right_edge_that_was_told_stays() {
    // RFC 9293, 3.8.6: shrinking a window is strongly discouraged.
    let mut config = config(A, 7);
    config.limits.receive_bytes_max = 8_000;
    let mut wire = Wire::opening_with(config);
    wire.establish(Options::default());
    let mut edge = 0;
    for at in 0..8 {
        wire.get(ACK, 1 + at * 1_000, 1, &[1; 1_000]).unwrap();
        for (header, _) in wire.sent() {
            let told = header.acknowledgement + u32::from(header.window);
            assert!(told >= edge, "{told} after {edge}");
            edge = told;
        }
    }
    assert_eq!(edge, IRS + 8_001);
}

#[test]
fn a_peer_that_takes_its_window_back_gets_nothing_beyond_it() {
    // RFC 9293, 3.8.6: a sender must be robust against it.
    let mut wire = Wire::established();
    wire.send(20 * MSS);
    assert_eq!(wire.sent().len(), 10);
    wire.window = 1_000;
    wire.get(ACK, 1, 1 + octets(2), &[]).unwrap();
    wire.expect(&[]);
    wire.window = 65_535;
    wire.get(ACK, 1, 1 + octets(10), &[]).unwrap();
    assert_eq!(wire.sent().len(), 10);
}

#[test]
fn a_lost_announcement_of_the_window_is_found_by_the_probe() {
    // RFC 9293, 3.8.6.1.
    let mut wire = Wire::established();
    wire.window = 0;
    wire.get(ACK, 1, 1, &[]).unwrap();
    wire.send(100);
    assert_eq!(wire.wait_for_segment().1.len(), 1);
    wire.window = 1_000;
    wire.get(ACK, 1, 1, &[]).unwrap();
    wire.expect(&[(ACK, 1, 1, 100)]);
}

// Opening and closing.

#[test]
fn what_answers_our_syn_ack_wrongly_is_reset() {
    // RFC 9293, 3.10.7.4: an acknowledgement of what was never sent, in SYN-RECEIVED.
    let (mut stack, now, local) = listening();
    let remote = (address(B, false), 999).into();
    let mut header = Header {
        source_port: 999,
        destination_port: 80,
        sequence: IRS,
        flags: SYN,
        window: 1_000,
        ..Header::default()
    };
    let syn = packet(remote, local, header, &[]);
    stack.handle_packet(now, &syn).unwrap();
    let answer = sent(&mut stack, now).remove(0).0;
    header.flags = ACK;
    header.sequence += 1;
    header.acknowledgement = answer.sequence + 2;
    let wrong = stack.handle_packet(now, &packet(remote, local, header, &[]));
    assert_eq!(wrong, Err(Discard::TcpNoSocket));
    let reset = sent(&mut stack, now).remove(0).0;
    assert_eq!((reset.flags, reset.sequence), (RST, answer.sequence + 2));
    // A reset ends it, and the listener goes on as if nothing had been.
    header.flags = RST;
    stack
        .handle_packet(now, &packet(remote, local, header, &[]))
        .unwrap();
    assert_eq!((stack.connections(), stack.poll_event()), (0, None));
}

#[test]
fn a_syn_that_comes_again_is_answered_again() {
    let (mut stack, now, local) = listening();
    let header = Header {
        source_port: 999,
        destination_port: 80,
        sequence: IRS,
        flags: SYN,
        window: 1_000,
        ..Header::default()
    };
    let syn = packet((address(B, false), 999).into(), local, header, &[]);
    stack.handle_packet(now, &syn).unwrap();
    let first = sent(&mut stack, now).remove(0).0;
    assert!(stack.handle_packet(now, &syn).is_err());
    let second = sent(&mut stack, now).remove(0).0;
    assert_eq!((first.sequence, first.flags), (second.sequence, SYN_ACK));
    assert_eq!(stack.connections(), 1);
}

#[test]
fn data_beside_a_simultaneous_open_arrives_after_it() {
    // RFC 9293, 3.5.
    let mut wire = Wire::opening();
    wire.send(5);
    wire.get(SYN, 0, 0, &[]).unwrap();
    wire.expect(&[(SYN_ACK, 0, 1, 0)]);
    wire.get(SYN_ACK, 0, 1, &[]).unwrap();
    let sent = wire.sent();
    assert!(
        sent.iter().any(|(_, payload)| payload.len() == 5),
        "{sent:?}"
    );
    wire.get(ACK, 1, 6, b"hello").unwrap();
    assert_eq!(wire.recv(), Received::Bytes(5));
}

#[test]
fn a_connection_that_is_given_back_before_it_opened_leaves_no_trace() {
    // RFC 9293, 3.10.4: CLOSE in SYN-SENT.
    let mut wire = Wire::opening();
    wire.stack.release(wire.now, wire.id);
    wire.expect(&[]);
    assert_eq!(wire.stack.connections(), 0);
    assert_eq!(wire.get(SYN_ACK, 0, 1, &[]), Err(Discard::TcpNoSocket));
    wire.expect(&[(RST, 1, 0, 0)]);
}

#[test]
fn a_shutdown_before_the_answer_waits_for_it() {
    let mut wire = Wire::opening();
    wire.send(10);
    wire.stack.shutdown(wire.now, wire.id);
    wire.expect(&[]);
    wire.get(SYN_ACK, 0, 1, &[]).unwrap();
    wire.expect(&[(FIN_ACK, 1, 1, 10)]);
    assert_eq!(wire.stack.poll_event(), Some(Event::Connected(wire.id)));
    assert_eq!(wire.state(), State::FinWait1);
}

#[test]
fn what_was_sent_before_the_close_goes_first_and_the_last_segment_carries_the_fin() {
    let mut wire = Wire::with_sack();
    wire.send(15 * MSS);
    wire.stack.release(wire.now, wire.id);
    let first = wire.sent();
    assert!(first.iter().all(|(header, _)| header.flags.has(ACK)));
    assert_eq!(first.len(), 10);
    wire.get(ACK, 1, 1 + octets(10), &[]).unwrap();
    let last = wire.sent();
    let flags: Vec<_> = last
        .iter()
        .map(|(header, _)| header.flags.has(FIN_ACK))
        .collect();
    assert_eq!(flags, [false, false, false, false, true]);
}

#[test]
fn a_fin_that_is_lost_goes_again_from_every_state_that_waits_for_it() {
    // RFC 9293, 3.10.8.
    for first in [true, false] {
        let mut wire = Wire::established();
        let rcv = if first { 1 } else { 2 };
        if !first {
            wire.get(FIN_ACK, 1, 1, &[]).unwrap();
        }
        wire.stack.shutdown(wire.now, wire.id);
        wire.sent();
        for gap in [200, 400, 800] {
            let (after, sent) = wire.wait_for_segment();
            let header = sent[0].0;
            assert_eq!((after, header.flags), (millis(gap), FIN_ACK));
            assert_eq!(header.acknowledgement, IRS + rcv);
        }
        wire.get(ACK, rcv, 2, &[]).unwrap();
        let expected = if first {
            State::FinWait2
        } else {
            State::Closed
        };
        assert_eq!(wire.state(), expected);
    }
}

#[test]
fn of_a_simultaneous_close_the_second_half_may_be_lost() {
    // RFC 9293, 3.6, figure 13: both FINs cross, and one acknowledgement does not arrive.
    let mut wire = Wire::established();
    wire.stack.shutdown(wire.now, wire.id);
    wire.expect(&[(FIN_ACK, 1, 1, 0)]);
    wire.get(FIN_ACK, 1, 1, &[]).unwrap();
    wire.expect(&[(ACK, 2, 2, 0)]);
    // Our FIN goes again, and the peer's comes again because our acknowledgement was lost.
    let (_, again) = wire.wait_for_segment();
    assert_eq!(
        (again[0].0.flags, again[0].0.sequence),
        (FIN_ACK, wire.iss + 1)
    );
    assert!(wire.get(FIN_ACK, 1, 2, &[]).is_err());
    wire.expect(&[(ACK, 2, 2, 0)]);
    assert_eq!(
        wire.state(),
        State::Closing,
        "a segment out of order tells nothing"
    );
    wire.get(ACK, 2, 2, &[]).unwrap();
    assert_eq!(wire.state(), State::TimeWait);
}

#[test]
fn behind_the_end_of_the_stream_there_is_nothing() {
    let mut wire = Wire::established();
    wire.get(FIN_ACK, 1, 1, b"end").unwrap();
    assert_eq!(wire.recv(), Received::Bytes(3));
    assert_eq!(wire.recv(), Received::End);
    wire.sent();
    let _refused = wire.get(ACK, 5, 1, b"more");
    assert_eq!(wire.recv(), Received::End);
    assert_eq!(wire.sent_one().0.acknowledgement, IRS + 5);
}

// Patience.

#[test]
fn progress_begins_the_user_timeout_anew() {
    // RFC 5482, 1: it bounds how long sent data may stay without acknowledgement.
    let mut wire = Wire::established();
    let timeout = Duration::from_secs(20);
    wire.stack
        .set_user_timeout(wire.now, wire.id, timeout)
        .unwrap();
    wire.send(100);
    wire.sent();
    let wait = |wire: &mut Wire, seconds| {
        let end = wire.now + Duration::from_secs(seconds);
        while wire.stack.poll_timeout().is_some_and(|at| at <= end) {
            wire.wait_for_timer();
            wire.sent();
        }
        wire.wait(end - wire.now);
    };
    wait(&mut wire, 19);
    wire.get(ACK, 1, 51, &[]).unwrap();
    wait(&mut wire, 19);
    assert_eq!(wire.state(), State::Established);
    wait(&mut wire, 2);
    let reason = wire.stack.close_reason(wire.id);
    assert_eq!(reason, Some(CloseReason::TimedOut));
}

#[test]
fn nobody_is_asked_for_life_while_data_is_on_its_way() {
    // RFC 9293, 3.8.4: the questions are for an idle connection.
    let mut wire = Wire::established();
    let interval = Some(Duration::from_secs(1));
    wire.stack
        .set_keepalive(wire.now, wire.id, interval)
        .unwrap();
    wire.send(10);
    wire.sent();
    let end = wire.now + Duration::from_secs(10);
    while wire.now < end {
        for (header, payload) in wire.wait_for_segment().1 {
            assert_eq!((header.sequence, payload.len()), (wire.iss + 1, 10));
        }
    }
    wire.get(ACK, 1, 11, &[]).unwrap();
    let (after, sent) = wire.wait_for_segment();
    assert_eq!(
        (after, sent[0].0.sequence),
        (Duration::from_secs(1), wire.iss + 10)
    );
}

// The path.

#[test]
fn a_path_never_widens_by_an_error() {
    // RFC 8201, 4.
    let mut wire = Wire::established();
    wire.send(MSS);
    wire.sent();
    let error = quote(&wire, Cause::PacketTooBig { mtu: 9_000 }, 1);
    wire.stack.handle_packet(wire.now, &error).unwrap();
    wire.expect(&[]);
    let error = quote(&wire, Cause::PacketTooBig { mtu: 1_000 }, 1);
    wire.stack.handle_packet(wire.now, &error).unwrap();
    assert_eq!(lengths(&mut wire), [960, 420]);
    let error = quote(&wire, Cause::PacketTooBig { mtu: 1_200 }, 1);
    wire.stack.handle_packet(wire.now, &error).unwrap();
    wire.get(ACK, 1, 1 + octets(1), &[]).unwrap();
    wire.send(MSS);
    assert_eq!(lengths(&mut wire), [960, 420]);
}
