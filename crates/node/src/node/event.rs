//! What happened inside the tunnel and the stack, and whom it concerns.

use std::time::Instant;

use model::key::PublicKey;
use wireguard::{PeerId, Transmit};

use super::{Event, Link, Node};

impl Node {
    /// Moves events of the parts to where they belong; true when the resolver did something.
    pub(super) fn pump(&mut self, now: Instant) -> bool {
        while let Some(event) = self.device.poll_event() {
            self.take_tunnel_event(now, event);
        }
        let mut resolved = false;
        if let Link::Tun(stack) | Link::Netstack(stack) = &mut self.attachment {
            while let Some(event) = stack.poll_event() {
                match self.server.handle_event(now, stack, &self.orgs, event) {
                    Some(event) => self.events.push_back(Event::Stack(event)),
                    None => resolved = true,
                }
            }
        }
        resolved
    }

    fn take_tunnel_event(&mut self, now: Instant, event: wireguard::Event) {
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
                self.tell("handshake completed with", peer);
                self.happened.handshakes_completed += 1;
                self.look_at_path(now, peer);
                if let Some((public_key, peer)) = self.roster.by_id_mut(peer) {
                    peer.attempts = 0;
                    let event = Event::HandshakeCompleted { public_key };
                    self.events.push_back(event);
                }
            }
            wireguard::Event::HandshakeAbandoned { peer } => {
                self.tell("handshake abandoned with", peer);
                self.happened.handshakes_abandoned += 1;
                self.take_abandoned(peer);
            }
            wireguard::Event::EndpointMoved { peer, endpoint } => {
                self.tell("peer moved to", peer);
                self.happened.endpoints_moved += 1;
                self.roster.note_heard(now, peer, endpoint);
                self.leave_path(peer);
                if let Some(public_key) = self.roster.key(peer) {
                    self.events.push_back(Event::EndpointMoved {
                        public_key,
                        endpoint,
                    });
                }
            }
            wireguard::Event::SessionsZeroed { .. } => {}
            wireguard::Event::KeyLog {
                log,
                remote,
                initiator,
            } => {
                if let Some(capture) = &mut self.capture {
                    capture.write_keys(&log, remote, initiator);
                }
            }
            wireguard::Event::Discarded { discard, count } => self.discard_late(discard, count),
        }
    }

    fn take_abandoned(&mut self, peer: PeerId) {
        let Some(public_key) = self.roster.key(peer) else {
            return;
        };
        self.events
            .push_back(Event::HandshakeAbandoned { public_key });
        self.return_to_wanted_endpoint(peer);
    }

    pub(super) fn count_attempt(&mut self, transmit: &Transmit) {
        let initiation = transmit.datagram.len() == wireguard::INITIATION
            && transmit.datagram.first() == Some(&1);
        let Some(id) = transmit.peer.filter(|_| initiation) else {
            return;
        };
        if let Some((_, peer)) = self.roster.by_id_mut(id) {
            peer.attempts = peer.attempts.saturating_add(1);
            // Under traffic an attempt never ends, so its end is not waited for.
            if peer.attempts.is_multiple_of(ATTEMPTS_UNTIL_LOOKUP) {
                self.return_to_wanted_endpoint(id);
            }
        }
    }

    /// Goes back to the endpoint of the map or configuration, for the address behind a name may
    /// have changed, and a forger on the path may have moved the endpoint (roaming is not
    /// confirmed).
    fn return_to_wanted_endpoint(&mut self, id: PeerId) {
        let Some((public_key, peer)) = self.roster.by_id_mut(id) else {
            return;
        };
        let Some(endpoint) = peer.wanted.endpoint.clone() else {
            return;
        };
        match endpoint.socket_address() {
            Some(address) => {
                self.device.set_endpoint(id, Some(address));
                self.leave_path(id);
            }
            None => self.ask_for(vec![(public_key, endpoint)]),
        }
    }
}

/// Initiations without an answer, `REKEY_TIMEOUT` apart, after which an endpoint is doubted.
const ATTEMPTS_UNTIL_LOOKUP: u32 = 3;
