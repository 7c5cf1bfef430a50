//! Reading: many datagrams at once, those of one sender joined by the kernel (UDP_GRO).

use std::{
    array, io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
    ptr,
    slice::{Chunks, ChunksMut},
};

use packet::ecn::Ecn;

use super::{
    Socket,
    control::{self, Beside, Control},
};

/// Datagrams read in one go; keeps its memory of half a megabyte.
pub struct Batch {
    payload: Box<[u8]>,
    /// One for each buffer; `None` was cut off.
    runs: Vec<Option<Run>>,
    truncated: u64,
}

/// A datagram in a [`Batch`].
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Who sent it.
    pub source: SocketAddr,
    /// The address it was sent to, from which an answer should go.
    pub local: Option<IpAddr>,
    /// What its sender and the routers on its way say about congestion.
    pub ecn: Ecn,
    /// The payload, to be changed in place.
    pub bytes: &'a mut [u8],
}

/// Datagrams of one sender that lie one behind the other in one buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    source: SocketAddr,
    local: Option<IpAddr>,
    ecn: Ecn,
    length: usize,
    /// All but the last have this size; never zero.
    segment: usize,
}

/// Datagrams of one sender, in the order of their arrival.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// Who sent them.
    pub source: SocketAddr,
    /// The address they were sent to, from which an answer should go.
    pub local: Option<IpAddr>,
    /// What their sender and the routers on their way say about congestion.
    pub ecn: Ecn,
    /// The payloads, one behind the other; nothing is one empty datagram.
    pub bytes: &'a mut [u8],
    /// All datagrams but the last have this length; at least 1.
    pub segment: usize,
}

/// The runs of a batch, to be handled a few at a time.
pub struct Portions<'a> {
    all: [Option<Arrival<'a>>; Socket::RUNS_MAX],
    taken: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            payload: vec![0; MESSAGES * BUFFER].into_boxed_slice(),
            runs: Vec::with_capacity(MESSAGES),
            truncated: 0,
        }
    }
}

impl Batch {
    /// Yields the datagrams in the order of their arrival, empty ones too.
    pub fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        let buffers = self.payload.chunks_mut(BUFFER);
        let runs = self.runs.iter().zip(buffers);
        runs.filter_map(|(run, buffer)| run.map(|run| run.split(buffer)))
            .flatten()
    }

    /// Yields the runs in the order of their arrival.
    pub fn arrivals(&mut self) -> impl Iterator<Item = Arrival<'_>> {
        let runs = self.runs.iter().zip(self.payload.chunks_mut(BUFFER));
        runs.filter_map(|(run, buffer)| {
            run.map(|run| Arrival {
                source: run.source,
                local: run.local,
                ecn: run.ecn,
                bytes: &mut buffer[..run.length],
                segment: run.segment,
            })
        })
    }

    /// Yields the runs in the order of their arrival, a few at a time.
    pub fn portions(&mut self) -> Portions<'_> {
        let mut arrivals = self.arrivals();
        Portions {
            all: array::from_fn(|_| arrivals.next()),
            taken: 0,
        }
    }

    /// Returns how many messages were lost since the last call because they, or what the kernel
    /// said about them, did not fit.
    pub fn take_truncated(&mut self) -> u64 {
        std::mem::take(&mut self.truncated)
    }
}

impl<'a> Portions<'a> {
    /// Returns the next runs, until they have so many datagrams or there are no more; `None` when
    /// all were returned.
    pub fn next(&mut self, datagrams: usize) -> Option<&mut [Option<Arrival<'a>>]> {
        let rest = &mut self.all[self.taken..];
        let mut found = 0;
        let end = rest.iter().position(|arrival| {
            found += arrival.as_ref().map_or(0, |run| run.datagrams().len());
            found >= datagrams
        });
        let portion = &mut rest[..end.map_or(Socket::RUNS_MAX - self.taken, |end| end + 1)];
        self.taken += portion.len();
        portion.iter().any(Option::is_some).then_some(portion)
    }
}

impl Arrival<'_> {
    /// Yields the datagrams, but no empty one.
    pub fn datagrams(&self) -> Chunks<'_, u8> {
        self.bytes.chunks(self.segment)
    }

    /// Yields the same, to be changed in place.
    pub fn datagrams_mut(&mut self) -> ChunksMut<'_, u8> {
        self.bytes.chunks_mut(self.segment)
    }
}

impl Run {
    /// Without a segment size that is shorter than the whole, the run is one datagram.
    pub(super) fn new(source: SocketAddr, length: usize, beside: Beside) -> Self {
        let segment = beside.segment;
        let segment = segment.filter(|segment| (1..length).contains(segment));
        Self {
            source,
            local: beside.local,
            ecn: beside.ecn,
            length,
            segment: segment.unwrap_or(length.max(1)),
        }
    }

    pub(super) fn split<'b>(
        self,
        buffer: &'b mut [u8],
    ) -> impl Iterator<Item = Datagram<'b>> + use<'b> {
        let empty: Option<&'b mut [u8]> = (self.length == 0).then_some(&mut []);
        let segments = buffer[..self.length].chunks_mut(self.segment);
        empty
            .into_iter()
            .chain(segments)
            .map(move |bytes| Datagram {
                source: self.source,
                local: self.local,
                ecn: self.ecn,
                bytes,
            })
    }
}

impl Socket {
    /// Reads what has arrived into `batch`, in place of what was there; `WouldBlock` if nothing
    /// has. Returns how many runs were read: fewer than [`Socket::RUNS_MAX`] means that the
    /// socket is empty.
    pub fn recv_batch(&self, batch: &mut Batch) -> io::Result<usize> {
        self.receive::<MESSAGES>(batch, libc::MSG_DONTWAIT)
    }

    /// Reads like [`Socket::recv_batch`] but waits for the first datagram, after
    /// [`Socket::set_blocking`]; returns at once when the socket is retired.
    pub fn wait_batch(&self, batch: &mut Batch) -> io::Result<usize> {
        self.receive::<MESSAGES>(batch, libc::MSG_WAITFORONE)
    }

    /// Reads like [`Socket::wait_batch`] but one run only, and does not look for another: for a
    /// socket that seldom has two.
    pub fn wait_run(&self, batch: &mut Batch) -> io::Result<usize> {
        self.receive::<1>(batch, 0)
    }

    /// Reads at most `ROOM` runs, for which it prepares no more than they need.
    fn receive<const ROOM: usize>(
        &self,
        batch: &mut Batch,
        flags: libc::c_int,
    ) -> io::Result<usize> {
        batch.runs.clear();
        // SAFETY: all zeros is a valid value of these three types of plain data.
        let mut addresses: [libc::sockaddr_storage; ROOM] = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut vectors: [libc::iovec; ROOM] = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; ROOM] = unsafe { std::mem::zeroed() };
        let mut controls = [Control::EMPTY; ROOM];
        let buffers = batch.payload.chunks_mut(BUFFER);
        let places = addresses.iter_mut().zip(&mut vectors).zip(&mut controls);
        for ((header, buffer), ((address, vector), control)) in
            headers.iter_mut().zip(buffers).zip(places)
        {
            vector.iov_base = buffer.as_mut_ptr().cast();
            vector.iov_len = buffer.len();
            let header = &mut header.msg_hdr;
            header.msg_name = ptr::from_mut(address).cast();
            header.msg_namelen = crate::link::socklen::<libc::sockaddr_storage>();
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = control.0.len();
        }
        let count = match &mut headers[..] {
            [header] => receive_one(self, header, flags)?,
            headers => receive_several(self, headers, flags)?,
        };
        for (header, address) in headers.iter().zip(&addresses).take(count) {
            // Without all control messages it is unknown where one datagram ends.
            let cut = header.msg_hdr.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
            batch.truncated += u64::from(cut);
            // SAFETY: the kernel has filled this header, and `controls` still lives.
            let beside = unsafe { control::parse(&header.msg_hdr) };
            let length = usize::try_from(header.msg_len).expect("32 bits fit");
            let source = socket_address(address).filter(|_| !cut);
            let run = source.map(|source| Run::new(source, length, beside));
            batch.runs.push(run);
        }
        Ok(count)
    }

    /// The most runs that one call of [`Socket::recv_batch`] reads.
    pub const RUNS_MAX: usize = MESSAGES;
}

/// Takes one by recvmsg(2), which costs less than recvmmsg(2) for one.
fn receive_one(
    socket: &Socket,
    header: &mut libc::mmsghdr,
    flags: libc::c_int,
) -> io::Result<usize> {
    // SAFETY: the header points to an address, a vector with its buffer, and a control buffer, all
    // exclusively borrowed by the caller through the call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header.msg_hdr, flags) };
    header.msg_len = u32::try_from(length).map_err(|_| io::Error::last_os_error())?;
    Ok(1)
}

fn receive_several(
    socket: &Socket,
    headers: &mut [libc::mmsghdr],
    flags: libc::c_int,
) -> io::Result<usize> {
    let room = libc::c_uint::try_from(headers.len()).expect("at most `MESSAGES`");
    // SAFETY: each header points to an address, a vector with its buffer, and a control buffer,
    // all exclusively borrowed by the caller through the call; no timeout is given.
    let count = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            room,
            flags,
            ptr::null_mut(),
        )
    };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn socket_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that a sockaddr_in lies in the storage, which is larger.
            let address = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = address.sin_addr.s_addr.to_ne_bytes();
            Some((ip, u16::from_be(address.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that a sockaddr_in6 lies in the storage, which is larger.
            let address = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            // The flow label belongs to a packet, not to a sender.
            let ip = address.sin6_addr.s6_addr.into();
            let port = u16::from_be(address.sin6_port);
            let scope = address.sin6_scope_id;
            Some(std::net::SocketAddrV6::new(ip, port, 0, scope).into())
        }
        _ => None,
    }
}

/// Runs in one system call: more gain nothing once each is 64 KiB.
const MESSAGES: usize = 8;
/// The most that the kernel joins, and more than any UDP payload.
const BUFFER: usize = 65_536;
