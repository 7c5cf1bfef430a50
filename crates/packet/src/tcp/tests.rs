//! TCP segments against fixed bytes, random values and random bytes.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn v4() -> (IpAddr, IpAddr) {
    (
        Ipv4Addr::new(10, 0, 0, 1).into(),
        Ipv4Addr::new(10, 0, 0, 2).into(),
    )
}

fn v6() -> (IpAddr, IpAddr) {
    let a = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    let b = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
    (a.into(), b.into())
}

fn check_round_trip(segment: &Segment<'_>) {
    for (source, destination) in [v4(), v6()] {
        let mut out = [0xee; 2048];
        let length = emit(source, destination, segment, &mut out);
        assert_eq!(
            parse(source, destination, &out[..length]).as_ref(),
            Ok(segment)
        );
        out[length - 1] ^= 0x10;
        assert!(parse(source, destination, &out[..length]).is_err());
    }
}

#[test]
fn a_syn_has_the_bytes_that_the_rfc_draws() {
    let (source, destination) = v4();
    let header = Header {
        source_port: 0x1234,
        destination_port: 80,
        sequence: 0x0102_0304,
        flags: Flags::SYN,
        window: 65_535,
        options: Options {
            maximum_segment_size: Some(1380),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some(Timestamps { value: 1, echo: 2 }),
            sack: SackBlocks::default(),
        },
        ..Header::default()
    };
    let mut out = [0; 64];
    let segment = Segment {
        header,
        payload: &[],
    };
    assert_eq!(emit(source, destination, &segment, &mut out), 40);
    let expected = [
        0x12, 0x34, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 0xa0, 2, 0xff, 0xff, // ports to window
        2, 4, 5, 100, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 3, 3, 7, // options
    ];
    assert_eq!(out[..16], expected[..16]);
    assert_eq!(out[20..40], expected[16..]);
    check_round_trip(&segment);
}

#[test]
fn a_malformed_header_is_refused_by_name() {
    let mut segment = [0; 24];
    let refused = |bytes: &[u8]| parse_unverified(bytes).expect_err("malformed");
    assert_eq!(refused(&segment[..19]), Malformed::Truncated);
    segment[12] = 4 << 4;
    assert_eq!(refused(&segment), Malformed::Length);
    segment[12] = 7 << 4;
    assert_eq!(refused(&segment), Malformed::Truncated);
    segment[12] = 6 << 4;
    for options in [[2, 0, 0, 0], [2, 1, 0, 0], [2, 5, 0, 0], [1, 1, 1, 2]] {
        segment[20..].copy_from_slice(&options);
        assert_eq!(refused(&segment), Malformed::Length, "{options:?}");
    }
    for options in [[0, 9, 9, 9], [1, 1, 1, 0], [99, 4, 0, 0], [2, 3, 0, 0]] {
        segment[20..].copy_from_slice(&options);
        let parsed = parse_unverified(&segment).expect("skipped");
        assert_eq!(parsed.header.options, Options::default(), "{options:?}");
    }
}

prop_compose! {
    fn any_options()(
        mss in proptest::option::of(any::<u16>()),
        scale in proptest::option::of(any::<u8>()),
        permitted in any::<bool>(),
        stamps in proptest::option::of(any::<(u32, u32)>()),
        blocks in proptest::collection::vec(any::<(u32, u32)>(), 0..=4),
    ) -> Options {
        let mut options = Options {
            maximum_segment_size: mss,
            window_scale: scale,
            sack_permitted: permitted,
            timestamps: stamps.map(|(value, echo)| Timestamps { value, echo }),
            sack: SackBlocks::default(),
        };
        for (left, right) in blocks {
            let mut more = options;
            more.sack.push(left, right);
            if more.length() <= OPTIONS_MAX {
                options = more;
            }
        }
        options
    }
}

proptest! {
    #[test]
    fn a_segment_survives_the_wire(
        ports in any::<(u16, u16)>(),
        numbers in any::<(u32, u32)>(),
        rest in any::<(u8, u16, u16)>(),
        options in any_options(),
        payload in proptest::collection::vec(any::<u8>(), 1..600),
    ) {
        check_round_trip(&Segment {
            header: Header {
                source_port: ports.0,
                destination_port: ports.1,
                sequence: numbers.0,
                acknowledgement: numbers.1,
                flags: Flags(rest.0),
                window: rest.1,
                urgent: rest.2,
                options,
            },
            payload: &payload,
        });
    }

    #[test]
    fn whatever_parses_parses_the_same_again(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        words in 5_u8..16,
    ) {
        let mut bytes = bytes;
        if let Some(offset) = bytes.get_mut(12) {
            *offset = words << 4;
        }
        if let Ok(segment) = parse_unverified(&bytes) {
            let (source, destination) = v6();
            let mut out = [0; 256];
            let length = emit(source, destination, &segment, &mut out);
            prop_assert_eq!(parse(source, destination, &out[..length]), Ok(segment));
        }
    }
}
