//! The agent's life: lock, tunnel, socket, requests, and when to go.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use os::{
    file::{Lock, LockError},
    unix,
};
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::watch,
    time,
};

use super::{
    ending::Endings,
    profile::{Opened, Profile},
    protocol::{Answer, Code, Envelope, Failure},
    request, wire,
};
use crate::{
    enrolled::{Asked, Contact, Led, NodeKey, Sites},
    metrics::listener::{self, Listener},
    remedy::{Advise as _, advise},
};
use tunnel::{Tunnel, Wanted};

/// How an agent lives.
pub(crate) struct Options {
    /// It exits after so long without work; `None` keeps it.
    pub(crate) idle: Option<Duration>,
    /// The interface that the node shall have; `None` is user mode.
    pub(crate) interface: Option<Wanted>,
    /// Whether it serves SSH at its address.
    pub(crate) ssh: bool,
    /// Where metrics are asked for, besides the agent's socket.
    pub(crate) metrics: Option<Listener>,
    /// The version that it says it is.
    pub(crate) version: String,
}

/// What all requests share.
pub(super) struct Agent {
    pub(super) tunnel: Tunnel,
    pub(super) key: Option<NodeKey>,
    pub(super) control: Option<(String, Contact)>,
    pub(super) led: Led,
    pub(super) asked: Asked,
    /// How it stands with the sites behind the node.
    pub(super) sites: Sites,
    pub(super) profile: String,
    pub(super) fingerprint: String,
    pub(super) version: String,
    pub(super) started: Instant,
    pub(super) endings: Endings,
    uid: u32,
    /// Open connections of commands; the loop watches it.
    open: watch::Sender<usize>,
    mode: Mutex<Mode>,
    /// Changes with `mode`.
    changed: tokio::sync::Notify,
}

/// What the agent does about new work.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mode {
    /// Serves.
    Serving,
    /// Serves as long as it is busy: a newer agent waits for its place.
    Retiring,
    /// Serves nobody new and ends with the last open connection.
    Draining,
}

/// How long the agent before us may take to finish.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// How often the lock is tried meanwhile.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Open connections of commands; at the bound new ones are refused.
const CONNECTIONS_MAX: usize = 8_192;

/// How long a command may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What was written last is still acknowledged, or sent again once, before the agent goes.
const LINGER: Duration = Duration::from_millis(500);

/// Holds the tunnel of `profile` and serves its socket until there is nothing more to do.
pub(crate) async fn serve(
    profile: &Profile,
    options: Options,
    ready: impl FnOnce(Option<&Tunnel>),
) -> anyhow::Result<()> {
    if let Err(error) = os::process::raise_descriptor_limit() {
        tracing::debug!(%error, "raise the limit of open descriptors");
    }
    let _lock = tokio::select! {
        biased;
        lock = lock(profile) => lock?,
        () = served(profile) => {
            // Two commands began at once; whoever waits for us finds the other agent.
            ready(None);
            return Err(advise(
                "local agent: one of this profile runs already",
                "just use it: every command finds it; `ginnel status` tells its process id",
            ));
        }
    };
    let opened = profile
        .open(options.interface.as_ref(), options.ssh)
        .await?;
    let tunnel = opened.tunnel.clone();
    let ended = serve_opened(profile, options, opened, ready).await;
    tunnel.release().await;
    ended
}

/// Serves the socket of a tunnel that is open.
async fn serve_opened(
    profile: &Profile,
    options: Options,
    opened: Opened,
    ready: impl FnOnce(Option<&Tunnel>),
) -> anyhow::Result<()> {
    let Opened {
        tunnel,
        key,
        control,
        led,
        asked,
        sites,
        mut background,
    } = opened;
    let path = profile.socket();
    let (listener, file) = unix::listen(&path)
        .with_context(|| format!("local agent: listen at `{}`", path.display()))
        .remedy("name another directory: --state DIR or XDG_RUNTIME_DIR=DIR")?;
    let listener = UnixListener::from_std(listener).context("local agent: register its socket")?;
    let agent = Arc::new(Agent {
        started: tunnel.now(),
        endings: Endings::default(),
        tunnel,
        key,
        control,
        led,
        asked,
        sites,
        profile: profile.to_string(),
        fingerprint: profile.fingerprint(),
        version: options.version,
        uid: os::process::euid(),
        open: watch::Sender::new(0),
        mode: Mutex::new(Mode::Serving),
        changed: tokio::sync::Notify::new(),
    });
    ready(Some(&agent.tunnel));
    let told = Arc::clone(&agent);
    let metrics = listener::serve(options.metrics, move || request::status(&told).into());
    let ended = tokio::select! {
        ended = accept(&agent, &listener, options.idle) => ended,
        ended = &mut background => ended.map(|()| End::Stopped),
        never = metrics => match never {},
    };
    // Whoever connected a moment ago is cut off before an answer and tries again.
    drop(file);
    drop(listener);
    if let End::Served = ended? {
        agent.drained().await;
        time::sleep(LINGER).await;
    }
    Ok(())
}

/// Why the agent goes.
enum End {
    /// There is nothing more to do; what is open may finish.
    Served,
    /// It was told to end at once.
    Stopped,
}

/// Takes connections until the agent has to go.
async fn accept(
    agent: &Arc<Agent>,
    listener: &UnixListener,
    idle: Option<Duration>,
) -> anyhow::Result<End> {
    let mut terminate = signal(SignalKind::terminate()).context("await SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("await SIGINT")?;
    // The terminal that started us may go; the tunnel stays.
    let mut hangup = signal(SignalKind::hangup()).context("await SIGHUP")?;
    let mut open = agent.open.subscribe();
    loop {
        let count = *open.borrow_and_update();
        match agent.mode() {
            Mode::Serving => {}
            Mode::Retiring if count > 0 => {}
            Mode::Retiring | Mode::Draining => return Ok(End::Served),
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => agent.begin(stream),
                Err(error) => {
                    // Out of descriptors: those that are open will end.
                    tracing::warn!(%error, "accept a command");
                    time::sleep(Duration::from_millis(50)).await;
                }
            },
            _ = open.changed() => {}
            () = agent.changed.notified() => {}
            () = sleep(idle), if count == 0 => {
                // A capture that somebody asked for is work, too.
                if agent.asked.running().is_none() {
                    return Ok(End::Served);
                }
            }
            _ = hangup.recv() => {}
            _ = terminate.recv() => return Ok(End::Stopped),
            _ = interrupt.recv() => return Ok(End::Stopped),
        }
    }
}

impl Agent {
    fn begin(self: &Arc<Self>, stream: UnixStream) {
        let open = Open::new(self);
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            agent.handle(stream).await;
            drop(open);
        });
    }

    async fn handle(self: &Arc<Self>, mut stream: UnixStream) {
        let uid = stream.peer_cred().map(|peer| peer.uid());
        if !uid.is_ok_and(|uid| uid == self.uid || uid == 0) {
            tracing::warn!("another user's program at the socket");
            return;
        }
        let envelope = time::timeout(REQUEST_TIMEOUT, wire::receive::<Envelope, _>(&mut stream));
        let envelope = match envelope.await {
            Ok(Ok(Some(envelope))) => envelope,
            // Somebody who only looks whether the socket answers.
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => {
                let failure = self.misunderstood(&error);
                drop(wire::send(&mut stream, &Answer::Failed(failure)).await);
                return;
            }
        };
        if self.connections() > CONNECTIONS_MAX {
            let failure = Failure::new(
                Code::TooMany,
                format!("{CONNECTIONS_MAX} connections are open"),
                "close some first",
            );
            drop(wire::send(&mut stream, &Answer::Failed(failure)).await);
            return;
        }
        if let Err(error) = request::serve(self, &mut stream, envelope).await {
            tracing::debug!(%error, "request");
        }
    }

    /// Returns how many connections of commands are open.
    pub(super) fn connections(&self) -> usize {
        *self.open.borrow()
    }

    pub(super) fn mode(&self) -> Mode {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to go; going faster is possible, staying is not.
    pub(super) fn leave(&self, mode: Mode) {
        let mut current = self.mode.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != Mode::Draining {
            *current = mode;
        }
        self.changed.notify_one();
    }

    /// Waits until no connection is open.
    async fn drained(&self) {
        let mut open = self.open.subscribe();
        // The sender is in `self`.
        drop(open.wait_for(|open| *open == 0).await);
    }

    fn misunderstood(&self, error: &std::io::Error) -> Failure {
        Failure::new(
            Code::Misunderstood,
            format!(
                "version {} does not understand the request: {error}",
                self.version
            ),
            "use the same version of ginnel everywhere",
        )
    }
}

/// Counts one connection while it lives.
struct Open(Arc<Agent>);

impl Open {
    fn new(agent: &Arc<Agent>) -> Self {
        agent.open.send_modify(|open| *open += 1);
        Self(Arc::clone(agent))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

/// Takes the lock of a profile, waiting a moment for an agent that is about to end.
pub(super) async fn lock(profile: &Profile) -> anyhow::Result<Lock> {
    let path = profile.lock();
    let attempts = async {
        loop {
            match Lock::acquire(&path) {
                Err(LockError::Held { .. }) => time::sleep(LOCK_PAUSE).await,
                taken => return taken,
            }
        }
    };
    match time::timeout(LOCK_TIMEOUT, attempts).await {
        Ok(taken) => taken.with_context(|| format!("open the lock `{}`", path.display())),
        Err(_) => Err(advise(
            "local agent: an agent of this profile still has open connections and takes no new \
             ones",
            "end those connections, or wait for them",
        )),
    }
}

/// Waits until an agent serves `profile`, which another process is then doing; never ends if
/// none does.
async fn served(profile: &Profile) {
    while UnixStream::connect(profile.socket()).await.is_err() {
        time::sleep(LOCK_PAUSE).await;
    }
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => time::sleep(time).await,
        None => std::future::pending().await,
    }
}
