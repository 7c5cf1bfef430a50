//! `ginnel ssh`: a shell or a command at a node, by a certificate that lives for this login only.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use model::ssh::{Principal, UserCertificateRequest};
use os::account::Account;
use russh::keys::{Certificate, ssh_key::public::KeyData};

use super::client::{
    Connection, Credentials, Trust,
    forward::Listener,
    shell::{self, Ended, Wanted},
};
use crate::{
    admin,
    agent::{Client, client::Pipe, protocol::Failure},
    cert,
    cli::Global,
    forward::spec::{Local, Spec},
    remedy::Advise as _,
    terminal,
};

/// Log in to a node by SSH
///
/// Makes a key in memory, has it certified for this login, and verifies the host by the
/// organisation's authority; never by a first use. Without COMMAND it is a shell. On a terminal,
/// `~.` at the beginning of a line ends the session.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The node, and the account there [default: the name of your own account]
    #[arg(value_name = "[USER@]HOST")]
    target: Target,

    /// What to run there; its exit status becomes ours
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,

    /// The port of its SSH server
    #[arg(short, long, default_value_t = 22, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,

    /// A terminal there also for a command
    #[arg(short = 't', conflicts_with = "no_terminal")]
    force_terminal: bool,

    /// No terminal there
    #[arg(short = 'T')]
    no_terminal: bool,

    /// Run nothing there; for -L
    #[arg(short = 'N', conflicts_with = "command")]
    nothing: bool,

    /// Lead a port of this machine to HOST:PORT as the node reaches it; several are possible
    #[arg(short = 'L', value_name = "[BIND:]PORT:HOST:PORT", value_parser = parse_forward)]
    forwards: Vec<Spec>,

    /// Give up after this many seconds without a connection
    #[arg(long, default_value_t = 20, value_name = "SECONDS",
          value_parser = clap::value_parser!(u16).range(1..=300))]
    timeout: u16,
}

const EXAMPLES: &str = "\
Examples:
  ginnel ssh root@db
  ginnel ssh db uptime
  ginnel ssh -N -L 8080:localhost:80 web

Exit codes: that of COMMAND; 255 when there was no login or the connection broke.";

/// An account at a node.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Target {
    user: Option<Principal>,
    host: String,
}

/// Why a text names no account at a node.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
enum MalformedTarget {
    #[error("write [USER@]HOST, such as root@db")]
    Host,
    #[error(transparent)]
    User(#[from] model::ssh::MalformedPrincipal),
}

/// As OpenSSH's client: a failure of our own is not one of the command.
const FAILED: u8 = 255;

/// A shell's answer for a program that a signal ended is this and the signal's number, which the
/// protocol does not tell (RFC 4254, 6.10).
const SIGNALLED: u8 = 128;

/// Long enough to log in with clocks that differ.
const TTL: Duration = Duration::from_secs(5 * 60);

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    match log_in(args, global).await {
        Ok(Ended::Status(status)) => Ok(ExitCode::from(u8::try_from(status).unwrap_or(FAILED))),
        Ok(Ended::Signal(name)) => {
            terminal::note(format_args!("ginnel: SSH: ended by signal {name}"));
            Ok(ExitCode::from(SIGNALLED))
        }
        Ok(Ended::Left) => Ok(ExitCode::SUCCESS),
        Ok(Ended::Lost) => {
            terminal::note("ginnel: SSH: the connection was lost");
            Ok(ExitCode::from(FAILED))
        }
        Err(error) => {
            // Its exit code could be the command's.
            let _ours = terminal::report(&error, global.json);
            Ok(ExitCode::from(FAILED))
        }
    }
}

async fn log_in(args: Args, global: &Global) -> Result<Ended> {
    let Target { user, host } = args.target;
    let user = user.map_or_else(own_name, Ok)?;
    let mut listeners = Vec::new();
    for Spec { local, host, port } in args.forwards {
        if let Local::Tcp(local) = local {
            listeners.push(Listener::bind(local, host, port)?);
        }
    }
    let client = Client::of(global)?;
    let timeout = Duration::from_secs(args.timeout.into());
    let (credentials, trust) = certify(&user, &host, global).await?;
    let pipe = client.dial(&host, args.port, timeout).await?;
    let Pipe { stream, .. } = pipe.map_err(Failure::into_error)?;
    let mut connection = Connection::open(stream, user.as_str(), credentials, trust).await?;
    for listener in listeners {
        terminal::note(format_args!("{} leads to {host}", listener.local()?));
        connection.forward(listener);
    }
    if args.nothing {
        return tokio::select! {
            () = connection.ended() => Ok(Ended::Lost),
            interrupted = terminal::interrupted() => Ok(interrupted.map(|()| Ended::Left)?),
        };
    }
    let command = (!args.command.is_empty()).then(|| args.command.join(" "));
    let wants_terminal = command.is_none() && io::stdin().is_terminal();
    let wanted = Wanted {
        terminal: !args.no_terminal && (args.force_terminal || wants_terminal),
        command,
    };
    shell::run(&connection, &wanted).await
}

/// Makes a key in memory and has it certified; also tells whom the organisation trusts.
async fn certify(user: &Principal, host: &str, global: &Global) -> Result<(Credentials, Trust)> {
    let key = cert::make_key()?;
    let request = UserCertificateRequest {
        public_key: cert::public_key(&key)?,
        ttl_seconds: Some(TTL.as_secs()),
        principals: vec![user.clone()],
    };
    let issued = admin::client(global)?.certify_user(&request).await?;
    let certificate = Certificate::from_openssh(issued.certificate.as_str())
        .context("read the server's certificate")?;
    ensure!(
        certificate.public_key() == &KeyData::from(key.public_key()),
        "the server certified another key"
    );
    let trust = Trust::new(host, &issued.keys);
    Ok((Credentials { key, certificate }, trust))
}

fn own_name() -> Result<Principal> {
    let account = Account::own().context("find the own account")?;
    let account = account
        .context("the user database does not know this process's user")
        .remedy("name the account: USER@HOST")?;
    let name = account.name.parse();
    name.context("the name of the own account")
        .remedy("name the account: USER@HOST")
}

impl FromStr for Target {
    type Err = MalformedTarget;

    fn from_str(text: &str) -> Result<Self, MalformedTarget> {
        let (user, host) = match text.rsplit_once('@') {
            Some((user, host)) => (Some(user.parse()?), host),
            None => (None, text),
        };
        if host.is_empty() {
            return Err(MalformedTarget::Host);
        }
        let host = host.to_owned();
        Ok(Self { user, host })
    }
}

fn parse_forward(text: &str) -> Result<Spec, String> {
    let spec: Spec = text.parse().map_err(|error| format!("{error}"))?;
    match spec.local {
        Local::Tcp(_) => Ok(spec),
        Local::Udp(_) | Local::Unix(_) => Err("SSH leads TCP ports only".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_stands_before_the_last_at_sign() {
        let parse = |text: &str| {
            text.parse::<Target>()
                .ok()
                .map(|target| (target.user.map(|user| user.to_string()), target.host))
        };
        let named = |user: &str| Some((Some(user.to_owned()), "db".to_owned()));
        assert_eq!(parse("db"), Some((None, "db".to_owned())));
        assert_eq!(parse("root@db"), named("root"));
        assert_eq!(parse("me@example.org@db"), named("me@example.org"));
        for text in ["", "@db", "root@", "-oProxyCommand=x@db", "a b@db"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
