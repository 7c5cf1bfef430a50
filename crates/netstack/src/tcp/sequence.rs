//! Sequence numbers: 32 bits that wrap (RFC 9293, 3.4).

use std::ops::{Add, Sub};

/// A sequence number; two of one connection compare by their signed distance.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Seq(pub(crate) u32);

impl Seq {
    /// Tells whether `self` comes before `other`.
    pub(crate) fn before(self, other: Self) -> bool {
        // The top bit of the wrapped difference is its sign.
        self.0.wrapping_sub(other.0) > u32::MAX / 2
    }

    /// Tells whether `self` comes after `other`.
    pub(crate) fn after(self, other: Self) -> bool {
        other.before(self)
    }

    pub(crate) fn max(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }

    pub(crate) fn min(self, other: Self) -> Self {
        if other.before(self) { other } else { self }
    }

    /// Returns how far `self` is behind `earlier`, or zero when it comes before it.
    pub(crate) fn since(self, earlier: Self) -> u32 {
        if self.before(earlier) {
            0
        } else {
            self - earlier
        }
    }
}

impl Add<u32> for Seq {
    type Output = Self;

    fn add(self, octets: u32) -> Self {
        Self(self.0.wrapping_add(octets))
    }
}

impl Sub for Seq {
    type Output = u32;

    fn sub(self, other: Self) -> u32 {
        self.0.wrapping_sub(other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        let last = Seq(u32::MAX);
        assert!(last.before(last + 1) && (last + 1).after(last));
        assert!(!last.before(last) && !last.after(last));
        assert_eq!((last + 5).since(last), 5);
        assert_eq!(last.since(last + 5), 0);
        assert_eq!((last.max(Seq(3)), last.min(Seq(3))), (Seq(3), last));
    }
}
