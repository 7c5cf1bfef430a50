//! Segments that vanish because they are too long while nobody says so (RFC 8899; RFC 4821, 7.7).
//!
//! After some timeouts in a row for the same full segment the length is suspected, and the next
//! shorter one is tried. It may have been a break of the path instead, so a single longer segment
//! looks soon whether it passes, and its loss is no sign of congestion.

use std::time::{Duration, Instant};

use packet::{ip, tcp};

use super::{Connection, Recovery, Seq};

/// Lengths of IP packets that are tried in turn: the minimum of IPv6, where RFC 4821, 7.2 begins,
/// and what every host of IPv4 takes.
const STEPS: [usize; 3] = [1_280, 1_024, 576];
/// Timeouts in a row that make the length suspect: while nothing as long has ever arrived, and once
/// something has, after which a break of the path is more likely.
const TIMEOUTS: u32 = 2;
const TIMEOUTS_PROVEN: u32 = 5;
/// How soon after that the full length is tried, because the path may have been broken altogether.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// Probes that are tried in that way: MAX_PROBES (RFC 8899, 5.1.2).
const PROBES: u8 = 3;
/// How long until it is tried again after those: PMTU_RAISE_TIMER (RFC 8899, 5.1.1).
const RAISE_INTERVAL: Duration = Duration::from_secs(600);

/// Which lengths pass.
#[derive(Debug, Default)]
pub(super) struct Lengths {
    /// A full segment has arrived.
    proven: bool,
    suspected: Option<Box<BlackHole>>,
}

/// A path whose longest segments are suspected to vanish.
#[derive(Debug)]
struct BlackHole {
    /// When a longer segment is tried.
    probe_at: Instant,
    probe: Option<(Seq, Seq)>,
    probes: u8,
}

impl Connection {
    /// Suspects the length of what has timed out again and again.
    pub(super) fn suspect_length(&mut self, now: Instant) {
        let full = self.scoreboard.first_length() >= self.segment_size();
        let timeouts = if self.lengths.proven {
            TIMEOUTS_PROVEN
        } else {
            TIMEOUTS
        };
        if self.rtt.backoff < timeouts || !full {
            return;
        }
        let headers = ip::header_length(self.opening.remote.ip()) + tcp::HEADER;
        let length = headers + usize::try_from(self.mss).unwrap_or(usize::MAX);
        let Some(&shorter) = STEPS.iter().find(|&&step| step < length) else {
            return;
        };
        self.set_mtu(shorter);
        self.lengths.suspected = Some(Box::new(BlackHole {
            probe_at: now + PROBE_INTERVAL,
            probe: None,
            probes: 0,
        }));
    }

    /// How long the next segment of new data may be: one that probes is as long as the link allows.
    pub(super) fn length_of_new(&self, now: Instant) -> u32 {
        let probes = self
            .lengths
            .suspected
            .as_ref()
            .is_some_and(|hole| hole.probe.is_none() && hole.probe_at <= now);
        let options = self.mss - self.segment_size();
        let full = self.mss_for(self.opening.mtu) - options;
        if probes && self.recovery == Recovery::Open && self.unsent() >= full {
            full
        } else {
            self.segment_size()
        }
    }

    /// Takes notice of a run of new data that goes out.
    pub(super) fn note_length(&mut self, start: Seq, end: Seq) {
        let longer = end - start > self.segment_size() + 1;
        if let Some(hole) = self.lengths.suspected.as_mut().filter(|_| longer) {
            hole.probe = Some((start, end));
            hole.probes = hole.probes.saturating_add(1);
        }
    }

    /// Tells whether all that is lost is what probed.
    pub(super) fn has_lost_only_probe(&mut self) -> bool {
        let probe = self.lengths.suspected.as_ref().and_then(|hole| hole.probe);
        probe.is_some() && self.scoreboard.only_lost() == probe
    }

    /// Takes notice of a retransmission: a probe that needs one was too long.
    pub(super) fn end_length_probe(&mut self, now: Instant, run: Seq) {
        if let Some(hole) = &mut self.lengths.suspected
            && hole
                .probe
                .is_some_and(|(start, end)| !run.before(start) && run.before(end))
        {
            hole.probe = None;
            hole.probe_at = now
                + if hole.probes < PROBES {
                    PROBE_INTERVAL
                } else {
                    RAISE_INTERVAL
                };
        }
    }

    /// Takes notice of an acknowledgement: a probe that has arrived shows that the path is whole.
    pub(super) fn detect_length(&mut self, acknowledged: u32) {
        self.lengths.proven |= acknowledged >= self.segment_size();
        let probe = self.lengths.suspected.as_ref().and_then(|hole| hole.probe);
        if probe.is_some_and(|(_, end)| !self.snd_una.before(end)) {
            self.lengths.suspected = None;
            self.set_mtu(self.opening.mtu);
        }
    }
}
