//! When handshakes must show a cookie, and how many a source may have then (whitepaper 5.3).

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// Tells load by the rate of handshake messages with a right mac1, and shares it among sources.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// What the caller says, who sees the queues.
    forced: Option<bool>,
    all: Option<Bucket>,
    /// Load is felt until then.
    until: Option<Instant>,
    /// At most `SOURCES_MAX`; when it is full of live entries a new source is refused.
    sources: BTreeMap<Source, Bucket>,
    swept: Option<Instant>,
}

/// Tokens as a time: each token costs an interval, saved up to a burst.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    saved: Duration,
    updated: Instant,
}

/// An IPv4 address, or the upper half of an IPv6 address, which is all of one host.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Load {
    pub(crate) fn force(&mut self, under_load: Option<bool>) {
        self.forced = under_load;
    }

    /// Counts one handshake message and tells whether the device is under load.
    pub(crate) fn count(&mut self, now: Instant) -> bool {
        let bucket = self
            .all
            .get_or_insert_with(|| Bucket::full(now, ALL_SAVED_MAX));
        if !bucket.take(now, ALL_INTERVAL, ALL_SAVED_MAX) {
            self.until = Some(now + LOAD_HOLD);
        }
        self.forced
            .unwrap_or_else(|| self.until.is_some_and(|until| now < until))
    }

    /// Takes one token of a source that has shown its cookie.
    pub(crate) fn admit(&mut self, now: Instant, source: SocketAddr) -> bool {
        let source = Source::new(source.ip());
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            self.sweep(now);
            if self.sources.len() >= SOURCES_MAX {
                return false;
            }
        }
        self.sources
            .entry(source)
            .or_insert_with(|| Bucket::full(now, SOURCE_SAVED_MAX))
            .take(now, SOURCE_INTERVAL, SOURCE_SAVED_MAX)
    }

    /// Forgets sources whose bucket is full again, at most once a second.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|at| now < at + LOAD_HOLD) {
            return;
        }
        self.swept = Some(now);
        self.sources
            .retain(|_, bucket| now < bucket.updated + SOURCE_SAVED_MAX);
    }
}

impl Bucket {
    pub(crate) fn full(now: Instant, saved_max: Duration) -> Self {
        Self {
            saved: saved_max,
            updated: now,
        }
    }

    pub(crate) fn take(&mut self, now: Instant, interval: Duration, saved_max: Duration) -> bool {
        let passed = now.saturating_duration_since(self.updated);
        self.saved = saved_max.min(self.saved + passed);
        self.updated = self.updated.max(now);
        match self.saved.checked_sub(interval) {
            Some(rest) => {
                self.saved = rest;
                true
            }
            None => false,
        }
    }
}

impl Source {
    fn new(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
                Some(ip) => Self::V4(ip.octets()),
                None => Self::V6(*ip.octets().first_chunk().expect("sixteen bytes hold eight")),
            },
        }
    }
}

/// 1,000 handshakes a second cost a core about a fifth of its time; a burst of 512 is half of it.
const ALL_INTERVAL: Duration = Duration::from_millis(1);
const ALL_SAVED_MAX: Duration = Duration::from_millis(512);
/// How long load is felt after the last handshake too many, as Linux does.
const LOAD_HOLD: Duration = Duration::from_secs(1);
/// 20 handshakes a second and 5 at once, as Linux does.
const SOURCE_INTERVAL: Duration = Duration::from_millis(50);
const SOURCE_SAVED_MAX: Duration = Duration::from_millis(250);
const SOURCES_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::base;

    fn v4(n: u32) -> SocketAddr {
        SocketAddr::from((std::net::Ipv4Addr::from_bits(n), 1))
    }

    #[test]
    fn a_thousand_spaced_handshakes_are_no_load() {
        let mut load = Load::default();
        for n in 0..1_000 {
            assert!(!load.count(base() + Duration::from_millis(n)));
        }
    }

    #[test]
    fn a_flood_is_load_until_a_second_after_it() {
        let mut load = Load::default();
        let felt = (0..600).filter(|_| load.count(base())).count();
        assert_eq!(felt, 600 - 512);
        assert!(load.count(base() + Duration::from_millis(900)));
        assert!(!load.count(base() + Duration::from_millis(2_900)));
    }

    #[test]
    fn the_caller_may_force_load() {
        let mut load = Load::default();
        load.force(Some(true));
        assert!(load.count(base()));
        load.force(None);
        assert!(!load.count(base()));
    }

    #[test]
    fn a_source_gets_five_at_once_and_twenty_a_second() {
        let mut load = Load::default();
        let admitted = |load: &mut Load, at: Duration, source: SocketAddr| {
            (0..100).filter(|_| load.admit(base() + at, source)).count()
        };
        assert_eq!(admitted(&mut load, Duration::ZERO, v4(1)), 5);
        assert_eq!(admitted(&mut load, Duration::from_millis(100), v4(1)), 2);
        assert_eq!(admitted(&mut load, Duration::from_secs(9), v4(1)), 5);
        let host: SocketAddr = "[2001:db8:0:1::1]:5".parse().unwrap();
        let same_host: SocketAddr = "[2001:db8:0:1:ffff::2]:6".parse().unwrap();
        let other_host: SocketAddr = "[2001:db8:0:2::1]:5".parse().unwrap();
        assert_eq!(admitted(&mut load, Duration::ZERO, host), 5);
        assert_eq!(admitted(&mut load, Duration::ZERO, same_host), 0);
        assert_eq!(admitted(&mut load, Duration::ZERO, other_host), 5);
    }

    #[test]
    fn the_table_of_sources_is_bounded_and_recovers() {
        let mut load = Load::default();
        for n in 0..u32::try_from(SOURCES_MAX).unwrap() {
            assert!(load.admit(base(), v4(n)));
        }
        assert!(!load.admit(base(), v4(u32::MAX)));
        assert!(load.admit(base() + Duration::from_secs(2), v4(u32::MAX)));
    }
}
