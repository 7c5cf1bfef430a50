//! Packets for the interface, joined where they follow each other (GRO), so that one call writes
//! many.

use std::io::{self, IoSlice};

use node::Reason;
use os::tun::VNET_HEADER;
use packet::{
    gro::{Offload, Run},
    gso::{self, Kind},
    vnet,
};

use super::Interface;

/// What waits for its followers, until [`Joiner::finish`] at the latest.
#[derive(Default)]
pub(crate) struct Joiner {
    run: Option<Run>,
    /// Where the next run grows.
    buffer: Vec<u8>,
    /// Super-packets that the interface did not take.
    refusals: u32,
    /// Why packets were lost, one by one, since [`Joiner::take_lost`].
    lost: Vec<Reason>,
}

/// A single refusal may be about the packet; so many are about the kernel.
const REFUSALS_MAX: u32 = 16;

impl Joiner {
    /// Takes a packet for the programs of this machine.
    pub(crate) fn push(&mut self, packet: &[u8], interface: &Interface) {
        if let Some(run) = &mut self.run
            && run.append(packet)
        {
            return;
        }
        self.finish(interface);
        let offload = interface.tun.get().offload();
        let joins = offload.vnet_header && self.refusals < REFUSALS_MAX;
        if joins {
            match Run::begin(packet, std::mem::take(&mut self.buffer)) {
                Ok(run) if offload.udp || run.kind() == Kind::Tcp => {
                    self.run = Some(run);
                    return;
                }
                Ok(run) => self.buffer = run.finish().0,
                Err(buffer) => self.buffer = buffer,
            }
        }
        self.lost.extend(interface.write(packet).err());
    }

    /// Gives what still waits to the interface.
    pub(crate) fn finish(&mut self, interface: &Interface) {
        let Some(run) = self.run.take() else { return };
        let packets = run.packets();
        let (packet, offload) = run.finish();
        match offload {
            None => self.lost.extend(interface.write(&packet).err()),
            Some(offload) => self.write_super(&packet, &offload, packets, interface),
        }
        self.buffer = packet;
    }

    /// Returns why packets were lost, one reason for each.
    pub(crate) fn take_lost(&mut self) -> std::vec::Drain<'_, Reason> {
        self.lost.drain(..)
    }

    fn write_super(
        &mut self,
        packet: &[u8],
        offload: &Offload,
        packets: usize,
        interface: &Interface,
    ) {
        let header: [u8; VNET_HEADER] = vnet::emit(offload, packet[0] >> 4 == 6);
        let pieces = [IoSlice::new(&header), IoSlice::new(packet)];
        let Err(error) = interface.tun.get().write_vectored(&pieces) else {
            return;
        };
        if error.kind() != io::ErrorKind::InvalidInput {
            let reason = interface.reason(&error);
            self.lost.extend(std::iter::repeat_n(reason, packets));
            return;
        }
        // Some kernels refuse those whose last part is short.
        self.refusals += 1;
        if self.refusals == REFUSALS_MAX {
            let name = &interface.name;
            tracing::warn!("{name}: TUN refuses joined packets ({error}), now written singly");
        }
        let Ok(mut segments) = gso::split(packet, offload.kind, offload.size) else {
            unreachable!("a run splits into what it was joined from");
        };
        let mut single = vec![0; segments.length_max()];
        while let Some(length) = segments.next_into(&mut single) {
            self.lost.extend(interface.write(&single[..length]).err());
        }
    }
}
