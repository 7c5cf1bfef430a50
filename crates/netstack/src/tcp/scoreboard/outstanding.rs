//! The segments in flight, in order, and which of them are lost.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{Delivered, History, RackTime};
use crate::tcp::{delivery::Snapshot, sequence::Seq};

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

/// What is outstanding; amortised O(log n) for each segment.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    /// Never empty between two calls.
    records: VecDeque<Sent>,
    /// Transmissions in the order of time. An entry whose record has been acknowledged or
    /// transmitted again since is skipped, so each entry is looked at once.
    order: VecDeque<(Instant, Seq, Seq)>,
    /// Where lost records begin, in the order in which they were found lost.
    lost: VecDeque<Seq>,
    in_flight: u32,
    sacked: u32,
    /// The highest sequence number that was delivered (RACK.fack).
    fack: Option<Seq>,
    /// SACK blocks of the segment before; what they covered is marked already.
    seen: Vec<(Seq, Seq)>,
    /// Transmission time and end of the most recently transmitted segment that was delivered, and
    /// its round-trip time. Nothing that was sent before counts once all has been acknowledged.
    latest: Option<(Instant, Seq)>,
    rtt: Duration,
    /// An answer that comes faster is not that of a retransmission.
    min_rtt: Duration,
    deadline: Option<Instant>,
}

impl Outstanding {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub(super) fn sacked(&self) -> u32 {
        self.sacked
    }

    /// When the reordering window of the next suspect ends (RFC 8985, 6.2).
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Forgets what was known about the delivery rate when segments were transmitted.
    pub(super) fn forget_delivery(&mut self) {
        for record in &mut self.records {
            record.snapshot = Snapshot::of_flight(record.snapshot.in_flight());
        }
    }

    pub(super) fn set_min_rtt(&mut self, min_rtt: Duration) {
        self.min_rtt = min_rtt;
    }

    /// Records the first transmission of a segment.
    pub(super) fn push(&mut self, now: Instant, start: Seq, end: Seq, history: &mut History) {
        let snapshot = history.snapshot(now, self.in_flight, end - start);
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

    /// Returns the next lost run of at most `limit` octets as one that is transmitted again now.
    pub(super) fn take_lost(
        &mut self,
        now: Instant,
        limit: u32,
        history: &mut History,
    ) -> Option<(Seq, Seq)> {
        let index = self.first_lost()?;
        self.lost.pop_front();
        let record = self.records[index];
        if record.end - record.start > limit {
            self.split(index, record.start + limit);
            // The rest stays lost and comes next.
            self.lost.rotate_right(1);
        }
        Some(self.retransmit(now, index, history))
    }

    /// Tells how long the next lost run is; zero when nothing is lost.
    pub(super) fn peek_lost(&mut self) -> u32 {
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
    pub(super) fn take_last(
        &mut self,
        now: Instant,
        limit: u32,
        history: &mut History,
    ) -> Option<(Seq, Seq)> {
        let mut index = self.records.len().checked_sub(1)?;
        let record = self.records[index];
        if record.end - record.start > limit {
            let at = record.start + (record.end - record.start - limit);
            self.split(index, at);
            index += 1;
        }
        Some(self.retransmit(now, index, history))
    }

    fn retransmit(&mut self, now: Instant, index: usize, history: &mut History) -> (Seq, Seq) {
        let Sent { start, end, .. } = self.records[index];
        self.in_flight -= self.records[index].in_flight();
        let snapshot = history.snapshot(now, self.in_flight, end - start);
        history.retransmissions += 1;
        let record = &mut self.records[index];
        record.snapshot = snapshot;
        record.lost = false;
        record.retransmitted = true;
        record.sent_at = now;
        self.in_flight += record.in_flight();
        self.order.push_back((now, start, end));
        (start, end)
    }

    /// Removes everything before `ack`.
    pub(super) fn acknowledge(
        &mut self,
        now: Instant,
        ack: Seq,
        history: &mut History,
    ) -> Delivered {
        let mut delivered = Delivered::default();
        while let Some(record) = self.records.front_mut() {
            if !record.start.before(ack) {
                break;
            }
            let end = record.end.min(ack);
            let part = Sent { end, ..*record };
            if record.end.after(ack) {
                let start = std::mem::replace(&mut record.start, ack);
                // What is left of a lost one still waits for its turn, mostly as the first.
                let mut waiting = self.lost.iter_mut();
                if let Some(waiting) = waiting.find(|waiting| **waiting == start) {
                    *waiting = ack;
                }
            } else {
                self.records.pop_front();
            }
            self.in_flight -= part.in_flight();
            if part.sacked {
                self.sacked -= part.end - part.start;
            } else {
                self.deliver(now, part, history, &mut delivered);
            }
        }
        self.trim(ack);
        delivered
    }

    /// Marks what SACK blocks between `snd_una` and `snd_nxt` cover.
    pub(super) fn handle_sack(
        &mut self,
        now: Instant,
        blocks: &[(u32, u32)],
        (snd_una, snd_nxt): (Seq, Seq),
        history: &mut History,
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
                    self.mark_sacked(now, (left, seen_left), history, &mut delivered);
                    self.mark_sacked(now, (seen_right, right), history, &mut delivered);
                }
                None => self.mark_sacked(now, (left, right), history, &mut delivered),
            }
        }
        if !fresh.is_empty() {
            self.seen = fresh;
        }
        delivered
    }

    fn mark_sacked(
        &mut self,
        now: Instant,
        (left, right): (Seq, Seq),
        history: &mut History,
        delivered: &mut Delivered,
    ) {
        if !left.before(right) {
            return;
        }
        let mut index = self.first_after(left);
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
            self.deliver(now, record, history, delivered);
            index += 1;
        }
    }

    /// RFC 8985, 6.2, steps 2 and 3.
    fn deliver(
        &mut self,
        now: Instant,
        record: Sent,
        history: &mut History,
        delivered: &mut Delivered,
    ) {
        delivered.octets += record.end - record.start;
        if let Some(delivery) = &mut history.delivery {
            let run = (record.start, record.end);
            delivery.deliver(now, record.sent_at, run, record.snapshot);
        }
        delivered.retransmitted |= record.retransmitted;
        let rtt = now.saturating_duration_since(record.sent_at);
        if !record.retransmitted {
            delivered.rtt = Some(rtt);
            delivered.flight = delivered.flight.max(record.snapshot.in_flight());
            let once = delivered.once.unwrap_or(record.start);
            delivered.once = Some(if once.after(record.start) {
                record.start
            } else {
                once
            });
            if self.fack.is_some_and(|fack| record.end.before(fack)) {
                history.rack.reordering_seen = true;
            }
        } else if rtt < self.min_rtt {
            // An answer that quick belongs to the first transmission.
            return;
        }
        self.fack = Some(self.fack.map_or(record.end, |fack| fack.max(record.end)));
        let sent = (record.sent_at, record.end);
        if self.latest.is_none_or(|latest| sent_after(sent, latest)) {
            self.latest = Some(sent);
            self.rtt = rtt;
        }
    }

    /// Marks as lost what was transmitted so long before something delivered that it is not
    /// merely reordered, and returns whether there was any (RFC 8985, 6.2, steps 4 and 5).
    pub(super) fn detect_losses(&mut self, time: RackTime, history: &mut History) -> bool {
        self.deadline = None;
        let Some(latest) = self.latest else {
            return false;
        };
        let window = self.reordering_window(time, history);
        let mut found = false;
        while let Some(&(sent_at, start, end)) = self.order.front() {
            if self.is_current(sent_at, start, end) {
                if !sent_after(latest, (sent_at, end)) {
                    break;
                }
                let deadline = sent_at + self.rtt + window;
                if deadline > time.now {
                    self.deadline = Some(deadline);
                    break;
                }
                found |= self.mark_lost(sent_at, start, end, history);
            }
            self.order.pop_front();
        }
        found
    }

    fn reordering_window(&self, time: RackTime, history: &History) -> Duration {
        // Three segments above a hole: the duplicate threshold of RFC 6675.
        let threshold = time.recovering || self.sacked >= 3 * time.mss;
        if !history.rack.reordering_seen && threshold {
            return Duration::ZERO;
        }
        let smoothed = time.smoothed_rtt.unwrap_or(Duration::ZERO);
        let window = time.min_rtt.unwrap_or(Duration::ZERO) / 4;
        let added = smoothed / 4 * u32::from(history.rack.quarters_added);
        (window + added).min(smoothed)
    }

    /// Marks the first record as lost: NewReno for a peer without SACK (RFC 6582).
    pub(super) fn mark_first_lost(&mut self, history: &mut History) -> bool {
        let Some(first) = self.records.front() else {
            return false;
        };
        self.mark_lost(first.sent_at, first.start, first.end, history)
    }

    /// Marks everything as lost after a timeout. When the first record had been sacked, the peer
    /// has thrown it away, so no SACK counts any more (RFC 2018, 8).
    pub(super) fn mark_all_lost(&mut self, history: &mut History) {
        let reneged = self.records.front().is_some_and(|record| record.sacked);
        self.lost.clear();
        self.order.clear();
        self.seen.clear();
        self.in_flight = 0;
        self.deadline = None;
        for record in &mut self.records {
            if reneged {
                record.sacked = false;
            }
            if !record.sacked {
                if let (Some(delivery), false) = (&mut history.delivery, record.lost) {
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
    pub(super) fn forgive(&mut self) {
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
    pub(super) fn mark_longer_lost(&mut self, mss: u32) {
        for record in &mut self.records {
            if record.end - record.start > mss && record.in_flight() > 0 {
                self.in_flight -= record.in_flight();
                record.lost = true;
                self.lost.push_back(record.start);
            }
        }
    }

    fn mark_lost(&mut self, sent_at: Instant, start: Seq, end: Seq, history: &mut History) -> bool {
        let mut index = self.first_after(start);
        let mut found = false;
        while let Some(record) = self.records.get_mut(index) {
            if !record.start.before(end) {
                break;
            }
            if record.sent_at == sent_at && record.in_flight() > 0 {
                self.in_flight -= record.in_flight();
                if let Some(delivery) = &mut history.delivery {
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
        let index = self.first_after(start);
        let records = self.records.range(index..);
        let mut records = records.take_while(|record| record.start.before(end));
        records.any(|record| record.sent_at == sent_at && record.in_flight() > 0)
    }

    /// Returns the index of the first record that ends after `at`: while nothing is lost that is
    /// the oldest one.
    fn first_after(&self, at: Seq) -> usize {
        let oldest = self.records.front();
        if oldest.is_none_or(|record| record.end.after(at)) {
            return 0;
        }
        self.records.partition_point(|record| !record.end.after(at))
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
    pub(super) fn first_length(&self) -> u32 {
        let first = self.records.front();
        first.map_or(0, |first| first.end - first.start)
    }

    /// Returns what is lost when it is a single segment.
    pub(super) fn only_lost(&mut self) -> Option<(Seq, Seq)> {
        let first = self.first_lost().filter(|_| self.lost.len() == 1)?;
        let record = self.records[first];
        Some((record.start, record.end))
    }

    /// Tells whether what begins at `start` has been transmitted more than once.
    pub(super) fn is_retransmitted(&self, start: Seq) -> bool {
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

    /// Forgets the transmissions of what lies before `ack`.
    fn trim(&mut self, ack: Seq) {
        while self
            .order
            .front()
            .is_some_and(|&(_, _, end)| !end.after(ack))
        {
            self.order.pop_front();
        }
    }
}

#[cfg(any(test, feature = "invariants"))]
impl Outstanding {
    /// Panics when the records do not cover what lies between `snd_una` and `snd_nxt`, sacked or
    /// not, or are not counted right.
    pub(super) fn assert_invariants(&self, snd_una: Seq, snd_nxt: Seq) {
        let mut at = snd_una;
        let (mut in_flight, mut sacked) = (0, 0);
        for record in &self.records {
            assert_eq!(record.start, at, "records are in order, without gaps");
            assert!(record.start.before(record.end), "no record is empty");
            assert!(
                !(record.sacked && record.lost),
                "what has arrived is not lost"
            );
            at = record.end;
            in_flight += record.in_flight();
            if record.sacked {
                sacked += record.end - record.start;
            }
        }
        assert_eq!(at, snd_nxt, "records end with what was transmitted last");
        assert_eq!((self.in_flight, self.sacked), (in_flight, sacked));
        let lost = self.records.iter().filter(|record| record.lost);
        let waiting = lost.filter(|record| !self.lost.contains(&record.start));
        assert_eq!(waiting.count(), 0, "what is lost waits for its turn");
    }
}

/// RFC 8985, 6.2: later in time, and at the same time further in sequence.
fn sent_after(a: (Instant, Seq), b: (Instant, Seq)) -> bool {
    a.0 > b.0 || (a.0 == b.0 && a.1.after(b.1))
}
