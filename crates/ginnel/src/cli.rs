//! The command line: global flags and one variant for each command.

use std::{ffi::OsString, future::Future, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{
    ArgAction, Args, CommandFactory as _, Parser, Subcommand,
    builder::{PathBufValueParser, TypedValueParser as _},
};

use crate::{
    admin, agent, backup, capture, cert, completions, demo, dial, doctor, events, extcap, forward,
    gateway, join, login, logout, manual, metrics, ping, proxy, replay, resolve, restore, server,
    ssh, ssh_config, ssh_server, status, trace, tun, up, whoami, whois,
};

/// A private network that a team runs itself.
///
/// Reaches any machine of the network by name, from anywhere, without root: WireGuard and TCP/IP
/// run inside this program.
#[derive(Debug, Parser)]
#[command(name = "ginnel", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  ginnel --config wg0.conf dial 10.0.0.5 22        one connection on stdin and stdout
  ginnel --config wg0.conf forward 5432:db:5432    a remote port on this machine
  ginnel --config wg0.conf proxy                   a SOCKS5 and HTTP proxy into the network

Exit codes: 0 done, 1 failed, 2 wrong usage.";

/// Flags that every command understands.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Keep this node's state in DIR [default: $XDG_STATE_HOME/ginnel; as root /var/lib/ginnel]
    // Absolute, because the local agent that a command starts runs in another directory.
    #[arg(long, global = true, env = "GINNEL_STATE", value_name = "DIR",
        value_parser = PathBufValueParser::new().try_map(std::path::absolute))]
    pub(crate) state: Option<PathBuf>,

    /// Use a plain WireGuard configuration, such as wg-quick's, instead of an enrolled node
    #[arg(long, global = true, env = "GINNEL_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Print results as JSON on stdout
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Say more on stderr; -vv and -vvv say still more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Write the log on stderr as one JSON object a line
    #[arg(long, global = true, env = "GINNEL_LOG_JSON", hide_env = true)]
    pub(crate) log_json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(demo::Args),
    Server(server::Args),
    Backup(backup::Args),
    Restore(restore::Args),
    Gateway(gateway::Args),
    Login(login::Args),
    Join(join::Args),
    Up(up::Args),
    Logout(logout::Args),
    Whoami(whoami::Args),
    Whois(whois::Args),
    Dial(dial::Args),
    Forward(forward::Args),
    Proxy(proxy::Args),
    Ping(ping::Args),
    Trace(trace::Args),
    Resolve(resolve::Args),
    Status(status::Args),
    Doctor(doctor::Args),
    Metrics(metrics::Args),
    Events(events::Args),
    Capture(capture::Args),
    Extcap(extcap::Args),
    Replay(replay::Args),
    Tun(tun::Args),
    Org(admin::org::Args),
    User(admin::user::Args),
    Oidc(admin::oidc::Args),
    Node(admin::node::Args),
    Token(admin::token::Args),
    Service(admin::service::Args),
    Site(admin::site::Args),
    Peer(admin::peer::Args),
    Policy(admin::policy::Args),
    Audit(admin::audit::Args),
    Cert(cert::Args),
    Ssh(ssh::command::Args),
    Cp(ssh::copy::Args),
    Sftp(ssh::sftp::Args),
    SshConfig(ssh_config::Args),
    SshCa(admin::ssh_ca::Args),
    Session(admin::session::Args),
    SshServer(ssh_server::Args),
    #[command(hide = true)]
    SftpServer(ssh::sftp_server::Args),
    #[command(hide = true)]
    Agent(agent::Args),
    #[command(hide = true)]
    Completions(completions::Args),
    #[command(hide = true)]
    Man(manual::Args),
}

impl Command {
    /// Runs the command to its end.
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<ExitCode> {
        match self {
            Self::Demo(args) => block_on(demo::run(args)),
            Self::Server(args) => serve_on(server::run(args, global)),
            Self::Backup(args) => block_on(backup::run(args, global)),
            Self::Restore(args) => block_on(restore::run(args, global)),
            Self::Gateway(args) => serve_on(gateway::run(args, global)),
            Self::Login(args) => block_on(login::run(args, global)),
            Self::Join(args) => block_on(join::run(args, global)),
            Self::Up(args) => serve_on(up::run(args, global)),
            Self::Logout(args) => block_on(logout::run(args, global)),
            Self::Whoami(args) => block_on(whoami::run(args, global)),
            Self::Whois(args) => block_on(whois::run(args, global)),
            Self::Dial(args) => block_on(dial::run(args, global)),
            Self::Forward(args) => block_on(forward::run(args, global)),
            Self::Proxy(args) => block_on(proxy::run(args, global)),
            Self::Ping(args) => block_on(ping::run(args, global)),
            Self::Trace(args) => block_on(trace::run(args, global)),
            Self::Resolve(args) => block_on(resolve::run(args, global)),
            Self::Status(args) => block_on(status::run(args, global)),
            Self::Events(args) => block_on(events::run(args, global)),
            Self::Metrics(args) => block_on(metrics::run(args, global)),
            Self::Doctor(args) => block_on(doctor::run(args, global)),
            Self::Capture(args) => block_on(capture::run(args, global)),
            Self::Extcap(args) => block_on(extcap::run(args, global)),
            Self::Replay(args) => replay::run(&args, global),
            Self::Tun(args) => tun::run(&args),
            Self::Org(args) => block_on(admin::org::run(args, global)),
            Self::User(args) => block_on(admin::user::run(args, global)),
            Self::Oidc(args) => block_on(admin::oidc::run(args, global)),
            Self::Node(args) => block_on(admin::node::run(args, global)),
            Self::Token(args) => block_on(admin::token::run(args, global)),
            Self::Service(args) => block_on(admin::service::run(args, global)),
            Self::Site(args) => block_on(admin::site::run(args, global)),
            Self::Peer(args) => block_on(admin::peer::run(args, global)),
            Self::Policy(args) => block_on(admin::policy::run(args, global)),
            Self::Audit(args) => block_on(admin::audit::run(args, global)),
            Self::Cert(args) => block_on(cert::run(args, global)),
            Self::Ssh(args) => block_on(ssh::command::run(args, global)),
            Self::Cp(args) => block_on(ssh::copy::run(args, global)),
            Self::Sftp(args) => block_on(ssh::sftp::run(args, global)),
            Self::SshConfig(args) => ssh_config::run(&args, global),
            Self::SshCa(args) => block_on(admin::ssh_ca::run(args, global)),
            Self::Session(args) => block_on(admin::session::run(args, global)),
            Self::SshServer(args) => serve_on(ssh_server::run(args, global)),
            Self::SftpServer(args) => block_on(ssh::sftp_server::run(args)),
            Self::Agent(args) => serve_on(agent::run(args, global)),
            Self::Completions(args) => completions::run(&args),
            Self::Man(args) => manual::run(&args),
        }
    }
}

/// Returns the command line of this process.
pub(crate) fn arguments() -> Vec<OsString> {
    let cli = Cli::command();
    let commands: Vec<_> = cli.get_subcommands().map(clap::Command::get_name).collect();
    let arguments = extcap::expand(std::env::args_os().collect());
    tun::expand(arguments, &commands)
}

/// Runs a command that waits for sockets, on one thread: it only moves bytes.
fn block_on<F>(command: F) -> anyhow::Result<ExitCode>
where
    F: Future<Output = anyhow::Result<ExitCode>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let result = runtime.block_on(command);
    // A blocked read of stdin must not keep the process alive.
    runtime.shutdown_background();
    result
}

/// How long what serves may take to be dropped.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs a command that serves others, on as many threads as the machine has cores.
fn serve_on<F>(command: F) -> anyhow::Result<ExitCode>
where
    F: Future<Output = anyhow::Result<ExitCode>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let result = runtime.block_on(command);
    // What serves is dropped, which hangs up programs of SSH sessions; nothing may hold the end up.
    runtime.shutdown_timeout(END_TIMEOUT);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_commands_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_visible_command_teaches_by_an_example() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            if !command.is_hide_set() {
                let help = command.get_after_help().map(ToString::to_string);
                let help = help.unwrap_or_default();
                assert!(help.contains("Examples:"), "{}", command.get_name());
            }
        }
    }
}
