//! What has been transmitted and not acknowledged: SACK (RFC 2018) and RACK (RFC 8985, 6.2).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    delivery::{Delivery, Loss, Sample, Snapshot},
    sequence::Seq,
};

/// A run of sequence numbers that was transmitted at once.
#[derive(Clone, Copy, Debug)]
struct Sent {
    start: Seq,
    end: Seq,
    /// When it was last transmitted.
    sent_at: Instant,
    retransmitted: bool,
    sacked: bool,
    lost: bool,
    snapshot: Snapshot,
}

impl Sent {
    /// Counts as on its way (the "pipe" of RFC 6675).
    fn in_flight(&self) -> u32 {
        if self.sacked || self.lost {
            0
        } else {
            self.end - self.start
        }
    }
}

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
}

/// The transmitted segments of one connection, in order; amortised O(log n) for each segment.
#[derive(Debug, Default)]
pub(crate) struct Scoreboard {
    records: VecDeque<Sent>,
    /// Transmissions in the order of time. An entry whose record has been acknowledged or
    /// transmitted again since is skipped, so each entry is looked at once.
    order: VecDeque<(Instant, Seq, Seq)>,
    /// Where lost records begin, in the order in which they were found lost.
    lost: VecDeque<Seq>,
    in_flight: u32,
    sacked: u32,
    /// Runs that were transmitted again since the beginning.
    retransmissions: u64,
    /// The highest sequence number that was delivered (RACK.fack).
    fack: Option<Seq>,
    /// SACK blocks of the segment before; what they covered is marked already.
    seen: Vec<(Seq, Seq)>,
    rack: Rack,
    /// Measures the delivery rate where somebody wants it.
    delivery: Option<Box<Delivery>>,
}

#[derive(Debug, Default)]
struct Rack {
    /// Transmission time and end of the most recently transmitted segment that was delivered.
    latest: Option<(Instant, Seq)>,
    rtt: Duration,
    min_rtt: Duration,
    reordering_seen: bool,
    /// What DSACKs add to the reordering window, in quarters of the smallest round-trip time.
    quarters_added: u32,
    /// Recoveries without a DSACK after which that ends.
    persist: u8,
    /// The round whose DSACKs are counted already ends here.
    duplicate_round: Option<Seq>,
    deadline: Option<Instant>,
}

/// RFC 8985, 6.2, step 4: so many recoveries without a DSACK end what DSACKs began.
const PERSIST: u8 = 16;
/// No reordering window is longer than the smoothed round-trip time; this bounds the counter.
const QUARTERS_MAX: u32 = 1_000;

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

impl Scoreboard {
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub(crate) fn retransmissions(&self) -> u64 {
        self.retransmissions
    }

    pub(crate) fn sacked(&self) -> u32 {
        self.sacked
    }

    /// When the reordering window of the next suspect ends (RFC 8985, 6.2).
    pub(crate) fn reordering_deadline(&self) -> Option<Instant> {
        self.rack.deadline
    }

    /// Records the first transmission of a segment.
    pub(crate) fn push(&mut self, now: Instant, start: Seq, end: Seq) {
        let snapshot = self.snapshot(now, end - start);
        self.records.push_back(Sent {
            start,
            end,
            sent_at: now,
            retransmitted: false,
            sacked: false,
            lost: false,
            snapshot,
        });
        self.order.push_back((now, start, end));
        self.in_flight += end - start;
    }

    /// What is known when `octets` are transmitted beside what is in flight.
    fn snapshot(&mut self, now: Instant, octets: u32) -> Snapshot {
        let in_flight = self.in_flight;
        let delivery = self.delivery.as_mut();
        delivery.map_or(Snapshot::default(), |delivery| {
            delivery.transmit(now, in_flight, octets)
        })
    }

    /// Begins or ends to measure the delivery rate.
    pub(crate) fn measure_delivery(&mut self, now: Instant, on: bool) {
        if on != self.delivery.is_some() {
            self.delivery = on.then(|| Box::new(Delivery::new(now)));
        }
    }

    /// Octets that have been delivered since that is measured.
    pub(crate) fn delivered(&self) -> u64 {
        let delivery = self.delivery.as_ref();
        delivery.map_or(0, |delivery| delivery.delivered())
    }

    /// Takes notice that the sender has run out of data.
    pub(crate) fn limit_delivery(&mut self) {
        if let Some(delivery) = &mut self.delivery {
            delivery.limit(self.in_flight);
        }
    }

    /// Tells whether the sender has been running out of data of late.
    pub(crate) fn is_application_limited(&self) -> bool {
        let delivery = self.delivery.as_ref();
        delivery.is_some_and(|delivery| delivery.is_application_limited())
    }

    /// Ends an acknowledgement: returns its sample of the delivery rate.
    pub(crate) fn sample_delivery(&mut self, now: Instant) -> Option<Sample> {
        let min_rtt = self.rack.min_rtt;
        self.delivery.as_mut()?.sample(now, min_rtt)
    }

    /// Takes what was found lost since the last call, where delivery is measured.
    pub(crate) fn take_losses(&mut self) -> Vec<Loss> {
        let delivery = self.delivery.as_mut();
        delivery.map_or(Vec::new(), |delivery| delivery.take_losses())
    }

    /// Tells whether something lost waits to be transmitted again.
    pub(crate) fn has_lost(&mut self) -> bool {
        self.first_lost().is_some()
    }

    /// Returns the next lost run of at most `limit` octets as one that is transmitted again now.
    pub(crate) fn take_lost(&mut self, now: Instant, limit: u32) -> Option<(Seq, Seq)> {
        let index = self.first_lost()?;
        self.lost.pop_front();
        let record = self.records[index];
        if record.end - record.start > limit {
            self.split(index, record.start + limit);
            // The rest stays lost and comes next.
            self.lost.rotate_right(1);
        }
        Some(self.retransmit(now, index))
    }

    /// Tells how long the next lost run is; zero when nothing is lost.
    pub(crate) fn peek_lost(&mut self) -> u32 {
        let index = self.first_lost();
        index.map_or(0, |index| {
            self.records[index].end - self.records[index].start
        })
    }

    fn first_lost(&mut self) -> Option<usize> {
        loop {
            let start = *self.lost.front()?;
            match self.find(start).filter(|&index| self.records[index].lost) {
                Some(index) => return Some(index),
                None => self.lost.pop_front(),
            };
        }
    }

    /// Takes the last run for a tail loss probe (RFC 8985, 7.3), at most `limit` octets of it.
    pub(crate) fn take_last(&mut self, now: Instant, limit: u32) -> Option<(Seq, Seq)> {
        let mut index = self.records.len().checked_sub(1)?;
        let record = self.records[index];
        if record.end - record.start > limit {
            let at = record.start + (record.end - record.start - limit);
            self.split(index, at);
            index += 1;
        }
        Some(self.retransmit(now, index))
    }

    fn retransmit(&mut self, now: Instant, index: usize) -> (Seq, Seq) {
        let Sent { start, end, .. } = self.records[index];
        self.in_flight -= self.records[index].in_flight();
        let snapshot = self.snapshot(now, end - start);
        self.retransmissions += 1;
        let record = &mut self.records[index];
        record.snapshot = snapshot;
        record.lost = false;
        record.retransmitted = true;
        record.sent_at = now;
        self.in_flight += record.in_flight();
        self.order.push_back((now, start, end));
        (start, end)
    }

    /// Says what the fastest answer is: a faster one is not that of a retransmission.
    pub(crate) fn set_min_rtt(&mut self, min_rtt: Option<Duration>) {
        self.rack.min_rtt = min_rtt.unwrap_or(Duration::ZERO);
    }

    /// Removes everything before `ack`.
    pub(crate) fn acknowledge(&mut self, now: Instant, ack: Seq) -> Delivered {
        let mut delivered = Delivered::default();
        while let Some(record) = self.records.front_mut() {
            if !record.start.before(ack) {
                break;
            }
            let end = record.end.min(ack);
            let part = Sent { end, ..*record };
            if record.end.after(ack) {
                record.start = ack;
            } else {
                self.records.pop_front();
            }
            self.in_flight -= part.in_flight();
            if part.sacked {
                self.sacked -= part.end - part.start;
            } else {
                self.deliver(now, part, &mut delivered);
            }
        }
        self.trim(ack);
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
        let mut delivered = Delivered::default();
        let mut fresh = Vec::with_capacity(blocks.len());
        for &(left, right) in blocks {
            let (left, right) = (Seq(left), Seq(right));
            // Also drops a DSACK, which lies at or below the acknowledgement (RFC 2883, 4).
            if !left.before(right) || left.before(snd_una) || right.after(snd_nxt) {
                continue;
            }
            fresh.push((left, right));
            let inside = |&&(l, r): &&(Seq, Seq)| !l.before(left) && !r.after(right);
            match self.seen.iter().find(inside).copied() {
                Some((seen_left, seen_right)) => {
                    self.mark_sacked(now, left, seen_left, &mut delivered);
                    self.mark_sacked(now, seen_right, right, &mut delivered);
                }
                None => self.mark_sacked(now, left, right, &mut delivered),
            }
        }
        if !fresh.is_empty() {
            self.seen = fresh;
        }
        delivered
    }

    fn mark_sacked(&mut self, now: Instant, left: Seq, right: Seq, delivered: &mut Delivered) {
        if !left.before(right) {
            return;
        }
        let mut index = self
            .records
            .partition_point(|record| !record.end.after(left));
        while let Some(&record) = self.records.get(index) {
            if !record.start.before(right) {
                break;
            }
            if record.sacked {
                index += 1;
                continue;
            }
            if record.start.before(left) {
                self.split(index, left);
                index += 1;
                continue;
            }
            if record.end.after(right) {
                self.split(index, right);
            }
            let record = &mut self.records[index];
            self.in_flight -= record.in_flight();
            self.sacked += record.end - record.start;
            record.sacked = true;
            record.lost = false;
            let record = *record;
            self.deliver(now, record, delivered);
            index += 1;
        }
    }

    /// RFC 8985, 6.2, steps 2 and 3.
    fn deliver(&mut self, now: Instant, record: Sent, delivered: &mut Delivered) {
        delivered.octets += record.end - record.start;
        if let Some(delivery) = &mut self.delivery {
            let run = (record.start, record.end);
            delivery.deliver(now, record.sent_at, run, record.snapshot);
        }
        delivered.retransmitted |= record.retransmitted;
        let rtt = now.saturating_duration_since(record.sent_at);
        if !record.retransmitted {
            delivered.rtt = Some(rtt);
            let once = delivered.once.unwrap_or(record.start);
            delivered.once = Some(if once.after(record.start) {
                record.start
            } else {
                once
            });
            if self.fack.is_some_and(|fack| record.end.before(fack)) {
                self.rack.reordering_seen = true;
            }
        } else if rtt < self.rack.min_rtt {
            // An answer that quick belongs to the first transmission.
            return;
        }
        self.fack = Some(self.fack.map_or(record.end, |fack| fack.max(record.end)));
        let sent = (record.sent_at, record.end);
        if self
            .rack
            .latest
            .is_none_or(|latest| sent_after(sent, latest))
        {
            self.rack.latest = Some(sent);
            self.rack.rtt = rtt;
        }
    }

    /// Marks as lost what was transmitted so long before something delivered that it is not
    /// merely reordered, and returns whether there was any (RFC 8985, 6.2, steps 4 and 5).
    pub(crate) fn detect_losses(&mut self, time: RackTime) -> bool {
        self.rack.deadline = None;
        let Some(latest) = self.rack.latest else {
            return false;
        };
        let window = self.reordering_window(time);
        let mut found = false;
        while let Some(&(sent_at, start, end)) = self.order.front() {
            if self.is_current(sent_at, start, end) {
                if !sent_after(latest, (sent_at, end)) {
                    break;
                }
                let deadline = sent_at + self.rack.rtt + window;
                if deadline > time.now {
                    self.rack.deadline = Some(deadline);
                    break;
                }
                found |= self.mark_lost(sent_at, start, end);
            }
            self.order.pop_front();
        }
        found
    }

    fn reordering_window(&self, time: RackTime) -> Duration {
        // Three segments above a hole: the duplicate threshold of RFC 6675.
        let threshold = time.recovering || self.sacked >= 3 * time.mss;
        if !self.rack.reordering_seen && threshold {
            return Duration::ZERO;
        }
        let quarter = time.min_rtt.unwrap_or(Duration::ZERO) / 4;
        let window = quarter * (1 + self.rack.quarters_added);
        window.min(time.smoothed_rtt.unwrap_or(Duration::MAX))
    }

    /// Widens the reordering window, once in a round, for what was retransmitted needlessly
    /// (RFC 8985, 6.2, step 4).
    pub(crate) fn handle_duplicate(&mut self, snd_una: Seq, snd_nxt: Seq) {
        let rack = &mut self.rack;
        if rack.duplicate_round.is_none_or(|end| !snd_una.before(end)) {
            rack.duplicate_round = Some(snd_nxt);
            rack.quarters_added = (rack.quarters_added + 1).min(QUARTERS_MAX);
            rack.persist = PERSIST;
        }
    }

    /// Counts a recovery that has ended (RFC 8985, 6.2, step 4).
    pub(crate) fn end_recovery(&mut self) {
        self.rack.persist = self.rack.persist.saturating_sub(1);
        if self.rack.persist == 0 {
            self.rack.quarters_added = 0;
        }
    }

    /// Takes notice of a reordering that was mistaken for a loss.
    pub(crate) fn handle_reordering(&mut self) {
        self.rack.reordering_seen = true;
    }

    /// Marks the first record as lost: NewReno for a peer without SACK (RFC 6582).
    pub(crate) fn mark_first_lost(&mut self) -> bool {
        let Some(first) = self.records.front() else {
            return false;
        };
        self.mark_lost(first.sent_at, first.start, first.end)
    }

    /// Marks everything as lost after a timeout. When the first record had been sacked, the peer
    /// has thrown it away, so no SACK counts any more (RFC 2018, 8).
    pub(crate) fn mark_all_lost(&mut self) {
        let reneged = self.records.front().is_some_and(|record| record.sacked);
        self.lost.clear();
        self.order.clear();
        self.seen.clear();
        self.in_flight = 0;
        self.rack.deadline = None;
        for record in &mut self.records {
            if reneged {
                record.sacked = false;
            }
            if !record.sacked {
                if let (Some(delivery), false) = (&mut self.delivery, record.lost) {
                    delivery.lose(record.end - record.start, record.snapshot);
                }
                record.lost = true;
                self.lost.push_back(record.start);
            }
        }
        if reneged {
            self.sacked = 0;
        }
    }

    /// Takes back [`Scoreboard::mark_all_lost`] for what has not been retransmitted yet, after a
    /// timeout that proved spurious.
    pub(crate) fn forgive(&mut self) {
        self.lost.clear();
        for record in &mut self.records {
            if record.lost {
                record.lost = false;
                self.in_flight += record.end - record.start;
                self.order
                    .push_back((record.sent_at, record.start, record.end));
            }
        }
        // Older transmissions were appended behind newer ones.
        let order = self.order.make_contiguous();
        order.sort_by_key(|&(sent_at, _, _)| sent_at);
    }

    /// Marks as lost what is longer than a segment may be from now on.
    pub(crate) fn mark_longer_lost(&mut self, mss: u32) {
        for record in &mut self.records {
            if record.end - record.start > mss && record.in_flight() > 0 {
                self.in_flight -= record.in_flight();
                record.lost = true;
                self.lost.push_back(record.start);
            }
        }
    }

    fn mark_lost(&mut self, sent_at: Instant, start: Seq, end: Seq) -> bool {
        let mut index = self
            .records
            .partition_point(|record| !record.end.after(start));
        let mut found = false;
        while let Some(record) = self.records.get_mut(index) {
            if !record.start.before(end) {
                break;
            }
            if record.sent_at == sent_at && record.in_flight() > 0 {
                self.in_flight -= record.in_flight();
                if let Some(delivery) = &mut self.delivery {
                    delivery.lose(record.end - record.start, record.snapshot);
                }
                record.lost = true;
                self.lost.push_back(record.start);
                found = true;
            }
            index += 1;
        }
        found
    }

    fn is_current(&self, sent_at: Instant, start: Seq, end: Seq) -> bool {
        let index = self
            .records
            .partition_point(|record| !record.end.after(start));
        let records = self.records.range(index..);
        let mut records = records.take_while(|record| record.start.before(end));
        records.any(|record| record.sent_at == sent_at && record.in_flight() > 0)
    }

    /// Splits the record at `index` so that the second half begins at `at`.
    fn split(&mut self, index: usize, at: Seq) {
        let second = Sent {
            start: at,
            ..self.records[index]
        };
        self.records[index].end = at;
        self.records.insert(index + 1, second);
        if second.lost {
            self.lost.push_back(at);
        }
    }

    /// Returns the length of the oldest segment; zero when nothing is outstanding.
    pub(crate) fn first_length(&self) -> u32 {
        let first = self.records.front();
        first.map_or(0, |first| first.end - first.start)
    }

    /// Returns what is lost when it is a single segment.
    pub(crate) fn only_lost(&mut self) -> Option<(Seq, Seq)> {
        let first = self.first_lost().filter(|_| self.lost.len() == 1)?;
        let record = self.records[first];
        Some((record.start, record.end))
    }

    /// Tells whether what begins at `start` has been transmitted more than once.
    pub(crate) fn is_retransmitted(&self, start: Seq) -> bool {
        let last = self.records.back().filter(|last| last.start == start);
        let index = || self.find(start).map(|index| &self.records[index]);
        last.or_else(index)
            .is_none_or(|record| record.retransmitted)
    }

    fn find(&self, start: Seq) -> Option<usize> {
        let index = self
            .records
            .partition_point(|record| record.start.before(start));
        (self.records.get(index)?.start == start).then_some(index)
    }

    /// Forgets what lies before `ack`; an idle connection keeps no memory.
    fn trim(&mut self, ack: Seq) {
        if self.records.is_empty() {
            let rack = Rack {
                deadline: None,
                ..std::mem::take(&mut self.rack)
            };
            *self = Self {
                rack,
                fack: self.fack,
                delivery: self.delivery.take(),
                retransmissions: self.retransmissions,
                ..Self::default()
            };
            return;
        }
        while self
            .order
            .front()
            .is_some_and(|&(_, _, end)| !end.after(ack))
        {
            self.order.pop_front();
        }
    }
}

/// RFC 8985, 6.2: later in time, and at the same time further in sequence.
fn sent_after(a: (Instant, Seq), b: (Instant, Seq)) -> bool {
    a.0 > b.0 || (a.0 == b.0 && a.1.after(b.1))
}
