//! The UDP side: the sockets of one port, our address towards each peer, and lost datagrams.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU8,
    os::fd::AsFd as _,
    sync::{Arc, mpsc},
    time::Duration,
};

use os::{
    poll::{self, Interest},
    udp::{Envelope, Options, Pair, Runs, SendError, Socket, Sources},
};

use packet::ecn::Ecn;

use super::uapi::Errno;

/// All sockets of one port.
pub(crate) struct Sockets {
    /// Everything is sent from these, and what arrives here is for the first queue.
    pub(crate) data: Pair,
    /// What arrives for the other queues; of one session all goes to one.
    pub(crate) further: Vec<Pair>,
    /// Handshake messages arrive here, so that a flood of them fills no queue of data; without
    /// these, on old kernels, all arrive together.
    pub(crate) handshakes: Option<Pair>,
    /// Goes behind the sockets, and so tells that they are closed.
    _closed: mpsc::Sender<Infallible>,
}

/// Datagrams that leave together: all but the last are `segment` bytes long.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) destination: SocketAddr,
    pub(crate) ecn: Ecn,
    pub(crate) bytes: &'a [u8],
    pub(crate) segment: usize,
}

/// Tells when the sockets that were exchanged are closed.
pub(crate) struct Closing(mpsc::Receiver<Infallible>);

/// The sockets and what belongs to them.
pub(crate) struct Wire {
    sockets: Arc<Sockets>,
    queues: NonZeroU8,
    closing: mpsc::Receiver<Infallible>,
    /// Sockets that were exchanged and that nobody has waited for yet.
    former: Option<Closing>,
    fwmark: u32,
    /// What may pass as one.
    runs: Runs,
    /// Our address that each peer last wrote to, from which answers go.
    pub(crate) sources: Sources,
    lost: BTreeMap<&'static str, u64>,
}

impl Sockets {
    /// Returns the sockets whose data is for this queue.
    pub(crate) fn queue(&self, queue: u8) -> Option<&Pair> {
        match queue.checked_sub(1) {
            None => Some(&self.data),
            Some(place) => self.further.get(usize::from(place)),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Socket> {
        let others = self.further.iter().chain(&self.handshakes);
        let others = others.flat_map(Pair::sockets);
        self.data.sockets().chain(others)
    }
}

impl Wire {
    /// Listens on a free port, with sockets for so many queues.
    pub(crate) fn open(runs: Runs, queues: NonZeroU8) -> io::Result<Self> {
        let (sockets, closing) = bind(0, 0, runs, queues)?;
        Ok(Self {
            sockets: Arc::new(sockets),
            queues,
            closing,
            former: None,
            fwmark: 0,
            runs,
            sources: Sources::default(),
            lost: BTreeMap::new(),
        })
    }

    /// Listens on `port` instead; on failure everything stays as it was.
    pub(crate) fn listen(&mut self, port: u16) -> Result<(), Errno> {
        if port != self.port() {
            // What was refused once is not tried again.
            self.runs.sent = self.sends_runs();
            let (sockets, closing) = bind(port, self.fwmark, self.runs, self.queues)?;
            let former = std::mem::replace(&mut self.sockets, Arc::new(sockets));
            self.former = Some(Closing(std::mem::replace(&mut self.closing, closing)));
            // Their readers wake and find the new ones.
            former.all().for_each(Socket::retire);
        }
        Ok(())
    }

    /// Returns what waits until the port that was left is free, once for each port.
    pub(crate) fn take_closing(&mut self) -> Option<Closing> {
        self.former.take()
    }

    /// Marks outgoing datagrams.
    pub(crate) fn mark(&mut self, fwmark: u32) -> Result<(), Errno> {
        for socket in self.sockets.data.sockets() {
            socket.set_mark(fwmark)?;
        }
        self.fwmark = fwmark;
        // Routing may choose otherwise now.
        self.sources.forget_all();
        Ok(())
    }

    /// Tells whether runs of datagrams leave as one; until the kernel or a card refuses them.
    pub(crate) fn sends_runs(&self) -> bool {
        self.sockets.data.sockets().all(Socket::segments)
    }

    pub(crate) fn port(&self) -> u16 {
        self.sockets.data.port()
    }

    /// Returns the sockets; [`Wire::listen`] exchanges them.
    pub(crate) fn sockets(&self) -> &Arc<Sockets> {
        &self.sockets
    }

    pub(crate) fn fwmark(&self) -> u32 {
        self.fwmark
    }

    /// Sends a run; what cannot be sent is counted and lost, as on any network.
    pub(crate) fn send(&mut self, run: &Run<'_>) {
        let mut from = self.sources.source(run.destination);
        let had = from;
        let result = send(&self.sockets.data, &mut from, run);
        if had != from {
            self.sources.forget(run.destination);
        }
        if let Err((error, datagrams)) = result {
            self.count_lost(error, run.destination, datagrams);
        }
    }

    /// Returns how many datagrams were lost, by reason.
    pub(crate) fn lost(&self) -> &BTreeMap<&'static str, u64> {
        &self.lost
    }

    /// Counts datagrams that were not sent.
    pub(crate) fn count_lost(&mut self, error: SendError, to: SocketAddr, datagrams: usize) {
        let reason = match error {
            SendError::WouldBlock => "queue full",
            SendError::NoBuffers => "no buffers",
            SendError::TooLong => "too long",
            SendError::Unreachable | SendError::SourceGone => "unreachable",
            SendError::Refused => "refused",
            SendError::Denied => "denied",
            SendError::Failed(_) => "other",
        };
        let count = self.lost.entry(reason).or_default();
        if *count == 0 {
            tracing::info!("UDP: send to {to}: {error}");
        }
        *count += u64::try_from(datagrams).unwrap_or(u64::MAX);
    }
}

impl Closing {
    /// Waits until whoever still reads or sends by the sockets is done with them.
    pub(crate) fn wait(self) {
        // Longer than a send waits for room. Whatever comes, the new sockets are in use.
        self.0.recv_timeout(CLOSE_MAX).ok();
    }
}

/// Sends a run from our address `from`, which is cleared when it is no longer ours; fails with the
/// number of datagrams that were not sent.
///
/// A full queue is waited for: meanwhile packets queue in the TUN, and their senders slow down.
pub(crate) fn send(
    pair: &Pair,
    from: &mut Option<IpAddr>,
    run: &Run<'_>,
) -> Result<(), (SendError, usize)> {
    send_within(pair, from, run, WAITS_MAX)
}

/// Sends a run unless the queue is full: for answers to who may be one of a flood.
pub(crate) fn send_at_once(
    pair: &Pair,
    mut from: Option<IpAddr>,
    run: &Run<'_>,
) -> Result<(), (SendError, usize)> {
    send_within(pair, &mut from, run, 0)
}

fn send_within(
    pair: &Pair,
    from: &mut Option<IpAddr>,
    run: &Run<'_>,
    mut waits: u32,
) -> Result<(), (SendError, usize)> {
    let mut sent = 0;
    while sent < run.bytes.len() {
        let envelope = Envelope {
            to: run.destination,
            from: *from,
            ecn: run.ecn,
        };
        let rest = &run.bytes[sent..];
        let lost = rest.len().div_ceil(run.segment.max(1));
        let Some(socket) = pair.towards(run.destination) else {
            return Err((SendError::Unreachable, lost));
        };
        match socket.send_run(&envelope, rest, run.segment) {
            Ok(length) => sent += length,
            Err(SendError::SourceGone) if from.is_some() => *from = None,
            Err(SendError::WouldBlock) if waits > 0 => {
                waits -= 1;
                poll::wait_for(socket.as_fd(), Interest::WRITE, WAIT).ok();
            }
            Err(error) => return Err((error, lost)),
        }
    }
    Ok(())
}

fn bind(
    port: u16,
    mark: u32,
    runs: Runs,
    queues: NonZeroU8,
) -> io::Result<(Sockets, mpsc::Receiver<Infallible>)> {
    let options = |buffer_bytes| Options {
        mark,
        buffer_bytes,
        singly: !runs.joined,
    };
    let data = Pair::bind(port, &options(BUFFER_BYTES))?;
    let beside = || {
        let further = (1..queues.get()).map(|_| data.bind_beside(&options(BUFFER_BYTES)));
        let further: Vec<_> = further.collect::<io::Result<_>>()?;
        let handshakes = data.bind_beside(&options(HANDSHAKE_BUFFER_BYTES))?;
        data.steer(TRANSPORT_DATA, queues)?;
        Ok((further, handshakes))
    };
    let beside: io::Result<_> = beside();
    if let Err(error) = &beside {
        tracing::debug!("UDP: everything arrives at one socket: {error}");
    }
    let (further, handshakes) = beside.ok().unzip();
    let (closed, closing) = mpsc::channel();
    let sockets = Sockets {
        data,
        further: further.unwrap_or_default(),
        handshakes,
        _closed: closed,
    };
    for socket in sockets.all() {
        socket.set_segments(runs.sent);
        socket.set_blocking()?;
    }
    Ok((sockets, closing))
}

/// The message type that all datagrams but those of a handshake begin with (whitepaper 5.4.6).
const TRANSPORT_DATA: u8 = 4;
/// As wireguard-go: enough for 40 ms at 1.4 Gb/s.
const BUFFER_BYTES: usize = 7 << 20;
/// About 10,000 messages, of which the kernel counts more than the payload: what comes while the
/// first hundred of a flood are still computed. The rest of a flood is lost.
const HANDSHAKE_BUFFER_BYTES: usize = 4 << 20;
/// A socket that has no room for so long is not going to have it.
const WAITS_MAX: u32 = 3;
const WAIT: Duration = Duration::from_millis(20);
const CLOSE_MAX: Duration = Duration::from_secs(1);
