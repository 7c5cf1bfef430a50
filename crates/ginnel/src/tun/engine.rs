//! The event loop of one interface: reads, seals or opens, and writes, all on one thread.
//!
//! ```text
//! TUN ──► parts in slots ──seal──► run ──► UDP        UDP ──► batch ──open──► run ──► TUN
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
use packet::gso;
use wireguard::{Device, Discard, Event, HEADER, OVERHEAD, Received, Seal, padded};
use zeroize::Zeroizing;

use super::{
    configuration,
    control::{Answer, Control, refusal},
    inbound::Inbound,
    outbound::{Outbound, PACKET_MAX, Run},
    uapi::{DeviceStatus, Errno, Request, emit_status},
    virtio,
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
    looked_around: Instant,
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
    inbound: Inbound,
    /// What was read from a TUN with offloads, until it is cut into the slots of `outbound`.
    large: Box<[u8]>,
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
    pub(crate) fn new(
        name: &str,
        tun: Tun,
        control: Control,
        offload: bool,
    ) -> anyhow::Result<Self> {
        let mut clock = Clock::start();
        let now = clock.now();
        let mut device = Device::new(now, clock::wall(), Box::new(crate::random::OsRandom));
        device.set_mtu(tun.mtu().context("TUN: read MTU")?);
        let tunnel = Tunnel {
            name: name.to_owned(),
            tun,
            wire: Wire::open(offload).context("UDP: bind a free port")?,
            device,
            clock,
            now,
            outbound: Outbound::default(),
            inbound: Inbound::default(),
            large: vec![0; tun::PACKET_MAX].into_boxed_slice(),
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
            looked_around: now,
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
        if let Some(ended) = self.look_around() {
            return Ok(Some(ended));
        }
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
        Ok(self.tunnel.gone.then_some(Ended::InterfaceGone))
    }

    fn handle_network(&mut self, places: &Places) {
        for (family, place) in places.sockets.iter().enumerate() {
            let ready = place.is_some_and(|place| self.poll.ready(place).readable);
            if ready {
                self.tunnel.handle_datagrams(family, &mut self.batch);
            }
        }
    }

    /// Looks now and then at what tells nobody that it has changed.
    fn look_around(&mut self) -> Option<Ended> {
        let now = self.tunnel.now;
        if now.saturating_duration_since(self.looked_around) < LOOK_AROUND {
            return None;
        }
        self.looked_around = now;
        self.tunnel.device.set_wall_clock(now, clock::wall());
        (!self.control.is_reachable()).then_some(Ended::SocketGone)
    }
}

impl Tunnel {
    /// Reads what waits in the TUN, within a bound, and sends it sealed.
    fn handle_packets(&mut self) {
        let mut large = std::mem::take(&mut self.large);
        for _ in 0..PACKETS_PER_TURN {
            let read = if self.tun.offload().vnet_header {
                self.read_large(&mut large)
            } else {
                self.read_one()
            };
            if let Err(error) = read {
                self.note_tun_error(&error);
                break;
            }
        }
        self.large = large;
        self.flush();
        self.outbound.rewind();
        self.drain_device();
    }

    /// Reads one packet of at most the MTU into its slot and seals it there.
    fn read_one(&mut self) -> io::Result<()> {
        self.make_room();
        let slot = self.outbound.slot();
        let length = self.tun.read(&mut slot[HEADER..HEADER + PACKET_MAX])?;
        self.seal(length);
        Ok(())
    }

    /// Reads one packet, which may be larger than the MTU, and seals its parts.
    fn read_large(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let length = self.tun.read(buffer)?;
        let Some((header, packet)) = virtio::parse(&mut buffer[..length]) else {
            self.refused += 1;
            return Ok(());
        };
        if let Some((kind, size)) = header.large {
            let Ok(mut parts) = gso::split(packet, kind, size) else {
                self.refused += 1;
                return Ok(());
            };
            loop {
                self.make_room();
                let Some(length) = parts.next_into(&mut self.outbound.slot()[HEADER..]) else {
                    return Ok(());
                };
                self.seal(length);
            }
        }
        if let Some((start, offset)) = header.checksum
            && gso::complete_checksum(packet, start, offset).is_err()
        {
            self.refused += 1;
            return Ok(());
        }
        self.make_room();
        self.outbound.slot()[HEADER..HEADER + packet.len()].copy_from_slice(packet);
        self.seal(packet.len());
        Ok(())
    }

    /// Makes room for one more packet.
    fn make_room(&mut self) {
        if self.outbound.is_full() {
            self.flush();
            self.outbound.rewind();
        }
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
                    let written = self.inbound.write(&self.tun, packet);
                    if let Err(error) = written {
                        self.note_tun_error(&error);
                    }
                }
                Received::Handled => self.wire.note_source(source, local),
                Received::Discarded(discard) => self.count(discard, 1),
            }
            self.drain_device();
        }
        if let Err(error) = self.inbound.flush(&self.tun) {
            self.note_tun_error(&error);
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
/// How long the time of day in handshakes may lag after the clock was set, and a process live on
/// whose socket was removed.
const LOOK_AROUND: Duration = Duration::from_secs(4);
/// Longer waits would only delay that.
const SLEEP_MAX: Duration = Duration::from_secs(5);
