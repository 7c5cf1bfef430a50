//! Packets on their way out, each in the slot in which it is sealed, one slot behind the other.

use std::ops::Range;

use super::{HEADER, OVERHEAD, padded};

/// Packets that are sealed and sent together.
///
/// ```text
/// buffer: | slot | slot | ... | room for the largest packet |
/// slot:   | header | packet | padding | tag |
/// ```
pub struct Slots {
    buffer: Box<[u8]>,
    /// At most `PACKETS_MAX`; they are sent then.
    packets: Vec<Span>,
    end: usize,
}

/// Where a packet is.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    /// Of the packet.
    length: usize,
    /// Of the whole slot: of the sealed datagram.
    total: usize,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            buffer: vec![0; BYTES_MAX + SLOT_MAX + SPARE_MAX].into_boxed_slice(),
            packets: Vec::with_capacity(PACKETS_MAX),
            end: 0,
        }
    }
}

impl Slots {
    /// Returns room for a packet of any size at `HEADER..HEADER + PACKET_MAX`, to be sealed there.
    pub fn slot(&mut self) -> &mut [u8] {
        &mut self.buffer[self.end..self.end + SLOT_MAX]
    }

    /// Appends the packet of `length` bytes that was written into the slot, when they are not full.
    /// It will be padded, but not beyond `mtu`.
    pub fn push(&mut self, length: usize, mtu: usize) {
        let total = padded(length).min(mtu.max(length)) + OVERHEAD;
        self.packets.push(Span {
            start: self.end,
            length,
            total,
        });
        self.end += total;
    }

    /// Does the same with room for the longest padding and `spare` bytes more, for a packet that
    /// may become longer before it is sealed.
    pub fn push_with_room(&mut self, length: usize, spare: u8) {
        let total = padded(length) + OVERHEAD + usize::from(spare);
        self.packets.push(Span {
            start: self.end,
            length,
            total,
        });
        self.end += total;
    }

    /// Tells whether they must be sent and cleared before another packet is written.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.packets.len() == PACKETS_MAX || self.end > BYTES_MAX
    }

    /// Tells whether it holds no packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Returns how many packets it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.end = 0;
    }

    /// Returns a packet that is not sealed yet.
    #[must_use]
    pub fn packet(&self, place: usize) -> &[u8] {
        let span = self.packets[place];
        &self.buffer[span.start + HEADER..][..span.length]
    }

    /// Returns the slot of a packet, and the packet's length.
    pub fn slot_of(&mut self, place: usize) -> (&mut [u8], usize) {
        let span = self.packets[place];
        (&mut self.buffer[span.start..][..span.total], span.length)
    }

    /// Returns the slot of each packet, one after the other.
    pub fn slots(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let spans = self.packets.iter();
        spans.map(|span| &self.buffer[span.start..][..span.total])
    }

    /// Returns the slot of each packet, one after the other, and the packet's length.
    pub fn slots_mut(&mut self) -> impl Iterator<Item = (&mut [u8], usize)> {
        let mut rest = &mut self.buffer[..];
        self.packets.iter().map(move |span| {
            let (slot, others) = std::mem::take(&mut rest).split_at_mut(span.total);
            rest = others;
            (slot, span.length)
        })
    }

    /// Returns the slot of a packet with room for the longest padding, and the packet's length.
    ///
    /// It may reach into the room for the next header, which is written later.
    pub fn roomy_slot_of(&mut self, place: usize) -> (&mut [u8], usize) {
        let span = self.packets[place];
        let room = padded(span.length) + OVERHEAD;
        (&mut self.buffer[span.start..][..room], span.length)
    }

    /// Returns how many bytes these packets have when sealed.
    #[must_use]
    pub fn bytes(&self, places: &Range<usize>) -> usize {
        self.packets[places.clone()]
            .iter()
            .map(|span| span.total)
            .sum()
    }

    /// Cuts these packets, sealed before, into runs: bytes and the length of a datagram.
    pub fn runs(&self, places: Range<usize>) -> impl Iterator<Item = (&[u8], usize)> {
        let mut rest = &self.packets[places];
        std::iter::from_fn(move || {
            let first = rest.first()?;
            let segment = first.total;
            let equal = rest.iter().take_while(|span| span.total == segment).count();
            // A shorter one may end the run.
            let shorter = rest.get(equal).is_some_and(|span| span.total < segment);
            let (run, others) = rest.split_at(equal + usize::from(shorter));
            rest = others;
            let last = run.last().unwrap_or(first);
            Some((&self.buffer[first.start..last.start + last.total], segment))
        })
    }
}

impl Slots {
    /// The largest IP packet in bytes.
    pub const PACKET_MAX: usize = PACKET_MAX;
}

const PACKET_MAX: usize = 65_535;
/// Room for a packet and all that sealing adds.
const SLOT_MAX: usize = padded(PACKET_MAX) + OVERHEAD;
/// As many as one UDP_SEGMENT call takes.
const PACKETS_MAX: usize = 64;
/// Bytes after which they are sent: all packets of usual sizes fit.
const BYTES_MAX: usize = PACKETS_MAX * 1_500;
/// Room that a longest packet may have more.
const SPARE_MAX: usize = 255;
const _: () = assert!(HEADER + PACKET_MAX < SLOT_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes packets and returns the runs as (bytes, segment).
    #[track_caller]
    fn check(lengths: &[usize], expected: &[(usize, usize)]) {
        let mut slots = Slots::default();
        for length in lengths {
            assert!(!slots.is_full());
            slots.slot()[HEADER..HEADER + length].fill(1);
            slots.push(*length, 1420);
        }
        let all = 0..slots.len();
        let runs: Vec<_> = slots
            .runs(all.clone())
            .map(|(bytes, segment)| (bytes.len(), segment))
            .collect();
        assert_eq!(runs, expected);
        let total: usize = runs.iter().map(|(bytes, _)| bytes).sum();
        assert_eq!(slots.bytes(&all), total);
        for (place, length) in lengths.iter().enumerate() {
            assert_eq!(slots.packet(place), vec![1; *length]);
        }
    }

    #[test]
    fn equal_datagrams_leave_together_and_a_shorter_one_ends_the_run() {
        check(&[96, 96, 50, 96], &[(128 + 128 + 96, 128), (128, 128)]);
        check(&[96, 112], &[(128, 128), (144, 144)]);
        check(&[1420; 48], &[(48 * 1452, 1452)]);
        check(&[0], &[(32, 32)]);
    }

    #[test]
    fn what_is_in_the_slot_outlasts_the_sealing_of_what_stands_before_it() {
        let mut slots = Slots::default();
        for length in [1, 1_419, 33] {
            slots.slot()[HEADER..HEADER + length].fill(1);
            slots.push(length, 1420);
        }
        slots.slot()[HEADER..HEADER + 9_000].fill(7);
        for place in 0..slots.len() {
            slots.roomy_slot_of(place).0.fill(9);
        }
        assert_eq!(slots.slot()[HEADER..HEADER + 9_000], vec![7; 9_000]);
    }

    #[test]
    fn every_slot_has_the_room_that_was_asked_for() {
        let mut slots = Slots::default();
        for (length, spare) in [(1_420, 0), (20, 28), (PACKET_MAX, u8::MAX)] {
            slots.slot()[HEADER..HEADER + length].fill(1);
            slots.push_with_room(length, spare);
        }
        let shapes = slots.slots_mut().map(|(slot, length)| {
            assert_eq!(slot[HEADER..HEADER + length], vec![1; length]);
            (length, slot.len())
        });
        let longest = (PACKET_MAX, SLOT_MAX + SPARE_MAX);
        assert_eq!(
            shapes.collect::<Vec<_>>(),
            [(1_420, 1_456), (20, 92), longest]
        );
    }

    #[test]
    fn they_are_full_before_the_largest_packet_has_no_room() {
        let mut slots = Slots::default();
        for length in [1, PACKET_MAX, PACKET_MAX] {
            assert_eq!(slots.slot().len(), SLOT_MAX);
            slots.push(length, 1420);
        }
        assert!(slots.is_full());
        slots.clear();
        for _ in 0..PACKETS_MAX {
            assert!(!slots.is_full());
            slots.push(20, 1420);
        }
        assert!(slots.is_full());
    }
}
