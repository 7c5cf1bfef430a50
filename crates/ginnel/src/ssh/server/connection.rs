//! One connection: who came in, and what each of its requests leads to.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use model::ssh::{NewSession, Reason, Recording, RefusedLogin, Serial};
use os::{
    account::Account,
    reactor::Watched,
    terminal::{self, Pty, Size},
};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Sig,
    keys::Certificate,
    server::{Auth, ChannelOpenHandle, Handler, Msg, Session, VerifiedPublicKey},
};
use tokio::{sync::oneshot, time};

use super::{
    Login, Shared, forward,
    program::{Program, Terminal, Wanted},
    record::{Head, Record},
    socket::AgentSocket,
    verdict::Verdict,
    x11::{Cookie, Display},
};
use crate::ssh::{
    acceptance::{self, Asked, Refusal},
    channels::{Channels, Inbox, WINDOW, WINDOW_OPENSSH},
};

/// Sessions of one connection.
pub(super) const SESSIONS_MAX: usize = 64;

/// Listeners of one connection.
pub(super) const LISTENERS_MAX: usize = 64;

/// Variables of one session, and bytes of each.
const VARIABLES_MAX: usize = 64;
const VARIABLE_BYTES_MAX: usize = 4_096;

/// Who is trusted has to be known within this time.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The exit status of a session that was not begun.
const REFUSED: u32 = 255;

/// The connection.
pub(super) struct Connection {
    shared: Arc<Shared>,
    remote: SocketAddr,
    local: SocketAddr,
    channels: Channels,
    /// What a channel of this client gets while its reader keeps up.
    window: u32,
    /// Whoever waits for somebody to come in.
    accepted: Option<oneshot::Sender<Login>>,
    login: Option<Login>,
    /// Why nobody came in so far; told when the connection ends so.
    refused: Option<RefusedLogin>,
    /// What russh finds wrong; from the beginning of the authentication on.
    verdict: Option<Verdict>,
    /// Bounded by `SESSIONS_MAX`.
    sessions: BTreeMap<u32, Opened>,
    /// Bounded by `LISTENERS_MAX`.
    listeners: BTreeMap<(String, u32), forward::Listener>,
}

/// A session channel.
struct Opened {
    write: Arc<ChannelWriteHalf<Msg>>,
    /// Until a program takes it.
    inbox: Option<Inbox>,
    /// Bounded by `VARIABLES_MAX`.
    environment: Vec<(String, String)>,
    /// Until a program takes it.
    terminal: Option<Terminal>,
    pty: Option<Arc<Watched<Pty>>>,
    agent: Option<AgentSocket>,
    display: Option<Display>,
    /// Its process, which leads a group.
    program: Option<u32>,
    record: Option<Record>,
}

impl Connection {
    pub(super) fn new(
        shared: Arc<Shared>,
        remote: SocketAddr,
        local: SocketAddr,
        channels: Channels,
        accepted: oneshot::Sender<Login>,
    ) -> Self {
        Self {
            shared,
            remote,
            local,
            channels,
            window: WINDOW_OPENSSH,
            accepted: Some(accepted),
            login: None,
            refused: None,
            verdict: None,
            sessions: BTreeMap::new(),
            listeners: BTreeMap::new(),
        }
    }

    /// Decides who comes in, and as which account.
    async fn decide(&self, user: &str, certificate: &Certificate) -> Result<Login, Refusal> {
        let answer = time::timeout(
            LOOKUP_TIMEOUT,
            (self.shared.organisation.authority)(self.remote.ip()),
        )
        .await;
        let answer = answer.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        let authority = answer.map_err(Refusal::NoAuthority)?;
        let asked = Asked {
            user,
            source: self.remote.ip(),
            now: seconds(),
        };
        let permit = acceptance::accept(certificate, asked, &authority)?;
        let own = &self.shared.own;
        if own.uid != 0 && own.name != user {
            return Err(Refusal::OtherAccount {
                own: own.name.clone(),
                asked: user.to_owned(),
            });
        }
        let name = user.to_owned();
        // The user database may ask a server.
        let account = tokio::task::spawn_blocking(move || Account::named(&name)).await;
        let account = account.ok().and_then(Result::ok).flatten();
        let account = account.ok_or_else(|| Refusal::NoAccount(user.to_owned()))?;
        Ok(Login {
            permit,
            recording: authority.recording,
            switch: account.uid != own.uid,
            account,
        })
    }

    fn refuse(&mut self, user: &str, refusal: &Refusal, shown: Option<&Certificate>) -> Auth {
        self.remember(user, refusal.reason(), shown);
        let (user, remote) = (user.escape_default(), self.remote);
        if *refusal == Refusal::RawKey {
            // OpenSSH offers the bare key of a certificate first, at each login.
            tracing::info!(%remote, %user, "ssh: refused: {refusal}");
        } else {
            tracing::warn!(%remote, %user, "ssh: refused: {refusal}");
        }
        Auth::reject()
    }

    /// Keeps why a login was refused. That a bare key was offered says less than all else: OpenSSH
    /// offers one beside each certificate.
    fn remember(&mut self, user: &str, reason: Reason, shown: Option<&Certificate>) {
        let known = self.refused.as_ref().map(|known| known.reason);
        if known.is_some_and(|known| telling(reason) < telling(known)) {
            return;
        }
        self.refused = Some(RefusedLogin {
            account: user.parse().ok(),
            source: self.remote.ip().to_canonical(),
            reason,
            serial: shown.map(|certificate| Serial(certificate.serial())),
            key_id: shown.and_then(|certificate| certificate.key_id().parse().ok()),
            clock: None,
            untold: 0,
        });
    }

    fn permits(&self, what: impl Fn(&acceptance::Permit) -> bool) -> bool {
        self.login.as_ref().is_some_and(|login| what(&login.permit))
    }

    fn opened(&mut self, channel: ChannelId) -> Option<&mut Opened> {
        self.sessions.get_mut(&channel.number())
    }

    /// Runs what is wanted in the session.
    async fn start(
        &mut self,
        channel: ChannelId,
        wanted: Wanted,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let (handle, channels) = (session.handle(), self.channels.clone());
        let (from, at) = (self.remote, self.local);
        let connection = format!("{} {} {} {}", from.ip(), from.port(), at.ip(), at.port());
        let client = format!("{} {} {}", from.ip(), from.port(), at.port());
        let record = match self.record(channel, &wanted).await {
            Ok(record) => record,
            Err(reason) => return self.turn_down(channel, &reason, session),
        };
        let (Some(login), Some(opened)) = (&self.login, self.sessions.get_mut(&channel.number()))
        else {
            return session.channel_failure(channel);
        };
        // One session, one program (RFC 4254, 6.5).
        let Some(inbox) = opened.inbox.take() else {
            return session.channel_failure(channel);
        };
        let mut environment = std::mem::take(&mut opened.environment);
        environment.push(("SSH_CONNECTION".into(), connection));
        environment.push(("SSH_CLIENT".into(), client));
        let terminal = opened.terminal.take();
        let variables = [
            (
                "SSH_TTY",
                terminal
                    .as_ref()
                    .map(|terminal| terminal.path.display().to_string()),
            ),
            (
                "SSH_AUTH_SOCK",
                opened
                    .agent
                    .as_ref()
                    .map(|agent| agent.path().display().to_string()),
            ),
            ("DISPLAY", opened.display.as_ref().map(Display::name)),
        ];
        let variables = variables.into_iter();
        let variables = variables.filter_map(|(name, value)| Some((name.to_owned(), value?)));
        environment.extend(variables);
        match Program::start(login, wanted, &environment, terminal) {
            Ok(program) => {
                opened.program = Some(program.pid);
                opened.record.clone_from(&record);
                let write = Arc::clone(&opened.write);
                tokio::spawn(program.run(channels, handle, write, inbox, record));
                session.channel_success(channel)
            }
            Err(error) => {
                tracing::warn!(%error, user = login.account.name, "ssh: start a program");
                if let Some(record) = record {
                    record.end(None).await;
                }
                session.channel_failure(channel)
            }
        }
    }

    /// Begins the record of a session that has to be recorded; an error says why there is none.
    async fn record(
        &mut self,
        channel: ChannelId,
        wanted: &Wanted,
    ) -> Result<Option<Record>, String> {
        let answer = (self.shared.organisation.authority)(self.remote.ip());
        let answer = time::timeout(LOOKUP_TIMEOUT, answer).await;
        let Some(login) = &mut self.login else {
            return Ok(None);
        };
        // While nobody knows, what was known holds.
        if let Ok(Ok(authority)) = answer {
            login.recording = authority.recording;
        }
        let Some(opened) = self.sessions.get(&channel.number()) else {
            return Ok(None);
        };
        let terminal = opened.terminal.as_ref();
        let demanded = match login.recording {
            Recording::Off => false,
            Recording::Pty => terminal.is_some(),
            Recording::All => true,
        };
        // A session has one program; the second is refused without a record.
        if !demanded || opened.inbox.is_none() {
            return Ok(None);
        }
        let archive = self.shared.organisation.archive.as_ref();
        let archive = archive.ok_or("this server has no place for records")?;
        let account = login.account.name.as_str();
        let session = NewSession {
            serial: Serial(login.permit.serial),
            account: account
                .parse()
                .map_err(|_| "the account cannot be named".to_owned())?,
            source: self.remote.ip().to_canonical(),
            terminal: terminal.is_some(),
            command: wanted.line(),
        };
        let term = opened.environment.iter().find(|(name, _)| name == "TERM");
        let head = Head {
            size: terminal.map(|terminal| terminal.size),
            term: term.map(|(_, value)| value.as_str()),
            shell: &login.account.shell.to_string_lossy(),
            title: format!("{account} at {}", self.local.ip()),
        };
        let begun = Record::begin(Arc::clone(archive), session, head).await;
        begun.map(Some)
    }

    /// Tells the person why a session that has to be recorded does not begin.
    fn turn_down(
        &mut self,
        channel: ChannelId,
        reason: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let remote = self.remote;
        tracing::warn!(%remote, "ssh: a session that has to be recorded is refused: {reason}");
        // What the administrator needs is in the log; the person need not know the server's faults.
        let text = "ginnel: this session has to be recorded and cannot be now; try again, or ask \
                    an administrator\r\n";
        session.channel_success(channel)?;
        let Some(opened) = self.opened(channel) else {
            return Ok(());
        };
        opened.inbox = None;
        let write = Arc::clone(&opened.write);
        tokio::spawn(async move {
            // The person may be gone.
            drop(write.extended_data_bytes(1, text.as_bytes().to_vec()).await);
            drop(write.eof().await);
            drop(write.exit_status(REFUSED).await);
            drop(write.close().await);
        });
        Ok(())
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    /// The first call on the task that serves the connection.
    async fn authentication_banner(&mut self) -> Result<Option<String>, Self::Error> {
        self.verdict = Some(Verdict::listen());
        Ok(None)
    }

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Self::Error> {
        // Every client begins so.
        self.remember(user, Reason::NoUsableCertificate, None);
        Ok(Auth::reject())
    }

    async fn auth_password(&mut self, user: &str, _: &str) -> Result<Auth, Self::Error> {
        Ok(self.refuse(user, &Refusal::Password, None))
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        _: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.refuse(user, &Refusal::RawKey, None))
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Self::Error> {
        match self.decide(user, certificate).await {
            Ok(login) => {
                let (remote, permit) = (self.remote, &login.permit);
                let key_id = permit.key_id.escape_default();
                tracing::info!(%remote, user, serial = permit.serial, %key_id, "ssh: accepted");
                self.login = Some(login);
                Ok(Auth::Accept)
            }
            Err(refusal) => Ok(self.refuse(user, &refusal, Some(certificate))),
        }
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), Self::Error> {
        if !session.remote_sshid().starts_with(b"SSH-2.0-OpenSSH") {
            self.window = WINDOW;
        }
        if let (Some(login), Some(accepted)) = (&self.login, self.accepted.take()) {
            // Whoever waits may have gone.
            drop(accepted.send(login.clone()));
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.sessions.len() >= SESSIONS_MAX || !self.channels.admit(channel.id()) {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let (_, write) = channel.split();
        let id = write.id();
        let opened = Opened {
            write: Arc::new(write),
            inbox: Some(self.channels.take(id)),
            environment: Vec::new(),
            terminal: None,
            pty: None,
            agent: None,
            display: None,
            program: None,
            record: None,
        };
        self.sessions.insert(id.number(), opened);
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let Ok(port) = u16::try_from(port) else {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        };
        if !self.permits(|permit| permit.port_forwarding) {
            let reason = ChannelOpenFailure::AdministrativelyProhibited;
            reply.reject(reason).await;
        } else if !self.channels.admit(channel.id()) {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
        } else {
            forward::connect(self.channels.clone(), channel, reply, host.to_owned(), port);
        }
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        // We would connect with our own rights, not with the account's.
        let own = self.login.as_ref().is_some_and(|login| !login.switch);
        if !own || !self.permits(|permit| permit.port_forwarding) {
            let reason = ChannelOpenFailure::AdministrativelyProhibited;
            reply.reject(reason).await;
        } else if !self.channels.admit(channel.id()) {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
        } else {
            forward::connect_unix(self.channels.clone(), channel, reply, path.to_owned());
        }
        Ok(())
    }

    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _: u32,
        _: u32,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.channels.open(id);
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let pushed = self.channels.push(channel, data).await;
        pushed.map_err(|_| russh::Error::Pending)
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        self.channels.window(self.window)
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        self.channels.end(id);
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        self.channels.close(id);
        self.sessions.remove(&id.number());
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(russh::Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let modes: Vec<_> = modes
            .iter()
            .map(|(code, value)| (*code as u8, *value))
            .collect();
        let (Some(login), Some(opened)) = (&self.login, self.sessions.get_mut(&channel.number()))
        else {
            return session.channel_failure(channel);
        };
        let is_word = term.len() <= VARIABLE_BYTES_MAX && !term.contains('\0');
        if !login.permit.pty || opened.terminal.is_some() || !is_word {
            return session.channel_failure(channel);
        }
        match Terminal::open(login, size(columns, rows, width, height), &modes) {
            Ok(terminal) => {
                opened.pty = Some(Arc::clone(&terminal.pty));
                opened.terminal = Some(terminal);
                opened.environment.push(("TERM".into(), term.into()));
                session.channel_success(channel)
            }
            Err(error) => {
                tracing::warn!(%error, "ssh: open a terminal");
                session.channel_failure(channel)
            }
        }
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let size = size(columns, rows, width, height);
        if let Some(pty) = self.opened(channel).and_then(|opened| opened.pty.as_ref())
            && let Err(error) = pty.get().resize(size)
        {
            tracing::debug!(%error, "ssh: resize a terminal");
        }
        if let Some(record) = self
            .opened(channel)
            .and_then(|opened| opened.record.as_ref())
        {
            record.resize(size);
        }
        Ok(())
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let fits = value.len() <= VARIABLE_BYTES_MAX && !value.contains('\0');
        match self.opened(channel) {
            Some(opened)
                if is_harmless(name) && fits && opened.environment.len() < VARIABLES_MAX =>
            {
                opened.environment.push((name.to_owned(), value.to_owned()));
                session.channel_success(channel)
            }
            Some(_) | None => session.channel_failure(channel),
        }
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.start(channel, Wanted::Shell, session).await
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        line: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        use std::os::unix::ffi::OsStringExt as _;
        let line = std::ffi::OsString::from_vec(line.to_vec());
        self.start(channel, Wanted::Command(line), session).await
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match name {
            "sftp" => self.start(channel, Wanted::Sftp, session).await,
            _ => session.channel_failure(channel),
        }
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let name = match &signal {
            Sig::ABRT => "ABRT",
            Sig::ALRM => "ALRM",
            Sig::FPE => "FPE",
            Sig::HUP => "HUP",
            Sig::ILL => "ILL",
            Sig::INT => "INT",
            Sig::KILL => "KILL",
            Sig::PIPE => "PIPE",
            Sig::QUIT => "QUIT",
            Sig::SEGV => "SEGV",
            Sig::TERM => "TERM",
            Sig::USR1 => "USR1",
            Sig::Custom(name) => name,
        };
        if let Some(pid) = self.opened(channel).and_then(|opened| opened.program)
            && let Err(error) = terminal::signal_group(pid, name)
        {
            tracing::debug!(%error, "ssh: signal a program");
        }
        Ok(())
    }

    async fn agent_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let (handle, channels) = (session.handle(), self.channels.clone());
        let (Some(login), Some(opened)) = (&self.login, self.sessions.get_mut(&channel.number()))
        else {
            return Ok(false);
        };
        if !login.permit.agent_forwarding {
            session.channel_failure(channel)?;
            return Ok(false);
        }
        match AgentSocket::open(login, handle, channels) {
            Ok(agent) => {
                opened.agent = Some(agent);
                session.channel_success(channel)?;
                Ok(true)
            }
            Err(error) => {
                tracing::warn!(%error, "ssh: listen for the agent");
                session.channel_failure(channel)?;
                Ok(false)
            }
        }
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        single: bool,
        protocol: &str,
        cookie: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let (handle, channels) = (session.handle(), self.channels.clone());
        let (Some(login), Some(opened)) = (&self.login, self.sessions.get_mut(&channel.number()))
        else {
            return session.channel_failure(channel);
        };
        if !login.permit.x11_forwarding || opened.display.is_some() {
            return session.channel_failure(channel);
        }
        let cookie = Cookie {
            protocol,
            cookie,
            single,
        };
        match Display::open(login, handle, channels, cookie).await {
            Ok(display) => {
                opened.display = Some(display);
                session.channel_success(channel)
            }
            Err(error) => {
                tracing::warn!(%error, "ssh: open a display");
                session.channel_failure(channel)
            }
        }
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Ok(wanted) = u16::try_from(*port) else {
            return Ok(false);
        };
        let root = self
            .login
            .as_ref()
            .is_some_and(|login| login.account.uid == 0);
        let allowed = wanted == 0 || wanted >= forward::PORT_UNPRIVILEGED || root;
        if !self.permits(|permit| permit.port_forwarding)
            || !allowed
            || self.listeners.len() >= LISTENERS_MAX
        {
            return Ok(false);
        }
        let handle = session.handle();
        match forward::Listener::open(&handle, &self.channels, address, wanted).await {
            Ok(listener) => {
                *port = listener.port.into();
                self.listeners.insert((address.to_owned(), *port), listener);
                Ok(true)
            }
            Err(error) => {
                tracing::debug!(%error, "ssh: listen for a forward");
                Ok(false)
            }
        }
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _: &mut Session,
    ) -> Result<bool, Self::Error> {
        let key = (address.to_owned(), port);
        Ok(self.listeners.remove(&key).is_some())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.login.is_none()
            && let Some(mut refused) = self.refused.take()
        {
            let verdict = self.verdict.as_ref().and_then(Verdict::reason);
            if let Some(reason) =
                verdict.filter(|reason| telling(*reason) > telling(refused.reason))
            {
                refused.reason = reason;
            }
            let timely = [
                Reason::ExpiredOrNotYetValid,
                Reason::Expired,
                Reason::NotYetValid,
            ];
            refused.clock = timely.contains(&refused.reason).then(seconds);
            (self.shared.organisation.refused)(refused);
        }
    }
}

/// Returns the seconds since 1970.
fn seconds() -> u64 {
    let now = os::clock::wall().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// How much a reason says beside others of the same connection.
fn telling(reason: Reason) -> u8 {
    match reason == Reason::NoUsableCertificate {
        true => 0,
        false => 2 - u8::from(reason == Reason::RawKey),
    }
}

/// Whether a variable can only change how a program looks or speaks, not what it runs.
fn is_harmless(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    match name {
        "LANG" | "LANGUAGE" | "COLORTERM" | "NO_COLOR" | "TERM_PROGRAM" | "GIT_PROTOCOL" => true,
        _ => name.len() <= 32 && name.starts_with("LC_") && name.bytes().all(is_word),
    }
}

/// Sizes beyond what a terminal can have are cut.
fn size(columns: u32, rows: u32, width: u32, height: u32) -> Size {
    let cut = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    Size {
        columns: cut(columns),
        rows: cut(rows),
        width: cut(width),
        height: cut(height),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_variables_of_look_and_language_are_taken() {
        for name in ["LANG", "LC_ALL", "LC_A_B", "GIT_PROTOCOL"] {
            assert!(is_harmless(name), "{name}");
        }
        for name in [
            "PATH",
            "LD_PRELOAD",
            "BASH_ENV",
            "LC_A=B",
            "LC_\n",
            "TERM",
            "ENV",
            "",
        ] {
            assert!(!is_harmless(name), "{name}");
        }
    }
}
