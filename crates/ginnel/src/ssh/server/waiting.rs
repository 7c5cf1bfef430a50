//! Connections on which nobody has come in yet: few at a time, and shared fairly among sources.
//!
//! A source cannot be forged, so whoever fills the places crowds out himself: when all are taken, a
//! source that has few of them gets the oldest of the source that has most.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// Places; OpenSSH's `MaxStartups` has 100 by default. At the bound a connection is closed.
pub(super) const PLACES_MAX: usize = 256;

/// The places of one server.
#[derive(Clone, Default)]
pub(super) struct Waiting(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    /// Bounded by `PLACES_MAX`; the oldest has the lowest number.
    taken: BTreeMap<u64, Taken>,
    next: u64,
    /// It was said that all are taken, and more than half have been since.
    is_told: bool,
}

struct Taken {
    source: IpAddr,
    /// Dropped when another source gets the place.
    _held: oneshot::Sender<()>,
}

/// A place, given back when it is dropped.
pub(super) struct Place {
    waiting: Waiting,
    number: u64,
    held: oneshot::Receiver<()>,
}

impl Waiting {
    /// Gives a connection from `source` a place; `None` closes it.
    pub(super) fn enter(&self, source: IpAddr) -> Option<Place> {
        let mut table = self.table();
        if table.taken.len() >= PLACES_MAX {
            if !table.is_told {
                table.is_told = true;
                tracing::warn!(%source, "ssh: {PLACES_MAX} connections wait for a login");
            }
            let displaced = table.displaced_by(source)?;
            table.taken.remove(&displaced);
        }
        let (sender, held) = oneshot::channel();
        let number = table.next;
        table.next += 1;
        let taken = Taken {
            source,
            _held: sender,
        };
        table.taken.insert(number, taken);
        drop(table);
        Some(Place {
            waiting: self.clone(),
            number,
            held,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Returns the oldest place of the source with most, if `source` has fewer even with one more.
    fn displaced_by(&self, source: IpAddr) -> Option<u64> {
        let mut counts = BTreeMap::<IpAddr, usize>::new();
        for taken in self.taken.values() {
            *counts.entry(taken.source).or_default() += 1;
        }
        let own = counts.get(&source).copied().unwrap_or_default();
        let (greediest, most) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        if own + 1 >= most {
            return None;
        }
        let mut oldest_first = self.taken.iter();
        let oldest = oldest_first.find(|(_, taken)| taken.source == greediest);
        oldest.map(|(number, _)| *number)
    }
}

impl Place {
    /// Waits until another source gets the place.
    pub(super) async fn displaced(&mut self) {
        // Nothing is ever sent.
        drop((&mut self.held).await);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.waiting.table();
        table.taken.remove(&self.number);
        if table.taken.len() < PLACES_MAX / 2 {
            table.is_told = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    fn source(last: u16) -> IpAddr {
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last])
    }

    fn is_displaced(place: &mut Place) -> bool {
        place.held.try_recv() == Err(TryRecvError::Closed)
    }

    #[test]
    fn one_source_gets_all_places_and_no_more() {
        let waiting = Waiting::default();
        let places: Vec<_> = (0..PLACES_MAX)
            .map(|_| waiting.enter(source(1)).unwrap())
            .collect();
        assert!(waiting.enter(source(1)).is_none());
        drop(places);
        assert!(waiting.enter(source(1)).is_some());
    }

    #[test]
    fn the_oldest_of_the_source_with_most_makes_room_for_others_until_they_have_as_many() {
        let waiting = Waiting::default();
        let mut many: Vec<_> = (0..PLACES_MAX)
            .map(|_| waiting.enter(source(1)).unwrap())
            .collect();
        let mut others = Vec::new();
        while let Some(place) = waiting.enter(source(2)) {
            others.push(place);
            let displaced = many.iter_mut().map(is_displaced);
            let displaced: Vec<_> = displaced.collect();
            let (gone, left) = displaced.split_at(others.len());
            assert!(gone.iter().all(|gone| *gone) && !left.contains(&true));
        }
        assert_eq!(others.len(), PLACES_MAX / 2);
        assert!(!others.iter_mut().any(is_displaced));
        let third = waiting.enter(source(3));
        assert!(third.is_some(), "a third has room too");
        // A place that another has got already gives nothing back.
        drop(many);
        others.retain_mut(|place| !is_displaced(place));
        assert_eq!(waiting.table().taken.len(), others.len() + 1);
    }

    #[test]
    fn where_every_source_has_one_nobody_is_displaced() {
        let waiting = Waiting::default();
        let places: Vec<_> = (0..u16::try_from(PLACES_MAX).unwrap())
            .map(|last| waiting.enter(source(last)).unwrap())
            .collect();
        assert!(waiting.enter(source(u16::MAX)).is_none());
        drop(places);
    }
}
