//! Super-packets against the parsers of their parts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

pub(crate) fn ends(v6: bool) -> (IpAddr, IpAddr) {
    if v6 {
        (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::from_bits(77).into())
    } else {
        (
            Ipv4Addr::LOCALHOST.into(),
            Ipv4Addr::new(10, 0, 0, 9).into(),
        )
    }
}

pub(crate) fn tcp_packet(v6: bool, header: tcp::Header, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = ends(v6);
    let at = ip::header_length(source);
    let mut out = vec![0; at + tcp::HEADER + header.options.length() + payload.len()];
    let length = tcp::emit(
        source,
        destination,
        &tcp::Segment { header, payload },
        &mut out[at..],
    );
    ip::emit_header(&ip_header(v6, ip::TCP), length, &mut out);
    out
}

pub(crate) fn udp_packet(v6: bool, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = ends(v6);
    let at = ip::header_length(source);
    let mut out = vec![0; at + udp::HEADER + payload.len()];
    let datagram = udp::Datagram {
        source_port: 5,
        destination_port: 6,
        payload,
    };
    let length = udp::emit(source, destination, &datagram, &mut out[at..]);
    ip::emit_header(&ip_header(v6, ip::UDP), length, &mut out);
    out
}

fn ip_header(v6: bool, next_header: u8) -> ip::Header {
    let (source, destination) = ends(v6);
    ip::Header {
        source,
        destination,
        next_header,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    }
}

pub(crate) fn parts(packet: &[u8], kind: Kind, size: usize) -> Vec<Vec<u8>> {
    let mut segments = split(packet, kind, size).unwrap();
    let mut out = vec![0; segments.length_max()];
    std::iter::from_fn(|| {
        segments
            .next_into(&mut out)
            .map(|length| out[..length].to_vec())
    })
    .collect()
}

#[test]
fn flags_go_where_they_belong() {
    let flags = tcp::Flags(!(tcp::Flags::SYN.0 | tcp::Flags::RST.0));
    let header = tcp::Header {
        sequence: u32::MAX - 5,
        flags,
        ..tcp::Header::default()
    };
    let parts = parts(&tcp_packet(false, header, &[7; 30]), Kind::Tcp, 10);
    let headers = parts.iter().map(|part| {
        let header = tcp::parse_unverified(ip::parse(part).unwrap().payload)
            .unwrap()
            .header;
        (header.sequence, header.flags.0 & 0x89)
    });
    let expected = [(u32::MAX - 5, 0x80), (4, 0), (14, 0x09)];
    assert_eq!(headers.collect::<Vec<_>>(), expected);
}

#[test]
fn a_kind_that_does_not_match_is_refused() {
    let tcp = tcp_packet(true, tcp::Header::default(), &[1; 9]);
    assert_eq!(split(&tcp, Kind::Udp, 5).unwrap_err(), Malformed::Transport);
    assert_eq!(
        split(&tcp, Kind::Tcp, 0).unwrap_err(),
        Malformed::SegmentSize
    );
    assert_eq!(split(&tcp[..30], Kind::Tcp, 5).unwrap_err(), Malformed::Ip);
}

#[test]
fn a_partial_checksum_is_completed() {
    let (source, destination) = ends(true);
    let mut packet = tcp_packet(true, tcp::Header::default(), &[1; 33]);
    let pseudo = Sum::default()
        .add_pseudo_header(source, destination, ip::TCP, 53)
        .fold();
    packet[56..58].copy_from_slice(&pseudo.to_be_bytes());
    complete_checksum(&mut packet, 40, 16).unwrap();
    assert!(tcp::parse(source, destination, &packet[40..]).is_ok());
    assert_eq!(
        complete_checksum(&mut packet, 92, 0),
        Err(Malformed::Checksum)
    );
    assert_eq!(
        complete_checksum(&mut packet, 0, usize::MAX),
        Err(Malformed::Checksum)
    );
}

proptest! {
    #[test]
    fn parts_carry_the_payload_with_right_checksums(
        v6 in any::<bool>(),
        udp in any::<bool>(),
        payload in proptest::collection::vec(any::<u8>(), 0..5_000),
        size in 1_usize..2_000,
    ) {
        let (source, destination) = ends(v6);
        let (kind, packet) = if udp {
            (Kind::Udp, udp_packet(v6, &payload))
        } else {
            (Kind::Tcp, tcp_packet(v6, tcp::Header::default(), &payload))
        };
        let parts = parts(&packet, kind, size);
        prop_assert_eq!(parts.len(), payload.len().div_ceil(size).max(1));
        let mut joined = Vec::new();
        for part in parts {
            prop_assert!(ip::v4_checksum_holds(&part));
            let body = ip::parse(&part).unwrap().payload;
            joined.extend_from_slice(if udp {
                udp::parse(source, destination, body).unwrap().payload
            } else {
                tcp::parse(source, destination, body).unwrap().payload
            });
        }
        prop_assert_eq!(joined, payload);
    }

    #[test]
    fn splitting_is_total(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        first in prop_oneof![Just(0x45_u8), Just(0x60)],
        next in prop_oneof![Just(6_u8), Just(17)],
        size in 0_usize..50,
    ) {
        let mut bytes = bytes;
        if bytes.len() > 40 {
            let length = u16::try_from(bytes.len()).unwrap();
            bytes[0] = first;
            if first == 0x45 {
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
                bytes[6..8].fill(0);
                bytes[9] = next;
            } else {
                bytes[4..6].copy_from_slice(&(length - 40).to_be_bytes());
                bytes[6] = next;
            }
        }
        let kind = if next == 6 { Kind::Tcp } else { Kind::Udp };
        if let Ok(mut segments) = split(&bytes, kind, size) {
            let mut out = vec![0; segments.length_max()];
            while segments.next_into(&mut out).is_some() {}
        }
    }
}
