//! UDP sockets that read and write many datagrams with one system call (udp(7), UDP_SEGMENT).

mod control;
mod probe;
mod receive;
mod send;
mod source;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU8,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
};

use socket2::{Domain, Protocol, Type};

pub(crate) use control::set_option;
pub use probe::{Runs, probe};
pub use receive::{Arrival, Batch, Datagram, Portions};
pub use send::{Envelope, Parcel, SendError};
pub use source::Sources;

/// How to set a socket up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The firewall mark of outgoing packets (SO_MARK); zero sets none. Others need
    /// CAP_NET_ADMIN.
    pub mark: u32,
    /// Bytes that the kernel may queue in each direction; zero leaves the system's default. What
    /// exceeds the system's limit is granted to root only.
    pub buffer_bytes: usize,
    /// Lets the kernel join no datagrams (UDP_GRO), where that is broken.
    pub singly: bool,
}

/// A UDP socket of one family; it does not block.
///
/// Its datagrams may be fragmented on their way, as those of the kernel's WireGuard: the packets
/// inside are already as small as the tunnel's MTU asks, and what is dropped for its size is
/// dropped without a word on many paths. [`Socket::send_whole`] finds out what passes without.
#[derive(Debug)]
pub struct Socket {
    socket: socket2::Socket,
    local: SocketAddr,
    /// Refusals of UDP_SEGMENT since its last success; from `REFUSALS_MAX` on it is not tried.
    refusals: AtomicU8,
    retired: AtomicBool,
}

/// A socket for each family on the same port; a family that this machine lacks has none.
#[derive(Debug)]
pub struct Pair {
    /// The socket for IPv4.
    pub v4: Option<Socket>,
    /// The socket for IPv6, and for IPv6 only.
    pub v6: Option<Socket>,
}

impl Socket {
    /// Binds to `local`; port zero takes a free one.
    pub fn bind(local: SocketAddr, options: &Options) -> io::Result<Self> {
        Self::open(local, options, false)
    }

    /// Binds another socket to the same address and port, which shares with the others what comes:
    /// by source until [`Socket::steer`].
    ///
    /// Other processes still find the port in use, unless they share it on purpose and belong to
    /// the same user.
    pub fn bind_beside(&self, options: &Options) -> io::Result<Self> {
        // Only now: the first socket had to find out whether the port is free.
        self.socket.set_reuse_port(true)?;
        Self::open(self.local, options, true)
    }

    /// Tells the sockets of one port apart, in the order in which they were bound: the first
    /// `shares` take what begins with the byte `first`, each always the same by the four bytes
    /// behind the first four; the next takes everything else, so that a flood of the one kind fills
    /// no queue of the other.
    ///
    /// Fails on kernels that cannot tell datagrams apart.
    pub fn steer(&self, first: u8, shares: NonZeroU8) -> io::Result<()> {
        control::steer(&self.socket, first, shares)
    }

    fn open(local: SocketAddr, options: &Options, reuse_port: bool) -> io::Result<Self> {
        let domain = Domain::for_address(local);
        let socket = socket2::Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if local.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if reuse_port {
            socket.set_reuse_port(true)?;
        }
        if options.mark != 0 {
            socket.set_mark(options.mark)?;
        }
        if options.buffer_bytes != 0 {
            set_buffers(&socket, options.buffer_bytes)?;
        }
        control::allow_fragments(&socket, local.is_ipv6(), true)?;
        control::request_all(&socket, local.is_ipv6(), !options.singly);
        socket.bind(&local.into())?;
        let local = socket
            .local_addr()?
            .as_socket()
            .ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            socket,
            local,
            refusals: AtomicU8::new(0),
            retired: AtomicBool::new(false),
        })
    }

    /// Returns the bound address with its port.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Sets the firewall mark of outgoing packets; zero removes it.
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.socket.set_mark(mark)
    }

    /// Lets [`Socket::wait_batch`] wait for datagrams, for a thread that does nothing else; the
    /// other calls still do not block.
    pub fn set_blocking(&self) -> io::Result<()> {
        self.socket.set_nonblocking(false)
    }

    /// Wakes whoever waits for datagrams, now and from now on: there will be none.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
        // A socket without a peer says ENOTCONN, yet is shut down (net/ipv4/af_inet.c).
        self.socket.shutdown(std::net::Shutdown::Both).ok();
    }

    /// Tells whether [`Socket::retire`] was called.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// Tells whether runs still leave with one system call.
    #[must_use]
    pub fn segments(&self) -> bool {
        self.refusals.load(Ordering::Relaxed) < REFUSALS_MAX
    }

    /// Switches segmentation by the kernel on or off.
    pub fn set_segments(&self, on: bool) {
        let refusals = if on { 0 } else { REFUSALS_MAX };
        self.refusals.store(refusals, Ordering::Relaxed);
    }
}

impl Pair {
    /// Binds both families to `port` on all addresses; zero takes one that both have free.
    ///
    /// Fails if a family that this machine has cannot be bound, or if it has neither.
    pub fn bind(port: u16, options: &Options) -> io::Result<Self> {
        let mut attempts = if port == 0 { ATTEMPTS } else { 1 };
        loop {
            attempts -= 1;
            match Self::bind_once(port, options) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 0 => {}
                bound => return bound,
            }
        }
    }

    fn bind_once(port: u16, options: &Options) -> io::Result<Self> {
        let any = (Ipv4Addr::UNSPECIFIED, port);
        let v4 = unless_absent(Socket::bind(any.into(), options))?;
        let port = v4.as_ref().map_or(port, |socket| socket.local.port());
        let any = (Ipv6Addr::UNSPECIFIED, port);
        let v6 = unless_absent(Socket::bind(any.into(), options))?;
        if v4.is_none() && v6.is_none() {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        }
        Ok(Self { v4, v6 })
    }

    /// Binds a pair beside this one, see [`Socket::bind_beside`].
    pub fn bind_beside(&self, options: &Options) -> io::Result<Self> {
        let beside = |socket: &Option<Socket>| {
            let bound = socket.as_ref().map(|one| one.bind_beside(options));
            bound.transpose()
        };
        Ok(Self {
            v4: beside(&self.v4)?,
            v6: beside(&self.v6)?,
        })
    }

    /// Tells the sockets of each family apart, see [`Socket::steer`].
    pub fn steer(&self, first: u8, shares: NonZeroU8) -> io::Result<()> {
        self.sockets()
            .try_for_each(|socket| socket.steer(first, shares))
    }

    /// Returns the port that both are bound to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.sockets()
            .map(|socket| socket.local.port())
            .next()
            .expect("`bind` made at least one")
    }

    /// Returns the sockets that there are.
    pub fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.v4.iter().chain(&self.v6)
    }

    /// Returns the socket that reaches `destination`.
    #[must_use]
    pub fn towards(&self, destination: SocketAddr) -> Option<&Socket> {
        if destination.is_ipv4() {
            self.v4.as_ref()
        } else {
            self.v6.as_ref()
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn unless_absent(bound: io::Result<Socket>) -> io::Result<Option<Socket>> {
    match bound {
        Ok(socket) => Ok(Some(socket)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => Ok(None),
            Some(_) | None => Err(error),
        },
    }
}

fn set_buffers(socket: &socket2::Socket, bytes: usize) -> io::Result<()> {
    // The forced sizes are root's; what everyone may have is set first and always works.
    socket.set_recv_buffer_size(bytes)?;
    socket.set_send_buffer_size(bytes)?;
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        set_option(
            socket,
            libc::SOL_SOCKET,
            option,
            i32::try_from(bytes).unwrap_or(i32::MAX),
        )
        .ok();
    }
    Ok(())
}

/// As many refusals of UDP_SEGMENT in a row end its use: one alone may be a matter of the path.
const REFUSALS_MAX: u8 = 8;
/// How often a free port of IPv4 is tried that may be taken in IPv6.
const ATTEMPTS: u32 = 100;
