//! The header before each packet of a TUN with offloads (virtio 1.2, 5.1.6; linux/virtio_net.h).

use os::tun::VNET_HEADER;
use packet::{gro::Offload, gso::Kind};

/// What the kernel says about a packet it hands over.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Header {
    /// Where the covered bytes of an unfinished checksum begin, and where behind that it stands.
    pub(crate) checksum: Option<(usize, usize)>,
    /// A super-packet, and the payload of each of its parts.
    pub(crate) large: Option<(Kind, usize)>,
}

/// Splits what was read into header and packet; `None` if it is cut short or of a kind that was
/// not asked for.
pub(crate) fn parse(bytes: &mut [u8]) -> Option<(Header, &mut [u8])> {
    let (header, packet) = bytes.split_at_mut_checked(VNET_HEADER)?;
    let word = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let kind = match header[1] & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCP_V4 | GSO_TCP_V6 => Some(Kind::Tcp),
        GSO_UDP_L4 => Some(Kind::Udp),
        _ => return None,
    };
    let parsed = Header {
        checksum: (header[0] & NEEDS_CHECKSUM != 0).then(|| (word(6), word(8))),
        large: kind.map(|kind| (kind, word(4))),
    };
    Some((parsed, packet))
}

/// Makes the header of a packet that is handed to the kernel; `None`: a finished packet.
pub(crate) fn emit(offload: Option<Offload>, v6: bool) -> [u8; VNET_HEADER] {
    let mut header = [0; VNET_HEADER];
    let Some(offload) = offload else {
        return header;
    };
    header[0] = NEEDS_CHECKSUM;
    header[1] = match (offload.kind, v6) {
        (Kind::Tcp, false) => GSO_TCP_V4,
        (Kind::Tcp, true) => GSO_TCP_V6,
        (Kind::Udp, _) => GSO_UDP_L4,
    };
    let words = [
        offload.header_length,
        offload.size,
        offload.checksum_start,
        offload.checksum_offset,
    ];
    for (place, word) in header[2..].chunks_mut(2).zip(words) {
        let word = u16::try_from(word).expect("places in an IP packet");
        place.copy_from_slice(&word.to_ne_bytes());
    }
    header
}

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Says that CWR is set; splitting leaves it on the first part anyway.
const GSO_ECN: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_emitted_is_parsed_back() {
        let offload = Offload {
            kind: Kind::Tcp,
            size: 1380,
            header_length: 60,
            checksum_start: 40,
            checksum_offset: 16,
        };
        let mut bytes = emit(Some(offload), true).to_vec();
        bytes.extend([0x60, 1, 2]);
        let (header, packet) = parse(&mut bytes).unwrap();
        assert_eq!(header.checksum, Some((40, 16)));
        assert_eq!(header.large, Some((Kind::Tcp, 1380)));
        assert_eq!(packet, [0x60, 1, 2]);
        let mut plain = emit(None, false);
        assert_eq!(parse(&mut plain).unwrap().0, Header::default());
    }

    #[test]
    fn what_is_cut_short_or_unknown_is_no_packet() {
        assert!(parse(&mut [0; VNET_HEADER - 1]).is_none());
        let mut fragmented_udp = [0; VNET_HEADER];
        fragmented_udp[1] = 3;
        assert!(parse(&mut fragmented_udp).is_none());
    }
}
