//! Wakes whoever waits for a map when a change that it can see is durable.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use model::id::OrgId;
use tokio::sync::watch;

use crate::storage::{Committed, Touched};

/// One channel per organisation and one for all; what is sent says only that one has to look.
pub(crate) struct Publisher(Mutex<Channels>);

struct Channels {
    everything: Channel,
    /// Bounded by the number of organisations that have had a waiting node.
    orgs: BTreeMap<OrgId, Channel>,
}

struct Channel {
    sender: watch::Sender<()>,
    /// The serial of the newest change that was told: who is woken sees all up to it.
    serial: u64,
}

impl Publisher {
    /// Makes a publisher that nobody waits for yet.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Channels {
            everything: Channel::new(),
            orgs: BTreeMap::new(),
        }))
    }

    /// Wakes those whose maps a durable change of this server touched.
    pub(crate) fn publish(&self, committed: Committed) {
        let mut channels = self.channels();
        let Channels { everything, orgs } = &mut *channels;
        match committed.touched {
            Touched::Nobody => return,
            Touched::Org(org) => {
                if let Some(channel) = orgs.get_mut(&org) {
                    channel.wake_for(committed.serial);
                }
            }
            Touched::Everybody => {
                for channel in orgs.values_mut() {
                    channel.wake_for(committed.serial);
                }
            }
        }
        everything.wake_for(committed.serial);
    }

    /// Wakes those whose organisations have serials that they were not told of, because another
    /// server made the changes; `serial` is that of the installation.
    pub(crate) fn publish_found(&self, serial: u64, orgs: &[(OrgId, u64)]) {
        let mut channels = self.channels();
        for (org, serial) in orgs {
            if let Some(channel) = channels.orgs.get_mut(org) {
                channel.wake_for(*serial);
            }
        }
        channels.everything.wake_for(serial);
    }

    /// Wakes those whose maps a change touched if it happened, which nobody knows: they find their
    /// serial as it was, or another.
    pub(crate) fn wake(&self, touched: Touched) {
        let channels = self.channels();
        match touched {
            Touched::Nobody => return,
            Touched::Org(org) => {
                if let Some(channel) = channels.orgs.get(&org) {
                    channel.wake();
                }
            }
            Touched::Everybody => {
                for channel in channels.orgs.values() {
                    channel.wake();
                }
            }
        }
        channels.everything.wake();
    }

    /// Wakes everybody and forgets what was told: the database was set back.
    pub(crate) fn restart(&self) {
        let mut channels = self.channels();
        let Channels { everything, orgs } = &mut *channels;
        for channel in orgs.values_mut().chain([everything]) {
            channel.serial = 0;
            channel.wake();
        }
    }

    /// Waits for changes that the members of `org` can see, or for all without one.
    pub(crate) fn subscribe(&self, org: Option<OrgId>) -> watch::Receiver<()> {
        let mut channels = self.channels();
        let channel = match org {
            Some(org) => channels.orgs.entry(org).or_insert_with(Channel::new),
            None => &mut channels.everything,
        };
        channel.sender.subscribe()
    }

    fn channels(&self) -> MutexGuard<'_, Channels> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Channel {
    fn new() -> Self {
        Self {
            sender: watch::Sender::new(()),
            serial: 0,
        }
    }

    /// Wakes unless who waits has been woken for this change or a later one.
    fn wake_for(&mut self, serial: u64) {
        if self.serial < serial {
            self.serial = serial;
            self.wake();
        }
    }

    fn wake(&self) {
        self.sender.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells whether the receivers were woken since the last look.
    fn woken<const N: usize>(receivers: &mut [watch::Receiver<()>; N]) -> [bool; N] {
        std::array::from_fn(|number| {
            let woken = receivers[number].has_changed().unwrap();
            receivers[number].borrow_and_update();
            woken
        })
    }

    #[test]
    fn a_change_that_was_told_is_not_told_again_when_it_is_found() {
        let publisher = Publisher::new();
        let (one, two) = (OrgId(1), OrgId(2));
        let mut receivers = [Some(one), Some(two), None].map(|org| publisher.subscribe(org));
        publisher.publish(Committed {
            serial: 7,
            touched: Touched::Org(one),
        });
        assert_eq!(woken(&mut receivers), [true, false, true]);
        // Another server made the sixth, before it.
        publisher.publish_found(7, &[(one, 7), (two, 6)]);
        assert_eq!(woken(&mut receivers), [false, true, false]);
        publisher.publish_found(8, &[(one, 8)]);
        assert_eq!(woken(&mut receivers), [true, false, true]);
        publisher.restart();
        assert_eq!(woken(&mut receivers), [true, true, true]);
        publisher.publish_found(3, &[(two, 3)]);
        assert_eq!(woken(&mut receivers), [false, true, true]);
    }
}
