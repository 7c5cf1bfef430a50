//! The maximum segment size on its way, which a router lowers to what the way behind it carries.

use crate::{checksum, ip};

use super::{Flags, HEADER};

/// Lowers the maximum segment size that a SYN in the IP packet `packet` states to `largest`.
///
/// The checksum is updated by what has changed, so an error stays one. A SYN that states none
/// means 536 bytes over IPv4 and 1,220 over IPv6 (RFC 9293, 3.7.1), and stays as it is; so does
/// everything that is no whole TCP header.
pub fn clamp_mss(packet: &mut [u8], largest: u16) {
    let Some(segment) = segment_mut(packet) else {
        return;
    };
    let Some(at) = mss_place(segment) else {
        return;
    };
    let stated = u16::from_be_bytes([segment[at], segment[at + 1]]);
    if stated <= largest {
        return;
    }
    segment[at..at + 2].copy_from_slice(&largest.to_be_bytes());
    // At an odd place each byte belongs to the other half of a word (RFC 1071, 2(B)).
    let word = |value: u16| {
        if at.is_multiple_of(2) {
            value
        } else {
            value.swap_bytes()
        }
    };
    let sum = u16::from_be_bytes([segment[CHECKSUM], segment[CHECKSUM + 1]]);
    let sum = checksum::update(sum, word(stated), word(largest));
    segment[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Finds the segment in an IP packet, if its header is there.
fn segment_mut(packet: &mut [u8]) -> Option<&mut [u8]> {
    let parsed = ip::parse(packet).ok()?;
    let first = parsed.header.fragment.is_none_or(|one| one.offset == 0);
    if parsed.header.next_header != ip::TCP || !first {
        return None;
    }
    let payload = parsed.payload.len();
    let length = ip::addresses(packet).ok()?.length;
    packet.get_mut(length - payload..length)
}

/// Finds the value of the option in a SYN; the last one counts, as in [`super::parse`].
fn mss_place(segment: &[u8]) -> Option<usize> {
    let fixed: &[u8; HEADER] = segment.first_chunk()?;
    if !Flags(fixed[13]).has(Flags::SYN) {
        return None;
    }
    let end = usize::from(fixed[12] >> 4) * 4;
    let options = segment.get(..end)?;
    let (mut at, mut found) = (HEADER, None);
    while let Some(&kind) = options.get(at) {
        at += match kind {
            END => break,
            NO_OPERATION => 1,
            _ => {
                let length = usize::from(*options.get(at + 1)?);
                if length < 2 || at + length > end {
                    return None;
                }
                if kind == MAXIMUM_SEGMENT_SIZE && length == 4 {
                    found = Some(at + 2);
                }
                length
            }
        };
    }
    found
}

/// Option kinds (RFC 9293, 3.1).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;
/// Where the checksum stands (RFC 9293, 3.1).
const CHECKSUM: usize = 16;

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::tcp::{self, Header, Options, Segment};

    const LARGEST: u16 = 1212;

    fn packet(v6: bool, flags: Flags, options: &[u8]) -> Vec<u8> {
        let (source, destination): (IpAddr, IpAddr) = if v6 {
            (
                [0xfd00, 0, 0, 0, 0, 0, 0, 1].into(),
                [0xfd00, 0, 0, 0, 0, 0, 0, 2].into(),
            )
        } else {
            ([192, 168, 1, 10].into(), [192, 168, 2, 20].into())
        };
        let header = Header {
            source_port: 1000,
            destination_port: 80,
            sequence: 7,
            flags,
            window: 65_535,
            ..Header::default()
        };
        let mut segment = [0; HEADER + tcp::OPTIONS_MAX];
        tcp::emit_header(&header, &mut segment);
        let length = HEADER + options.len();
        segment[HEADER..length].copy_from_slice(options);
        segment[12] = u8::try_from(length / 4).expect("at most 15") << 4;
        tcp::fill_checksum(source, destination, &mut segment[..length]);
        let outer = ip::Header {
            source,
            destination,
            next_header: ip::TCP,
            hop_limit: 64,
            traffic_class: 0,
            fragment: None,
        };
        let mut packet = vec![0; ip::header_length(destination) + length];
        let at = ip::emit_header(&outer, length, &mut packet);
        packet[at..].copy_from_slice(&segment[..length]);
        packet
    }

    fn segment(packet: &[u8]) -> Segment<'_> {
        let parsed = ip::parse(packet).expect("well-formed");
        let header = parsed.header;
        tcp::parse(header.source, header.destination, parsed.payload).expect("its checksum holds")
    }

    /// What a SYN with these options states before and behind the router.
    #[track_caller]
    fn check(options: &[u8], before: Option<u16>, behind: Option<u16>) {
        for v6 in [false, true] {
            for flags in [Flags::SYN, Flags::SYN.with(Flags::ACK)] {
                let mut packet = packet(v6, flags, options);
                let sent = segment(&packet).header;
                assert_eq!(sent.options.maximum_segment_size, before);
                clamp_mss(&mut packet, LARGEST);
                let options = Options {
                    maximum_segment_size: behind,
                    ..sent.options
                };
                assert_eq!(segment(&packet).header, Header { options, ..sent });
            }
        }
    }

    #[test]
    fn a_size_above_the_largest_becomes_the_largest() {
        check(&[2, 4, 5, 180], Some(1460), Some(1212));
        check(&[2, 4, 35, 40], Some(9000), Some(1212));
        check(
            &[2, 4, 5, 180, 4, 2, 1, 1, 1, 3, 3, 7],
            Some(1460),
            Some(1212),
        );
        check(&[3, 3, 7, 2, 4, 5, 180, 0], Some(1460), Some(1212));
        check(&[1, 1, 1, 2, 4, 5, 180, 0], Some(1460), Some(1212));
        check(&[2, 4, 0, 9, 2, 4, 5, 180], Some(1460), Some(1212));
    }

    #[test]
    fn a_smaller_size_stays_and_none_is_added() {
        check(&[2, 4, 4, 188], Some(1212), Some(1212));
        check(&[2, 4, 2, 24], Some(536), Some(536));
        check(&[4, 2, 1, 1], None, None);
        check(&[], None, None);
        // Behind the end, of a wrong length.
        check(&[0, 2, 4, 5], None, None);
        check(&[2, 3, 5, 1, 2, 2, 1, 1], None, None);
    }

    #[track_caller]
    fn check_stays(mut packet: Vec<u8>) {
        let before = packet.clone();
        clamp_mss(&mut packet, LARGEST);
        assert_eq!(packet, before);
    }

    #[test]
    fn what_is_no_whole_syn_stays_as_it_is() {
        let options = [2, 4, 5, 180];
        for v6 in [false, true] {
            check_stays(packet(v6, Flags::ACK, &options));
            let syn = packet(v6, Flags::SYN, &options);
            for length in 0..syn.len() {
                check_stays(syn[..length].to_vec());
            }
            // The option reaches behind the header, and the header behind the packet.
            check_stays(packet(v6, Flags::SYN, &[1, 1, 2, 4]));
            let mut long = syn.clone();
            let offset = syn.len() - options.len() - HEADER + 12;
            long[offset] = 15 << 4;
            check_stays(long);
        }
        // A later fragment (RFC 791, 3.1).
        let mut fragment = packet(false, Flags::SYN, &options);
        fragment[6..8].copy_from_slice(&[0x20, 1]);
        check_stays(fragment);
        // Another protocol.
        let mut other = packet(false, Flags::SYN, &options);
        other[9] = ip::UDP;
        check_stays(other);
    }

    #[test]
    fn headers_before_the_segment_are_passed() {
        let options = [2, 4, 5, 180];
        // Four bytes of IPv4 options.
        let plain = packet(false, Flags::SYN, &options);
        let mut long = [&plain[..20], &[1, 1, 1, 0], &plain[20..]].concat();
        long[0] = 0x46;
        long[3] += 4;
        clamp_mss(&mut long, LARGEST);
        assert_eq!(
            segment(&long).header.options.maximum_segment_size,
            Some(LARGEST)
        );
        // A hop-by-hop header (RFC 8200, 4.3).
        let plain = packet(true, Flags::SYN, &options);
        let mut long = [&plain[..40], &[ip::TCP, 0, 1, 4, 0, 0, 0, 0], &plain[40..]].concat();
        long[6] = 0;
        long[5] += 8;
        clamp_mss(&mut long, LARGEST);
        assert_eq!(
            segment(&long).header.options.maximum_segment_size,
            Some(LARGEST)
        );
    }
}
