//! Packet traces of loss recovery that proves needless, and of one that does not.

use std::time::Duration;

use packet::tcp::{Options, Timestamps};

use super::scenario::{ACK, MSS, Wire, millis};

pub(super) const RTT: Duration = Duration::from_millis(100);

/// A connection with SACK over 100 ms, whose segments carry `length` octets.
pub(super) struct Path {
    pub(super) wire: Wire,
    length: usize,
    stamps: bool,
    /// The timestamp of our latest transmission that the peer has acknowledged in order.
    pub(super) echo: u32,
}

impl Path {
    pub(super) fn new(stamps: bool) -> Self {
        let mut wire = Wire::opening();
        wire.wait(RTT);
        wire.establish(Options {
            maximum_segment_size: Some(1380),
            sack_permitted: true,
            timestamps: stamps.then_some(Timestamps { value: 1, echo: 0 }),
            ..Options::default()
        });
        Self {
            wire,
            length: MSS - if stamps { 12 } else { 0 },
            stamps,
            echo: 0,
        }
    }

    /// Sends ten segments, and `more` that wait for the window.
    pub(super) fn flight(stamps: bool, more: usize) -> Self {
        let mut path = Self::new(stamps);
        path.wire.send((10 + more) * path.length);
        assert_eq!(path.sent(), (0..10).collect::<Vec<_>>());
        path
    }

    pub(super) fn at(&self, segment: usize) -> u32 {
        1 + u32::try_from(segment * self.length).unwrap()
    }

    /// Numbers of the segments that go out now; the last timestamp among them is the next echo.
    pub(super) fn sent(&mut self) -> Vec<usize> {
        let sent = self.wire.sent();
        let iss = self.wire.iss;
        let number = |sequence: u32| usize::try_from(sequence.wrapping_sub(iss + 1)).unwrap();
        sent.iter()
            .map(|(header, payload)| {
                assert_eq!(payload.len(), self.length);
                if let Some(stamps) = header.options.timestamps {
                    self.echo = stamps.value;
                }
                number(header.sequence) / self.length
            })
            .collect()
    }

    /// An acknowledgement of all segments before `ack`, with SACK blocks of segments.
    pub(super) fn ack(&mut self, ack: usize, echo: u32, blocks: &[(usize, usize)]) {
        let mut header = self.wire.header(ACK, 1, self.at(ack));
        header.options.timestamps = self.stamps.then_some(Timestamps { value: 2, echo });
        for &(from, to) in blocks {
            let at = |segment| self.wire.iss.wrapping_add(self.at(segment));
            header.options.sack.push(at(from), at(to));
        }
        self.wire.write(header, &[]).unwrap();
    }

    pub(super) fn cwnd(&self) -> u32 {
        self.wire.stack.cwnd(self.wire.id)
    }
}

#[test]
fn a_fast_retransmission_that_overtook_nothing_but_a_late_segment_is_taken_back() {
    // RFC 3522, 3.2 and RFC 4015: the echo is that of the original.
    let mut path = Path::flight(true, 0);
    let (before, original) = (path.cwnd(), path.echo);
    path.wire.wait(RTT);
    path.ack(0, original, &[(1, 4)]);
    assert_eq!(path.sent(), [0]);
    assert!(path.cwnd() < before);
    path.wire.wait(millis(10));
    path.ack(4, original, &[]);
    assert!(path.cwnd() >= before, "{} of {before}", path.cwnd());
    assert_eq!(path.sent(), [] as [usize; 0]);
}

#[test]
fn a_fast_retransmission_that_was_needed_is_not_taken_back() {
    let mut path = Path::flight(true, 0);
    let (before, original) = (path.cwnd(), path.echo);
    path.wire.wait(RTT);
    path.ack(0, original, &[(1, 4)]);
    assert_eq!(path.sent(), [0]);
    let retransmission = path.echo;
    assert_ne!(original, retransmission);
    path.wire.wait(RTT);
    path.ack(10, retransmission, &[]);
    assert!(path.cwnd() < before, "{} of {before}", path.cwnd());
}

#[test]
fn reordering_that_was_taken_for_loss_is_waited_for_the_next_time() {
    // RFC 8985, 6.2, step 4: a quarter of the round-trip time, or more where DSACKs tell so.
    let mut path = Path::flight(true, 10);
    let original = path.echo;
    path.wire.wait(RTT);
    path.ack(0, original, &[(1, 4)]);
    assert_eq!(path.sent(), [0]);
    path.ack(10, original, &[]);
    let mut sent = path.sent();
    while !sent.contains(&11) {
        path.wire.wait_for_timer();
        sent.extend(path.sent());
    }
    let original = path.echo;
    path.wire.wait(millis(99));
    path.ack(10, original, &[(11, 12)]);
    assert!(!path.sent().contains(&10), "waits a while");
    path.wire.wait(millis(30));
    assert!(path.sent().contains(&10), "and not for ever");
}

#[test]
fn what_a_duplicate_adds_does_not_shrink_with_the_fastest_answer() {
    // RFC 8985, 6.2, step 4, but by the smoothed round-trip time: here the smallest is 1 ms.
    let mut path = Path::flight(false, 20);
    path.wire.wait(millis(1));
    path.ack(1, 0, &[]);
    assert_eq!(path.sent(), [10]);
    path.wire.wait(RTT);
    path.ack(1, 0, &[(2, 5)]);
    assert_eq!(path.sent(), [1]);
    path.ack(11, 0, &[(1, 2)]);
    let mut sent = path.sent();
    while !sent.contains(&12) {
        path.wire.wait_for_timer();
        sent.extend(path.sent());
    }
    path.wire.wait(millis(99));
    path.ack(11, 0, &[(12, 13)]);
    path.wire.wait(millis(5));
    assert!(
        !path.sent().contains(&11),
        "a millisecond is not the measure"
    );
    path.wire.wait(RTT);
    assert!(path.sent().contains(&11), "and not for ever");
}

#[test]
fn a_duplicate_of_every_retransmission_takes_the_reduction_back() {
    // Without timestamps, by DSACK (RFC 3708).
    let mut path = Path::flight(false, 0);
    let before = path.cwnd();
    path.wire.wait(RTT);
    path.ack(0, 0, &[(2, 5)]);
    assert_eq!(path.sent(), [0, 1]);
    path.ack(10, 0, &[]);
    path.wire.wait(RTT);
    path.ack(10, 0, &[(0, 1)]);
    assert!(path.cwnd() < before, "the second may have been lost");
    path.ack(10, 0, &[(1, 2)]);
    assert!(path.cwnd() >= before, "{} of {before}", path.cwnd());
}

#[test]
fn a_duplicate_that_the_network_made_takes_nothing_back() {
    let mut path = Path::flight(false, 0);
    let before = path.cwnd();
    path.wire.wait(RTT);
    path.ack(0, 0, &[(1, 4)]);
    assert_eq!(path.sent(), [0]);
    path.ack(10, 0, &[(2, 3)]);
    assert!(path.cwnd() < before, "{} of {before}", path.cwnd());
}

/// Waits for the timeout, over the tail loss probe before it.
fn time_out(path: &mut Path) {
    while path.sent() != [0] {
        path.wire.wait_for_timer();
    }
}

#[test]
fn a_timeout_that_was_too_short_is_taken_back_by_the_echo() {
    let mut path = Path::flight(true, 4);
    let (before, original) = (path.cwnd(), path.echo);
    time_out(&mut path);
    assert!(path.cwnd() < before);
    path.wire.wait(millis(1));
    path.ack(2, original, &[]);
    assert!(path.cwnd() >= before, "{} of {before}", path.cwnd());
    let sent = path.sent();
    assert!(
        sent.iter().all(|&segment| segment > 9),
        "nothing that is on its way goes out again: {sent:?}"
    );
}

#[test]
fn after_a_timeout_without_timestamps_new_data_goes_out_and_its_answer_decides() {
    // RFC 5682, 3.1. The probe took segment 10.
    let mut path = Path::flight(false, 10);
    let before = path.cwnd();
    time_out(&mut path);
    path.wire.wait(millis(1));
    path.ack(1, 0, &[]);
    assert_eq!(path.sent(), [11, 12], "step 2b");
    path.ack(2, 0, &[]);
    assert!(
        path.cwnd() >= before,
        "step 3b: {} of {before}",
        path.cwnd()
    );
    assert!(path.sent().iter().all(|&segment| segment > 12));
}

#[test]
fn a_timeout_that_was_needed_repeats_what_was_lost() {
    let mut path = Path::flight(false, 10);
    let before = path.cwnd();
    time_out(&mut path);
    path.wire.wait(RTT);
    path.ack(1, 0, &[]);
    assert_eq!(path.sent(), [11, 12], "step 2b");
    path.wire.wait(RTT);
    path.ack(1, 0, &[(11, 12)]);
    assert!(path.cwnd() < before, "step 3a: the timeout was right");
    assert_eq!(path.sent()[0], 1);
}

#[test]
fn a_timeout_with_nothing_new_to_send_repeats_what_was_lost_at_once() {
    let mut path = Path::flight(false, 0);
    time_out(&mut path);
    path.wire.wait(RTT);
    path.ack(1, 0, &[]);
    assert_eq!(path.sent()[0], 1);
}
