//! From the TUN to the network: sealed in place into runs that one system call sends.

use std::net::SocketAddr;

use wireguard::{HEADER, OVERHEAD, padded};

/// Sealed datagrams of one destination and size, one behind the other, and room for the next.
///
/// ```text
/// buffer: | sent before | run: start..end, each `segment` long | next slot ...
/// ```
pub(crate) struct Outbound {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    segment: usize,
    destination: Option<SocketAddr>,
}

/// Datagrams that leave together: all but the last are `segment` bytes long.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) destination: SocketAddr,
    pub(crate) bytes: &'a [u8],
    pub(crate) segment: usize,
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            buffer: vec![0; RUN_MAX + SLOT_MAX].into_boxed_slice(),
            start: 0,
            end: 0,
            segment: 0,
            destination: None,
        }
    }
}

impl Outbound {
    /// Returns room for a packet of any size at `HEADER..HEADER + PACKET_MAX`, to be sealed there.
    pub(crate) fn slot(&mut self) -> &mut [u8] {
        &mut self.buffer[self.end..self.end + SLOT_MAX]
    }

    /// Tells whether a sealed datagram of `length` bytes, in the slot now, can join the run.
    pub(crate) fn fits(&self, destination: SocketAddr, length: usize) -> bool {
        let run = self.end - self.start;
        let ended_short = self.segment > 0 && !run.is_multiple_of(self.segment);
        self.destination == Some(destination)
            && length <= self.segment
            && !ended_short
            && run + length <= RUN_MAX
    }

    /// Appends the datagram in the slot to the run, or begins a run with it.
    ///
    /// If it does not fit, the run must have been taken and forgotten before.
    pub(crate) fn push(&mut self, destination: SocketAddr, length: usize) {
        if self.destination.is_none() {
            self.destination = Some(destination);
            self.segment = length;
        }
        self.end += length;
    }

    /// Returns the run, if there is one.
    pub(crate) fn run(&self) -> Option<Run<'_>> {
        Some(Run {
            destination: self.destination?,
            bytes: &self.buffer[self.start..self.end],
            segment: self.segment,
        })
    }

    /// Forgets the run; the slot stays where it is.
    pub(crate) fn forget(&mut self) {
        self.start = self.end;
        self.destination = None;
    }

    /// Tells whether the run must be taken and the slot rewound before another packet is read.
    pub(crate) fn is_full(&self) -> bool {
        self.end + SLOT_MAX > self.buffer.len()
    }

    /// Moves the slot to the front of the buffer; the run must have been forgotten.
    pub(crate) fn rewind(&mut self) {
        debug_assert!(self.destination.is_none(), "the run would be lost");
        self.start = 0;
        self.end = 0;
    }
}

/// The largest IP packet.
pub(crate) const PACKET_MAX: usize = 65_535;
/// Room for a packet and all that sealing adds.
const SLOT_MAX: usize = padded(PACKET_MAX) + OVERHEAD;
/// Bytes of a run before it is sent: somewhat more than one UDP_SEGMENT call takes.
const RUN_MAX: usize = 65_536;
const _: () = assert!(HEADER + PACKET_MAX < SLOT_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    /// Pushes datagrams `(port, length)` as the engine does and returns the runs taken.
    fn runs(datagrams: &[(u16, usize)]) -> Vec<(u16, usize, usize)> {
        let mut outbound = Outbound::default();
        let mut taken = Vec::new();
        let mut take = |outbound: &mut Outbound| {
            if let Some(run) = outbound.run() {
                taken.push((run.destination.port(), run.bytes.len(), run.segment));
            }
            outbound.forget();
        };
        for (port, length) in datagrams {
            if outbound.is_full() {
                take(&mut outbound);
                outbound.rewind();
            }
            outbound.slot()[..*length].fill(1);
            if !outbound.fits(address(*port), *length) {
                take(&mut outbound);
            }
            outbound.push(address(*port), *length);
        }
        take(&mut outbound);
        taken
    }

    #[test]
    fn equal_datagrams_of_one_destination_leave_together_and_a_shorter_one_ends_the_run() {
        assert_eq!(
            runs(&[(1, 100), (1, 100), (1, 60), (1, 100)]),
            [(1, 260, 100), (1, 100, 100)]
        );
        assert_eq!(runs(&[(1, 100), (1, 120)]), [(1, 100, 100), (1, 120, 120)]);
        assert_eq!(
            runs(&[(1, 50), (2, 50), (2, 50)]),
            [(1, 50, 50), (2, 100, 50)]
        );
    }

    #[test]
    fn a_long_stream_is_cut_into_runs_and_nothing_is_lost() {
        let stream = vec![(1, 1452); 1000];
        let runs = runs(&stream);
        assert!(runs.iter().all(|(_, length, _)| *length <= RUN_MAX));
        let total: usize = runs.iter().map(|(_, length, _)| length).sum();
        assert_eq!(total, 1452 * 1000);
        let huge = vec![(1, SLOT_MAX); 5];
        assert_eq!(self::runs(&huge).len(), 5);
    }
}
