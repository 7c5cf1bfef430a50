//! Writing: single datagrams, and runs that the kernel or the network card cuts (UDP_SEGMENT).

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
    sync::atomic::Ordering,
};

use packet::ecn::Ecn;
use smallvec::SmallVec;
use thiserror::Error;

use super::{
    REFUSALS_MAX, Socket,
    control::{self, Control},
};

/// What stands in the outer header of a datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Envelope {
    /// Where it goes.
    pub to: SocketAddr,
    /// Our address that it leaves from; otherwise routing chooses.
    pub from: Option<IpAddr>,
    /// Whether routers may mark it instead of dropping it.
    pub ecn: Ecn,
}

/// Datagrams for one destination, each in a place of its own: all have one length, and the last may
/// be shorter.
#[derive(Clone, Copy, Debug)]
pub struct Parcel<'a> {
    /// What each has outside.
    pub envelope: Envelope,
    /// At least one and at most [`Socket::PARCEL_MAX`], of [`Socket::PARCEL_BYTES_MAX`] together.
    pub datagrams: &'a [IoSlice<'a>],
}

/// Why a datagram was not sent.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum SendError {
    /// The socket's queue is full; wait until it is writable.
    #[error("the socket's queue is full")]
    WouldBlock,
    /// The system has no memory for it now (ENOBUFS, ENOMEM).
    #[error("no buffer space")]
    NoBuffers,
    /// It is larger than the path or UDP can carry (EMSGSIZE).
    #[error("datagram too long for the path")]
    TooLong,
    /// No route, no neighbour, or no network (ENETUNREACH, EHOSTUNREACH, ENETDOWN).
    #[error("destination unreachable")]
    Unreachable,
    /// The destination has no such port (ECONNREFUSED).
    #[error("connection refused")]
    Refused,
    /// A firewall or a policy forbids it (EPERM, EACCES).
    #[error("not permitted")]
    Denied,
    /// The address it should leave from is no longer ours; choose none and send again.
    #[error("source address is gone")]
    SourceGone,
    /// Another error, by its number.
    #[error("error {0}")]
    Failed(i32),
}

impl Envelope {
    /// Leaves everything but the destination to the system.
    #[must_use]
    pub fn to(to: SocketAddr) -> Self {
        Self {
            to,
            from: None,
            ecn: Ecn::NotEct,
        }
    }
}

impl Socket {
    /// Sends one datagram.
    pub fn send(&self, envelope: &Envelope, bytes: &[u8]) -> Result<(), SendError> {
        self.send_message(envelope, bytes, None)
            .map_err(|errno| classify(errno, envelope.from))
    }

    /// Sends one datagram that nobody may fragment, to see whether the path carries it; what is too
    /// long for the first link is [`SendError::TooLong`] at once. What another thread sends by the
    /// same socket meanwhile is not fragmented either.
    pub fn send_whole(&self, envelope: &Envelope, bytes: &[u8]) -> Result<(), SendError> {
        let failed = |error: io::Error| SendError::Failed(error.raw_os_error().unwrap_or(0));
        let v6 = self.local.is_ipv6();
        control::allow_fragments(&self.socket, v6, false).map_err(failed)?;
        let sent = self.send(envelope, bytes);
        control::allow_fragments(&self.socket, v6, true).map_err(failed)?;
        sent
    }

    /// Sends `bytes` as datagrams of `segment` bytes each, of which the last may be shorter.
    ///
    /// Returns how many bytes are on their way, a multiple of `segment` unless all are; call again
    /// with the rest. A run that the kernel or the card refuses to cut is sent datagram by
    /// datagram at once: it is not lost. A socket that only meets refusals asks no more.
    pub fn send_run(
        &self,
        envelope: &Envelope,
        bytes: &[u8],
        segment: usize,
    ) -> Result<usize, SendError> {
        let segment = segment.max(1);
        let mut sent = 0;
        while sent < bytes.len() {
            let rest = &bytes[sent..];
            let result = if rest.len() > segment && self.segments() {
                self.send_segmented(envelope, rest, segment)
            } else {
                self.send_each(envelope, rest, segment)
            };
            match result {
                Ok(length) => sent += length,
                Err(errno) if sent == 0 => return Err(classify(errno, envelope.from)),
                Err(_) => break,
            }
        }
        Ok(sent)
    }

    /// The most datagrams in one parcel: `UDP_MAX_SEGMENTS` of Linux before 6.9.
    pub const PARCEL_MAX: usize = SEGMENTS_MAX;

    /// The most bytes in one parcel of more than one datagram.
    pub const PARCEL_BYTES_MAX: usize = RUN_BYTES_MAX;

    /// Sends parcels with as few system calls as the kernel allows.
    ///
    /// Returns how many are on their way, at least one, or why the first is not; call again with
    /// the rest, or without the first. As with [`Socket::send_run`], a parcel that the kernel
    /// refuses to cut is sent datagram by datagram.
    pub fn send_parcels(&self, parcels: &[Parcel<'_>]) -> Result<usize, SendError> {
        let Some(first) = parcels.first() else {
            return Ok(0);
        };
        if first.datagrams.len() > 1 && !self.segments() {
            let sent = self.send_singly(first);
            return sent
                .map(|()| 1)
                .map_err(|errno| classify(errno, first.envelope.from));
        }
        match self.send_messages(parcels) {
            Ok(sent) => {
                let whole = &parcels[..sent];
                if whole.iter().any(|parcel| parcel.datagrams.len() > 1) {
                    self.refusals.store(0, Ordering::Relaxed);
                }
                Ok(sent)
            }
            Err(errno) => {
                let cut = first.datagrams.len() > 1;
                let sent = match Refusal::of(errno).filter(|_| cut) {
                    // What fails one by one too says nothing about segmentation.
                    Some(refusal) => self.send_singly(first).map(|()| self.count(refusal)),
                    None => Err(errno),
                };
                sent.map(|()| 1)
                    .map_err(|errno| classify(errno, first.envelope.from))
            }
        }
    }

    /// Sends each parcel as one message; those behind the first that was not sent are not tried.
    fn send_messages(&self, parcels: &[Parcel<'_>]) -> Result<usize, i32> {
        let segments = self.segments();
        let parcels = parcels.iter().take(MESSAGES_MAX);
        let parcels = parcels.take_while(|parcel| segments || parcel.datagrams.len() == 1);
        let addresses: Several<_> = parcels
            .clone()
            .map(|parcel| socket2::SockAddr::from(parcel.envelope.to))
            .collect();
        let mut controls: Several<_> = addresses.iter().map(|_| Control::EMPTY).collect();
        let mut headers: Several<libc::mmsghdr> = Several::new();
        for ((parcel, address), control) in parcels.zip(&addresses).zip(&mut controls) {
            // SAFETY: all zeros is a valid mmsghdr.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            let message = &mut header.msg_hdr;
            message.msg_name = address.as_ptr().cast_mut().cast();
            message.msg_namelen = address.len();
            // An IoSlice has the layout of an iovec.
            message.msg_iov = parcel.datagrams.as_ptr().cast_mut().cast();
            message.msg_iovlen = parcel.datagrams.len();
            let size = parcel
                .datagrams
                .first()
                .filter(|_| parcel.datagrams.len() > 1);
            let size = size.map(|first| u16::try_from(first.len()).unwrap_or(u16::MAX));
            control::emit(message, control, &parcel.envelope, size);
            headers.push(header);
        }
        let count = libc::c_uint::try_from(headers.len()).expect("at most `MESSAGES_MAX`");
        loop {
            // SAFETY: each header points to its address, its control messages and the vectors of
            // its parcel with their bytes, which live through the call and are only read.
            let sent =
                unsafe { libc::sendmmsg(self.as_raw_fd(), headers.as_mut_ptr(), count, FLAGS) };
            match usize::try_from(sent) {
                Ok(sent) => return Ok(sent),
                Err(_) => match last_errno() {
                    libc::EINTR => {}
                    errno => return Err(errno),
                },
            }
        }
    }

    fn send_singly(&self, parcel: &Parcel<'_>) -> Result<(), i32> {
        let single = |datagram| Parcel {
            datagrams: std::slice::from_ref(datagram),
            ..*parcel
        };
        let singles: Several<_> = parcel.datagrams.iter().map(single).collect();
        let mut sent = 0;
        while sent < singles.len() {
            match self.send_messages(&singles[sent..]) {
                Ok(count) => sent += count,
                Err(errno) if sent == 0 => return Err(errno),
                // The rest is lost, as on any network.
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn send_segmented(
        &self,
        envelope: &Envelope,
        bytes: &[u8],
        segment: usize,
    ) -> Result<usize, i32> {
        let count = (RUN_BYTES_MAX / segment).min(SEGMENTS_MAX);
        let (Ok(size), true) = (u16::try_from(segment), count > 1) else {
            return self.send_each(envelope, bytes, segment);
        };
        let run = &bytes[..bytes.len().min(count * segment)];
        match self.send_message(envelope, run, Some(size)) {
            Ok(()) => {
                self.refusals.store(0, Ordering::Relaxed);
                Ok(run.len())
            }
            Err(errno) => {
                let refusal = Refusal::of(errno).ok_or(errno)?;
                // What fails one by one too says nothing about segmentation.
                let sent = self.send_each(envelope, run, segment)?;
                self.count(refusal);
                Ok(sent)
            }
        }
    }

    fn count(&self, refusal: Refusal) {
        match refusal {
            Refusal::Final => self.set_segments(false),
            Refusal::Suspicious => {
                // Another thread may have counted meanwhile; the bound is only approximate.
                let refusals = self.refusals.load(Ordering::Relaxed).saturating_add(1);
                self.refusals
                    .store(refusals.min(REFUSALS_MAX), Ordering::Relaxed);
            }
            Refusal::PathTooSmall => {}
        }
    }

    fn send_message(
        &self,
        envelope: &Envelope,
        bytes: &[u8],
        segment: Option<u16>,
    ) -> Result<(), i32> {
        let address = socket2::SockAddr::from(envelope.to);
        let mut control = Control::EMPTY;
        let mut vector = vector_of(bytes);
        // SAFETY: all zeros is a valid msghdr.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        address_to(&mut header, &address, &mut vector);
        control::emit(&mut header, &mut control, envelope, segment);
        loop {
            // SAFETY: the header points to `address`, `vector`, `bytes` and `control`, which live
            // through the call and are only read.
            let sent = unsafe { libc::sendmsg(self.as_raw_fd(), &raw const header, FLAGS) };
            if sent >= 0 {
                return Ok(());
            }
            match last_errno() {
                libc::EINTR => {}
                errno => return Err(errno),
            }
        }
    }

    /// Sends up to `SEGMENTS_MAX` datagrams with one call that does not need segmentation.
    fn send_each(&self, envelope: &Envelope, bytes: &[u8], segment: usize) -> Result<usize, i32> {
        if bytes.len() <= segment {
            return self
                .send_message(envelope, bytes, None)
                .map(|()| bytes.len());
        }
        let address = socket2::SockAddr::from(envelope.to);
        let mut control = Control::EMPTY;
        // SAFETY: all zeros is a valid mmsghdr.
        let mut first: libc::mmsghdr = unsafe { std::mem::zeroed() };
        control::emit(&mut first.msg_hdr, &mut control, envelope, None);
        let mut vectors: Several<_> = bytes
            .chunks(segment)
            .take(SEGMENTS_MAX)
            .map(vector_of)
            .collect();
        let mut headers: Several<_> = vectors
            .iter_mut()
            .map(|vector| {
                let mut header = first;
                address_to(&mut header.msg_hdr, &address, vector);
                header
            })
            .collect();
        let count = libc::c_uint::try_from(headers.len()).expect("at most `SEGMENTS_MAX`");
        // SAFETY: each header points to `address`, its vector, a part of `bytes` and `control`
        // (one for all), which live through the call and are only read.
        let sent = unsafe { libc::sendmmsg(self.as_raw_fd(), headers.as_mut_ptr(), count, FLAGS) };
        match usize::try_from(sent) {
            Ok(sent) => Ok(bytes.len().min(sent * segment)),
            Err(_) => Err(last_errno()),
        }
    }
}

fn vector_of(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

fn address_to(header: &mut libc::msghdr, to: &socket2::SockAddr, vector: &mut libc::iovec) {
    header.msg_name = to.as_ptr().cast_mut().cast();
    header.msg_namelen = to.len();
    header.msg_iov = vector;
    header.msg_iovlen = 1;
}

/// What a refused run says about the next one (`udp_send_skb`, net/ipv4/udp.c).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// The device has no checksum offload, or the kernel cannot.
    Final,
    /// Kernels before 6.14 say the same for a path whose MTU is below the segment, which is no
    /// reason to give up for the other destinations; a socket that never succeeds is.
    Suspicious,
    /// The MTU of this path is below the segment: single datagrams are fragmented.
    PathTooSmall,
}

impl Refusal {
    pub(super) fn of(errno: i32) -> Option<Self> {
        match errno {
            libc::EIO | libc::EOPNOTSUPP => Some(Self::Final),
            libc::EINVAL => Some(Self::Suspicious),
            libc::EMSGSIZE => Some(Self::PathTooSmall),
            _ => None,
        }
    }
}

pub(super) fn classify(errno: i32, from: Option<IpAddr>) -> SendError {
    match errno {
        libc::EAGAIN => SendError::WouldBlock,
        libc::ENOBUFS | libc::ENOMEM => SendError::NoBuffers,
        libc::EMSGSIZE => SendError::TooLong,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::ENODEV
            if from.is_none() =>
        {
            SendError::Unreachable
        }
        // Routing by a source that has moved fails in any of these ways.
        libc::ENETUNREACH
        | libc::EHOSTUNREACH
        | libc::ENETDOWN
        | libc::ENODEV
        | libc::EINVAL
        | libc::EADDRNOTAVAIL
            if from.is_some() =>
        {
            SendError::SourceGone
        }
        libc::ECONNREFUSED => SendError::Refused,
        libc::EPERM | libc::EACCES => SendError::Denied,
        other => SendError::Failed(other),
    }
}

fn last_errno() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// What one call has, on the stack.
type Several<T> = SmallVec<[T; MESSAGES_MAX]>;
/// One call sends no more messages; the kernel allows 1,024.
const MESSAGES_MAX: usize = 64;
const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
/// `UDP_MAX_SEGMENTS` of Linux before 6.9, which allows 128.
const SEGMENTS_MAX: usize = 64;
/// The payload of the largest UDP packet over IPv4, less the room of IPv6's header.
const RUN_BYTES_MAX: usize = 65_507 - 20;
