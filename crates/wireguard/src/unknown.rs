//! Initiations from unknown keys, kept until the caller knows who that is.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{constants::REKEY_TIMEOUT, event::Ticket, load::Bucket, message::INITIATION};

/// Kept initiations; none unless the caller wants them.
#[derive(Default)]
pub(crate) struct Unknown {
    pub(crate) enabled: bool,
    /// At most `KEPT_MAX`; the oldest gives way.
    kept: BTreeMap<Ticket, Kept>,
    next: u64,
    rate: Option<Bucket>,
}

/// One initiation as it came; its key is claimed, not proven.
pub(crate) struct Kept {
    pub(crate) source: SocketAddr,
    pub(crate) message: Box<[u8; INITIATION]>,
    received: Instant,
}

/// What became of an initiation that was to be kept.
pub(crate) enum Keep {
    Kept { ticket: Ticket, displaced: bool },
    Refused,
}

impl Unknown {
    /// Keeps an initiation unless too many came within a second.
    pub(crate) fn keep(
        &mut self,
        now: Instant,
        source: SocketAddr,
        message: &[u8; INITIATION],
    ) -> Keep {
        let rate = self
            .rate
            .get_or_insert_with(|| Bucket::full(now, SAVED_MAX));
        if !self.enabled || !rate.take(now, INTERVAL, SAVED_MAX) {
            return Keep::Refused;
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        let displaced = self.kept.len() >= KEPT_MAX && self.kept.pop_first().is_some();
        let kept = Kept {
            source,
            message: Box::new(*message),
            received: now,
        };
        self.kept.insert(ticket, kept);
        Keep::Kept { ticket, displaced }
    }

    /// Takes a kept initiation out; `None` when its initiator has begun anew since.
    pub(crate) fn take(&mut self, now: Instant, ticket: Ticket) -> Option<Kept> {
        let kept = self.kept.remove(&ticket)?;
        (now.saturating_duration_since(kept.received) < REKEY_TIMEOUT).then_some(kept)
    }

    pub(crate) fn forget(&mut self, ticket: Ticket) {
        self.kept.remove(&ticket);
    }

    pub(crate) fn clear(&mut self) {
        self.kept.clear();
    }
}

/// As many a second as handshakes are answered without load, and a burst as large as the queue.
const INTERVAL: Duration = Duration::from_millis(1);
const SAVED_MAX: Duration = Duration::from_millis(1024);
const KEPT_MAX: usize = 1024;
