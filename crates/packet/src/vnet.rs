//! The virtio_net_hdr before each packet of a TUN device with `IFF_VNET_HDR` (virtio 1.2, 5.1.6).

use crate::{
    gro,
    gso::{self, Kind},
};

/// Length of the header without the count of buffers.
pub const HEADER: usize = 10;

/// What the kernel says about a packet that it hands over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Given {
    /// A packet as it goes on the wire.
    Whole,
    /// A packet whose checksum is left to us: see [`gso::complete_checksum`].
    Unsummed {
        /// Where the covered bytes begin.
        start: usize,
        /// Where behind that the checksum stands.
        offset: usize,
    },
    /// A super-packet for [`gso::split`].
    Super {
        /// What it carries.
        kind: Kind,
        /// Payload of each part.
        size: usize,
    },
}

/// Parses a header; a kind of super-packet that was not asked for is malformed.
pub fn parse(header: &[u8; HEADER]) -> Result<Given, gso::Malformed> {
    let word = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let kind = match header[1] & !GSO_ECN {
        GSO_NONE if header[0] & NEEDS_CSUM == 0 => return Ok(Given::Whole),
        GSO_NONE => {
            let (start, offset) = (word(CSUM_START), word(CSUM_OFFSET));
            return Ok(Given::Unsummed { start, offset });
        }
        GSO_TCPV4 | GSO_TCPV6 => Kind::Tcp,
        GSO_UDP_L4 => Kind::Udp,
        _ => return Err(gso::Malformed::Transport),
    };
    match word(GSO_SIZE) {
        0 => Err(gso::Malformed::SegmentSize),
        size => Ok(Given::Super { kind, size }),
    }
}

/// Writes the header of a super-packet.
///
/// A packet that goes by itself has a header of zeros: the kernel verifies its checksum.
#[must_use]
pub fn emit(offload: &gro::Offload, v6: bool) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = NEEDS_CSUM;
    header[1] = match (offload.kind, v6) {
        (Kind::Tcp, false) => GSO_TCPV4,
        (Kind::Tcp, true) => GSO_TCPV6,
        (Kind::Udp, _) => GSO_UDP_L4,
    };
    let words = [
        (HDR_LEN, offload.header_length),
        (GSO_SIZE, offload.size),
        (CSUM_START, offload.checksum_start),
        (CSUM_OFFSET, offload.checksum_offset),
    ];
    for (at, value) in words {
        let value = u16::try_from(value).expect("a length inside an IP packet");
        header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
    header
}

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`: CWR stands in the first part only, which splitting does anyway.
const GSO_ECN: u8 = 0x80;
const HDR_LEN: usize = 2;
const GSO_SIZE: usize = 4;
const CSUM_START: usize = 6;
const CSUM_OFFSET: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(flags: u8, kind: u8, words: [u16; 4], expected: Result<Given, gso::Malformed>) {
        let mut header = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0];
        for (index, word) in words.iter().enumerate() {
            header[2 + 2 * index..4 + 2 * index].copy_from_slice(&word.to_ne_bytes());
        }
        assert_eq!(parse(&header), expected);
    }

    #[test]
    fn every_kind_of_header_says_what_is_left_to_us() {
        let (kind, size) = (Kind::Tcp, 1368);
        check(0, 0, [0; 4], Ok(Given::Whole));
        check(
            1,
            0,
            [0, 0, 20, 16],
            Ok(Given::Unsummed {
                start: 20,
                offset: 16,
            }),
        );
        check(1, 1, [52, 1368, 20, 16], Ok(Given::Super { kind, size }));
        check(1, 0x84, [72, 1368, 40, 16], Ok(Given::Super { kind, size }));
        let (kind, size) = (Kind::Udp, 9);
        check(1, 5, [28, 9, 20, 6], Ok(Given::Super { kind, size }));
        check(1, 3, [28, 9, 20, 6], Err(gso::Malformed::Transport));
        check(1, 4, [28, 0, 20, 6], Err(gso::Malformed::SegmentSize));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let offload = gro::Offload {
            kind: Kind::Udp,
            size: 1200,
            header_length: 48,
            checksum_start: 40,
            checksum_offset: 6,
        };
        let (kind, size) = (Kind::Udp, 1200);
        assert_eq!(
            parse(&emit(&offload, true)),
            Ok(Given::Super { kind, size })
        );
    }
}
