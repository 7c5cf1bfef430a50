//! Why a datagram or a packet was not delivered.

macro_rules! discards {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// Why a datagram or a packet was not delivered; each is counted by the caller.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum Discard {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Discard {
            /// Every variant, in the order of [`Discard::index`].
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Names the variant for status pages and metrics.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// Returns the place of the variant in [`Discard::ALL`].
            #[must_use]
            pub fn index(self) -> usize {
                self as usize
            }
        }
    };
}

discards! {
    /// The datagram has not the length of its message type.
    Length => "length",
    /// The message type is unknown or a reserved byte is not zero.
    MessageType => "message_type",
    /// A handshake message carries a wrong mac1: the sender does not know our public key.
    Mac1 => "mac1",
    /// The device has no private key yet.
    NoPrivateKey => "no_private_key",
    /// Under load the source has spent its share of handshakes.
    RateLimited => "rate_limited",
    /// A handshake message that does not decrypt, or whose key agreement yields zero.
    Handshake => "handshake",
    /// An initiation from a static key that is no peer.
    UnknownInitiator => "unknown_initiator",
    /// An initiation whose timestamp is not newer than the last one of that peer.
    ReplayedInitiation => "replayed_initiation",
    /// An initiation within 20 ms of the last one of that peer.
    InitiationFlood => "initiation_flood",
    /// No session and no pending handshake has this receiver index.
    UnknownIndex => "unknown_index",
    /// A cookie reply that does not decrypt or answers nothing.
    Cookie => "cookie",
    /// The session is older than `REJECT_AFTER_TIME`, used up, or retired.
    SessionExpired => "session_expired",
    /// Transport data whose tag is wrong.
    Tag => "tag",
    /// Transport data that was accepted before.
    Duplicate => "duplicate",
    /// Transport data behind the replay window.
    TooOld => "too_old",
    /// What was sealed, or is to be sealed, is no IP packet.
    NotIp => "not_ip",
    /// The inner source address is not among the sender's allowed IPs.
    SourceNotAllowed => "source_not_allowed",
    /// No peer has the destination among its allowed IPs.
    NoRoute => "no_route",
    /// A datagram was marked as having met congestion, and the packet inside says that its sender
    /// does not understand that: it counts as lost (RFC 6040, 4.2).
    NotEct => "not_ect",
    /// The peer is gone.
    UnknownPeer => "unknown_peer",
    /// The peer's endpoint is not known yet.
    NoEndpoint => "no_endpoint",
    /// A staged packet gave way to a newer one.
    StagedOverflow => "staged_overflow",
    /// A staged packet waited for a handshake that never completed.
    StagedAbandoned => "staged_abandoned",
    /// An output or a kept initiation gave way because a queue of the device was full.
    QueueFull => "queue_full",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_discard_has_its_own_name_and_place() {
        for (index, discard) in Discard::ALL.iter().enumerate() {
            assert_eq!(discard.index(), index);
            let same = |other: &&Discard| other.name() == discard.name();
            assert_eq!(Discard::ALL.iter().filter(same).count(), 1);
        }
    }
}
