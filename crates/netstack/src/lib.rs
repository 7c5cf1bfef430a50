//! User-mode TCP, UDP and ICMP echo as a state machine without IO.
//!
//! A [`Stack`] takes IP packets by [`Stack::handle_packet`] and gives them by
//! [`Stack::poll_transmit`]; what happened to a socket comes out of [`Stack::poll_event`]. After
//! every call that takes `now`, drain both, packets first, because what leaves makes room for a
//! writer, which is an event; then sleep until [`Stack::poll_timeout`].
//!
//! ```text
//!   Stack          demultiplexing, deadlines, ready list, IP, ICMP, UDP, reassembly of fragments
//!     Connection   one TCP connection: segments, time and calls in; segments out (RFC 9293)
//!       packet     bytes
//! ```

mod account;
mod config;
mod deadlines;
mod discard;
mod error;
mod event;
mod prefix;
mod secret;
mod slab;
mod stack;
mod tcp;

pub use config::{Config, Limits};
pub use discard::Discard;
pub use error::{
    BindError, ConnectError, EchoFailure, ListenError, PingError, RecvError, SendError,
    SendToError, Stale, UdpFailure,
};
pub use event::Event;
pub use prefix::Prefix;
pub use slab::{ConnectionId, EchoId, EchoRequestId, ListenerId, PrefixId, UdpId};
pub use stack::{EchoRequest, Large, Received, Refusal, Stack, Transmit};
pub use tcp::{CloseReason, CongestionControl, State, Statistics};

#[cfg(test)]
mod tests;
