//! What happened inside the tunnel and the stack, and whom it concerns.

use std::time::Instant;

use model::key::PublicKey;
use wireguard::{PeerId, Transmit};

use super::{Event, Link, Node};

impl Node {
    /// Moves events of the parts to where they belong; true when the resolver did something.
    pub(super) fn pump(&mut self, now: Instant) -> bool {
        while let Some(event) = self.device.poll_event() {
            self.take_tunnel_event(event);
        }
        let mut resolved = false;
        if let Link::Netstack(stack) = &mut self.attachment {
            while let Some(event) = stack.poll_event() {
                match self.server.handle_event(now, stack, &self.orgs, event) {
                    Some(event) => self.events.push_back(Event::Stack(event)),
                    None => resolved = true,
                }
            }
        }
        resolved
    }

    fn take_tunnel_event(&mut self, event: wireguard::Event) {
        match event {
            wireguard::Event::UnknownInitiator {
                public_key,
                source,
                ticket,
            } => self.events.push_back(Event::UnknownInitiator {
                public_key: PublicKey(public_key.0),
                source,
                ticket,
            }),
            wireguard::Event::HandshakeCompleted { peer } => {
                if let Some((public_key, peer)) = self.roster.by_id_mut(peer) {
                    peer.attempts = 0;
                    let event = Event::HandshakeCompleted { public_key };
                    self.events.push_back(event);
                }
            }
            wireguard::Event::HandshakeAbandoned { peer } => self.take_abandoned(peer),
            wireguard::Event::EndpointMoved { peer, endpoint } => {
                if let Some(public_key) = self.roster.key(peer) {
                    self.events.push_back(Event::EndpointMoved {
                        public_key,
                        endpoint,
                    });
                }
            }
            wireguard::Event::SessionsZeroed { .. } => {}
            wireguard::Event::KeyLog(log) => self.events.push_back(Event::KeyLog(log)),
            wireguard::Event::Discarded { discard, count } => self.counters.add(discard, count),
        }
    }

    /// The address behind a name may have changed, so it is asked for again.
    fn take_abandoned(&mut self, peer: PeerId) {
        let Some((public_key, peer)) = self.roster.by_id_mut(peer) else {
            return;
        };
        let name = peer.wanted.endpoint.clone();
        let name = name.filter(|endpoint| endpoint.socket_address().is_none());
        let event = Event::HandshakeAbandoned { public_key };
        self.events.push_back(event);
        self.ask_for(name.map(|name| (public_key, name)).into_iter().collect());
    }

    pub(super) fn count_attempt(&mut self, transmit: &Transmit) {
        let initiation = transmit.datagram.len() == wireguard::INITIATION
            && transmit.datagram.first() == Some(&1);
        let peer = transmit.peer.filter(|_| initiation);
        if let Some((_, peer)) = peer.and_then(|peer| self.roster.by_id_mut(peer)) {
            peer.attempts = peer.attempts.saturating_add(1);
        }
    }
}
