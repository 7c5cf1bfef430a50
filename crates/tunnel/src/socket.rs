//! The UDP sockets under the tunnel, one for each family and queue, read and written in runs, and
//! those beside them by which handshake messages come.

use std::{io, net::SocketAddr, num::NonZeroU8};

use anyhow::Context as _;
use os::udp::{self, Batch, Options, Pair, Parcel, Runs, SendError, Socket};
use tokio::io::{Interest, unix::AsyncFd};

use crate::Advised;

/// The sockets of one port.
pub(super) struct Sockets {
    /// Data arrives here, for each queue that of some sessions. All leaves from the first, so that
    /// what is for one peer stays in order, whoever sealed it. There is at least one.
    queues: Vec<Registered>,
    /// Handshake messages arrive here, so that a flood of them fills no queue of data; without
    /// these, on old kernels, all arrive together.
    handshakes: Option<Registered>,
    /// Whether datagrams arrive in runs; `None` where that could not be tried.
    receives_runs: Option<bool>,
}

/// The sockets of both families; one that the machine lacks has none.
struct Registered {
    v4: Option<Watched>,
    v6: Option<Watched>,
}

/// A socket that the runtime watches.
pub(super) struct Watched(AsyncFd<Socket>);

/// Bytes that the kernel may queue in each direction: 25 ms at 1 Gbit/s, a little more than the
/// scheduler makes us wait.
const BUFFER: usize = 4 << 20;
/// About 10,000 handshake messages, of which the kernel counts more than the payload: so many peers
/// may answer at once after a restart, and so many of a flood come while its first hundred are
/// still computed. The rest is lost.
const HANDSHAKE_BUFFER: usize = 4 << 20;
const NO_RUNS: Runs = Runs {
    sent: false,
    joined: false,
};
/// The message type that all datagrams but those of a handshake begin with (whitepaper 5.4.6).
const TRANSPORT_DATA: u8 = 4;

impl Sockets {
    /// Binds to `local`, with so many queues of data; `[::]` stands for all addresses of both
    /// families, and port zero for one that the system chooses. On old kernels there is one queue.
    /// Several datagrams pass as one if that is wanted with `runs`, and works.
    pub(super) fn bind(
        local: SocketAddr,
        mark: Option<u32>,
        queues: NonZeroU8,
        runs: bool,
    ) -> anyhow::Result<Self> {
        let tried = if runs { try_runs() } else { Some(NO_RUNS) };
        // Untried, what is refused is found out when it is sent.
        let sends_runs = tried.is_none_or(|runs| runs.sent);
        let receives_runs = tried.map(|runs| runs.joined);
        let options = Options {
            mark: mark.unwrap_or(0),
            buffer_bytes: BUFFER,
            singly: receives_runs == Some(false),
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
        let beside = beside(&data, &options, queues);
        if let Err(error) = &beside {
            tracing::debug!(%error, "everything arrives at one socket");
        }
        let (further, handshakes) = beside.ok().unzip();
        let queues = std::iter::once(data).chain(further.into_iter().flatten());
        let queues = queues.inspect(|pair| {
            pair.sockets().for_each(|one| one.set_segments(sends_runs));
        });
        let queues = queues.map(Registered::new).collect::<io::Result<_>>();
        let handshakes = handshakes.map(Registered::new).transpose();
        Ok(Self {
            queues: queues.context("UDP: register the socket")?,
            handshakes: handshakes.context("UDP: register the socket")?,
            receives_runs,
        })
    }

    /// Tells whether several datagrams are sent as one; until the kernel or a card refuses that.
    pub(super) fn sends_runs(&self) -> bool {
        self.queues[0].all().all(|one| one.0.get_ref().segments())
    }

    /// Tells whether several datagrams are received as one; `None` where that could not be tried.
    pub(super) fn receives_runs(&self) -> Option<bool> {
        self.receives_runs
    }

    /// Returns how many queues of data there are.
    pub(super) fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Tells whether handshake messages come by sockets of their own.
    pub(super) fn are_apart(&self) -> bool {
        self.handshakes.is_some()
    }

    /// Returns the port that was bound.
    pub(super) fn port(&self) -> u16 {
        let socket = self.queues[0].all().next();
        socket.map_or(0, |socket| socket.0.get_ref().local_address().port())
    }

    /// Waits until there is something to receive for a queue.
    pub(super) async fn readable(&self, queue: usize) {
        self.queues[queue].readable().await;
    }

    /// Returns the sockets at which something may have arrived for a queue.
    pub(super) fn arriving(&self, queue: usize) -> impl Iterator<Item = &Watched> {
        self.queues[queue].all()
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
        let Registered { v4, v6 } = &self.queues[0];
        match destination {
            Some(SocketAddr::V4(_)) => ready(v4.as_ref(), Interest::WRITABLE).await,
            Some(SocketAddr::V6(_)) => ready(v6.as_ref(), Interest::WRITABLE).await,
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
        let Registered { v4, v6 } = &self.queues[0];
        let Some(socket) = (if is_v4 { v4 } else { v6 }) else {
            return Err(SendError::Unreachable);
        };
        let mut outcome = Err(SendError::WouldBlock);
        // Only a full queue is hidden here, so that whoever waits for room really waits.
        let tried = socket.0.try_io(Interest::WRITABLE, |socket| {
            let sent_runs = socket.segments();
            outcome = socket.send_parcels(parcels);
            if sent_runs && !socket.segments() {
                tracing::warn!("runs of datagrams are refused, now sent singly");
            }
            match outcome {
                Err(SendError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
                Ok(_) | Err(_) => Ok(()),
            }
        });
        tried.map_err(|_| SendError::WouldBlock).and(outcome)
    }

    /// Sends a parcel of one datagram that nobody may fragment, at once or not at all; returns one,
    /// or why it is not sent. It leaves by a socket by which nobody else sends meanwhile, if there
    /// is one.
    pub(super) fn send_whole(&self, parcel: &Parcel<'_>) -> Result<usize, SendError> {
        let Parcel {
            envelope,
            datagrams: [datagram],
        } = parcel
        else {
            return self.send(&[*parcel]);
        };
        let Registered { v4, v6 } = self.handshakes.as_ref().unwrap_or(&self.queues[0]);
        let socket = if envelope.to.is_ipv4() { v4 } else { v6 };
        let Some(socket) = socket else {
            return Err(SendError::Unreachable);
        };
        let sent = socket.0.get_ref().send_whole(envelope, datagram);
        sent.map(|()| 1)
    }

    /// Reads the handshake messages that have come, one batch of each family, and hands every batch
    /// to `take`; false when there was nothing.
    pub(super) fn receive_handshakes(
        &self,
        batch: &mut Batch,
        mut take: impl FnMut(&mut Batch),
    ) -> io::Result<bool> {
        let mut any = false;
        for socket in self.handshakes.iter().flat_map(Registered::all) {
            if socket.receive(batch)? {
                any = true;
                take(batch);
            }
        }
        Ok(any)
    }
}

impl Registered {
    fn new(pair: Pair) -> io::Result<Self> {
        Ok(Self {
            v4: pair.v4.map(Watched::new).transpose()?,
            v6: pair.v6.map(Watched::new).transpose()?,
        })
    }

    async fn readable(&self) {
        tokio::select! {
            () = ready(self.v4.as_ref(), Interest::READABLE) => {}
            () = ready(self.v6.as_ref(), Interest::READABLE) => {}
        }
    }

    fn all(&self) -> impl Iterator<Item = &Watched> {
        self.v4.iter().chain(&self.v6)
    }
}

impl Watched {
    #[expect(
        deprecated,
        reason = "the socket owns its descriptor, which is what the successor asks"
    )]
    fn new(socket: Socket) -> io::Result<Self> {
        AsyncFd::new(socket).map(Self)
    }

    /// Reads a batch of what has come; false when there was nothing.
    pub(super) fn receive(&self, batch: &mut Batch) -> io::Result<bool> {
        let mut any = false;
        let tried = self.0.try_io(Interest::READABLE, |socket| {
            let runs = socket.recv_batch(batch)?;
            any = true;
            // It is empty, so the runtime has to wait for more, and nobody has to ask in vain.
            if runs < Socket::RUNS_MAX {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        match tried {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(()) | Err(_) => Ok(any),
        }
    }
}

/// Tries what the sockets are going to do.
fn try_runs() -> Option<Runs> {
    match udp::probe() {
        Ok(runs) => {
            tracing::debug!(sent = runs.sent, received = runs.joined, "UDP: runs");
            Some(runs)
        }
        // A namespace without loopback.
        Err(error) => {
            tracing::debug!(%error, "UDP: runs were not tried");
            None
        }
    }
}

/// Binds the sockets of further queues beside `data`, and those at which everything arrives that is
/// no data.
fn beside(data: &Pair, options: &Options, queues: NonZeroU8) -> io::Result<(Vec<Pair>, Pair)> {
    let further = (1..queues.get()).map(|_| data.bind_beside(options));
    let further = further.collect::<io::Result<_>>()?;
    let handshakes = data.bind_beside(&Options {
        buffer_bytes: HANDSHAKE_BUFFER,
        ..*options
    })?;
    data.steer(TRANSPORT_DATA, queues)?;
    Ok((further, handshakes))
}

async fn ready(socket: Option<&Watched>, interest: Interest) {
    let waited = match socket {
        // An error is found again by the call that follows.
        Some(socket) => socket.0.ready(interest).await.map(drop),
        None => std::future::pending().await,
    };
    drop(waited);
}
