//! `ginnel session`: recorded SSH sessions: who did what where, shown again as it was.

mod screen;

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use model::{
    api::ListQuery,
    id::SessionId,
    name::Label,
    ssh::{RECORD_BYTES_MAX, Session},
};
use tokio::time;

use self::screen::Screen;
use crate::{
    admin::{all, client, or_dash, time as date},
    api::Client,
    cli::Global,
    remedy::Advise as _,
    terminal::{self, Column},
};

/// List, show and play recorded SSH sessions
///
/// Nodes record the sessions that `ginnel ssh-ca record` names. Records stay for 90 days; reading
/// one is in the audit.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  ginnel ssh-ca record pty          from now on, sessions with a terminal are recorded
  ginnel session list
  ginnel session play 17            as it was, but no pause longer than two seconds
  ginnel session play 17 --raw > 17.cast    for `asciinema play` and others";

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List recorded sessions, oldest first
    List {
        /// Only those in this organisation
        #[arg(long)]
        org: Option<Label>,
    },
    /// Show who did what where
    Show {
        /// Its id, as `list` shows it
        id: i64,
    },
    /// Show a session again as it was; on a terminal without what would make that answer, set its
    /// title or the clipboard
    Play {
        /// Its id, as `list` shows it
        id: i64,
        /// So many times as fast
        #[arg(long, default_value_t = 1.0, value_parser = parse_speed)]
        speed: f64,
        /// The longest pause that is kept
        #[arg(long, default_value = "2s", value_name = "TIME",
              value_parser = humantime::parse_duration)]
        pause: Duration,
        /// The record itself, in asciicast v2
        #[arg(long, conflicts_with_all = ["speed", "pause"])]
        raw: bool,
    },
    /// Remove a record before its time
    Remove {
        /// Its id, as `list` shows it
        id: i64,
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
            let rows = all(query, async |query| client.sessions(query).await).await?;
            terminal::list(&rows, COLUMNS, global.json)?;
        }
        Action::Show { id } => {
            let session = client.session(SessionId(id)).await?;
            terminal::show(&session, COLUMNS, global.json)?;
        }
        Action::Play {
            id,
            speed,
            pause,
            raw,
        } => {
            let record = record(&client, SessionId(id)).await?;
            if raw {
                io::stdout().write_all(record.as_bytes())?;
            } else {
                play(&record, speed, pause).await?;
            }
        }
        Action::Remove { id } => {
            client.remove_session(SessionId(id)).await?;
            terminal::done(format_args!("the record {id} is removed"), global.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Fetches a whole record.
async fn record(client: &Client, id: SessionId) -> Result<String> {
    let mut text = String::new();
    let mut query = ListQuery::default();
    loop {
        let page = client.pieces(id, &query).await?;
        text.extend(page.items.iter().map(|piece| piece.text.as_str()));
        let is_bounded = u64::try_from(text.len()).is_ok_and(|length| length <= RECORD_BYTES_MAX);
        match page.next {
            Some(next) if is_bounded => query.after = Some(next),
            Some(_) | None => return Ok(text),
        }
    }
}

/// Writes what the session put out, with its pauses where somebody looks.
async fn play(record: &str, speed: f64, pause_max: Duration) -> Result<()> {
    let is_watched = io::stdout().is_terminal();
    let (mut before, mut screen) = (0.0, Screen::default());
    // The first line tells the terminal of the session, which ours may differ from.
    for (number, line) in record.lines().enumerate().skip(1) {
        let event = serde_json::from_str(line);
        let (at, code, text): (f64, String, String) = event
            .with_context(|| format!("line {} of the record is no event", number + 1))
            .remedy("fetch it as it is: --raw")?;
        if code != "o" {
            continue;
        }
        if is_watched {
            let pause = Duration::try_from_secs_f64((at - before) / speed);
            time::sleep(pause.unwrap_or_default().min(pause_max)).await;
        }
        before = at;
        // A file takes all as it was.
        let text = if is_watched { screen.show(&text) } else { text };
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
    }
    Ok(())
}

fn parse_speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok();
    let speed = speed.filter(|speed: &f64| (0.01..=1_000.0).contains(speed));
    speed.ok_or_else(|| "write a number from 0.01 to 1000".to_owned())
}

const COLUMNS: &[Column<Session>] = &[
    ("ID", |row| row.id.to_string()),
    ("BEGUN", |row| date(row.begun)),
    ("ENDED", |row| or_dash(row.ended.map(date))),
    ("USER", |row| or_dash(row.user_name.as_ref())),
    ("NODE", |row| row.node_name.to_string()),
    ("ACCOUNT", |row| row.account.to_string()),
    ("SOURCE", |row| row.source.to_string()),
    ("SERIAL", |row| row.serial.to_string()),
    ("STATUS", |row| or_dash(row.status)),
    ("BYTES", |row| row.bytes.to_string()),
    ("COMMAND", |row| {
        // Who ran it chose it, and it may hold what a terminal obeys.
        let command = row.command.as_ref();
        or_dash(command.map(|command| command.escape_debug().to_string()))
    }),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_a_number_within_bounds() {
        for (text, taken) in [
            ("1", true),
            ("0.5", true),
            ("1000", true),
            ("0", false),
            ("-1", false),
            ("nan", false),
            ("inf", false),
            ("fast", false),
        ] {
            assert_eq!(parse_speed(text).is_ok(), taken, "{text}");
        }
    }
}
