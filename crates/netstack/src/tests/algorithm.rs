//! What each congestion control reaches, alone and beside others, kept as golden tables.

use std::{fmt::Write, time::Duration};

use super::{
    golden::two_digits,
    pair::{A, B, Link, Pair},
};
use crate::{CongestionControl, ConnectionId, Received};

/// The bottleneck: 100 Mbit/s with a queue of 500 kB.
const RATE: (u64, u64) = (12_500_000, 500_000);

const CONTROLS: [CongestionControl; 2] = [CongestionControl::Cubic, CongestionControl::Bbr];

/// Streams from A to B that always have something to send.
struct Streams {
    pair: Pair,
    ids: Vec<[ConnectionId; 2]>,
    received: Vec<u64>,
    data: Vec<u8>,
    buffer: Vec<u8>,
}

impl Streams {
    fn new(seed: u64, link: Link, controls: &[CongestionControl]) -> Self {
        let mut pair = Pair::new(seed, link);
        let (listener, remote) = pair.listen(true);
        let ids = controls.iter().map(|&control| {
            pair.stacks[A].set_default_congestion_control(control);
            let a = pair.stacks[A].connect(pair.now, remote).unwrap();
            loop {
                if let Some(b) = pair.stacks[B].accept(listener) {
                    pair.watched = [Some(a), Some(b)];
                    return [a, b];
                }
                assert!(pair.step(), "the handshake stalled");
            }
        });
        let ids: Vec<_> = ids.collect();
        Self {
            received: vec![0; ids.len()],
            pair,
            ids,
            data: vec![7; 1 << 18],
            buffer: vec![0; 1 << 18],
        }
    }

    /// Goes on for so long and returns what each stream has received in that time.
    fn run_for(&mut self, duration: Duration) -> Vec<u64> {
        let before = self.received.clone();
        let end = self.pair.now + duration;
        while self.pair.now < end {
            for (&[a, b], received) in self.ids.iter().zip(&mut self.received) {
                let now = self.pair.now;
                while self.pair.stacks[A].send(now, a, &self.data).unwrap() > 0 {}
                while let Received::Bytes(length) =
                    self.pair.stacks[B].recv(now, b, &mut self.buffer).unwrap()
                {
                    *received += u64::try_from(length).unwrap();
                }
            }
            assert!(self.pair.step(), "stalled");
        }
        let after = self.received.iter().zip(before);
        after.map(|(after, before)| after - before).collect()
    }
}

fn mbits(octets: u64, duration: Duration) -> f64 {
    f64::from(u32::try_from(octets).unwrap()) * 8e-6 / duration.as_secs_f64()
}

fn link(loss: u64, rtt: u64) -> Link {
    Link {
        delay: Duration::from_micros(rtt * 500),
        loss,
        rate: Some(RATE),
        ..Link::default()
    }
}

/// Median of some seeds, from the first SYN on.
fn goodput(link: Link, control: CongestionControl) -> f64 {
    let duration = Duration::from_secs(8);
    let seeds = if link.loss == 0 { 1 } else { 3 };
    let mut rates: Vec<_> = (0..seeds)
        .map(|seed| {
            let mut streams = Streams::new(seed, link, &[control]);
            mbits(streams.run_for(duration)[0], duration)
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

#[test]
fn every_algorithm_reaches_what_it_reached_at_each_loss_and_distance() {
    let mut table = String::new();
    for control in CONTROLS {
        writeln!(table, "{control:?}: Mbit/s").unwrap();
        writeln!(table, "loss      20 ms   50 ms  100 ms").unwrap();
        for loss in [0, 1, 10, 30, 100] {
            let percent = format!("{}.{} %", loss / 10, loss % 10);
            write!(table, "{percent:<7}").unwrap();
            for rtt in [20, 50, 100] {
                let cell = two_digits(goodput(link(loss, rtt), control));
                write!(table, "{cell:>8}").unwrap();
            }
            table.push('\n');
        }
        table.push('\n');
    }
    insta::assert_snapshot!("algorithms", table);
}

#[test]
fn bbr_leaves_cubic_more_than_half_of_its_fair_share() {
    use CongestionControl::{Bbr, Cubic};
    // Who wins a queue is a matter of luck for minutes, so several beginnings count.
    let (mut all, mut cubic) = (0, 0);
    for seed in 1..=8 {
        let mut streams = Streams::new(seed, link(0, 50), &[Cubic, Cubic, Cubic, Cubic, Bbr]);
        streams.run_for(Duration::from_secs(10));
        let got = streams.run_for(Duration::from_secs(30));
        all += got.iter().sum::<u64>();
        cubic += got[..4].iter().sum::<u64>();
    }
    // Four of five streams: half of four fifths.
    assert!(cubic * 5 > all * 2, "{cubic} of {all}");
}

#[test]
fn long_segments_that_vanish_without_a_word_become_shorter_and_the_path_is_used_in_full() {
    // RFC 8899, 4.3: an underlay below 1280 bytes, and a firewall that drops every ICMP error.
    for control in CONTROLS {
        let link = Link {
            passes: 1_100,
            ..link(0, 20)
        };
        let mut streams = Streams::new(1, link, &[control]);
        streams.run_for(Duration::from_secs(5));
        let duration = Duration::from_secs(10);
        let rate = mbits(streams.run_for(duration)[0], duration);
        // 952 of 1,024 octets of a packet are data.
        assert!(rate > 0.9 * 100.0 * 952.0 / 1024.0, "{control:?}: {rate}");
    }
}

#[test]
fn a_path_that_was_broken_for_a_while_gets_its_long_segments_back() {
    let mut shortened = 0;
    for control in CONTROLS {
        let mut streams = Streams::new(1, link(0, 20), &[control]);
        streams.run_for(Duration::from_secs(1));
        streams.pair.link.loss = 1_000;
        streams.run_for(Duration::from_secs(10));
        streams.pair.link.loss = 0;
        streams.run_for(Duration::from_secs(4));
        streams.pair.longest = 0;
        streams.run_for(Duration::from_millis(100));
        shortened += u32::from(streams.pair.longest < 1_420);
        streams.run_for(Duration::from_secs(30));
        streams.pair.longest = 0;
        let duration = Duration::from_secs(10);
        let rate = mbits(streams.run_for(duration)[0], duration);
        assert_eq!(streams.pair.longest, 1_420);
        assert!(rate > 85.0, "{control:?}: {rate}");
    }
    assert!(shortened > 0, "the test shall be a test");
}
