//! Congestion window validation (RFC 7661): what a window is worth that is not used.

use std::time::Duration;

use packet::tcp::Options;

use super::{
    pair::{A, B, Link, Pair, Seeded},
    recovery::RTT,
    scenario::{ACK, MSS, Wire, millis},
};
use crate::{CongestionControl, Received};

/// How long a window that is not used is kept (RFC 7661, 5).
const PERIOD: Duration = Duration::from_secs(300);

/// A sender in slow start over 100 ms that counts in segments.
struct Sender {
    wire: Wire,
    /// Segments that were transmitted, and that the peer has acknowledged.
    sent: usize,
    acknowledged: usize,
}

impl Sender {
    fn new() -> Self {
        let mut wire = Wire::opening();
        wire.wait(RTT);
        wire.establish(Options {
            maximum_segment_size: Some(1380),
            window_scale: Some(7),
            sack_permitted: true,
            ..Options::default()
        });
        Self {
            wire,
            sent: 0,
            acknowledged: 0,
        }
    }

    /// The same with a window of 80 segments and more, all of it in use until now.
    fn grown() -> Self {
        let mut sender = Self::new();
        while sender.cwnd() < 80 {
            let window = sender.cwnd();
            sender.round(window);
        }
        sender
    }

    fn octets(&self) -> u32 {
        self.wire.stack.cwnd(self.wire.id)
    }

    /// The congestion window in full segments.
    fn cwnd(&self) -> usize {
        usize::try_from(self.octets()).unwrap() / MSS
    }

    fn ssthresh(&self) -> Option<u32> {
        self.wire.stack.statistics(self.wire.id).unwrap().ssthresh
    }

    /// Sends so many segments as fast as window and pace allow.
    fn burst(&mut self, segments: usize) {
        self.wire.send(segments * MSS);
        let all = self.sent + segments;
        for _ in 0..90 {
            self.sent += self.wire.sent().len();
            if self.sent == all {
                break;
            }
            self.wire.wait(millis(1));
        }
    }

    /// Acknowledges so many segments of those that were sent.
    fn ack(&mut self, segments: usize) {
        self.acknowledged += segments;
        let ack = self.at(self.acknowledged);
        self.wire.get(ACK, 1, ack, &[]).unwrap();
    }

    /// Reports that all from one segment on but `from` itself have arrived.
    fn lose(&mut self, from: usize) {
        let mut header = self.wire.header(ACK, 1, self.at(from));
        let edge = |segment| self.wire.iss.wrapping_add(self.at(segment));
        header.options.sack.push(edge(from + 1), edge(self.sent));
        self.wire.write(header, &[]).unwrap();
    }

    fn at(&self, segment: usize) -> u32 {
        1 + u32::try_from(segment * MSS).unwrap()
    }

    /// A burst, and a round-trip time later its acknowledgement.
    fn round(&mut self, segments: usize) {
        self.burst(segments);
        self.wire.wait(RTT);
        self.ack(self.sent - self.acknowledged);
    }
}

fn octets(segments: usize) -> u32 {
    u32::try_from(segments * MSS).unwrap()
}

#[test]
fn a_window_is_validated_until_something_is_measured() {
    // RFC 7661, 4.1 and 4.2: pipeACK is undefined.
    let mut sender = Sender::new();
    let pipe_ack = |sender: &Sender| sender.wire.stack.pipe_ack(sender.wire.id);
    assert_eq!(pipe_ack(&sender), None);
    assert!(sender.wire.stack.is_validated(sender.wire.id));
    sender.round(7);
    assert_eq!(pipe_ack(&sender), Some(octets(7)));
}

#[test]
fn pipe_ack_is_the_most_of_a_round_trip_time_within_the_sampling_period() {
    // RFC 7661, 4.2: max(3 RTT, 1 s).
    let mut sender = Sender::new();
    sender.round(9);
    for _ in 0..4 {
        sender.round(2);
        let pipe_ack = sender.wire.stack.pipe_ack(sender.wire.id);
        assert_eq!(pipe_ack, Some(octets(9)));
    }
    for _ in 0..10 {
        sender.round(2);
    }
    let pipe_ack = sender.wire.stack.pipe_ack(sender.wire.id);
    assert_eq!(pipe_ack, Some(octets(2)));
}

#[test]
fn less_than_half_of_a_window_in_use_leaves_the_validated_phase_and_half_returns_to_it() {
    // RFC 7661, 4.3.
    let mut sender = Sender::grown();
    let window = sender.cwnd();
    for _ in 0..20 {
        sender.round(window / 2 - 2);
    }
    assert!(!sender.wire.stack.is_validated(sender.wire.id));
    sender.round(window / 2 + 1);
    assert!(sender.wire.stack.is_validated(sender.wire.id));
}

#[test]
fn a_window_that_is_not_validated_does_not_grow() {
    // RFC 7661, 4.4: not even while a burst after a pause fills it.
    let mut sender = Sender::grown();
    let (before, window) = (sender.octets(), sender.cwnd());
    sender.wire.wait(Duration::from_secs(10));
    sender.burst(window + 20);
    assert_eq!(sender.sent - sender.acknowledged, window, "it was kept");
    for _ in 0..window / 2 - 1 {
        sender.ack(1);
        assert_eq!(sender.octets(), before);
    }
    // By now half of it has arrived in one round-trip time.
    sender.ack(4);
    assert!(sender.octets() > before);
}

#[test]
fn a_burst_after_a_pause_is_spread_over_the_round_trip_time() {
    // RFC 7661, 4.4.2.
    let mut sender = Sender::grown();
    let window = sender.cwnd();
    sender.wire.wait(Duration::from_secs(10));
    sender.wire.send(window * MSS);
    let at_once = sender.wire.sent().len();
    assert!(at_once <= 6, "{at_once} of {window}");
}

#[test]
fn a_window_that_is_not_used_is_kept_for_five_minutes_and_then_halved_step_by_step() {
    // RFC 7661, 4.4.3 and 5.
    for (periods, halved) in [(0, 0), (1, 1), (2, 2), (3, 3), (12, 12)] {
        let mut sender = Sender::grown();
        let before = sender.octets();
        sender.wire.wait(Duration::from_secs(1));
        assert_eq!(sender.wire.stack.poll_timeout(), None, "nothing waits");
        let rest = Duration::from_secs(200);
        sender.wire.wait(PERIOD * periods + rest);
        sender.burst(1);
        let initial = octets(10);
        assert_eq!(
            sender.octets(),
            (before >> halved).max(initial),
            "{periods}"
        );
        // The same again is not over before another five minutes.
        sender.round(1);
        assert_eq!(
            sender.octets(),
            (before >> halved).max(initial),
            "{periods}"
        );
    }
}

#[test]
fn ssthresh_remembers_three_quarters_of_the_window_that_was_given_up() {
    // RFC 7661, 4.4.3.
    let mut sender = Sender::grown();
    let window = sender.cwnd();
    sender.burst(window);
    sender.wire.wait(RTT);
    let from = sender.acknowledged;
    sender.lose(from);
    sender.wire.sent();
    sender.wire.wait(RTT);
    let outstanding = sender.sent - from;
    sender.ack(outstanding);
    let (cwnd, ssthresh) = (sender.octets(), sender.ssthresh());
    assert_eq!(ssthresh, Some(cwnd));
    sender.wire.wait(PERIOD * 2);
    sender.burst(1);
    assert_eq!(sender.octets(), (cwnd / 4).max(octets(10)));
    assert_eq!(sender.ssthresh(), Some(cwnd), "the larger of both");
}

#[test]
fn a_sender_that_uses_little_gives_its_window_up_as_well() {
    // RFC 7661, 4.4.3: the period is that of the phase, whether something is sent or not.
    let mut sender = Sender::grown();
    let before = sender.octets();
    let end = sender.wire.now + Duration::from_secs(290);
    while sender.wire.now < end {
        sender.round(1);
        sender.wire.wait(Duration::from_secs(1));
    }
    assert_eq!(sender.octets(), before);
    let end = sender.wire.now + Duration::from_secs(20);
    while sender.wire.now < end {
        sender.round(1);
        sender.wire.wait(Duration::from_secs(1));
    }
    assert_eq!(sender.octets(), before / 2);
}

#[test]
fn a_loss_of_what_was_sent_into_an_unused_window_leaves_half_of_what_arrived() {
    // RFC 7661, 4.4.1: (max(pipeACK, LossFlightSize) - R) / 2.
    let mut sender = Sender::grown();
    sender.wire.wait(Duration::from_secs(10));
    sender.burst(20);
    sender.wire.wait(RTT);
    let from = sender.acknowledged;
    sender.lose(from);
    assert_eq!(
        sender.ssthresh(),
        Some(octets(10)),
        "half of LossFlightSize"
    );
    assert!(sender.cwnd() <= 20, "{}", sender.cwnd());
    assert_eq!(sender.wire.sent().len(), 1, "R is one segment");
    sender.wire.wait(RTT);
    sender.ack(20);
    assert_eq!(sender.octets(), (octets(20) - octets(1)) / 2);
    let id = sender.wire.id;
    assert_eq!(sender.wire.stack.pipe_ack(id), None, "undefined again");
    assert!(sender.wire.stack.is_validated(id));
}

#[test]
fn what_had_arrived_before_the_loss_counts_as_used_too() {
    // RFC 7661, 4.4.1: pipeACK is larger than LossFlightSize.
    let mut sender = Sender::grown();
    for _ in 0..20 {
        sender.round(16);
    }
    sender.burst(6);
    sender.wire.wait(RTT);
    let from = sender.acknowledged;
    sender.lose(from);
    assert_eq!(sender.ssthresh(), Some(octets(8)), "half of pipeACK");
}

#[test]
fn a_timeout_in_an_unused_window_begins_with_one_segment() {
    // RFC 7661, 4.4, and RFC 5681, 3.1.
    let mut sender = Sender::grown();
    sender.wire.wait(Duration::from_secs(10));
    sender.burst(20);
    while sender.cwnd() != 1 {
        sender.wire.wait_for_timer();
        sender.wire.sent();
    }
    // What was in flight counts and not the window (RFC 9438, 4.6).
    assert!(
        sender.ssthresh() <= Some(octets(14)),
        "{:?}",
        sender.ssthresh()
    );
    assert!(sender.wire.stack.is_validated(sender.wire.id));
}

#[test]
fn time_in_which_the_window_is_not_used_does_not_count_for_its_growth() {
    // RFC 9438, 5.8.
    let mut sender = Sender::grown();
    let window = sender.cwnd();
    sender.burst(window);
    sender.wire.wait(RTT);
    let from = sender.acknowledged;
    sender.lose(from);
    sender.wire.sent();
    sender.wire.wait(RTT);
    let outstanding = sender.sent - from;
    sender.ack(outstanding);
    let window = sender.cwnd();
    for _ in 0..3 {
        sender.round(window + 1);
    }
    let before = sender.octets();
    // A minute later the curve would be far beyond.
    for _ in 0..60 {
        sender.round(1);
        sender.wire.wait(Duration::from_secs(1));
    }
    assert_eq!(sender.octets(), before);
    let window = sender.cwnd();
    for _ in 0..2 {
        sender.round(window + 1);
    }
    let grown = sender.octets() - before;
    assert!(grown <= before / 8, "{grown} of {before}");
}

#[test]
fn bbr_validates_by_its_own_means() {
    let mut sender = Sender::new();
    let (now, id) = (sender.wire.now, sender.wire.id);
    let bbr = CongestionControl::Bbr;
    let set = sender.wire.stack.set_congestion_control(now, id, bbr);
    assert!(set.is_ok());
    for _ in 0..4 {
        sender.round(10);
    }
    let before = sender.octets();
    sender.wire.wait(PERIOD * 4);
    sender.burst(1);
    assert_eq!(sender.octets(), before);
}

#[test]
fn a_control_that_is_changed_back_and_forth_knows_nothing_of_what_is_in_flight() {
    let mut sender = Sender::new();
    let (now, id) = (sender.wire.now, sender.wire.id);
    let set = |sender: &mut Sender, control| {
        let set = sender.wire.stack.set_congestion_control(now, id, control);
        assert!(set.is_ok());
    };
    set(&mut sender, CongestionControl::Bbr);
    sender.round(10);
    sender.burst(10);
    set(&mut sender, CongestionControl::Cubic);
    set(&mut sender, CongestionControl::Bbr);
    sender.wire.wait(RTT);
    // Less than had been delivered before.
    sender.ack(4);
    sender.ack(6);
    assert_eq!(sender.wire.stack.statistics(id).unwrap().in_flight, 0);
}

/// An application that writes bursts of any size with pauses of any length.
fn pauses_and_bursts(seed: u64, link: Link) -> u64 {
    let mut pair = Pair::new(seed, link);
    let [a, b] = pair.connect(true);
    let mut random = Seeded(seed ^ 0x7661);
    let (mut sent, mut received, mut kept) = (0, 0, 0);
    for _ in 0..60 {
        let length = 1 << random.below(20);
        let now = pair.now;
        sent += pair.stacks[A].send(now, a, &vec![7; length]).unwrap();
        let longest = 1 << random.below(20);
        let end = pair.now + millis(random.below(longest));
        while !pair.is_silent() && pair.now < end {
            let before = pair.stacks[A].cwnd(a);
            let held = pair.stacks[A].is_validated(a);
            let open = !pair.stacks[A].is_recovering(a);
            pair.step();
            let stack = &pair.stacks[A];
            let grown = open && !stack.is_recovering(a) && stack.cwnd(a) > before;
            let used = stack.pipe_ack(a);
            assert!(!grown || stack.is_validated(a), "{seed}");
            assert!(
                !grown || held || used.is_none_or(|used| used >= before / 2),
                "{seed}: from {before} to {} with {used:?} in use",
                stack.cwnd(a)
            );
            kept += u64::from(!stack.is_validated(a));
            let mut buffer = [0; 10_000];
            let now = pair.now;
            while let Received::Bytes(length) = pair.stacks[B].recv(now, b, &mut buffer).unwrap() {
                received += length;
            }
        }
        pair.now = pair.now.max(end);
        if pair.is_silent() {
            assert_eq!(pair.stacks[A].poll_timeout(), None, "no timer while idle");
        }
    }
    while pair.step() {
        let mut buffer = [0; 10_000];
        let now = pair.now;
        while let Received::Bytes(length) = pair.stacks[B].recv(now, b, &mut buffer).unwrap() {
            received += length;
        }
    }
    assert_eq!(received, sent, "{seed}");
    kept
}

#[test]
fn a_window_never_grows_while_an_application_uses_less_than_half_of_it() {
    let mut kept = 0;
    for seed in 0..40 {
        let link = Link {
            delay: millis(5 + 5 * (seed % 20)),
            rate: (seed % 2 == 0).then_some((12_500_000, 500_000)),
            loss: if seed % 4 < 2 { 0 } else { 5 },
            ..Link::default()
        };
        kept += pauses_and_bursts(seed, link);
    }
    assert!(kept > 1_000, "the phase was visited: {kept}");
}
