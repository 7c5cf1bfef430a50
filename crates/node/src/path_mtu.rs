//! The path MTU of the tunnel to the gateway, found by probing (DPLPMTUD, RFC 8899).
//!
//! ```text
//!   largest passes ────────────────────────────────────► found
//!   largest lost ─► least passes ─► the middle between ─► found
//!                 └► least lost: the tunnel is silent, and nothing is known
//! ```
//! Sizes are bytes of IP packets inside the tunnel. What is longer than the size found still
//! passes where routers fragment the datagrams around it; TCP does without that, because its
//! SYNs state the size found.

use std::time::{Duration, Instant};

/// The largest size looked for: the MTU of the interfaces of a network, and the least that an IPv6
/// link may have (RFC 8200, 5), so that no sender can be asked for less.
pub(crate) const SIZE_MAX: u16 = 1280;

/// The least size looked for: with the headers outside it fits 576 bytes, which every IPv4 host
/// takes (RFC 791, 3.1).
const SIZE_MIN: u16 = 512;

/// Packets are padded to multiples of 16 (whitepaper, 5.4.6), so between these are no others.
const STEP: u16 = 16;

/// So many probes of one size are lost before it counts as too large (`MAX_PROBES`, RFC 8899,
/// 5.1.2).
const PROBES_MAX: u8 = 3;

/// How long a reply may take (`PROBE_TIMER`, RFC 8899, 5.1.1: not less than a second).
const PROBE_TIMER: Duration = Duration::from_secs(1);

/// How old a finding may be before traffic has it confirmed: how soon a path that became smaller
/// is noticed (`CONFIRMATION_TIMER`, RFC 8899, 5.1.1).
const CONFIRMATION_TIMER: Duration = Duration::from_secs(60);

/// When larger sizes are tried again (`PMTU_RAISE_TIMER`, RFC 8899, 5.1.1).
const RAISE_TIMER: Duration = Duration::from_secs(600);

/// What is known about the path, and what is being tried.
#[derive(Debug, Default)]
pub(crate) struct PathMtu {
    found: Option<u16>,
    /// When the last search ended, with a finding or without.
    ended: Option<Instant>,
    /// When a size was last found too large.
    lost: Option<Instant>,
    search: Option<Search>,
    /// Of the newest probe, so that no late reply confirms another.
    sequence: u16,
}

/// A packet to be sent, not to be fragmented anywhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Probe {
    /// Bytes of the packet.
    pub(crate) size: u16,
    /// Says which probe a reply belongs to.
    pub(crate) sequence: u16,
}

#[derive(Clone, Copy, Debug)]
struct Search {
    /// The largest size that has passed.
    passed: Option<u16>,
    /// The largest size that may pass.
    highest: u16,
    /// What is tried now.
    size: u16,
    /// Probes of this size that were lost.
    losses: u8,
    /// Until when a reply is awaited; `None` while the probe is still to be sent.
    deadline: Option<Instant>,
}

impl PathMtu {
    /// Returns the largest size that a search has found.
    pub(crate) fn found(&self) -> Option<u16> {
        self.found
    }

    /// Returns a size that passes, which a first search may still find to be too small.
    pub(crate) fn passing(&self) -> Option<u16> {
        self.found.or_else(|| self.search?.passed)
    }

    /// Begins a search if there was none yet.
    pub(crate) fn begin_first(&mut self, now: Instant) {
        if self.ended.is_none() {
            self.begin(now);
        }
    }

    /// Begins a search, if nothing recent is known and none runs. Call it while there is a session.
    pub(crate) fn begin(&mut self, now: Instant) {
        let since = |then: Instant| now.saturating_duration_since(then);
        let is_recent = |then: Instant| since(then) < CONFIRMATION_TIMER;
        if self.search.is_some() || self.ended.is_some_and(is_recent) {
            return;
        }
        let raises = self.lost.is_none_or(|then| since(then) >= RAISE_TIMER);
        let highest = self.found.filter(|_| !raises).unwrap_or(SIZE_MAX);
        self.search = Some(Search {
            passed: None,
            highest,
            size: highest,
            losses: 0,
            deadline: None,
        });
    }

    /// Returns the probe that is to be sent now.
    pub(crate) fn poll_probe(&mut self, now: Instant) -> Option<Probe> {
        let search = self.search.as_mut()?;
        if search.deadline.is_some() {
            return None;
        }
        search.deadline = Some(now + PROBE_TIMER);
        self.sequence = self.sequence.wrapping_add(1);
        Some(Probe {
            size: search.size,
            sequence: self.sequence,
        })
    }

    /// Takes the reply to `probe`; false when that is not the one awaited.
    pub(crate) fn handle_reply(&mut self, now: Instant, probe: Probe) -> bool {
        let Some(search) = &mut self.search else {
            return false;
        };
        let awaited = search.deadline.is_some()
            && probe.sequence == self.sequence
            && probe.size == search.size;
        if awaited {
            search.passed = Some(search.size);
            self.go_on(now);
        }
        awaited
    }

    /// Ends a search whose probe cannot be sent at once, as it must be: the session is gone.
    pub(crate) fn give_up(&mut self) {
        self.search = None;
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.search.and_then(|search| search.deadline)
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let Some(search) = &mut self.search else {
            return;
        };
        if search.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        search.deadline = None;
        search.losses += 1;
        if search.losses < PROBES_MAX {
            return;
        }
        if search.size == SIZE_MIN {
            // Not the size, but everything is lost.
            self.ended = Some(now);
            self.search = None;
            return;
        }
        search.highest = search.size - STEP;
        self.lost = Some(now);
        self.go_on(now);
    }

    /// Chooses the next size, or ends the search.
    fn go_on(&mut self, now: Instant) {
        let Some(search) = &mut self.search else {
            return;
        };
        let size = match search.passed {
            // Most likely nothing has changed.
            None => {
                let known = self.found.filter(|known| *known <= search.highest);
                known.unwrap_or(SIZE_MIN)
            }
            Some(passed) if passed >= search.highest => {
                self.found = Some(passed);
                self.ended = Some(now);
                self.search = None;
                return;
            }
            Some(passed) => passed + ((search.highest - passed) / STEP).div_ceil(2) * STEP,
        };
        search.size = size;
        search.losses = 0;
        search.deadline = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that carries packets of so many bytes, and a clock.
    struct Path {
        carries: u16,
        now: Instant,
        mtu: PathMtu,
        probes: u32,
    }

    impl Path {
        fn new(carries: u16) -> Self {
            #[expect(clippy::disallowed_methods, reason = "the base of virtual time")]
            let now = Instant::now();
            Self {
                carries,
                now,
                mtu: PathMtu::default(),
                probes: 0,
            }
        }

        /// Searches to the end; returns what is known then, and how many probes that took.
        fn search(&mut self) -> (Option<u16>, u32) {
            self.probes = 0;
            self.mtu.begin(self.now);
            while self.mtu.search.is_some() {
                let probe = self.mtu.poll_probe(self.now).expect("one is due");
                assert_eq!(self.mtu.poll_probe(self.now), None, "one at a time");
                assert_eq!(probe.size % STEP, 0);
                self.probes += 1;
                assert!(self.probes < 40, "the search ends");
                if probe.size <= self.carries {
                    self.now += Duration::from_millis(30);
                    assert!(self.mtu.handle_reply(self.now, probe));
                } else {
                    self.now = self.mtu.poll_timeout().expect("it waits");
                    self.mtu.handle_timeout(self.now);
                }
            }
            assert_eq!(self.mtu.poll_timeout(), None);
            assert_eq!(self.mtu.passing(), self.mtu.found());
            (self.mtu.found(), self.probes)
        }
    }

    #[test]
    fn every_size_is_found_to_the_step() {
        for carries in SIZE_MIN..=1_500 {
            let (found, probes) = Path::new(carries).search();
            let expected = (carries / STEP * STEP).min(SIZE_MAX);
            assert_eq!(found, Some(expected), "{carries}");
            assert!(probes <= 3 + 1 + 3 * 6, "{carries} took {probes}");
        }
    }

    #[test]
    fn a_path_that_carries_everything_takes_one_probe_a_minute_at_most() {
        let mut path = Path::new(1_400);
        assert_eq!(path.search(), (Some(SIZE_MAX), 1));
        assert_eq!(path.search(), (Some(SIZE_MAX), 0));
        path.now += CONFIRMATION_TIMER;
        assert_eq!(path.search(), (Some(SIZE_MAX), 1));
    }

    #[test]
    fn what_has_passed_counts_until_the_first_search_ends() {
        let mut path = Path::new(1_210);
        path.mtu.begin_first(path.now);
        let mut passing = Vec::new();
        while path.mtu.found().is_none() {
            passing.extend(path.mtu.passing());
            let probe = path.mtu.poll_probe(path.now).expect("one is due");
            if probe.size <= path.carries {
                assert!(path.mtu.handle_reply(path.now, probe));
            } else {
                path.now += PROBE_TIMER;
                path.mtu.handle_timeout(path.now);
            }
        }
        assert_eq!(passing.first(), Some(&SIZE_MIN));
        assert!(passing.is_sorted());
        path.mtu.begin_first(path.now + RAISE_TIMER);
        assert_eq!(path.mtu.poll_probe(path.now), None, "it was not the first");
    }

    #[test]
    fn a_tunnel_that_is_silent_says_nothing_about_sizes() {
        let mut path = Path::new(0);
        assert_eq!(path.search(), (None, 6));
        assert_eq!(path.search(), (None, 0), "not at once again");
        path.carries = 1_400;
        path.now += CONFIRMATION_TIMER;
        assert_eq!(path.search(), (Some(SIZE_MAX), 1));
        path.carries = 0;
        path.now += CONFIRMATION_TIMER;
        assert_eq!(path.search(), (Some(SIZE_MAX), 6), "what was known stays");
    }

    #[test]
    fn a_path_that_shrinks_is_noticed_and_one_that_grows_after_the_raise_timer() {
        let mut path = Path::new(1_400);
        path.search();
        path.carries = 1_210;
        path.now += CONFIRMATION_TIMER;
        let (found, _) = path.search();
        assert_eq!(found, Some(1_200));
        path.carries = 1_400;
        path.now += CONFIRMATION_TIMER;
        assert_eq!(path.search(), (Some(1_200), 1), "only confirmed");
        path.now += RAISE_TIMER;
        assert_eq!(path.search(), (Some(SIZE_MAX), 1));
    }

    #[test]
    fn a_raise_in_vain_ends_where_it_began() {
        let mut path = Path::new(1_210);
        path.search();
        path.now += RAISE_TIMER;
        let (found, probes) = path.search();
        assert_eq!(found, Some(1_200));
        assert!(probes <= 3 + 1 + 3 * 3, "{probes}");
    }

    #[test]
    fn a_lost_probe_or_two_are_no_sign_of_the_size() {
        let mut path = Path::new(1_400);
        path.mtu.begin(path.now);
        for _ in 1..PROBES_MAX {
            assert!(path.mtu.poll_probe(path.now).is_some());
            path.mtu.handle_timeout(path.now);
            assert_eq!(path.mtu.poll_probe(path.now), None, "it waits");
            path.now += PROBE_TIMER;
            path.mtu.handle_timeout(path.now);
        }
        assert_eq!(path.search(), (Some(SIZE_MAX), 1));
    }

    #[test]
    fn only_the_reply_to_the_newest_probe_counts() {
        let mut path = Path::new(1_400);
        let unasked = Probe {
            size: SIZE_MAX,
            sequence: 0,
        };
        assert!(!path.mtu.handle_reply(path.now, unasked));
        path.mtu.begin(path.now);
        assert!(!path.mtu.handle_reply(path.now, unasked));
        let first = path.mtu.poll_probe(path.now).expect("one is due");
        path.now += PROBE_TIMER;
        path.mtu.handle_timeout(path.now);
        assert!(!path.mtu.handle_reply(path.now, first), "a new one is due");
        let second = path.mtu.poll_probe(path.now).expect("one is due");
        assert!(!path.mtu.handle_reply(path.now, first));
        let size = SIZE_MIN;
        let short = Probe { size, ..second };
        assert!(!path.mtu.handle_reply(path.now, short));
        path.mtu.give_up();
        assert!(!path.mtu.handle_reply(path.now, second));
        assert_eq!(path.mtu.found(), None);
        // The next traffic begins anew.
        assert_eq!(path.search(), (Some(SIZE_MAX), 1));
    }
}
