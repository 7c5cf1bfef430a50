//! How a command reaches its agent, starting one when there is none.

use std::{
    fs::{self, File},
    io::{self, BufRead as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time,
};

use super::{
    profile::Profile,
    protocol::{Answer, Code, Envelope, Failure, PROTOCOL, Request},
    wire,
};
use crate::{
    cli::Global,
    remedy::{Advise as _, advise},
};

/// The agent of one profile, as a command sees it.
#[derive(Clone)]
pub(crate) struct Client {
    profile: Profile,
    flags: Vec<std::ffi::OsString>,
}

/// The first line of an agent on its stdout.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ready {
    /// It listens.
    Ready,
    /// It could not begin.
    Failed {
        /// The chain of causes.
        message: String,
        /// What to do about it.
        remedy: Option<String>,
    },
}

/// A connection that is a byte pipe to a remote port.
pub(crate) struct Pipe {
    /// The bytes.
    pub(crate) stream: UnixStream,
    /// Our end inside the tunnel.
    pub(crate) local: SocketAddr,
    /// Names it to [`Client::ending`].
    pub(crate) connection: Option<u64>,
}

/// Bytes in flight in one direction of one pipe.
const BUFFER: usize = 64 * 1024;

/// How long a new agent may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// How often an agent is started or asked anew: each may end just then, idle or retired.
const ATTEMPTS_MAX: usize = 5;

/// How much longer than the request's own limit we wait for the agent's answer.
const GRACE: Duration = Duration::from_secs(5);

/// Connections that find the agent's backlog full come again after this time (unix(7): `EAGAIN`).
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);

/// A log is begun anew when it has become longer.
const LOG_MAX: u64 = 1024 * 1024;

impl Client {
    /// Finds the profile that the command line names. Nothing is started yet.
    pub(crate) fn of(global: &Global) -> anyhow::Result<Self> {
        let profile = Profile::of(global)?;
        let flags = profile.flags(global);
        Ok(Self { profile, flags })
    }

    /// Opens a byte pipe to a remote TCP port.
    pub(crate) async fn dial(
        &self,
        host: &str,
        port: u16,
        timeout: Duration,
    ) -> anyhow::Result<Result<Pipe, Failure>> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Dial {
            host: host.to_owned(),
            port,
            timeout_ms,
        };
        let (answer, stream) = self.ask(&request, timeout + GRACE).await?;
        match answer {
            Answer::Connected {
                local, connection, ..
            } => Ok(Ok(Pipe {
                stream,
                local,
                connection,
            })),
            Answer::Failed(failure) => Ok(Err(failure)),
            other @ (Answer::Hello { .. }
            | Answer::Ended(_)
            | Answer::Relaying
            | Answer::Records(_)
            | Answer::Capturing
            | Answer::Peer(_)
            | Answer::Whois(_)
            | Answer::Following
            | Answer::Pinging(_)
            | Answer::Echo { .. }
            | Answer::Done
            | Answer::Tracing(_)
            | Answer::Traced(_)
            | Answer::Status(_)
            | Answer::Draining { .. }
            | Answer::Retired) => Err(unexpected(&other)),
        }
    }

    /// Tells what broke a connection off whose pipe has ended; `None` when both sides finished, or
    /// when there is nobody left to ask.
    pub(crate) async fn ending(&self, connection: Option<u64>) -> Option<Failure> {
        let connection = connection?;
        let asked = self.ask_once(&Request::Ending { connection }, GRACE).await;
        if let Ok(Some((Answer::Ended(failure), _))) = asked {
            failure
        } else {
            None
        }
    }

    /// Sees to it that an agent runs and its tunnel is open.
    pub(crate) async fn hello(&self) -> anyhow::Result<()> {
        match self.ask(&Request::Hello, GRACE).await? {
            (Answer::Hello { .. }, _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Sends a request to the agent, started if needed, and returns its first answer.
    pub(crate) async fn ask(
        &self,
        request: &Request,
        timeout: Duration,
    ) -> anyhow::Result<(Answer, UnixStream)> {
        for _ in 0..ATTEMPTS_MAX {
            match self.ask_once(request, timeout).await? {
                Some((Answer::Retired, _)) => {}
                Some(answered) => return Ok(answered),
                None => {}
            }
            self.start().await?;
        }
        Err(advise(
            "local agent: it ends as soon as it is started",
            format!("look into its log, `{}`", self.profile.log().display()),
        ))
    }

    /// The same, but never starts an agent; `None` when none runs.
    pub(crate) async fn ask_if_running(
        &self,
        request: &Request,
        timeout: Duration,
    ) -> anyhow::Result<Option<(Answer, UnixStream)>> {
        self.ask_once(request, timeout).await
    }

    async fn ask_once(
        &self,
        request: &Request,
        timeout: Duration,
    ) -> anyhow::Result<Option<(Answer, UnixStream)>> {
        let path = self.profile.socket();
        let mut stream = match connect(&path, timeout).await {
            Ok(stream) => stream,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(advise(
                    format!("local agent: no answer within {} s", timeout.as_secs()),
                    "it has as many connections as it can: end some, or raise `ulimit -n` for it",
                ));
            }
            Err(error) => {
                let what = format!("local agent: connect to `{}`", path.display());
                return Err(error).context(what).remedy("see who owns that socket");
            }
        };
        let envelope = Envelope {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            fingerprint: self.profile.fingerprint(),
            request: request.clone(),
        };
        let exchange = async {
            wire::send(&mut stream, &envelope).await?;
            wire::receive::<Answer, _>(&mut stream).await
        };
        match time::timeout(timeout, exchange).await {
            Ok(Ok(Some(answer))) => Ok(Some((answer, stream))),
            // It ended before it had read the request.
            Ok(Ok(None)) => Ok(None),
            Ok(Err(error)) if is_absent(&error) => Ok(None),
            Ok(Err(error)) => Err(error)
                .context("local agent: read its answer")
                .remedy("use the same version of ginnel everywhere"),
            Err(_) => Err(advise(
                format!("local agent: no answer within {} s", timeout.as_secs()),
                format!("look into its log, `{}`", self.profile.log().display()),
            )),
        }
    }

    /// Starts an agent and waits until it listens.
    async fn start(&self) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("find this program")?;
        let log = self.log()?;
        let mut command = Command::new(program);
        command
            .args(&self.flags)
            .arg("agent")
            .stdout(Stdio::piped())
            .stderr(log)
            .current_dir("/");
        let mut child = os::process::spawn_detached(&mut command, Vec::new())
            .context("local agent: start it")?;
        let stdout = child.stdout.take().expect("it was piped");
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            io::BufReader::new(stdout)
                .read_line(&mut line)
                .map(|_| line)
        });
        // Collects the agent if it ends before us.
        std::thread::spawn(move || child.wait());
        let line = match time::timeout(START_TIMEOUT, line).await {
            Ok(line) => line
                .context("local agent: wait for it")?
                .unwrap_or_default(),
            Err(_) => String::new(),
        };
        match serde_json::from_str(&line) {
            Ok(Ready::Ready) => Ok(()),
            Ok(Ready::Failed { message, remedy }) => {
                let remedy = remedy.unwrap_or_else(|| self.see_log());
                Err(advise(message, remedy))
            }
            Err(_) => Err(advise(
                "local agent: it did not begin to listen within 5 s",
                self.see_log(),
            )),
        }
    }

    fn see_log(&self) -> String {
        format!("look into its log, `{}`", self.profile.log().display())
    }

    fn log(&self) -> anyhow::Result<File> {
        let path = self.profile.log();
        let fresh = fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_MAX);
        let mut options = File::options();
        options.create(true).mode(0o600);
        if fresh {
            options.write(true).truncate(true);
        } else {
            options.append(true);
        }
        options
            .open(&path)
            .with_context(|| format!("local agent: open its log `{}`", path.display()))
    }
}

impl Pipe {
    /// Moves bytes between the pipe and `local` until both directions have ended. An error means
    /// that the connection was broken off at either end: `local` is to be reset.
    pub(crate) async fn join<S>(mut self, client: &Client, local: &mut S) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (from_local, mut to_local) = tokio::io::split(local);
        let (from_agent, mut to_agent) = self.stream.split();
        let mut from_local = BufReader::with_capacity(BUFFER, from_local);
        let mut from_agent = BufReader::with_capacity(BUFFER, from_agent);
        let upwards = async {
            tokio::io::copy_buf(&mut from_local, &mut to_agent).await?;
            to_agent.shutdown().await
        };
        let downwards = async {
            tokio::io::copy_buf(&mut from_agent, &mut to_local).await?;
            match client.ending(self.connection).await {
                Some(failure) => Err(io::Error::new(io::ErrorKind::ConnectionReset, failure)),
                None => to_local.shutdown().await,
            }
        };
        tokio::try_join!(upwards, downwards).map(|_| ())
    }
}

/// Connects, waiting at most `patience` while the agent has more to accept than its backlog holds.
async fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let attempts = async {
        loop {
            match UnixStream::connect(path).await {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    time::sleep(BACKLOG_PAUSE).await;
                }
                connected => return connected,
            }
        }
    };
    let connected = time::timeout(patience, attempts).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Says that an answer does not fit its request.
pub(crate) fn unexpected(answer: &Answer) -> anyhow::Error {
    if let Answer::Failed(failure) = answer {
        return failure.clone().into_error();
    }
    Failure::new(
        Code::Misunderstood,
        "its answer does not fit the request",
        "use the same version of ginnel everywhere",
    )
    .into_error()
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
    )
}
