//! A program of a session: it runs as the account, on a terminal or on pipes.

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    },
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    sync::Arc,
};

use model::ssh::COMMAND_BYTES_MAX;
use os::{
    account,
    reactor::Watched,
    terminal::{self, Pty, Size},
};
use russh::{
    ChannelWriteHalf, Sig,
    server::{Handle, Msg},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin},
};

use super::{
    Login,
    record::{Output, Record},
};
use crate::ssh::channels::{Channels, Inbox, Item};

/// Bytes that are read at a time from a terminal.
const BUFFER: usize = 16 * 1024;

/// Where a program is found when its account says nothing.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/games";
const PATH_OF_ROOT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What somebody asks to run.
pub(super) enum Wanted {
    /// The login shell.
    Shell,
    /// A command line for the shell.
    Command(OsString),
    /// The SFTP server.
    Sftp,
}

impl Wanted {
    /// Returns how the list of sessions names it; a shell has no name.
    pub(super) fn line(&self) -> Option<String> {
        match self {
            Self::Shell => None,
            Self::Command(line) => {
                let line = line.to_string_lossy();
                let mut end = line.len().min(COMMAND_BYTES_MAX);
                while !line.is_char_boundary(end) {
                    end -= 1;
                }
                Some(line[..end].to_owned())
            }
            Self::Sftp => Some("sftp".to_owned()),
        }
    }
}

/// A terminal that was asked for.
pub(super) struct Terminal {
    pub(super) pty: Arc<Watched<Pty>>,
    slave: OwnedFd,
    /// At the beginning.
    pub(super) size: Size,
    pub(super) path: PathBuf,
}

/// A program that runs.
pub(super) struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    pty: Option<Arc<Watched<Pty>>>,
    /// Its output is a protocol, which nobody could read in a record.
    is_opaque: bool,
    /// Its process, which leads a group.
    pub(super) pid: u32,
}

impl Terminal {
    /// Opens a terminal that belongs to the account.
    pub(super) fn open(login: &Login, size: Size, modes: &[(u8, u32)]) -> io::Result<Self> {
        let (pty, slave) = Pty::open(size)?;
        let path = terminal::path(&slave)?;
        terminal::set_modes(&slave, modes)?;
        if login.switch {
            let group = account::terminal_group()?.unwrap_or(login.account.gid);
            std::os::unix::fs::chown(&path, Some(login.account.uid), Some(group))?;
        }
        // Others of the group `tty` may write messages, as everywhere (pts(4)).
        fs::set_permissions(&path, fs::Permissions::from_mode(0o620))?;
        Ok(Self {
            pty: Arc::new(Watched::new(pty)?),
            slave,
            size,
            path,
        })
    }
}

impl Program {
    /// Starts what is wanted.
    pub(super) fn start(
        login: &Login,
        wanted: Wanted,
        environment: &[(String, String)],
        terminal: Option<Terminal>,
    ) -> io::Result<Self> {
        // The shell of others says no by itself.
        if matches!(wanted, Wanted::Sftp) && !login.account.has_shell() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let is_opaque = matches!(wanted, Wanted::Sftp) && login.permit.force_command.is_none();
        let mut command = command(login, wanted);
        command
            .envs(base(login))
            .envs(environment.iter().map(|(name, value)| (name, value)));
        account::enter(
            &mut command,
            &login.account,
            login.switch,
            terminal.is_some(),
        );
        let pty = match terminal {
            Some(Terminal { pty, slave, .. }) => {
                command
                    .stdin(slave.try_clone()?)
                    .stdout(slave.try_clone()?)
                    .stderr(slave);
                Some(pty)
            }
            None => {
                command
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped());
                None
            }
        };
        let mut child = tokio::process::Command::from(command).spawn()?;
        let pid = child.id().ok_or_else(|| io::Error::other("it has ended"))?;
        Ok(Self {
            stdin: child.stdin.take(),
            child,
            pty,
            is_opaque,
            pid,
        })
    }

    /// Moves its input and output until it has ended or the channel is closed.
    pub(super) async fn run(
        self,
        channels: Channels,
        handle: Handle,
        write: Arc<ChannelWriteHalf<Msg>>,
        inbox: Inbox,
        record: Option<Record>,
    ) {
        let mut hangup = Hangup(Some(self.pid));
        let closed = inbox.closed();
        let sink = Sink {
            channels: &channels,
            write: &write,
            record: record.as_ref().filter(|_| !self.is_opaque),
        };
        let broken = async {
            match &record {
                Some(record) => record.broken().await,
                None => std::future::pending().await,
            }
        };
        let ended = match self.pty {
            Some(pty) => {
                tokio::select! {
                    status = on_terminal(self.child, &pty, &sink) => status,
                    never = type_in(&pty, inbox) => match never {},
                    () = closed => None,
                    reason = broken => sink.say_broken(&reason).await,
                }
            }
            None => {
                tokio::select! {
                    status = on_pipes(self.child, &sink) => status,
                    never = feed(self.stdin, inbox) => match never {},
                    () = closed => None,
                    reason = broken => sink.say_broken(&reason).await,
                }
            }
        };
        if let Some(status) = ended {
            hangup.0 = None;
            finish(status, &handle, &write).await;
        }
        drop(hangup);
        // The peer may have closed before.
        drop(write.close().await);
        if let Some(record) = &record {
            let status = ended.and_then(|ended| ended.code());
            record.end(status.map(i32::cast_unsigned)).await;
        }
    }
}

/// Tells a program that whoever started it is gone: also when this server ends.
struct Hangup(Option<u32>);

impl Drop for Hangup {
    fn drop(&mut self) {
        if let Some(pid) = self.0
            && let Err(error) = terminal::signal_group(pid, "HUP")
        {
            tracing::debug!(%error, "ssh: hang up");
        }
    }
}

/// Says how the program ended.
async fn finish(status: ExitStatus, handle: &Handle, write: &ChannelWriteHalf<Msg>) {
    // That the peer has gone away is no news here.
    drop(write.eof().await);
    match (
        status.code(),
        status.signal().and_then(terminal::signal_name),
    ) {
        (Some(code), _) => drop(write.exit_status(code.cast_unsigned()).await),
        (None, Some(name)) => {
            let signal = signal(name);
            let core = status.core_dumped();
            let none = String::new();
            let told = handle.exit_signal_request(write.id(), signal, core, none.clone(), none);
            let _unheard = told.await;
        }
        (None, None) => drop(write.exit_status(255).await),
    }
}

fn signal(name: &str) -> Sig {
    match name {
        "ABRT" => Sig::ABRT,
        "ALRM" => Sig::ALRM,
        "FPE" => Sig::FPE,
        "HUP" => Sig::HUP,
        "ILL" => Sig::ILL,
        "INT" => Sig::INT,
        "KILL" => Sig::KILL,
        "PIPE" => Sig::PIPE,
        "QUIT" => Sig::QUIT,
        "SEGV" => Sig::SEGV,
        "TERM" => Sig::TERM,
        "USR1" => Sig::USR1,
        other => Sig::Custom(other.to_owned()),
    }
}

/// Where output goes: into the record first, where there is one.
struct Sink<'a> {
    channels: &'a Channels,
    write: &'a ChannelWriteHalf<Msg>,
    record: Option<&'a Record>,
}

/// SSH_EXTENDED_DATA_STDERR (RFC 4254, 5.2).
const STDERR: u32 = 1;

impl Sink<'_> {
    /// Sends bytes; false if the session has to end.
    async fn send(&self, stream: Option<u32>, output: &mut Option<Output>, bytes: &[u8]) -> bool {
        if let Some(output) = output
            && output.write(bytes).await.is_err()
        {
            // That it is broken is seen, and told, elsewhere.
            return std::future::pending().await;
        }
        let sent = self.channels.send(self.write, stream, bytes.to_vec());
        sent.await.is_ok()
    }

    fn output(&self) -> Option<Output> {
        self.record.map(Record::output)
    }

    /// Sends all that `from` gives.
    async fn pump(&self, mut from: impl AsyncRead + Unpin, stream: Option<u32>) {
        if self.record.is_none() {
            self.channels.pump(from, self.write, stream).await;
            return;
        }
        let mut output = self.output();
        let mut buffer = vec![0; BUFFER];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            if !self.send(stream, &mut output, &buffer[..length]).await {
                return;
            }
        }
    }

    /// Tells the person that the session ends because nobody could read later what it did.
    async fn say_broken(&self, reason: &str) -> Option<ExitStatus> {
        let text = format!("\r\nginnel: this session has to be recorded, and ends: {reason}\r\n");
        // The person may be gone.
        drop(
            self.channels
                .send(self.write, Some(STDERR), text.into_bytes())
                .await,
        );
        None
    }
}

/// The output of a terminal ends with the program, even if others keep the terminal open.
async fn on_terminal(mut child: Child, pty: &Watched<Pty>, sink: &Sink<'_>) -> Option<ExitStatus> {
    let mut buffer = vec![0; BUFFER];
    let mut output = sink.output();
    let status = loop {
        let length = tokio::select! {
            read = pty.read(|pty| pty.read(&mut buffer)) => read.unwrap_or(0),
            status = child.wait() => break status,
        };
        // EIO: nobody has the terminal open any more.
        if length == 0 {
            break child.wait().await;
        }
        if !sink.send(None, &mut output, &buffer[..length]).await {
            return None;
        }
    };
    // What it wrote last.
    while let Ok(length @ 1..) = pty.get().read(&mut buffer) {
        if !sink.send(None, &mut output, &buffer[..length]).await {
            break;
        }
    }
    status.ok()
}

/// The output of pipes ends when the last program has closed them.
async fn on_pipes(mut child: Child, sink: &Sink<'_>) -> Option<ExitStatus> {
    let stdout = child.stdout.take()?;
    let stderr = child.stderr.take()?;
    tokio::join!(sink.pump(stdout, None), sink.pump(stderr, Some(STDERR)),);
    child.wait().await.ok()
}

/// Writes what the person types; waits on when the channel is closed.
async fn type_in(pty: &Watched<Pty>, mut inbox: Inbox) -> std::convert::Infallible {
    while let Some(item) = inbox.recv().await {
        let Item::Data(bytes) = item else {
            continue;
        };
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match pty.write(|pty| pty.write(rest)).await {
                Ok(length) => rest = &rest[length..],
                Err(error) => {
                    tracing::debug!(%error, "ssh: terminal");
                    return std::future::pending().await;
                }
            }
        }
    }
    std::future::pending().await
}

/// Writes what comes to the program's standard input; waits on when the channel is closed.
async fn feed(mut stdin: Option<ChildStdin>, mut inbox: Inbox) -> std::convert::Infallible {
    while let Some(item) = inbox.recv().await {
        match (item, &mut stdin) {
            (Item::Data(bytes), Some(pipe)) => {
                if pipe.write_all(&bytes).await.is_err() {
                    // It does not read any more; what comes is dropped.
                    stdin = None;
                }
            }
            (Item::End, _) => stdin = None,
            (Item::Data(_), None) => {}
        }
    }
    std::future::pending().await
}

fn command(login: &Login, wanted: Wanted) -> Command {
    let shell = &login.account.shell;
    let (wanted, original) = match &login.permit.force_command {
        None => (wanted, None),
        Some(forced) => {
            let original = match wanted {
                Wanted::Shell => None,
                Wanted::Command(line) => Some(line),
                Wanted::Sftp => Some("sftp".into()),
            };
            (Wanted::Command(forced.into()), original)
        }
    };
    let mut command = match wanted {
        Wanted::Shell => {
            let mut command = Command::new(shell);
            // A minus in front says that it is a login shell.
            let name = shell.file_name().unwrap_or(shell.as_os_str());
            let mut argument = OsString::from("-");
            argument.push(name);
            std::os::unix::process::CommandExt::arg0(&mut command, argument);
            command
        }
        Wanted::Command(line) => {
            let mut command = Command::new(shell);
            command.arg("-c").arg(line);
            command
        }
        Wanted::Sftp => {
            // This program itself, as the account: also where its path is closed to the account.
            let mut command = Command::new("/proc/self/exe");
            command.arg("sftp-server");
            command
        }
    };
    command.env_clear();
    if let Some(original) = original {
        command.env("SSH_ORIGINAL_COMMAND", original);
    }
    command
}

fn base(login: &Login) -> [(&'static str, OsString); 5] {
    let account = &login.account;
    let path = if account.uid == 0 { PATH_OF_ROOT } else { PATH };
    [
        ("HOME", account.home.clone().into()),
        ("USER", account.name.clone().into()),
        ("LOGNAME", account.name.clone().into()),
        ("SHELL", account.shell.clone().into()),
        ("PATH", path.into()),
    ]
}
