//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use std::net::IpAddr;

/// A running one's complement sum that has not been folded yet.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Sum(u64);

impl Sum {
    /// Adds `bytes`, which start at an even offset of the covered data.
    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "bytes are no sum")]
    pub fn add(self, bytes: &[u8]) -> Self {
        // One's complement sums do not depend on byte order (RFC 1071, 2(B)): words are added as
        // the machine holds them, as wide as they come, and swapped once.
        let (blocks, rest) = bytes.as_chunks::<64>();
        let mut sum = 0;
        for block in blocks {
            let words = block.as_chunks::<8>().0.iter();
            sum = end_around(words.fold((sum, false), add_with_carry));
        }
        let (words, rest) = rest.as_chunks::<8>();
        let sum = end_around(words.iter().fold((sum, false), add_with_carry));
        let mut tail = [0; 8];
        tail[..rest.len()].copy_from_slice(rest);
        let sum = end_around(add_with_carry((sum, false), &tail));
        let folded = Self((sum >> 32) + (sum & 0xffff_ffff)).fold();
        Self(self.0 + u64::from(u16::from_be_bytes(folded.to_ne_bytes())))
    }

    /// Adds one 16-bit word.
    #[must_use]
    pub fn add_word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }

    /// Adds the pseudo-header of TCP, UDP and ICMPv6 (RFC 9293, 3.1; RFC 8200, 8.1).
    ///
    /// Both addresses are of one family; `length` counts the upper-layer header and its data.
    #[must_use]
    pub fn add_pseudo_header(
        self,
        source: IpAddr,
        destination: IpAddr,
        next_header: u8,
        length: usize,
    ) -> Self {
        let length = u32::try_from(length).expect("an IP packet is shorter than 2^32 bytes");
        self.add_address(source)
            .add_address(destination)
            .add_word(u16::from(next_header))
            .add(&length.to_be_bytes())
    }

    fn add_address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.add(&address.octets()),
            IpAddr::V6(address) => self.add(&address.octets()),
        }
    }

    /// Folds the sum to 16 bits without inverting it.
    #[must_use]
    pub fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        u16::try_from(sum).expect("folded to 16 bits")
    }

    /// Returns the checksum: the complement of the folded sum.
    #[must_use]
    pub fn finish(self) -> u16 {
        !self.fold()
    }
}

fn add_with_carry((sum, carry): (u64, bool), word: &[u8; 8]) -> (u64, bool) {
    sum.carrying_add(u64::from_ne_bytes(*word), carry)
}

/// A carry out of the top comes in at the bottom; it cannot carry again, because a sum that has
/// just wrapped is not all ones.
fn end_around((sum, carry): (u64, bool)) -> u64 {
    sum + u64::from(carry)
}

/// Returns the checksum after one 16-bit word of the covered data changed (RFC 1624, equation 3).
#[must_use]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !Sum::default()
        .add_word(!checksum)
        .add_word(!old)
        .add_word(new)
        .fold()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().add(&bytes).fold(), 0xddf2);
    }

    #[test]
    fn an_odd_byte_counts_as_the_high_half_of_a_word() {
        assert_eq!(Sum::default().add(&[0xab]).fold(), 0xab00);
        assert_eq!(
            Sum::default().add(&[1, 2, 3, 4, 5]).fold(),
            0x0102 + 0x0304 + 0x0500
        );
    }

    #[test]
    fn a_long_sum_is_that_of_its_words_one_by_one() {
        for length in (0..300).chain([1420, 65_535]) {
            let bytes: Vec<u8> = (0..length)
                .map(|n| u8::try_from(255 - n % 7).expect("small"))
                .collect();
            let one_by_one = bytes.chunks(2).fold(Sum::default(), |sum, pair| {
                sum.add_word(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))
            });
            assert_eq!(
                Sum::default().add(&bytes).fold(),
                one_by_one.fold(),
                "{length}"
            );
        }
        assert_eq!(Sum::default().add(&[0xff; 1000]).fold(), 0xffff);
    }

    #[test]
    fn an_update_equals_a_new_sum() {
        let mut bytes = [0x45, 0x00, 0x12, 0x34, 0xff, 0xff, 0x00, 0x00];
        let before = Sum::default().add(&bytes).finish();
        bytes[2..4].copy_from_slice(&[0xbe, 0xef]);
        let after = Sum::default().add(&bytes).finish();
        assert_eq!(update(before, 0x1234, 0xbeef), after);
    }
}
