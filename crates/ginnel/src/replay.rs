//! `ginnel replay`: what a node did with each datagram of a capture, and why.

pub(crate) mod message;
pub(crate) mod recording;
pub(crate) mod story;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use wireguard::Discard;
use zeroize::Zeroizing;

use self::story::{Line, Told, Verdict};
use crate::{cli::Global, remedy::Advise as _, terminal};

/// Say what a node did with each datagram of a capture, and why
///
/// Takes a pcapng file of WireGuard datagrams that holds the keys of the node in Decryption Secrets
/// Blocks, and runs the datagrams through the protocol again in virtual time. The file may be of
/// any capture program, of the node's network interface; its keys come from `ginnel tun
/// --key-log` by `editcap --inject-secrets wg,KEYS`. Sessions older than the file stay sealed, and
/// allowed IPs are not known, so a source that its peer may not use is not noticed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The capture
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  ginnel replay outer.pcapng
  ginnel replay outer.pcapng --json | jq 'select(.discarded)'
  editcap --inject-secrets wg,keys.log dump.pcapng outer.pcapng && ginnel replay outer.pcapng";

/// A longer file is refused: all of it is read at once.
const FILE_MAX: u64 = 1 << 30;

/// Replays the file and prints a line for each datagram.
pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<ExitCode> {
    let path = args.file.display();
    let length = fs::metadata(&args.file).map(|file| file.len());
    let length = length
        .with_context(|| format!("open `{path}`"))
        .remedy("name a file that this user may read")?;
    anyhow::ensure!(
        length <= FILE_MAX,
        "`{path}` is longer than 1 GiB: cut it with editcap(1)"
    );
    let file = fs::read(&args.file).with_context(|| format!("read `{path}`"))?;
    let file = Zeroizing::new(file);
    let recording = recording::read(&file)
        .with_context(|| format!("read `{path}`"))
        .remedy("give it its keys: editcap --inject-secrets wg,KEYS IN OUT")?;
    let others = recording.others;
    let base = os::clock::Clock::start().now();
    let mut written = Ok(());
    story::tell(recording, base, |line| {
        // Whoever reads may have had enough: the rest is told to nobody.
        if written.is_ok() {
            written = if global.json {
                terminal::json(&value(&line))
            } else {
                terminal::line(text(&line))
            };
        }
    });
    written?;
    if others > 0 && !global.json {
        terminal::line(format_args!("{others} other packets are left out"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(line: &Line) -> String {
    let mut parts = vec![format!("{:>12.6}", line.time.as_secs_f64())];
    if let Some(told) = &line.datagram {
        let arrow = if told.inbound { "from" } else { "to  " };
        parts.push(format!("{arrow} {}  {}", told.remote, told.message));
        parts.push(verdict_text(told));
    }
    parts.extend(line.changes.iter().cloned());
    parts.join("  ")
}

fn verdict_text(told: &Told) -> String {
    match &told.verdict {
        Verdict::Handled if told.inbound => "taken".to_owned(),
        Verdict::Handled => "sent".to_owned(),
        Verdict::Keepalive => "keepalive".to_owned(),
        Verdict::Packet(packet) => packet.clone(),
        Verdict::Discarded(discard) => {
            format!("discarded: {}, {}", discard.name(), reason(*discard))
        }
        Verdict::Sealed => "its keys are not in the file".to_owned(),
    }
}

fn value(line: &Line) -> serde_json::Value {
    let mut value = serde_json::json!({
        "time_us": u64::try_from(line.time.as_micros()).unwrap_or(u64::MAX),
        "changes": line.changes,
    });
    if let Some(told) = &line.datagram {
        value["direction"] = if told.inbound { "in" } else { "out" }.into();
        value["remote"] = told.remote.to_string().into();
        value["message"] = told.message.to_string().into();
        value["verdict"] = verdict_text(told).into();
        if let Verdict::Discarded(discard) = &told.verdict {
            value["discarded"] = discard.name().into();
        }
    }
    value
}

/// Says why, for a person.
fn reason(discard: Discard) -> &'static str {
    match discard {
        Discard::Length => "it has not the length of its type",
        Discard::MessageType => "there is no such type",
        Discard::Mac1 => "its sender does not know our public key",
        Discard::NoPrivateKey => "there was no private key yet",
        Discard::RateLimited => "its source had spent its share of handshakes",
        Discard::Handshake => "it does not decrypt: another key, or forged",
        Discard::UnknownInitiator => "its key is no peer",
        Discard::ReplayedInitiation => "its timestamp is not newer than the last one",
        Discard::InitiationFlood => "within 20 ms of the last one",
        Discard::UnknownIndex => "no session or initiation has that index",
        Discard::Cookie => "it answers nothing, or does not decrypt",
        Discard::SessionExpired => "its session is older than 180 s, or used up",
        Discard::Tag => "it does not decrypt: damaged or forged",
        Discard::Duplicate => "it was taken before",
        Discard::TooOld => "it is behind the replay window",
        Discard::NotIp => "what is inside is no IP packet",
        Discard::SourceNotAllowed => "the source inside is not the peer's",
        Discard::NoRoute => "no peer has the destination",
        Discard::NotEct => "it met congestion, and its sender does not understand that",
        Discard::UnknownPeer => "the peer is gone",
        Discard::NoEndpoint => "it is not known where the peer is",
        Discard::StagedOverflow => "too many packets waited for the handshake",
        Discard::StagedAbandoned => "the handshake never came about",
        Discard::QueueFull => "a queue was full",
    }
}

#[cfg(test)]
mod tests;
