//! What one interface counts, as a node would say it.

use std::{collections::BTreeMap, time::Instant};

use model::{key::PublicKey, status::Status};
use node::{Reason, status};
use wireguard::PeerStatus;

use super::tunnel::{SHOWN_TOGETHER, State, Tunnel};
use crate::metrics::{PEERS_MAX, Snapshot};

impl Tunnel {
    /// Returns what it counts, read in parts, so that data need not wait for all of it.
    pub(super) fn snapshot(&self) -> Snapshot {
        let mut node = self.with(|state, _| self.sums(state));
        let mut last = None;
        loop {
            let before = last;
            self.with(|state, now| {
                for peer in state.device.peers_after(before).take(SHOWN_TOGETHER) {
                    last = Some(peer.id);
                    add(&mut node, now, &peer);
                }
            });
            if last == before {
                break;
            }
        }
        Snapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            control: None,
            connections: None,
            node,
        }
    }

    fn sums(&self, state: &State) -> Status {
        Status {
            name: None,
            role: None,
            serial: None,
            public_key: state.device.public_key().map(|key| PublicKey(key.0)),
            addresses: Vec::new(),
            orgs: Vec::new(),
            peers: Vec::new(),
            peers_total: 0,
            peers_up: 0,
            traffic: status::traffic(state.device.traffic()),
            happened: state.happened,
            carried: Vec::new(),
            discards: self.discards(state),
            problems: Vec::new(),
        }
    }

    /// Returns what was not delivered: by the device, by the sockets and by the TUN.
    fn discards(&self, state: &State) -> BTreeMap<String, u64> {
        let by_device = wireguard::Discard::ALL.iter().map(|discard| {
            let count = self.discarded(state, *discard);
            (node::Discard::from(*discard).name(), count)
        });
        let by_sockets = state.wire.lost().iter().map(|(reason, count)| {
            let reason = reason.replace(' ', "_");
            (format!("udp.{reason}"), *count)
        });
        let down = node::Discard::from(Reason::InterfaceDown).name();
        let all = by_device
            .chain(by_sockets)
            .chain([(down, self.not_taken())]);
        all.filter(|(_, count)| *count > 0).collect()
    }
}

fn add(node: &mut Status, now: Instant, peer: &PeerStatus<'_>) {
    let told = status::of_peer(now, peer);
    node.peers_total += 1;
    node.peers_up += u64::from(told.tunnel == model::status::Tunnel::Up);
    if node.peers.len() < PEERS_MAX {
        node.peers.push(told);
    }
}
