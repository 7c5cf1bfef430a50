//! Where a capture of one interface sees packets; each tap is one branch for a batch when none
//! runs.
//!
//! Packets are sealed and opened in place with the device unlocked, so while datagrams are wanted
//! those that come are copied before, and those that go are shown once they are sealed.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering,
    time::Instant,
};

use node::{Discard, Reason, capture::Capture};
use os::udp::Arrival;
use packet::pcapng::Direction;
use wireguard::{PeerId, Received};

use super::{
    tunnel::{State, Tunnel},
    wire::Run,
};

impl Tunnel {
    /// Tells whether a capture wants datagrams.
    pub(super) fn taps_datagrams(&self) -> bool {
        self.taps_datagrams.load(Ordering::Relaxed)
    }

    /// Shows datagrams that go to the network.
    pub(super) fn tap_run(&self, run: &Run<'_>) {
        self.with(|state, now| state.tap_run(now, run));
    }

    /// Shows datagrams that are not worth the device's time.
    pub(super) fn tap_turned_away(&self, source: SocketAddr, datagram: &[u8], discard: Discard) {
        self.with(|state, now| {
            if let Some(capture) = &mut state.capture {
                show_received(capture, now, source, datagram, Some(discard));
            }
        });
    }

    /// Tells that a packet which was shown as received was not taken by the TUN.
    pub(super) fn tap_not_taken(&self, packets: u64) {
        if !self.captures.load(Ordering::Relaxed) {
            return;
        }
        self.with(|state, _| {
            if let Some(capture) = &mut state.capture {
                capture.discarded(Reason::InterfaceDown.into(), packets);
            }
        });
    }
}

impl State {
    /// Takes what is no transport data, and shows it with what became of it.
    pub(super) fn handle_message(
        &mut self,
        now: Instant,
        (source, local): (SocketAddr, Option<IpAddr>),
        datagram: &mut [u8],
    ) {
        if let Some(capture) = &mut self.capture {
            capture.hold_outer(Direction::Inbound, source, datagram);
        }
        let discard = match self.device.handle_datagram(now, source, datagram) {
            Received::Handled => {
                self.wire.sources.note(source, local, false);
                None
            }
            Received::Discarded(discard) => Some(discard),
            // Data comes here only where the kernel mistakes it for a handshake.
            Received::Packet { .. } => Some(wireguard::Discard::MessageType),
        };
        if let Some(discard) = discard {
            self.count(discard, 1);
        }
        if let Some(capture) = &mut self.capture {
            capture.release_outer(now, discard.map(Into::into));
        }
    }

    /// Counts a packet that does not get into the tunnel, and shows it.
    pub(super) fn refuse(&mut self, now: Instant, packet: &[u8], discard: wireguard::Discard) {
        self.count(discard, 1);
        self.tap_sent(now, packet, Some(discard));
    }

    /// Shows a packet on its way into the tunnel.
    pub(super) fn tap_sent(
        &mut self,
        now: Instant,
        packet: &[u8],
        discard: Option<wireguard::Discard>,
    ) {
        if let Some(capture) = &mut self.capture {
            capture.inner(now, Direction::Outbound, packet, discard.map(Into::into));
        }
    }

    /// Keeps a packet on its way into the tunnel until it is known what became of it.
    pub(super) fn hold_sent(&mut self, packet: &[u8]) {
        if let Some(capture) = &mut self.capture {
            capture.hold_inner(Direction::Outbound, packet);
        }
    }

    /// Shows the packet that was kept, if one was.
    pub(super) fn release_sent(&mut self, now: Instant, discard: Option<wireguard::Discard>) {
        if let Some(capture) = &mut self.capture {
            capture.release_inner(now, discard.map(Into::into));
        }
    }

    /// Shows datagrams that go to the network.
    pub(super) fn tap_run(&mut self, now: Instant, run: &Run<'_>) {
        if let Some(capture) = &mut self.capture {
            for datagram in run.bytes.chunks(run.segment.max(1)) {
                capture.outer(now, Direction::Outbound, run.destination, datagram);
            }
        }
    }

    /// Tells something about a peer in the comment of the next packet.
    pub(super) fn tell(&mut self, what: &str, peer: PeerId) {
        if let Some(capture) = &mut self.capture {
            let endpoint = self.device.status(peer).and_then(|status| status.endpoint);
            let endpoint = endpoint.map_or_else(|| "a peer".to_owned(), |at| at.to_string());
            capture.note(format!("{what} {endpoint}"));
        }
    }
}

/// Datagrams as they came, from before they were opened.
#[derive(Default)]
pub(super) struct Copies {
    /// One behind the other, as in the arrivals; at most one batch.
    bytes: Vec<u8>,
}

/// What became of a datagram with data.
pub(super) struct Verdict<'d> {
    pub(super) source: SocketAddr,
    /// How long it is.
    pub(super) length: usize,
    /// What was in it; `None` if it was not opened or had no packet.
    pub(super) packet: Option<&'d [u8]>,
    pub(super) discard: Option<wireguard::Discard>,
}

impl Copies {
    /// Copies all datagrams, or none if they are not wanted.
    pub(super) fn fill(&mut self, wanted: bool, arrivals: &[Option<Arrival<'_>>]) {
        self.bytes.clear();
        if wanted {
            for arrival in arrivals.iter().flatten() {
                self.bytes.extend_from_slice(arrival.bytes);
            }
        }
    }

    /// Shows datagrams in the order in which they came; of the others only the length is given.
    pub(super) fn show<'d>(
        &self,
        capture: &mut Capture,
        now: Instant,
        datagrams: impl Iterator<Item = Result<Verdict<'d>, usize>>,
    ) {
        let mut copied = &self.bytes[..];
        for datagram in datagrams {
            let length = match &datagram {
                Ok(verdict) => verdict.length,
                Err(length) => *length,
            };
            let (sealed, rest) = copied.split_at(length.min(copied.len()));
            copied = rest;
            let Ok(verdict) = datagram else { continue };
            let discard = verdict.discard.map(Discard::from);
            let of_datagram = discard.filter(|_| verdict.packet.is_none());
            // A capture that has just begun finds no copy.
            if !sealed.is_empty() {
                show_received(capture, now, verdict.source, sealed, of_datagram);
            }
            if let Some(packet) = verdict.packet {
                capture.inner(now, Direction::Inbound, packet, discard);
            }
        }
    }
}

fn show_received(
    capture: &mut Capture,
    now: Instant,
    source: SocketAddr,
    datagram: &[u8],
    discard: Option<Discard>,
) {
    if capture.hold_outer(Direction::Inbound, source, datagram) {
        capture.release_outer(now, discard);
    }
}
