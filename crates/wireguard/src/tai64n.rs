//! TAI64N timestamps: they make a recorded initiation worthless (whitepaper 5.4.2).

use std::time::{Duration, SystemTime};

/// Length of a timestamp on the wire.
pub(crate) const TAI64N: usize = 12;

/// A TAI64N label in wire form; labels order like their bytes.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Tai64n(pub [u8; TAI64N]);

impl Tai64n {
    /// Returns the label of `wall`, whitened: rounded down so that it does not tell our clock.
    ///
    /// A time before 1970 counts as 1970.
    #[must_use]
    pub fn new(wall: SystemTime) -> Self {
        let since = wall
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let nanos = since.subsec_nanos();
        Self::from_parts(
            TAI_1970.saturating_add(since.as_secs()),
            nanos - nanos % WHITENING_NANOS,
        )
    }

    /// Returns the first whitened label that is newer than this one.
    #[must_use]
    pub(crate) fn successor(self) -> Self {
        let (seconds, nanos) = self.parts();
        let nanos = (nanos - nanos % WHITENING_NANOS).saturating_add(WHITENING_NANOS);
        if nanos < NANOS_PER_SECOND {
            Self::from_parts(seconds, nanos)
        } else {
            Self::from_parts(seconds.saturating_add(1), 0)
        }
    }

    fn from_parts(seconds: u64, nanos: u32) -> Self {
        let mut bytes = [0; TAI64N];
        bytes[..8].copy_from_slice(&seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Self(bytes)
    }

    fn parts(self) -> (u64, u32) {
        let (seconds, nanos) = self.0.split_at(8);
        (
            u64::from_be_bytes(seconds.try_into().expect("eight bytes")),
            u32::from_be_bytes(nanos.try_into().expect("four bytes")),
        )
    }
}

/// The label of 1970-01-01 00:00:10 TAI.
const TAI_1970: u64 = 0x4000_0000_0000_000a;
/// 2^24 ns, just below the 20 ms that a peer wants between two initiations.
const WHITENING_NANOS: u32 = 1 << 24;
const NANOS_PER_SECOND: u32 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_starts_at_1970_in_tai_and_is_whitened() {
        let wall = SystemTime::UNIX_EPOCH + Duration::new(1, WHITENING_NANOS + 5);
        assert_eq!(
            Tai64n::new(wall).0,
            [0x40, 0, 0, 0, 0, 0, 0, 0x0b, 1, 0, 0, 0]
        );
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(9);
        assert_eq!(Tai64n::new(before), Tai64n::new(SystemTime::UNIX_EPOCH));
    }

    #[test]
    fn a_successor_is_newer_over_the_end_of_a_second_and_of_time() {
        let mut label = Tai64n::new(SystemTime::UNIX_EPOCH);
        for _ in 0..1_000 {
            let next = label.successor();
            assert!(next > label && next.parts().1 < NANOS_PER_SECOND);
            label = next;
        }
        assert_eq!(
            Tai64n::from_parts(5, u32::MAX).successor(),
            Tai64n::from_parts(6, 0)
        );
        let last = Tai64n([0xff; TAI64N]);
        assert_eq!(last.successor(), Tai64n::from_parts(u64::MAX, 0));
    }
}
