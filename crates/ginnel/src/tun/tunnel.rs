//! What all threads of one interface share: the device behind its one owner, and the TUN.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    num::{NonZero, NonZeroU8},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::Context as _;
use model::status::Happened;
use node::capture::Capture;
use os::{
    clock::{self, Clock, Effort},
    tun::{self, SuperPackets, Tun},
    udp::Runs,
};
use packet::{ecn::Ecn, spread};
use wireguard::{Agreement, Allowance, Device, Discard, Event, Gate, PeerId, Sealing};
use zeroize::Zeroizing;

use super::{
    capture,
    configuration::{self, Changes},
    control::{Answer, refusal},
    keylog,
    uapi::{DeviceStatus, Errno, Report, Request, Status, Wanted},
    wire::{self, Run, Sockets, Wire},
};

/// One interface with its peers.
pub(crate) struct Tunnel {
    pub(crate) name: String,
    /// The queues of the TUN: as many lanes for each queue of ours, at least one.
    lanes: Vec<Tun>,
    /// How often there are threads.
    queues: NonZeroU8,
    /// Taken once or twice for a batch, never for a packet.
    state: Mutex<State>,
    /// Told when the sockets were exchanged.
    rebound: Condvar,
    /// Told when the device has an agreement to compute.
    deferred: Condvar,
    /// What the device's private key says, for threads that do not ask the device.
    gate: Mutex<Gate>,
    /// By `Discard::index`: what the gate refused.
    turned_away: Vec<AtomicU64>,
    allowance: Mutex<Allowance>,
    /// Batches of data in both directions.
    data: AtomicU64,
    /// A session waits for its successor.
    overdue: AtomicBool,
    /// Ends the sleep of the control thread.
    alarm: UnixStream,
    /// Beyond it packets are not padded; the device has the same figure.
    mtu: AtomicUsize,
    /// Whether a capture runs.
    pub(super) captures: AtomicBool,
    /// Whether it wants datagrams.
    pub(super) taps_datagrams: AtomicBool,
    gone: AtomicBool,
    failed: AtomicBool,
    /// Packets that the TUN did not take.
    refused: AtomicU64,
    /// Whether datagrams arrive in runs; `None` where that could not be tried.
    receives_runs: Option<bool>,
    super_packets: SuperPackets,
}

/// The device, its sockets and what is counted.
pub(crate) struct State {
    pub(crate) device: Device,
    pub(crate) wire: Wire,
    clock: Clock,
    /// When the control thread wakes by itself.
    armed: Option<Instant>,
    /// By `Discard::index`.
    discards: Vec<u64>,
    pub(super) key_log: Option<keylog::Writer>,
    pub(super) capture: Option<Box<Capture>>,
    pub(super) happened: Happened,
    /// Answers to who may be one of a flood, sent once the lock is let go.
    answers: Vec<Unproven>,
}

/// A datagram for who has not proven to be a peer.
struct Unproven {
    destination: SocketAddr,
    from: Option<IpAddr>,
    bytes: Vec<u8>,
}

/// How to send to a peer now, without the device.
pub(crate) struct Path {
    pub(crate) sealing: Arc<Sealing>,
    pub(crate) endpoint: SocketAddr,
    pub(crate) from: Option<IpAddr>,
}

/// The control thread's end of the alarm.
pub(crate) struct Wakeups(UnixStream);

/// Tells the control thread when the thread that holds it panics.
pub(crate) struct Watchdog(pub(crate) Arc<Tunnel>);

impl Tunnel {
    /// Prepares the device and its sockets for so many queues, which share the lanes evenly.
    pub(crate) fn new(
        name: &str,
        lanes: Vec<Tun>,
        queues: NonZeroU8,
        sends_runs: bool,
        receives_runs: Option<bool>,
        key_log: Option<keylog::Writer>,
    ) -> anyhow::Result<(Arc<Self>, Wakeups)> {
        let tun = lanes.first().context("TUN: open a queue")?;
        let mut clock = Clock::start_through_suspend();
        let now = clock.now();
        let mut device = Device::new(now, clock::wall(), Box::new(tunnel::OsRandom));
        let mtu = tun.mtu().context("TUN: read MTU")?;
        device.set_mtu(mtu);
        device.set_deferred_agreements(true);
        device.set_key_log(key_log.is_some());
        let (alarm, wakeups) = UnixStream::pair().context("make a pair of sockets")?;
        alarm.set_nonblocking(true)?;
        wakeups.set_nonblocking(true)?;
        let runs = Runs {
            sent: sends_runs,
            joined: receives_runs.unwrap_or(true),
        };
        let state = State {
            device,
            wire: Wire::open(runs, queues).context("UDP: bind a free port")?,
            clock,
            armed: None,
            discards: vec![0; Discard::ALL.len()],
            key_log,
            capture: None,
            happened: Happened::default(),
            answers: Vec::new(),
        };
        let super_packets = SuperPackets::new(tun.offload());
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let tunnel = Self {
            name: name.to_owned(),
            lanes,
            queues,
            state: Mutex::new(state),
            rebound: Condvar::new(),
            deferred: Condvar::new(),
            gate: Mutex::default(),
            turned_away: Discard::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            allowance: Mutex::new(Allowance::new(u32::try_from(cores).unwrap_or(1))),
            data: AtomicU64::new(0),
            overdue: AtomicBool::new(false),
            alarm,
            mtu: AtomicUsize::new(mtu),
            captures: AtomicBool::new(false),
            taps_datagrams: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            receives_runs,
            super_packets,
        };
        Ok((Arc::new(tunnel), Wakeups(wakeups)))
    }

    /// Returns the TUN's first lane; all have the same offloads.
    pub(crate) fn tun(&self) -> &Tun {
        &self.lanes[0]
    }

    /// Returns the lanes of a queue, at least one.
    pub(crate) fn lanes(&self, queue: u8) -> &[Tun] {
        let count = self.lanes.len() / usize::from(self.queues.get());
        &self.lanes[usize::from(queue) * count..][..count]
    }

    /// Writes packets to the TUN, and counts what it does not take.
    ///
    /// Each goes by the lane of its flow, and the kernel sends what belongs to that by the same.
    pub(crate) fn write<'p>(&self, packets: impl Iterator<Item = &'p [u8]>) {
        let lanes = &self.lanes[..];
        let lane_of = |packet: &[u8]| match lanes {
            [only] => only,
            all => &all[spread::place(packet, all.len())],
        };
        let lost = |error: &io::Error, packets| self.note_lost(error, packets);
        if let Some(error) = self.super_packets.write(packets, lane_of, lost) {
            let name = &self.name;
            tracing::warn!("{name}: TUN refuses joined packets ({error}), now written singly");
        }
    }

    /// Numbers the queues.
    pub(crate) fn queue_numbers(&self) -> impl Iterator<Item = u8> {
        0..self.queues.get()
    }

    /// Works on the device, then sends and tells what it made of it.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut State, Instant) -> R) -> R {
        let mut state = self.lock();
        // Read under the lock, so that the device's time never goes back.
        let now = state.clock.now();
        let result = work(&mut state, now);
        state.drain_device(now);
        let overdue = state.device.is_overdue(now);
        self.overdue.store(overdue, Ordering::Relaxed);
        let due = state.device.poll_timeout();
        if due.is_some_and(|due| state.armed.is_none_or(|armed| due < armed)) {
            state.armed = due;
            self.wake();
        }
        if state.device.waiting_agreements() > 0 {
            self.deferred.notify_one();
        }
        if !state.answers.is_empty() {
            let answers = std::mem::take(&mut state.answers);
            let sockets = Arc::clone(state.wire.sockets());
            drop(state);
            self.send_answers(&sockets, &answers);
        }
        result
    }

    /// Sends what is not worth to be waited for.
    fn send_answers(&self, sockets: &Sockets, answers: &[Unproven]) {
        for answer in answers {
            let run = Run {
                destination: answer.destination,
                ecn: Ecn::NotEct,
                bytes: &answer.bytes,
                segment: answer.bytes.len(),
            };
            if let Err((error, datagrams)) = wire::send_at_once(&sockets.data, answer.from, &run) {
                let wire = &mut self.lock().wire;
                wire.count_lost(error, answer.destination, datagrams);
            }
        }
    }

    /// Computes what handshakes need as long as the process lives.
    pub(crate) fn agree(&self) {
        let (mut clock, mut effort) = (Clock::start(), Effort::default());
        loop {
            let mut next = Some(self.wait_for_agreement());
            while let Some(mut agreement) = next {
                agreement.compute();
                next = self.with(|state, now| state.device.handle_agreement(now, agreement));
                self.rest(clock.now(), &mut effort);
            }
        }
    }

    /// Pauses a thread of handshakes if data would suffer otherwise.
    pub(crate) fn rest(&self, now: Instant, effort: &mut Effort) {
        let used = effort.since_last();
        let data = self.data.load(Ordering::Relaxed);
        let overdue = self.overdue.load(Ordering::Relaxed);
        let pause = hold(&self.allowance).take(now, used, data, overdue);
        if let Some(pause) = pause {
            thread::sleep(pause);
        }
    }

    /// Counts a batch of data.
    pub(crate) fn note_data(&self) {
        self.data.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns what tells forged handshake messages without the device.
    pub(crate) fn gate(&self) -> Gate {
        hold(&self.gate).clone()
    }

    /// Counts datagrams that came to nothing before the device saw them.
    pub(crate) fn turn_away(&self, discard: Discard, count: u64) {
        self.turned_away[discard.index()].fetch_add(count, Ordering::Relaxed);
    }

    fn wait_for_agreement(&self) -> Agreement {
        let mut state = self.lock();
        loop {
            match state.device.poll_agreement() {
                Some(agreement) => return agreement,
                None => {
                    let woken = self.deferred.wait(state);
                    state = woken.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Writes the answer to `get=1`, in parts, so that data need not wait for all of it.
    fn status(&self) -> Zeroizing<String> {
        let mut status = self.with(|state, _| {
            Status::begin(&DeviceStatus {
                private_key: state.device.private_key(),
                listen_port: state.wire.port(),
                fwmark: state.wire.fwmark(),
            })
        });
        let mut last = None;
        loop {
            let before = last;
            self.with(|state, _| {
                for peer in state.device.peers_after(before).take(SHOWN_TOGETHER) {
                    status.push(&peer);
                    last = Some(peer.id);
                }
            });
            if last == before {
                return status.finish();
            }
        }
    }

    /// Writes what the interface does with large packets, and what it did not deliver.
    fn report(&self) -> Zeroizing<String> {
        let state = self.lock();
        let discarded = |discard: &Discard| (discard.name(), self.discarded(&state, *discard));
        let report = Report {
            tun: self.super_packets.offload(),
            joins: self.super_packets.are_joined(),
            sends_runs: state.wire.sends_runs(),
            receives_runs: self.receives_runs,
            discarded: Discard::ALL.iter().map(discarded).collect(),
            not_sent: state.wire.lost().iter().map(|(k, v)| (*k, *v)).collect(),
            not_taken: self.not_taken(),
            capture_keys: state.capture.as_ref().map(|capture| capture.has_keys()),
        };
        Zeroizing::new(report.emit())
    }

    /// Returns how many packets the TUN did not take.
    pub(super) fn not_taken(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(super) fn discarded(&self, state: &State, discard: Discard) -> u64 {
        let place = discard.index();
        state.discards[place] + self.turned_away[place].load(Ordering::Relaxed)
    }

    /// Tells whether runs of datagrams are still sent as one.
    pub(crate) fn sends_runs(&self) -> bool {
        self.lock().wire.sends_runs()
    }

    /// Returns how long the control thread may sleep, at most until `latest` from now on.
    pub(crate) fn arm(&self, latest: std::time::Duration) -> std::time::Duration {
        let mut state = self.lock();
        let now = state.clock.now();
        let latest = now + latest;
        let due = state
            .device
            .poll_timeout()
            .map_or(latest, |due| due.min(latest));
        state.armed = Some(due);
        due.saturating_duration_since(now)
    }

    /// Waits until the sockets are others than `known`, and returns them. It does not keep the
    /// known ones open.
    pub(crate) fn wait_for_sockets(&self, known: &Weak<Sockets>) -> Arc<Sockets> {
        let state = self
            .rebound
            .wait_while(self.lock(), |state| {
                Weak::ptr_eq(&Arc::downgrade(state.wire.sockets()), known)
            })
            .unwrap_or_else(PoisonError::into_inner);
        Arc::clone(state.wire.sockets())
    }

    /// Returns the present sockets.
    pub(crate) fn sockets(&self) -> Arc<Sockets> {
        Arc::clone(self.lock().wire.sockets())
    }

    pub(crate) fn mtu(&self) -> usize {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Some interface changed: ours may have another MTU, and ways may lead elsewhere.
    pub(crate) fn follow_link(&self) {
        let mtu = self.tun().mtu();
        self.with(|state, _| {
            state.wire.sources.forget_all();
            if let Ok(mtu) = mtu {
                state.device.set_mtu(mtu);
                self.mtu.store(mtu, Ordering::Relaxed);
            }
        });
        match mtu {
            Ok(_) => {}
            // Moved to another namespace, where its last MTU is a good guess: it only bounds how
            // packets are padded.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.note_tun_error(&error),
        }
    }

    /// Notes an error of the TUN that is about no packet.
    pub(crate) fn note_tun_error(&self, error: &io::Error) {
        self.note_lost(error, 1);
    }

    /// Counts packets that the TUN did not take, unless the interface is gone.
    fn note_lost(&self, error: &io::Error, packets: usize) {
        if tun::is_gone(error) {
            self.gone.store(true, Ordering::Relaxed);
            self.wake();
        } else if error.kind() != io::ErrorKind::WouldBlock {
            // EIO while the interface is down, EINVAL for what the kernel takes for no packet.
            let count = u64::try_from(packets).unwrap_or(u64::MAX);
            self.refused.fetch_add(count, Ordering::Relaxed);
            self.tap_not_taken(count);
        }
    }

    /// Counts a packet of a lane that said to be a super-packet and is none.
    pub(crate) fn note_malformed(&self, lane: &Tun) {
        if self.super_packets.note_malformed(lane) {
            let name = &self.name;
            tracing::warn!("{name}: TUN gives super-packets that are none, now asked for no more");
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub(crate) fn log_losses(&self) {
        let (name, state) = (&self.name, self.lock());
        for discard in Discard::ALL {
            let count = self.discarded(&state, *discard);
            if count > 0 {
                tracing::info!("{name}: {count} discarded: {}", discard.name());
            }
        }
        for (reason, count) in state.wire.lost() {
            tracing::info!("{name}: {count} not sent: {reason}");
        }
        let refused = self.refused.load(Ordering::Relaxed);
        if refused > 0 {
            tracing::info!("{name}: {refused} not taken by the TUN");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        hold(&self.state)
    }

    fn wake(&self) {
        // A full pipe wakes as well.
        (&self.alarm).write_all(&[1]).ok();
    }
}

impl State {
    /// Returns how to seal for `peer` and where to send; `None` when the device must see to it.
    pub(crate) fn path(&self, now: Instant, peer: PeerId) -> Option<Path> {
        let endpoint = self.device.endpoint(peer)?;
        Some(Path {
            sealing: self.device.sealing(now, peer)?,
            endpoint,
            from: self.wire.sources.source(endpoint),
        })
    }

    pub(crate) fn count(&mut self, discard: Discard, count: u64) {
        self.discards[discard.index()] += count;
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.device.poll_timeout().is_some_and(|due| due <= now) {
            self.device.handle_timeout(now);
        }
    }

    /// Sends and tells what the device has made since the last call.
    fn drain_device(&mut self, now: Instant) {
        // First, so that a key is in the log before the datagram that it opens is on the wire.
        while let Some(event) = self.device.poll_event() {
            self.note_event(&event);
        }
        while let Some(transmit) = self.device.poll_transmit() {
            self.tap_run(
                now,
                &Run {
                    destination: transmit.destination,
                    ecn: Ecn::NotEct,
                    bytes: &transmit.datagram,
                    segment: transmit.datagram.len(),
                },
            );
            if transmit.peer.is_none() {
                self.answers.push(Unproven {
                    destination: transmit.destination,
                    from: self.wire.sources.source(transmit.destination),
                    bytes: transmit.datagram,
                });
                continue;
            }
            let bytes = &transmit.datagram[..];
            if is_initiation(bytes) {
                self.wire.sources.begin_handshake(transmit.destination);
            }
            let run = Run {
                destination: transmit.destination,
                ecn: Ecn::NotEct,
                bytes,
                segment: bytes.len(),
            };
            self.wire.send(&run);
        }
    }

    fn endpoint(&self, peer: PeerId) -> Option<SocketAddr> {
        self.device.status(peer)?.endpoint
    }

    fn note_event(&mut self, event: &Event) {
        match event {
            Event::HandshakeCompleted { peer } => {
                self.happened.handshakes_completed += 1;
                self.tell("handshake completed with", *peer);
                let endpoint = self.endpoint(*peer);
                tracing::debug!(?endpoint, "handshake completed");
            }
            Event::HandshakeAbandoned { peer } => {
                self.happened.handshakes_abandoned += 1;
                self.tell("handshake abandoned with", *peer);
                let endpoint = self.endpoint(*peer);
                tracing::debug!(?endpoint, "handshake: no answer");
            }
            Event::EndpointMoved { peer, endpoint } => {
                self.happened.endpoints_moved += 1;
                self.tell("peer moved to", *peer);
                tracing::debug!(%endpoint, "endpoint moved");
            }
            Event::Discarded { discard, count } => {
                self.count(*discard, *count);
                if let Some(capture) = &mut self.capture {
                    capture.discarded((*discard).into(), *count);
                }
            }
            Event::KeyLog {
                log,
                remote,
                initiator,
            } => {
                if let Some(writer) = &mut self.key_log {
                    writer.append(log);
                }
                if let Some(capture) = &mut self.capture {
                    capture.write_keys(log, *remote, *initiator);
                }
            }
            // Unknown initiators were not asked for.
            Event::UnknownInitiator { ticket, .. } => self.device.forget_unknown(*ticket),
            Event::SessionsZeroed { .. } => {}
        }
    }
}

impl Answer for Arc<Tunnel> {
    fn capture(&mut self, wanted: &Wanted, stream: UnixStream) -> Result<(), Errno> {
        capture::begin(self, wanted, stream)
    }

    fn answer(&mut self, request: Request) -> Zeroizing<String> {
        let answer = match request {
            Request::Get => self.status(),
            Request::Report => self.report(),
            Request::Capture(_) => unreachable!("it has the connection"),
            Request::Set(settings) => {
                let mut changes = Changes::new(*settings);
                let mut apply_part = || {
                    self.with(|state, now| {
                        let applied = changes.apply_part(now, &mut state.device, &mut state.wire);
                        *hold(&self.gate) = state.device.gate();
                        applied
                    })
                };
                let result = loop {
                    match apply_part() {
                        Ok(true) => {}
                        Ok(false) => break Errno::NONE,
                        Err(errno) => break errno,
                    }
                };
                refusal(result)
            }
        };
        self.rebound.notify_all();
        if let Some(closing) = self.with(|state, _| state.wire.take_closing()) {
            closing.wait();
        }
        answer
    }
}

impl configuration::Machine for Wire {
    fn listen(&mut self, port: u16) -> Result<(), Errno> {
        Self::listen(self, port)
    }

    fn mark(&mut self, fwmark: u32) -> Result<(), Errno> {
        Self::mark(self, fwmark)
    }

    fn interface(&self, name: &str) -> Option<u32> {
        os::link::index(name)
    }
}

impl Wakeups {
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Forgets the alarms so far.
    pub(crate) fn drain(&self) {
        let mut bytes = [0; 64];
        while (&self.0)
            .read(&mut bytes)
            .is_ok_and(|length| length == bytes.len())
        {}
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.failed.store(true, Ordering::Relaxed);
            self.0.wake();
        }
    }
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked ends the process; until then the others do no harm.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Message type 1 (whitepaper section 5.4.2).
fn is_initiation(datagram: &[u8]) -> bool {
    datagram.first() == Some(&1)
}

/// Peers that are shown in one go: within a millisecond.
pub(super) const SHOWN_TOGETHER: usize = 256;
