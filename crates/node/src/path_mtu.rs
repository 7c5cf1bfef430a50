//! The path MTU of the tunnel to the gateway, found by probing (DPLPMTUD, RFC 8899).
//!
//! ```text
//!   1,420 passes ───────────────────────────────────────────────► found
//!   1,420 is lost ─► 1,280 or 512 passes ─► what lies between ──► found
//!                └► all are lost: the tunnel is silent, and nothing is known
//! ```
//! Sizes are bytes of IP packets inside the tunnel. Several are tried at the same time, so that a
//! search takes a few round trips. What is found the gateway is told, because packets of others
//! take the same path the other way.

use std::time::{Duration, Instant};

/// The largest size looked for, and the MTU of the interfaces of a network: what an Ethernet path
/// carries with IPv6 outside, 1,500 - 40 - 8 - 32.
pub(crate) const SIZE_MAX: u16 = 1420;

/// What a path counts for until more or less is found: the least that an IPv6 link may have (RFC
/// 8200, 5), so that no sender can be asked for less.
pub(crate) const SIZE_UNTRIED: u16 = 1280;

/// The least size looked for: with the headers outside it fits 576 bytes, which every IPv4 host
/// takes (RFC 791, 3.1).
pub(crate) const SIZE_MIN: u16 = 512;

/// Packets are padded to multiples of 16 (whitepaper, 5.4.6), so between these are no others; but
/// none is padded beyond the MTU of the interface.
const STEP: u16 = 16;

/// So many probes of one size are lost before it counts as too large (`MAX_PROBES`, RFC 8899,
/// 5.1.2).
const PROBES_MAX: u8 = 3;

/// So many sizes are tried at the same time.
const TOGETHER_MAX: u16 = 8;

/// How long a reply may take while the round-trip time is unknown, and to a probe that confirms
/// what was found (`PROBE_TIMER`, RFC 8899, 5.1.1: not less than a second).
const PROBE_TIMER: Duration = Duration::from_secs(1);

/// The same once the round-trip time is known, as QUIC does (RFC 9000, 14.3): thrice that time,
/// and at least this. A reply that comes later still counts, so what is too short costs probes.
const PROBE_TIMER_MIN: Duration = Duration::from_millis(100);

/// How old a finding may be before traffic has it confirmed: how soon a path that became smaller
/// is noticed (`CONFIRMATION_TIMER`, RFC 8899, 5.1.1).
const CONFIRMATION_TIMER: Duration = Duration::from_secs(10);

/// When larger sizes are tried again (`PMTU_RAISE_TIMER`, RFC 8899, 5.1.1).
const RAISE_TIMER: Duration = Duration::from_secs(600);

/// Bytes of a probe that only tells what was found.
const TELLING_SIZE: u16 = 64;

/// What is known about the path, and what is being tried.
#[derive(Debug, Default)]
pub(crate) struct PathMtu {
    found: Option<u16>,
    /// When the last search ended, with a finding or without.
    ended: Option<Instant>,
    /// When a size was last found too large.
    lost: Option<Instant>,
    /// When something last passed for which the path MTU matters.
    used: Option<Instant>,
    /// Until when there is no use in another search.
    paused: Option<Instant>,
    round_trip: Option<Duration>,
    search: Option<Search>,
    /// The probe that tells what was found, until there is a reply.
    telling: Option<Trial>,
    /// Of the newest probe.
    sequence: u16,
}

/// A packet to be sent, not to be fragmented anywhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Probe {
    /// Bytes of the packet.
    pub(crate) size: u16,
    /// Says which probe a reply belongs to.
    pub(crate) sequence: u16,
    /// What the gateway is told about the path, if anything was found.
    pub(crate) states: Option<u16>,
}

#[derive(Debug)]
struct Search {
    /// The largest size that has passed.
    passed: Option<u16>,
    /// The largest size that may pass.
    highest: u16,
    /// Whether it only asks if all is as it was.
    confirms: bool,
    /// What is tried now; at most [`TOGETHER_MAX`].
    trials: Vec<Trial>,
    /// Sequence and size of every probe; a search ends after fewer than 100.
    sent: Vec<(u16, u16)>,
}

/// A size that is tried.
#[derive(Clone, Copy, Debug)]
struct Trial {
    size: u16,
    /// Probes of this size that were lost.
    losses: u8,
    /// The newest probe's sequence, and when it was sent; `None` while it is still to be sent.
    sent: Option<(u16, Instant)>,
}

impl PathMtu {
    /// Returns the largest size that a search has found.
    pub(crate) fn found(&self) -> Option<u16> {
        self.found
    }

    /// Returns the largest packet that is to be sent on this path: never less than what every IPv6
    /// sender may send.
    pub(crate) fn limit(&self) -> u16 {
        self.found.unwrap_or(SIZE_UNTRIED).max(SIZE_UNTRIED)
    }

    /// Returns the largest packet that connections are to agree on now: what was found or, while a
    /// first search goes on, what seems to pass.
    pub(crate) fn agreed(&self) -> u16 {
        let too_large = |search: &&Search| search.highest < SIZE_UNTRIED;
        let small = self.search.as_ref().filter(too_large);
        self.found.or_else(|| small?.passed).unwrap_or(SIZE_UNTRIED)
    }

    /// Notes that something passed for which the path MTU matters.
    pub(crate) fn use_at(&mut self, now: Instant) {
        self.used = Some(now);
    }

    /// Takes note of a session: begins a search if there was none yet, and tells again what was
    /// found, because the gateway may have started anew.
    pub(crate) fn begin_session(&mut self, now: Instant) {
        self.paused = None;
        if self.ended.is_none() && self.search.is_none() {
            self.begin(now);
        }
        self.tell();
    }

    /// Returns the probe that is to be sent now.
    pub(crate) fn poll_probe(&mut self, now: Instant) -> Option<Probe> {
        let is_due = |trial: &&mut Trial| trial.sent.is_none();
        let trials = self.search.iter_mut().flat_map(|one| &mut one.trials);
        let trial = trials.chain(&mut self.telling).find(is_due)?;
        self.sequence = self.sequence.wrapping_add(1);
        trial.sent = Some((self.sequence, now));
        let (size, sequence) = (trial.size, self.sequence);
        if let Some(search) = self.search.as_mut().filter(|_| size != TELLING_SIZE) {
            search.sent.push((sequence, size));
        }
        let states = self.found;
        Some(Probe {
            size,
            sequence,
            states,
        })
    }

    /// Takes the reply of so many bytes to the probe `sequence`; false when there was none
    /// such that matters.
    pub(crate) fn handle_reply(&mut self, now: Instant, size: u16, sequence: u16) -> bool {
        let is_it = |trial: &&Trial| trial.sent.is_some_and(|(newest, _)| newest == sequence);
        let telling = self.telling.as_ref().filter(is_it);
        if telling.is_some_and(|trial| trial.size == size) {
            self.telling = None;
            return true;
        }
        let Some(search) = &mut self.search else {
            return false;
        };
        if !search.sent.contains(&(sequence, size)) {
            return false;
        }
        let (_, sent) = search
            .trials
            .iter()
            .find(is_it)
            .and_then(|one| one.sent)
            .unzip();
        if let Some(sent) = sent {
            self.round_trip = Some(now.saturating_duration_since(sent));
        }
        search.passed = search.passed.max(Some(size));
        // The reply to a probe that was given up says that it was too early to do so.
        search.highest = search.highest.max(size);
        search
            .trials
            .retain(|trial| Some(trial.size) > search.passed);
        self.go_on(now);
        true
    }

    /// Ends a search whose probe cannot be sent at once, as it must be: the session is gone.
    pub(crate) fn give_up(&mut self, now: Instant) {
        self.search = None;
        self.telling = None;
        self.paused = Some(now + CONFIRMATION_TIMER);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let timer = self.timer();
        let trials = self.search.iter().flat_map(|search| &search.trials);
        let trials = trials.filter_map(|trial| Some(trial.sent?.1 + timer));
        let telling = self
            .telling
            .and_then(|trial| Some(trial.sent?.1 + PROBE_TIMER));
        trials.chain(telling).chain(self.due()).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let timer = self.timer();
        let is_over = |trial: &Trial, timer| {
            trial
                .sent
                .is_some_and(|(_, sent)| now.saturating_duration_since(sent) >= timer)
        };
        if let Some(telling) = self
            .telling
            .as_mut()
            .filter(|one| is_over(one, PROBE_TIMER))
        {
            telling.lose();
            // The next probe that confirms tells it too.
            self.telling = self.telling.filter(|telling| telling.losses < PROBES_MAX);
        }
        if let Some(search) = &mut self.search {
            for trial in search
                .trials
                .iter_mut()
                .filter(|trial| is_over(trial, timer))
            {
                trial.lose();
                if trial.losses == PROBES_MAX {
                    search.highest = search.highest.min(smaller(trial.size));
                    self.lost = Some(now);
                }
            }
            let highest = search.highest;
            search.trials.retain(|trial| trial.size <= highest);
            self.go_on(now);
        } else if self.due().is_some_and(|due| due <= now) {
            self.begin(now);
        }
    }

    fn timer(&self) -> Duration {
        let confirms = self.search.as_ref().is_some_and(|search| search.confirms);
        let known = self.round_trip.filter(|_| !confirms);
        known.map_or(PROBE_TIMER, |time| {
            (time * 3).clamp(PROBE_TIMER_MIN, PROBE_TIMER)
        })
    }

    /// Returns when what is known is to be confirmed. What passed shortly before it last was counts
    /// too: where long packets are lost, none may have come since.
    fn due(&self) -> Option<Instant> {
        let used = self.used.filter(|_| self.search.is_none())?;
        let due = match self.ended {
            Some(ended) if used + CONFIRMATION_TIMER < ended => return None,
            Some(ended) => ended + CONFIRMATION_TIMER,
            None => used,
        };
        Some(self.paused.map_or(due, |paused| paused.max(due)))
    }

    fn begin(&mut self, now: Instant) {
        let since = |then: Instant| now.saturating_duration_since(then);
        let raises = self.lost.is_none_or(|then| since(then) >= RAISE_TIMER);
        let highest = self.found.filter(|_| !raises).unwrap_or(SIZE_MAX);
        let sizes = match self.found {
            // Most likely nothing has changed.
            Some(found) => vec![highest, found],
            None => vec![highest, SIZE_UNTRIED, SIZE_MIN],
        };
        self.search = Some(Search {
            passed: None,
            highest,
            confirms: self.found.is_some(),
            trials: trials(sizes),
            sent: Vec::new(),
        });
    }

    /// Goes on with other sizes when those that were tried are settled, or ends the search.
    fn go_on(&mut self, now: Instant) {
        let Some(search) = &mut self.search else {
            return;
        };
        if search.passed < Some(search.highest) && !search.trials.is_empty() {
            return;
        }
        search.confirms = false;
        let highest = search.highest;
        let sizes = match search.passed {
            Some(passed) if passed >= highest => {
                self.end(now, Some(passed));
                return;
            }
            // Not the size, but everything is lost.
            None if highest < SIZE_MIN => {
                self.end(now, None);
                return;
            }
            None => vec![highest, SIZE_UNTRIED.min(highest), SIZE_MIN],
            Some(passed) => between(passed, highest),
        };
        search.trials = trials(sizes);
    }

    fn end(&mut self, now: Instant, found: Option<u16>) {
        self.search = None;
        self.ended = Some(now);
        if found.is_some() && self.found != found {
            self.found = found;
            self.tell();
        }
    }

    fn tell(&mut self) {
        self.telling = self.found.map(|_| Trial::new(TELLING_SIZE));
    }
}

impl Trial {
    fn new(size: u16) -> Self {
        Self {
            size,
            losses: 0,
            sent: None,
        }
    }

    fn lose(&mut self) {
        self.sent = None;
        self.losses += 1;
    }
}

fn trials(mut sizes: Vec<u16>) -> Vec<Trial> {
    sizes.dedup();
    sizes.into_iter().map(Trial::new).collect()
}

/// Returns the size below `size`.
fn smaller(size: u16) -> u16 {
    (size - 1) / STEP * STEP
}

/// Returns sizes behind `passed` up to `highest`, the largest first and evenly spread.
fn between(passed: u16, highest: u16) -> Vec<u16> {
    let steps = (highest - passed).div_ceil(STEP);
    let count = steps.min(TOGETHER_MAX);
    let size = |place: u16| (passed + (steps * place).div_ceil(count) * STEP).min(highest);
    (1..=count).rev().map(size).collect()
}

#[cfg(test)]
mod tests;
