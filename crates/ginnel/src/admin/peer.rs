//! `ginnel peer`: plain WireGuard clients, which work by an exported configuration.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use model::{
    api::{KeyHolder, ListQuery, NewPeer, Peer, PeerExport},
    key::{PublicKey, SecretKey},
    name::Label,
};
use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2};
use zeroize::Zeroizing;

use crate::{
    admin::{all, client, or_dash, time},
    api::Client,
    cli::Global,
    enrol, peer,
    remedy::{Advise as _, advise},
    terminal::{self, Column},
};

/// Plain WireGuard clients, and the tunnels of this node
///
/// A phone, a router or a machine with `wg-quick` joins without ginnel: it has a name, rules are
/// about it, and it asks the network's resolver, as every node does. It reaches the network by the
/// gateway and is reached while it keeps its tunnel open. Its tunnel carries IPv6 only: devices of
/// sites have names for it, and their IPv4 aliases are for machines that run ginnel.
///
/// `export` makes the private key, shows it once and keeps it nowhere; each export makes another,
/// and the configuration before it works no more. A device that makes its own key gives its public
/// key to `add`.
///
/// `show` is about this node: one of its tunnels in every detail.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  ginnel peer add phone --user alice
  ginnel peer export phone --qr             scan it with the WireGuard app
  ginnel peer export phone --out wg0.conf   then: wg-quick up ./wg0.conf
  ginnel peer add router --public-key KEY --ttl 90d
  ginnel policy add --from node:phone --to node:db --allow 443
  ginnel peer list
  ginnel peer remove phone

  ginnel peer show gateway
  ginnel peer show db                       the peer through which db is reached
  ginnel --config wg0.conf peer show 10.0.0.5 --json";

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the plain WireGuard clients
    List {
        #[command(flatten)]
        org: Of,
    },
    /// Show the handshake, sessions, timers, endpoints and discards of a peer of this node
    Show {
        /// The peer's name or public key; or a name or address that is reached through it
        name: String,
    },
    /// Add a plain WireGuard client
    Add {
        /// Its name
        name: Label,
        #[command(flatten)]
        org: Of,
        /// The public key that the device has made; else `export` makes a key
        #[arg(long, value_name = "KEY")]
        public_key: Option<PublicKey>,
        /// Whose device it is; a machine is nobody's
        #[arg(long, value_name = "NAME")]
        user: Option<Label>,
        /// Remove it after this time, such as 12h or 90d; one year at most
        #[arg(long, value_parser = humantime::parse_duration)]
        ttl: Option<Duration>,
    },
    /// Print its configuration for wg-quick(8) and WireGuard apps, with a new key
    Export {
        /// Its name
        name: Label,
        #[command(flatten)]
        org: Of,
        /// Draw a QR code for the camera of a phone
        #[arg(long, conflicts_with = "out")]
        qr: bool,
        /// Write it into FILE, for its owner alone
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Remove one: it is cut off everywhere at once
    Remove {
        /// Its exact name
        name: Label,
        #[command(flatten)]
        org: Of,
    },
}

/// Whose client it is.
#[derive(Debug, clap::Args)]
struct Of {
    /// The organisation, if you are in several
    #[arg(long)]
    org: Option<Label>,
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    match args.action {
        Action::List { org } => list(org.org, global).await?,
        Action::Show { name } => peer::show(name, global).await?,
        Action::Add {
            name,
            org,
            public_key,
            user,
            ttl,
        } => {
            let request = NewPeer {
                org: org.org,
                name,
                public_key,
                user,
                ttl_seconds: ttl.map(|ttl| ttl.as_secs()),
            };
            add(&request, global).await?;
        }
        Action::Export { name, org, qr, out } => {
            let client = client(global)?;
            let peer = find(&client, org.org, &name).await?;
            let text = export(&client, &peer).await?;
            if let Some(path) = out {
                os::file::write_private(&path, text.as_bytes())
                    .with_context(|| format!("write `{}`", path.display()))
                    .remedy("export it again into another file: its former key works no more")?;
                let what = format_args!("{name} works by `{}`", path.display());
                terminal::done(what, global.json)?;
            } else {
                print(&text, qr, global)?;
            }
        }
        Action::Remove { name, org } => {
            let client = client(global)?;
            let peer = find(&client, org.org, &name).await?;
            client.remove_peer(peer.id).await?;
            let what = format_args!("peer {name} is removed and cut off");
            terminal::done(what, global.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(org: Option<Label>, global: &Global) -> Result<()> {
    let client = client(global)?;
    let query = ListQuery {
        org,
        ..ListQuery::default()
    };
    let peers = all(query, async |query| client.peers(query).await).await?;
    terminal::list(&peers, COLUMNS, global.json)?;
    Ok(())
}

async fn add(request: &NewPeer, global: &Global) -> Result<()> {
    let peer = client(global)?.add_peer(request).await?;
    terminal::show(&peer, COLUMNS, global.json)?;
    terminal::note(format_args!(
        "its configuration: ginnel peer export {}",
        peer.name
    ));
    Ok(())
}

fn print(text: &str, qr: bool, global: &Global) -> Result<()> {
    if global.json {
        terminal::json(&serde_json::json!({ "configuration": text }))?;
    } else if qr {
        terminal::dark(&drawn(text)?)?;
    } else {
        terminal::line(text.trim_end())?;
    }
    Ok(())
}

/// Makes the configuration of a peer, with a new key unless its device has one.
async fn export(client: &Client, peer: &Peer) -> Result<Zeroizing<String>> {
    let key = match peer.key_holder {
        KeyHolder::Device => None,
        KeyHolder::Configuration | KeyHolder::Nobody => {
            let mut bytes = Zeroizing::new([0; 32]);
            os::random::fill(&mut *bytes);
            Some(SecretKey::new(*bytes))
        }
    };
    let request = PeerExport {
        public_key: key.as_ref().map(enrol::public_key),
    };
    let configuration = client.export_peer(peer.id, &request).await?;
    let text = configuration.emit(key);
    text.context("server: the gateway's endpoint has no meaning")
}

/// Draws a QR code with its quiet zone in half blocks, which are the light of it.
fn drawn(text: &str) -> Result<Zeroizing<String>> {
    // The least redundancy: it is read from a screen, and has to fit it.
    let code = QrCode::with_error_correction_level(text, EcLevel::L)
        .context("draw a QR code")
        .remedy("use --out FILE")?;
    let mut drawing = code.render::<Dense1x2>();
    let drawing = drawing
        .dark_color(Dense1x2::Light)
        .light_color(Dense1x2::Dark);
    Ok(Zeroizing::new(drawing.build()))
}

/// Finds the one peer of that exact name.
async fn find(client: &Client, org: Option<Label>, name: &Label) -> Result<Peer> {
    let query = ListQuery {
        org,
        name: Some(name.clone()),
        ..ListQuery::default()
    };
    let mut peers = client.peers(&query).await?.items;
    if peers.len() > 1 {
        return Err(advise(
            format_args!("{} peers have the name `{name}`", peers.len()),
            "say which with --org",
        ));
    }
    peers
        .pop()
        .with_context(|| format!("no peer has the name `{name}`"))
        .remedy("see `ginnel peer list`; nodes that run ginnel are in `ginnel node list`")
}

const COLUMNS: &[Column<Peer>] = &[
    ("ID", |peer| peer.id.to_string()),
    ("NAME", |peer| peer.name.to_string()),
    ("ORG", |peer| peer.org.to_string()),
    ("ADDRESS", |peer| peer.address.to_string()),
    ("PUBLIC-KEY", |peer| peer.public_key.to_string()),
    ("KEY", |peer| key(peer).to_owned()),
    ("STATE", |peer| peer.state.as_str().to_owned()),
    ("EXPIRES", |peer| or_dash(peer.expires.map(time))),
    ("CREATED", |peer| time(peer.created)),
];

/// Says how it stands with the private key and the configuration.
fn key(peer: &Peer) -> &'static str {
    match (peer.key_holder, peer.stale) {
        (_, true) => "stale: export it again, the gateway is another one now",
        (KeyHolder::Device, false) => "of the device",
        (KeyHolder::Configuration, false) => "unmanaged, in the exported configuration",
        (KeyHolder::Nobody, false) => "none: export it",
    }
}

#[cfg(test)]
mod tests {
    use model::{api::PeerConfiguration, id::NodeId, map::Gateway};

    use super::*;

    #[test]
    fn a_drawn_configuration_is_read_back_by_another_program() {
        let configuration = PeerConfiguration {
            address: "fd01:203:405:1::7".parse().expect("an address"),
            prefix: "fd01:203:405::/48".parse().expect("a prefix"),
            gateway: Gateway {
                id: NodeId(1),
                name: "edge".parse().expect("a name"),
                public_key: PublicKey([9; 32]),
                endpoint: "vpn.example.org:51820".to_owned(),
            },
        };
        let text = configuration.emit(Some(SecretKey::new([7; 32])));
        let text = text.expect("well-formed");
        let drawing = drawn(&text).expect("it fits");
        assert!(drawing.lines().all(|line| line.chars().count() <= 80));
        // Each character is two pixels, one above the other.
        let rows: Vec<Vec<[bool; 2]>> = drawing
            .lines()
            .map(|line| line.chars().map(pixels).collect())
            .collect();
        let dark = |x: usize, y: usize| rows[y / 2][x][y % 2];
        let (width, height) = (rows[0].len(), rows.len() * 2);
        let mut image = rqrr::PreparedImage::prepare_from_greyscale(width, height, |x, y| {
            if dark(x, y) { 0 } else { 255 }
        });
        let grids = image.detect_grids();
        let (_, read) = grids.first().expect("a QR code").decode().expect("text");
        assert_eq!(read, *text);
    }

    /// Returns which of the upper and the lower half of a character are dark.
    fn pixels(character: char) -> [bool; 2] {
        match character {
            ' ' => [true, true],
            '▄' => [true, false],
            '▀' => [false, true],
            '█' => [false, false],
            other => panic!("`{other}` is no half block"),
        }
    }
}
