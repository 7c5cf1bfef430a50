//! Fragments become packets again, within bounds (RFC 791, 3.2; RFC 8200, 4.5).

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use packet::ip::{Fragment, Header};

use crate::Discard;

/// How long fragments wait for the rest (RFC 8200, 4.5; within the bounds of RFC 1122, 3.3.2).
const TIMEOUT: Duration = Duration::from_secs(60);
/// The largest payload that fragments can make.
const PAYLOAD_MAX: usize = 65_535;
/// Fragments of one packet; a packet in more pieces is discarded.
const FRAGMENTS_MAX: usize = 64;

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    next_header: u8,
    identification: u32,
}

#[derive(Debug)]
struct Partial {
    began: Instant,
    /// By offset; disjoint.
    pieces: BTreeMap<usize, Vec<u8>>,
    octets: usize,
    /// Fragments overlapped: nothing more of this packet is taken (RFC 5722, 4).
    refused: bool,
    /// Known once the last fragment has come.
    length: Option<usize>,
}

/// Packets of which some fragments are missing.
#[derive(Debug)]
pub(super) struct Reassembly {
    partials: BTreeMap<Key, Partial>,
    /// Oldest first; keys that are complete by now are skipped.
    order: VecDeque<(Instant, Key)>,
    packets_max: usize,
}

impl Reassembly {
    pub(super) fn new(packets_max: usize) -> Self {
        Self {
            partials: BTreeMap::new(),
            order: VecDeque::new(),
            packets_max,
        }
    }

    /// Takes a fragment and returns the payload of the whole packet once nothing is missing.
    ///
    /// A fragment that overlaps another discards its whole packet, also what of it has not come
    /// yet (RFC 5722, 4). An exact duplicate only goes itself (RFC 8200, 4.5).
    pub(super) fn insert(
        &mut self,
        now: Instant,
        header: &Header,
        fragment: Fragment,
        payload: &[u8],
    ) -> Result<Option<Vec<u8>>, Discard> {
        let key = Key {
            source: header.source,
            destination: header.destination,
            next_header: header.next_header,
            identification: fragment.identification,
        };
        let start = usize::from(fragment.offset);
        let end = start + payload.len();
        let ragged = fragment.more && !payload.len().is_multiple_of(8);
        if payload.is_empty() || ragged || end > PAYLOAD_MAX {
            return Err(self.refuse(key));
        }
        self.make_room(now, key);
        let partial = self.partials.entry(key).or_insert_with(|| Partial {
            began: now,
            pieces: BTreeMap::new(),
            octets: 0,
            refused: false,
            length: None,
        });
        let known = partial.pieces.get(&start);
        if partial.refused || known.is_some_and(|known| known == payload) {
            return Err(Discard::Fragment);
        }
        let before = partial.pieces.range(..end).next_back();
        let overlaps = before.is_some_and(|(&at, piece)| at + piece.len() > start);
        let past_end = partial
            .length
            .is_some_and(|length| end > length || !fragment.more);
        let highest = partial.pieces.last_key_value();
        let highest = highest.map_or(0, |(&at, piece)| at + piece.len());
        let before_end = !fragment.more && highest > end;
        let many = partial.pieces.len() >= FRAGMENTS_MAX;
        if overlaps || past_end || before_end || many {
            return Err(self.refuse(key));
        }
        if !fragment.more {
            partial.length = Some(end);
        }
        partial.octets += payload.len();
        partial.pieces.insert(start, payload.to_vec());
        if partial.length != Some(partial.octets) {
            return Ok(None);
        }
        let partial = self.partials.remove(&key).expect("it was just filled");
        Ok(Some(partial.pieces.into_values().flatten().collect()))
    }

    /// Takes nothing more of a packet, for as long as its fragments would have waited.
    fn refuse(&mut self, key: Key) -> Discard {
        if let Some(partial) = self.partials.get_mut(&key) {
            partial.pieces = BTreeMap::new();
            partial.refused = true;
        }
        Discard::Fragment
    }

    fn make_room(&mut self, now: Instant, key: Key) {
        if self.partials.contains_key(&key) {
            return;
        }
        while self.partials.len() >= self.packets_max || self.order.len() >= 2 * self.packets_max {
            let Some((began, oldest)) = self.order.pop_front() else {
                break;
            };
            if self
                .partials
                .get(&oldest)
                .is_some_and(|partial| partial.began == began)
            {
                self.partials.remove(&oldest);
            }
        }
        self.order.push_back((now, key));
    }

    /// Discards what has waited too long.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(began, key)) = self.order.front() {
            let partial = self.partials.get(&key);
            if partial.is_some_and(|partial| partial.began == began) {
                if began + TIMEOUT > now {
                    break;
                }
                self.partials.remove(&key);
            }
            self.order.pop_front();
        }
    }

    /// Returns when the oldest fragments have waited too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.partials.is_empty() {
            return None;
        }
        self.order.front().map(|&(began, _)| began + TIMEOUT)
    }
}
