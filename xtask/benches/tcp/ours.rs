//! Our stack as the client, alone on a packet descriptor.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, ErrorKind, IoSlice, Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use netstack::{
    CloseReason, Config, CongestionControl, ConnectionId, Event, Large, Limits, Received, Stack,
    Transmit,
};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};
use os::clock::Clock;
use packet::vnet;

use crate::{IDLE_EACH, MTU, kernel::Direction, relay};

/// Bytes that one call moves.
pub(crate) const CHUNK: usize = 64 << 10;

/// Octets of a request and of its response, and how many are under way at once.
pub(crate) const EXCHANGED: usize = 10_000;
pub(crate) const EXCHANGES: usize = 8;

/// Connections that are opened at once; more would only overflow the listener's queue.
const OPENING: usize = 64;

/// A packet behind a virtio_net_hdr.
const PACKET_MAX: usize = vnet::HEADER + 65_535;

/// The largest number of segments that leave as one.
const SEGMENTS_MAX: usize = 64;

/// The largest number that is written one by one before the stack is asked again: as many as a
/// tunnel seals for one call.
const RUN_MAX: usize = 44;

/// After so many writes the driver looks at what has come.
const WRITES_MAX: usize = 64;

/// What the client does.
pub(crate) struct Client {
    pub(crate) local: IpAddr,
    pub(crate) server: SocketAddr,
    pub(crate) streams: usize,
    pub(crate) direction: Direction,
    pub(crate) control: CongestionControl,
    /// The link takes and gives super-packets behind a virtio_net_hdr.
    pub(crate) large: bool,
    /// Connections to this address, [`IDLE_EACH`] to a port, that are opened first and then left
    /// alone.
    pub(crate) idle: Option<(SocketAddr, usize)>,
}

/// What the client has used and counted between being ready and its end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Seconds of CPU in user mode of its thread.
    pub(crate) user: f64,
    pub(crate) received: u64,
}

struct Driver<'a> {
    link: &'a File,
    stack: Stack,
    clock: Clock,
    /// What the link did not take, in order.
    held: VecDeque<Vec<u8>>,
    /// The stack may have more to send than the last turn let out.
    unfinished: bool,
    /// What is written: room for a virtio_net_hdr and a packet.
    out: Vec<u8>,
    /// What is read.
    packet: Vec<u8>,
    large: bool,
    connected: usize,
}

/// Runs the client until told to stop; `ready` turns true when the idle connections are open.
pub(crate) fn run(
    link: &File,
    client: &Client,
    ready: &AtomicBool,
    stop: &AtomicBool,
    received: &Arc<AtomicU64>,
) -> Result<Usage> {
    let mut driver = Driver::new(link, client);
    driver.open_idle(client, stop)?;
    let mut streams = Vec::new();
    for _ in 0..client.streams {
        let now = driver.clock.now();
        streams.push(driver.stack.connect(now, client.server)?);
    }
    ready.store(true, Ordering::Relaxed);
    let begin = user_seconds()?;
    let mut chunk = vec![0x67; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        let now = driver.turn()?;
        for &stream in &streams {
            let moved = match client.direction {
                Direction::Up => driver.fill(now, stream, &chunk),
                Direction::Down => driver.drain(now, stream, &mut chunk),
            };
            received.fetch_add(moved, Ordering::Relaxed);
        }
        driver.transmit(now);
    }
    Ok(Usage {
        user: user_seconds()? - begin,
        received: received.load(Ordering::Relaxed),
    })
}

/// Exchanges [`EXCHANGED`] octets each way over one new connection after the other, some at a time,
/// until told to stop; returns how many milliseconds each took from its SYN to the end.
pub(crate) fn exchange(link: &File, client: &Client, stop: &AtomicBool) -> Result<Vec<f64>> {
    let mut driver = Driver::new(link, client);
    let request = [0x67; EXCHANGED];
    let mut chunk = vec![0; CHUNK];
    let mut open: [Option<(ConnectionId, Instant)>; EXCHANGES] = [None; EXCHANGES];
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let now = driver.turn()?;
        for slot in &mut open {
            if slot.is_none() {
                let stream = driver.stack.connect(now, client.server)?;
                driver.stack.send(now, stream, &request)?;
                driver.stack.shutdown(now, stream);
                *slot = Some((stream, now));
            }
            let Some((stream, began)) = *slot else {
                continue;
            };
            driver.drain(now, stream, &mut chunk);
            if let Received::End = driver.stack.recv(now, stream, &mut chunk)? {
                took.push((now - began).as_secs_f64() * 1e3);
                driver.stack.release(now, stream);
                *slot = None;
            }
        }
        driver.transmit(now);
    }
    Ok(took)
}

impl<'a> Driver<'a> {
    fn new(link: &'a File, client: &Client) -> Self {
        let mut seed = [0; 32];
        os::random::fill(&mut seed);
        let mut stack = Stack::new(Config {
            addresses: vec![client.local],
            mtu: MTU,
            seed,
            limits: Limits {
                connections_max: 200_000,
                ..Limits::default()
            },
        });
        stack.set_default_congestion_control(client.control);
        Self {
            link,
            stack,
            clock: Clock::start(),
            held: VecDeque::new(),
            unfinished: false,
            out: vec![0; PACKET_MAX],
            packet: vec![0; PACKET_MAX],
            large: client.large,
            connected: 0,
        }
    }

    fn open_idle(&mut self, client: &Client, stop: &AtomicBool) -> Result<()> {
        let Some((server, count)) = client.idle else {
            return Ok(());
        };
        let mut opened = 0;
        while self.connected < count && !stop.load(Ordering::Relaxed) {
            let now = self.clock.now();
            while opened < count && opened - self.connected < OPENING {
                let mut server = server;
                server.set_port(server.port() + u16::try_from(opened / IDLE_EACH)?);
                self.stack.connect(now, server)?;
                opened += 1;
            }
            self.transmit(now);
            self.turn()?;
        }
        Ok(())
    }

    /// Waits for packets or the deadline, and takes them.
    fn turn(&mut self) -> Result<Instant> {
        let now = self.clock.now();
        let patience = now + Duration::from_millis(50);
        let until = self.stack.poll_timeout().unwrap_or(patience).min(patience);
        let wait = if !self.held.is_empty() {
            Duration::from_micros(50)
        } else if self.unfinished {
            Duration::ZERO
        } else {
            until.saturating_duration_since(now)
        };
        relay::wait(&[self.link], wait);
        let now = self.clock.now();
        for _ in 0..64 {
            match self.link.read(&mut self.packet) {
                Ok(length) => self.take(now, length)?,
                Err(_) => break,
            }
        }
        if self.stack.poll_timeout().is_some_and(|at| at <= now) {
            self.stack.handle_timeout(now);
        }
        while let Some(event) = self.stack.poll_event() {
            match event {
                Event::Connected(_) => self.connected += 1,
                Event::Closed(_, CloseReason::Finished) => {}
                Event::Closed(_, reason) => bail!("a connection ended: {reason}"),
                Event::Readable(_)
                | Event::Writable(_)
                | Event::Accepted(_)
                | Event::UdpReadable(_)
                | Event::UdpFailed(..)
                | Event::FlowOpened(_)
                | Event::FlowExpired(_)
                | Event::EchoRequested(_)
                | Event::EchoReply { .. }
                | Event::EchoFailed { .. } => {}
            }
        }
        Ok(now)
    }

    /// Takes what was read; what the stack discards is sent again.
    fn take(&mut self, now: Instant, length: usize) -> Result<()> {
        let packet = &mut self.packet[..length];
        if !self.large {
            let _ = self.stack.handle_packet(now, packet);
            return Ok(());
        }
        let Some((header, packet)) = packet.split_first_chunk_mut() else {
            bail!("no room for a virtio_net_hdr")
        };
        match vnet::parse(header) {
            Ok(vnet::Given::Whole) => {
                let _ = self.stack.handle_packet(now, packet);
            }
            // It never was on a wire.
            Ok(vnet::Given::Super { .. } | vnet::Given::Unsummed { .. }) => {
                let _ = self.stack.handle_merged(now, packet);
            }
            Err(malformed) => bail!("the TUN gave {malformed:?}"),
        }
        Ok(())
    }

    /// Sends what may be sent, within a bound.
    fn transmit(&mut self, now: Instant) {
        while let Some(packet) = self.held.front() {
            if is_full(self.link.write(packet)) {
                return;
            }
            self.held.pop_front();
        }
        self.unfinished = false;
        let mut writes = 0;
        while writes < WRITES_MAX {
            writes += 1;
            let (segments_max, start) = if self.large {
                (SEGMENTS_MAX, vnet::HEADER)
            } else {
                (RUN_MAX, 0)
            };
            let (header, out) = self.out.split_at_mut(start);
            match self.stack.poll_transmit_large(now, segments_max, out) {
                Some(Transmit::Packet(length)) => {
                    header.fill(0);
                    let packet = &self.out[..start + length];
                    if is_full(self.link.write(packet)) {
                        self.held.push_back(packet.to_vec());
                    }
                }
                Some(Transmit::Large(large)) if self.large => {
                    if is_full(write_large(self.link, &large)) {
                        self.held.push_back(copy_large(&large));
                    }
                }
                Some(Transmit::Large(mut large)) => {
                    // All of them first, so that the stack's data is not fetched anew after each.
                    let mut ends = [0; RUN_MAX + 1];
                    let mut count = 0;
                    while let Some(length) = large.next_into(&mut out[ends[count]..]) {
                        ends[count + 1] = ends[count] + length;
                        count += 1;
                    }
                    writes += count - 1;
                    for packet in ends[..=count].windows(2) {
                        let packet = &out[packet[0]..packet[1]];
                        if !self.held.is_empty() || is_full(self.link.write(packet)) {
                            self.held.push_back(packet.to_vec());
                        }
                    }
                }
                None => return,
            }
            if !self.held.is_empty() {
                return;
            }
        }
        self.unfinished = true;
    }

    fn fill(&mut self, now: Instant, stream: ConnectionId, chunk: &[u8]) -> u64 {
        while let Ok(1..) = self.stack.send(now, stream, chunk) {}
        0
    }

    fn drain(&mut self, now: Instant, stream: ConnectionId, chunk: &mut [u8]) -> u64 {
        let mut moved = 0;
        while let Ok(Received::Bytes(length)) = self.stack.recv(now, stream, chunk) {
            moved += length as u64;
        }
        moved
    }
}

/// Writes a run as one super-packet, without a copy.
fn write_large(mut link: &File, large: &Large<'_>) -> io::Result<usize> {
    let mut head = [0; 100];
    let offload = large.emit_head(&mut head);
    let header = vnet::emit(&offload, head[0] >> 4 == 6);
    // 64 KiB in pieces of 4 KiB, the first and last of which may be short.
    let mut slices = [IoSlice::new(&[]); 20];
    slices[0] = IoSlice::new(&header);
    slices[1] = IoSlice::new(&head[..offload.header_length]);
    let mut count = 2;
    for piece in large.pieces() {
        slices[count] = IoSlice::new(piece);
        count += 1;
    }
    link.write_vectored(&slices[..count])
}

/// Copies a run that the link has no room for.
fn copy_large(large: &Large<'_>) -> Vec<u8> {
    let mut out = vec![0; vnet::HEADER + 100];
    let offload = large.emit_head(&mut out[vnet::HEADER..]);
    let header = vnet::emit(&offload, out[vnet::HEADER] >> 4 == 6);
    out[..vnet::HEADER].copy_from_slice(&header);
    out.truncate(vnet::HEADER + offload.header_length);
    large.pieces().for_each(|piece| out.extend(piece));
    out
}

/// Whether a write has to come again; other errors cost a packet, as on any link.
fn is_full(written: io::Result<usize>) -> bool {
    written.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Returns the seconds of CPU that this thread has used in user mode.
pub(crate) fn user_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    Ok(usage.user_time().num_microseconds() as f64 / 1e6)
}
