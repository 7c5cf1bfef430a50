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
        // the machine holds them and swapped once, which lets the compiler vectorise the loop.
        let mut sum = 0_u64;
        let mut chunks = bytes.chunks_exact(4);
        for chunk in &mut chunks {
            let word = u32::from_ne_bytes(chunk.try_into().expect("chunks of four bytes"));
            sum += u64::from(word);
        }
        let mut tail = [0; 4];
        let rest = chunks.remainder();
        tail[..rest.len()].copy_from_slice(rest);
        // The sum stays below 2^64: a packet has at most 2^14 words of 32 bits.
        let folded = Self(sum + u64::from(u32::from_ne_bytes(tail))).fold();
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
    fn an_update_equals_a_new_sum() {
        let mut bytes = [0x45, 0x00, 0x12, 0x34, 0xff, 0xff, 0x00, 0x00];
        let before = Sum::default().add(&bytes).finish();
        bytes[2..4].copy_from_slice(&[0xbe, 0xef]);
        let after = Sum::default().add(&bytes).finish();
        assert_eq!(update(before, 0x1234, 0xbeef), after);
    }
}
