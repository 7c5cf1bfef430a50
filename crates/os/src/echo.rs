//! Echo requests by a socket of the system (RFC 792; RFC 4443, 4; `net/ipv4/ping.c`).

use std::{
    io::{self, IoSliceMut, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use packet::checksum::Sum;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// A socket for echo requests to one machine; it does not block.
#[derive(Debug)]
pub struct Echo {
    socket: Socket,
    /// Of our requests, on a raw socket; `None` where the kernel sets it and sorts replies by it.
    identifier: Option<u16>,
    v4: bool,
}

/// An ICMP error about a request (RFC 792; RFC 4443, 2.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Report {
    /// Who sent it.
    pub from: IpAddr,
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    errno: i32,
}

impl Report {
    /// Returns the error by which the system names it.
    #[must_use]
    pub fn error(&self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }

    fn of(beside: &ControlMessageOwned) -> Option<Self> {
        let (error, from) = if let ControlMessageOwned::Ipv4RecvErr(error, from) = beside {
            let from = u32::from_be((*from)?.sin_addr.s_addr);
            (error, Ipv4Addr::from_bits(from).into())
        } else if let ControlMessageOwned::Ipv6RecvErr(error, from) = beside {
            (error, Ipv6Addr::from((*from)?.sin6_addr.s6_addr).into())
        } else {
            return None;
        };
        Some(Self {
            from,
            kind: error.ee_type,
            code: error.ee_code,
            errno: i32::try_from(error.ee_errno).ok()?,
        })
    }
}

/// The largest payload: what an IP packet carries behind our header.
pub const PAYLOAD_MAX: usize = 65_535 - HEADER;

impl Echo {
    /// Makes the socket.
    ///
    /// Whom `ping_group_range` does not name needs CAP_NET_RAW; else `PermissionDenied`.
    pub fn connect(remote: IpAddr) -> io::Result<Self> {
        let v4 = remote.is_ipv4();
        let (domain, protocol) = if v4 {
            (Domain::IPV4, Protocol::ICMPV4)
        } else {
            (Domain::IPV6, Protocol::ICMPV6)
        };
        let open = |kind| Socket::new(domain, kind, Some(protocol));
        let (socket, identifier) = match open(Type::DGRAM) {
            Ok(socket) => (socket, None),
            Err(_) => {
                let mut identifier = [0; 2];
                crate::random::fill(&mut identifier);
                (open(Type::RAW)?, Some(u16::from_be_bytes(identifier)))
            }
        };
        socket.set_nonblocking(true)?;
        // Otherwise "no such machine" counts as a passing matter and is not told.
        let (level, option) = if v4 {
            (libc::IPPROTO_IP, libc::IP_RECVERR)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        };
        crate::udp::set_option(&socket, level, option, 1)?;
        socket.connect(&SockAddr::from(SocketAddr::new(remote, 0)))?;
        Ok(Self {
            socket,
            identifier,
            v4,
        })
    }

    /// Makes later requests go over so many hops at most.
    pub fn set_hop_limit(&self, hop_limit: u8) -> io::Result<()> {
        let hop_limit = hop_limit.into();
        if self.v4 {
            self.socket.set_ttl_v4(hop_limit)
        } else {
            self.socket.set_unicast_hops_v6(hop_limit)
        }
    }

    /// Takes the ICMP error about request `sequence` out of the queue of errors, and drops older
    /// ones; a raw socket hears those about requests of others too.
    fn report(&self, sequence: u16) -> Option<Report> {
        loop {
            let mut quote = [0; HEADER];
            let mut room = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
            let mut pieces = [IoSliceMut::new(&mut quote)];
            let (socket, flags) = (self.as_raw_fd(), MsgFlags::MSG_ERRQUEUE);
            let received = recvmsg::<()>(socket, &mut pieces, Some(&mut room), flags).ok()?;
            let report = received
                .cmsgs()
                .ok()?
                .find_map(|beside| Report::of(&beside));
            let [_, _, _, _, i, j, s, t] = quote;
            let theirs = |ours| ours != u16::from_be_bytes([i, j]);
            let other =
                u16::from_be_bytes([s, t]) != sequence || self.identifier.is_some_and(theirs);
            if report.is_some() && !other {
                return report;
            }
        }
    }

    /// Sends one request with `length` bytes of payload, at most [`PAYLOAD_MAX`].
    pub fn send(&self, sequence: u16, length: usize) -> io::Result<()> {
        let mut message = vec![0; HEADER + length.min(PAYLOAD_MAX)];
        message[0] = if self.v4 { REQUEST_V4 } else { REQUEST };
        let identifier = self.identifier.unwrap_or_default();
        message[4..6].copy_from_slice(&identifier.to_be_bytes());
        message[6..8].copy_from_slice(&sequence.to_be_bytes());
        if self.v4 {
            // Of IPv6 the kernel computes it, and of IPv4 unless the socket is raw.
            let checksum = Sum::default().add(&message).finish();
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        self.socket.send(&message).map(drop)
    }

    /// Reads until the reply to request `sequence`, or until a machine on the way tells that there
    /// will be none; `WouldBlock` when neither has come.
    pub fn recv(&self, sequence: u16) -> io::Result<Option<Report>> {
        let mut packet = [0; V4_HEADER_MAX + HEADER];
        loop {
            // What does not fit is payload, which says nothing.
            let length = match (&self.socket).read(&mut packet) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => match self.report(sequence) {
                    Some(report) => return Ok(Some(report)),
                    None if self.identifier.is_some() => continue,
                    None => return Err(error),
                },
            };
            // A raw socket of IPv4 gives the IP header too (RFC 791, 3.1: its length in words).
            let has_header = self.v4 && self.identifier.is_some();
            let at = if has_header {
                usize::from(packet[0] & 0xf) * 4
            } else {
                0
            };
            let message = packet[..length]
                .get(at..)
                .and_then(|rest| rest.first_chunk());
            if message.is_some_and(|message| self.is_reply(*message, sequence)) {
                return Ok(None);
            }
        }
    }

    fn is_reply(&self, message: [u8; HEADER], sequence: u16) -> bool {
        let [kind, code, _, _, i, j, s, t] = message;
        let ours = u16::from_be_bytes([i, j]);
        let reply = if self.v4 { REPLY_V4 } else { REPLY };
        kind == reply
            && code == 0
            && u16::from_be_bytes([s, t]) == sequence
            && self.identifier.is_none_or(|identifier| identifier == ours)
    }
}

impl AsFd for Echo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Echo {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

const HEADER: usize = 8;
const REQUEST: u8 = 128;
const REPLY: u8 = 129;
const REQUEST_V4: u8 = 8;
const REPLY_V4: u8 = 0;
/// The longest header of IPv4 (RFC 791, 3.1).
const V4_HEADER_MAX: usize = 60;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::poll::{Interest, wait_for};

    #[test]
    fn the_loopback_replies_to_each_request_of_its_own() {
        check(Ipv4Addr::LOCALHOST.into());
        check(Ipv6Addr::LOCALHOST.into());
    }

    fn check(remote: IpAddr) {
        let [Ok(one), Ok(other)] = [(); 2].map(|()| Echo::connect(remote)) else {
            println!("SKIPPED: no right to send echo requests");
            return;
        };
        let early = one.recv(1).unwrap_err();
        assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
        other.send(7, 56).unwrap();
        one.send(7, 1400).unwrap();
        for socket in [&one, &other] {
            let came = wait_for(socket.as_fd(), Interest::READ, Duration::from_secs(5));
            assert!(came.unwrap());
            assert_eq!(socket.recv(7).unwrap(), None);
            let again = socket.recv(7).unwrap_err();
            assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
        }
    }
}
