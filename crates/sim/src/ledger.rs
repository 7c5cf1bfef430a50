//! The reference: what was sent, by whom, and whether it may arrive.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::host::HostId;

/// Why a packet must not arrive at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Forbidden {
    /// Sender and receiver belong to different organisations.
    OtherOrg,
    /// The sender wrote another node's address into it.
    Forged,
    /// The sender or the receiver was removed before it was sent.
    Removed,
}

/// One packet.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) from: HostId,
    pub(crate) to: HostId,
    /// By the sender's own clock, which may stand still while it sleeps on a packet.
    at: Instant,
    forbidden: Option<Forbidden>,
    arrived: bool,
}

/// Every packet of the world.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    packets: BTreeMap<u64, Sent>,
    next: u64,
}

/// Longer than any packet may be on its way: a gateway and a sender may keep it until a handshake
/// completes, which is tried for `REKEY_ATTEMPT_TIME`.
const LIFETIME: Duration = Duration::from_secs(2 * 90 + 5);

impl Ledger {
    /// Enters a packet and returns its number.
    pub(crate) fn send(
        &mut self,
        clock: Instant,
        from: HostId,
        to: HostId,
        forbidden: Option<Forbidden>,
    ) -> u64 {
        let id = self.next;
        self.next += 1;
        let sent = Sent {
            from,
            to,
            at: clock,
            forbidden,
            arrived: false,
        };
        self.packets.insert(id, sent);
        id
    }

    /// Notes that a packet came out at `host`; the error says which promise that breaks.
    ///
    /// `clock` is a host's own clock now, `cut` when a host was removed.
    pub(crate) fn arrive(
        &mut self,
        now: Instant,
        host: HostId,
        id: u64,
        clock: impl Fn(HostId) -> Instant,
        cut: impl Fn(HostId) -> Option<Instant>,
    ) -> Result<(), String> {
        let Some(sent) = self.packets.get_mut(&id) else {
            return Err(format!("packet {id} arrived and was never sent"));
        };
        let Sent { from, to, at, .. } = *sent;
        if to != host {
            return Err(format!("packet {id} for {to:?} arrived at {host:?}"));
        }
        if std::mem::replace(&mut sent.arrived, true) {
            return Err(format!("packet {id} arrived twice"));
        }
        if let Some(forbidden) = sent.forbidden {
            return Err(format!("packet {id} from {from:?} arrived: {forbidden:?}"));
        }
        let age = clock(from).saturating_duration_since(at);
        if age > LIFETIME {
            return Err(format!(
                "packet {id} from {from:?} to {to:?} arrived after {age:?}"
            ));
        }
        for end in [from, to] {
            if let Some(cut) = cut(end).filter(|cut| now > *cut + CUT_TIME) {
                let late = now - cut;
                return Err(format!(
                    "packet {id} from {from:?} to {to:?} arrived {late:?} after {end:?} was removed"
                ));
            }
        }
        Ok(())
    }

    /// Returns who sent the packet.
    pub(crate) fn sender(&self, id: u64) -> Option<HostId> {
        self.packets.get(&id).map(|sent| sent.from)
    }

    /// Tells whether the packet came out.
    pub(crate) fn has_arrived(&self, id: u64) -> bool {
        self.packets.get(&id).is_some_and(|sent| sent.arrived)
    }

    /// Returns how many of the packets that were sent since `id` came out, and how many there are.
    pub(crate) fn arrived_since(&self, id: u64) -> (usize, usize) {
        let recent = self.packets.range(id..);
        let arrived = recent.clone().filter(|(_, sent)| sent.arrived).count();
        (arrived, recent.count())
    }

    /// Returns the number of the next packet.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }
}

/// What a node sent after its removal never arrives. What the gateway had accepted before may wait
/// there for a handshake with its receiver, which is tried for `REKEY_ATTEMPT_TIME`.
const CUT_TIME: Duration = Duration::from_secs(90 + 5);
