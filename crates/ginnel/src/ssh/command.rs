//! `ginnel ssh`: a shell or a command at a node, by a certificate that lives for this login only.

use std::{
    io::{self, IsTerminal as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
};

use anyhow::Result;

use super::{
    client::{
        Offers,
        forward::{Destination, Listener},
        shell::{self, Ended, Wanted},
    },
    login::{Target, Way, log_in},
};
use crate::{
    cli::Global,
    forward::spec::{Local, Spec},
    terminal,
};

/// Log in to a node by SSH
///
/// Makes a key in memory, has it certified for this login, and verifies the host by the
/// organisation's authority; never by a first use. Without COMMAND it is a shell. On a terminal,
/// `~.` at the beginning of a line ends the session, and `~?` tells the other escapes.
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

    /// Run nothing there; for -L, -R and -D
    #[arg(short = 'N', conflicts_with = "command")]
    nothing: bool,

    /// Lead a port of this machine to HOST:PORT as the node reaches it; several are possible
    #[arg(short = 'L', value_name = "[BIND:]PORT:HOST:PORT", value_parser = parse_forward)]
    forwards: Vec<Spec>,

    /// Lead a port of the node to HOST:PORT as this machine reaches it; several are possible, and
    /// with port 0 the node chooses one
    #[arg(short = 'R', value_name = "[BIND:]PORT:HOST:PORT", value_parser = parse_reverse)]
    reverse: Vec<Spec>,

    /// Run a SOCKS5 proxy on this machine whose connections begin at the node
    #[arg(short = 'D', value_name = "[BIND:]PORT", value_parser = parse_dynamic)]
    dynamic: Vec<SocketAddr>,

    /// Let programs there use the ssh-agent of this machine while the session lasts; whoever is
    /// root there can use it too
    #[arg(short = 'A')]
    agent: bool,

    /// Let programs there use the X display of this machine, and its clipboard, while the session
    /// lasts, as fully as your own programs do; whoever is root there can too
    #[arg(short = 'X')]
    display: bool,

    /// Give up after this many seconds without a connection
    #[arg(long, default_value_t = 20, value_name = "SECONDS",
          value_parser = clap::value_parser!(u16).range(1..=300))]
    timeout: u16,
}

const EXAMPLES: &str = "\
Examples:
  ginnel ssh root@db
  ginnel ssh db uptime
  ginnel ssh -N -L 8080:localhost:80 web      port 80 of web here at port 8080
  ginnel ssh -N -R 8080:localhost:80 web      port 80 of this machine at port 8080 of web
  ginnel ssh -N -D 1080 web                   a SOCKS5 proxy out of web
  ginnel ssh -X db vim notes                  a copy there fills the clipboard here

Exit codes: that of COMMAND; 255 when there was no login or the connection broke.";

/// As OpenSSH's client: a failure of our own is not one of the command.
const FAILED: u8 = 255;

/// A shell's answer for a program that a signal ended is this and the signal's number, which the
/// protocol does not tell (RFC 4254, 6.10).
const SIGNALLED: u8 = 128;

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    match session(args, global).await {
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

async fn session(args: Args, global: &Global) -> Result<Ended> {
    let mut listeners = Vec::new();
    for Spec { local, host, port } in args.forwards {
        if let Local::Tcp(local) = local {
            listeners.push(Listener::bind(local, Destination::Fixed(host, port))?);
        }
    }
    for local in args.dynamic {
        listeners.push(Listener::bind(local, Destination::Socks)?);
    }
    let mut offers = Offers::default();
    if args.agent {
        offers = offers.with_agent()?;
    }
    if args.display {
        offers = offers.with_display().await?;
    }
    let (port, timeout) = (args.port, args.timeout);
    let mut connection = log_in(&args.target, Way { port, timeout }, offers, global).await?;
    for listener in listeners {
        let host = &args.target.host;
        terminal::note(format_args!("{} leads to {host}", listener.local()?));
        connection.forward(listener);
    }
    for Spec { local, host, port } in args.reverse {
        if let Local::Tcp(at) = local {
            let target = format!("{host} port {port}");
            let there = connection.lead_here((far_address(at.ip()), at.port()), (host, port));
            let there = there.await?;
            let node = &args.target.host;
            terminal::note(format_args!("port {there} of {node} leads to {target}"));
        }
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

/// What a server makes of an address (RFC 4254, 7.1): nothing is every address, and `localhost` is
/// the loopback addresses of both families.
fn far_address(address: IpAddr) -> &'static str {
    if address.is_unspecified() {
        ""
    } else {
        "localhost"
    }
}

fn parse_forward(text: &str) -> Result<Spec, String> {
    let spec: Spec = text.parse().map_err(|error| format!("{error}"))?;
    match spec.local {
        Local::Tcp(_) => Ok(spec),
        Local::Udp(_) | Local::Unix(_) => Err("SSH leads TCP ports only".to_owned()),
    }
}

fn parse_reverse(text: &str) -> Result<Spec, String> {
    let spec = parse_forward(text)?;
    match spec.local {
        Local::Tcp(at) if !at.ip().is_loopback() && !at.ip().is_unspecified() => {
            Err("a node listens at `localhost`, or at `*` where it permits that".to_owned())
        }
        Local::Tcp(_) | Local::Udp(_) | Local::Unix(_) => Ok(spec),
    }
}

fn parse_dynamic(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    let text = text.replacen("localhost:", "127.0.0.1:", 1);
    text.parse()
        .map_err(|_| "write [BIND:]PORT, such as 1080; IPv6 stands in brackets".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socks_port_is_one_of_this_machine_unless_an_address_stands_before_it() {
        for (text, expected) in [
            ("1080", Some("127.0.0.1:1080")),
            ("0", Some("127.0.0.1:0")),
            ("localhost:1", Some("127.0.0.1:1")),
            ("[::1]:1080", Some("[::1]:1080")),
            ("0.0.0.0:9", Some("0.0.0.0:9")),
            ("65536", None),
            ("", None),
            ("1080:db:1", None),
        ] {
            let parsed = parse_dynamic(text).ok().map(|at| at.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_node_listens_at_its_own_addresses_only() {
        for (text, taken) in [
            ("8080:localhost:80", true),
            ("*:8080:localhost:80", true),
            ("10.0.0.1:8080:localhost:80", false),
            ("8080:localhost:80/udp", false),
        ] {
            assert_eq!(parse_reverse(text).is_ok(), taken, "{text}");
        }
    }
}
