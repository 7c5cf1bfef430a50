//! A TCP connection through the tunnel as an async byte stream, whoever speaks TCP for it.

pub(super) mod stack;

use std::{
    io,
    net::{Shutdown, SocketAddr},
    os::fd::AsFd as _,
    pin::Pin,
    task::{Context, Poll},
};

use netstack::{CongestionControl, Statistics};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net,
};

/// A TCP connection. Dropping it closes both directions; what was written is still delivered.
pub struct TcpStream(Stream);

enum Stream {
    /// Of the node's own stack.
    Stack(stack::TcpStream),
    /// Of the system, whose packets come through the TUN interface.
    System(System),
}

impl From<stack::TcpStream> for TcpStream {
    fn from(stream: stack::TcpStream) -> Self {
        Self(Stream::Stack(stream))
    }
}

impl From<System> for TcpStream {
    fn from(system: System) -> Self {
        Self(Stream::System(system))
    }
}

/// A connection of the system with its two ends.
pub(super) struct System {
    stream: net::TcpStream,
    local: SocketAddr,
    remote: SocketAddr,
}

impl System {
    /// Takes over a connection.
    pub(super) fn new(stream: net::TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            local: stream.local_addr()?,
            remote: stream.peer_addr()?,
            stream,
        })
    }

    async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }

    async fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn finish(&self) {
        // A second descriptor of the same connection: tokio's own shutdown wants it exclusively.
        let same = self.stream.as_fd().try_clone_to_owned();
        let ended = same.and_then(|same| std::net::TcpStream::from(same).shutdown(Shutdown::Write));
        if let Err(error) = ended {
            tracing::debug!(%error, "half-close");
        }
    }
}

impl TcpStream {
    /// Returns our address and port.
    pub fn local(&self) -> SocketAddr {
        match &self.0 {
            Stream::Stack(stream) => stream.local(),
            Stream::System(system) => system.local,
        }
    }

    /// Returns the peer's address and port.
    pub fn remote(&self) -> SocketAddr {
        match &self.0 {
            Stream::Stack(stream) => stream.remote(),
            Stream::System(system) => system.remote,
        }
    }

    /// Returns what the connection has measured and counted; `None` where the system speaks TCP,
    /// whose own tools tell it.
    pub fn statistics(&self) -> Option<Statistics> {
        match &self.0 {
            Stream::Stack(stream) => stream.statistics(),
            Stream::System(_) => None,
        }
    }

    /// Reads what has come, waiting for something; zero is the end.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            Stream::Stack(stream) => stream.recv(buffer).await,
            Stream::System(system) => system.recv(buffer).await,
        }
    }

    /// Writes all of `bytes`, waiting for room.
    pub async fn send_all(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.0 {
            Stream::Stack(stream) => stream.send_all(bytes).await,
            Stream::System(system) => system.send_all(bytes).await,
        }
    }

    /// Chooses how the connection finds out what it may send; it is CUBIC when new.
    ///
    /// Where the system speaks TCP, it decides what it offers; a failure changes nothing.
    pub fn set_congestion_control(&self, control: CongestionControl) -> io::Result<()> {
        match &self.0 {
            Stream::Stack(stream) => stream.set_congestion_control(control),
            Stream::System(system) => os::tcp::set_congestion_control(
                system.stream.as_fd(),
                match control {
                    CongestionControl::Cubic => "cubic",
                    CongestionControl::Bbr => "bbr",
                },
            ),
        }
    }

    /// Ends our direction; the other one goes on.
    pub fn finish(&self) {
        match &self.0 {
            Stream::Stack(stream) => stream.finish(),
            Stream::System(system) => system.finish(),
        }
    }

    /// Ends the connection with a RST.
    pub fn abort(self) {
        match &self.0 {
            Stream::Stack(stream) => stream.abort(),
            // The close that follows resets; without it the peer sees an ordinary end.
            Stream::System(system) => drop(system.stream.set_zero_linger()),
        }
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Stream::Stack(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::System(system) => Pin::new(&mut system.stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Stream::Stack(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::System(system) => Pin::new(&mut system.stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Stream::Stack(stream) => Pin::new(stream).poll_flush(context),
            Stream::System(system) => Pin::new(&mut system.stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Stream::Stack(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::System(system) => Pin::new(&mut system.stream).poll_shutdown(context),
        }
    }
}
