//! The event loop of one interface: reads, seals or opens, and writes, all on one thread.
//!
//! ```text
//! TUN ──► slot ──seal──► run ──► UDP        UDP ──► batch ──open──► TUN
//! ```

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use os::{
    clock::{self, Clock},
    link::Watch,
    poll::{Interest, Poll},
    signal::Termination,
    tun::{self, Tun},
    udp::Batch,
};
use wireguard::{Device, Discard, Event, HEADER, OVERHEAD, Received, Seal, padded};
use zeroize::Zeroizing;

use super::{
    configuration,
    control::{Answer, Control, refusal},
    outbound::{Outbound, PACKET_MAX, Run},
    uapi::{DeviceStatus, Errno, Request, emit_status},
    wire::Wire,
};

/// Why the loop ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ended {
    /// Somebody asked by a signal.
    Signal,
    /// The interface was deleted.
    InterfaceGone,
    /// The UAPI socket's file was removed or replaced, which is how `rm` stops wireguard-go.
    SocketGone,
}

/// One interface with its peers.
pub(crate) struct Engine {
    control: Control,
    tunnel: Tunnel,
    termination: Termination,
    links: Watch,
    poll: Poll,
    batch: Batch,
    wall_read: Instant,
}

/// All but the control socket, so that requests can change it while clients are walked.
struct Tunnel {
    name: String,
    tun: Tun,
    wire: Wire,
    device: Device,
    clock: Clock,
    now: Instant,
    outbound: Outbound,
    gone: bool,
    /// By `Discard::index`.
    discards: Vec<u64>,
    /// Packets that the TUN did not take.
    refused: u64,
}

/// Places of the fixed descriptors in the poll set.
struct Places {
    tun: usize,
    sockets: [Option<usize>; 2],
    termination: usize,
    links: usize,
}

impl Engine {
    /// Prepares the loop; from here on signals wait for it.
    pub(crate) fn new(name: &str, tun: Tun, control: Control) -> anyhow::Result<Self> {
        let mut clock = Clock::start();
        let now = clock.now();
        let mut device = Device::new(now, clock::wall(), Box::new(crate::random::OsRandom));
        device.set_mtu(tun.mtu().context("TUN: read MTU")?);
        let tunnel = Tunnel {
            name: name.to_owned(),
            tun,
            wire: Wire::open().context("UDP: bind a free port")?,
            device,
            clock,
            now,
            outbound: Outbound::default(),
            gone: false,
            discards: vec![0; Discard::ALL.len()],
            refused: 0,
        };
        Ok(Self {
            control,
            tunnel,
            termination: Termination::listen().context("listen to signals")?,
            links: Watch::open().context("watch network interfaces")?,
            poll: Poll::default(),
            batch: Batch::default(),
            wall_read: now,
        })
    }

    /// Runs until a signal comes or the interface goes.
    pub(crate) fn run(mut self) -> anyhow::Result<Ended> {
        let ended = loop {
            let places = self.watch();
            self.wait()?;
            if let Some(ended) = self.turn(&places)? {
                break ended;
            }
        };
        self.tunnel.log_losses();
        Ok(ended)
    }

    fn watch(&mut self) -> Places {
        self.poll.clear();
        let poll = &mut self.poll;
        let tunnel = &self.tunnel;
        let places = Places {
            tun: poll.add(tunnel.tun.as_fd(), Interest::READ),
            sockets: tunnel
                .wire
                .sockets()
                .map(|socket| socket.map(|socket| poll.add(socket.as_fd(), Interest::READ))),
            termination: poll.add(self.termination.as_fd(), Interest::READ),
            links: poll.add(self.links.as_fd(), Interest::READ),
        };
        self.control.watch(&mut self.poll);
        places
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let deadline = self.tunnel.device.poll_timeout();
        let timeout = match deadline {
            Some(at) => at.saturating_duration_since(self.tunnel.clock.now()),
            None => SLEEP_MAX,
        };
        self.poll
            .wait(Some(timeout.min(SLEEP_MAX)))
            .context("wait for descriptors")?;
        Ok(())
    }

    fn turn(&mut self, places: &Places) -> anyhow::Result<Option<Ended>> {
        let now = self.tunnel.clock.now();
        self.tunnel.now = now;
        if self.poll.ready(places.termination).readable && self.termination.arrived()? {
            return Ok(Some(Ended::Signal));
        }
        self.follow_wall_clock();
        if self.poll.ready(places.links).readable && self.links.drain() {
            self.tunnel.follow_link();
        }
        self.handle_network(places);
        let tun = self.poll.ready(places.tun);
        if tun.readable || tun.closed {
            self.tunnel.handle_packets();
        }
        self.control.handle_ready(&self.poll, &mut self.tunnel);
        self.tunnel.handle_timeout();
        if self.tunnel.gone {
            return Ok(Some(Ended::InterfaceGone));
        }
        Ok((!self.control.is_reachable()).then_some(Ended::SocketGone))
    }

    fn handle_network(&mut self, places: &Places) {
        for (family, place) in places.sockets.iter().enumerate() {
            let ready = place.is_some_and(|place| self.poll.ready(place).readable);
            if ready {
                self.tunnel.handle_datagrams(family, &mut self.batch);
            }
        }
    }

    fn follow_wall_clock(&mut self) {
        let now = self.tunnel.now;
        if now.saturating_duration_since(self.wall_read) >= WALL_CLOCK_INTERVAL {
            self.wall_read = now;
            self.tunnel.device.set_wall_clock(now, clock::wall());
        }
    }
}

impl Tunnel {
    /// Reads what waits in the TUN, within a bound, and sends it sealed.
    fn handle_packets(&mut self) {
        for _ in 0..PACKETS_PER_TURN {
            if self.outbound.is_full() {
                self.flush();
                self.outbound.rewind();
            }
            let slot = self.outbound.slot();
            match self.tun.read(&mut slot[HEADER..HEADER + PACKET_MAX]) {
                Ok(length) => self.seal(length),
                Err(error) => {
                    self.note_tun_error(&error);
                    break;
                }
            }
        }
        self.flush();
        self.outbound.rewind();
        self.drain_device();
    }

    /// Seals the packet of `length` bytes in the slot and lets it join the run.
    fn seal(&mut self, length: usize) {
        let slot = self.outbound.slot();
        let slot = &mut slot[..padded(length) + OVERHEAD];
        match self.device.seal(self.now, slot, length) {
            Seal::Sealed {
                endpoint, length, ..
            } => {
                if !self.outbound.fits(endpoint, length) {
                    self.flush();
                }
                self.outbound.push(endpoint, length);
            }
            Seal::Staged { .. } => {}
            Seal::Discarded(discard) => self.count(discard, 1),
        }
    }

    fn flush(&mut self) {
        if let Some(run) = self.outbound.run() {
            self.wire.send(&run);
        }
        self.outbound.forget();
    }

    /// Reads what waits in one socket, within a bound, and writes it opened to the TUN.
    fn handle_datagrams(&mut self, family: usize, batch: &mut Batch) {
        for _ in 0..BATCHES_PER_TURN {
            let [v4, v6] = self.wire.sockets();
            let Some(socket) = (if family == 0 { v4 } else { v6 }) else {
                return;
            };
            match socket.recv_batch(batch) {
                Ok(runs) => {
                    self.open(batch);
                    if runs < os::udp::Socket::RUNS_MAX {
                        break;
                    }
                }
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::debug!("UDP: receive: {error}");
                    }
                    break;
                }
            }
        }
    }

    fn open(&mut self, batch: &mut Batch) {
        for datagram in batch.datagrams() {
            let (source, local) = (datagram.source, datagram.local);
            match self
                .device
                .handle_datagram(self.now, source, datagram.bytes)
            {
                Received::Packet { packet, .. } => {
                    self.wire.note_source(source, local);
                    let written = self.tun.write(packet);
                    if let Err(error) = written {
                        self.note_tun_error(&error);
                    }
                }
                Received::Handled => self.wire.note_source(source, local),
                Received::Discarded(discard) => self.count(discard, 1),
            }
            self.drain_device();
        }
    }

    fn handle_timeout(&mut self) {
        if self
            .device
            .poll_timeout()
            .is_some_and(|deadline| deadline <= self.now)
        {
            self.device.handle_timeout(self.now);
        }
        self.drain_device();
    }

    /// Sends and tells what the device has made since the last call.
    fn drain_device(&mut self) {
        while let Some(transmit) = self.device.poll_transmit() {
            let bytes = &transmit.datagram[..];
            if is_initiation(bytes) {
                // A handshake looks for a way anew, in case the old one leads nowhere.
                self.wire.forget_source(transmit.destination);
            }
            self.wire.send(&Run {
                destination: transmit.destination,
                bytes,
                segment: bytes.len(),
            });
        }
        while let Some(event) = self.device.poll_event() {
            self.note_event(&event);
        }
    }

    fn note_event(&mut self, event: &Event) {
        match event {
            Event::HandshakeCompleted { peer } => {
                tracing::debug!(endpoint = ?self.endpoint(*peer), "handshake completed");
            }
            Event::HandshakeAbandoned { peer } => {
                tracing::debug!(endpoint = ?self.endpoint(*peer), "handshake: no answer");
            }
            Event::EndpointMoved { endpoint, .. } => tracing::debug!(%endpoint, "endpoint moved"),
            Event::Discarded { discard, count } => self.count(*discard, *count),
            // Neither unknown initiators nor a key log were asked for.
            Event::UnknownInitiator { ticket, .. } => self.device.forget_unknown(*ticket),
            Event::SessionsZeroed { .. } | Event::KeyLog(_) => {}
        }
    }

    fn endpoint(&self, peer: wireguard::PeerId) -> Option<SocketAddr> {
        self.device.status(peer)?.endpoint
    }

    /// Some interface changed: ours may have another MTU, and ways may lead elsewhere.
    fn follow_link(&mut self) {
        self.wire.forget_sources();
        match self.tun.mtu() {
            Ok(mtu) => self.device.set_mtu(mtu),
            Err(error) if tun::is_gone(&error) => self.gone = true,
            Err(error) => tracing::debug!("TUN: read MTU: {error}"),
        }
    }

    fn note_tun_error(&mut self, error: &io::Error) {
        if tun::is_gone(error) {
            self.gone = true;
        } else if error.kind() != io::ErrorKind::WouldBlock {
            // EIO while the interface is down, EINVAL for what the kernel takes for no packet.
            self.refused += 1;
        }
    }

    fn count(&mut self, discard: Discard, count: u64) {
        self.discards[discard.index()] += count;
    }

    fn log_losses(&self) {
        let name = &self.name;
        for discard in Discard::ALL {
            let count = self.discards[discard.index()];
            if count > 0 {
                tracing::info!("{name}: {count} discarded: {}", discard.name());
            }
        }
        for (reason, count) in self.wire.lost() {
            tracing::info!("{name}: {count} not sent: {reason}");
        }
        if self.refused > 0 {
            tracing::info!("{name}: {} not taken by the TUN", self.refused);
        }
    }

    fn status(&self) -> Zeroizing<String> {
        let device = DeviceStatus {
            private_key: self.device.private_key(),
            listen_port: self.wire.port(),
            fwmark: self.wire.fwmark(),
        };
        emit_status(&device, self.device.peers())
    }
}

impl Answer for Tunnel {
    fn answer(&mut self, request: Request) -> Zeroizing<String> {
        match request {
            Request::Get => self.status(),
            Request::Set(settings) => {
                let (now, device) = (self.now, &mut self.device);
                let result = configuration::apply(*settings, now, device, &mut self.wire);
                self.drain_device();
                refusal(result.err().unwrap_or(Errno::NONE))
            }
        }
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

/// Message type 1 (whitepaper section 5.4.2).
fn is_initiation(datagram: &[u8]) -> bool {
    datagram.first() == Some(&1)
}

/// Bounds of one turn, so that neither direction nor the control socket starves.
const PACKETS_PER_TURN: usize = 256;
const BATCHES_PER_TURN: usize = 4;
/// Without anything to do the loop looks at its UAPI socket's file this often.
const SLEEP_MAX: Duration = Duration::from_secs(5);
/// How far the time of day in handshakes may lag after the clock was set.
const WALL_CLOCK_INTERVAL: Duration = Duration::from_secs(10);
