//! From the network to the TUN, run to completion on one thread for each queue and family.
//!
//! ```text
//! UDP ──► runs ──who is it?──► opened in place ──may it?──► joined ──► TUN
//!              lock, unless known                   lock
//! ```

use std::{
    io,
    net::IpAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use os::{
    clock::{Clock, Pace},
    udp::{self, Arrival, Socket},
};
use packet::{
    ecn::{self, Ecn, NotEct},
    ip,
};
use wireguard::{Discard, HEADER, Heard, KEEPALIVE, Sessions, scrub_stack, transport_data};

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
    sessions: Sessions,
    /// One for each datagram.
    entries: Vec<Entry>,
    copies: Copies,
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

impl Receiver {
    pub(crate) fn new(tunnel: &Arc<Tunnel>, queue: u8, v6: bool) -> Self {
        Self {
            queue,
            v6,
            clock: Clock::start_through_suspend(),
            pace: Pace::start(),
            opener: Opener {
                tunnel: Arc::clone(tunnel),
                sessions: Sessions::default(),
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
        let mut portions = batch.portions();
        while let Some(arrivals) = portions.next(TOGETHER) {
            self.opener.handle(self.clock.now(), arrivals);
        }
    }
}

impl Opener {
    fn handle(&mut self, now: Instant, arrivals: &mut [Option<Arrival<'_>>]) {
        let tunnel = Arc::clone(&self.tunnel);
        self.copies.fill(tunnel.taps_datagrams(), arrivals);
        if !self.recall_sessions(arrivals) {
            tunnel.with(|state, now| self.find_sessions(state, now, arrivals));
        }
        self.open(now, arrivals);
        let opened = |entry: &Entry| matches!(entry, Entry::Opened { .. });
        if self.entries.iter().any(opened) {
            tunnel.note_data();
        }
        let handled = |entry: &Entry| matches!(entry, Entry::Handled);
        if !self.entries.iter().all(handled) {
            tunnel.with(|state, now| self.note(state, now, arrivals));
            self.write(arrivals);
        }
        self.sessions.clear();
        self.entries.clear();
    }

    /// Finds the session of each datagram without the device; false when it must be asked.
    fn recall_sessions(&mut self, arrivals: &[Option<Arrival<'_>>]) -> bool {
        arrivals.iter().flatten().all(|arrival| {
            let mut datagrams = arrival.datagrams();
            !arrival.bytes.is_empty()
                && datagrams.all(|datagram| {
                    transport_data(datagram).is_some_and(|(index, _)| self.sessions.recall(index))
                })
        })
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
            for datagram in arrival.datagrams_mut() {
                match transport_data(datagram) {
                    Some((index, _)) if self.sessions.recall(index) => {}
                    Some((index, _)) => self.sessions.learn(index, state.device.opening(index)),
                    None => state.handle_message(now, (source, local), datagram),
                }
            }
        }
    }

    fn open(&mut self, now: Instant, arrivals: &mut [Option<Arrival<'_>>]) {
        let mut openers = self.sessions.openers(now);
        for arrival in arrivals.iter_mut().flatten() {
            let ecn = arrival.ecn;
            for datagram in arrival.datagrams_mut() {
                self.entries.push(match openers.open(datagram) {
                    None => Entry::Handled,
                    Some((session, Ok(opened))) => {
                        let (source, length) = content(ecn, opened.text);
                        Entry::Opened {
                            session,
                            newest: opened.newest,
                            source,
                            length,
                        }
                    }
                    Some((_, Err(discard))) => Entry::Discarded { discard, length: 0 },
                });
            }
        }
        drop(openers);
        scrub_stack();
    }

    /// Reports what was opened, and discards what its sender may not send.
    fn note(&mut self, state: &mut State, now: Instant, arrivals: &[Option<Arrival<'_>>]) {
        let mut entries = self.entries.iter_mut();
        for arrival in arrivals.iter().flatten() {
            let mut heard: Option<Heard> = None;
            let mut allowed = None;
            for (datagram, entry) in arrival.datagrams().zip(&mut entries) {
                let &mut Entry::Opened {
                    session,
                    newest,
                    source,
                    length,
                } = entry
                else {
                    continue;
                };
                let Some((index, peer)) = self.sessions.get(session) else {
                    continue;
                };
                let next = Heard::one(index, datagram.len(), newest);
                let former = match &mut heard {
                    Some(heard) => heard.join(next),
                    None => heard.replace(next),
                };
                if let Some(former) = former {
                    state.device.note_opened(now, arrival.source, &former);
                }
                match source {
                    _ if datagram.len() <= KEEPALIVE => {}
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
            if let Some(heard) = heard {
                state.device.note_opened(now, arrival.source, &heard);
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
            let datagrams = arrival.datagrams();
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
            .flat_map(|arrival| arrival.datagrams());
        let packets = datagrams
            .zip(&self.entries)
            .filter_map(|(datagram, entry)| match entry {
                Entry::Opened { length, .. } if *length > 0 => {
                    datagram.get(HEADER..HEADER + length)
                }
                Entry::Opened { .. } | Entry::Handled | Entry::Discarded { .. } => None,
            });
        self.tunnel.write(packets);
    }
}

/// Tells who sent the packet in an opened datagram, and how long it is.
fn content(ecn: Ecn, text: &mut [u8]) -> (Result<IpAddr, Discard>, usize) {
    let addresses = match ecn::decapsulate(ecn, text) {
        Ok(()) => ip::addresses(text).map_err(|_| Discard::NotIp),
        Err(NotEct) => Err(Discard::NotEct),
    };
    let length = addresses.map_or(0, |addresses| addresses.length);
    (addresses.map(|addresses| addresses.source), length)
}

/// Datagrams that are opened before any is written: what one full run has.
const TOGETHER: usize = 32;
/// After an error of the socket that may last.
const PAUSE: Duration = Duration::from_millis(10);
