//! smoltcp as the client, alone on a packet descriptor.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail};
use os::clock::Clock;
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp::{CongestionControl, Socket, SocketBuffer},
    time::Instant as Micros,
    wire::{HardwareAddress, IpCidr},
};

use crate::{
    MTU,
    kernel::Direction,
    ours::{CHUNK, Client, Usage, user_seconds},
    relay,
};

/// Bytes of each buffer: three times what the longest path holds. smoltcp does not grow them.
const BUFFER: usize = 4 << 20;

/// The first local port; each stream has its own.
const PORT: u16 = 49_152;

/// The link, one packet at a time.
struct Link<'a> {
    file: &'a File,
    received: Vec<u8>,
    /// A packet that the link did not take.
    held: Option<Vec<u8>>,
    /// Packets that this turn may still read.
    left: usize,
}

struct Taken<'l>(&'l [u8]);

struct Given<'l> {
    file: &'l File,
    held: &'l mut Option<Vec<u8>>,
}

impl RxToken for Taken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, act: F) -> R {
        act(self.0)
    }
}

impl TxToken for Given<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, act: F) -> R {
        let mut packet = [0; MTU];
        let result = act(&mut packet[..length]);
        let mut file = self.file;
        if let Err(error) = file.write(&packet[..length])
            && error.kind() == ErrorKind::WouldBlock
        {
            *self.held = Some(packet[..length].to_vec());
        }
        result
    }
}

impl Link<'_> {
    /// Whether the link takes a packet, after one that it did not take before.
    fn is_free(&mut self) -> bool {
        let mut file = self.file;
        let full = |packet: &Vec<u8>| {
            let error = file.write(packet).err();
            error.is_some_and(|error| error.kind() == ErrorKind::WouldBlock)
        };
        self.held = self.held.take().filter(full);
        self.held.is_none()
    }
}

impl Device for Link<'_> {
    type RxToken<'l>
        = Taken<'l>
    where
        Self: 'l;
    type TxToken<'l>
        = Given<'l>
    where
        Self: 'l;

    fn receive(&mut self, _: Micros) -> Option<(Taken<'_>, Given<'_>)> {
        if self.left == 0 || !self.is_free() {
            return None;
        }
        self.left -= 1;
        let mut file = self.file;
        let length = file.read(&mut self.received).ok()?;
        let given = Given {
            file: self.file,
            held: &mut self.held,
        };
        Some((Taken(&self.received[..length]), given))
    }

    fn transmit(&mut self, _: Micros) -> Option<Given<'_>> {
        self.is_free().then_some(Given {
            file: self.file,
            held: &mut self.held,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

/// Runs the client's streams until told to stop, as [`ours::run`](crate::ours::run) does.
pub(crate) fn run(
    file: &File,
    client: &Client,
    ready: &AtomicBool,
    stop: &AtomicBool,
    received: &Arc<AtomicU64>,
) -> Result<Usage> {
    let mut clock = Clock::start();
    let epoch = clock.now();
    let mut link = Link {
        file,
        received: vec![0; MTU],
        held: None,
        left: 0,
    };
    let (IpAddr::V4(local), SocketAddr::V4(server)) = (client.local, client.server) else {
        bail!("the paths are IPv4")
    };
    let mut interface = interface(local, &mut link)?;
    let mut sockets = SocketSet::new(Vec::new());
    let mut streams = Vec::new();
    for port in (PORT..).take(client.streams) {
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_congestion_control(CongestionControl::Cubic);
        socket.connect(interface.context(), server, port)?;
        streams.push(sockets.add(socket));
    }
    ready.store(true, Ordering::Relaxed);
    let begin = user_seconds()?;
    let mut chunk = vec![0x67; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        let now = micros(clock.now() - epoch)?;
        relay::wait(&[file], patience(&mut interface, &sockets, &link, now));
        link.left = 64;
        let now = micros(clock.now() - epoch)?;
        interface.poll(now, &mut link, &mut sockets);
        for &stream in &streams {
            let moved = turn(&mut sockets, stream, client.direction, &mut chunk)?;
            received.fetch_add(moved, Ordering::Relaxed);
        }
        interface.poll_egress(now, &mut link, &mut sockets);
    }
    Ok(Usage {
        user: user_seconds()? - begin,
        received: received.load(Ordering::Relaxed),
    })
}

fn interface(local: Ipv4Addr, link: &mut Link<'_>) -> Result<Interface> {
    let mut config = Config::new(HardwareAddress::Ip);
    let mut seed = [0; 8];
    os::random::fill(&mut seed);
    config.random_seed = u64::from_ne_bytes(seed);
    let mut interface = Interface::new(config, link, Micros::ZERO);
    let mut room = Ok(());
    interface.update_ip_addrs(|own| room = own.push(IpCidr::new(local.into(), 24)));
    if room.is_err() {
        bail!("smoltcp has no room for an address");
    }
    let router = Ipv4Addr::from_bits(local.to_bits() ^ 1);
    interface.routes_mut().add_default_ipv4_route(router)?;
    Ok(interface)
}

fn buffer() -> SocketBuffer<'static> {
    SocketBuffer::new(vec![0; BUFFER])
}

/// How long nothing is due, if nothing arrives.
fn patience(
    interface: &mut Interface,
    sockets: &SocketSet<'_>,
    link: &Link<'_>,
    now: Micros,
) -> Duration {
    if link.held.is_some() {
        return Duration::from_micros(50);
    }
    let most = Duration::from_millis(50);
    let due = interface.poll_delay(now, sockets);
    due.map_or(most, |due| Duration::from(due).min(most))
}

/// Moves what one stream can move now; returns how many octets were received.
fn turn(
    sockets: &mut SocketSet<'_>,
    stream: SocketHandle,
    direction: Direction,
    chunk: &mut [u8],
) -> Result<u64> {
    let socket = sockets.get_mut::<Socket<'_>>(stream);
    let mut moved = 0;
    match direction {
        Direction::Up => while socket.can_send() && socket.send_slice(chunk)? > 0 {},
        Direction::Down => {
            while socket.can_recv() {
                moved += socket.recv_slice(chunk)? as u64;
            }
        }
    }
    Ok(moved)
}

fn micros(since: Duration) -> Result<Micros> {
    Ok(Micros::from_micros(i64::try_from(since.as_micros())?))
}
