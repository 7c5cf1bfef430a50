//! The conversations that were let through, each until it has been silent for its time.

use std::{
    collections::HashMap,
    hash::BuildHasher,
    net::IpAddr,
    time::{Duration, Instant},
};

use packet::flow::{Flow, Transport};
use siphasher::sip::SipHasher13;

/// Conversations at one time. At the bound a new one passes by the rules alone, so answers pass
/// only where they are segments of TCP.
const FLOWS_MAX: usize = 262_144;

/// The same for those that one address opened, so that no node takes the table from the others.
const FLOWS_PER_SOURCE_MAX: u32 = 16_384;

/// How long a conversation may be silent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Patience {
    /// Echo: a minute (RFC 5508, REQ-2).
    Short,
    /// UDP and everything that has not been answered, or has ended: more than the two minutes of
    /// RFC 4787, REQ-5, and the four of RFC 5382, REQ-5.
    Medium,
    /// TCP that was answered: two hours and four minutes (RFC 5382, REQ-5).
    Long,
}

impl Entry {
    fn patience(&self) -> Patience {
        match self.opening.transport {
            Transport::Echo(_) => Patience::Short,
            Transport::Tcp { .. } if self.answered && !self.ended => Patience::Long,
            Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Other(_) => Patience::Medium,
        }
    }
}

impl Patience {
    const ALL: [Self; 3] = [Self::Short, Self::Medium, Self::Long];

    fn time(self) -> Duration {
        match self {
            Self::Short => Duration::from_secs(60),
            Self::Medium => Duration::from_secs(240),
            Self::Long => Duration::from_secs(7_440),
        }
    }
}

/// Both directions of one conversation have the same key.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
struct Key {
    low: (IpAddr, u16),
    high: (IpAddr, u16),
    /// The protocol's number, or [`ECHO`].
    protocol: u16,
}

/// A conversation that is in the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    index: usize,
    /// The direction of its first packet.
    pub(super) opening: Flow,
    /// The rules that allowed it; `None` for one that the own side opened.
    pub(super) generation: Option<u64>,
}

/// An entry, and its neighbours among those of the same patience, in the order of their last
/// packets.
struct Entry {
    opening: Flow,
    generation: Option<u64>,
    /// A packet went the other way.
    answered: bool,
    /// One side has said its last.
    ended: bool,
    last: Instant,
    newer: Option<usize>,
    older: Option<usize>,
}

#[derive(Clone, Copy, Default)]
struct List {
    newest: Option<usize>,
    oldest: Option<usize>,
}

pub(super) struct Table {
    index: HashMap<Key, usize, TableKey>,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    lists: [List; Patience::ALL.len()],
    /// How many each address opened; bounded by the entries.
    opened: HashMap<IpAddr, u32, TableKey>,
}

#[derive(Clone, Copy)]
struct TableKey(u128);

impl BuildHasher for TableKey {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0.to_le_bytes())
    }
}

impl Table {
    pub(super) fn new(key: u128) -> Self {
        let key = TableKey(key);
        Self {
            index: HashMap::with_hasher(key),
            entries: Vec::new(),
            free: Vec::new(),
            lists: [List::default(); Patience::ALL.len()],
            opened: HashMap::with_hasher(key),
        }
    }

    /// Returns the conversation that `flow` is a direction of.
    pub(super) fn find(&self, now: Instant, flow: Flow) -> Option<Found> {
        let index = *self.index.get(&key(flow))?;
        let entry = self.entry(index);
        let silent = now.saturating_duration_since(entry.last);
        (silent < entry.patience().time()).then_some(Found {
            index,
            opening: entry.opening,
            generation: entry.generation,
        })
    }

    /// Adds a conversation by its first packet; does nothing at a bound.
    pub(super) fn insert(
        &mut self,
        now: Instant,
        opening: Flow,
        generation: Option<u64>,
        ending: bool,
    ) {
        self.expire(now);
        // One that was silent for too long may still stand here.
        self.remove(opening);
        let opened = self.opened.get(&opening.source).copied().unwrap_or(0);
        if self.index.len() >= FLOWS_MAX || opened >= FLOWS_PER_SOURCE_MAX {
            return;
        }
        let entry = Entry {
            opening,
            generation,
            answered: false,
            ended: ending,
            last: now,
            newer: None,
            older: None,
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.entries[index] = Some(entry);
                index
            }
            None => {
                self.entries.push(Some(entry));
                self.entries.len() - 1
            }
        };
        self.index.insert(key(opening), index);
        *self.opened.entry(opening.source).or_insert(0) += 1;
        self.link(index);
    }

    /// Takes note of a further packet, in the direction of `flow`; `ending` when it is the last of
    /// its sender.
    pub(super) fn touch(&mut self, now: Instant, found: Found, flow: Flow, ending: bool) {
        self.unlink(found.index);
        let entry = self.entry_mut(found.index);
        entry.last = now;
        entry.answered |= flow != entry.opening;
        entry.ended |= ending;
        self.link(found.index);
    }

    /// Notes that the rules as they are now allow the conversation.
    pub(super) fn renew(&mut self, opening: Flow, generation: u64) {
        if let Some(&index) = self.index.get(&key(opening)) {
            self.entry_mut(index).generation = Some(generation);
        }
    }

    /// Forgets a conversation.
    pub(super) fn remove(&mut self, flow: Flow) {
        let Some(index) = self.index.remove(&key(flow)) else {
            return;
        };
        self.unlink(index);
        let entry = self.entries[index].take().expect("`index` names entries");
        self.free.push(index);
        let source = entry.opening.source;
        let opened = self.opened.get_mut(&source).expect("an entry is counted");
        *opened -= 1;
        if *opened == 0 {
            self.opened.remove(&source);
        }
    }

    /// Forgets what has been silent for its time: at most as much as could be added meanwhile.
    fn expire(&mut self, now: Instant) {
        for patience in Patience::ALL {
            for _ in 0..EXPIRED_AT_ONCE {
                let Some(oldest) = self.lists[patience as usize].oldest else {
                    break;
                };
                let entry = self.entry(oldest);
                if now.saturating_duration_since(entry.last) < patience.time() {
                    break;
                }
                self.remove(entry.opening);
            }
        }
    }

    fn link(&mut self, index: usize) {
        let list = self.entry(index).patience() as usize;
        let newest = self.lists[list].newest.replace(index);
        let entry = self.entry_mut(index);
        entry.newer = None;
        entry.older = newest;
        match newest {
            Some(newest) => self.entry_mut(newest).newer = Some(index),
            None => self.lists[list].oldest = Some(index),
        }
    }

    fn unlink(&mut self, index: usize) {
        let entry = self.entry(index);
        let (newer, older, list) = (entry.newer, entry.older, entry.patience() as usize);
        match newer {
            Some(newer) => self.entry_mut(newer).older = older,
            None => self.lists[list].newest = older,
        }
        match older {
            Some(older) => self.entry_mut(older).newer = newer,
            None => self.lists[list].oldest = newer,
        }
    }

    fn entry(&self, index: usize) -> &Entry {
        self.entries[index].as_ref().expect("indices name entries")
    }

    fn entry_mut(&mut self, index: usize) -> &mut Entry {
        self.entries[index].as_mut().expect("indices name entries")
    }
}

/// Two for one that is added: so the silent ones never outnumber the others for long.
const EXPIRED_AT_ONCE: usize = 2;

/// Apart from all other ICMP between two addresses, and no protocol's number.
const ECHO: u16 = 256;

fn key(flow: Flow) -> Key {
    let (source, destination, protocol) = match flow.transport {
        Transport::Tcp {
            source,
            destination,
        } => (source, destination, packet::ip::TCP.into()),
        Transport::Udp {
            source,
            destination,
        } => (source, destination, packet::ip::UDP.into()),
        Transport::Echo(identifier) => (identifier, identifier, ECHO),
        Transport::Other(protocol) => (0, 0, protocol.into()),
    };
    let (a, b) = ((flow.source, source), (flow.destination, destination));
    Key {
        low: a.min(b),
        high: a.max(b),
        protocol,
    }
}

#[cfg(test)]
mod tests;
