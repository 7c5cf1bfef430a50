//! Accepting TCP connections from inside the tunnel, whoever speaks TCP for it.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    task::Poll,
};

use netstack::{ListenError, ListenerId};
use tokio::net;

use super::{
    TcpStream, Tunnel,
    stream::{System, stack},
};

/// Connections that wait to be accepted; at the bound a SYN is not answered.
const BACKLOG: usize = 128;

/// A listener at an address of the node. Dropping it stops listening and resets what waits.
pub struct TcpListener(Listener);

enum Listener {
    Stack {
        tunnel: Tunnel,
        id: ListenerId,
        local: SocketAddr,
    },
    /// Bound to an address of the node, so that it is not heard outside the network.
    System(net::TcpListener),
}

impl TcpListener {
    /// Listens at `local`, whose address is one of the node's.
    ///
    /// Port zero is refused with [`io::ErrorKind::InvalidInput`]: nobody could know whom to dial.
    pub fn bind(tunnel: &Tunnel, local: SocketAddr) -> io::Result<Self> {
        if local.port() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "port zero"));
        }
        if !tunnel
            .with(|node, _| node.addresses())
            .contains(&local.ip())
        {
            return Err(not_ours(local.ip()));
        }
        if tunnel.interface().is_some() {
            let listener = std::net::TcpListener::bind(local)?;
            listener.set_nonblocking(true)?;
            let listener = net::TcpListener::from_std(listener)?;
            return Ok(Self(Listener::System(listener)));
        }
        let mut turn = tunnel.turn();
        let id = turn.stack().listen(local, BACKLOG).map_err(io_error)?;
        turn.listeners.insert(id, None);
        drop(turn);
        let tunnel = tunnel.clone();
        Ok(Self(Listener::Stack { tunnel, id, local }))
    }

    /// Returns where it listens.
    pub fn local(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Listener::Stack { local, .. } => Ok(*local),
            Listener::System(listener) => listener.local_addr(),
        }
    }

    /// Waits for the next connection. Nothing is lost when the wait is given up.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        match &self.0 {
            Listener::Stack { tunnel, id, .. } => Ok(accept(tunnel, *id).await),
            Listener::System(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(TcpStream::from(System::new(stream)?))
            }
        }
    }
}

async fn accept(tunnel: &Tunnel, listener: ListenerId) -> TcpStream {
    let accepted = poll_fn(|context| {
        let mut turn = tunnel.turn();
        if let Some(connection) = turn.stack().accept(listener) {
            return Poll::Ready(connection);
        }
        let waker = Some(context.waker().clone());
        turn.listeners.insert(listener, waker);
        Poll::Pending
    });
    TcpStream::from(stack::TcpStream::new(tunnel, accepted.await))
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Stack { tunnel, id, .. } = self {
            let mut turn = tunnel.turn();
            let now = turn.now;
            turn.listeners.remove(id);
            turn.stack().release_listener(now, *id);
        }
    }
}

fn not_ours(address: IpAddr) -> io::Error {
    let message = format!("{address} is not an address of this node");
    io::Error::new(io::ErrorKind::AddrNotAvailable, message)
}

fn io_error(error: ListenError) -> io::Error {
    let kind = match error {
        ListenError::Address => io::ErrorKind::AddrNotAvailable,
        ListenError::InUse => io::ErrorKind::AddrInUse,
        ListenError::TooMany => io::ErrorKind::QuotaExceeded,
    };
    io::Error::new(kind, error)
}
