//! Buffers that grow in chunks under one budget, and hold nothing when they are empty; the stack
//! keeps some of their chunks.

use std::collections::VecDeque;

use super::sequence::Seq;

/// Bytes that a connection may hold each way even when the budget is used up, so that every
/// connection moves on.
pub(crate) const FLOOR: usize = 4096;

/// So many out-of-order ranges are kept however little is in them; data that would make one more
/// than this and [`CHUNK_RANGES_MAX`] allow is not taken.
pub(crate) const RANGES_MAX: usize = 256;

/// So many are kept for each chunk that is held: room for every other segment of whatever a full
/// queue has dropped.
const CHUNK_RANGES_MAX: usize = 4;

const CHUNK: usize = 4096;

type Chunk = Box<[u8; CHUNK]>;

/// So many chunks a stack keeps for the next bytes: what is acknowledged and what is sent take
/// turns, and the allocator costs more than they do.
const SPARE_MAX: usize = 256;

/// How many insertions are remembered: all that one batch of packets makes.
const RECENT: usize = 64;

/// Chunks that no buffer holds, the last one given back first, which the cache still has.
#[derive(Debug, Default)]
pub(crate) struct Spare(Vec<Chunk>);

/// Bytes that all buffers of a stack hold together.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    pub(crate) used: usize,
    pub(crate) max: usize,
    pub(crate) spare: Spare,
}

impl Budget {
    fn take(&mut self) -> Chunk {
        self.used += CHUNK;
        let spare = self.spare.0.pop();
        spare.unwrap_or_else(|| Box::new([0; CHUNK]))
    }

    fn give_back(&mut self, chunk: Chunk) {
        self.used -= CHUNK;
        if self.spare.0.len() < SPARE_MAX {
            self.spare.0.push(chunk);
        }
    }

    pub(crate) fn room(&self) -> usize {
        self.max.saturating_sub(self.used)
    }
}

/// A sparse byte sequence that is consumed from its front.
#[derive(Debug, Default)]
struct Chunks {
    chunks: VecDeque<Option<Chunk>>,
    /// Where in the first chunk the sequence begins.
    head: usize,
}

impl Chunks {
    fn write(&mut self, offset: usize, mut bytes: &[u8], budget: &mut Budget) {
        let mut at = self.head + offset;
        while !bytes.is_empty() {
            let (index, start) = (at / CHUNK, at % CHUNK);
            if index >= self.chunks.len() {
                self.chunks.resize_with(index + 1, || None);
            }
            let chunk = self.chunks[index].get_or_insert_with(|| budget.take());
            let length = bytes.len().min(CHUNK - start);
            chunk[start..start + length].copy_from_slice(&bytes[..length]);
            bytes = &bytes[length..];
            at += length;
        }
    }

    fn read(&self, offset: usize, mut out: &mut [u8]) {
        let mut at = self.head + offset;
        while !out.is_empty() {
            let (index, start) = (at / CHUNK, at % CHUNK);
            let length = out.len().min(CHUNK - start);
            let chunk = self.chunks[index]
                .as_ref()
                .expect("only what was written is read");
            out[..length].copy_from_slice(&chunk[start..start + length]);
            out = &mut out[length..];
            at += length;
        }
    }

    fn pieces(&self, offset: usize, length: usize) -> Pieces<'_> {
        Pieces {
            chunks: &self.chunks,
            at: self.head + offset,
            left: length,
        }
    }

    fn advance(&mut self, length: usize, budget: &mut Budget) {
        self.head += length;
        while self.head >= CHUNK {
            self.head -= CHUNK;
            if let Some(chunk) = self.chunks.pop_front().flatten() {
                budget.give_back(chunk);
            }
        }
    }

    /// Chunks that are held.
    fn held(&self) -> usize {
        self.chunks.iter().flatten().count()
    }

    fn clear(&mut self, budget: &mut Budget) {
        let chunks = std::mem::take(self).chunks;
        chunks
            .into_iter()
            .flatten()
            .for_each(|chunk| budget.give_back(chunk));
    }
}

/// Bytes of a buffer, in the pieces in which they lie there.
#[derive(Clone, Debug)]
pub(crate) struct Pieces<'a> {
    chunks: &'a VecDeque<Option<Chunk>>,
    at: usize,
    left: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.left == 0 {
            return None;
        }
        let (index, start) = (self.at / CHUNK, self.at % CHUNK);
        let length = self.left.min(CHUNK - start);
        let chunk = self.chunks[index]
            .as_ref()
            .expect("only what was written is read");
        self.at += length;
        self.left -= length;
        Some(&chunk[start..start + length])
    }
}

/// What was given to `send` and is not acknowledged yet.
#[derive(Debug, Default)]
pub(crate) struct SendBuffer {
    chunks: Chunks,
    length: usize,
    acknowledged: u64,
}

impl SendBuffer {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Takes what fits under `limit` and the budget, and returns how much that is.
    pub(crate) fn push(&mut self, bytes: &[u8], limit: usize, budget: &mut Budget) -> usize {
        let own = limit.saturating_sub(self.length);
        let shared = budget.room().max(FLOOR.saturating_sub(self.length));
        let length = bytes.len().min(own).min(shared);
        self.chunks.write(self.length, &bytes[..length], budget);
        self.length += length;
        length
    }

    pub(crate) fn copy(&self, offset: usize, out: &mut [u8]) {
        self.chunks.read(offset, out);
    }

    pub(crate) fn pieces(&self, offset: usize, length: usize) -> Pieces<'_> {
        self.chunks.pieces(offset, length)
    }

    /// Bytes that have been acknowledged since the beginning.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub(crate) fn advance(&mut self, length: usize, budget: &mut Budget) {
        self.length -= length;
        self.acknowledged += to_u64(length);
        if self.length == 0 {
            self.chunks.clear(budget);
        } else {
            self.chunks.advance(length, budget);
        }
    }

    pub(crate) fn clear(&mut self, budget: &mut Budget) {
        self.length = 0;
        self.chunks.clear(budget);
    }
}

/// What became of received data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Inserted {
    /// So many bytes became readable.
    Advanced(usize),
    /// Kept until the gap before it is filled.
    OutOfOrder,
    /// Everything of it was there already.
    Duplicate,
    /// The ranges or the budget are used up.
    NoRoom,
}

/// Received data: a readable front, and ranges behind gaps.
#[derive(Debug, Default)]
pub(crate) struct ReceiveBuffer {
    chunks: Chunks,
    readable: usize,
    /// Offset of the first readable byte in the stream.
    base: u64,
    /// `None` where nothing is missing, as in most connections at most times.
    gaps: Option<Box<Gaps>>,
}

/// What stands behind gaps; never empty.
#[derive(Debug, Default)]
struct Gaps {
    /// Sorted, disjoint, not adjacent; offsets count from the beginning of the stream.
    ranges: Vec<Range>,
    /// Where the latest insertions began, the most recent last (RFC 2018, 4); neighbours are of
    /// different ranges.
    recent: VecDeque<u64>,
    /// So many of them the peer has not been told.
    unreported: usize,
}

impl Gaps {
    fn remember(&mut self, start: u64) {
        let last = self.recent.back().and_then(|&last| self.range_of(last));
        if last.is_some_and(|range| range.start <= start && start < range.end) {
            self.recent.pop_back();
            self.unreported = self.unreported.saturating_sub(1);
        } else if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(start);
        self.unreported = (self.unreported + 1).min(RECENT);
    }

    /// Returns the range that has `offset`, unless it is in order by now.
    fn range_of(&self, offset: u64) -> Option<Range> {
        let index = self.ranges.partition_point(|range| range.end <= offset);
        let range = self.ranges.get(index)?;
        (range.start <= offset).then_some(*range)
    }
}

#[derive(Clone, Copy, Debug)]
struct Range {
    start: u64,
    end: u64,
}

impl ReceiveBuffer {
    pub(crate) fn readable(&self) -> usize {
        self.readable
    }

    /// Bytes that have come in order since the beginning.
    pub(crate) fn received(&self) -> u64 {
        self.base + to_u64(self.readable)
    }

    pub(crate) fn has_gaps(&self) -> bool {
        self.gaps.is_some()
    }

    /// Tells whether there are ranges that no report has had since they changed.
    pub(crate) fn has_unreported(&self) -> bool {
        self.gaps.as_ref().is_some_and(|gaps| gaps.unreported > 0)
    }

    /// Stores `bytes`, which stand `offset` behind the readable front.
    pub(crate) fn insert(&mut self, offset: usize, bytes: &[u8], budget: &mut Budget) -> Inserted {
        let position = self.readable + offset;
        // A chunk is allocated at most at either end of what is written.
        if bytes.len() + CHUNK > budget.room() && position + bytes.len() > FLOOR {
            return Inserted::NoRoom;
        }
        if offset == 0 && self.gaps.is_none() {
            self.chunks.write(position, bytes, budget);
            self.readable += bytes.len();
            return Inserted::Advanced(bytes.len());
        }
        let next = self.base + to_u64(self.readable);
        let start = next + to_u64(offset);
        let end = start + to_u64(bytes.len());
        let ranges = self.gaps.as_ref().map_or(&[][..], |gaps| &gaps.ranges);
        let first = ranges.partition_point(|range| range.end < start);
        let last = ranges.partition_point(|range| range.start <= end);
        let touching = &ranges[first..last];
        if touching
            .iter()
            .any(|range| range.start <= start && end <= range.end)
        {
            // Its block comes first in the next report (RFC 2883, 4).
            if let Some(gaps) = &mut self.gaps {
                gaps.remember(start);
            }
            return Inserted::Duplicate;
        }
        if touching.is_empty()
            && offset != 0
            && ranges.len() >= RANGES_MAX
            && ranges.len() >= CHUNK_RANGES_MAX * self.chunks.held()
        {
            return Inserted::NoRoom;
        }
        let merged_start = touching
            .first()
            .map_or(start, |range| range.start.min(start));
        let merged_end = touching.last().map_or(end, |range| range.end.max(end));
        self.chunks.write(position, bytes, budget);
        if merged_start == next {
            if let Some(gaps) = &mut self.gaps {
                gaps.ranges.drain(first..last);
            }
            let advanced = usize::try_from(merged_end - next).expect("bounded by the window");
            self.readable += advanced;
            self.gaps.take_if(|gaps| gaps.ranges.is_empty());
            return Inserted::Advanced(advanced);
        }
        let merged = Range {
            start: merged_start,
            end: merged_end,
        };
        let gaps = self.gaps.get_or_insert_default();
        gaps.ranges.splice(first..last, [merged]);
        gaps.remember(start);
        Inserted::OutOfOrder
    }

    /// Reports up to `count` ranges behind gaps, the most recent first, where `rcv_nxt` is the
    /// sequence number behind the readable front.
    ///
    /// What came together may have changed more of them than one report has room for: then the
    /// older ones go first, and what is left is for the next. One that was left out would look
    /// lost, and reordered when it is named at last.
    pub(crate) fn report(&mut self, rcv_nxt: Seq, count: usize) -> Vec<(Seq, Seq)> {
        let next = self.base + to_u64(self.readable);
        let Some(gaps) = &mut self.gaps else {
            return Vec::new();
        };
        let mut blocks: Vec<Range> = Vec::with_capacity(count);
        // How many of the most recent insertions are in no block before the first of `blocks`.
        let mut left = Vec::with_capacity(count);
        for (age, &offset) in gaps.recent.iter().rev().enumerate() {
            if age >= gaps.unreported && blocks.len() >= count {
                break;
            }
            let Some(range) = gaps.range_of(offset) else {
                continue;
            };
            if blocks.iter().any(|block| block.start == range.start) {
                continue;
            }
            blocks.push(range);
            left.push(age);
        }
        let later = blocks.len().saturating_sub(count);
        gaps.unreported = left.get(later).copied().filter(|_| later > 0).unwrap_or(0);
        let at = |offset: u64| {
            let distance = u32::try_from(offset - next).expect("bounded by the window");
            rcv_nxt + distance
        };
        let now = blocks[later..].iter();
        now.map(|block| (at(block.start), at(block.end))).collect()
    }

    /// Moves readable bytes to the front of `out` and returns their number.
    pub(crate) fn read(&mut self, out: &mut [u8], budget: &mut Budget) -> usize {
        let length = self.readable.min(out.len());
        self.chunks.read(0, &mut out[..length]);
        self.readable -= length;
        self.base += to_u64(length);
        if self.readable == 0 && self.gaps.is_none() {
            self.chunks.clear(budget);
        } else {
            self.chunks.advance(length, budget);
        }
        length
    }

    pub(crate) fn clear(&mut self, budget: &mut Budget) {
        self.chunks.clear(budget);
        self.gaps = None;
        self.readable = 0;
    }
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).expect("a length fits 64 bits")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget() -> Budget {
        Budget {
            max: 1 << 20,
            ..Budget::default()
        }
    }

    #[test]
    fn an_empty_buffer_holds_no_memory() {
        let mut budget = budget();
        let mut send = SendBuffer::default();
        assert_eq!(send.push(&[7; 10_000], 9_000, &mut budget), 9_000);
        assert_eq!(budget.used, 3 * CHUNK);
        send.advance(4_096, &mut budget);
        assert_eq!(budget.used, 2 * CHUNK);
        send.advance(4_904, &mut budget);
        assert_eq!(budget.used, 0);
    }

    #[test]
    fn at_the_budget_a_buffer_still_has_its_floor() {
        let mut budget = Budget::default();
        let mut send = SendBuffer::default();
        assert_eq!(send.push(&[7; 10_000], 1 << 20, &mut budget), FLOOR);
        let mut receive = ReceiveBuffer::default();
        let full = receive.insert(0, &[7; FLOOR], &mut budget);
        assert_eq!(full, Inserted::Advanced(FLOOR));
        assert_eq!(receive.insert(0, &[7], &mut budget), Inserted::NoRoom);
    }

    #[test]
    fn sack_blocks_begin_with_the_most_recent_range() {
        let mut budget = budget();
        let mut buffer = ReceiveBuffer::default();
        for offset in [10, 30, 50, 20] {
            let inserted = buffer.insert(offset, &[1; 5], &mut budget);
            assert_eq!(inserted, Inserted::OutOfOrder);
        }
        // Four have changed, and the latest goes last.
        let expected = [(150, 155), (130, 135), (110, 115)];
        let expected = expected.map(|(a, b)| (Seq(a), Seq(b)));
        assert_eq!(buffer.report(Seq(100), 3), expected);
        let expected = [(120, 125), (150, 155), (130, 135)];
        let expected = expected.map(|(a, b)| (Seq(a), Seq(b)));
        assert_eq!(buffer.report(Seq(100), 3), expected);
    }

    #[test]
    fn every_range_is_reported_however_many_came_together() {
        let mut budget = budget();
        let mut buffer = ReceiveBuffer::default();
        for offset in [10, 30, 35, 50, 70, 90, 30] {
            buffer.insert(offset, &[1; 5], &mut budget);
        }
        let mut reports = Vec::new();
        while buffer.has_unreported() {
            let blocks = buffer.report(Seq(0), 2);
            reports.push(blocks.iter().map(|(start, _)| start.0).collect::<Vec<_>>());
        }
        assert_eq!(reports, [[50, 10], [90, 70], [30, 90]]);
        // What the peer knows is told again where nothing is new.
        assert_eq!(buffer.report(Seq(0), 1), [(Seq(30), Seq(40))]);
    }

    #[test]
    fn ranges_are_bounded_by_what_they_hold() {
        let mut budget = Budget {
            max: 16 << 20,
            ..Budget::default()
        };
        let mut buffer = ReceiveBuffer::default();
        let segment = [1; 1_368];
        for index in 0..1_500 {
            let inserted = buffer.insert((2 * index + 1) * segment.len(), &segment, &mut budget);
            assert_eq!(inserted, Inserted::OutOfOrder, "{index}");
        }
    }

    #[test]
    fn one_range_too_many_is_refused() {
        let mut budget = budget();
        let mut buffer = ReceiveBuffer::default();
        for index in 0..RANGES_MAX {
            buffer.insert(index * 10 + 10, &[1], &mut budget);
        }
        assert_eq!(buffer.insert(5, &[1], &mut budget), Inserted::NoRoom);
        assert_eq!(buffer.insert(0, &[1], &mut budget), Inserted::Advanced(1));
    }

    proptest! {
        #[test]
        fn pieces_in_any_order_make_the_stream(
            pieces in proptest::collection::vec((0_usize..20_000, 1_usize..1_500), 1..80),
        ) {
            let stream: Vec<u8> = (0..22_000_u32)
                .map(|at| (at * 7 + at / 251).to_le_bytes()[0])
                .collect();
            let mut budget = budget();
            let mut buffer = ReceiveBuffer::default();
            let mut present = vec![false; stream.len()];
            let mut read = Vec::new();
            for (index, (start, length)) in pieces.into_iter().enumerate() {
                let next = read.len() + buffer.readable();
                let start = start.max(next);
                let bytes = &stream[start..(start + length).max(start)  .min(stream.len())];
                if bytes.is_empty() {
                    continue;
                }
                match buffer.insert(start - next, bytes, &mut budget) {
                    Inserted::NoRoom => {}
                    Inserted::Advanced(_) | Inserted::OutOfOrder | Inserted::Duplicate => {
                        present[start..start + bytes.len()].fill(true);
                    }
                }
                if index % 3 == 0 {
                    let mut out = vec![0; 700];
                    let length = buffer.read(&mut out, &mut budget);
                    read.extend_from_slice(&out[..length]);
                }
                let expected = present.iter().take_while(|&&there| there).count();
                prop_assert_eq!(read.len() + buffer.readable(), expected);
            }
            let mut out = vec![0; buffer.readable()];
            buffer.read(&mut out, &mut budget);
            read.extend_from_slice(&out);
            prop_assert_eq!(&read[..], &stream[..read.len()]);
            buffer.clear(&mut budget);
            prop_assert_eq!(budget.used, 0);
        }
    }
}
