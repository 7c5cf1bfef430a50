//! A TCP connection of the node's own stack as an async byte stream.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use netstack::{
    CloseReason, CongestionControl, ConnectionId, Received, RecvError, SendError, State, Statistics,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{Tunnel, core};

/// A TCP connection. Dropping it gives it back to the stack, which finishes the close by itself.
pub(crate) struct TcpStream {
    tunnel: Tunnel,
    id: ConnectionId,
    local: SocketAddr,
    remote: SocketAddr,
}

impl TcpStream {
    /// Takes over a connection of the stack.
    pub(crate) fn new(tunnel: &Tunnel, id: ConnectionId) -> Self {
        let mut turn = tunnel.turn();
        turn.streams.insert(id, core::Waiting::default());
        let unspecified = SocketAddr::from(([0; 4], 0));
        let local = turn.stack().local(id).unwrap_or(unspecified);
        let remote = turn.stack().remote(id).unwrap_or(unspecified);
        drop(turn);
        Self {
            tunnel: tunnel.clone(),
            id,
            local,
            remote,
        }
    }

    /// Returns our address and port.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Returns the peer's address and port.
    pub(crate) fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Returns what the connection has measured and counted.
    pub(super) fn statistics(&self) -> Option<Statistics> {
        self.tunnel.turn().stack().statistics(self.id)
    }

    /// Ready once the connection is established or has failed.
    pub(crate) fn poll_established(&self, context: &Context<'_>) -> Poll<Result<(), CloseReason>> {
        let mut turn = self.tunnel.turn();
        let stack = turn.stack();
        if let Some(reason) = stack.close_reason(self.id) {
            return Poll::Ready(Err(reason));
        }
        match stack.state(self.id) {
            Some(State::SynSent | State::SynReceived) => {
                let waiting = turn.streams.entry(self.id).or_default();
                waiting.write = Some(context.waker().clone());
                Poll::Pending
            }
            Some(_) => Poll::Ready(Ok(())),
            None => Poll::Ready(Err(CloseReason::Aborted)),
        }
    }
}

impl TcpStream {
    /// Reads what has come, waiting for something; zero is the end.
    pub(super) async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|context| self.poll_recv(context, buffer)).await
    }

    /// Writes all of `bytes`, waiting for room.
    pub(super) async fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = poll_fn(|context| self.poll_send(context, bytes)).await?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Chooses how the connection finds out what it may send.
    pub(super) fn set_congestion_control(&self, control: CongestionControl) -> io::Result<()> {
        let mut turn = self.tunnel.turn();
        let now = turn.now;
        let set = turn.stack().set_congestion_control(now, self.id, control);
        set.map_err(|_| io::ErrorKind::NotConnected.into())
    }

    /// Ends the connection at once with a RST.
    pub(super) fn abort(&self) {
        let mut turn = self.tunnel.turn();
        let now = turn.now;
        turn.stack().abort(now, self.id);
    }

    /// Ends our direction; the other one goes on.
    pub(super) fn finish(&self) {
        let mut turn = self.tunnel.turn();
        let now = turn.now;
        turn.stack().shutdown(now, self.id);
    }

    fn poll_recv(&self, context: &Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut turn = self.tunnel.turn();
        let now = turn.now;
        Poll::Ready(match turn.stack().recv(now, self.id, buffer) {
            Ok(Received::Bytes(length)) => Ok(length),
            Ok(Received::End) => Ok(0),
            Ok(Received::WouldBlock) => {
                let waiting = turn.streams.entry(self.id).or_default();
                waiting.read = Some(context.waker().clone());
                return Poll::Pending;
            }
            Err(RecvError::Stale) => Err(io::ErrorKind::NotConnected.into()),
            Err(RecvError::Closed(reason)) => Err(io_error(reason)),
        })
    }

    fn poll_send(&self, context: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut turn = self.tunnel.turn();
        let now = turn.now;
        Poll::Ready(match turn.stack().send(now, self.id, bytes) {
            Ok(0) => {
                let waiting = turn.streams.entry(self.id).or_default();
                waiting.write = Some(context.waker().clone());
                return Poll::Pending;
            }
            Ok(length) => Ok(length),
            Err(SendError::Stale) => Err(io::ErrorKind::NotConnected.into()),
            Err(SendError::ShutDown) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(SendError::Closed(reason)) => Err(io_error(reason)),
        })
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = ready!(self.poll_recv(context, buffer.initialize_unfilled()))?;
        buffer.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Every turn sends what may be sent.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        let mut turn = self.tunnel.turn();
        let now = turn.now;
        turn.streams.remove(&self.id);
        turn.stack().release(now, self.id);
    }
}

fn io_error(reason: CloseReason) -> io::Error {
    let kind = match reason {
        CloseReason::Finished => io::ErrorKind::BrokenPipe,
        CloseReason::Refused => io::ErrorKind::ConnectionRefused,
        CloseReason::Reset => io::ErrorKind::ConnectionReset,
        CloseReason::TimedOut => io::ErrorKind::TimedOut,
        CloseReason::Unreachable(_) => io::ErrorKind::HostUnreachable,
        CloseReason::Aborted => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, reason)
}
