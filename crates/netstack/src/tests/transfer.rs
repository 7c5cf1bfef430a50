//! Streams over bad links: every byte arrives, in order and once.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{
    pair::{A, B, Link, Pair, Seeded},
    shrink::{Case, report},
};
use crate::{CloseReason, CongestionControl, ConnectionId, Event, Limits, Received, State};

/// One direction: what is sent is a function of the position.
struct Stream {
    from: usize,
    length: usize,
    sent: usize,
    received: usize,
    ended: bool,
    shut: bool,
    /// `send` had no room, and no event has told of any since.
    blocked: bool,
}

pub(super) fn byte(position: usize, from: usize) -> u8 {
    let mixed = (position ^ (position >> 11)).wrapping_mul(167 + 2 * from) ^ (position >> 7);
    u8::try_from(mixed & 0xff).unwrap()
}

impl Stream {
    fn new(from: usize, length: usize) -> Self {
        Self {
            from,
            length,
            sent: 0,
            received: 0,
            ended: false,
            shut: false,
            blocked: false,
        }
    }

    fn pump(&mut self, pair: &mut Pair, ids: [ConnectionId; 2], pauses: u64) {
        let mut buffer = [0; 16 * 1024];
        while self.sent < self.length && !self.blocked {
            let chunk = buffer.len().min(self.length - self.sent);
            for (at, out) in buffer[..chunk].iter_mut().enumerate() {
                *out = byte(self.sent + at, self.from);
            }
            let stack = &mut pair.stacks[self.from];
            let taken = stack
                .send(pair.now, ids[self.from], &buffer[..chunk])
                .unwrap();
            self.blocked = taken < chunk;
            self.sent += taken;
        }
        if self.sent == self.length && !self.shut {
            self.shut = true;
            pair.stacks[self.from].shutdown(pair.now, ids[self.from]);
        }
        let to = 1 - self.from;
        while !self.ended && !pair.random.chance(pauses) {
            match pair.stacks[to]
                .recv(pair.now, ids[to], &mut buffer)
                .unwrap()
            {
                Received::Bytes(length) => {
                    for (at, got) in buffer[..length].iter().enumerate() {
                        assert_eq!(
                            *got,
                            byte(self.received + at, self.from),
                            "{}",
                            self.received
                        );
                    }
                    self.received += length;
                }
                Received::WouldBlock => break,
                Received::End => {
                    assert_eq!(self.received, self.length);
                    self.ended = true;
                }
            }
        }
    }
}

/// Transfers so many bytes each way and closes; returns how long it took.
pub(super) fn transfer(pair: &mut Pair, lengths: [usize; 2], v6: bool, pauses: u64) -> Duration {
    let began = pair.now;
    let ids = pair.connect(v6);
    let mut streams = [Stream::new(A, lengths[A]), Stream::new(B, lengths[B])];
    for _ in 0..50_000_000_u64 {
        for stream in &mut streams {
            let from = stream.from;
            let events = pair.events(from);
            stream.blocked &= !events.contains(&Event::Writable(ids[from]));
            stream.pump(pair, ids, pauses);
        }
        if streams.iter().all(|stream| stream.ended) {
            break;
        }
        if !pair.step() {
            // The readers paused and nothing else is due: they wake up by themselves.
            assert!(
                pauses > 0,
                "stalled at {:?}",
                streams.map(|s| (s.sent, s.received))
            );
            pair.now += Duration::from_millis(1);
        }
    }
    assert!(streams.iter().all(|stream| stream.ended), "too slow");
    let took = pair.now - began;
    pair.run_for(Duration::from_secs(300));
    for side in [A, B] {
        // Who has lost every last ACK for as long as TIME-WAIT lasts learns of a peer that is
        // gone; the peer has finished.
        let reason = pair.stacks[side].close_reason(ids[side]);
        let other = pair.stacks[1 - side].close_reason(ids[1 - side]);
        let unlucky = reason == Some(CloseReason::Reset) && other == Some(CloseReason::Finished);
        assert!(
            unlucky || reason == Some(CloseReason::Finished),
            "{reason:?}"
        );
        assert_eq!(pair.stacks[side].state(ids[side]), Some(State::Closed));
        assert_eq!(pair.stacks[side].memory_bytes(), 0);
    }
    for side in [A, B] {
        pair.stacks[side].release(pair.now, ids[side]);
    }
    pair.run_for(Duration::from_secs(1));
    assert!(pair.is_silent(), "silence: nothing owed");
    assert_eq!(
        pair.stacks.each_ref().map(|stack| stack.connections()),
        [0, 0]
    );
    took
}

#[test]
fn ten_thousand_seeds_of_bad_links_deliver_every_byte_in_order_and_once() {
    // SEEDS=n runs that many, SEED=n repeats one.
    let given = |name| {
        std::env::var(name)
            .ok()
            .and_then(|given| given.parse::<u64>().ok())
    };
    let seeds = match given("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..given("SEEDS").unwrap_or(10_000),
    };
    // As many at a time as there are cores: nothing is shared.
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(seeds.start);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let case = case(seed);
                    let outcome = std::panic::catch_unwind(|| case.transfer());
                    assert!(outcome.is_ok(), "{}", report(&case));
                }
            });
        }
    });
}

/// The run of a seed.
fn case(seed: u64) -> Case {
    let mut random = Seeded(seed ^ 0x5eed);
    let millis = |random: &mut Seeded, bound| Duration::from_millis(random.below(bound));
    let link = Link {
        delay: millis(&mut random, 100),
        jitter: millis(&mut random, 30),
        reordering: 0,
        loss: random.below(150),
        duplication: random.below(100),
        corruption: random.below(30),
        rate: random.chance(300).then_some((1_000_000, 30_000)),
        bare: random.chance(250),
        tick: Duration::from_millis([0, 0, 1, 16][usize::try_from(random.below(4)).unwrap()]),
        ..Link::default()
    };
    let lengths = [random.below(60_000), random.below(20_000)];
    Case {
        seed,
        link,
        lengths: lengths.map(|length| usize::try_from(length).unwrap()),
        v6: random.chance(500),
        pauses: if random.chance(300) { 900 } else { 0 },
        control: if random.chance(500) {
            CongestionControl::Bbr
        } else {
            CongestionControl::Cubic
        },
        run: if random.chance(500) { 45 } else { 1 },
        script: None,
    }
}

#[test]
fn five_gigabytes_wrap_the_sequence_numbers_and_arrive() {
    let mut pair = Pair::with_mtu(1, Link::default(), 65_535);
    let ids = pair.connect(true);
    let (data, mut buffer) = (vec![7; 1 << 20], vec![0; 1 << 20]);
    let (mut sent, mut received) = (0_u64, 0_u64);
    while received < 5 << 30 {
        while sent < 5 << 30 {
            let taken = pair.stacks[A].send(pair.now, ids[A], &data).unwrap();
            sent += u64::try_from(taken).unwrap();
            if taken < data.len() {
                break;
            }
        }
        assert!(pair.step(), "stalled at {received}");
        while let Received::Bytes(length) =
            pair.stacks[B].recv(pair.now, ids[B], &mut buffer).unwrap()
        {
            received += u64::try_from(length).unwrap();
        }
    }
}

#[test]
fn a_hundred_megabytes_cross_a_link_that_loses_one_in_a_hundred() {
    let link = Link {
        loss: 10,
        delay: Duration::from_millis(5),
        ..Link::default()
    };
    transfer(&mut Pair::new(1, link), [100_000_000, 0], true, 0);
}

#[test]
fn a_fast_link_is_filled_by_windows_that_grow() {
    // 400 Mbit/s and 80 ms: 4 MB in flight.
    let link = Link {
        delay: Duration::from_millis(40),
        rate: Some((50_000_000, 4_000_000)),
        ..Link::default()
    };
    let took = transfer(&mut Pair::new(1, link), [200_000_000, 0], false, 0);
    let rate = 200_000_000.0 / took.as_secs_f64();
    assert!(rate > 0.75 * 50_000_000.0, "{rate} bytes per second");
}

#[test]
fn a_drop_tail_queue_costs_little() {
    // facts: 100 Mbit/s with a queue of 500 kB, where stacks without SACK collapse.
    for (millis, share) in [(10, 0.8), (25, 0.8), (50, 0.7)] {
        let link = Link {
            delay: Duration::from_millis(millis),
            rate: Some((12_500_000, 500_000)),
            ..Link::default()
        };
        let took = transfer(&mut Pair::new(1, link), [100_000_000, 0], true, 0);
        let rate = 100_000_000.0 / took.as_secs_f64();
        assert!(
            rate > share * 12_500_000.0,
            "{millis} ms: {rate} bytes per second"
        );
    }
}

/// Returns how many packets A sends at each instant, and when, until there are `count`.
fn bursts(link: Link, count: u64) -> Vec<(Duration, u64)> {
    let mut pair = Pair::new(1, link);
    let ids = pair.connect(true);
    let (began, mut bursts) = (pair.now, Vec::<(Duration, u64)>::new());
    let (data, mut buffer) = (vec![7; 1 << 20], vec![0; 1 << 20]);
    let mut counted = pair.sent[A];
    let end = counted + count;
    while counted < end {
        pair.stacks[A].send(pair.now, ids[A], &data).unwrap();
        while matches!(
            pair.stacks[B].recv(pair.now, ids[B], &mut buffer),
            Ok(Received::Bytes(_))
        ) {}
        pair.drain();
        let (at, sent) = (pair.now - began, pair.sent[A] - counted);
        counted = pair.sent[A];
        match bursts.last_mut() {
            Some((last, burst)) if *last == at => *burst += sent,
            Some(_) | None if sent > 0 => bursts.push((at, sent)),
            Some(_) | None => {}
        }
        assert!(pair.step(), "stalled after {counted}");
    }
    bursts
}

#[test]
fn a_flight_after_the_first_does_not_leave_in_one_burst() {
    let link = Link {
        delay: Duration::from_millis(50),
        ..Link::default()
    };
    let bursts = bursts(link, 60);
    let (first, later) = bursts.split_first().unwrap();
    assert!(
        first.1 >= 10,
        "the initial window leaves at once: {first:?}"
    );
    // The second flight has 20 segments for 50 ms, the third 40: less than one in a millisecond.
    assert!(later.iter().all(|(_, burst)| *burst <= 2), "{later:?}");
}

#[test]
fn behind_the_flight_waits_no_more_than_a_cache_holds_and_a_writer_hears_of_room_as_data_leaves() {
    const UNSENT_MAX: usize = 512 << 10;
    const WORTH_A_WORD: usize = 128 << 10;
    // Nothing is lost, and the peer's window is what ends the flight.
    let link = Link {
        delay: Duration::from_millis(10),
        ..Link::default()
    };
    let limits = Limits {
        receive_bytes_max: 4 << 20,
        ..Limits::default()
    };
    let mut pair = Pair::with_limits(1, link, limits);
    let ids = pair.connect(true);
    let (data, mut buffer) = (vec![7; 1 << 16], vec![0; 1 << 16]);
    let (mut room, mut most, mut waited) = (true, 0, 0);
    let end = pair.now + Duration::from_secs(2);
    while pair.now < end {
        room |= pair.events(A).contains(&Event::Writable(ids[A]));
        while room {
            let taken = pair.stacks[A].send(pair.now, ids[A], &data).unwrap();
            room = taken == data.len();
        }
        // What was taken may leave at once, and then there is room again.
        pair.drain();
        room |= pair.events(A).contains(&Event::Writable(ids[A]));
        let told = pair.stacks[A].statistics(ids[A]).unwrap();
        let unsent = told.send_queue - usize::try_from(told.in_flight).unwrap();
        if usize::try_from(told.cwnd).unwrap() > 2 * UNSENT_MAX {
            most = most.max(unsent);
            waited += u32::from(!room);
            assert!(
                room || unsent + WORTH_A_WORD > UNSENT_MAX,
                "{unsent} left and not a word: {told:?}"
            );
        }
        while let Ok(Received::Bytes(_)) = pair.stacks[B].recv(pair.now, ids[B], &mut buffer) {}
        assert!(pair.step(), "stalled");
    }
    assert!(waited > 0, "the test shall be a test");
    assert!(most > UNSENT_MAX / 2 && most <= UNSENT_MAX, "{most}");
    let acknowledged = pair.stacks[A].statistics(ids[A]).unwrap().acknowledged;
    assert!(acknowledged > 100_000_000, "{acknowledged}");
}
