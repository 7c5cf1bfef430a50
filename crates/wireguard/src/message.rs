//! The four messages on the wire (whitepaper 5.4.2 to 5.4.7).

use crate::{
    constants::HEADER,
    crypto::{COOKIE_NONCE, MAC, TAG},
    discard::Discard,
    key::KEY,
    tai64n::TAI64N,
};

/// Length of a handshake initiation.
pub const INITIATION: usize = 148;
/// Length of a handshake response.
pub const RESPONSE: usize = 92;
/// Length of a cookie reply.
pub const COOKIE_REPLY: usize = 64;
/// Length of a keepalive: transport data without text.
pub const KEEPALIVE: usize = HEADER + TAG;

/// A datagram told apart by its type and length; nothing in it is authenticated yet.
pub(crate) enum Message<'a> {
    Initiation(&'a [u8; INITIATION]),
    Response(&'a [u8; RESPONSE]),
    CookieReply(&'a [u8; COOKIE_REPLY]),
    Transport {
        receiver: u32,
        counter: u64,
        sealed: &'a mut [u8],
    },
}

impl<'a> Message<'a> {
    /// Parses the type, with its reserved bytes, and the length.
    pub(crate) fn parse(datagram: &'a mut [u8]) -> Result<Self, Discard> {
        let kind: &[u8; 4] = datagram.first_chunk().ok_or(Discard::Length)?;
        match *kind {
            INITIATION_TYPE => sized(datagram).map(Self::Initiation),
            RESPONSE_TYPE => sized(datagram).map(Self::Response),
            COOKIE_REPLY_TYPE => sized(datagram).map(Self::CookieReply),
            TRANSPORT_TYPE => {
                if datagram.len() < KEEPALIVE {
                    return Err(Discard::Length);
                }
                let (header, sealed) = datagram.split_at_mut(HEADER);
                Ok(Self::Transport {
                    receiver: index(header, RECEIVER),
                    counter: u64::from_le_bytes(*field(header, COUNTER)),
                    sealed,
                })
            }
            _ => Err(Discard::MessageType),
        }
    }
}

fn sized<const N: usize>(datagram: &[u8]) -> Result<&[u8; N], Discard> {
    datagram.try_into().map_err(|_| Discard::Length)
}

/// Returns the field of `N` bytes at `offset`, which lies inside `message`.
pub(crate) fn field<const N: usize>(message: &[u8], offset: usize) -> &[u8; N] {
    message[offset..]
        .first_chunk()
        .expect("the offset leaves room for the field")
}

/// Returns the index at `offset`, which lies inside `message`.
pub(crate) fn index(message: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(*field(message, offset))
}

/// Writes `bytes` at `offset`.
pub(crate) fn put(message: &mut [u8], offset: usize, bytes: &[u8]) {
    message[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Returns the receiver index and the counter of transport data (whitepaper 5.4.6); `None` for
/// everything else.
#[must_use]
pub fn transport_data(datagram: &[u8]) -> Option<(u32, u64)> {
    let (header, _) = datagram.split_first_chunk::<HEADER>()?;
    let is_data = header.starts_with(&TRANSPORT_TYPE) && datagram.len() >= KEEPALIVE;
    is_data.then(|| {
        (
            index(header, RECEIVER),
            u64::from_le_bytes(*field(header, COUNTER)),
        )
    })
}

/// Writes the header of transport data.
pub(crate) fn emit_transport_header(slot: &mut [u8], receiver: u32, counter: u64) {
    put(slot, 0, &TRANSPORT_TYPE);
    put(slot, RECEIVER, &receiver.to_le_bytes());
    put(slot, COUNTER, &counter.to_le_bytes());
}

pub(crate) const INITIATION_TYPE: [u8; 4] = [1, 0, 0, 0];
pub(crate) const RESPONSE_TYPE: [u8; 4] = [2, 0, 0, 0];
pub(crate) const COOKIE_REPLY_TYPE: [u8; 4] = [3, 0, 0, 0];
pub(crate) const TRANSPORT_TYPE: [u8; 4] = [4, 0, 0, 0];

/// Sender index of an initiation and a response.
pub(crate) const SENDER: usize = 4;
/// Receiver index of a cookie reply and of transport data.
pub(crate) const RECEIVER: usize = 4;
/// Counter of transport data.
pub(crate) const COUNTER: usize = 8;
/// Unencrypted ephemeral, encrypted static and encrypted timestamp of an initiation.
pub(crate) const INITIATION_EPHEMERAL: usize = 8;
pub(crate) const INITIATION_STATIC: usize = INITIATION_EPHEMERAL + KEY;
pub(crate) const INITIATION_TIMESTAMP: usize = INITIATION_STATIC + KEY + TAG;
/// Receiver index, ephemeral and encrypted nothing of a response.
pub(crate) const RESPONSE_RECEIVER: usize = 8;
pub(crate) const RESPONSE_EPHEMERAL: usize = 12;
pub(crate) const RESPONSE_EMPTY: usize = RESPONSE_EPHEMERAL + KEY;
/// Nonce and sealed cookie of a cookie reply.
pub(crate) const COOKIE_REPLY_NONCE: usize = 8;
pub(crate) const COOKIE_REPLY_SEALED: usize = COOKIE_REPLY_NONCE + COOKIE_NONCE;

const _: () = assert!(INITIATION_TIMESTAMP + TAI64N + TAG + 2 * MAC == INITIATION);
const _: () = assert!(RESPONSE_EMPTY + TAG + 2 * MAC == RESPONSE);
const _: () = assert!(COOKIE_REPLY_SEALED + MAC + TAG == COOKIE_REPLY);
