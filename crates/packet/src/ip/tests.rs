//! IP headers against fixed bytes, random values and random bytes.

use proptest::prelude::*;

use super::*;

fn header(v6: bool, numbers: (u128, u128), rest: (u8, u8, u8)) -> Header {
    let address = |bits: u128| {
        if v6 {
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        } else {
            let [a, b, c, d, ..] = bits.to_be_bytes();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
    };
    Header {
        source: address(numbers.0),
        destination: address(numbers.1),
        // Not one that would be read as an extension header.
        next_header: rest.0 | 0x80,
        hop_limit: rest.1,
        traffic_class: rest.2,
        fragment: None,
    }
}

#[test]
fn a_malformed_header_is_refused_by_name() {
    let mut packet = [0; 60];
    let v4 = header(false, (1 << 100, 2 << 100), (0, 64, 0));
    emit_header(&v4, 40, &mut packet);
    assert!(parse(&packet).is_ok());
    assert_eq!(parse(&[]), Err(Malformed::Truncated));
    assert_eq!(parse(&packet[..19]), Err(Malformed::Truncated));
    assert_eq!(parse(&packet[..59]), Err(Malformed::Truncated));
    assert_eq!(parse(&[0x50; 60]), Err(Malformed::Version));
    packet[0] = 0x44;
    assert_eq!(parse(&packet), Err(Malformed::Length));
    packet[0] = 0x4f;
    assert!(parse(&packet).is_ok_and(|parsed| parsed.payload.is_empty()));
    packet[3] = 59;
    assert_eq!(parse(&packet), Err(Malformed::Length));
}

#[test]
fn extension_headers_are_walked_within_a_bound() {
    let v6 = header(true, (1, 2), (0, 64, 0));
    let mut packet = [0; 40 + 9 * 8];
    for count in 0..=9 {
        emit_header(&v6, 72, &mut packet);
        packet[6] = if count == 0 { UDP } else { 60 };
        for index in 0..9 {
            packet[40 + index * 8] = if index + 1 == count { UDP } else { 60 };
        }
        let parsed = parse(&packet);
        if count < 8 {
            let parsed = parsed.unwrap();
            assert_eq!(
                (parsed.header.next_header, parsed.payload.len()),
                (UDP, 72 - count * 8)
            );
        } else {
            assert_eq!(parsed, Err(Malformed::Length));
        }
    }
}

#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    let mut packet = [0; 56];
    emit_header(&header(true, (1, 2), (0, 64, 0)), 16, &mut packet);
    packet[6] = 44;
    packet[40] = UDP;
    assert_eq!(parse(&packet).unwrap().header.fragment, None);
    packet[43] = 9;
    let fragment = Fragment {
        identification: 0,
        offset: 8,
        more: true,
    };
    assert_eq!(parse(&packet).unwrap().header.fragment, Some(fragment));
}

#[test]
fn a_quote_may_lack_its_end() {
    let mut packet = [0; 60];
    emit_header(
        &header(false, (1 << 100, 2 << 100), (0, 64, 0)),
        1_000,
        &mut packet,
    );
    assert_eq!(parse(&packet), Err(Malformed::Truncated));
    assert_eq!(parse_quote(&packet).unwrap().payload.len(), 40);
    assert!(parse_quote(&packet[..19]).is_err());
}

proptest! {
    #[test]
    fn another_source_keeps_the_checksum_and_the_rest(
        numbers: (u128, u128), rest: (u8, u8, u8), source: u32,
    ) {
        let header = header(false, numbers, rest);
        let mut packet = [0; 24];
        emit_header(&header, 4, &mut packet);
        let source = Ipv4Addr::from_bits(source);
        set_v4_source(&mut packet, source);
        prop_assert!(v4_checksum_holds(&packet));
        let expected = Header { source: source.into(), ..header };
        prop_assert_eq!(parse(&packet).map(|parsed| parsed.header), Ok(expected));
        set_v4_source(&mut packet[..19], Ipv4Addr::UNSPECIFIED);
        prop_assert!(v4_checksum_holds(&packet), "no header is no packet");
    }

    #[test]
    fn a_header_survives_the_wire(
        v6 in any::<bool>(),
        numbers in any::<(u128, u128)>(),
        rest in any::<(u8, u8, u8)>(),
        length in 0_usize..200,
        padding in 0_usize..9,
    ) {
        let header = header(v6, numbers, rest);
        let mut packet = vec![7; 40 + 200 + 9];
        let at = emit_header(&header, length, &mut packet);
        packet.truncate(at + length + padding);
        let parsed = parse(&packet).unwrap();
        prop_assert_eq!(parsed.header, header);
        prop_assert_eq!(parsed.payload.len(), length);
        prop_assert!(v4_checksum_holds(&packet));
        let addresses = addresses(&packet).unwrap();
        prop_assert_eq!(addresses.source, header.source);
        prop_assert_eq!(addresses.destination, header.destination);
        prop_assert_eq!(addresses.length, at + length);
    }

    #[test]
    fn parsing_is_total(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        v6 in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = (*first & 0x0f) | if v6 { 0x60 } else { 0x40 };
        }
        if v6 && bytes.len() > 6 {
            bytes[4..6].fill(0);
            bytes[6] = [0, 43, 44, 60][usize::from(bytes[6] % 4)];
        }
        let _ = (parse(&bytes), parse_quote(&bytes), v4_checksum_holds(&bytes));
    }
}
