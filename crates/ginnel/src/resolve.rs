//! `ginnel resolve`: what a name means inside the tunnel.

use std::{process::ExitCode, time::Duration};

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::{
    agent::{
        Client, client,
        protocol::{Answer, RecordKind, Request},
    },
    cli::Global,
    terminal,
};

/// Look a name up inside the tunnel
///
/// Asks the network's own resolver: that of the organisation, or the DNS line of a plain
/// configuration.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The name
    name: String,

    /// Which records: A, AAAA or TXT; both A and AAAA when left out
    #[arg(ignore_case = true, value_name = "TYPE", value_parser = kinds())]
    kind: Option<RecordKind>,
}

const EXAMPLES: &str = "\
Examples:
  ginnel resolve db
  ginnel resolve _whoami.internal TXT
  ginnel resolve web.svc AAAA --json";

/// The agent bounds each question; this bounds the agent.
const TIMEOUT: Duration = Duration::from_secs(20);

fn kinds() -> impl TypedValueParser<Value = RecordKind> {
    PossibleValuesParser::new(RecordKind::ALL.map(RecordKind::text)).map(|text| {
        let mut kinds = RecordKind::ALL.into_iter();
        kinds
            .find(|kind| kind.text().eq_ignore_ascii_case(&text))
            .expect("the values are those of `ALL`")
    })
}

/// Asks and prints one record a line.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let kinds = match args.kind {
        Some(kind) => vec![kind],
        None => vec![RecordKind::Aaaa, RecordKind::A],
    };
    let request = Request::Resolve {
        name: args.name,
        kinds,
    };
    let (answer, _) = Client::of(global)?.ask(&request, TIMEOUT).await?;
    let Answer::Records(records) = answer else {
        return Err(client::unexpected(&answer));
    };
    if global.json {
        terminal::json(&records)?;
    } else {
        for record in records {
            // What a foreign zone says ends no line.
            terminal::line(&*terminal::plain(&record.value))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
