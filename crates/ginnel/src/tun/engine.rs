//! The control thread of one interface: timers, signals, the UAPI socket. Data has its own threads.
//!
//! ```text
//!  TUN ──► transmit ──► UDP           control: handshake timers, UAPI, signals,
//!  TUN ◄── receive  ◄── UDP (v4, v6)           changes of interfaces and of the clock
//!  (both once for each queue)
//!        handshakes ◄── UDP (v4, v6)  agree: X25519 of handshakes
//! ```

use std::{
    net::TcpListener,
    num::NonZeroU8,
    os::fd::AsFd as _,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use os::{
    clock,
    link::{self, Watch},
    poll::{Interest, Poll},
    signal::Termination,
    tun::Tun,
    udp::{self, Runs},
};

use super::{
    control::Control,
    handshakes::Handshakes,
    keylog::Writer,
    receive::Receiver,
    transmit::Transmitter,
    tunnel::{Tunnel, Wakeups, Watchdog},
};
use crate::metrics::listener::{self, Listener};

/// Why the loop ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ended {
    /// Somebody asked by a signal.
    Signal,
    /// The interface was deleted.
    InterfaceGone,
    /// The UAPI socket's file was removed or replaced, which is how `rm` stops wireguard-go.
    SocketGone,
}

/// One interface with its peers.
pub(crate) struct Engine {
    control: Control,
    tunnel: Arc<Tunnel>,
    termination: Termination,
    links: Watch,
    wakeups: Wakeups,
    poll: Poll,
    looked_around: Option<Instant>,
    /// As last told.
    sends_runs: bool,
}

/// Places of the fixed descriptors in the poll set.
struct Places {
    termination: usize,
    links: usize,
    wakeups: usize,
}

impl Engine {
    /// Prepares everything; from here on signals wait for the loop.
    pub(crate) fn new(
        name: &str,
        lanes: Vec<Tun>,
        queues: NonZeroU8,
        control: Control,
        offload: bool,
        key_log: Option<Writer>,
    ) -> anyhow::Result<Self> {
        // Before threads are there: they inherit that signals are blocked.
        let termination = Termination::listen().context("listen to signals")?;
        if let Err(error) = link::set_queue_length(name, QUEUE_PACKETS) {
            tracing::debug!("TUN: set queue length: {error}");
        }
        if let Some(first) = lanes.first() {
            tracing::info!("{name}: TUN offload: {}", first.offload());
        }
        let runs = offload.then(|| try_runs(name)).flatten();
        // Untried, what is refused is found out when it is sent.
        let sends_runs = offload && runs.is_none_or(|runs| runs.sent);
        let receives_runs = if offload {
            runs.map(|runs| runs.joined)
        } else {
            Some(false)
        };
        let (tunnel, wakeups) =
            Tunnel::new(name, lanes, queues, sends_runs, receives_runs, key_log)?;
        Ok(Self {
            control,
            tunnel,
            termination,
            links: Watch::open().context("watch network interfaces")?,
            wakeups,
            poll: Poll::default(),
            looked_around: None,
            sends_runs,
        })
    }

    /// Runs until a signal comes or the interface goes; the process is to end then, and with it
    /// the threads that wait for data.
    pub(crate) fn run(mut self) -> anyhow::Result<Ended> {
        self.start_threads().context("start a thread")?;
        let ended = loop {
            let places = self.watch();
            let timeout = self.tunnel.arm(SLEEP_MAX);
            self.poll
                .wait(Some(timeout))
                .context("wait for descriptors")?;
            if let Some(ended) = self.turn(&places)? {
                break ended;
            }
        };
        self.tunnel.log_losses();
        Ok(ended)
    }

    /// Answers Prometheus from a thread of its own.
    pub(crate) fn serve_metrics(&self, listener: TcpListener) -> anyhow::Result<()> {
        let tunnel = Arc::clone(&self.tunnel);
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build();
        let runtime = runtime.context("metrics: start the event loop")?;
        let entered = runtime.enter();
        let listener = Listener::from_std(listener).context("metrics: listen")?;
        drop(entered);
        let serve = move || {
            let _watchdog = Watchdog(Arc::clone(&tunnel));
            let served = listener::serve(Some(listener), move || tunnel.snapshot());
            match runtime.block_on(served) {}
        };
        let thread = thread::Builder::new().name("metrics".to_owned());
        thread.spawn(serve).context("metrics: start a thread")?;
        Ok(())
    }

    fn start_threads(&self) -> std::io::Result<()> {
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(name.to_owned());
            thread.spawn(run).map(drop)
        };
        for queue in self.tunnel.queue_numbers() {
            let transmitter = Transmitter::new(&self.tunnel, queue)?;
            start("transmit", Box::new(move || transmitter.run()))?;
            for (name, v6) in [("receive-v4", false), ("receive-v6", true)] {
                let receiver = Receiver::new(&self.tunnel, queue, v6);
                start(name, Box::new(move || receiver.run()))?;
            }
        }
        for (name, v6) in [("handshakes-v4", false), ("handshakes-v6", true)] {
            let handshakes = Handshakes::new(&self.tunnel, v6);
            start(name, Box::new(move || handshakes.run()))?;
        }
        let tunnel = Arc::clone(&self.tunnel);
        let agree = move || {
            let _watchdog = Watchdog(Arc::clone(&tunnel));
            tunnel.agree();
        };
        start("agree", Box::new(agree))?;
        Ok(())
    }

    fn watch(&mut self) -> Places {
        self.poll.clear();
        let poll = &mut self.poll;
        let places = Places {
            termination: poll.add(self.termination.as_fd(), Interest::READ),
            links: poll.add(self.links.as_fd(), Interest::READ),
            wakeups: poll.add(self.wakeups.as_fd(), Interest::READ),
        };
        self.control.watch(&mut self.poll);
        places
    }

    fn turn(&mut self, places: &Places) -> anyhow::Result<Option<Ended>> {
        if self.poll.ready(places.termination).readable && self.termination.arrived()? {
            return Ok(Some(Ended::Signal));
        }
        if self.poll.ready(places.wakeups).readable {
            self.wakeups.drain();
        }
        if self.poll.ready(places.links).readable && self.links.drain() {
            self.tunnel.follow_link();
        }
        let mut tunnel = Arc::clone(&self.tunnel);
        self.control.handle_ready(&self.poll, &mut tunnel);
        let now = self.tunnel.with(|state, now| {
            state.handle_timeout(now);
            now
        });
        if self.tunnel.has_failed() {
            bail!("a thread of the tunnel failed, which is a bug: please report it");
        }
        if self.tunnel.is_gone() {
            return Ok(Some(Ended::InterfaceGone));
        }
        Ok(self.look_around(now))
    }

    /// Looks now and then at what tells nobody that it has changed.
    fn look_around(&mut self, now: Instant) -> Option<Ended> {
        let last = self.looked_around.unwrap_or(now);
        if self.looked_around.is_some() && now.saturating_duration_since(last) < LOOK_AROUND {
            return None;
        }
        self.looked_around = Some(now);
        self.tunnel
            .with(|state, now| state.device.set_wall_clock(now, clock::wall()));
        let sends_runs = self.tunnel.sends_runs();
        if self.sends_runs && !sends_runs {
            let name = &self.tunnel.name;
            tracing::warn!("{name}: runs of datagrams are refused, now sent singly");
        }
        self.sends_runs = sends_runs;
        (!self.control.is_reachable()).then_some(Ended::SocketGone)
    }
}

/// Tries what the sockets are going to do, and says it.
fn try_runs(name: &str) -> Option<Runs> {
    match udp::probe() {
        Ok(runs) => {
            let word = |works| if works { "yes" } else { "no" };
            let (sends, joins) = (word(runs.sent), word(runs.joined));
            tracing::info!("{name}: UDP offload: sends runs: {sends}, receives runs: {joins}");
            Some(runs)
        }
        // A namespace without loopback.
        Err(error) => {
            tracing::debug!("{name}: UDP offload not tested: {error}");
            None
        }
    }
}

/// How long the time of day in handshakes may lag after the clock was set, and a process live on
/// whose socket was removed.
const LOOK_AROUND: Duration = Duration::from_secs(4);
/// Longer waits would only delay that.
const SLEEP_MAX: Duration = Duration::from_secs(5);
/// Packets, of which super-packets count as one, that wait for us before the kernel drops.
const QUEUE_PACKETS: u16 = 500;
