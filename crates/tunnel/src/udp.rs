//! A UDP socket through the tunnel, whoever speaks UDP for it.

mod stack;

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::net;

use super::Tunnel;

/// A UDP socket with a port of its own. Dropping it gives the port back.
pub struct UdpSocket(Socket);

enum Socket {
    Stack(stack::UdpSocket),
    /// Bound to an address of the node, so that it is not heard outside the network.
    System {
        socket: net::UdpSocket,
        tunnel: Tunnel,
    },
}

impl UdpSocket {
    /// Makes a socket at `local`, whose address is one of the node's; port zero draws one.
    pub fn bind(tunnel: &Tunnel, local: SocketAddr) -> io::Result<Self> {
        if tunnel.interface().is_none() {
            let socket = stack::UdpSocket::bind(tunnel, local).map_err(io::Error::other)?;
            return Ok(Self(Socket::Stack(socket)));
        }
        if !tunnel
            .with(|node, _| node.addresses())
            .contains(&local.ip())
        {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        Self::system(tunnel, local)
    }

    /// Makes a socket that can talk to `remote`, at a port that is drawn.
    pub fn towards(tunnel: &Tunnel, remote: IpAddr) -> io::Result<Self> {
        if tunnel.interface().is_none() {
            let socket = stack::UdpSocket::towards(tunnel, remote).map_err(io::Error::other)?;
            return Ok(Self(Socket::Stack(socket)));
        }
        let mut addresses = tunnel.with(|node, _| node.addresses()).into_iter();
        let own = addresses
            .find(|own| own.is_ipv4() == remote.is_ipv4())
            .ok_or(io::ErrorKind::AddrNotAvailable)?;
        Self::system(tunnel, SocketAddr::new(own, 0))
    }

    fn system(tunnel: &Tunnel, local: SocketAddr) -> io::Result<Self> {
        let socket = std::net::UdpSocket::bind(local)?;
        socket.set_nonblocking(true)?;
        Ok(Self(Socket::System {
            socket: net::UdpSocket::from_std(socket)?,
            tunnel: tunnel.clone(),
        }))
    }

    /// Sends one datagram now, or not at all; never outside the network.
    pub fn send_to(&self, payload: &[u8], remote: SocketAddr) -> io::Result<()> {
        match &self.0 {
            Socket::Stack(socket) => socket.send_to(payload, remote).map_err(io::Error::other),
            Socket::System { socket, tunnel } => {
                let path = tunnel.with(|node, now| node.path(now, remote.ip()));
                path.ok_or(io::ErrorKind::NetworkUnreachable)?;
                socket.try_send_to(payload, remote).map(drop)
            }
        }
    }

    /// Waits for the next datagram: its length and who sent it.
    pub async fn recv_from(&self, buffer: &mut [u8]) -> (usize, SocketAddr) {
        match &self.0 {
            Socket::Stack(socket) => socket.recv_from(buffer).await,
            Socket::System { socket, .. } => loop {
                // An error is about an earlier datagram, and each is told once.
                match socket.recv_from(buffer).await {
                    Ok(received) => return received,
                    Err(error) => tracing::debug!(%error, "datagram"),
                }
            },
        }
    }
}
