//! Wakes whoever waits for a map when a change that it can see is durable.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use model::id::OrgId;
use tokio::sync::watch;

use crate::storage::{Committed, Touched};

/// The serials that were published last, one channel per organisation and one for all.
pub(crate) struct Publisher {
    everything: watch::Sender<u64>,
    /// Bounded by the number of organisations that have had a waiting node.
    orgs: Mutex<BTreeMap<OrgId, watch::Sender<u64>>>,
}

impl Publisher {
    /// Makes a publisher that nobody waits for yet.
    pub(crate) fn new() -> Self {
        Self {
            everything: watch::Sender::new(0),
            orgs: Mutex::new(BTreeMap::new()),
        }
    }

    /// Wakes those whose maps a change touched.
    pub(crate) fn publish(&self, committed: Committed) {
        let orgs = self.orgs.lock().unwrap_or_else(PoisonError::into_inner);
        match committed.touched {
            Touched::Nobody => return,
            Touched::Org(org) => {
                if let Some(sender) = orgs.get(&org) {
                    sender.send_replace(committed.serial);
                }
            }
            Touched::Everybody => {
                for sender in orgs.values() {
                    sender.send_replace(committed.serial);
                }
            }
        }
        self.everything.send_replace(committed.serial);
    }

    /// Waits for changes that the members of `org` can see, or for all without one.
    pub(crate) fn subscribe(&self, org: Option<OrgId>) -> watch::Receiver<u64> {
        let Some(org) = org else {
            return self.everything.subscribe();
        };
        let mut orgs = self.orgs.lock().unwrap_or_else(PoisonError::into_inner);
        orgs.entry(org)
            .or_insert_with(|| watch::Sender::new(0))
            .subscribe()
    }
}
