//! Tells a sender why its packet went no further (RFC 792, RFC 4443), within a rate.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use packet::{
    icmp::{self, Cause, Message},
    ip,
};

/// Allows so many answers at once and then one each interval (RFC 4443, 2.4 f).
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    tokens: u32,
    filled: Instant,
}

const TOKENS_MAX: u32 = 50;
const INTERVAL: Duration = Duration::from_millis(20);

impl Bucket {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            tokens: TOKENS_MAX,
            filled: now,
        }
    }

    /// Takes one token; false while there is none.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.filled).as_nanos() / INTERVAL.as_nanos();
        let gained = u32::try_from(gained).unwrap_or(TOKENS_MAX).min(TOKENS_MAX);
        if gained > 0 {
            // What is left of an interval does not count: at most one answer is lost by it.
            self.filled = now;
            self.tokens = (self.tokens + gained).min(TOKENS_MAX);
        }
        let taken = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        taken
    }
}

/// Makes the ICMP error for `refused`, sent from `source`.
///
/// `None` where no error may be sent: for an error, for a fragment but the first, from or to
/// addresses that are not one node's, or when `source` is of the other family (RFC 1122, 3.2.2;
/// RFC 4443, 2.4 e).
pub(crate) fn emit(source: IpAddr, cause: Cause, refused: &[u8]) -> Option<Vec<u8>> {
    let parsed = ip::parse(refused).ok()?;
    let header = parsed.header;
    let (next_header, quote_max) = match source {
        // As much as fits the least MTU of the family (RFC 1812, 4.3.2.3; RFC 4443, 3.1).
        IpAddr::V4(_) => (ip::ICMP, 576 - ip::V4_HEADER - icmp::HEADER),
        IpAddr::V6(_) => (ip::ICMPV6, 1280 - ip::V6_HEADER - icmp::HEADER),
    };
    let one_node = |address: IpAddr| !address.is_multicast() && !address.is_unspecified();
    let answerable = header.source.is_ipv4() == source.is_ipv4()
        && one_node(header.source)
        && one_node(header.destination)
        && header.fragment.is_none_or(|fragment| fragment.offset == 0)
        && !(header.next_header == next_header && is_error(source, parsed.payload));
    if !answerable {
        return None;
    }
    let length = ip::addresses(refused).ok()?.length;
    let quote = &refused[..length.min(quote_max)];
    let mut out = vec![0; ip::header_length(source) + icmp::HEADER + quote.len()];
    let header = ip::Header {
        source,
        destination: header.source,
        next_header,
        hop_limit: HOP_LIMIT,
        traffic_class: 0,
        fragment: None,
    };
    let at = ip::emit_header(&header, icmp::HEADER + quote.len(), &mut out);
    let message = Message::Error { cause, quote };
    icmp::emit(source, header.destination, &message, &mut out[at..]);
    Some(out)
}

/// The default of RFC 1700, as hosts use it.
const HOP_LIMIT: u8 = 64;

/// Tells whether an ICMP message of `family` reports an error; an empty one counts as such.
fn is_error(family: IpAddr, message: &[u8]) -> bool {
    match (family, message.first()) {
        (_, None) => true,
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        (IpAddr::V4(_), Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        (IpAddr::V6(_), Some(kind)) => *kind < 128,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "fd00::35";

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn packet(source: &str, destination: &str, next_header: u8, payload: &[u8]) -> Vec<u8> {
        let header = ip::Header {
            source: address(source),
            destination: address(destination),
            next_header,
            hop_limit: 64,
            traffic_class: 0,
            fragment: None,
        };
        let at = ip::header_length(header.destination);
        let mut out = vec![0; at + payload.len()];
        ip::emit_header(&header, payload.len(), &mut out);
        out[at..].copy_from_slice(payload);
        out
    }

    const CAUSE: Cause = Cause::Unreachable(icmp::Unreachable::Host);

    #[test]
    fn an_error_quotes_what_fits_and_goes_to_the_sender() {
        for (own, source, destination, size_max) in [
            (OWN, "fd00::1", "fd00::2", 1280),
            ("10.0.0.9", "10.0.0.1", "10.0.0.2", 576),
        ] {
            let refused = packet(source, destination, ip::UDP, &[7; 1300]);
            let error = emit(address(own), CAUSE, &refused).expect("an error");
            assert_eq!(error.len(), size_max);
            let parsed = ip::parse(&error).expect("an IP packet");
            assert_eq!(parsed.header.source, address(own));
            assert_eq!(parsed.header.destination, address(source));
            let message = icmp::parse(address(own), address(source), parsed.payload);
            let Ok(Message::Error { cause, quote }) = message else {
                panic!("an ICMP error");
            };
            assert_eq!(cause, CAUSE);
            assert!(refused.starts_with(quote));
        }
    }

    #[test]
    fn no_error_answers_an_error_a_group_or_the_other_family() {
        let own = address(OWN);
        for refused in [
            packet("fd00::1", "fd00::2", ip::ICMPV6, &[1, 3, 0, 0, 0, 0, 0, 0]),
            packet("fd00::1", "fd00::2", ip::ICMPV6, &[]),
            packet("fd00::1", "ff02::1", ip::UDP, &[0; 8]),
            packet("::", "fd00::2", ip::UDP, &[0; 8]),
            packet("10.0.0.1", "10.0.0.2", ip::UDP, &[0; 8]),
            vec![],
        ] {
            assert_eq!(emit(own, CAUSE, &refused), None);
        }
        let echo = packet(
            "fd00::1",
            "fd00::2",
            ip::ICMPV6,
            &[128, 0, 0, 0, 0, 0, 0, 0],
        );
        assert!(emit(own, CAUSE, &echo).is_some());
    }

    #[test]
    fn a_bucket_is_spent_at_once_and_refills_slowly() {
        #[expect(clippy::disallowed_methods, reason = "the base of virtual time")]
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let taken = |bucket: &mut Bucket, now| (0..1000).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, start), 50);
        assert_eq!(taken(&mut bucket, start + INTERVAL / 2), 0);
        assert_eq!(taken(&mut bucket, start + INTERVAL * 3), 3);
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(3600)), 50);
    }
}
