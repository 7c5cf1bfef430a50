//! `ginnel audit`: who changed what, and when.

use std::process::ExitCode;

use anyhow::Result;
use model::{
    api::{AuditEntry, ListQuery},
    name::Label,
};

use crate::{
    admin::{all, client, or_dash, time},
    cli::Global,
    terminal::{self, Column},
};

/// List who changed what, and when
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  ginnel audit list
  ginnel audit list --org acme --json";

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the changes, oldest first
    List {
        /// Only those in this organisation
        #[arg(long)]
        org: Option<Label>,
    },
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let client = client(global)?;
    match args.action {
        Action::List { org } => {
            let query = ListQuery {
                org,
                ..ListQuery::default()
            };
            let entries = all(query, async |query| client.audit(query).await).await?;
            terminal::list(&entries, COLUMNS, global.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

const COLUMNS: &[Column<AuditEntry>] = &[
    ("ID", |entry| entry.id.to_string()),
    ("TIME", |entry| time(entry.time)),
    ("ACTOR", |entry| entry.actor.clone()),
    ("ACTION", |entry| entry.action.clone()),
    ("SUBJECT", |entry| entry.subject.clone()),
    ("ORG", |entry| or_dash(entry.org.as_ref())),
];
