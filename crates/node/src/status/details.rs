//! Everything about one peer, for whoever looks for a fault.

use std::time::Instant;

use model::{
    key::PublicKey,
    status::{Handshake, Heard, PeerDetails, Session},
};

use crate::{discard::Discard, node::Node};

impl Node {
    /// Tells everything about one peer, except keys of sessions; `None` when there is no such.
    #[must_use]
    pub fn peer_details(&self, now: Instant, public_key: &PublicKey) -> Option<PeerDetails> {
        let known = self.roster.peer(public_key)?;
        let status = self.device.status(known.id)?;
        let details = self.device.details(known.id)?;
        let age = |then: Instant| millis(now.saturating_duration_since(then));
        let due = |at: Instant| millis(at.saturating_duration_since(now));
        let sessions = details.sessions.iter().map(|session| Session {
            place: session.place.to_owned(),
            local_index: session.local_index,
            remote_index: session.remote_index,
            initiator: session.initiator,
            age_ms: age(session.created),
            expires_in_ms: due(session.expires),
            sent_messages: session.sent_messages,
        });
        let timers = details.timers.iter();
        let endpoints = known.heard.iter().map(|(then, endpoint)| Heard {
            endpoint: *endpoint,
            age_seconds: now.saturating_duration_since(*then).as_secs(),
        });
        let discards = details.discards.iter();
        Some(PeerDetails {
            peer: self.peer(now, &status),
            preshared_key: details.preshared_key,
            handshake: Handshake {
                initiation_index: details.initiation_index,
                attempts: known.attempts,
                attempt_age_ms: details.attempt_began.map(age),
                sent_age_ms: details.handshake_sent.map(age),
                initiation_received_age_ms: details.initiation_received.map(age),
            },
            sessions: sessions.collect(),
            timers_due_ms: timers
                .map(|(timer, at)| ((*timer).to_owned(), due(*at)))
                .collect(),
            endpoints: endpoints.collect(),
            staged_packets: u64::try_from(status.staged_packets).unwrap_or(u64::MAX),
            discards: discards
                .map(|(discard, count)| (Discard::from(*discard).name(), *count))
                .collect(),
        })
    }
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
