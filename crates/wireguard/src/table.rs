//! The peers of a device: a slab with generations, an index of keys, and one of receiver indices.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    hash::{BuildHasherDefault, Hasher},
};

use crate::{
    key::PublicKey,
    peer::{Peer, PeerId},
    random::Random,
};

/// All peers, found by place, name, key or receiver index without a scan.
#[derive(Default)]
pub(crate) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    keys: BTreeMap<PublicKey, u32>,
    /// Receiver index to place. Looked up only, never walked.
    indices: HashMap<u32, u32, BuildHasherDefault<Spread>>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    /// Boxed, so that a growing slab moves pointers only.
    peer: Option<Box<Peer>>,
}

/// Multiplies: receiver indices are random already, only their bits must reach the top.
#[derive(Default)]
pub(crate) struct Spread(u64);

impl Table {
    /// Adds a peer whose key is new; `None` when the table is full.
    pub(crate) fn insert(&mut self, peer: Peer) -> Option<PeerId> {
        let key = peer.key;
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                let place = u32::try_from(self.slots.len()).ok()?;
                if place >= PEERS_MAX {
                    return None;
                }
                self.slots.push(Slot::default());
                place
            }
        };
        self.slots[place as usize].peer = Some(Box::new(peer));
        self.keys.insert(key, place);
        Some(self.id(place))
    }

    /// Takes a peer out, with all that leads to it.
    pub(crate) fn remove(&mut self, id: PeerId) -> Option<Box<Peer>> {
        let place = self.place(id)?;
        let slot = &mut self.slots[place as usize];
        let peer = slot.peer.take()?;
        // A place whose generations are used up stays empty, so that no name ever comes again.
        if let Some(generation) = slot.generation.checked_add(1) {
            slot.generation = generation;
            self.free.push(place);
        }
        self.keys.remove(&peer.key);
        if let Some(hot) = &peer.hot {
            for index in hot.indices() {
                self.indices.remove(&index);
            }
        }
        Some(peer)
    }

    /// Drops the sessions and the pending handshake of a peer; true when there were any.
    pub(crate) fn drop_hot(&mut self, place: u32) -> bool {
        let Some(hot) = self.slots[place as usize]
            .peer
            .as_mut()
            .and_then(|peer| peer.hot.take())
        else {
            return false;
        };
        for index in hot.indices() {
            self.indices.remove(&index);
        }
        true
    }

    pub(crate) fn place(&self, id: PeerId) -> Option<u32> {
        let slot = self.slots.get(id.index as usize)?;
        (slot.generation == id.generation && slot.peer.is_some()).then_some(id.index)
    }

    /// Returns the name of the peer at `place`.
    pub(crate) fn id(&self, place: u32) -> PeerId {
        PeerId {
            index: place,
            generation: self.slots[place as usize].generation,
        }
    }

    pub(crate) fn by_key(&self, key: &PublicKey) -> Option<u32> {
        self.keys.get(key).copied()
    }

    pub(crate) fn by_index(&self, index: u32) -> Option<u32> {
        self.indices.get(&index).copied()
    }

    /// Lets an index that nobody has lead to `place`; false when somebody has it.
    pub(crate) fn insert_index(&mut self, index: u32, place: u32) -> bool {
        match self.indices.entry(index) {
            Entry::Vacant(vacant) => {
                vacant.insert(place);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// Draws a receiver index that nobody has and lets it lead to `place`.
    pub(crate) fn new_index(&mut self, random: &mut dyn Random, place: u32) -> u32 {
        loop {
            let mut index = [0; 4];
            random.fill(&mut index);
            let index = u32::from_le_bytes(index);
            if let Entry::Vacant(vacant) = self.indices.entry(index) {
                vacant.insert(place);
                return index;
            }
        }
    }

    pub(crate) fn drop_index(&mut self, index: u32) {
        self.indices.remove(&index);
    }

    /// Returns the peer at a place that an index, a route or the schedule names.
    pub(crate) fn peer(&self, place: u32) -> &Peer {
        self.slots[place as usize]
            .peer
            .as_ref()
            .expect("whatever names a place is removed with its peer")
    }

    /// Like [`Table::peer`], to change it.
    pub(crate) fn peer_mut(&mut self, place: u32) -> &mut Peer {
        self.slots[place as usize]
            .peer
            .as_mut()
            .expect("whatever names a place is removed with its peer")
    }

    /// Returns the places of all peers, oldest place first.
    pub(crate) fn places(&self) -> impl Iterator<Item = u32> {
        self.places_from(0)
    }

    /// Like [`Table::places`], from one place on.
    pub(crate) fn places_from(&self, first: u32) -> impl Iterator<Item = u32> {
        (first..)
            .zip(self.slots.iter().skip(first as usize))
            .filter(|(_, slot)| slot.peer.is_some())
            .map(|(place, _)| place)
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    #[cfg(test)]
    pub(crate) fn index_count(&self) -> usize {
        self.indices.len()
    }
}

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        // 2^64 divided by the golden ratio.
        self.0 = (self.0 ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Receiver indices have 32 bits and a peer uses up to four, so random draws still end quickly.
const PEERS_MAX: u32 = 1 << 26;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Seeded;

    /// Yields each index twice, so that every second draw collides.
    struct Twice(u32);

    impl Random for Twice {
        fn fill(&mut self, bytes: &mut [u8]) {
            bytes.copy_from_slice(&(self.0 / 2).to_le_bytes());
            self.0 += 1;
        }
    }

    #[test]
    fn colliding_indices_are_drawn_again() {
        let mut table = Table::default();
        let place = table.insert(Peer::new(PublicKey([1; 32]))).unwrap().index;
        let mut random = Twice(0);
        let drawn: Vec<_> = (0..4)
            .map(|_| table.new_index(&mut random, place))
            .collect();
        assert_eq!(drawn, [0, 1, 2, 3]);
        assert_eq!(random.0, 7);
    }

    #[test]
    fn a_name_never_comes_again() {
        let mut table = Table::default();
        let first = table.insert(Peer::new(PublicKey([1; 32]))).unwrap();
        let index = table.new_index(&mut Seeded::new(1), first.index);
        assert_eq!(table.by_index(index), Some(first.index));
        assert!(table.remove(first).is_some());
        assert!(table.remove(first).is_none());
        let second = table.insert(Peer::new(PublicKey([2; 32]))).unwrap();
        assert_eq!(first.index, second.index);
        assert_eq!(table.place(first), None);
        assert_eq!(table.place(second), Some(second.index));
        assert_eq!(table.by_key(&PublicKey([1; 32])), None);
        table.slots[0].generation = u32::MAX;
        let last = table.id(0);
        assert!(table.remove(last).is_some());
        let third = table.insert(Peer::new(PublicKey([3; 32]))).unwrap();
        assert_eq!((third.index, table.len()), (1, 1));
    }

    #[test]
    fn an_idle_peer_is_small() {
        assert!(size_of::<Peer>() <= 512, "{}", size_of::<Peer>());
    }
}
