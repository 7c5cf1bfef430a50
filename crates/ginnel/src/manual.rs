//! `ginnel man`: one manual page for each command.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::{cli::Cli, remedy::Advise as _};

/// Write the manual pages into a directory
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the pages go, such as /usr/local/share/man/man1
    directory: PathBuf,
}

/// Writes the pages, made from the same table as the help.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&args.directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &args.directory))
        .with_context(|| format!("write manual pages to `{}`", args.directory.display()))
        .remedy("name a directory that you may write to")?;
    Ok(ExitCode::SUCCESS)
}
