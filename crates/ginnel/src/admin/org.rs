//! `ginnel org`: the organisations of this installation.

use std::process::ExitCode;

use anyhow::Result;
use model::{
    api::{ListQuery, NewOrg, Org},
    name::Label,
};

use crate::{
    admin::{all, client, or_dash, time},
    cli::Global,
    terminal::{self, Column},
};

/// List, show, add and remove organisations
///
/// Each has its own addresses, names and nodes; nothing crosses from one to another.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  ginnel org add acme
  ginnel org list --json";

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the organisations
    List,
    /// Show one organisation
    Show {
        /// Its name
        name: Label,
    },
    /// Make an organisation
    Add {
        /// Its name, unique in the installation
        name: Label,
    },
    /// Remove an organisation that has no nodes
    Remove {
        /// Its name
        name: Label,
    },
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let client = client(global)?;
    match args.action {
        Action::List => {
            let orgs = all(ListQuery::default(), async |query| client.orgs(query).await).await?;
            terminal::list(&orgs, COLUMNS, global.json)?;
        }
        Action::Show { name } => terminal::show(&client.org(&name).await?, COLUMNS, global.json)?,
        Action::Add { name } => {
            let org = client.add_org(&NewOrg { name }).await?;
            terminal::show(&org, COLUMNS, global.json)?;
        }
        Action::Remove { name } => {
            client.remove_org(&name).await?;
            terminal::done(format_args!("organisation {name} is removed"), global.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

const COLUMNS: &[Column<Org>] = &[
    ("ID", |org| org.id.to_string()),
    ("NAME", |org| org.name.to_string()),
    ("PREFIX", |org| org.prefix.to_string()),
    ("GATEWAY", |org| or_dash(org.gateway)),
    ("NODES", |org| org.nodes.to_string()),
    ("CREATED", |org| time(org.created)),
];
