//! The constants of the whitepaper (section 6) and of the messages (section 5.4).

use std::time::Duration;

/// Length of the header of transport data.
pub const HEADER: usize = 16;
/// What sealing adds to a packet besides padding: header and tag.
pub const OVERHEAD: usize = HEADER + 16;

/// After this many messages under one key a new handshake begins.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// After this many messages a key is used no more.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// At this age the initiator of a session that sends begins a new handshake.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// At this age a session is used no more.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// How long a handshake is attempted before staged packets are dropped.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// How long an initiator waits for the response, and the least time between two initiations.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a receiver of data may stay silent.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most that is added to a retransmission, so that two initiators do not meet again.
pub const REKEY_JITTER_MAX: Duration = Duration::from_millis(333);
/// How long a cookie and the secret behind it live.
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(120);
/// The least time between two initiations of one peer that cost a key agreement each.
pub const INITIATION_INTERVAL_MIN: Duration = Duration::from_millis(20);

/// Plaintext is padded to a multiple of this.
pub const PADDING: usize = 16;
/// The MTU of a tunnel over an Ethernet path, IPv6 outside.
pub const MTU_DEFAULT: usize = 1420;
/// Packets that wait for a handshake of one peer; the oldest gives way.
pub const STAGED_PACKETS_MAX: usize = 128;

/// Returns the length of a plaintext of `length` bytes after padding.
#[must_use]
pub const fn padded(length: usize) -> usize {
    length.next_multiple_of(PADDING)
}
