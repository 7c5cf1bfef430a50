//! `ginnel server copy`: from a file to a PostgreSQL, or back.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use control::Place;
use os::file::Lock;

use super::database_url;
use crate::{cli::Global, enrolment::State, terminal};

/// Copy the rows of a server that does not run into another, empty database, and verify them
///
/// Keys and certificates stay where they are: go on with the same --data, and with or without
/// --database. The source stays as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where the rows are: the directory of a server, or postgres://USER@HOST/DATABASE
    #[arg(long, value_name = "DIR|URL", env = "GINNEL_COPY_FROM", hide_env_values = true,
          value_parser = place)]
    from: Place,

    /// Where they shall be: a directory without a database, or the URL of an empty database
    #[arg(long, value_name = "DIR|URL", env = "GINNEL_COPY_TO", hide_env_values = true,
          value_parser = place)]
    to: Place,
}

const EXAMPLES: &str = "\
Examples:
  ginnel server copy --from ./data --to postgres://ginnel@db/ginnel
  ginnel server copy --from postgres://ginnel@db/ginnel --to ./data

A password in a command line is seen by others on this machine: give the URL by GINNEL_COPY_FROM or
GINNEL_COPY_TO then.";

/// Runs the command.
pub(super) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let Args { from, to } = args;
    if let Place::Folder(folder) = &from {
        // A lock would make it.
        ensure!(
            folder.is_dir(),
            "there is no directory `{}`",
            folder.display()
        );
    }
    // No server may work on a directory meanwhile; a PostgreSQL is locked as it is opened.
    let _from = lock(&from)?;
    let _to = lock(&to)?;
    let rows = control::copy(&from, &to).await.context("copy the rows")?;
    if global.json {
        terminal::json(&serde_json::json!({ "rows": rows }))?;
    } else {
        terminal::line(format_args!("copied {rows} rows and verified them"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn lock(place: &Place) -> Result<Option<Lock>> {
    match place {
        Place::Folder(folder) => State::at(folder).lock("server").map(Some),
        Place::Postgres(_) => Ok(None),
    }
}

fn place(text: &str) -> Result<Place, &'static str> {
    if text.contains("://") {
        return database_url(text).map(Place::Postgres);
    }
    Ok(Place::Folder(PathBuf::from(text)))
}
