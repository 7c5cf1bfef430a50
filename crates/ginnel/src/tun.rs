//! `ginnel tun`: a userspace WireGuard interface, driven by `wg` and `wg-quick` as wireguard-go is.

mod capture;
mod configuration;
mod control;
mod engine;
mod handshakes;
mod keylog;
mod metrics;
mod receive;
mod tap;
mod transmit;
mod tunnel;
mod uapi;
mod wire;

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{Read as _, Write as _},
    num::NonZeroU8,
    os::{
        fd::RawFd,
        unix::{fs::DirBuilderExt as _, net::UnixListener, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::Context as _;
use os::{
    privilege::{self, Capability, DropError},
    process,
    tun::{OffloadMax, OpenError, Options, Tun},
    unix::{self, ListenError, SocketFile},
};

pub(crate) use self::uapi::{Errno, REPORT, Wanted};
use self::{
    control::Control,
    engine::{Ended, Engine},
    keylog::Writer,
};
use crate::{metrics::listener, offload, remedy::Advise as _};

/// Make a WireGuard network interface without the kernel module
///
/// Configured by `wg` and `wg-quick` through /var/run/wireguard/NAME.sock, as wireguard-go is. Goes
/// to the background once the interface and the socket are there. Needs root or CAP_NET_ADMIN.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Name of the interface, at most 15 bytes
    name: String,

    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,

    /// Become this user once everything is set up; only root can
    ///
    /// As root or not, it keeps the rights to set firewall marks and to use ports below 1024, and
    /// no other. The socket in /var/run/wireguard stays root's, and stays there at the end, as
    /// nobody but root may remove it; `wg` and the next start take it for what it is.
    #[arg(long, value_name = "NAME", env = "GINNEL_TUN_USER", hide_env = true)]
    user: Option<String>,

    /// Append the keys of each handshake to this file, for Wireshark (wg.keylog_file)
    ///
    /// Whoever reads the file reads the traffic and can be this machine: it holds the private key.
    /// Replace the key once the capture is made.
    #[arg(long, value_name = "FILE")]
    key_log: Option<PathBuf>,

    /// Threads in each direction, with queues of the interface of their own; with few cores one
    /// of each is fastest
    #[arg(long, value_name = "N", default_value = "1",
          value_parser = clap::value_parser!(u8).range(1..=QUEUES_MAX))]
    queues: u8,

    #[command(flatten)]
    metrics: listener::Address,
}

const EXAMPLES: &str = "\
Examples:
  ginnel tun wg0 && wg setconf wg0 wg0.conf
  ginnel tun wg0 --metrics 127.0.0.1:9586        then: curl http://127.0.0.1:9586/metrics
  WG_QUICK_USERSPACE_IMPLEMENTATION=ginnel wg-quick up wg0

Environment, as for wireguard-go: WG_TUN_FD and WG_UAPI_FD (open descriptors to use),
WG_PROCESS_FOREGROUND=1 (as -f), WG_TUN_NAME_FILE (where to write the interface's name),
LOG_LEVEL (in the background: keep the log on stderr). GINNEL_TUN_USER=NAME is as --user, for
wg-quick. GINNEL_OFFLOAD=off moves every packet by
itself, for kernels and network cards whose segmentation is broken; tcp and checksums let
the interface pass only so much as one.";

/// Makes of `ginnel NAME` what it means when `wg-quick` runs it: `ginnel tun NAME`.
///
/// `wg-quick` runs its userspace implementation as one word with one argument, so there is no room
/// for `tun`: that word is `ginnel`, or a link to it named `ginnel-tun`.
pub(crate) fn expand(mut arguments: Vec<OsString>, commands: &[&str]) -> Vec<OsString> {
    let wanted = env::var_os("WG_QUICK_USERSPACE_IMPLEMENTATION");
    if let [program, name] = &arguments[..]
        && names_an_interface(program, name, wanted.as_deref(), commands)
    {
        arguments.insert(1, "tun".into());
    }
    arguments
}

fn names_an_interface(
    program: &OsStr,
    argument: &OsStr,
    wanted: Option<&OsStr>,
    commands: &[&str],
) -> bool {
    let program = Path::new(program).file_name();
    let is_link = program == Some(OsStr::new("ginnel-tun"));
    let is_wanted = wanted.is_some_and(|wanted| Path::new(wanted).file_name() == program);
    let is_flag = argument.as_encoded_bytes().starts_with(b"-");
    let is_command = commands.iter().any(|command| *command == argument);
    !is_flag && (is_link || is_wanted && !is_command)
}

/// Runs the command to its end, or until the background process is ready.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (tun, is_ours) = match inherited("WG_TUN_FD")? {
        Some(descriptor) => {
            let tun = Tun::adopt(descriptor, offload::max()?).context("TUN: use WG_TUN_FD")?;
            (tun, env::var_os(OURS).is_some())
        }
        None => (open_tun(&args.name, args.queues > 1)?, true),
    };
    let name = tun.name().context("TUN: read the interface's name")?;
    let (listener, file) = match inherited("WG_UAPI_FD")? {
        Some(descriptor) => {
            let file = SocketFile::adopt(&socket_path(&name)).context("find the UAPI socket")?;
            (UnixListener::from(descriptor), file)
        }
        None => listen(&name)?,
    };
    write_name(&name)?;
    if !args.foreground && env::var_os(FOREGROUND).is_none_or(|value| value != "1") {
        return go_background(&name, args, (tun, is_ours), listener, file);
    }
    // Of an interface that another program made, more queues are that one's business.
    let each = if is_ours && tun.is_multi_queue() {
        LANES
    } else {
        1
    };
    let mut lanes = vec![tun];
    for number in 1..args.queues * each {
        let another = lanes[0].another_queue();
        let another = another.with_context(|| format!("TUN: open queue {}", number + 1));
        let remedy = "an interface that another program made must have been made with several";
        lanes.push(another.remedy(remedy)?);
    }
    listener.set_nonblocking(true)?;
    let key_log = args.key_log.as_deref().map(Writer::open).transpose()?;
    let metrics = args.metrics.bind()?;
    let control = Control::new(listener, file);
    let queues = NonZeroU8::new(args.queues).context("at least one queue")?;
    let runs = offload::max()? > OffloadMax::Off;
    let engine = Engine::new(&name, lanes, queues, control, runs, key_log)?;
    // Before there are other threads, and after all that takes more.
    drop_privileges(args.user.as_deref())?;
    if let Some(listener) = metrics {
        listener::announce(listener.local_addr()?, false)?;
        engine.serve_metrics(listener)?;
    }
    tell_ready()?;
    match engine.run()? {
        Ended::Signal => tracing::info!("{name}: ended by a signal"),
        Ended::InterfaceGone => tracing::warn!("{name}: the interface was deleted"),
        Ended::SocketGone => tracing::warn!("{name}: the UAPI socket was removed"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the interface with several queues. One that exists is taken if it was made for as many
/// threads, one or several, and of those for one nobody holds it.
fn open_tun(name: &str, multi_queue: bool) -> anyhow::Result<Tun> {
    let offload = offload::max()?;
    let new = Options {
        name,
        offload,
        multi_queue: true,
        exclusive: true,
    };
    let existing = Options {
        multi_queue,
        exclusive: false,
        ..new
    };
    let opened = match Tun::open(&new) {
        Err(OpenError::InUse) => Tun::open(&existing),
        opened => opened,
    };
    opened.map_err(|error| {
        let remedy = match &error {
            OpenError::Denied => {
                "run it as root or give it the right: setcap cap_net_admin+ep on the program; \
                 without either, `ginnel --config FILE proxy` needs no interface"
            }
            OpenError::NoDevice => "load the driver: modprobe tun",
            OpenError::InUse => "choose another name, or delete the interface: ip link delete NAME",
            OpenError::BadName => "choose another name, such as wg0",
            OpenError::Io(_) => "see the kernel's log: dmesg",
        };
        let error = anyhow::Error::new(error).context(format!("TUN: make interface `{name}`"));
        let advised: anyhow::Result<Tun> = Err(error);
        advised.remedy(remedy).expect_err("made from an error")
    })
}

/// Keeps what `wg set` may still ask for: marks and buffers of new sockets, and low ports.
fn drop_privileges(user: Option<&str>) -> anyhow::Result<()> {
    let kept = [Capability::NetAdmin, Capability::NetBindService];
    privilege::drop_all_but(&kept, user).map_err(|error| {
        let remedy = match &error {
            DropError::UnknownUser(_) => "name one of `getent passwd`",
            DropError::Denied(_) => "run it as root, or without --user",
            DropError::Io(_) => "see what limits this process: a container, a seccomp filter",
        };
        let error = anyhow::Error::new(error).context("give up privileges");
        let advised: anyhow::Result<()> = Err(error);
        advised.remedy(remedy).expect_err("made from an error")
    })
}

fn listen(name: &str) -> anyhow::Result<(UnixListener, SocketFile)> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(SOCKET_DIRECTORY)
        .with_context(|| format!("make directory {SOCKET_DIRECTORY}"))
        .remedy("run it as root, or make the directory and give it to this user")?;
    let path = socket_path(name);
    unix::listen(&path).map_err(|error| {
        let remedy = match &error {
            ListenError::InUse => "stop the other process that serves this interface",
            ListenError::NotASocket => "move the file away",
            ListenError::Io(_) => "run it as root, or give the directory to this user",
        };
        let error = anyhow::Error::new(error);
        let context = format!("UAPI: listen on {}", path.display());
        let advised: anyhow::Result<()> = Err(error.context(context));
        advised.remedy(remedy).expect_err("made from an error")
    })
}

/// Starts this program again, detached, with the interface and the socket, and waits for its word.
fn go_background(
    name: &str,
    args: &Args,
    (tun, is_ours): (Tun, bool),
    listener: UnixListener,
    file: SocketFile,
) -> anyhow::Result<ExitCode> {
    let (mut ours, theirs) = UnixStream::pair().context("make a pair of sockets")?;
    let program = env::current_exe().context("find our own program")?;
    let mut command = Command::new(program);
    command
        .args(["tun", "--foreground", name, "--queues"])
        .arg(args.queues.to_string())
        .env("WG_TUN_FD", TUN_FD.to_string())
        .env("WG_UAPI_FD", UAPI_FD.to_string())
        .env(READY, READY_FD.to_string())
        .env_remove("WG_TUN_NAME_FILE")
        .current_dir("/");
    if is_ours {
        command.env(OURS, "1");
    }
    if let Some(user) = &args.user {
        command.arg("--user").arg(user);
    }
    if let Some(path) = &args.key_log {
        let path = std::path::absolute(path).context("find the key log")?;
        command.arg("--key-log").arg(path);
    }
    command.args(args.metrics.flag());
    let descriptors = vec![
        (tun.into_descriptor(), TUN_FD),
        (listener.into(), UAPI_FD),
        (theirs.into(), READY_FD),
    ];
    process::spawn_detached(&mut command, descriptors).context("start the background process")?;
    ours.set_read_timeout(Some(READY_MAX))?;
    let mut word = [0];
    // What went wrong there was printed there: the child has our stderr until it is ready.
    ours.read_exact(&mut word)
        .with_context(|| format!("the background process for `{name}` ended"))
        .remedy("run it with -f to see why")?;
    file.leave();
    Ok(ExitCode::SUCCESS)
}

/// Tells the process that started us that we serve from now on, and lets go of its terminal.
fn tell_ready() -> anyhow::Result<()> {
    let Some(descriptor) = inherited(READY)? else {
        return Ok(());
    };
    // Whoever captures our parent's output waits until the last holder closes it.
    if env::var_os("LOG_LEVEL").is_none_or(|level| level == "silent") {
        process::silence().context("let go of the terminal")?;
    }
    // A parent that is gone does not need to know.
    UnixStream::from(descriptor).write_all(b"1").ok();
    Ok(())
}

fn inherited(variable: &str) -> anyhow::Result<Option<std::os::fd::OwnedFd>> {
    let Some(text) = env::var_os(variable).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let number: Option<RawFd> = text.to_str().and_then(|text| text.parse().ok());
    let descriptor = number
        .and_then(process::inherited)
        .with_context(|| format!("{variable} names no open descriptor"))?;
    Ok(Some(descriptor))
}

fn write_name(name: &str) -> anyhow::Result<()> {
    match env::var_os("WG_TUN_NAME_FILE").filter(|path| !path.is_empty()) {
        Some(path) => fs::write(&path, format!("{name}\n"))
            .with_context(|| format!("write {}", Path::new(&path).display())),
        None => Ok(()),
    }
}

/// Connects to the process that serves the interface `name`.
pub(crate) fn connect(name: &str) -> anyhow::Result<UnixStream> {
    let path = socket_path(name);
    let stream = UnixStream::connect(&path)
        .with_context(|| format!("UAPI: connect to {}", path.display()))
        .remedy("start it: ginnel tun NAME; only root may ask")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// Returns where the process of an interface is asked.
fn socket_path(name: &str) -> PathBuf {
    Path::new(SOCKET_DIRECTORY).join(format!("{name}.sock"))
}

/// More than the cores of machines on which one interface is the bottleneck; the kernel allows 256
/// lanes in all.
const QUEUES_MAX: i64 = 16;
/// Queues of the TUN for each thread that reads: so many flows do not wait for each other.
const LANES: u8 = 8;
/// How long the process may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Where `wg` looks.
const SOCKET_DIRECTORY: &str = "/var/run/wireguard";
const FOREGROUND: &str = "WG_PROCESS_FOREGROUND";
const READY: &str = "GINNEL_READY_FD";
/// Tells the background process that the interface is one that ginnel opened by its name.
const OURS: &str = "GINNEL_OWN_TUN";
/// Numbers in the background process, as in wireguard-go.
const TUN_FD: RawFd = 3;
const UAPI_FD: RawFd = 4;
const READY_FD: RawFd = 5;
/// Starting takes milliseconds; a machine that is slower than this has other troubles.
const READY_MAX: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_from_wg_quick_is_an_interface_unless_it_is_a_command() {
        let check = |program: &str, argument: &str, wanted: Option<&str>, expected: bool| {
            let found = names_an_interface(
                program.as_ref(),
                argument.as_ref(),
                wanted.map(OsStr::new),
                &["status", "tun"],
            );
            assert_eq!(found, expected, "{program} {argument} {wanted:?}");
        };
        check("/usr/bin/ginnel-tun", "wg0", None, true);
        check("/usr/bin/ginnel-tun", "status", None, true);
        check("/usr/bin/ginnel-tun", "--help", None, false);
        check("/usr/bin/ginnel", "wg0", None, false);
        check("/usr/bin/ginnel", "wg0", Some("ginnel"), true);
        check("ginnel", "wg0", Some("/opt/ginnel"), true);
        check("ginnel", "wg0", Some("wireguard-go"), false);
        check("ginnel", "status", Some("ginnel"), false);
    }
}
