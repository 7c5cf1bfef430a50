//! The WireGuard protocol as a state machine without IO.
//!
//! [`Device`] takes datagrams, packets and the time, and gives back datagrams, packets and events:
//! one input, then drain [`Device::poll_transmit`] and [`Device::poll_event`], then sleep until
//! [`Device::poll_timeout`]. It follows the whitepaper (Donenfeld, "WireGuard: Next Generation
//! Kernel Network Tunnel"); where that is silent it does what Linux does.

mod agreement;
mod allowance;
mod allowed;
mod constants;
mod cookie;
mod crypto;
mod details;
mod device;
mod discard;
mod event;
mod gate;
mod inbound;
mod key;
mod keylog;
mod load;
mod message;
mod noise;
mod peer;
mod random;
mod replay;
mod session;
mod slots;
mod table;
mod tai64n;
mod timers;
mod traffic;
mod unknown;

#[cfg(test)]
mod tests;

pub use agreement::Agreement;
pub use allowance::Allowance;
pub use allowed::Prefix;
pub use constants::*;
pub use crypto::scrub_stack;
pub use details::{Details, SessionDetails};
pub use device::Device;
pub use discard::Discard;
pub use event::{Event, Received, Seal, Ticket, Transmit};
pub use gate::Gate;
pub use inbound::{Heard, Openers, Sessions};
pub use key::{KEY, PresharedKey, PublicKey, StaticSecret};
pub use keylog::KeyLog;
pub use message::{COOKIE_REPLY, INITIATION, KEEPALIVE, RESPONSE, transport_data};
pub use peer::{AddPeerError, PeerId, PeerStatus};
pub use random::Random;
pub use session::{Nonces, Opened, Opener, Opening, Sealing};
pub use slots::Slots;
pub use tai64n::Tai64n;
pub use traffic::Traffic;
