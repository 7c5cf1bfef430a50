//! From the network to the TUN: packets of one flow that follow each other are written as one.

use std::io::{self, IoSlice};

use os::tun::Tun;
use packet::{
    gro::{Offload, Run},
    gso,
};

use super::virtio;

/// The run in the making. Flush it before anything else is waited for.
#[derive(Default)]
pub(crate) struct Inbound {
    run: Option<Run>,
    /// Memory for the next run.
    spare: Vec<u8>,
    /// Memory for the parts of a run that the kernel refused.
    part: Vec<u8>,
    /// The kernel refused a run that it should take: Linux around 6.6.44 does (EINVAL).
    broken: bool,
}

impl Inbound {
    /// Writes `packet`, now or with the packets that follow it, in order.
    pub(crate) fn write(&mut self, tun: &Tun, packet: &[u8]) -> io::Result<()> {
        if !tun.offload().vnet_header {
            return tun.write(packet);
        }
        if self.run.as_mut().is_some_and(|run| run.append(packet)) {
            return Ok(());
        }
        let flushed = self.flush(tun);
        if self.broken || !tun.offload().tcp {
            return flushed.and(write_one(tun, packet, None));
        }
        match Run::begin(packet, std::mem::take(&mut self.spare)) {
            Ok(run) => {
                self.run = Some(run);
                flushed
            }
            Err(spare) => {
                self.spare = spare;
                flushed.and(write_one(tun, packet, None))
            }
        }
    }

    /// Writes the run, if there is one.
    pub(crate) fn flush(&mut self, tun: &Tun) -> io::Result<()> {
        let Some(run) = self.run.take() else {
            return Ok(());
        };
        let (packet, offload) = run.finish();
        let mut written = write_one(tun, &packet, offload);
        if let (Err(error), Some(offload)) = (&written, offload)
            && error.kind() == io::ErrorKind::InvalidInput
        {
            tracing::warn!("TUN: the kernel refuses large packets; they go one by one from now on");
            self.broken = true;
            written = self.write_parts(tun, &packet, offload);
        }
        self.spare = packet;
        written
    }

    fn write_parts(&mut self, tun: &Tun, packet: &[u8], offload: Offload) -> io::Result<()> {
        let parts = gso::split(packet, offload.kind, offload.size);
        let mut parts = parts.map_err(|_| io::ErrorKind::InvalidData)?;
        self.part.resize(parts.length_max(), 0);
        while let Some(length) = parts.next_into(&mut self.part) {
            write_one(tun, &self.part[..length], None)?;
        }
        Ok(())
    }
}

fn write_one(tun: &Tun, packet: &[u8], offload: Option<Offload>) -> io::Result<()> {
    let v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    let header = virtio::emit(offload, v6);
    tun.write_vectored(&[IoSlice::new(&header), IoSlice::new(packet)])
}
