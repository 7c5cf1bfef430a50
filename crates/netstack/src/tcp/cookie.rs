//! SYN cookies (RFC 4987, 3.6): a SYN-ACK that is remembered by the peer instead of by us.
//!
//! The sequence number of the SYN-ACK is a keyed hash with the index of a segment size in its low
//! bits. What the options said comes back in the low bits of the timestamp's echo, which the hash
//! covers; a peer without timestamps goes on without window scaling and SACK.

use std::{net::SocketAddr, time::Duration};

use packet::tcp::Options;

use super::sequence::Seq;
use crate::secret::Secret;

/// A cookie is believed in the period in which it was made and in the one after.
pub(crate) const PERIOD: Duration = Duration::from_secs(64);

/// Segment sizes that a cookie can tell: of Ethernet, of tunnels, and the minima of RFC 9293,
/// 3.7.1 and below.
const SIZES: [u16; 8] = [88, 536, 1_220, 1_300, 1_360, 1_400, 1_440, 8_900];
const SIZE_BITS: u32 = 3;

/// The low bits of a timestamp that carry options, and "no window scale" in them.
const STAMP_BITS: u32 = 0x3f;
const SACK_BIT: u32 = 0x10;
const SCALE_BITS: u32 = 0x0f;
const SCALE_NONE: u32 = 0x0f;

/// Both ends, and the peer's initial sequence number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opener {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) irs: Seq,
}

/// Returns the sequence number of a SYN-ACK that was sent at `uptime` with timestamp `stamp`, in
/// answer to a SYN with that segment size.
pub(crate) fn seal(
    secret: &Secret,
    opener: &Opener,
    uptime: Duration,
    size: u16,
    stamp: Option<u32>,
) -> Seq {
    let index = SIZES.partition_point(|&known| known <= size).max(1) - 1;
    let index = u32::try_from(index).expect("eight sizes");
    keyed(secret, opener, period(uptime), index, stamp)
}

/// Returns the segment size that the cookie `iss` tells; `None` when we have not made it lately.
pub(crate) fn open(
    secret: &Secret,
    opener: &Opener,
    uptime: Duration,
    iss: Seq,
    echo: Option<u32>,
) -> Option<u16> {
    let index = iss.0 & ((1 << SIZE_BITS) - 1);
    let now = period(uptime);
    let made = [Some(now), now.checked_sub(1)].into_iter().flatten();
    let mut made = made.map(|period| keyed(secret, opener, period, index, echo));
    made.any(|made| made == iss)
        .then(|| SIZES[usize::try_from(index).expect("three bits")])
}

fn period(uptime: Duration) -> u64 {
    uptime.as_secs() / PERIOD.as_secs()
}

fn keyed(secret: &Secret, opener: &Opener, period: u64, index: u32, stamp: Option<u32>) -> Seq {
    let Opener { local, remote, irs } = *opener;
    let hash = secret.cookie(&(local, remote, irs.0, period, index, stamp));
    Seq((hash << SIZE_BITS) | index)
}

/// Puts what `options` say into the low bits of the timestamp `stamp`, which does not grow.
pub(crate) fn stamp(stamp: u32, options: &Options) -> u32 {
    let scale = options
        .window_scale
        .map_or(SCALE_NONE, |shift| u32::from(shift.min(14)));
    let sack = if options.sack_permitted { SACK_BIT } else { 0 };
    let carrying = (stamp & !STAMP_BITS) | scale | sack;
    if Seq(carrying).after(Seq(stamp)) {
        carrying.wrapping_sub(STAMP_BITS + 1)
    } else {
        carrying
    }
}

/// Returns the options that the echo of a [`stamp`] tells.
pub(crate) fn options(echo: u32) -> Options {
    let scale = echo & SCALE_BITS;
    Options {
        window_scale: (scale != SCALE_NONE).then(|| u8::try_from(scale).expect("four bits")),
        sack_permitted: echo & SACK_BIT != 0,
        ..Options::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opener(port: u16) -> Opener {
        Opener {
            local: SocketAddr::from(([10, 0, 0, 1], 80)),
            remote: SocketAddr::from(([10, 0, 0, 2], port)),
            irs: Seq(7),
        }
    }

    #[test]
    fn a_cookie_tells_the_segment_size_to_its_own_peer_for_one_to_two_periods() {
        let (secret, _) = Secret::new(&[1; 32]);
        let at = Duration::from_secs(100);
        for (size, told) in [
            (0, 88),
            (600, 536),
            (1_380, 1_360),
            (1_460, 1_440),
            (9_000, 8_900),
        ] {
            let iss = seal(&secret, &opener(9), at, size, Some(5));
            let open = |opener: Opener, after: u64, echo| {
                open(&secret, &opener, at + Duration::from_secs(after), iss, echo)
            };
            assert_eq!(open(opener(9), 0, Some(5)), Some(told));
            assert_eq!(open(opener(9), 64, Some(5)), Some(told));
            assert_eq!(open(opener(9), 128, Some(5)), None, "too late");
            assert_eq!(open(opener(8), 0, Some(5)), None, "another peer");
            assert_eq!(open(opener(9), 0, Some(6)), None, "other options");
            assert_eq!(open(opener(9), 0, None), None, "without options");
        }
    }

    #[test]
    fn options_come_back_in_a_timestamp_that_does_not_grow() {
        for now in [0, 1, 63, 64, 1_000_003, u32::MAX] {
            for scale in [None, Some(0), Some(7), Some(14)] {
                for sack_permitted in [false, true] {
                    let given = Options {
                        window_scale: scale,
                        sack_permitted,
                        ..Options::default()
                    };
                    let carrying = stamp(now, &given);
                    assert_eq!(options(carrying), given);
                    assert!(now.wrapping_sub(carrying) < 128, "{now} {carrying}");
                }
            }
        }
    }
}
