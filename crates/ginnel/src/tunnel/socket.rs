//! The UDP sockets under the tunnel: one for each family, read and written in batches.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::Context as _;
use tokio::net::UdpSocket;

use crate::remedy::Advise as _;

/// The sockets; a family that the machine lacks has none.
pub(super) struct Sockets {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

/// Datagrams that were read in one go.
pub(super) struct Inbox {
    buffer: Box<[u8]>,
    received: Vec<(SocketAddr, usize, usize)>,
}

impl Sockets {
    /// Binds both families to `port`, or to a port that the system chooses for zero.
    pub(super) fn bind(port: u16, _mark: Option<u32>) -> anyhow::Result<Self> {
        let bind = |address: SocketAddr| {
            let socket = std::net::UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        };
        let v4 = bind((Ipv4Addr::UNSPECIFIED, port).into())
            .with_context(|| format!("UDP: bind port {port}"))
            .remedy("another program has the port: stop it, or change ListenPort")?;
        let v6 = bind((Ipv6Addr::UNSPECIFIED, 0).into()).ok();
        Ok(Self { v4: Some(v4), v6 })
    }

    /// Returns the port that was bound.
    pub(super) fn port(&self) -> u16 {
        let socket = self.v4.as_ref().or(self.v6.as_ref());
        let address = socket.and_then(|socket| socket.local_addr().ok());
        address.map_or(0, |address| address.port())
    }

    pub(super) async fn readable(&self) {
        tokio::select! {
            _ = async { match &self.v4 { Some(s) => s.readable().await, None => std::future::pending().await } } => {}
            _ = async { match &self.v6 { Some(s) => s.readable().await, None => std::future::pending().await } } => {}
        }
    }

    pub(super) async fn writable(&self) {
        tokio::select! {
            _ = async { match &self.v4 { Some(s) => s.writable().await, None => std::future::pending().await } } => {}
            _ = async { match &self.v6 { Some(s) => s.writable().await, None => std::future::pending().await } } => {}
        }
    }

    pub(super) fn send(
        &self,
        run: &[u8],
        segment: usize,
        destination: SocketAddr,
    ) -> io::Result<()> {
        let socket = if destination.is_ipv4() {
            &self.v4
        } else {
            &self.v6
        };
        let Some(socket) = socket else {
            return Err(io::ErrorKind::NetworkUnreachable.into());
        };
        for datagram in run.chunks(segment) {
            socket.try_send_to(datagram, destination)?;
        }
        Ok(())
    }

    /// Reads a batch; false when there was nothing.
    pub(super) fn receive(&self, inbox: &mut Inbox) -> io::Result<bool> {
        inbox.received.clear();
        let mut used = 0;
        for socket in [&self.v4, &self.v6].into_iter().flatten() {
            while inbox.buffer.len() - used >= 65_536 {
                match socket.try_recv_from(&mut inbox.buffer[used..]) {
                    Ok((length, source)) => {
                        inbox.received.push((source, used, length));
                        used += length;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(!inbox.received.is_empty())
    }
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; 256 * 1024].into_boxed_slice(),
            received: Vec::new(),
        }
    }

    pub(super) fn each(&mut self, mut take: impl FnMut(SocketAddr, &mut [u8])) {
        for (source, start, length) in &self.received {
            take(*source, &mut self.buffer[*start..*start + *length]);
        }
    }
}
