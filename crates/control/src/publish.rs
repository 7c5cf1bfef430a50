//! Wakes whoever waits for a map when a change that it can see is durable.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use model::id::OrgId;
use tokio::sync::watch;

use crate::storage::{Committed, Touched};

/// One channel per organisation and one for all; what is sent says only that one has to look.
pub(crate) struct Publisher {
    everything: watch::Sender<()>,
    /// Bounded by the number of organisations that have had a waiting node.
    orgs: Mutex<BTreeMap<OrgId, watch::Sender<()>>>,
}

impl Publisher {
    /// Makes a publisher that nobody waits for yet.
    pub(crate) fn new() -> Self {
        Self {
            everything: watch::Sender::new(()),
            orgs: Mutex::new(BTreeMap::new()),
        }
    }

    /// Wakes those whose maps a durable change touched.
    pub(crate) fn publish(&self, committed: Committed) {
        self.wake(committed.touched);
    }

    /// Wakes those whose maps a change touched if it happened, which nobody knows: they find their
    /// serial as it was, or another.
    pub(crate) fn wake(&self, touched: Touched) {
        let orgs = self.orgs.lock().unwrap_or_else(PoisonError::into_inner);
        match touched {
            Touched::Nobody => return,
            Touched::Org(org) => {
                if let Some(sender) = orgs.get(&org) {
                    sender.send_replace(());
                }
            }
            Touched::Everybody => {
                for sender in orgs.values() {
                    sender.send_replace(());
                }
            }
        }
        self.everything.send_replace(());
    }

    /// Waits for changes that the members of `org` can see, or for all without one.
    pub(crate) fn subscribe(&self, org: Option<OrgId>) -> watch::Receiver<()> {
        let Some(org) = org else {
            return self.everything.subscribe();
        };
        let mut orgs = self.orgs.lock().unwrap_or_else(PoisonError::into_inner);
        orgs.entry(org)
            .or_insert_with(|| watch::Sender::new(()))
            .subscribe()
    }
}
