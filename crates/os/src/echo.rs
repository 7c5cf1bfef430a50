//! Echo requests over IPv6 by a socket of the system (RFC 4443, 4; `net/ipv6/ping.c`).

use std::{
    io::{self, Read as _},
    net::{Ipv6Addr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// A socket for echo requests to one machine; it does not block.
#[derive(Debug)]
pub struct Echo {
    socket: Socket,
    /// Of our requests, on a raw socket; `None` where the kernel sets it and sorts replies by it.
    identifier: Option<u16>,
}

/// The largest payload: what an IPv6 packet carries behind our header.
pub const PAYLOAD_MAX: usize = 65_535 - HEADER;

impl Echo {
    /// Makes the socket.
    ///
    /// Whom `ping_group_range` does not name needs CAP_NET_RAW; else `PermissionDenied`.
    pub fn connect(remote: Ipv6Addr) -> io::Result<Self> {
        let open = |kind| Socket::new(Domain::IPV6, kind, Some(Protocol::ICMPV6));
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
        crate::udp::set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
        let remote = SocketAddrV6::new(remote, 0, 0, 0);
        socket.connect(&SockAddr::from(remote))?;
        Ok(Self { socket, identifier })
    }

    /// Sends one request with `length` bytes of payload, at most [`PAYLOAD_MAX`].
    pub fn send(&self, sequence: u16, length: usize) -> io::Result<()> {
        let mut message = vec![0; HEADER + length.min(PAYLOAD_MAX)];
        // The kernel computes the checksum.
        message[0] = REQUEST;
        let identifier = self.identifier.unwrap_or_default();
        message[4..6].copy_from_slice(&identifier.to_be_bytes());
        message[6..8].copy_from_slice(&sequence.to_be_bytes());
        self.socket.send(&message).map(drop)
    }

    /// Reads until the reply to request `sequence`; `WouldBlock` when it has not come, another
    /// error when a machine on the way told that it will not.
    pub fn recv(&self, sequence: u16) -> io::Result<()> {
        let mut message = [0; HEADER];
        loop {
            // What does not fit is the payload, which says nothing.
            let length = (&self.socket).read(&mut message)?;
            if length == HEADER && self.is_reply(message, sequence) {
                return Ok(());
            }
        }
    }

    fn is_reply(&self, message: [u8; HEADER], sequence: u16) -> bool {
        let [kind, code, _, _, i, j, s, t] = message;
        let ours = u16::from_be_bytes([i, j]);
        kind == REPLY
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::poll::{Interest, wait_for};

    #[test]
    fn the_loopback_replies_to_each_request_of_its_own() {
        let [Ok(one), Ok(other)] = [(); 2].map(|()| Echo::connect(Ipv6Addr::LOCALHOST)) else {
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
            socket.recv(7).unwrap();
            let again = socket.recv(7).unwrap_err();
            assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
        }
    }
}
