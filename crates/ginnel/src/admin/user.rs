//! `ginnel user`: the people of this installation.

use std::process::ExitCode;

use anyhow::Result;
use model::api::{ListQuery, User};

use crate::{
    admin::{all, client, time},
    cli::Global,
    terminal::{self, Column},
};

/// List the people of this installation
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  ginnel user list
  ginnel user list --json";

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the people
    List,
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let client = client(global)?;
    match args.action {
        Action::List => {
            let users = all(ListQuery::default(), async |query| {
                client.users(query).await
            })
            .await?;
            terminal::list(&users, COLUMNS, global.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

const COLUMNS: &[Column<User>] = &[
    ("ID", |user| user.id.to_string()),
    ("NAME", |user| user.name.to_string()),
    ("CREATED", |user| time(user.created)),
];
