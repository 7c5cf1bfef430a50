//! How the tunnels of nodes stand, as gateways tell it: in memory alone, for people who look.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use model::{
    api::{GatewayTunnel, NodeTunnel, Timestamp},
    key::PublicKey,
};

/// So many nodes are known at once; a gateway whose report goes beyond is believed no further.
const KNOWN_MAX: usize = 1_000_000;

/// The last report about each key.
#[derive(Default)]
pub(crate) struct Tunnels(Mutex<HashMap<PublicKey, GatewayTunnel>>);

impl Tunnels {
    /// Takes a report. A node that has moved to another gateway stands as the newer handshake
    /// says; none is later than `now`, whatever the clock of its gateway says.
    pub(crate) fn learn(&self, now: i64, tunnels: &[NodeTunnel]) {
        let mut known = self.known();
        for told in tunnels {
            let mut tunnel = told.tunnel;
            tunnel.handshake = Timestamp(tunnel.handshake.0.min(now));
            let is_older = |known: &GatewayTunnel| known.handshake > tunnel.handshake;
            match known.get(&told.public_key) {
                Some(known) if is_older(known) => {}
                None if known.len() >= KNOWN_MAX => {}
                Some(_) | None => {
                    known.insert(told.public_key, tunnel);
                }
            }
        }
    }

    /// Returns the tunnel of the node that has `key`.
    pub(crate) fn of(&self, key: &PublicKey) -> Option<GatewayTunnel> {
        self.known().get(key).copied()
    }

    /// Forgets a key that its node has no more.
    pub(crate) fn forget(&self, key: &PublicKey) {
        self.known().remove(key);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<PublicKey, GatewayTunnel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
