//! Data from the network: opened before the node is locked; what is for programs of this machine is
//! written to the interface after, and what is for other peers sealed for them.
//!
//! ```text
//! UDP ──► runs ──whose?──► opened in place ──which way?──► joined ──► TUN
//!           lock, unless known               lock  │   └─► sealed in place ──► UDP
//!                                                  └─► stack
//! ```
//! There is a lane for each core of a gateway; what comes by one session has one lane, so it stays
//! in order. While a capture runs, the node does all by itself.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use node::Way;
use os::{
    clock::Clock,
    udp::{Arrival, Batch, Datagram},
};
use tokio::{task, time};
use wireguard::{Discard, Heard, KEEPALIVE, Sessions, scrub_stack, transport_data};

use super::{Shared, Turn, core::Taken, onward::Onward};

/// What one task has.
pub(super) struct Lane {
    shared: Arc<Shared>,
    queue: usize,
    /// Datagrams that are opened before any goes on.
    together: usize,
    sessions: Sessions,
    /// One for each datagram.
    entries: Vec<Entry>,
    onward: Onward,
}

/// What became of a datagram before its packet is on its way.
#[derive(Clone, Copy, Debug)]
enum Entry {
    /// It was no transport data, and is done with.
    Handled,
    /// It could not be opened.
    Refused { session: usize, discard: Discard },
    /// Its tag and counter hold.
    Opened { session: usize, newest: bool },
}

impl Lane {
    /// A lane of a node that `forwards` does so run by run.
    pub(super) fn new(shared: &Arc<Shared>, queue: usize, forwards: bool) -> Self {
        Self {
            shared: Arc::clone(shared),
            queue,
            together: if forwards { RUN } else { usize::MAX },
            sessions: Sessions::default(),
            entries: Vec::new(),
            onward: Onward::default(),
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
        let mut portions = batch.portions();
        while let Some(arrivals) = portions.next(self.together) {
            self.take(arrivals).await;
        }
    }

    async fn take(&mut self, arrivals: &mut [Option<Arrival<'_>>]) {
        let shared = Arc::clone(&self.shared);
        if shared.is_captured.load(Ordering::Relaxed) {
            self.hand_over(arrivals);
        } else {
            self.find_sessions(arrivals);
            self.open(arrivals);
            self.decide(arrivals);
            self.onward.seal(datagrams_mut(arrivals));
            self.sessions.clear();
            self.entries.clear();
        }
        if self.onward.has_packets() {
            shared.write(self.onward.packets(datagrams(arrivals)));
        }
        self.onward.send(&shared, datagrams(arrivals)).await;
        self.onward.clear();
    }

    /// Lets the node open and seal.
    fn hand_over(&mut self, arrivals: &mut [Option<Arrival<'_>>]) {
        let shared = Arc::clone(&self.shared);
        let mut turn = shared.turn();
        let now = turn.now;
        let mut accepted = false;
        for arrival in arrivals.iter_mut().flatten() {
            let (source, local, ecn) = (arrival.source, arrival.local, arrival.ecn);
            let mut take = |bytes| {
                turn.take_datagram(Datagram {
                    source,
                    local,
                    ecn,
                    bytes,
                })
            };
            if arrival.bytes.is_empty() {
                take(&mut []);
            }
            for bytes in arrival.datagrams_mut() {
                let taken = take(bytes);
                accepted |= taken != Taken::Refused;
                match taken {
                    Taken::Packet(length) => self.onward.take_in(length),
                    Taken::Refused | Taken::Ended => self.onward.end(),
                }
            }
        }
        if accepted {
            shared.note_data();
        }
        turn.catch_up(now);
    }

    /// Finds the session of each datagram, and gives to the node what is not transport data.
    fn find_sessions(&mut self, arrivals: &mut [Option<Arrival<'_>>]) {
        let mut all = arrivals.iter().flatten();
        let is_known = all.all(|arrival| {
            !arrival.bytes.is_empty()
                && arrival.datagrams().all(|datagram| {
                    transport_data(datagram).is_some_and(|(index, _)| self.sessions.recall(index))
                })
        });
        if is_known {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let mut turn = shared.turn();
        for arrival in arrivals.iter_mut().flatten() {
            let (source, local, ecn) = (arrival.source, arrival.local, arrival.ecn);
            if arrival.bytes.is_empty() {
                turn.node.turn_away(Discard::Length, 1);
            }
            for bytes in arrival.datagrams_mut() {
                match transport_data(bytes) {
                    Some((index, _)) if self.sessions.recall(index) => {}
                    Some((index, _)) => self.sessions.learn(index, turn.node.opening(index)),
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

    fn open(&mut self, arrivals: &mut [Option<Arrival<'_>>]) {
        let mut openers = self.sessions.openers(Clock::start().now());
        for datagram in datagrams_mut(arrivals) {
            self.entries.push(match openers.open(datagram) {
                None => Entry::Handled,
                Some((session, Ok(opened))) => Entry::Opened {
                    session,
                    newest: opened.newest,
                },
                Some((session, Err(discard))) => Entry::Refused { session, discard },
            });
        }
        drop(openers);
        scrub_stack();
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
        let mut entries = self.entries.iter();
        for arrival in arrivals.iter_mut().flatten() {
            let ecn = arrival.ecn;
            for (datagram, entry) in arrival.datagrams_mut().zip(&mut entries) {
                let session = match *entry {
                    Entry::Opened { session, .. } if datagram.len() > KEEPALIVE => session,
                    Entry::Opened { .. } | Entry::Refused { .. } | Entry::Handled => {
                        self.onward.end();
                        continue;
                    }
                };
                let way = match self.sessions.get(session) {
                    Some(session) => turn.node.handle_opened(now, session, ecn, datagram),
                    None => Way::Ended,
                };
                match way {
                    Way::Ended => self.onward.end(),
                    Way::Interface(length) => self.onward.take_in(length),
                    Way::On(on) => self.onward.take(&mut turn, on, datagram),
                }
            }
        }
        self.onward.reserve(&mut turn, datagrams_mut(arrivals));
        turn.catch_up(now);
    }

    /// Reports who was heard, before it is decided where to send.
    fn report(&self, turn: &mut Turn<'_>, arrivals: &[Option<Arrival<'_>>]) {
        let now = turn.now;
        let mut entries = self.entries.iter();
        for arrival in arrivals.iter().flatten() {
            let source = arrival.source;
            let mut heard: Option<Heard> = None;
            for (datagram, entry) in arrival.datagrams().zip(&mut entries) {
                let (session, newest) = match *entry {
                    Entry::Opened { session, newest } => (session, newest),
                    Entry::Refused { session, discard } => {
                        let index = self.sessions.index(session);
                        turn.node.note_refused(index, discard);
                        continue;
                    }
                    Entry::Handled => continue,
                };
                let next = Heard::one(self.sessions.index(session), datagram.len(), newest);
                let former = match &mut heard {
                    Some(heard) => heard.join(next),
                    None => heard.replace(next),
                };
                if let Some(former) = former {
                    turn.node.note_opened(now, source, &former);
                }
            }
            if let Some(heard) = heard {
                turn.node.note_opened(now, source, &heard);
                turn.note_source(source, arrival.local);
            }
        }
    }
}

fn datagrams<'a>(arrivals: &'a [Option<Arrival<'_>>]) -> impl Iterator<Item = &'a [u8]> + Clone {
    arrivals.iter().flatten().flat_map(Arrival::datagrams)
}

fn datagrams_mut<'a>(
    arrivals: &'a mut [Option<Arrival<'_>>],
) -> impl Iterator<Item = &'a mut [u8]> {
    arrivals
        .iter_mut()
        .flatten()
        .flat_map(Arrival::datagrams_mut)
}

/// Batches that are read in one go before other tasks get their turn.
const BATCHES_MAX: usize = 16;
/// Datagrams in one full run.
const RUN: usize = 32;
/// After an error of the socket that may last.
const PAUSE: Duration = Duration::from_millis(20);
