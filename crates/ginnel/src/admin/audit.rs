//! `ginnel audit`: who changed what, and when, and whether the audit is whole.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use control::AuditVerifier;
use model::{
    api::{AuditEntry, AuditHash, AuditQuery, Page},
    name::Label,
};

use crate::{
    admin::{ITEMS_MAX, client, or_dash, time},
    api::Client,
    cli::Global,
    terminal::{self, Column},
};

/// List who changed what, and when; export it; verify that nobody altered it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  ginnel audit list --since 7d
  ginnel audit list --org acme --who alice --what node_removed --json
  ginnel audit export > audit.jsonl       one JSON object a line
  ginnel audit verify                     by an operator; prints the last row and its hash
  ginnel audit verify --known 4711:HASH   the rows up to 4711 are still those of that day
  ginnel audit verify audit.jsonl         what was exported without filters";

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the changes, oldest first
    List(Filter),
    /// Print the changes, oldest first, as one JSON object a line
    Export(Filter),
    /// Find the first row that was altered or is missing
    ///
    /// Each row has the SHA-256 of itself and of the row before. Whoever can write the database can
    /// compute all of them anew: keep what this prints somewhere else, and give it as --known.
    Verify {
        /// A file that `ginnel audit export` of an operator wrote, instead of the server
        file: Option<PathBuf>,

        /// A row that was verified earlier
        #[arg(long, value_name = "ID:HASH", value_parser = known)]
        known: Option<(i64, AuditHash)>,
    },
}

/// Which changes.
#[derive(Debug, clap::Args)]
struct Filter {
    /// Only those in this organisation
    #[arg(long)]
    org: Option<Label>,

    /// Only what this one did: a person, a node, or an actor such as user:1 or server
    #[arg(long, value_name = "NAME")]
    who: Option<String>,

    /// Only what is called so, such as node_removed
    #[arg(long, value_name = "ACTION")]
    what: Option<String>,

    /// Only what happened since then: how long ago (7d), or a time (2026-01-31T08:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<SystemTime>,
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    match args.action {
        Action::List(filter) => {
            let mut entries = Vec::new();
            let take = |entry| {
                entries.push(entry);
                Ok(entries.len() < ITEMS_MAX)
            };
            pages(&client(global)?, filter.query(), take).await?;
            terminal::list(&entries, COLUMNS, global.json)?;
        }
        Action::Export(filter) => {
            let print = |entry| {
                terminal::json(&entry)?;
                Ok(true)
            };
            pages(&client(global)?, filter.query(), print).await?;
        }
        Action::Verify { file, known } => {
            let (last, hash) = match file {
                Some(file) => verify_file(&file, known)?,
                None => verify(&client(global)?, known).await?,
            };
            if global.json {
                terminal::json(&serde_json::json!({ "id": last, "hash": hash }))?;
            } else {
                terminal::line(format_args!("whole up to {last}:{hash}"))?;
            }
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

/// Verifies the audit of the server. Returns the last row.
async fn verify(client: &Client, known: Option<(i64, AuditHash)>) -> Result<(i64, AuditHash)> {
    let chain = client.audit_chain().await?;
    if let Some((id, _)) = known.filter(|(id, _)| *id <= chain.past_id) {
        let past = chain.past_id;
        bail!("row {id} was deleted because of its age, as all up to {past}");
    }
    let mut verifier = AuditVerifier::new(&chain);
    let take = |entry: AuditEntry| {
        follow(&mut verifier, &entry, known)?;
        // What was written since the server told the end is for the next time.
        Ok(entry.id < chain.last_id)
    };
    pages(client, AuditQuery::default(), take).await?;
    verifier.finish(&chain).context(BROKEN)?;
    reached(verifier, known)
}

/// Verifies a file that was exported. Returns the last row.
fn verify_file(path: &Path, known: Option<(i64, AuditHash)>) -> Result<(i64, AuditHash)> {
    let open = || format!("open `{}`", path.display());
    let mut reader = BufReader::new(File::open(path).with_context(open)?);
    let mut verifier: Option<AuditVerifier> = None;
    let mut line = String::new();
    for number in 1_u64.. {
        line.clear();
        let read = (&mut reader).take(LINE_BYTES_MAX).read_line(&mut line);
        let place = || format!("{}: line {number}", path.display());
        if read.with_context(place)? == 0 {
            break;
        }
        let entry: AuditEntry = serde_json::from_str(&line).with_context(place)?;
        let verifier = verifier.get_or_insert_with(|| AuditVerifier::of_part(&entry));
        follow(verifier, &entry, known).with_context(place)?;
    }
    let verifier = verifier.context("the file has no rows")?;
    reached(verifier, known)
}

/// Takes the next row and compares it with the one that is known.
fn follow(
    verifier: &mut AuditVerifier,
    entry: &AuditEntry,
    known: Option<(i64, AuditHash)>,
) -> Result<()> {
    verifier.follow(entry).context(BROKEN)?;
    match known {
        Some((id, hash)) if verifier.last().0 == id && verifier.last().1 != hash => {
            bail!("{BROKEN}: row {id} has another hash than the one that is known")
        }
        Some(_) | None => Ok(()),
    }
}

/// Returns the last row, once the known one was among those that were verified.
fn reached(verifier: AuditVerifier, known: Option<(i64, AuditHash)>) -> Result<(i64, AuditHash)> {
    let last = verifier.last();
    match known {
        Some((id, _)) if id > last.0 => {
            bail!(
                "{BROKEN}: the audit ends at row {}, before row {id}, which is known",
                last.0
            )
        }
        Some(_) | None => Ok(last),
    }
}

/// Gives the rows that `query` asks for to `take`, until it says that it has enough.
async fn pages(
    client: &Client,
    mut query: AuditQuery,
    mut take: impl FnMut(AuditEntry) -> Result<bool>,
) -> Result<()> {
    loop {
        let Page { items, next } = client.audit(&query).await?;
        for entry in items {
            if !take(entry)? {
                return Ok(());
            }
        }
        match next {
            // A faulty server does not keep one here.
            Some(next) if query.after.is_none_or(|after| after < next) => query.after = Some(next),
            Some(_) | None => return Ok(()),
        }
    }
}

impl Filter {
    fn query(self) -> AuditQuery {
        let since = self.since.map(|since| since.duration_since(UNIX_EPOCH));
        let since = since.map(|since| since.unwrap_or_default().as_secs());
        AuditQuery {
            org: self.org,
            actor: self.who,
            action: self.what,
            since: since.map(|since| i64::try_from(since).unwrap_or(i64::MAX)),
            after: None,
            limit: None,
        }
    }
}

fn since(text: &str) -> Result<SystemTime, String> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(time);
    }
    let ago: Duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let time = os::clock::wall().checked_sub(ago);
    time.ok_or_else(|| "that is before all time".to_owned())
}

fn known(text: &str) -> Result<(i64, AuditHash), &'static str> {
    let form = "a row is written ID:HASH, as `ginnel audit verify` prints it";
    let (id, hash) = text.split_once(':').ok_or(form)?;
    Ok((
        id.parse().map_err(|_| form)?,
        hash.parse().map_err(|_| form)?,
    ))
}

/// What every fault of the chain is.
const BROKEN: &str = "the audit is not what was written";

/// The longest line of an exported file: a row is shorter than a request.
const LINE_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use model::api::{AuditLink, Timestamp};

    use super::*;

    #[test]
    fn a_file_is_verified_without_the_server() {
        let rows = chained(3);
        let last = rows[2].link.clone().expect("it is chained").hash;
        assert_eq!(check(&rows, None), Ok((6, last)));
        let known = rows[0].link.clone().expect("it is chained").hash;
        assert_eq!(check(&rows, Some((4, known))), Ok((6, last)));
    }

    #[test]
    fn a_file_that_was_altered_is_refused_with_the_row() {
        let fails = |rows: &[AuditEntry], known, part: &str| {
            let error = check(rows, known).expect_err(part);
            assert!(error.contains(part), "{error}");
        };
        let mut rows = chained(3);
        rows[1].subject.push('x');
        fails(
            &rows,
            None,
            "line 2: the audit is not what was written: row 5 was altered",
        );
        let mut rows = chained(3);
        rows.remove(1);
        fails(&rows, None, "row 6 does not follow row 4");
        let mut rows = chained(3);
        rows[2].link = None;
        fails(&rows, None, "row 6 has no hash");
        let foreign = AuditHash([7; 32]);
        fails(&chained(3), Some((5, foreign)), "row 5 has another hash");
        fails(
            &chained(3),
            Some((7, foreign)),
            "ends at row 6, before row 7",
        );
        fails(&[], None, "no rows");
    }

    fn chained(count: i64) -> Vec<AuditEntry> {
        let mut previous = AuditHash([1; 32]);
        let row = |id| {
            let mut row = AuditEntry {
                id,
                time: Timestamp(1_767_225_600 + id),
                actor: "user:1".to_owned(),
                action: "node_removed".to_owned(),
                subject: format!("node:{id} web"),
                org: None,
                org_id: None,
                link: None,
            };
            let hash = control::audit_hash(previous, &row);
            row.link = Some(AuditLink { previous, hash });
            previous = hash;
            row
        };
        (4..4 + count).map(row).collect()
    }

    fn check(
        rows: &[AuditEntry],
        known: Option<(i64, AuditHash)>,
    ) -> Result<(i64, AuditHash), String> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        for row in rows {
            let line = serde_json::to_string(row).expect("a row");
            writeln!(file, "{line}").expect("it is written");
        }
        verify_file(file.path(), known).map_err(|error| format!("{error:#}"))
    }
}
