//! smoltcp with one socket, as a state machine: packets and time in, packets out.

use std::{collections::VecDeque, net::Ipv4Addr, time::Duration};

use smoltcp::{
    iface::{Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp,
    time::Instant as Micros,
    wire::{HardwareAddress, IpCidr},
};

pub(crate) const MTU: usize = 1_420;
pub(crate) const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const THEIRS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// smoltcp with one socket.
pub(crate) struct Theirs {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    queue: Queue,
}

impl Theirs {
    pub(crate) fn new(seed: u64) -> Self {
        let mut queue = Queue::default();
        let mut config = smoltcp::iface::Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut queue, Micros::ZERO);
        interface.update_ip_addrs(|own| {
            own.push(IpCidr::new(THEIRS.into(), 24))
                .expect("room for one address");
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; 64 << 10]);
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(tcp::Socket::new(buffer(), buffer()));
        Self {
            interface,
            sockets,
            handle,
            queue,
        }
    }

    pub(crate) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Opens its connection to us.
    pub(crate) fn connect(&mut self, port: u16) {
        let socket: &mut tcp::Socket<'_> = self.sockets.get_mut(self.handle);
        socket
            .connect(self.interface.context(), (OURS, port), 50_000)
            .expect("a free port");
    }

    /// Takes a packet, which [`Theirs::poll`] looks at.
    pub(crate) fn take(&mut self, packet: Vec<u8>) {
        self.queue.received.push_back(packet);
    }

    /// Acts on what has come and on time, and returns what it transmits.
    pub(crate) fn poll(&mut self, now: Micros) -> Vec<Vec<u8>> {
        self.interface.poll(now, &mut self.queue, &mut self.sockets);
        std::mem::take(&mut self.queue.sent)
    }

    /// Its next deadline, since the beginning of its time.
    pub(crate) fn poll_at(&mut self, now: Micros) -> Option<Duration> {
        let at = self.interface.poll_at(now, &self.sockets)?;
        Some(Duration::from_micros(
            u64::try_from(at.total_micros()).unwrap_or_default(),
        ))
    }
}

/// The packets before and behind smoltcp.
#[derive(Default)]
struct Queue {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Taken(Vec<u8>);
struct Given<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Taken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, act: F) -> R {
        act(&self.0)
    }
}

impl TxToken for Given<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, act: F) -> R {
        let mut packet = vec![0; length];
        let result = act(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Queue {
    type RxToken<'a> = Taken;
    type TxToken<'a> = Given<'a>;

    fn receive(&mut self, _: Micros) -> Option<(Taken, Given<'_>)> {
        let packet = self.received.pop_front()?;
        Some((Taken(packet), Given(&mut self.sent)))
    }

    fn transmit(&mut self, _: Micros) -> Option<Given<'_>> {
        Some(Given(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}
