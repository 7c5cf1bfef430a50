//! Packets that programs of this machine send by the interface: sealed without the node.
//!
//! ```text
//! TUN ──► super-packet ──split──► slots ──which way?──► sealed in place ──► UDP
//!     ──► packets, while there are any ──►   lock
//! ```
//! There is an uplink for each queue of the interface, and the kernel chooses the queue by the
//! flow, so that each stays in order. While a capture runs, the node does all by itself.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use node::{Node, Reason};
use packet::{
    gso::{self, Kind},
    vnet::Given,
};
use tokio::{task, time};
use wireguard::{HEADER, Slots};

use super::{Interface, Shared, onward::Onward};

/// What one task has.
pub(super) struct Uplink {
    shared: Arc<Shared>,
    queue: usize,
    packets: Slots,
    /// The parts of a super-packet.
    parts: Slots,
    onward: Onward,
}

impl Uplink {
    pub(super) fn new(shared: &Arc<Shared>, queue: usize) -> Self {
        Self {
            shared: Arc::clone(shared),
            queue,
            packets: Slots::default(),
            parts: Slots::default(),
            onward: Onward::default(),
        }
    }

    /// Takes what comes until its task is aborted.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let Some(interface) = shared.attachment.interface() else {
            return;
        };
        loop {
            interface.readable(self.queue).await;
            for _ in 0..BATCHES_MAX {
                if !self.serve(interface).await {
                    break;
                }
            }
            task::yield_now().await;
        }
    }

    /// Takes packets until there is none or they fill a batch, as a super-packet does by itself;
    /// false when there was none.
    async fn serve(&mut self, interface: &Interface) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut any = false;
        while !self.packets.is_full() {
            let slot = self.packets.slot();
            let (length, given) = match interface.read(self.queue, slot) {
                Ok(Some(read)) => read,
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "read the interface");
                    // One that only fails must not spin.
                    time::sleep(PAUSE).await;
                    break;
                }
            };
            any = true;
            let packet = &mut slot[HEADER..HEADER + length];
            let taken = match given {
                Ok(Given::Whole) => Ok(()),
                Ok(Given::Unsummed { start, offset }) => {
                    gso::complete_checksum(packet, start, offset)
                }
                Ok(Given::Super { kind, size }) => {
                    // What was read before goes first; the slot stays where it is meanwhile.
                    send(&shared, &mut self.onward, &mut self.packets).await;
                    let split = self.split(kind, size, length).await;
                    self.packets.clear();
                    if split.is_err() {
                        interface.note_malformed(self.queue);
                        shared.turn().node.discard(Reason::NotIp, 1);
                    }
                    return true;
                }
                Err(malformed) => {
                    interface.note_malformed(self.queue);
                    Err(malformed)
                }
            };
            match taken {
                Ok(()) => self.packets.push_with_room(length, Node::PACKET_GROWTH),
                Err(_) => shared.turn().node.discard(Reason::NotIp, 1),
            }
        }
        send(&shared, &mut self.onward, &mut self.packets).await;
        self.packets.clear();
        any
    }

    /// Splits the super-packet in the slot straight into slots, and sends them.
    async fn split(
        &mut self,
        kind: Kind,
        size: usize,
        length: usize,
    ) -> Result<(), gso::Malformed> {
        let packet = &self.packets.slot()[HEADER..HEADER + length];
        let mut segments = gso::split(packet, kind, size)?;
        loop {
            let next = segments.next_into(&mut self.parts.slot()[HEADER..]);
            if let Some(length) = next {
                self.parts.push_with_room(length, Node::PACKET_GROWTH);
            }
            if next.is_none() || self.parts.is_full() {
                send(&self.shared, &mut self.onward, &mut self.parts).await;
                self.parts.clear();
            }
            if next.is_none() {
                return Ok(());
            }
        }
    }
}

/// Seals packets and sends them in their order; they are to be cleared then.
async fn send(shared: &Shared, onward: &mut Onward, slots: &mut Slots) {
    if slots.is_empty() {
        return;
    }
    shared.note_data();
    while let Some(to) = decide(shared, onward, slots) {
        shared.sockets.writable(Some(to)).await;
        shared.turn().unblock();
    }
    onward.seal(slots.slots_mut().map(|(slot, _)| slot));
    onward.send(shared, slots.slots()).await;
    onward.clear();
}

/// Learns from the node where each packet goes, or, while a capture runs, lets it seal them.
/// Returns towards where room must be waited for before.
fn decide(shared: &Shared, onward: &mut Onward, slots: &mut Slots) -> Option<SocketAddr> {
    let mut turn = shared.turn();
    // What was sealed before goes first, and holds back who sends more.
    let blocked = turn.blocked();
    if blocked.is_some() {
        return blocked;
    }
    let now = turn.now;
    let is_captured = shared.is_captured.load(Ordering::Relaxed);
    for (slot, length) in slots.slots_mut() {
        if is_captured {
            turn.handle_packet(slot, length);
            continue;
        }
        match turn.node.route_packet(now, slot, length) {
            Some(on) => onward.take(&mut turn, on, slot),
            None => onward.end(),
        }
    }
    onward.reserve(&mut turn, slots.slots_mut().map(|(slot, _)| slot));
    None
}

/// Batches that are taken in one go before other tasks get their turn.
const BATCHES_MAX: usize = 16;
/// After an error of the interface that may last.
const PAUSE: Duration = Duration::from_millis(20);
