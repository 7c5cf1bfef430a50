//! The UDP sockets under the tunnel, one for each family, read and written in runs, and those
//! beside them by which handshake messages come.

use std::{io, net::SocketAddr, num::NonZeroU8};

use anyhow::Context as _;
use os::udp::{Batch, Options, Pair, Parcel, SendError, Socket};
use tokio::io::{Interest, unix::AsyncFd};

use crate::Advised;

/// The sockets of one port.
pub(super) struct Sockets {
    /// Everything is sent from these.
    data: Registered,
    /// Handshake messages arrive here, so that a flood of them fills no queue of data; without
    /// these, on old kernels, all arrive together.
    handshakes: Option<Registered>,
}

/// The sockets of both families; one that the machine lacks has none.
struct Registered {
    v4: Option<AsyncFd<Socket>>,
    v6: Option<AsyncFd<Socket>>,
}

/// Bytes that the kernel may queue in each direction: 25 ms at 1 Gbit/s, a little more than the
/// scheduler makes us wait.
const BUFFER: usize = 4 << 20;
/// About 2,000 handshake messages, of which the kernel counts more than the payload: so many peers
/// may answer at once after a restart, and so many come while the first hundred of a flood are
/// still computed. The rest of a flood is lost.
const HANDSHAKE_BUFFER: usize = 1 << 20;
/// The message type that all datagrams but those of a handshake begin with (whitepaper 5.4.6).
const TRANSPORT_DATA: u8 = 4;

impl Sockets {
    /// Binds to `local`; `[::]` stands for all addresses of both families, and port zero for one
    /// that the system chooses.
    pub(super) fn bind(local: SocketAddr, mark: Option<u32>) -> anyhow::Result<Self> {
        let options = Options {
            mark: mark.unwrap_or(0),
            buffer_bytes: BUFFER,
            singly: false,
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
        let data = bound
            .with_context(|| format!("UDP: listen at {local}"))
            .map_err(|error| {
                let remedy = "if the port is in use, stop the other program or choose another port \
                              with ListenPort or --wireguard; FwMark needs root";
                Advised::new(error, remedy)
            })?;
        let handshakes = beside(&data, options.mark);
        if let Err(error) = &handshakes {
            tracing::debug!(%error, "handshakes and data arrive at one socket");
        }
        let handshakes = handshakes.ok().map(Registered::new).transpose();
        Ok(Self {
            data: Registered::new(data).context("UDP: register the socket")?,
            handshakes: handshakes.context("UDP: register the socket")?,
        })
    }

    /// Tells whether handshake messages come by sockets of their own.
    pub(super) fn are_apart(&self) -> bool {
        self.handshakes.is_some()
    }

    /// Returns the port that was bound.
    pub(super) fn port(&self) -> u16 {
        let socket = self.data.v4.as_ref().or(self.data.v6.as_ref());
        socket.map_or(0, |socket| socket.get_ref().local_address().port())
    }

    /// Waits until there is something to receive.
    pub(super) async fn readable(&self) {
        self.data.readable().await;
    }

    /// Waits until there is a handshake message to receive; for ever where all arrive together.
    pub(super) async fn handshakes_readable(&self) {
        match &self.handshakes {
            Some(sockets) => sockets.readable().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until there is room to send to `destination`.
    pub(super) async fn writable(&self, destination: Option<SocketAddr>) {
        match destination {
            Some(SocketAddr::V4(_)) => ready(self.data.v4.as_ref(), Interest::WRITABLE).await,
            Some(SocketAddr::V6(_)) => ready(self.data.v6.as_ref(), Interest::WRITABLE).await,
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
        self.send_by(is_v4, |socket| {
            let sent_runs = socket.segments();
            let sent = socket.send_parcels(parcels);
            if sent_runs && !socket.segments() {
                tracing::warn!("runs of datagrams are refused, now sent singly");
            }
            sent
        })
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
        let Registered { v4, v6 } = &self.data;
        let Some(socket) = (if is_v4 { v4 } else { v6 }) else {
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

    /// Reads what has come into both families, one batch each, and hands every batch to `take`;
    /// false when there was nothing.
    pub(super) fn receive(
        &self,
        batch: &mut Batch,
        take: impl FnMut(&mut Batch),
    ) -> io::Result<bool> {
        self.data.receive(batch, take)
    }

    /// Does the same with handshake messages.
    pub(super) fn receive_handshakes(
        &self,
        batch: &mut Batch,
        take: impl FnMut(&mut Batch),
    ) -> io::Result<bool> {
        match &self.handshakes {
            Some(sockets) => sockets.receive(batch, take),
            None => Ok(false),
        }
    }
}

impl Registered {
    #[expect(
        deprecated,
        reason = "the socket owns its descriptor, which is what the successor asks"
    )]
    fn new(pair: Pair) -> io::Result<Self> {
        Ok(Self {
            v4: pair.v4.map(AsyncFd::new).transpose()?,
            v6: pair.v6.map(AsyncFd::new).transpose()?,
        })
    }

    async fn readable(&self) {
        tokio::select! {
            () = ready(self.v4.as_ref(), Interest::READABLE) => {}
            () = ready(self.v6.as_ref(), Interest::READABLE) => {}
        }
    }

    fn receive(&self, batch: &mut Batch, mut take: impl FnMut(&mut Batch)) -> io::Result<bool> {
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

/// Binds sockets beside `data` at which everything arrives that is no data.
fn beside(data: &Pair, mark: u32) -> io::Result<Pair> {
    let options = Options {
        mark,
        buffer_bytes: HANDSHAKE_BUFFER,
        singly: false,
    };
    let handshakes = data.bind_beside(&options)?;
    data.steer(TRANSPORT_DATA, NonZeroU8::MIN)?;
    Ok(handshakes)
}

async fn ready(socket: Option<&AsyncFd<Socket>>, interest: Interest) {
    let waited = match socket {
        // An error is found again by the call that follows.
        Some(socket) => socket.ready(interest).await.map(drop),
        None => std::future::pending().await,
    };
    drop(waited);
}
