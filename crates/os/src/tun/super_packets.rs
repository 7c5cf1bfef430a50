//! Packets that pass an interface as one, in both directions, for as long as they prove to work.
//!
//! Those for the programs of this machine are joined where they follow each other (GRO), so that
//! one call writes many; those of the programs come so from the kernel (TSO, USO).

use std::{
    io::{self, IoSlice},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use packet::{
    gro::{Leaving, Train},
    vnet,
};

use super::{Offload, OffloadMax, Tun, VNET_HEADER};

/// What is known of the super-packets of one interface; threads may share it.
#[derive(Debug)]
pub struct SuperPackets {
    offload: Offload,
    /// Those that the interface did not take; at [`FAULTS_MAX`] no more are written.
    refused: AtomicU32,
    /// Those from the interface that were none; at [`FAULTS_MAX`] it is asked for no more.
    malformed: AtomicU32,
    /// It was asked so.
    given_up: AtomicBool,
}

/// Packets that are being written.
struct Writing<'w, Q, L> {
    super_packets: &'w SuperPackets,
    queue_of: Q,
    lost: L,
    given_up: Option<io::Error>,
}

impl SuperPackets {
    /// Begins with all that the queues of an interface let pass.
    #[must_use]
    pub fn new(offload: Offload) -> Self {
        Self {
            offload,
            refused: AtomicU32::new(0),
            malformed: AtomicU32::new(0),
            given_up: AtomicBool::new(false),
        }
    }

    /// Tells what the interface still lets pass.
    #[must_use]
    pub fn offload(&self) -> Offload {
        if !self.given_up.load(Ordering::Relaxed) {
            return self.offload;
        }
        Offload {
            tcp: false,
            udp: false,
            ..self.offload
        }
    }

    /// Tells whether packets are joined: super-packets may pass, and the kernel has not refused
    /// many.
    #[must_use]
    pub fn are_joined(&self) -> bool {
        self.offload.tcp && self.refused.load(Ordering::Relaxed) < FAULTS_MAX
    }

    /// Counts a packet of `queue` that said to be a super-packet and is none. Returns true, once,
    /// when the kernel was asked to send no more.
    pub fn note_malformed(&self, queue: &Tun) -> bool {
        let gives_up = self.malformed.fetch_add(1, Ordering::Relaxed) + 1 == FAULTS_MAX;
        // Refused, it stays as it is: each is refused by itself.
        let given_up = gives_up && queue.set_offload(OffloadMax::Checksums).is_ok();
        self.given_up.fetch_or(given_up, Ordering::Relaxed);
        given_up
    }

    /// Writes packets in their order, each to the queue that `queue_of` says, and tells `lost` why
    /// some were not taken, and how many. Returns why it will not join any more, once.
    pub fn write<'q, 'p>(
        &self,
        mut packets: impl Iterator<Item = &'p [u8]>,
        queue_of: impl Fn(&[u8]) -> &'q Tun,
        lost: impl FnMut(&io::Error, usize),
    ) -> Option<io::Error> {
        let mut writing = Writing {
            super_packets: self,
            queue_of,
            lost,
            given_up: None,
        };
        let first = packets.next()?;
        let second = packets.next();
        // A lone packet has none to be joined to.
        if !self.are_joined() || second.is_none() {
            let all = std::iter::once(first).chain(second).chain(packets);
            all.for_each(|packet| writing.write_single(packet));
            return None;
        }
        let mut train = Train::new(self.offload.udp);
        for packet in std::iter::once(first).chain(second).chain(packets) {
            train.push(packet, |leaving| writing.write(&leaving));
        }
        train.finish(|leaving| writing.write(&leaving));
        writing.given_up
    }
}

impl<'q, Q: Fn(&[u8]) -> &'q Tun, L: FnMut(&io::Error, usize)> Writing<'_, Q, L> {
    fn write(&mut self, leaving: &Leaving<'_, '_>) {
        let (offload, head, packets) = match leaving {
            Leaving::Single(packet) => return self.write_single(packet),
            Leaving::Super {
                offload,
                head,
                packets,
            } => (offload, head, packets),
        };
        let header = vnet::emit(offload, head[0] >> 4 == 6);
        let mut pieces = [IoSlice::new(&[]); Train::PACKETS_MAX + 2];
        pieces[0] = IoSlice::new(&header);
        pieces[1] = IoSlice::new(head);
        for (piece, packet) in pieces[2..].iter_mut().zip(*packets) {
            *piece = IoSlice::new(&packet[head.len()..]);
        }
        // The head alone is cut off, and says nothing about its flow.
        let queue = (self.queue_of)(packets[0]);
        match queue.write_vectored(&pieces[..2 + packets.len()]) {
            Ok(()) => {}
            // Some kernels refuse those whose last part is short.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let refused = &self.super_packets.refused;
                if refused.fetch_add(1, Ordering::Relaxed) + 1 == FAULTS_MAX {
                    self.given_up = Some(error);
                }
                packets.iter().for_each(|packet| self.write_single(packet));
            }
            Err(error) => (self.lost)(&error, packets.len()),
        }
    }

    fn write_single(&mut self, packet: &[u8]) {
        let queue = (self.queue_of)(packet);
        let written = if self.super_packets.offload.vnet_header {
            let header = [0; VNET_HEADER];
            queue.write_vectored(&[IoSlice::new(&header), IoSlice::new(packet)])
        } else {
            queue.write(packet)
        };
        if let Err(error) = written {
            (self.lost)(&error, 1);
        }
    }
}

/// A single one may be about the packet; so many are about the kernel.
const FAULTS_MAX: u32 = 16;
