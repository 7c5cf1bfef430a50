//! The display through which programs of a session reach the person's X server.

use std::{io, process::Stdio, time::Duration};

use os::account;
use russh::server::Handle;
use tokio::{io::AsyncWriteExt as _, net::TcpListener, process, task::JoinHandle, time};

use super::Login;
use crate::ssh::channels::Channels;

/// The first display: those below belong to real servers.
const DISPLAY_MIN: u16 = 10;

/// Displays of all sessions of this machine; at the bound there is none.
const DISPLAYS_MAX: u16 = 1_000;

/// TCP port of display 0.
const PORT: u16 = 6_000;

/// A cookie has 16 bytes; we take what a peer may reasonably call one.
const COOKIE_MAX: usize = 512;

/// How long xauth may take: it waits for a lock in the home directory.
const XAUTH_TIMEOUT: Duration = Duration::from_secs(5);

/// A display; it ends with this value.
pub(super) struct Display {
    number: u16,
    task: JoinHandle<()>,
}

/// What a client says about its own display.
pub(super) struct Cookie<'a> {
    pub(super) protocol: &'a str,
    pub(super) cookie: &'a str,
    /// Serve one connection only.
    pub(super) single: bool,
}

impl Display {
    /// Listens on the loopback address and tells the account's programs the cookie.
    pub(super) async fn open(
        login: &Login,
        handle: Handle,
        channels: Channels,
        cookie: Cookie<'_>,
    ) -> io::Result<Self> {
        // Both go into a file of commands for xauth.
        let is_word = |text: &str| {
            let mut bytes = text.bytes();
            !text.is_empty() && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if cookie.cookie.len() > COOKIE_MAX || !is_word(cookie.cookie) || !is_word(cookie.protocol)
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (listener, number) = listen().await?;
        authorise(login, number, &cookie).await?;
        let single = cookie.single;
        let task = tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                let (handle, channels) = (handle.clone(), channels.clone());
                tokio::spawn(async move {
                    let opened = handle.channel_open_x11(from.ip().to_string(), from.port().into());
                    channels.lead(stream, opened).await;
                });
                if single {
                    return;
                }
            }
        });
        Ok(Self { number, task })
    }

    /// Returns the value of `DISPLAY`.
    pub(super) fn name(&self) -> String {
        format!("localhost:{}.0", self.number)
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen() -> io::Result<(TcpListener, u16)> {
    for number in DISPLAY_MIN..DISPLAY_MIN + DISPLAYS_MAX {
        match TcpListener::bind(("127.0.0.1", PORT + number)).await {
            Ok(listener) => return Ok((listener, number)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// Writes the cookie into the account's own file, as the account.
async fn authorise(login: &Login, number: u16, cookie: &Cookie<'_>) -> io::Result<()> {
    let mut command = std::process::Command::new("xauth");
    command
        .args(["-q", "-"])
        .env_clear()
        .env("HOME", &login.account.home)
        .env("PATH", "/usr/bin:/bin:/usr/local/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    account::enter(&mut command, &login.account, login.switch, false);
    let mut child = process::Command::from(command).kill_on_drop(true).spawn()?;
    let Cookie {
        protocol, cookie, ..
    } = cookie;
    // Programs that connect to `localhost` look for the cookie of this machine's own name.
    let display = format!("unix:{number}.0");
    let script = format!("remove {display}\nadd {display} {protocol} {cookie}\n");
    let done = async {
        let mut stdin = child.stdin.take().expect("it was piped");
        stdin.write_all(script.as_bytes()).await?;
        drop(stdin);
        child.wait().await
    };
    match time::timeout(XAUTH_TIMEOUT, done).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(io::Error::other(format!("xauth: {status}"))),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
