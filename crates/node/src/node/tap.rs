//! Where a capture sees packets; each tap is one branch when none runs.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Instant, SystemTime},
};

use model::{id::OrgId, map, name::ZONE};
use packet::pcapng::Direction;
use wireguard::PeerId;

use super::{Node, Source};
use crate::{
    capture::{Capture, Settings},
    discard::Discard,
};

impl Node {
    /// Begins a capture, if none runs; `wall` is the time of day at `now`.
    ///
    /// With keys, new handshakes begin with all peers that are wanted, because those of older
    /// sessions are gone.
    pub fn start_capture(&mut self, now: Instant, wall: SystemTime, settings: Settings) -> bool {
        if self.capture.is_some() {
            return false;
        }
        let capture = Capture::new(now, wall, settings);
        if capture.has_keys() {
            self.device.set_key_log(true);
            for (public_key, endpoint) in self.endpoints() {
                if capture.wants_keys(endpoint, true) {
                    self.initiate(now, &public_key);
                }
            }
        }
        self.capture = Some(Box::new(capture));
        self.choose_deferred_agreements();
        let orgs = self.map().into_iter().flat_map(|map| map.orgs.keys());
        self.name_nodes(orgs.copied().collect::<Vec<_>>());
        true
    }

    /// Says to the capture which names nodes of these organisations have now.
    pub(super) fn name_nodes(&mut self, orgs: impl IntoIterator<Item = OrgId>) {
        let capture = self.capture.as_mut();
        let capture = capture.filter(|capture| capture.wants_names());
        if let (Some(capture), Source::Map(map)) = (capture, &self.source) {
            let orgs = orgs.into_iter().filter_map(|id| map.orgs.get(&id));
            capture.name(orgs.flat_map(|org| {
                let nodes = org.nodes.values();
                nodes.filter_map(move |node| named(org, node))
            }));
        }
    }

    /// Returns the capture that runs.
    pub fn capture(&mut self) -> Option<&mut Capture> {
        self.capture.as_deref_mut()
    }

    /// Ends the capture, whose last blocks are in what is returned.
    pub fn end_capture(&mut self, now: Instant) -> Option<Box<Capture>> {
        let mut capture = self.capture.take()?;
        self.device.set_key_log(false);
        self.choose_deferred_agreements();
        capture.finish(now);
        Some(capture)
    }

    /// Keeps a datagram from the network until it is known what became of it.
    pub(super) fn hold_received(&mut self, source: SocketAddr, datagram: &[u8]) {
        if let Some(capture) = &mut self.capture {
            capture.hold_outer(Direction::Inbound, source, datagram);
        }
    }

    pub(super) fn release_received(&mut self, now: Instant, discard: Option<Discard>) {
        if let Some(capture) = &mut self.capture {
            capture.release_outer(now, discard);
        }
    }

    /// Sees datagrams of `segment` bytes, the last perhaps shorter, on their way to the network.
    pub(super) fn tap_sent(
        &mut self,
        now: Instant,
        destination: SocketAddr,
        run: &[u8],
        segment: usize,
    ) {
        if self.capture.is_some() {
            // Keys come before what they open.
            self.pump(now);
        }
        if let Some(capture) = &mut self.capture {
            for datagram in run.chunks(segment.max(1)) {
                capture.outer(now, Direction::Outbound, destination, datagram);
            }
        }
    }

    /// Sees a packet that came out of the tunnel.
    pub(super) fn tap_received(&mut self, now: Instant, packet: &[u8], discard: Option<Discard>) {
        if let Some(capture) = &mut self.capture {
            capture.inner(now, Direction::Inbound, packet, discard);
        }
    }

    /// Sees a packet that did not get as far as the tunnel.
    pub(super) fn tap_refused(&mut self, now: Instant, packet: &[u8], discard: Discard) {
        if let Some(capture) = &mut self.capture {
            capture.inner(now, Direction::Outbound, packet, Some(discard));
        }
    }

    /// Keeps a packet that goes into the tunnel until it is known what became of it.
    pub(super) fn hold_sent(&mut self, packet: &[u8]) {
        if let Some(capture) = &mut self.capture {
            capture.hold_inner(Direction::Outbound, packet);
        }
    }

    pub(super) fn release_sent(&mut self, now: Instant, discard: Option<Discard>) {
        if let Some(capture) = &mut self.capture {
            capture.release_inner(now, discard);
        }
    }

    /// Counts packets that were discarded after a capture saw them as taken, or whose bytes are
    /// gone.
    pub(super) fn discard_late(&mut self, discard: impl Into<Discard>, count: u64) {
        let discard = discard.into();
        self.counters.add(discard, count);
        if let Some(capture) = &mut self.capture {
            capture.discarded(discard, count);
        }
    }

    /// Tells an event of the tunnel in the comment of the next packet.
    pub(super) fn tell(&mut self, what: &str, peer: PeerId) {
        if let Some(capture) = &mut self.capture {
            let endpoint = self.device.status(peer).and_then(|status| status.endpoint);
            let endpoint = endpoint.map_or_else(|| "a peer".to_owned(), |at| at.to_string());
            capture.note(format!("{what} {endpoint}"));
        }
    }
}

/// Returns the full name of a node for its address.
pub(super) fn named(org: &map::Org, node: &map::Node) -> Option<(IpAddr, String)> {
    org.prefix.contains(node.address).then(|| {
        let name = format!("{}.{}.{ZONE}", node.name, org.name);
        (IpAddr::V6(node.address), name)
    })
}
