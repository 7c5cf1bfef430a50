//! `ginnel capture`: what passes the tunnel, as a file that Wireshark opens.

mod interface;
mod remote;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal as _},
    os::{
        fd::AsFd as _,
        unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::ValueEnum;
use model::{api::NewCapture, name::Label};
use packet::pcap_filter::Filter;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::{
    agent::{
        Client, client,
        protocol::{self, Answer, Request},
    },
    cli::Global,
    remedy::{Advise as _, advise},
    terminal,
    tun::Wanted,
};

/// Capture what passes the tunnel, for Wireshark
///
/// Writes pcapng with nanoseconds: by default the packets inside the tunnel, in the clear and with
/// no key in any form. Comments say why a packet was discarded and when a handshake completed.
/// Forwarding never waits for the reader: what is missing is counted at the end of the file. A
/// file is for its owner alone.
///
/// The file says the names of the nodes, such as db.acme.internal, also of those that come while it
/// is written. Wireshark shows them with View, Name Resolution, Resolve Network Addresses, and
/// tshark with -N n, or with -n -N n where it should ask no resolver for others.
///
/// With --keys Wireshark opens the datagrams too, as they come, through every rekey: what it needs
/// is in the file before the packets that need it. Such a key log holds the private key of this
/// node, so the node takes a new one when the capture ends; connections go on.
///
/// With --node another machine of the organisation captures, and the server passes the file on: for
/// administrators, at most an hour and 1 GB; it ends when nobody takes the file any more, within 20
/// seconds. The audit tells who, what and when; whoever owns the
/// machine sees it in `ginnel status` and `ginnel events`.
///
/// With --tun the process of `ginnel tun NAME` captures; whoever may configure the interface may
/// ask. Its key is its administrator's: after a capture with --keys replace it.
///
/// With --keys the filter decides whose keys are written: only of handshakes both of whose messages
/// it wants. So `host` with the address of one peer gives nothing away of the sessions of others.
/// The private key opens no data by itself, but it tells who began a handshake with this node.
///
/// A filter is a part of pcap-filter(7): ip, ip6, tcp, udp, icmp, icmp6, host, net, port,
/// portrange, less and greater, with src and dst, joined by and, or, not and parentheses. It is
/// compared with the packets of each interface; names are not looked up.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Capture at this node instead of here
    #[arg(long, value_name = "NAME")]
    node: Option<Label>,

    /// The organisation of the node, if you are in several
    #[arg(long, requires = "node")]
    org: Option<Label>,

    /// Capture at the interface of `ginnel tun NAME`
    #[arg(long, value_name = "NAME", conflicts_with = "node")]
    tun: Option<String>,

    /// Which side of the tunnel: inner, or outer with --keys
    #[arg(long, value_enum)]
    interface: Option<Side>,

    /// Write the keys that open the datagrams, the node's private key among them, which is
    /// replaced at the end
    #[arg(long)]
    keys: bool,

    /// Write keys without asking
    #[arg(long, requires = "keys")]
    yes: bool,

    /// Only packets that this expression wants
    #[arg(long, value_name = "EXPR", value_parser = parse_filter)]
    filter: Option<String>,

    /// End after this time, such as 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,

    /// End before the file is larger than this many bytes; k, M and G count in thousands
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    size: Option<u64>,

    /// End after this many packets
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Write to FILE; - is stdout, which is the default unless it is a terminal
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
}

impl Args {
    /// A capture of one side into a pipe, until its reader has had enough.
    pub(crate) fn of_pipe(side: Side, keys: bool, filter: Option<String>, pipe: PathBuf) -> Self {
        Self {
            interface: Some(side),
            keys,
            // Who chose keys among the options of the interface has read what they are.
            yes: keys,
            filter,
            duration: None,
            size: None,
            count: None,
            write: Some(pipe),
            node: None,
            org: None,
            tun: None,
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  ginnel capture -w today.pcapng --duration 1m
  ginnel capture --filter 'tcp port 5432' | wireshark -k -i -
  ginnel capture --node db --duration 1m -w db.pcapng
  ginnel capture | tshark -n -N n -r -                with names of nodes
  ginnel capture --keys --yes -w - | wireshark -k -i -
  ginnel capture --tun wg0 --interface both -w wg0.pcapng
  ssh gateway ginnel capture --interface both | tshark -r -";

/// On which side of the tunnel packets are seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Side {
    /// Packets inside the tunnel
    Inner,
    /// WireGuard datagrams
    Outer,
    /// Both, as two interfaces
    Both,
}

const TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes in flight.
const BUFFER: usize = 256 * 1_024;

/// Captures until Ctrl-C or a bound.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let side = side(&args, global)?;
    if args.keys && !args.yes {
        ask(&args, global.config.is_some())?;
    }
    let output = open(args.write.as_deref())?;
    if let Some(node) = &args.node {
        let wanted = NewCapture {
            inner: side != Side::Outer,
            outer: side != Side::Inner,
            filter: args.filter,
            seconds_max: args.duration.map(|duration| duration.as_secs().max(1)),
            packets_max: args.count,
            bytes_max: args.size,
        };
        remote::run((node, args.org), args.keys, &wanted, output, global).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(name) = &args.tun {
        let wanted = Wanted {
            inner: side != Side::Outer,
            outer: side != Side::Inner,
            filter: args.filter,
            keys: args.keys,
            packets_max: args.count,
            bytes_max: args.size,
        };
        interface::run(name, &wanted, args.duration, output).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let wanted = protocol::Capture {
        inner: side != Side::Outer,
        outer: side != Side::Inner,
        filter: args.filter,
        keys: args.keys,
        duration_ms: args.duration.map(millis),
        packets_max: args.count,
        bytes_max: args.size,
    };
    let request = Request::Capture(wanted);
    let (answer, stream) = Client::of(global)?.ask(&request, TIMEOUT).await?;
    let Answer::Capturing = answer else {
        return Err(client::unexpected(&answer));
    };
    // The agent knows how long.
    receive(stream, output.begin()?, std::future::pending()).await?;
    if args.keys {
        tell_key(global).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Chooses the side, and refuses what makes no sense together.
fn side(args: &Args, global: &Global) -> anyhow::Result<Side> {
    if args.node.is_some() && global.config.is_some() {
        return Err(advise(
            "a plain configuration has no server that passes captures on",
            "leave --config or --node out",
        ));
    }
    if args.tun.is_some() && global.config.is_some() {
        return Err(advise(
            "the interface has its configuration from `wg`",
            "leave --config or --tun out",
        ));
    }
    match (args.interface, args.keys) {
        (None, false) => Ok(Side::Inner),
        (None, true) => Ok(Side::Outer),
        (Some(Side::Inner), true) => Err(advise(
            "--keys opens datagrams, and the inner side has none",
            "leave --interface out, or name outer or both",
        )),
        (Some(side), _) => Ok(side),
    }
}

/// Asks whether the key of the node or interface may be given away.
fn ask(args: &Args, in_configuration: bool) -> anyhow::Result<()> {
    let named = args.node.as_ref().map(ToString::to_string);
    let whose = named.or_else(|| args.tun.clone());
    let whose = whose.unwrap_or_else(|| "this node".to_owned());
    let after = match (in_configuration, &args.tun) {
        (true, _) => "replace it in the configuration and at its peers afterwards",
        (false, Some(_)) => "replace it by `wg set`, and at its peers, afterwards",
        (false, None) => "the node takes a new one when the capture ends",
    };
    let sentence = format!(
        "a key log holds the private key of {whose}, and whoever reads it reads the node's \
         sessions and can speak as the node: {after}"
    );
    if !io::stdin().is_terminal() {
        return Err(advise(sentence, "say that you want that: --yes"));
    }
    terminal::note(format_args!("{sentence}.\nGo on? [y/N]"));
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .context("read the answer")?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(advise(
            "no capture: the question was not answered with yes",
            "leave --keys out: the inner side needs no key",
        )),
    }
}

/// Tells what became of the key.
async fn tell_key(global: &Global) -> anyhow::Result<()> {
    if global.config.is_some() {
        terminal::note("replace the private key in the configuration, and at its peers");
        return Ok(());
    }
    let (answer, _) = Client::of(global)?.ask(&Request::Status, TIMEOUT).await?;
    let Answer::Status(status) = answer else {
        return Err(client::unexpected(&answer));
    };
    terminal::note(match status.key_exposed {
        true => "the node's key is replaced as soon as the server is reached: see `ginnel status`",
        false => "the node has a new key",
    });
    Ok(())
}

/// Writes what is sent until it ends. The first Ctrl-C ends the capture, or that its time is
/// `over`; its last blocks are still written. The next Ctrl-C does not wait for them.
async fn receive(
    mut stream: UnixStream,
    file: File,
    over: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (from_agent, mut to_agent) = stream.split();
    let copied = copy(from_agent, tokio::fs::File::from_std(file));
    tokio::pin!(copied);
    tokio::select! {
        copied = &mut copied => return copied,
        interrupted = terminal::interrupted() => interrupted.context("await Ctrl-C")?,
        () = over => {}
    }
    to_agent.shutdown().await.context("end the capture")?;
    tokio::select! {
        copied = copied => copied,
        interrupted = terminal::interrupted() => interrupted.context("await Ctrl-C"),
    }
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: tokio::fs::File) -> anyhow::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await;
        let length = length.context("receive the capture")?;
        if length == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..length]).await?;
        // Whoever looks at a live capture wants to see this packet now.
        to.flush().await?;
    }
}

/// What the capture is written to.
struct Output {
    file: File,
    /// Whether it was named, so that its earlier content goes; what stdout has is the shell's.
    is_named: bool,
}

impl Output {
    /// Returns the file, without what it had before: a capture that is refused leaves that alone.
    fn begin(self) -> anyhow::Result<File> {
        let Self { file, is_named } = self;
        let is_file = || io::Result::Ok(file.metadata()?.is_file());
        // A device and a pipe with a name have no length.
        if is_named && is_file().context("look at the file of the capture")? {
            // The mode at the opening counts only for a file that is new.
            file.set_permissions(fs::Permissions::from_mode(0o600))
                .context("protect the file of the capture")?;
            file.set_len(0).context("empty the file of the capture")?;
        }
        Ok(file)
    }
}

/// Opens what the capture is written to.
fn open(path: Option<&Path>) -> anyhow::Result<Output> {
    let stdout = io::stdout();
    match path {
        None if stdout.is_terminal() => Err(advise(
            "a capture is no text for a terminal",
            "name a file: -w FILE; or a reader: ginnel capture | wireshark -k -i -",
        )),
        Some(path) if path != Path::new("-") => {
            let mut options = OpenOptions::new();
            let opened = options.write(true).create(true).mode(0o600).open(path);
            let file = opened
                .with_context(|| format!("open `{}`", path.display()))
                .remedy("name a file that this user may write")?;
            Ok(Output {
                file,
                is_named: true,
            })
        }
        Some(_) | None => {
            let descriptor = stdout.as_fd().try_clone_to_owned();
            let descriptor = descriptor.context("open stdout")?;
            Ok(Output {
                file: File::from(descriptor),
                is_named: false,
            })
        }
    }
}

pub(crate) fn parse_filter(text: &str) -> Result<String, String> {
    let filter = Filter::parse(text).map_err(|error| error.to_string())?;
    Ok(filter.text().to_owned())
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((end, 'k')) => (&text[..end], 1_000),
        Some((end, 'M')) => (&text[..end], 1_000_000),
        Some((end, 'G')) => (&text[..end], 1_000_000_000),
        Some(_) | None => (text, 1),
    };
    let number = digits.parse::<u64>().map_err(|error| error.to_string())?;
    let size = number.checked_mul(unit).filter(|size| *size >= SIZE_MIN);
    size.ok_or_else(|| format!("at least {SIZE_MIN}, and within 64 bits"))
}

/// Room for the headers of the file, its end and a packet.
const SIZE_MIN: u64 = 8_000;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_unit_of_thousands_and_a_least() {
        let sizes = [
            ("8000", 8_000),
            ("10k", 10_000),
            ("2M", 2_000_000),
            ("1G", 1_000_000_000),
        ];
        for (text, size) in sizes {
            assert_eq!(parse_size(text), Ok(size));
        }
        for text in [
            "",
            "M",
            "7k",
            "-1",
            "10K",
            "99999999999999999999",
            "18446744073709551615G",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
