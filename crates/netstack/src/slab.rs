//! Slots with generations: a stale id is an error and never another socket.

use std::fmt::Debug;

/// Names a slot: an index and how often the slot has been filled.
pub(crate) trait Id: Copy + Eq + Debug {
    fn new(index: u32, generation: u32) -> Self;
    fn index(self) -> u32;
    fn generation(self) -> u32;
}

macro_rules! id {
    ($(#[$doc:meta])* $visible:vis $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        $visible struct $name {
            index: u32,
            generation: u32,
        }

        impl Id for $name {
            fn new(index: u32, generation: u32) -> Self {
                Self { index, generation }
            }

            fn index(self) -> u32 {
                self.index
            }

            fn generation(self) -> u32 {
                self.generation
            }
        }
    };
}

id!(
    /// Names a TCP connection from `connect` or `accept` to `release`.
    pub ConnectionId
);
id!(
    /// Names a TCP listener.
    pub ListenerId
);
id!(
    /// Names a UDP socket.
    pub UdpId
);
id!(
    /// Names an echo request until its reply or failure.
    pub EchoId
);
id!(
    /// Names a prefix whose datagrams and echo requests the stack takes.
    pub PrefixId
);
id!(
    /// Names an echo request to a host in a prefix until its answer.
    pub EchoRequestId
);
id!(
    /// Names what one peer holds.
    pub(crate) AccountId
);

/// A table of values that are named by generational ids; all operations are O(1).
#[derive(Debug)]
pub(crate) struct Slab<I, T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    id: std::marker::PhantomData<I>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<I: Id, T> Slab<I, T> {
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            id: std::marker::PhantomData,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, value: T) -> I {
        self.insert_with(|_| value)
    }

    /// Inserts a value that knows its id.
    pub(crate) fn insert_with(&mut self, value: impl FnOnce(I) -> T) -> I {
        if let Some(index) = self.free.pop() {
            let slot = self.slot(index).expect("the free list names slots");
            let id = I::new(index, slot.generation);
            slot.value = Some(value(id));
            return id;
        }
        let index = u32::try_from(self.slots.len()).expect("tables are bounded far below 2^32");
        let id = I::new(index, 0);
        self.slots.push(Slot {
            generation: 0,
            value: Some(value(id)),
        });
        id
    }

    pub(crate) fn remove(&mut self, id: I) -> Option<T> {
        let slot = self.slot(id.index())?;
        if slot.generation != id.generation() {
            return None;
        }
        let value = slot.value.take()?;
        // A slot that has used up its generations is given up rather than used again.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.push(id.index());
        }
        Some(value)
    }

    pub(crate) fn get(&self, id: I) -> Option<&T> {
        let slot = self.slots.get(usize::try_from(id.index()).ok()?)?;
        (slot.generation == id.generation()).then_some(slot.value.as_ref())?
    }

    pub(crate) fn get_mut(&mut self, id: I) -> Option<&mut T> {
        let slot = self.slot(id.index())?;
        (slot.generation == id.generation()).then_some(slot.value.as_mut())?
    }

    /// Returns what the slot at `index` holds, with its id.
    pub(crate) fn at_mut(&mut self, index: u32) -> Option<(I, &mut T)> {
        let slot = self.slot(index)?;
        let id = I::new(index, slot.generation);
        slot.value.as_mut().map(|value| (id, value))
    }

    /// Returns the ids of all values, in the order of their slots.
    pub(crate) fn ids(&self) -> impl Iterator<Item = I> {
        let slots = self.slots.iter().zip(0..);
        slots.filter_map(|(slot, index)| {
            let id = I::new(index, slot.generation);
            slot.value.as_ref().map(|_| id)
        })
    }

    fn slot(&mut self, index: u32) -> Option<&mut Slot<T>> {
        self.slots.get_mut(usize::try_from(index).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_never_names_the_next_value_of_its_slot() {
        let mut slab: Slab<UdpId, &str> = Slab::new();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!(first.index(), second.index());
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!((slab.get(second), slab.len()), (Some(&"second"), 1));
    }
}
