//! One node's data plane: where a packet goes, names, published services and discards.
//!
//! [`Node`] composes the tunnel ([`wireguard::Device`]), the stack ([`netstack::Stack`]) and the
//! network map. It takes datagrams, packets and maps, and gives datagrams, packets and events:
//! one input, then drain [`Node::poll_transmit`], [`Node::poll_packet`] and [`Node::poll_event`],
//! then sleep until [`Node::poll_timeout`].
//!
//! ```text
//!   datagram ─► open ─► own address, or a host of an own site? ─► TUN or stack
//!                 │         └► gateway: same org? ─► policy ─► path ─► seal in place ─► datagram
//!   TUN, stack ─► path ─► seal in place ─► datagram
//! ```

pub mod capture;
mod carrier;
mod discard;
mod failover;
mod filter;
mod forward;
mod node;
mod org;
mod path;
mod path_mtu;
mod probe;
mod refusal;
pub mod resolver;
mod return_path;
mod roster;
mod routed;
mod service;
mod site;
pub mod status;

pub use discard::{Counters, Discard, Reason};
pub use node::{Attachment, Event, Node, On, Outcome, Path, Run, Way};
pub use probe::Probe;
pub use return_path::{Decision, Witness};
pub use routed::{MACHINE_V4, SITE_MTU_V4};
pub use service::Published;
