//! Datagrams that arrived together: whose they are, and what the device hears of them.
//!
//! Threads that open by themselves take neighbours of one session in one go: its replay window
//! once, and one report.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Instant,
};

use super::{Discard, HEADER, KEEPALIVE, Opened, Opener, Opening, PeerId, transport_data};

/// The sessions of what arrived together. Between two arrivals it keeps no key: a half that is
/// retired goes, and is asked for again.
#[derive(Default)]
pub struct Sessions {
    /// At most [`KNOWN_MAX`].
    known: HashMap<u32, (PeerId, Weak<Opening>)>,
    at_hand: Vec<Session>,
}

struct Session {
    index: u32,
    found: Option<(PeerId, Arc<Opening>)>,
}

/// Opens datagrams of several sessions one after the other.
pub struct Openers<'s> {
    sessions: &'s Sessions,
    now: Instant,
    /// That of the latest datagram, with its place.
    taken: Option<(usize, Result<Opener<'s>, Discard>)>,
}

/// Datagrams of one session that came one behind the other from one source, for
/// [`Device::note_opened`](super::Device::note_opened).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Heard {
    /// The receiver index that they have.
    pub index: u32,
    /// How many.
    pub datagrams: usize,
    /// Their bytes, with all headers of WireGuard.
    pub bytes: usize,
    /// One of them was the newest of its session, see [`Opened::newest`].
    pub newest: bool,
    /// Not all were keepalives.
    pub data: bool,
}

impl Sessions {
    /// Takes the session of `index` to hand if that is possible without the device.
    pub fn recall(&mut self, index: u32) -> bool {
        if self.place(index).is_some() {
            return true;
        }
        let known = self.known.get(&index);
        let found = known.and_then(|(peer, opening)| Some((*peer, opening.upgrade()?)));
        let is_known = found.is_some();
        if is_known {
            self.at_hand.push(Session { index, found });
        }
        is_known
    }

    /// Takes to hand what [`Device::opening`](super::Device::opening) says about `index`.
    pub fn learn(&mut self, index: u32, found: Option<(PeerId, Arc<Opening>)>) {
        match &found {
            Some((peer, opening)) => {
                if self.known.len() >= KNOWN_MAX {
                    self.known.clear();
                }
                self.known.insert(index, (*peer, Arc::downgrade(opening)));
            }
            None => drop(self.known.remove(&index)),
        }
        self.at_hand.push(Session { index, found });
    }

    /// Returns the index and the peer of the session at `place`; `None` if it is nobody's.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<(u32, PeerId)> {
        let session = self.at_hand.get(place)?;
        let (peer, _) = session.found.as_ref()?;
        Some((session.index, *peer))
    }

    /// Returns the index of the session at `place`; zero if there is none.
    #[must_use]
    pub fn index(&self, place: usize) -> u32 {
        self.at_hand.get(place).map_or(0, |session| session.index)
    }

    /// Begins to open datagrams of the sessions at hand.
    #[must_use]
    pub fn openers(&self, now: Instant) -> Openers<'_> {
        Openers {
            sessions: self,
            now,
            taken: None,
        }
    }

    /// Lets go of the sessions at hand; do so before waiting, so that no key outlives its peer.
    pub fn clear(&mut self) {
        self.at_hand.clear();
    }

    fn place(&self, index: u32) -> Option<usize> {
        // Neighbours mostly are of one session.
        self.at_hand.iter().rposition(|one| one.index == index)
    }
}

impl Openers<'_> {
    /// Opens a datagram in place; returns the place of its session, and what came of it. `None`
    /// when it is no transport data, or its session is not at hand.
    pub fn open<'d>(
        &mut self,
        datagram: &'d mut [u8],
    ) -> Option<(usize, Result<Opened<'d>, Discard>)> {
        let (index, counter) = transport_data(datagram)?;
        let latest = self.taken.as_ref().map(|(place, _)| *place);
        let latest = latest.filter(|place| self.sessions.index(*place) == index);
        let place = latest.or_else(|| self.sessions.place(index))?;
        if latest.is_none() {
            // The window of the former is given back first.
            self.taken = None;
        }
        let (_, opener) = self.taken.get_or_insert_with(|| {
            let found = self.sessions.at_hand[place].found.as_ref();
            let opener = match found {
                Some((_, opening)) => opening.begin(self.now),
                None => Err(Discard::UnknownIndex),
            };
            (place, opener)
        });
        let opened = match opener {
            Ok(opener) => opener.open(counter, &mut datagram[HEADER..]),
            Err(discard) => Err(*discard),
        };
        Some((place, opened))
    }
}

impl Heard {
    /// Describes one datagram of `length` bytes.
    #[must_use]
    pub fn one(index: u32, length: usize, newest: bool) -> Self {
        Self {
            index,
            datagrams: 1,
            bytes: length,
            newest,
            data: length > KEEPALIVE,
        }
    }

    /// Takes the next one; returns the former ones when it is of another session.
    #[must_use]
    pub fn join(&mut self, next: Self) -> Option<Self> {
        if next.index != self.index {
            return Some(std::mem::replace(self, next));
        }
        self.datagrams += next.datagrams;
        self.bytes += next.bytes;
        self.newest |= next.newest;
        self.data |= next.data;
        None
    }
}

/// Sessions that are found without the device.
const KNOWN_MAX: usize = 4_096;
