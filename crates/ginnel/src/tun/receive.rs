//! From the network to the TUN, run to completion on one thread for each queue and family.
//!
//! ```text
//! UDP ──► runs ──who is it?──► opened in place ──may it?──► joined ──► TUN
//!              lock, unless known                   lock
//! ```

use std::{
    array,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use os::{
    clock::{Clock, Pace},
    tun::VNET_HEADER,
    udp::{self, Arrival, Socket},
};
use packet::{
    ecn::{self, Ecn, NotEct},
    gro::{Leaving, Train},
    ip, vnet,
};
use wireguard::{Discard, HEADER, KEEPALIVE, Opening, PeerId, transport_data};

use super::{
    tap::{Copies, Verdict},
    tunnel::{State, Tunnel, Watchdog},
    wire::Sockets,
};

/// The thread's state.
pub(crate) struct Receiver {
    tunnel: Arc<Tunnel>,
    queue: u8,
    v6: bool,
    clock: Clock,
    pace: Pace,
    opener: Opener,
}

/// Opens what arrived together.
struct Opener {
    tunnel: Arc<Tunnel>,
    /// Found without the device; it keeps no key, and a half that is retired opens nothing.
    latest: Option<(u32, PeerId, Weak<Opening>)>,
    /// Those that the datagrams name; emptied after each batch, so that no key outlives its peer.
    sessions: Vec<Session>,
    /// One for each datagram.
    entries: Vec<Entry>,
    copies: Copies,
}

struct Session {
    index: u32,
    found: Option<(PeerId, Arc<Opening>)>,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug)]
enum Entry {
    /// It was no transport data, and is done with.
    Handled,
    Discarded {
        discard: Discard,
        /// Of the packet that was in it; zero if it was not opened.
        length: usize,
    },
    /// Its tag and counter hold; the packet has `length` bytes, none in a keepalive.
    Opened {
        session: usize,
        newest: bool,
        /// Who sent the packet, or why it goes no further.
        source: Result<IpAddr, Discard>,
        length: usize,
    },
}

impl Entry {
    fn unopened(discard: Discard) -> Self {
        Self::Discarded { discard, length: 0 }
    }
}

impl Receiver {
    pub(crate) fn new(tunnel: &Arc<Tunnel>, queue: u8, v6: bool) -> Self {
        Self {
            queue,
            v6,
            clock: Clock::start_through_suspend(),
            pace: Pace::start(),
            opener: Opener {
                tunnel: Arc::clone(tunnel),
                latest: None,
                sessions: Vec::new(),
                entries: Vec::new(),
                copies: Copies::default(),
            },
            tunnel: Arc::clone(tunnel),
        }
    }

    /// Runs as long as the process.
    pub(crate) fn run(mut self) {
        let _watchdog = Watchdog(Arc::clone(&self.tunnel));
        let mut batch = udp::Batch::default();
        let mut busy = false;
        let mut sockets = self.tunnel.sockets();
        loop {
            match self.wait(&sockets, &mut batch, busy) {
                Ok(true) => {
                    busy = self.pace.is_busy();
                    self.handle(&mut batch);
                    match batch.take_truncated() {
                        0 => {}
                        count => self.tunnel.turn_away(Discard::Length, count),
                    }
                }
                Ok(false) => {
                    let known = Arc::downgrade(&sockets);
                    drop(sockets);
                    sockets = self.tunnel.wait_for_sockets(&known);
                }
                Err(error) => {
                    tracing::debug!("UDP: receive: {error}");
                    thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Waits for datagrams; false when the socket is retired or absent.
    fn wait(&self, sockets: &Sockets, batch: &mut udp::Batch, busy: bool) -> io::Result<bool> {
        match self.socket_of(sockets) {
            Some(socket) => {
                if busy {
                    socket.wait_batch(batch)?;
                } else {
                    socket.wait_run(batch)?;
                }
                Ok(!socket.is_retired())
            }
            None => Ok(false),
        }
    }

    fn socket_of<'s>(&self, sockets: &'s Sockets) -> Option<&'s Socket> {
        let pair = sockets.queue(self.queue)?;
        let socket = if self.v6 { &pair.v6 } else { &pair.v4 };
        socket.as_ref()
    }

    /// Handles long runs by themselves, so that what was opened is written while it is in cache.
    fn handle(&mut self, batch: &mut udp::Batch) {
        let mut arrivals = batch.arrivals();
        let mut all: [Option<Arrival<'_>>; Socket::RUNS_MAX] = array::from_fn(|_| arrivals.next());
        let mut rest = &mut all[..];
        while !rest.is_empty() {
            let mut datagrams = 0;
            let end = rest.iter().position(|arrival| {
                datagrams += arrival
                    .as_ref()
                    .map_or(0, |run| run.bytes.len() / run.segment);
                datagrams >= TOGETHER
            });
            let (now, later) = rest.split_at_mut(end.map_or(rest.len(), |end| end + 1));
            rest = later;
            if now.iter().any(Option::is_some) {
                self.opener.handle(self.clock.now(), now);
            }
        }
    }
}

impl Opener {
    fn handle(&mut self, now: Instant, arrivals: &mut [Option<Arrival<'_>>]) {
        let tunnel = Arc::clone(&self.tunnel);
        self.copies.fill(tunnel.taps_datagrams(), arrivals);
        if !self.recall_session(arrivals) {
            tunnel.with(|state, now| self.find_sessions(state, now, arrivals));
        }
        if self.sessions.is_empty() {
            return;
        }
        self.open(now, arrivals);
        let opened = |entry: &Entry| matches!(entry, Entry::Opened { .. });
        if self.entries.iter().any(opened) {
            tunnel.note_data();
        }
        tunnel.with(|state, now| self.note(state, now, arrivals));
        self.write(arrivals);
        self.sessions.clear();
        self.entries.clear();
    }

    /// Takes the session of the last batch if all datagrams are of it; otherwise changes nothing.
    fn recall_session(&mut self, arrivals: &[Option<Arrival<'_>>]) -> bool {
        let Some((index, peer, opening)) = &self.latest else {
            return false;
        };
        let mut all = arrivals.iter().flatten();
        let is_its = |arrival: &Arrival<'_>| {
            let mut datagrams = arrival.bytes.chunks(arrival.segment);
            let of = |datagram: &[u8]| transport_data(datagram).is_some_and(|(of, _)| of == *index);
            !arrival.bytes.is_empty() && datagrams.all(of)
        };
        let opening = if all.all(is_its) {
            opening.upgrade()
        } else {
            None
        };
        let Some(opening) = opening else { return false };
        self.sessions.push(Session {
            index: *index,
            found: Some((*peer, opening)),
        });
        true
    }

    /// Finds the session of each datagram, and gives to the device what is not transport data.
    fn find_sessions(
        &mut self,
        state: &mut State,
        now: Instant,
        arrivals: &mut [Option<Arrival<'_>>],
    ) {
        for arrival in arrivals.iter_mut().flatten() {
            let (source, local) = (arrival.source, arrival.local);
            if arrival.bytes.is_empty() {
                state.count(Discard::Length, 1);
            }
            for datagram in datagrams_mut(arrival) {
                match transport_data(datagram) {
                    Some((index, _)) => {
                        if self.session(index).is_none() {
                            let found = state.device.opening(index);
                            if let Some((peer, opening)) = &found {
                                self.latest = Some((index, *peer, Arc::downgrade(opening)));
                            }
                            self.sessions.push(Session { index, found });
                        }
                    }
                    None => state.handle_message(now, (source, local), datagram),
                }
            }
        }
    }

    fn session(&self, index: u32) -> Option<usize> {
        let is_it = |session: &Session| session.index == index;
        // Neighbours mostly are of one session.
        self.sessions.iter().rposition(is_it)
    }

    /// Opens each datagram; neighbours of one session take its replay window once.
    fn open(&mut self, now: Instant, arrivals: &mut [Option<Arrival<'_>>]) {
        let mut taken: Option<(usize, Result<wireguard::Opener<'_>, Discard>)> = None;
        for arrival in arrivals.iter_mut().flatten() {
            let ecn = arrival.ecn;
            for datagram in datagrams_mut(arrival) {
                let Some((index, counter)) = transport_data(datagram) else {
                    self.entries.push(Entry::Handled);
                    continue;
                };
                let is_it = |session: &Session| session.index == index;
                let known = taken.as_ref().map(|(session, _)| *session);
                let known = known.filter(|session| is_it(&self.sessions[*session]));
                let session = known.or_else(|| self.sessions.iter().rposition(is_it));
                let session = session.expect("found by `find_sessions`");
                if known.is_none() {
                    // The former is given back first.
                    taken = None;
                }
                let (_, opener) = taken.get_or_insert_with(|| {
                    let found = self.sessions[session].found.as_ref();
                    let opener = match found {
                        Some((_, opening)) => opening.begin(now),
                        None => Err(Discard::UnknownIndex),
                    };
                    (session, opener)
                });
                let entry = match opener {
                    Ok(opener) => open(opener, session, counter, ecn, datagram),
                    Err(discard) => Entry::unopened(*discard),
                };
                self.entries.push(entry);
            }
        }
    }

    /// Reports what was opened, and discards what its sender may not send.
    fn note(&mut self, state: &mut State, now: Instant, arrivals: &[Option<Arrival<'_>>]) {
        let mut entries = self.entries.iter_mut();
        for arrival in arrivals.iter().flatten() {
            let mut report = Report::new(arrival.source);
            let mut allowed = None;
            for (datagram, entry) in arrival.bytes.chunks(arrival.segment).zip(&mut entries) {
                let &mut Entry::Opened {
                    session,
                    newest,
                    source,
                    length,
                } = entry
                else {
                    continue;
                };
                let session = &self.sessions[session];
                let Some((peer, _)) = session.found else {
                    continue;
                };
                let data = datagram.len() > KEEPALIVE;
                report.add(state, now, session.index, datagram.len(), newest, data);
                match source {
                    _ if !data => {}
                    Err(discard) => *entry = Entry::Discarded { discard, length },
                    Ok(source) if allowed == Some((peer, source)) => {}
                    Ok(source) if state.device.allows(peer, source) => {
                        allowed = Some((peer, source));
                    }
                    Ok(_) => {
                        let discard = Discard::SourceNotAllowed;
                        *entry = Entry::Discarded { discard, length };
                    }
                }
            }
            if report.flush(state, now) {
                state.wire.sources.note(arrival.source, arrival.local, true);
            }
        }
        for entry in &self.entries {
            if let Entry::Discarded { discard, .. } = entry {
                state.count(*discard, 1);
            }
        }
        if let Some(capture) = &mut state.capture {
            self.copies.show(capture, now, self.verdicts(arrivals));
        }
    }

    /// Returns what became of each datagram, and of what is no data how long it is.
    fn verdicts<'a>(
        &'a self,
        arrivals: &'a [Option<Arrival<'_>>],
    ) -> impl Iterator<Item = Result<Verdict<'a>, usize>> {
        let datagrams = arrivals.iter().flatten().flat_map(|arrival| {
            let datagrams = arrival.bytes.chunks(arrival.segment);
            datagrams.map(|datagram| (arrival.source, datagram))
        });
        let entries = datagrams.zip(&self.entries);
        entries.map(|((source, datagram), entry)| {
            let (length, discard) = match entry {
                Entry::Handled => return Err(datagram.len()),
                Entry::Discarded { discard, length } => (*length, Some(*discard)),
                Entry::Opened { length, .. } => (*length, None),
            };
            let packet = datagram.get(HEADER..HEADER + length);
            Ok(Verdict {
                source,
                length: datagram.len(),
                packet: packet.filter(|packet| !packet.is_empty()),
                discard,
            })
        })
    }

    fn write(&self, arrivals: &[Option<Arrival<'_>>]) {
        let datagrams = arrivals
            .iter()
            .flatten()
            .flat_map(|arrival| arrival.bytes.chunks(arrival.segment));
        let packets = datagrams
            .zip(&self.entries)
            .filter_map(|(datagram, entry)| match entry {
                Entry::Opened { length, .. } if *length > 0 => {
                    datagram.get(HEADER..HEADER + length)
                }
                Entry::Opened { .. } | Entry::Handled | Entry::Discarded { .. } => None,
            });
        let tunnel = &*self.tunnel;
        // A lone packet has none to be joined to.
        if !tunnel.joins() || self.entries.len() == 1 {
            packets.for_each(|packet| write_single(tunnel, packet));
            return;
        }
        let mut train = Train::new(tunnel.tun().offload().udp);
        for packet in packets {
            train.push(packet, |leaving| write_leaving(tunnel, &leaving));
        }
        train.finish(|leaving| write_leaving(tunnel, &leaving));
    }
}

/// What the device must know about neighbours of one session.
struct Report {
    source: SocketAddr,
    index: Option<u32>,
    datagrams: usize,
    bytes: usize,
    newest: bool,
    data: bool,
    any: bool,
}

impl Report {
    fn new(source: SocketAddr) -> Self {
        Self {
            source,
            index: None,
            datagrams: 0,
            bytes: 0,
            newest: false,
            data: false,
            any: false,
        }
    }

    fn add(
        &mut self,
        state: &mut State,
        now: Instant,
        index: u32,
        bytes: usize,
        newest: bool,
        data: bool,
    ) {
        if self.index != Some(index) {
            self.flush(state, now);
            self.index = Some(index);
        }
        self.datagrams += 1;
        self.bytes += bytes;
        self.newest |= newest;
        self.data |= data;
    }

    /// Tells the device; true when there ever was something to tell.
    fn flush(&mut self, state: &mut State, now: Instant) -> bool {
        if let Some(index) = self.index.take() {
            let (datagrams, bytes) = (self.datagrams, self.bytes);
            let (newest, data) = (self.newest, self.data);
            let device = &mut state.device;
            device.note_opened(now, self.source, index, datagrams, bytes, newest, data);
            (self.datagrams, self.bytes) = (0, 0);
            (self.newest, self.data) = (false, false);
            self.any = true;
        }
        self.any
    }
}

/// Opens a datagram, of which `transport_data` has told the counter.
fn open(
    opener: &mut wireguard::Opener<'_>,
    session: usize,
    counter: u64,
    ecn: Ecn,
    datagram: &mut [u8],
) -> Entry {
    let opened = match opener.open(counter, &mut datagram[HEADER..]) {
        Ok(opened) => opened,
        Err(discard) => return Entry::unopened(discard),
    };
    let addresses = match ecn::decapsulate(ecn, opened.text) {
        Ok(()) => ip::addresses(opened.text).map_err(|_| Discard::NotIp),
        Err(NotEct) => Err(Discard::NotEct),
    };
    Entry::Opened {
        session,
        newest: opened.newest,
        source: addresses.map(|addresses| addresses.source),
        length: addresses.map_or(0, |addresses| addresses.length),
    }
}

fn write_leaving(tunnel: &Tunnel, leaving: &Leaving<'_, '_>) {
    match leaving {
        Leaving::Single(packet) => write_single(tunnel, packet),
        Leaving::Super {
            offload,
            head,
            packets,
        } => {
            // The head alone is cut off, and says nothing about its flow.
            let tun = tunnel.lane_of(packets[0]);
            let header = vnet::emit(offload, head[0] >> 4 == 6);
            let mut pieces = [IoSlice::new(&[]); Train::PACKETS_MAX + 2];
            pieces[0] = IoSlice::new(&header);
            pieces[1] = IoSlice::new(head);
            for (piece, packet) in pieces[2..].iter_mut().zip(*packets) {
                *piece = IoSlice::new(&packet[head.len()..]);
            }
            if let Err(error) = tun.write_vectored(&pieces[..2 + packets.len()]) {
                if error.kind() == io::ErrorKind::InvalidInput {
                    tunnel.note_super_refused(&error);
                    packets
                        .iter()
                        .for_each(|packet| write_single(tunnel, packet));
                } else {
                    tunnel.note_tun_error(&error);
                }
            }
        }
    }
}

fn write_single(tunnel: &Tunnel, packet: &[u8]) {
    let tun = tunnel.lane_of(packet);
    let written = if tun.offload().vnet_header {
        let header = [0; VNET_HEADER];
        let pieces = [IoSlice::new(&header), IoSlice::new(packet)];
        tun.write_vectored(&pieces)
    } else {
        tun.write(packet)
    };
    if let Err(error) = written {
        tunnel.note_tun_error(&error);
    }
}

fn datagrams_mut<'d>(arrival: &'d mut Arrival<'_>) -> impl Iterator<Item = &'d mut [u8]> {
    arrival.bytes.chunks_mut(arrival.segment)
}

/// Datagrams that are opened before any is written: what one full run has.
const TOGETHER: usize = 32;
/// After an error of the socket that may last.
const PAUSE: Duration = Duration::from_millis(10);
