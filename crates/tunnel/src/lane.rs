//! Data from the network: opened before the node is locked, and sealed for the next peer after.
//!
//! ```text
//! UDP ──► runs ──whose?──► opened in place ──which way?──► sealed in place ──► UDP
//!           lock, unless known               lock  └► stack, TUN
//! ```
//! There is a lane for each core of a gateway; what comes by one session has one lane, so it stays
//! in order. While a capture runs, the node does all by itself.

use std::{
    array,
    collections::HashMap,
    io::IoSlice,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use node::{On, Way};
use os::{
    clock::Clock,
    udp::{Arrival, Batch, Datagram, Envelope, Parcel, SendError, Socket},
};
use packet::ecn::Ecn;
use tokio::{task, time};
use wireguard::{
    Discard, HEADER, KEEPALIVE, OVERHEAD, Opener, Opening, PeerId, Sealing, padded, transport_data,
};

use super::{Shared, Turn};

/// What one task has.
pub(super) struct Lane {
    shared: Arc<Shared>,
    queue: usize,
    /// Datagrams that are opened before any goes on.
    together: usize,
    /// Found without the node; it keeps no key, and a half that is retired opens nothing. At most
    /// [`KNOWN_MAX`].
    known: HashMap<u32, (PeerId, Weak<Opening>)>,
    /// Those that the datagrams at hand name; emptied before these are sent, so that no key
    /// outlives its peer for long.
    sessions: Vec<Session>,
    /// One for each datagram.
    entries: Vec<Entry>,
    groups: Vec<Group>,
}

struct Session {
    index: u32,
    found: Option<(PeerId, Arc<Opening>)>,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug)]
enum Entry {
    /// It goes no further.
    Ended,
    /// It could not be opened.
    Refused { session: usize, discard: Discard },
    /// Its tag and counter hold.
    Opened { session: usize, newest: bool },
    /// It waits to be sealed for the peer of a group.
    Waiting { group: usize, on: On },
    /// It has so many bytes now.
    Sealed { group: usize, length: usize },
}

/// Packets that go to one peer, one behind the other.
struct Group {
    to: PeerId,
    ecn: Ecn,
    endpoint: SocketAddr,
    /// There until all is sealed.
    sealing: Option<Arc<Sealing>>,
    /// No packet is padded beyond.
    mtu: usize,
    /// Our address that they leave from; otherwise routing chooses.
    from: Option<IpAddr>,
    datagrams: u64,
    /// Of all, when they are sealed.
    bytes: usize,
}

impl Lane {
    /// A lane of a node that `forwards` does so run by run.
    pub(super) fn new(shared: &Arc<Shared>, queue: usize, forwards: bool) -> Self {
        Self {
            shared: Arc::clone(shared),
            queue,
            together: if forwards { RUN } else { usize::MAX },
            known: HashMap::new(),
            sessions: Vec::new(),
            entries: Vec::new(),
            groups: Vec::new(),
        }
    }

    /// Takes what comes until its task is aborted.
    pub(super) async fn run(mut self) {
        let mut batch = Batch::default();
        let shared = Arc::clone(&self.shared);
        loop {
            shared.sockets.readable(self.queue).await;
            if !self.read(&mut batch).await {
                // A socket that only fails must not spin.
                time::sleep(PAUSE).await;
            }
            task::yield_now().await;
        }
    }

    /// Takes what has come, within a bound; false when a socket failed.
    async fn read(&mut self, batch: &mut Batch) -> bool {
        let shared = Arc::clone(&self.shared);
        for _ in 0..BATCHES_MAX {
            let mut any = false;
            for socket in shared.sockets.arriving(self.queue) {
                match socket.receive(batch) {
                    Ok(false) => {}
                    Ok(true) => {
                        any = true;
                        self.handle(batch).await;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "receive");
                        return false;
                    }
                }
            }
            if !any {
                return true;
            }
        }
        true
    }

    /// Takes long runs that are forwarded by themselves, so that what was opened is sealed while it
    /// is in cache. What is for the node itself comes to it all at once: it answers each time.
    async fn handle(&mut self, batch: &mut Batch) {
        match batch.take_truncated() {
            0 => {}
            count => self.shared.turn().node.turn_away(Discard::Length, count),
        }
        let mut arrivals = batch.arrivals();
        let mut all: [Option<Arrival<'_>>; Socket::RUNS_MAX] = array::from_fn(|_| arrivals.next());
        let mut rest = &mut all[..];
        while !rest.is_empty() {
            let mut datagrams = 0;
            let end = rest.iter().position(|arrival| {
                let count = |run: &Arrival<'_>| run.bytes.len() / run.segment;
                datagrams += arrival.as_ref().map_or(0, count);
                datagrams >= self.together
            });
            let (now, later) = rest.split_at_mut(end.map_or(rest.len(), |end| end + 1));
            rest = later;
            if now.iter().any(Option::is_some) {
                self.take(now).await;
            }
        }
    }

    async fn take(&mut self, arrivals: &mut [Option<Arrival<'_>>]) {
        if self.shared.is_captured.load(Ordering::Relaxed) {
            self.hand_over(arrivals);
            return;
        }
        self.find_sessions(arrivals);
        self.open(arrivals);
        self.decide(arrivals);
        self.seal(arrivals);
        self.sessions.clear();
        self.send(arrivals).await;
        self.entries.clear();
        self.groups.clear();
    }

    /// Lets the node open and seal.
    fn hand_over(&self, arrivals: &mut [Option<Arrival<'_>>]) {
        let shared = &self.shared;
        let mut turn = shared.turn();
        let now = turn.now;
        let mut taken = false;
        for arrival in arrivals.iter_mut().flatten() {
            let (source, local, ecn) = (arrival.source, arrival.local, arrival.ecn);
            let empty = arrival.bytes.is_empty().then_some(&mut [][..]);
            for bytes in empty.into_iter().chain(datagrams_mut(arrival)) {
                taken |= turn.take_datagram(Datagram {
                    source,
                    local,
                    ecn,
                    bytes,
                });
            }
        }
        if taken {
            shared.note_data();
        }
        turn.catch_up(now);
    }

    /// Finds the session of each datagram, and gives to the node what is not transport data.
    fn find_sessions(&mut self, arrivals: &mut [Option<Arrival<'_>>]) {
        let mut all_known = true;
        for arrival in arrivals.iter().flatten() {
            all_known &= !arrival.bytes.is_empty();
            for datagram in datagrams(arrival) {
                let Some((index, _)) = transport_data(datagram) else {
                    all_known = false;
                    continue;
                };
                if self.session(index).is_some() {
                    continue;
                }
                let known = self.known.get(&index);
                let found = known.and_then(|(peer, opening)| Some((*peer, opening.upgrade()?)));
                match found {
                    Some(_) => self.sessions.push(Session { index, found }),
                    None => all_known = false,
                }
            }
        }
        if all_known {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let mut turn = shared.turn();
        for arrival in arrivals.iter_mut().flatten() {
            let (source, local, ecn) = (arrival.source, arrival.local, arrival.ecn);
            if arrival.bytes.is_empty() {
                turn.node.turn_away(Discard::Length, 1);
            }
            for bytes in datagrams_mut(arrival) {
                match transport_data(bytes) {
                    Some((index, _)) if self.session(index).is_some() => {}
                    Some((index, _)) => {
                        let found = turn.node.opening(index);
                        self.remember(index, found.as_ref());
                        self.sessions.push(Session { index, found });
                    }
                    None => {
                        turn.take_datagram(Datagram {
                            source,
                            local,
                            ecn,
                            bytes,
                        });
                    }
                }
            }
        }
    }

    fn remember(&mut self, index: u32, found: Option<&(PeerId, Arc<Opening>)>) {
        match found {
            Some((peer, opening)) => {
                if self.known.len() >= KNOWN_MAX {
                    self.known.clear();
                }
                self.known.insert(index, (*peer, Arc::downgrade(opening)));
            }
            None => drop(self.known.remove(&index)),
        }
    }

    fn session(&self, index: u32) -> Option<usize> {
        let is_it = |session: &Session| session.index == index;
        // Neighbours mostly are of one session.
        self.sessions.iter().rposition(is_it)
    }

    /// Opens each datagram; neighbours of one session take its replay window once.
    fn open(&mut self, arrivals: &mut [Option<Arrival<'_>>]) {
        let now = Clock::start().now();
        let mut taken: Option<(usize, Result<Opener<'_>, Discard>)> = None;
        for datagram in arrivals.iter_mut().flatten().flat_map(datagrams_mut) {
            let Some((index, counter)) = transport_data(datagram) else {
                self.entries.push(Entry::Ended);
                continue;
            };
            let is_it = |session: &Session| session.index == index;
            let latest = taken.as_ref().map(|(session, _)| *session);
            let latest = latest.filter(|session| is_it(&self.sessions[*session]));
            let session = latest.or_else(|| self.sessions.iter().rposition(is_it));
            let session = session.expect("found by `find_sessions`");
            if latest.is_none() {
                // The window of the former is given back first.
                taken = None;
            }
            let (_, opener) = taken.get_or_insert_with(|| {
                let opener = match &self.sessions[session].found {
                    Some((_, opening)) => opening.begin(now),
                    None => Err(Discard::UnknownIndex),
                };
                (session, opener)
            });
            let opened = match opener {
                Ok(opener) => opener.open(counter, &mut datagram[HEADER..]),
                Err(discard) => Err(*discard),
            };
            self.entries.push(match opened {
                Ok(opened) => Entry::Opened {
                    session,
                    newest: opened.newest,
                },
                Err(discard) => Entry::Refused { session, discard },
            });
        }
    }

    /// Reports what was opened, and learns from the node where each packet goes.
    fn decide(&mut self, arrivals: &mut [Option<Arrival<'_>>]) {
        let is_opened = |entry: &Entry| matches!(entry, Entry::Opened { .. });
        if self.entries.iter().any(is_opened) {
            self.shared.note_data();
        }
        let shared = Arc::clone(&self.shared);
        let mut turn = shared.turn();
        let now = turn.now;
        self.report(&mut turn, arrivals);
        let mut place = 0;
        for arrival in arrivals.iter_mut().flatten() {
            let ecn = arrival.ecn;
            for datagram in datagrams_mut(arrival) {
                let entry = self.entries[place];
                place += 1;
                let Entry::Opened { session, .. } = entry else {
                    continue;
                };
                let index = self.sessions[session].index;
                let Some((peer, _)) = self.sessions[session].found else {
                    continue;
                };
                self.entries[place - 1] = Entry::Ended;
                if datagram.len() <= KEEPALIVE {
                    continue;
                }
                match turn.node.handle_opened(now, (index, peer), ecn, datagram) {
                    Way::Ended => {}
                    Way::Interface(length) => {
                        let interface = shared.attachment.interface();
                        turn.take_packet(&datagram[HEADER..HEADER + length], interface);
                    }
                    Way::On(on) => match self.group(&turn, on) {
                        Some(group) => {
                            self.groups[group].add(on.length, datagram.len());
                            self.entries[place - 1] = Entry::Waiting { group, on };
                        }
                        None => turn.pass_on(now, on, datagram, &shared.sockets),
                    },
                }
            }
        }
        for group in &self.groups {
            let count = usize::try_from(group.datagrams).unwrap_or(usize::MAX);
            turn.node.note_sealed(now, group.to, count, group.bytes);
        }
        turn.catch_up(now);
    }

    /// Reports who was heard, before it is decided where to send.
    fn report(&self, turn: &mut Turn<'_>, arrivals: &[Option<Arrival<'_>>]) {
        let now = turn.now;
        let mut entries = self.entries.iter();
        for arrival in arrivals.iter().flatten() {
            let mut heard: Option<Heard> = None;
            let mut any = false;
            for (datagram, entry) in datagrams(arrival).zip(&mut entries) {
                let (session, newest) = match *entry {
                    Entry::Opened { session, newest } => (session, newest),
                    Entry::Refused { session, discard } => {
                        turn.node
                            .note_refused(self.sessions[session].index, discard);
                        continue;
                    }
                    Entry::Ended | Entry::Waiting { .. } | Entry::Sealed { .. } => continue,
                };
                any = true;
                let index = self.sessions[session].index;
                if let Some(former) = heard.take_if(|heard| heard.index != index) {
                    former.tell(turn, now, arrival);
                }
                let heard = heard.get_or_insert_with(|| Heard::by(index));
                heard.datagrams += 1;
                heard.bytes += datagram.len();
                heard.newest |= newest;
                heard.data |= datagram.len() > KEEPALIVE;
            }
            if let Some(heard) = heard {
                heard.tell(turn, now, arrival);
            }
            if any {
                turn.note_source(arrival.source, arrival.local);
            }
        }
    }

    /// Returns the group that a packet joins; `None` when the node must see to it.
    fn group(&mut self, turn: &Turn<'_>, on: On) -> Option<usize> {
        let latest = self.groups.iter().rposition(|group| group.to == on.to);
        if let Some(latest) = latest.filter(|latest| self.groups[*latest].ecn == on.ecn) {
            return Some(latest);
        }
        let path = turn.node.path_to(turn.now, on.to)?;
        self.groups.push(Group {
            to: on.to,
            ecn: on.ecn,
            endpoint: path.endpoint,
            sealing: Some(path.sealing),
            mtu: path.mtu,
            from: turn.source(path.endpoint),
            datagrams: 0,
            bytes: 0,
        });
        Some(self.groups.len() - 1)
    }

    /// Seals what is on its way to peers, each packet where it lies.
    fn seal(&mut self, arrivals: &mut [Option<Arrival<'_>>]) {
        let now = Clock::start().now();
        for (place, group) in self.groups.iter_mut().enumerate() {
            let mtu = group.mtu;
            let sealing = group.sealing.take();
            let mut nonces = sealing
                .as_ref()
                .and_then(|sealing| sealing.reserve(now, group.datagrams));
            let datagrams = arrivals.iter_mut().flatten().flat_map(datagrams_mut);
            for (datagram, entry) in datagrams.zip(&mut self.entries) {
                let Entry::Waiting { group, on } = *entry else {
                    continue;
                };
                if group != place {
                    continue;
                }
                let mtu = mtu.min(datagram.len() - OVERHEAD);
                let sealed = nonces.as_mut();
                *entry = match sealed.and_then(|nonces| nonces.seal(datagram, on.length, mtu)) {
                    Some(length) => Entry::Sealed { group, length },
                    None => {
                        // The peer was removed or its session ended in between; what it was noted
                        // to be sent may be counted again.
                        let mut turn = self.shared.turn();
                        let now = turn.now;
                        turn.pass_on(now, on, datagram, &self.shared.sockets);
                        Entry::Ended
                    }
                };
            }
        }
    }

    /// Sends what was sealed; a full queue is waited for, while the kernel drops what comes.
    async fn send(&self, arrivals: &[Option<Arrival<'_>>]) {
        if self.groups.is_empty() {
            return;
        }
        let mut slices = Vec::with_capacity(self.entries.len());
        let mut cuts: Vec<(usize, Range<usize>)> = Vec::with_capacity(self.groups.len());
        for place in 0..self.groups.len() {
            let mut cut = Cut::default();
            let datagrams = arrivals.iter().flatten().flat_map(datagrams);
            for (datagram, entry) in datagrams.zip(&self.entries) {
                let Entry::Sealed { group, length } = *entry else {
                    continue;
                };
                if group != place {
                    continue;
                }
                if !cut.takes(length) {
                    cut = Cut::default();
                }
                if cut.count == 0 {
                    cuts.push((place, slices.len()..slices.len()));
                }
                cut.add(length);
                slices.push(IoSlice::new(&datagram[..length]));
                if let Some((_, range)) = cuts.last_mut() {
                    range.end = slices.len();
                }
            }
        }
        let parcels = cuts.into_iter().map(|(place, range)| {
            let group = &self.groups[place];
            Parcel {
                envelope: Envelope {
                    to: group.endpoint,
                    from: group.from,
                    ecn: group.ecn,
                },
                datagrams: &slices[range],
            }
        });
        let mut parcels: Vec<_> = parcels.collect();
        let mut sent = 0;
        while let Some(first) = parcels.get_mut(sent) {
            let Envelope { to, from, .. } = first.envelope;
            match self.shared.sockets.send(&parcels[sent..]) {
                Ok(count) => sent += count,
                Err(SendError::WouldBlock) => {
                    self.shared.sockets.writable(Some(to)).await;
                }
                Err(SendError::SourceGone) if from.is_some() => {
                    self.shared.turn().forget_source(to);
                    parcels[sent].envelope.from = None;
                }
                Err(error) => {
                    let lost = parcels[sent].datagrams.len();
                    self.shared.turn().note_lost(error, to, lost);
                    sent += 1;
                }
            }
        }
    }
}

/// What the node must know about neighbours of one session.
struct Heard {
    index: u32,
    datagrams: usize,
    bytes: usize,
    newest: bool,
    data: bool,
}

impl Heard {
    fn by(index: u32) -> Self {
        Self {
            index,
            datagrams: 0,
            bytes: 0,
            newest: false,
            data: false,
        }
    }

    fn tell(&self, turn: &mut Turn<'_>, now: Instant, arrival: &Arrival<'_>) {
        turn.node.note_opened(
            now,
            arrival.source,
            self.index,
            self.datagrams,
            self.bytes,
            self.newest,
            self.data,
        );
    }
}

impl Group {
    /// Counts a packet of `length` bytes that came in a datagram of `room` bytes.
    fn add(&mut self, length: usize, room: usize) {
        self.datagrams += 1;
        // No further than it came, where it is sealed.
        let padded = padded(length).min(self.mtu.min(room - OVERHEAD).max(length));
        self.bytes += padded + OVERHEAD;
    }
}

/// Datagrams that leave together: all have one length, and the last may be shorter.
#[derive(Default)]
struct Cut {
    count: usize,
    bytes: usize,
    segment: usize,
    ended: bool,
}

impl Cut {
    fn takes(&self, length: usize) -> bool {
        self.count == 0
            || !self.ended
                && length <= self.segment
                && self.count < Socket::PARCEL_MAX
                && self.bytes + length <= Socket::PARCEL_BYTES_MAX
    }

    fn add(&mut self, length: usize) {
        if self.count == 0 {
            self.segment = length;
        }
        self.ended = length < self.segment;
        self.count += 1;
        self.bytes += length;
    }
}

fn datagrams<'a>(arrival: &'a Arrival<'_>) -> impl Iterator<Item = &'a [u8]> {
    arrival.bytes.chunks(arrival.segment)
}

fn datagrams_mut<'a>(arrival: &'a mut Arrival<'_>) -> impl Iterator<Item = &'a mut [u8]> {
    arrival.bytes.chunks_mut(arrival.segment)
}

/// Batches that are read in one go before other tasks get their turn.
const BATCHES_MAX: usize = 16;
/// Datagrams in one full run.
const RUN: usize = 32;
/// Sessions that are found without the node.
const KNOWN_MAX: usize = 4_096;
/// After an error of the socket that may last.
const PAUSE: Duration = Duration::from_millis(20);
