//! `ginnel ssh-ca`: who certifies SSH users and hosts, and which certificates are taken back.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use model::{
    api::ListQuery,
    name::Label,
    ssh::{
        AuthorityView, Certificate, NewRecording, Principal, Recording, Revocation, Rotation,
        Serial, TrustedKey,
    },
};

use crate::{
    admin::{all, client, node, or_dash, time},
    api::Client,
    cli::Global,
    remedy::Advise as _,
    terminal::{self, Column},
};

/// Show and rotate the SSH authority, list and revoke certificates
///
/// Each organisation has a key that certifies users and one that certifies hosts. Nodes learn the
/// public keys by themselves.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The organisation [default: the one of this device]
    #[arg(long, global = true)]
    org: Option<Label>,

    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  ginnel ssh-ca show
  ginnel ssh-ca rotate                 makes next keys, which every node trusts at once
  ginnel ssh-ca rotate                 again: the next keys sign, the old ones run out
  ginnel ssh-ca rotate --now           after a theft: every certificate ends
  ginnel ssh-ca revoke --serial 17
  ginnel ssh-ca revoke --node laptop";

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Show the keys and what each does
    Show,
    /// List the certificates of the last 30 days
    List,
    /// Make next keys; called again, let them sign
    Rotate {
        /// Let new keys sign at once and trust no other: every certificate ends
        #[arg(long)]
        now: bool,
    },
    /// Take certificates back before they end
    Revoke(Selection),
    /// Say which sessions nodes must record
    Record {
        /// Which
        #[arg(value_enum)]
        sessions: Sessions,
    },
}

/// Whose certificates are taken back.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Selection {
    /// The certificate of this number, as `list` shows it
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    serial: Option<u64>,
    /// All of this person
    #[arg(long, value_name = "NAME")]
    user: Option<Label>,
    /// All of this node: its host certificates, and those that were asked for on it
    #[arg(long, value_name = "NAME")]
    node: Option<Label>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Sessions {
    /// None
    Off,
    /// Those with a terminal
    Pty,
    /// Those with a terminal, and commands without one
    All,
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let client = client(global)?;
    let org = args.org;
    match args.action {
        Action::Show => show(&client.ssh_authority(org.as_ref()).await?, global.json)?,
        Action::List => {
            let query = ListQuery {
                org,
                ..ListQuery::default()
            };
            let rows = all(query, async |query| client.certificates(query).await).await?;
            terminal::list(&rows, CERTIFICATES, global.json)?;
        }
        Action::Rotate { now } => {
            show(
                &client.rotate_ssh(&Rotation { org, now }).await?,
                global.json,
            )?;
        }
        Action::Revoke(selection) => {
            let revocation = revocation(&client, org, selection).await?;
            let revoked = client.revoke_certificates(&revocation).await?;
            if global.json {
                terminal::json(&revoked)?;
            } else {
                terminal::line(format_args!(
                    "{} certificates are revoked",
                    revoked.certificates
                ))?;
            }
        }
        Action::Record { sessions } => {
            let recording = sessions.into();
            let view = client.record_ssh(&NewRecording { org, recording }).await?;
            show(&view, global.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn revocation(
    client: &Client,
    org: Option<Label>,
    selection: Selection,
) -> Result<Revocation> {
    match selection {
        Selection {
            serial: Some(serial),
            ..
        } => Ok(Revocation::Serial(Serial(serial))),
        Selection {
            node: Some(name), ..
        } => {
            let node = node::find(client, org, &name).await?;
            Ok(Revocation::Node(node.id))
        }
        Selection { user, .. } => {
            let name = user.context("whose certificates are revoked")?;
            let users = all(ListQuery::default(), async |query| {
                client.users(query).await
            })
            .await?;
            let user = users.into_iter().find(|user| user.name == name);
            let user = user
                .with_context(|| format!("nobody has the name `{name}`"))
                .remedy("see `ginnel user list`")?;
            Ok(Revocation::User(user.id))
        }
    }
}

fn show(view: &AuthorityView, as_json: bool) -> Result<()> {
    if as_json {
        terminal::json(view)?;
        return Ok(());
    }
    terminal::line(format_args!(
        "{}, version {}, {} revoked, recording {}",
        view.org, view.version, view.revoked, view.recording
    ))?;
    terminal::list(&view.keys, KEYS, false)?;
    Ok(())
}

const KEYS: &[Column<TrustedKey>] = &[
    ("CERTIFIES", |key| format!("{}s", key.kind)),
    ("STATE", |key| key.state.to_string()),
    ("CREATED", |key| time(key.created)),
    ("TRUSTED UNTIL", |key| or_dash(key.trusted_until.map(time))),
    ("KEY", |key| key.public_key.to_string()),
];

const CERTIFICATES: &[Column<Certificate>] = &[
    ("SERIAL", |row| row.serial.to_string()),
    ("KIND", |row| row.kind.to_string()),
    ("ORG", |row| or_dash(row.org.as_ref())),
    ("UNTIL", |row| time(row.valid_before)),
    ("REVOKED", |row| or_dash(row.revoked.map(time))),
    ("PRINCIPALS", |row| {
        let names: Vec<_> = row.principals.iter().map(Principal::as_str).collect();
        names.join(",")
    }),
    ("KEY ID", |row| row.key_id.to_string()),
];

impl From<Sessions> for Recording {
    fn from(sessions: Sessions) -> Self {
        match sessions {
            Sessions::Off => Self::Off,
            Sessions::Pty => Self::Pty,
            Sessions::All => Self::All,
        }
    }
}
