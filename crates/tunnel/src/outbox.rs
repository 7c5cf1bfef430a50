//! Sealed datagrams on their way to the kernel, gathered into runs that one call can send.

use std::{collections::VecDeque, net::SocketAddr};

use os::udp::SendError;

use super::socket::Sockets;

/// Datagrams that the node has made and the kernel has not taken yet.
///
/// Bounded by its buffer: while it is full, nothing more is taken from the node, whose own
/// bounds then hold back whoever writes.
pub(super) struct Outbox {
    buffer: Box<[u8]>,
    used: usize,
    runs: VecDeque<Run>,
    /// The socket towards it has no room: the driver waits until there is some.
    pub(super) blocked: Option<SocketAddr>,
}

/// Datagrams to one destination, all of one length, the last one perhaps shorter.
struct Run {
    destination: SocketAddr,
    start: usize,
    length: usize,
    segment: usize,
    /// A shorter datagram ends a run (udp(7), `UDP_SEGMENT`).
    ended: bool,
}

const BUFFER: usize = 256 * 1024;

/// No datagram is longer.
const DATAGRAM_MAX: usize = 65_535;

/// One call takes no more bytes and no more segments (Linux, `UDP_MAX_SEGMENTS`).
const RUN_BYTES_MAX: usize = 65_000;
const RUN_SEGMENTS_MAX: usize = 64;

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER].into_boxed_slice(),
            used: 0,
            runs: VecDeque::new(),
            blocked: None,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.buffer.len() - self.used >= DATAGRAM_MAX
    }

    /// Returns where the next datagram is to be written.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.used..]
    }

    /// Takes a copy of a datagram; false when the buffer has no room for it.
    pub(super) fn copy(&mut self, destination: SocketAddr, datagram: &[u8]) -> bool {
        let Some(room) = self.room().get_mut(..datagram.len()) else {
            return false;
        };
        room.copy_from_slice(datagram);
        self.push(destination, datagram.len());
        true
    }

    /// Takes the datagram of `length` bytes that was written to `room`.
    pub(super) fn push(&mut self, destination: SocketAddr, length: usize) {
        match self.runs.back_mut() {
            Some(run) if run.accepts(destination, length) => {
                run.ended = length < run.segment;
                run.length += length;
            }
            Some(_) | None => self.runs.push_back(Run {
                destination,
                start: self.used,
                length,
                segment: length,
                ended: false,
            }),
        }
        self.used += length;
    }

    /// Gives everything to the kernel, or stops as `blocked`.
    pub(super) fn send(&mut self, sockets: &Sockets) {
        while let Some(run) = self.runs.front_mut() {
            let bytes = &self.buffer[run.start..run.start + run.length];
            match sockets.send(bytes, run.segment, run.destination) {
                Ok(sent) if sent < run.length => {
                    run.start += sent;
                    run.length -= sent;
                    continue;
                }
                Err(SendError::WouldBlock) => {
                    self.blocked = Some(run.destination);
                    return;
                }
                // The network is away for now, or a datagram is too long for it: as good as lost
                // on the way, and repaired as any loss is.
                Err(error) => tracing::debug!(%error, destination = %run.destination, "send"),
                Ok(_) => {}
            }
            self.runs.pop_front();
        }
        self.used = 0;
    }
}

impl Run {
    fn accepts(&self, destination: SocketAddr, length: usize) -> bool {
        !self.ended
            && self.destination == destination
            && length <= self.segment
            && self.length + length <= RUN_BYTES_MAX
            && self.length < self.segment * RUN_SEGMENTS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(datagrams: &[(u16, usize)], runs: &[(u16, usize, usize)]) {
        let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let mut outbox = Outbox::new();
        for (port, length) in datagrams {
            assert!(outbox.has_room());
            outbox.push(address(*port), *length);
        }
        let made = outbox.runs.iter();
        let made: Vec<_> = made
            .map(|run| (run.destination.port(), run.length, run.segment))
            .collect();
        assert_eq!(made, runs);
    }

    #[test]
    fn a_run_has_one_destination_and_one_length_and_a_shorter_datagram_ends_it() {
        check(
            &[(1, 100), (1, 100), (1, 60), (1, 60)],
            &[(1, 260, 100), (1, 60, 60)],
        );
        check(
            &[(1, 100), (2, 100), (1, 100)],
            &[(1, 100, 100), (2, 100, 100), (1, 100, 100)],
        );
        check(&[(1, 60), (1, 100)], &[(1, 60, 60), (1, 100, 100)]);
    }

    #[test]
    fn a_full_outbox_says_that_it_takes_no_more() {
        let mut outbox = Outbox::new();
        let destination = SocketAddr::from(([192, 0, 2, 1], 1));
        let datagram = [0; DATAGRAM_MAX];
        let taken = (0..6).filter(|_| outbox.copy(destination, &datagram));
        assert_eq!(taken.count(), BUFFER / DATAGRAM_MAX);
        assert!(!outbox.has_room());
    }

    #[test]
    fn a_run_has_at_most_64_segments() {
        check(&[(1, 100); 65], &[(1, 6400, 100), (1, 100, 100)]);
    }
}
