//! A shell or a command of the person, at the far end.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _},
    os::fd::AsFd as _,
};

use anyhow::{Context as _, Result};
use os::terminal::{Raw, modes, size};
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Pty, client::Msg};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    signal::unix::{Signal, SignalKind, signal},
};

use super::{Connection, escape::Escape};
use crate::{remedy::advise, terminal};

/// What somebody wants at the far end.
pub(in crate::ssh) struct Wanted {
    /// A command line; without one it is the login shell.
    pub(in crate::ssh) command: Option<String>,
    /// On a terminal.
    pub(in crate::ssh) terminal: bool,
}

/// How a session ended.
#[derive(Debug, Eq, PartialEq)]
pub(in crate::ssh) enum Ended {
    /// With a status.
    Status(u32),
    /// By a signal.
    Signal(String),
    /// By the person.
    Left,
    /// The connection went away.
    Lost,
}

/// Bytes that are read at a time from the person.
const BUFFER: usize = 32 * 1024;

/// What a request was about whose answer is awaited, in order.
enum Request {
    Agent,
    Display,
    Terminal,
    Program,
}

/// Runs what is wanted, on our standard input and outputs.
pub(in crate::ssh) async fn run(connection: &Connection, wanted: &Wanted) -> Result<Ended> {
    let channel = connection.handle.channel_open_session().await;
    let channel = channel.context("SSH: open a session")?;
    let (read, write) = channel.split();
    let mut requests = VecDeque::new();
    if connection.offers.has_agent() {
        write.agent_forward(true).await?;
        requests.push_back(Request::Agent);
    }
    if let Some(display) = connection.offers.display() {
        let asked = display.request();
        let cookie = asked.cookie.as_str();
        let asked = write.request_x11(true, false, asked.protocol, cookie, asked.screen);
        asked.await?;
        requests.push_back(Request::Display);
    }
    if wanted.terminal {
        ask_for_terminal(&write).await?;
        requests.push_back(Request::Terminal);
    }
    for name in ["LANG", "LC_ALL", "LC_CTYPE", "COLORTERM", "GIT_PROTOCOL"] {
        if let Ok(value) = std::env::var(name) {
            write.set_env(false, name, value).await?;
        }
    }
    match &wanted.command {
        Some(command) => write.exec(true, command.as_bytes()).await?,
        None => write.request_shell(true).await?,
    }
    requests.push_back(Request::Program);
    let stdin = io::stdin();
    let raw = (wanted.terminal && stdin.is_terminal())
        .then(|| Raw::enter(stdin.as_fd()).context("make the terminal raw"));
    let _raw = raw.transpose()?;
    let escape = if wanted.terminal {
        Escape::LineStart
    } else {
        Escape::Off
    };
    let resized = signal(SignalKind::window_change()).context("await SIGWINCH")?;
    tokio::select! {
        ended = listen(read, requests) => ended,
        () = speak(&write, escape) => Ok(Ended::Left),
        never = resize(&write, resized) => match never {},
    }
}

async fn ask_for_terminal(write: &ChannelWriteHalf<Msg>) -> Result<()> {
    let stdin = io::stdin();
    let size = size(&stdin).unwrap_or_default();
    let modes = modes(&stdin).unwrap_or_default().into_iter();
    let modes: Vec<_> = modes
        .filter_map(|(code, value)| Some((Pty::from_u8(code)?, value)))
        .collect();
    let term = std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned());
    let [columns, rows, width, height] = size.numbers();
    let asked = write.request_pty(true, &term, columns, rows, width, height, &modes);
    asked.await.context("SSH: ask for a terminal")
}

/// Writes what comes until the far end closes.
async fn listen(mut read: ChannelReadHalf, mut requests: VecDeque<Request>) -> Result<Ended> {
    let mut ended = Ended::Lost;
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(message) = read.wait().await {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "russh grows the enum; the others are answers to nothing that we asked"
        )]
        match message {
            ChannelMsg::Data { data } => {
                stdout.write_all(&data).await?;
                stdout.flush().await?;
            }
            ChannelMsg::ExtendedData { data, ext: 1 } => {
                stderr.write_all(&data).await?;
                stderr.flush().await?;
            }
            ChannelMsg::Success => drop(requests.pop_front()),
            ChannelMsg::Failure => refused(requests.pop_front().as_ref())?,
            ChannelMsg::ExitStatus { exit_status } => ended = Ended::Status(exit_status),
            ChannelMsg::ExitSignal { signal_name, .. } => {
                ended = Ended::Signal(format!("{signal_name:?}"));
            }
            ChannelMsg::Close => break,
            _ => {}
        }
    }
    Ok(ended)
}

fn refused(request: Option<&Request>) -> Result<()> {
    match request {
        Some(Request::Program) => Err(advise(
            "SSH: the server does not run that",
            "see its log, and whether the account has a shell",
        )),
        Some(Request::Terminal) => Err(advise(
            "SSH: the server gives no terminal",
            "the certificate has to permit it (permit-pty); without one: -T",
        )),
        Some(Request::Agent) => {
            terminal::note("ginnel: SSH: the server does not forward the agent\r");
            Ok(())
        }
        Some(Request::Display) => {
            terminal::note(
                "ginnel: SSH: the server does not forward the display: xauth may be missing there, \
                 or the certificate does not permit it (permit-X11-forwarding)\r",
            );
            Ok(())
        }
        None => Ok(()),
    }
}

/// Sends what the person types; ends when the person ends the session.
async fn speak(write: &ChannelWriteHalf<Msg>, mut escape: Escape) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; BUFFER];
    loop {
        // A terminal that has gone away is as good as its end.
        let length = stdin.read(&mut buffer).await.unwrap_or(0);
        if length == 0 {
            // The far end may have closed.
            drop(write.eof().await);
            break;
        }
        let mut out = Vec::with_capacity(length);
        let mut said = String::new();
        let left = escape.handle(&buffer[..length], &mut out, &mut said);
        if !said.is_empty() {
            terminal::note(said.trim_end_matches('\n'));
        }
        if !out.is_empty() && write.data_bytes(out).await.is_err() {
            break;
        }
        if left {
            return;
        }
    }
    // The far end says when it is over.
    std::future::pending::<()>().await;
}

async fn resize(write: &ChannelWriteHalf<Msg>, mut resized: Signal) -> std::convert::Infallible {
    while resized.recv().await.is_some() {
        if let Ok(size) = size(&io::stdin()) {
            let [columns, rows, width, height] = size.numbers();
            // The far end may have closed.
            drop(write.window_change(columns, rows, width, height).await);
        }
    }
    std::future::pending().await
}
