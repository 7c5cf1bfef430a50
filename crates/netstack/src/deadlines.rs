//! Who becomes due when: O(log n) to move, O(1) to ask.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// How near a deadline is left where it is although a later one is wanted.
const NEAR: Duration = Duration::from_millis(300);

/// An ordered set of deadlines; the owner remembers the deadline that it has armed.
#[derive(Debug, Default)]
pub(crate) struct Deadlines<K> {
    set: BTreeSet<(Instant, K)>,
}

impl<K: Copy + Ord> Deadlines<K> {
    pub(crate) fn new() -> Self {
        Self {
            set: BTreeSet::new(),
        }
    }

    /// Moves the deadline of `key` from what was armed to what is wanted.
    ///
    /// An earlier deadline that is near stays where it is: the owner is asked once in vain and
    /// arms again, which costs less than moving the entry with every acknowledgement.
    pub(crate) fn arm(
        &mut self,
        now: Instant,
        key: K,
        armed: &mut Option<Instant>,
        wanted: Option<Instant>,
    ) {
        let keeps = match (*armed, wanted) {
            (Some(old), Some(new)) => old <= new && old <= now + NEAR,
            (Some(old), None) => old > now && old <= now + NEAR,
            (None, None) => true,
            (None, Some(_)) => false,
        };
        if keeps || *armed == wanted {
            return;
        }
        if let Some(old) = *armed {
            self.set.remove(&(old, key));
        }
        if let Some(new) = wanted {
            self.set.insert((new, key));
        }
        *armed = wanted;
    }

    /// Forgets the deadline of `key`, whose owner goes.
    pub(crate) fn disarm(&mut self, key: K, armed: &mut Option<Instant>) {
        if let Some(old) = armed.take() {
            self.set.remove(&(old, key));
        }
    }

    /// Removes and returns one key that is due at `now`; its owner must forget what it has armed.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<K> {
        let &(deadline, key) = self.set.first()?;
        if deadline > now {
            return None;
        }
        self.set.pop_first();
        Some(key)
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.set.first().map(|&(deadline, _)| deadline)
    }
}
