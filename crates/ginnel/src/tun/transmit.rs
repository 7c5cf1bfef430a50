//! From the TUN to the network, run to completion on one thread for each queue.
//!
//! ```text
//! TUN ──► super-packet ──split──► slots ──seal in place──► runs ──► UDP
//!     ──► packets, while there are any ──►
//! ```

use std::{
    io,
    ops::Range,
    os::fd::AsFd as _,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use os::{clock::Pace, poll::Readers, tun::VNET_HEADER, udp::SendError};
use packet::{
    ecn::Ecn,
    gso::{self, Kind},
    ip,
    vnet::{self, Given},
};
use wireguard::{Discard, HEADER, Nonces, PeerId, Seal, Slots, scrub_stack};

use super::{
    tunnel::{Path, State, Tunnel, Watchdog},
    wire::{self, Run, Sockets},
};

/// The thread's state.
pub(crate) struct Transmitter {
    tunnel: Arc<Tunnel>,
    queue: u8,
    /// The lanes of the queue.
    readers: Readers,
    /// Bytes that the TUN puts before each packet.
    front: usize,
    packets: Slots,
    /// The parts of a super-packet.
    parts: Slots,
    pace: Pace,
    sealer: Sealer,
}

/// Seals batches and sends them.
struct Sealer {
    tunnel: Arc<Tunnel>,
    /// Only while a batch is sent: whoever changes the port waits for those who hold it.
    sockets: Option<Arc<Sockets>>,
    groups: Vec<Group>,
    mtu: usize,
}

/// Packets of a batch, one behind the other, that go the same way.
struct Group {
    peer: PeerId,
    ecn: Ecn,
    path: Path,
    /// One for each packet, once all are found.
    nonces: Option<Nonces>,
    packets: Range<usize>,
}

impl Transmitter {
    pub(crate) fn new(tunnel: &Arc<Tunnel>, queue: u8) -> io::Result<Self> {
        let lanes = tunnel.lanes(queue);
        let front = if lanes[0].offload().vnet_header {
            VNET_HEADER
        } else {
            0
        };
        Ok(Self {
            queue,
            readers: Readers::new(lanes.iter().map(|lane| lane.as_fd()))?,
            front,
            packets: Slots::default(),
            parts: Slots::default(),
            pace: Pace::start(),
            sealer: Sealer {
                tunnel: Arc::clone(tunnel),
                sockets: None,
                groups: Vec::new(),
                mtu: tunnel.mtu(),
            },
            tunnel: Arc::clone(tunnel),
        })
    }

    /// Runs until the interface is gone.
    pub(crate) fn run(mut self) {
        let _watchdog = Watchdog(Arc::clone(&self.tunnel));
        while !self.tunnel.is_gone() {
            if let Err(error) = self.turn() {
                self.tunnel.note_tun_error(&error);
                thread::sleep(PAUSE);
            }
        }
    }

    /// Waits for packets and sends of each lane that has some, so that who sends little waits for
    /// one batch of those who send much.
    fn turn(&mut self) -> io::Result<()> {
        let found = self.readers.wait()?;
        self.sealer.mtu = self.tunnel.mtu();
        for found in 0..found {
            self.serve(self.readers.place(found))?;
        }
        Ok(())
    }

    /// Sends a packet of a lane; after one that is not super, takes along what else is there, if
    /// packets come in quick succession. Super-packets fill a batch by themselves.
    fn serve(&mut self, lane: usize) -> io::Result<()> {
        let mut length = match self.read(lane) {
            // Flushed in between, as when the interface goes down.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            read => read?,
        };
        let busy = self.pace.is_busy();
        loop {
            if !self.take(lane, length) || !busy || self.packets.is_full() {
                break;
            }
            match self.read(lane) {
                Ok(next) => length = next,
                // What is wrong is found again by the next first read.
                Err(_) => break,
            }
        }
        self.sealer.send(&mut self.packets);
        self.packets.clear();
        Ok(())
    }

    /// Reads a packet into the next slot.
    fn read(&mut self, lane: usize) -> io::Result<usize> {
        let start = HEADER - self.front;
        let room = &mut self.packets.slot()[start..HEADER + Slots::PACKET_MAX];
        let length = self.tunnel.lanes(self.queue)[lane].read(room)?;
        Ok(length.saturating_sub(self.front))
    }

    /// Takes the packet in the slot into the batch; false after a super-packet, which is sent.
    fn take(&mut self, lane: usize, length: usize) -> bool {
        let slot = self.packets.slot();
        let given = match slot[..HEADER].last_chunk() {
            Some(header) if self.front > 0 => vnet::parse(header),
            _ => Ok(Given::Whole),
        };
        let packet = &mut slot[HEADER..HEADER + length];
        let taken = match given {
            Ok(Given::Whole) => Ok(()),
            Ok(Given::Unsummed { start, offset }) => gso::complete_checksum(packet, start, offset),
            Ok(Given::Super { kind, size }) => {
                // What was read before goes first; the slot stays where it is meanwhile.
                self.sealer.send(&mut self.packets);
                if self.split(kind, size, length).is_err() {
                    self.tunnel
                        .note_malformed(&self.tunnel.lanes(self.queue)[lane]);
                    self.refuse(length);
                }
                self.packets.clear();
                return false;
            }
            Err(malformed) => {
                self.tunnel
                    .note_malformed(&self.tunnel.lanes(self.queue)[lane]);
                Err(malformed)
            }
        };
        match taken {
            Ok(()) => self.packets.push(length, self.sealer.mtu),
            Err(_) => self.refuse(length),
        }
        true
    }

    /// Counts what was read into the slot as no packet.
    fn refuse(&mut self, length: usize) {
        let packet = &self.packets.slot()[HEADER..HEADER + length];
        self.tunnel
            .with(|state, now| state.refuse(now, packet, Discard::NotIp));
    }

    /// Splits the super-packet in the slot straight into slots, and sends them.
    fn split(&mut self, kind: Kind, size: usize, length: usize) -> Result<(), gso::Malformed> {
        let packet = &self.packets.slot()[HEADER..HEADER + length];
        let mut segments = gso::split(packet, kind, size)?;
        loop {
            let next = segments.next_into(&mut self.parts.slot()[HEADER..]);
            if let Some(length) = next {
                self.parts.push(length, self.sealer.mtu);
            }
            if next.is_none() || self.parts.is_full() {
                self.sealer.send(&mut self.parts);
                self.parts.clear();
            }
            if next.is_none() {
                return Ok(());
            }
        }
    }
}

impl Sealer {
    /// Seals all packets of the batch and sends them in their order; the batch is to be cleared
    /// then.
    fn send(&mut self, batch: &mut Slots) {
        if batch.is_empty() {
            return;
        }
        let tunnel = Arc::clone(&self.tunnel);
        tunnel.note_data();
        tunnel.with(|state, now| {
            self.route(state, now, batch);
            self.reserve(state, now, batch);
        });
        let mut groups = std::mem::take(&mut self.groups);
        let sockets = self.sockets.take();
        for group in &mut groups {
            let sockets = sockets.as_ref().expect("`route` has set it");
            self.send_group(group, sockets, batch);
        }
        // Empty groups keep no keys, only their room.
        self.groups = groups;
        self.groups.clear();
        scrub_stack();
    }

    /// Finds the way of each packet; what has none yet goes to the device.
    fn route(&mut self, state: &mut State, now: Instant, batch: &mut Slots) {
        self.sockets = Some(Arc::clone(state.wire.sockets()));
        let mut last = None;
        for place in 0..batch.len() {
            let Ok(addresses) = ip::addresses(batch.packet(place)) else {
                state.refuse(now, batch.packet(place), Discard::NotIp);
                continue;
            };
            let destination = addresses.destination;
            let peer = match last {
                Some((known, peer)) if known == destination => peer,
                _ => match state.device.route(destination) {
                    Some(peer) => peer,
                    None => {
                        state.refuse(now, batch.packet(place), Discard::NoRoute);
                        continue;
                    }
                },
            };
            last = Some((destination, peer));
            let ecn = Ecn::of_packet(batch.packet(place));
            if let Some(group) = self.groups.last_mut()
                && (group.peer, group.ecn) == (peer, ecn)
                && group.packets.end == place
            {
                group.packets.end += 1;
            } else if let Some(path) = state.path(now, peer) {
                let packets = place..place + 1;
                self.groups.push(Group {
                    peer,
                    ecn,
                    path,
                    nonces: None,
                    packets,
                });
            } else {
                state.hold_sent(batch.packet(place));
                let discard = seal_by_device(state, now, peer, batch, place);
                state.release_sent(now, discard);
            }
        }
        if state.capture.is_some() {
            for place in self.groups.iter().flat_map(|group| group.packets.clone()) {
                state.tap_sent(now, batch.packet(place), None);
            }
        }
    }

    /// Takes the nonces of each group, and tells the device what they are for.
    fn reserve(&mut self, state: &mut State, now: Instant, batch: &mut Slots) {
        for group in &mut self.groups {
            let count = group.packets.len();
            let nonces = u64::try_from(count).expect("a batch is small");
            group.nonces = group.path.sealing.reserve(now, nonces);
            if group.nonces.is_some() {
                let bytes = batch.bytes(&group.packets);
                state
                    .device
                    .note_sealed(now, group.peer, count, bytes, true);
                continue;
            }
            // The session is used up.
            for place in group.packets.clone() {
                let discard = seal_by_device(state, now, group.peer, batch, place);
                if let (Some(discard), Some(capture)) = (discard, &mut state.capture) {
                    capture.discarded(discard.into(), 1);
                }
            }
        }
    }

    fn send_group(&self, group: &mut Group, sockets: &Sockets, batch: &mut Slots) {
        let Some(nonces) = &mut group.nonces else {
            return;
        };
        for place in group.packets.clone() {
            let (slot, length) = batch.slot_of(place);
            let sealed = nonces.seal(slot, length, self.mtu);
            debug_assert_eq!(sealed, Some(slot.len()));
        }
        let taps = self.tunnel.taps_datagrams();
        let mut from = group.path.from;
        for (bytes, segment) in batch.runs(group.packets.clone()) {
            let run = Run {
                destination: group.path.endpoint,
                ecn: group.ecn,
                bytes,
                segment,
            };
            if taps {
                self.tunnel.tap_run(&run);
            }
            let had = from;
            let result = wire::send(&sockets.data, &mut from, &run);
            if had != from || result.is_err() {
                self.note_trouble(&run, had != from, result.err());
            }
        }
    }

    #[cold]
    fn note_trouble(&self, run: &Run<'_>, moved: bool, lost: Option<(SendError, usize)>) {
        self.tunnel.with(|state, _| {
            if moved {
                state.wire.sources.forget(run.destination);
            }
            if let Some((error, datagrams)) = lost {
                state.wire.count_lost(error, run.destination, datagrams);
            }
        });
    }
}

/// Lets the device seal or stage one packet, and counts and returns why it did not.
fn seal_by_device(
    state: &mut State,
    now: Instant,
    peer: PeerId,
    batch: &mut Slots,
    place: usize,
) -> Option<Discard> {
    let ecn = Ecn::of_packet(batch.packet(place));
    let (slot, length) = batch.roomy_slot_of(place);
    match state.device.seal_to(now, peer, slot, length) {
        Seal::Sealed {
            endpoint, length, ..
        } => {
            let run = Run {
                destination: endpoint,
                ecn,
                bytes: &slot[..length],
                segment: length,
            };
            state.tap_run(now, &run);
            state.wire.send(&run);
            None
        }
        Seal::Staged { .. } => None,
        Seal::Discarded(discard) => {
            state.count(discard, 1);
            Some(discard)
        }
    }
}

/// After an error of the TUN that may last.
const PAUSE: Duration = Duration::from_millis(10);
