//! Which peer a packet goes through: the only place that chooses a path.
//!
//! Today there is one kind: a client reaches its whole organisation through the gateway, which
//! opens and seals again, and a gateway reaches every node directly. Both stand in the allowed
//! IPs of the peers, which [`crate::roster`] derives from the map. A direct path between two
//! clients, or one through a gateway that cannot read, will be chosen here.

use std::net::IpAddr;

use wireguard::{Device, PeerId};

/// Chooses the peer to seal for, so that a packet reaches `destination`.
pub(crate) fn choose(device: &Device, destination: IpAddr) -> Option<PeerId> {
    device.route(destination)
}
