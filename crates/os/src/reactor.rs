//! This crate's descriptors in tokio's event loop.

use std::{io, os::fd::AsRawFd};

use tokio::io::{Interest, unix::AsyncFd};

use crate::{echo, link, signal, terminal, tun, udp};

/// A descriptor that tokio watches; make and use it within a runtime.
#[derive(Debug)]
pub struct Watched<T: Descriptor>(AsyncFd<T>);

/// What can be watched: each owns one descriptor, the same as long as it lives, and does not
/// block. Closed to other crates, because [`Watched`] relies on it.
pub trait Descriptor: AsRawFd + sealed::Sealed {}

impl<T: Descriptor> Watched<T> {
    /// Starts watching.
    pub fn new(descriptor: T) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        // SAFETY: a `Descriptor` owns its descriptor and never closes or exchanges it before it
        // is dropped, which `AsyncFd` does after it has left the event loop.
        let watched = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
        Ok(Self(watched?))
    }

    /// Returns what is watched.
    pub fn get(&self) -> &T {
        self.0.get_ref()
    }

    /// Waits until there may be something to read; safe to cancel.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }

    /// Reads now, without asking the system when it is known that there is nothing.
    pub fn try_read<R>(&self, read: impl FnOnce(&T) -> io::Result<R>) -> io::Result<R> {
        self.0.try_io(Interest::READABLE, read)
    }

    /// Waits until `read` gives something else than `WouldBlock`; safe to cancel.
    pub async fn read<R>(&self, mut read: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        loop {
            let mut guard = self.0.readable().await?;
            if let Ok(result) = guard.try_io(|watched| read(watched.get_ref())) {
                return result;
            }
        }
    }

    /// Waits until `write` gives something else than `WouldBlock`; safe to cancel.
    pub async fn write<R>(&self, mut write: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        loop {
            let mut guard = self.0.writable().await?;
            if let Ok(result) = guard.try_io(|watched| write(watched.get_ref())) {
                return result;
            }
        }
    }
}

impl Watched<udp::Socket> {
    /// Waits for datagrams and reads them; see [`udp::Socket::recv_batch`].
    pub async fn recv_batch(&self, batch: &mut udp::Batch) -> io::Result<usize> {
        self.read(|socket| socket.recv_batch(batch)).await
    }

    /// Waits until the socket has room after a send said [`udp::SendError::WouldBlock`].
    ///
    /// `send` is called again until it says something else.
    pub async fn send<R>(
        &self,
        mut send: impl FnMut(&udp::Socket) -> Result<R, udp::SendError>,
    ) -> Result<R, udp::SendError> {
        let sent = self.write(|socket| match send(socket) {
            Err(udp::SendError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            other => Ok(other),
        });
        // The event loop is shutting down, which no retry mends.
        sent.await.unwrap_or(Err(udp::SendError::Denied))
    }
}

impl Descriptor for echo::Echo {}
impl Descriptor for udp::Socket {}
impl Descriptor for tun::Tun {}
impl Descriptor for link::Watch {}
impl Descriptor for signal::Termination {}
impl Descriptor for terminal::Pty {}

mod sealed {
    /// Keeps [`super::Descriptor`] closed.
    #[expect(
        unnameable_types,
        reason = "a trait that other crates cannot implement"
    )]
    pub trait Sealed {}
    impl Sealed for crate::echo::Echo {}
    impl Sealed for crate::udp::Socket {}
    impl Sealed for crate::tun::Tun {}
    impl Sealed for crate::link::Watch {}
    impl Sealed for crate::signal::Termination {}
    impl Sealed for crate::terminal::Pty {}
}
