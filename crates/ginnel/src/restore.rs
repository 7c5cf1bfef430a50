//! `ginnel restore`: the server that a backup was made of.

use std::{fs, io::BufReader, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{
    backup::{Installation, Progress, cipher, described},
    cli::Global,
    enrolment::State,
    terminal,
};

/// Make a server again from a backup
///
/// DIR and the database hold no server yet. Nodes go on as they are, if the server comes to the
/// same addresses. What was revoked or removed after the backup was made counts again: do it once
/// more.
/// What fails leaves nothing behind.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    installation: Installation,

    #[command(flatten)]
    passphrase: cipher::Passphrase,

    /// The file of keys, as `age-keygen` writes it, for a backup that is encrypted to one of them
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
    identity: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  ginnel restore ./monday.backup --data ./data
  ginnel restore ./monday.backup --data ./data --database postgres://ginnel@db/ginnel
  ginnel restore ./monday.backup --data ./data --identity ./key.txt

Afterwards: `ginnel server --data ./data` with the flags that it had";

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let shown = args.file.display();
    let file = fs::File::open(&args.file).with_context(|| format!("read `{shown}`"))?;
    let file = BufReader::new(file);
    let opened = match &args.identity {
        Some(keys) => cipher::decrypt_with(keys, file)?,
        None => cipher::decrypt(args.passphrase.read(false)?, file)?,
    };
    let data = &args.installation.data;
    let new = !data.exists();
    let state = State::at(data);
    // No server may start there meanwhile.
    let lock = state.lock("server")?;
    let mut progress = Progress::begin("restore");
    let restored = {
        let database = args.installation.database();
        let mut source = BufReader::new(opened);
        let mut draw = |done, all| progress.draw(done, all);
        let wall = os::clock::wall();
        let restore = control::restore(&mut source, data, &database, wall, &mut draw);
        tokio::select! {
            restored = restore => restored,
            _ = terminal::interrupted() => Err(anyhow::anyhow!("interrupted")),
        }
    };
    progress.end();
    if restored.is_err() && new {
        // What cannot be removed is an empty directory with a lock.
        drop(fs::remove_file(state.path("server.lock")));
        drop(fs::remove_dir(data));
    }
    drop(lock);
    let contents = restored.with_context(|| format!("restore `{shown}`; nothing was kept"))?;
    if global.json {
        terminal::json(&contents)?;
    } else {
        let described = described(&contents);
        terminal::line(format_args!("{}: {described}", data.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
