//! `ginnel backup`: a whole server in one encrypted file, while it runs.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use age::x25519;
use anyhow::{Context as _, Result};
use control::{BackupContents, Database};
use os::file::Unfinished;
use zeroize::Zeroizing;

use crate::{admin, cli::Global, remedy::advise, server::database_url, terminal};

pub(crate) mod cipher;

/// Write everything that a server is into one encrypted file
///
/// The file holds the rows of the database from one moment, and the keys. The server may run, and
/// goes on meanwhile. What was at FILE is replaced once the new backup is whole.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where the backup shall be
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    installation: Installation,

    #[command(flatten)]
    passphrase: cipher::Passphrase,

    /// Encrypt to a public key of age (age1...) instead of by a passphrase; may be given several
    /// times
    #[arg(long = "recipient", value_name = "KEY", conflicts_with = "passphrase_file",
          value_parser = recipient)]
    recipients: Vec<x25519::Recipient>,
}

/// Where a server keeps what it is, as it is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Installation {
    /// The directory of the server: its keys, and its database unless --database names another
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,

    /// The PostgreSQL database of the server, as postgres://USER@HOST/DATABASE
    ///
    /// The URL may hold a password, which others on this machine see in a command line: give it by
    /// GINNEL_DATABASE then.
    #[arg(long, value_name = "URL", env = "GINNEL_DATABASE", hide_env_values = true,
          value_parser = database_url)]
    database: Option<Zeroizing<String>>,
}

const EXAMPLES: &str = "\
Examples:
  ginnel backup ./monday.backup --data ./data
  ginnel backup ./monday.backup --data ./data --passphrase-file ./passphrase
  ginnel backup ./monday.backup --data ./data --recipient age1...      no secret on this machine

Afterwards: `ginnel restore`; or `age -d` and any reader of JSON Lines. See docs/backup.md";

/// Bytes that are gathered before they are encrypted.
const BUFFER: usize = 64 * 1024;

/// A line that says how far a command is, on a terminal alone.
pub(crate) struct Progress {
    verb: &'static str,
    /// What was drawn last; `None` where nobody looks.
    percent: Option<u64>,
}

impl Installation {
    pub(crate) fn database(&self) -> Database {
        match &self.database {
            Some(url) => Database::Postgres(url.clone()),
            None => Database::File,
        }
    }
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let passphrase = match args.recipients.as_slice() {
        [] => Some(args.passphrase.read(true)?),
        [..] => None,
    };
    let shown = args.file.display();
    let file = Unfinished::create(&args.file).map_err(|error| {
        advise(
            format_args!("write `{shown}`: {error}"),
            "name a file in a directory that you may write to",
        )
    })?;
    let writer = match passphrase {
        Some(passphrase) => cipher::encrypt(passphrase, file)?,
        None => cipher::encrypt_to(&args.recipients, file)?,
    };
    let mut sink = io::BufWriter::with_capacity(BUFFER, writer);
    let mut progress = Progress::begin("backup");
    let contents = {
        let database = args.installation.database();
        let mut draw = |done, all| progress.draw(done, all);
        let backup = control::backup(
            &args.installation.data,
            &database,
            os::clock::wall(),
            &mut sink,
            &mut draw,
        );
        tokio::select! {
            contents = backup => contents?,
            _ = terminal::interrupted() => anyhow::bail!("interrupted; nothing was written"),
        }
    };
    progress.end();
    let writer = sink.into_inner().map_err(io::IntoInnerError::into_error);
    let file = writer.and_then(age::stream::StreamWriter::finish);
    let file = file.with_context(|| format!("write `{shown}`"))?;
    file.finish().with_context(|| format!("write `{shown}`"))?;
    if global.json {
        terminal::json(&contents)?;
    } else {
        terminal::line(format_args!("{shown}: {}", described(&contents)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what a backup holds.
pub(crate) fn described(contents: &BackupContents) -> String {
    let audit = match &contents.audit_last {
        Some((id, hash)) => format!(", audit up to row {id} with {hash}"),
        None => String::new(),
    };
    format!(
        "{} rows of {}, schema {}{audit}",
        contents.rows,
        admin::time(contents.made),
        contents.schema
    )
}

fn recipient(text: &str) -> Result<x25519::Recipient, String> {
    let parsed = text.parse::<x25519::Recipient>();
    parsed.map_err(|error| format!("it is no public key of age: {error}"))
}

impl Progress {
    /// Begins with nothing done.
    pub(crate) fn begin(verb: &'static str) -> Self {
        let percent = io::stderr().is_terminal().then_some(u64::MAX);
        Self { verb, percent }
    }

    /// Shows that so many rows of so many are done, if that is news.
    pub(crate) fn draw(&mut self, done: u64, all: u64) {
        let percent = done.saturating_mul(100).checked_div(all).unwrap_or(100);
        if self.percent.is_some_and(|drawn| drawn != percent) {
            self.percent = Some(percent);
            let mut stderr = io::stderr().lock();
            // Nobody reads a closed stderr.
            drop(write!(stderr, "\r{} {percent:3}%  {done} rows", self.verb));
            drop(stderr.flush());
        }
    }

    /// Ends its line.
    pub(crate) fn end(self) {
        if self.percent.is_some() {
            terminal::note("");
        }
    }
}
