//! Searches over a path that a test makes, in virtual time.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// A path that carries packets of so many bytes, and a clock.
struct Path {
    carries: u16,
    round_trip: Duration,
    /// Which probes are lost besides, by how many were sent before.
    loses: fn(u32) -> bool,
    now: Instant,
    mtu: PathMtu,
    /// When replies arrive, of which size and sequence.
    replies: VecDeque<(Instant, u16, u16)>,
    probes: u32,
    /// What the gateway was told last.
    told: Option<u16>,
}

impl Path {
    fn new(carries: u16) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the base of virtual time")]
        let now = Instant::now();
        Self {
            carries,
            round_trip: Duration::from_millis(30),
            loses: |_| false,
            now,
            mtu: PathMtu::default(),
            replies: VecDeque::new(),
            probes: 0,
            told: None,
        }
    }

    /// Sends what is due, and goes to what happens next; false when nothing will.
    fn step(&mut self) -> bool {
        while let Some(probe) = self.mtu.poll_probe(self.now) {
            assert!(probe.size == SIZE_MAX || probe.size.is_multiple_of(STEP));
            let lost = (self.loses)(self.probes) || probe.size > self.carries;
            self.probes += 1;
            if !lost {
                self.told = probe.states.or(self.told);
                let reply = (self.now + self.round_trip, probe.size, probe.sequence);
                self.replies.push_back(reply);
            }
        }
        let arrival = self.replies.front().map(|reply| reply.0);
        let Some(next) = self.mtu.poll_timeout().into_iter().chain(arrival).min() else {
            return false;
        };
        self.now = self.now.max(next);
        if let Some((_, size, sequence)) = self.replies.pop_front_if(|one| one.0 <= self.now) {
            self.mtu.handle_reply(self.now, size, sequence);
        } else {
            self.mtu.handle_timeout(self.now);
        }
        true
    }

    /// Searches to the end and tells the result; returns what is known then, how many probes that
    /// took, and how long.
    fn search(&mut self) -> (Option<u16>, u32, Duration) {
        let began = self.now;
        self.probes = 0;
        self.mtu.used = None;
        let mut took = Duration::ZERO;
        while self.step() {
            assert!(self.probes < 100, "the search ends");
            if self.mtu.search.is_some() {
                took = self.now - began;
            }
        }
        assert!(self.mtu.search.is_none() && self.mtu.telling.is_none());
        (self.mtu.found(), self.probes, took)
    }

    /// Uses the path, and searches when what is known has become old.
    fn use_later(&mut self, after: Duration) -> (Option<u16>, u32) {
        self.now += after;
        self.mtu.use_at(self.now);
        self.mtu.handle_timeout(self.now);
        let (found, probes, _) = self.search();
        (found, probes)
    }

    fn first(&mut self) -> (Option<u16>, u32, Duration) {
        self.mtu.begin_session(self.now);
        self.search()
    }
}

/// The largest size looked for that a path carries.
fn expected(carries: u16) -> u16 {
    if carries >= SIZE_MAX {
        SIZE_MAX
    } else {
        carries / STEP * STEP
    }
}

#[test]
fn every_size_is_found_to_the_step_and_told() {
    for carries in SIZE_MIN..=1_500 {
        let mut path = Path::new(carries);
        let (found, probes, took) = path.first();
        assert_eq!(found, Some(expected(carries)), "{carries}");
        assert_eq!(path.told, found);
        assert!(probes <= 3 * 3 + 2 * 8 * 3 + 1, "{carries} took {probes}");
        // Three losses of 100 ms in each of at most three rounds, and the replies.
        let most = Duration::from_millis(3 * (3 * 100 + 30));
        assert!(took <= most, "{carries} took {took:?}");
    }
}

#[test]
fn an_ordinary_path_is_known_after_one_round_trip() {
    let mut path = Path::new(1_420);
    let began = path.now;
    assert_eq!(path.first().0, Some(SIZE_MAX));
    assert_eq!(path.mtu.ended, Some(began + path.round_trip));
}

#[test]
fn a_path_that_carries_everything_takes_one_probe_for_each_confirmation() {
    let mut path = Path::new(1_500);
    // The three sizes, and what is told.
    let (found, probes, _) = path.first();
    assert_eq!((found, probes), (Some(SIZE_MAX), 4));
    let soon = CONFIRMATION_TIMER / 2;
    assert_eq!(path.use_later(soon), (Some(SIZE_MAX), 0));
    assert_eq!(path.use_later(soon), (Some(SIZE_MAX), 1));
}

#[test]
fn connections_agree_on_what_has_passed_until_the_first_search_ends() {
    let mut path = Path::new(1_210);
    path.mtu.begin_session(path.now);
    let mut agreed = vec![path.mtu.agreed()];
    while path.mtu.found().is_none() {
        path.step();
        agreed.push(path.mtu.agreed());
        assert_eq!(path.mtu.limit(), SIZE_UNTRIED);
    }
    agreed.dedup();
    assert_eq!(agreed.first(), Some(&SIZE_UNTRIED));
    assert_eq!(agreed.get(1), Some(&SIZE_MIN));
    assert!(agreed[1..].is_sorted());
    assert_eq!(agreed.last(), Some(&1_200));
}

#[test]
fn a_tunnel_that_is_silent_says_nothing_about_sizes() {
    let mut path = Path::new(0);
    let (found, probes, took) = path.first();
    assert_eq!((found, probes), (None, 9));
    assert_eq!(took, 2 * PROBE_TIMER);
    assert_eq!(
        path.use_later(Duration::ZERO),
        (None, 0),
        "not at once again"
    );
    path.carries = 1_500;
    assert_eq!(path.use_later(CONFIRMATION_TIMER).0, Some(SIZE_MAX));
    path.carries = 0;
    let (found, _) = path.use_later(CONFIRMATION_TIMER);
    assert_eq!(found, Some(SIZE_MAX), "what was known stays");
}

#[test]
fn a_path_that_shrinks_is_noticed_and_one_that_grows_after_the_raise_timer() {
    let mut path = Path::new(1_500);
    path.first();
    path.carries = 1_340;
    assert_eq!(path.use_later(CONFIRMATION_TIMER).0, Some(1_328));
    assert_eq!(path.told, Some(1_328));
    path.carries = 1_210;
    assert_eq!(path.use_later(CONFIRMATION_TIMER).0, Some(1_200));
    assert_eq!(path.told, Some(1_200));
    path.carries = 1_500;
    assert_eq!(path.use_later(CONFIRMATION_TIMER), (Some(1_200), 1));
    assert_eq!(path.use_later(RAISE_TIMER).0, Some(SIZE_MAX));
    assert_eq!(path.told, Some(SIZE_MAX));
}

#[test]
fn a_path_that_swallows_everything_long_is_noticed_although_nothing_comes() {
    let mut path = Path::new(1_500);
    path.first();
    // The last long packet came just before a confirmation, the path shrinks just after it.
    path.now += CONFIRMATION_TIMER - Duration::from_secs(1);
    path.mtu.use_at(path.now);
    path.step();
    while path.mtu.search.is_some() {
        path.step();
    }
    path.carries = 1_340;
    while path.mtu.found() == Some(SIZE_MAX) && path.step() {}
    assert_eq!(path.mtu.found(), Some(1_328));
    while path.step() {}
    assert_eq!(path.mtu.poll_timeout(), None, "then it is idle");
}

#[test]
fn a_raise_in_vain_ends_where_it_began() {
    let mut path = Path::new(1_210);
    path.first();
    let (found, probes) = path.use_later(RAISE_TIMER);
    assert_eq!(found, Some(1_200));
    assert!(probes <= 1 + 3 + 8 * 3 + 3 * 3, "{probes}");
}

#[test]
fn a_lost_probe_or_two_of_a_size_are_no_sign_of_it() {
    let mut path = Path::new(1_500);
    path.loses = |before| before < 6;
    assert_eq!(path.first().0, Some(SIZE_MAX));
    path.loses = |before| before < 2;
    let found = path.use_later(CONFIRMATION_TIMER);
    assert_eq!(found, (Some(SIZE_MAX), 3));
}

#[test]
fn replies_that_come_late_count() {
    let mut path = Path::new(1_500);
    path.first();
    // A queue has grown on the path meanwhile.
    path.round_trip = Duration::from_millis(3_500);
    assert_eq!(path.use_later(CONFIRMATION_TIMER).0, Some(SIZE_MAX));
}

#[test]
fn only_the_reply_to_a_probe_of_the_search_counts() {
    let mut path = Path::new(1_500);
    assert!(!path.mtu.handle_reply(path.now, SIZE_MAX, 0));
    path.mtu.begin_session(path.now);
    assert!(!path.mtu.handle_reply(path.now, SIZE_MAX, 0));
    let first = path.mtu.poll_probe(path.now).expect("one is due");
    assert!(!path.mtu.handle_reply(path.now, SIZE_MIN, first.sequence));
    path.mtu.give_up(path.now);
    assert!(!path.mtu.handle_reply(path.now, first.size, first.sequence));
    assert_eq!(path.mtu.found(), None);
    // Without a session there is no use in another search at once.
    assert_eq!(path.use_later(Duration::ZERO), (None, 0));
    assert_eq!(path.first().0, Some(SIZE_MAX));
}

#[test]
fn what_was_found_is_told_until_there_is_a_reply_and_in_every_session() {
    let mut path = Path::new(1_500);
    // The fourth probe tells.
    path.loses = |before| before == 3 || before == 4;
    let (_, probes, _) = path.first();
    assert_eq!((path.told, probes), (Some(SIZE_MAX), 6));
    path.told = None;
    path.loses = |_| false;
    path.mtu.begin_session(path.now);
    assert_eq!(path.search().1, 1);
    assert_eq!(path.told, Some(SIZE_MAX));
}

proptest! {
    #[test]
    fn a_search_ends_and_finds_no_more_than_passes(
        carries in 0_u16..2_000,
        second in 0_u16..2_000,
        round_trip in 0_u64..5_000,
        lost in prop::collection::vec(any::<bool>(), 100),
    ) {
        let mut path = Path::new(carries);
        path.round_trip = Duration::from_millis(round_trip);
        let mut lost = lost.into_iter();
        path.mtu.begin_session(path.now);
        for carries in [carries, second] {
            path.carries = carries;
            let mut probes = 0;
            while path.mtu.search.is_some() {
                // `loses` is a function alone, so what is lost is set for each step.
                path.loses = if lost.next().unwrap_or(false) { |_| true } else { |_| false };
                let before = path.probes;
                path.step();
                probes += path.probes - before;
                prop_assert!(probes < 110);
            }
            path.now += RAISE_TIMER;
            path.mtu.use_at(path.now);
            path.mtu.handle_timeout(path.now);
        }
        if let Some(found) = path.mtu.found() {
            prop_assert!(found <= carries.max(second));
            prop_assert!((SIZE_MIN..=SIZE_MAX).contains(&found));
            prop_assert!(path.mtu.limit() >= SIZE_UNTRIED);
        }
    }
}
