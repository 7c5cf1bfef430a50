//! The UDP sockets under the tunnel, one for each family, read and written in runs.

use std::{io, net::SocketAddr};

use anyhow::Context as _;
use os::udp::{Batch, Options, Pair, Parcel, SendError, Socket};
use tokio::io::{Interest, unix::AsyncFd};

use crate::Advised;

/// The sockets; a family that the machine lacks has none.
pub(super) struct Sockets {
    v4: Option<AsyncFd<Socket>>,
    v6: Option<AsyncFd<Socket>>,
}

/// Bytes that the kernel may queue in each direction: 25 ms at 1 Gbit/s, a little more than the
/// scheduler makes us wait.
const BUFFER: usize = 4 << 20;

impl Sockets {
    /// Binds to `local`; `[::]` stands for all addresses of both families, and port zero for one
    /// that the system chooses.
    pub(super) fn bind(local: SocketAddr, mark: Option<u32>) -> anyhow::Result<Self> {
        let options = Options {
            mark: mark.unwrap_or(0),
            buffer_bytes: BUFFER,
        };
        let bound = if local.is_ipv6() && local.ip().is_unspecified() {
            Pair::bind(local.port(), &options)
        } else {
            Socket::bind(local, &options).map(|socket| match local {
                SocketAddr::V4(_) => Pair {
                    v4: Some(socket),
                    v6: None,
                },
                SocketAddr::V6(_) => Pair {
                    v4: None,
                    v6: Some(socket),
                },
            })
        };
        let Pair { v4, v6 } = bound
            .with_context(|| format!("UDP: listen at {local}"))
            .map_err(|error| {
                let remedy = "if the port is in use, stop the other program or choose another port \
                              with ListenPort or --wireguard; FwMark needs root";
                Advised::new(error, remedy)
            })?;
        Ok(Self {
            v4: register(v4).context("UDP: register the socket")?,
            v6: register(v6).context("UDP: register the socket")?,
        })
    }

    /// Returns the port that was bound.
    pub(super) fn port(&self) -> u16 {
        let socket = self.v4.as_ref().or(self.v6.as_ref());
        socket.map_or(0, |socket| socket.get_ref().local_address().port())
    }

    /// Waits until there is something to receive.
    pub(super) async fn readable(&self) {
        tokio::select! {
            () = ready(self.v4.as_ref(), Interest::READABLE) => {}
            () = ready(self.v6.as_ref(), Interest::READABLE) => {}
        }
    }

    /// Waits until there is room to send to `destination`.
    pub(super) async fn writable(&self, destination: Option<SocketAddr>) {
        match destination {
            Some(SocketAddr::V4(_)) => ready(self.v4.as_ref(), Interest::WRITABLE).await,
            Some(SocketAddr::V6(_)) => ready(self.v6.as_ref(), Interest::WRITABLE).await,
            None => std::future::pending().await,
        }
    }

    /// Sends parcels with few calls; returns how many of the first ones are on their way, or why
    /// the first is not.
    pub(super) fn send(&self, parcels: &[Parcel<'_>]) -> Result<usize, SendError> {
        let Some(first) = parcels.first() else {
            return Ok(0);
        };
        let is_v4 = first.envelope.to.is_ipv4();
        let others = parcels
            .iter()
            .position(|one| one.envelope.to.is_ipv4() != is_v4);
        let parcels = &parcels[..others.unwrap_or(parcels.len())];
        self.send_by(is_v4, |socket| socket.send_parcels(parcels))
    }

    /// Sends a parcel of one datagram that nobody may fragment; returns one, or why it is not sent.
    pub(super) fn send_whole(&self, parcel: &Parcel<'_>) -> Result<usize, SendError> {
        let Parcel {
            envelope,
            datagrams: [datagram],
        } = parcel
        else {
            return self.send(&[*parcel]);
        };
        self.send_by(envelope.to.is_ipv4(), |socket| {
            socket.send_whole(envelope, datagram).map(|()| 1)
        })
    }

    fn send_by(
        &self,
        is_v4: bool,
        send: impl FnOnce(&Socket) -> Result<usize, SendError>,
    ) -> Result<usize, SendError> {
        let Some(socket) = (if is_v4 { &self.v4 } else { &self.v6 }) else {
            return Err(SendError::Unreachable);
        };
        let mut outcome = Err(SendError::WouldBlock);
        // Only a full queue is hidden here, so that the driver really waits for room.
        let tried = socket.try_io(Interest::WRITABLE, |socket| {
            outcome = send(socket);
            match outcome {
                Err(SendError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
                Ok(_) | Err(_) => Ok(()),
            }
        });
        tried.map_err(|_| SendError::WouldBlock).and(outcome)
    }

    /// Reads what has come into both families, one batch each, and hands every datagram to `take`;
    /// false when there was nothing.
    pub(super) fn receive(
        &self,
        batch: &mut Batch,
        mut take: impl FnMut(&mut Batch),
    ) -> io::Result<bool> {
        let mut any = false;
        for socket in [&self.v4, &self.v6].into_iter().flatten() {
            match socket.try_io(Interest::READABLE, |socket| socket.recv_batch(batch)) {
                Ok(_) => {
                    any = true;
                    take(batch);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(any)
    }
}

#[expect(
    deprecated,
    reason = "the socket owns its descriptor, which is what the successor asks"
)]
fn register(socket: Option<Socket>) -> io::Result<Option<AsyncFd<Socket>>> {
    socket.map(AsyncFd::new).transpose()
}

async fn ready(socket: Option<&AsyncFd<Socket>>, interest: Interest) {
    let waited = match socket {
        // An error is found again by the call that follows.
        Some(socket) => socket.ready(interest).await.map(drop),
        None => std::future::pending().await,
    };
    drop(waited);
}
