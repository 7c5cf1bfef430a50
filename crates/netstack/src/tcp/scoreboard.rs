//! What has been transmitted and not acknowledged: SACK (RFC 2018) and RACK (RFC 8985, 6.2).

mod outstanding;

use std::time::{Duration, Instant};

use self::outstanding::Outstanding;
use super::{
    delivery::{Delivery, Loss, Sample, Snapshot},
    sequence::Seq,
};

/// What an acknowledgement told about transmitted segments.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delivered {
    /// Octets that are newly known to have arrived, by acknowledgement or SACK.
    pub(crate) octets: u32,
    /// Round-trip time of the latest of them that was transmitted only once.
    pub(crate) rtt: Option<Duration>,
    /// Something that had been retransmitted is among them.
    pub(crate) retransmitted: bool,
    /// Where the first of them begins that was transmitted only once.
    pub(crate) once: Option<Seq>,
    /// The most octets that were in flight when one of them was transmitted only once.
    pub(crate) flight: u32,
}

/// The transmitted segments of one connection, and what the earlier ones have taught.
#[derive(Debug, Default)]
pub(crate) struct Scoreboard {
    /// `None` when everything is acknowledged, as in most connections at most times.
    outstanding: Option<Box<Outstanding>>,
    history: History,
}

/// What outlives the segments that it was learned from.
#[derive(Debug, Default)]
struct History {
    rack: Rack,
    /// Runs that were transmitted again since the beginning.
    retransmissions: u64,
    /// Measures the delivery rate where somebody wants it.
    delivery: Option<Box<Delivery>>,
}

#[derive(Debug, Default)]
struct Rack {
    reordering_seen: bool,
    /// Recoveries without a DSACK after which what DSACKs have added ends.
    persist: u8,
    /// What DSACKs add to the reordering window, in quarters of the smoothed round-trip time: where
    /// packets overtake, the smallest is that of one that did.
    quarters_added: u16,
    /// The round whose DSACKs are counted already ends here.
    duplicate_round: Option<Seq>,
}

/// RFC 8985, 6.2, step 4: so many recoveries without a DSACK end what DSACKs began.
const PERSIST: u8 = 16;
/// No reordering window is longer than the smoothed round-trip time; this bounds the counter.
const QUARTERS_MAX: u16 = 1_000;

/// What decides whether a segment counts as reordered or as lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RackTime {
    pub(crate) now: Instant,
    pub(crate) min_rtt: Option<Duration>,
    pub(crate) smoothed_rtt: Option<Duration>,
    pub(crate) recovering: bool,
    /// Octets of a full segment.
    pub(crate) mss: u32,
}

impl History {
    /// What is known when `octets` are transmitted beside what is in flight.
    fn snapshot(&mut self, now: Instant, in_flight: u32, octets: u32) -> Snapshot {
        match &mut self.delivery {
            Some(delivery) => delivery.transmit(now, in_flight, octets),
            None => Snapshot::of_flight(in_flight + octets),
        }
    }
}

impl Scoreboard {
    pub(crate) fn is_empty(&self) -> bool {
        self.outstanding.is_none()
    }

    pub(crate) fn in_flight(&self) -> u32 {
        let outstanding = self.outstanding.as_ref();
        outstanding.map_or(0, |outstanding| outstanding.in_flight())
    }

    pub(crate) fn retransmissions(&self) -> u64 {
        self.history.retransmissions
    }

    pub(crate) fn sacked(&self) -> u32 {
        let outstanding = self.outstanding.as_ref();
        outstanding.map_or(0, |outstanding| outstanding.sacked())
    }

    /// When the reordering window of the next suspect ends (RFC 8985, 6.2).
    pub(crate) fn reordering_deadline(&self) -> Option<Instant> {
        self.outstanding.as_ref()?.deadline()
    }

    /// Records the first transmission of a segment.
    pub(crate) fn push(&mut self, now: Instant, start: Seq, end: Seq) {
        let outstanding = self.outstanding.get_or_insert_default();
        outstanding.push(now, start, end, &mut self.history);
    }

    /// Begins or ends to measure the delivery rate.
    pub(crate) fn measure_delivery(&mut self, now: Instant, on: bool) {
        if on != self.history.delivery.is_some() {
            self.history.delivery = on.then(|| Box::new(Delivery::new(now)));
            // What was known at an earlier measurement means nothing at this one.
            if let Some(outstanding) = &mut self.outstanding {
                outstanding.forget_delivery();
            }
        }
    }

    /// Octets that have been delivered since that is measured.
    pub(crate) fn delivered(&self) -> u64 {
        let delivery = self.history.delivery.as_ref();
        delivery.map_or(0, |delivery| delivery.delivered())
    }

    /// Takes notice that the sender has run out of data.
    pub(crate) fn limit_delivery(&mut self) {
        let in_flight = self.in_flight();
        if let Some(delivery) = &mut self.history.delivery {
            delivery.limit(in_flight);
        }
    }

    /// Tells whether the sender has been running out of data of late.
    pub(crate) fn is_application_limited(&self) -> bool {
        let delivery = self.history.delivery.as_ref();
        delivery.is_some_and(|delivery| delivery.is_application_limited())
    }

    /// Ends an acknowledgement: returns its sample of the delivery rate.
    pub(crate) fn sample_delivery(&mut self, now: Instant, min_rtt: Duration) -> Option<Sample> {
        self.history.delivery.as_mut()?.sample(now, min_rtt)
    }

    /// Takes what was found lost since the last call, where delivery is measured.
    pub(crate) fn take_losses(&mut self) -> Vec<Loss> {
        let delivery = self.history.delivery.as_mut();
        delivery.map_or(Vec::new(), |delivery| delivery.take_losses())
    }

    /// Tells whether something lost waits to be transmitted again.
    pub(crate) fn has_lost(&mut self) -> bool {
        self.peek_lost() > 0
    }

    /// Returns the next lost run of at most `limit` octets as one that is transmitted again now.
    pub(crate) fn take_lost(&mut self, now: Instant, limit: u32) -> Option<(Seq, Seq)> {
        let outstanding = self.outstanding.as_mut()?;
        outstanding.take_lost(now, limit, &mut self.history)
    }

    /// Tells how long the next lost run is; zero when nothing is lost.
    pub(crate) fn peek_lost(&mut self) -> u32 {
        let outstanding = self.outstanding.as_mut();
        outstanding.map_or(0, |outstanding| outstanding.peek_lost())
    }

    /// Takes the last run for a tail loss probe (RFC 8985, 7.3), at most `limit` octets of it.
    pub(crate) fn take_last(&mut self, now: Instant, limit: u32) -> Option<(Seq, Seq)> {
        let outstanding = self.outstanding.as_mut()?;
        outstanding.take_last(now, limit, &mut self.history)
    }

    /// Says what the fastest answer is: a faster one is not that of a retransmission.
    pub(crate) fn set_min_rtt(&mut self, min_rtt: Duration) {
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.set_min_rtt(min_rtt);
        }
    }

    /// Removes everything before `ack`.
    pub(crate) fn acknowledge(&mut self, now: Instant, ack: Seq) -> Delivered {
        let Some(outstanding) = &mut self.outstanding else {
            return Delivered::default();
        };
        let delivered = outstanding.acknowledge(now, ack, &mut self.history);
        self.outstanding
            .take_if(|outstanding| outstanding.is_empty());
        delivered
    }

    /// Marks what SACK blocks between `snd_una` and `snd_nxt` cover.
    pub(crate) fn handle_sack(
        &mut self,
        now: Instant,
        blocks: &[(u32, u32)],
        snd_una: Seq,
        snd_nxt: Seq,
    ) -> Delivered {
        let Some(outstanding) = self.outstanding.as_mut().filter(|_| !blocks.is_empty()) else {
            return Delivered::default();
        };
        outstanding.handle_sack(now, blocks, (snd_una, snd_nxt), &mut self.history)
    }

    /// Marks as lost what was transmitted so long before something delivered that it is not
    /// merely reordered, and returns whether there was any (RFC 8985, 6.2, steps 4 and 5).
    pub(crate) fn detect_losses(&mut self, time: RackTime) -> bool {
        let outstanding = self.outstanding.as_mut();
        outstanding.is_some_and(|outstanding| outstanding.detect_losses(time, &mut self.history))
    }

    /// Widens the reordering window, once in a round, for what was retransmitted needlessly
    /// (RFC 8985, 6.2, step 4).
    pub(crate) fn handle_duplicate(&mut self, snd_una: Seq, snd_nxt: Seq) {
        let rack = &mut self.history.rack;
        if rack.duplicate_round.is_none_or(|end| !snd_una.before(end)) {
            rack.duplicate_round = Some(snd_nxt);
            rack.quarters_added = (rack.quarters_added + 1).min(QUARTERS_MAX);
            rack.persist = PERSIST;
        }
    }

    /// Counts a recovery that has ended (RFC 8985, 6.2, step 4).
    pub(crate) fn end_recovery(&mut self) {
        let rack = &mut self.history.rack;
        rack.persist = rack.persist.saturating_sub(1);
        if rack.persist == 0 {
            rack.quarters_added = 0;
        }
    }

    /// Takes notice of a reordering that was mistaken for a loss.
    pub(crate) fn handle_reordering(&mut self) {
        self.history.rack.reordering_seen = true;
    }

    /// Marks the first segment as lost: NewReno for a peer without SACK (RFC 6582).
    pub(crate) fn mark_first_lost(&mut self) -> bool {
        let outstanding = self.outstanding.as_mut();
        outstanding.is_some_and(|outstanding| outstanding.mark_first_lost(&mut self.history))
    }

    /// Marks everything as lost after a timeout. When the first segment had been sacked, the peer
    /// has thrown it away, so no SACK counts any more (RFC 2018, 8).
    pub(crate) fn mark_all_lost(&mut self) {
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.mark_all_lost(&mut self.history);
        }
    }

    /// Takes back [`Scoreboard::mark_all_lost`] for what has not been retransmitted yet, after a
    /// timeout that proved spurious.
    pub(crate) fn forgive(&mut self) {
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.forgive();
        }
    }

    /// Marks as lost what is longer than a segment may be from now on.
    pub(crate) fn mark_longer_lost(&mut self, mss: u32) {
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.mark_longer_lost(mss);
        }
    }

    /// Returns the length of the oldest segment; zero when nothing is outstanding.
    pub(crate) fn first_length(&self) -> u32 {
        let outstanding = self.outstanding.as_ref();
        outstanding.map_or(0, |outstanding| outstanding.first_length())
    }

    /// Returns what is lost when it is a single segment.
    pub(crate) fn only_lost(&mut self) -> Option<(Seq, Seq)> {
        self.outstanding.as_mut()?.only_lost()
    }

    /// Tells whether what begins at `start` has been transmitted more than once.
    pub(crate) fn is_retransmitted(&self, start: Seq) -> bool {
        let outstanding = self.outstanding.as_ref();
        outstanding.is_none_or(|outstanding| outstanding.is_retransmitted(start))
    }
}

#[cfg(any(test, feature = "invariants"))]
impl Scoreboard {
    /// Panics when what is outstanding is not what lies between `snd_una` and `snd_nxt`.
    pub(crate) fn assert_invariants(&self, snd_una: Seq, snd_nxt: Seq) {
        match &self.outstanding {
            Some(outstanding) => outstanding.assert_invariants(snd_una, snd_nxt),
            None => assert_eq!(snd_una, snd_nxt, "what is outstanding is recorded"),
        }
    }
}
