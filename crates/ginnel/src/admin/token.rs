//! `ginnel token`: credentials that enrol machines, gateways and people's devices.

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use model::{
    api::{ListQuery, NewToken, TokenEntry},
    id::TokenId,
    name::Label,
    token::Kind,
};

use crate::{
    admin::{all, client, or_dash, time},
    cli::Global,
    remedy::advise,
    terminal::{self, Column},
};

/// List, show, make and revoke tokens
///
/// A token is shown once, when it is made. It always ends: after its uses or its time.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  ginnel token add                             enrols one machine within an hour
  ginnel token add --uses 50 --ttl 7d --org ci
  ginnel token add --approval                  the machine waits for `ginnel node approve`
  ginnel token add --kind gateway
  ginnel token add --kind login                a further device of yours
  ginnel token remove 12";

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the tokens that still work
    List,
    /// Show a token that still works
    Show {
        /// Its id, as `list` shows it
        id: i64,
    },
    /// Make a token and print it
    Add {
        /// What it is for
        #[arg(long, value_enum, default_value_t = Purpose::Join)]
        kind: Purpose,
        /// The organisation that it leads into [default: yours]
        #[arg(long)]
        org: Option<Label>,
        /// Whom it signs in [default: you]
        #[arg(long, value_name = "NAME")]
        user: Option<Label>,
        /// How often it may be used
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// How long it is valid, such as 30m, 1h or 7d; one year at most
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// Let a machine that joins by it wait until somebody approves it: `ginnel node approve`
        #[arg(long)]
        approval: bool,
    },
    /// Revoke a token; what it enrolled stays
    Remove {
        /// Its id, as `list` shows it
        id: i64,
    },
}

/// What a token can be made for.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Purpose {
    /// Enrol machines
    Join,
    /// Enrol gateways
    Gateway,
    /// Sign a person in on a further device
    Login,
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let client = client(global)?;
    match args.action {
        Action::List => {
            let tokens = all(ListQuery::default(), async |query| {
                client.tokens(query).await
            })
            .await?;
            terminal::list(&tokens, COLUMNS, global.json)?;
        }
        Action::Show { id } => {
            let token = client.token(TokenId(id)).await?;
            terminal::show(&token, COLUMNS, global.json)?;
        }
        Action::Add {
            kind,
            org,
            user,
            uses,
            ttl,
            approval,
        } => {
            if approval && !matches!(kind, Purpose::Join) {
                return Err(advise(
                    "only who joins by a join token waits for approval",
                    "leave --approval out",
                ));
            }
            if user.is_some() && !matches!(kind, Purpose::Login) {
                return Err(advise(
                    "only a login token is a person's",
                    "add --kind login",
                ));
            }
            let request = NewToken {
                kind: kind.into(),
                org,
                user,
                uses_max: Some(uses),
                ttl_seconds: Some(ttl.as_secs()),
                approval,
            };
            let created = client.add_token(&request).await?;
            if global.json {
                terminal::json(&created)?;
            } else {
                terminal::line(created.token.emit().as_str())?;
            }
        }
        Action::Remove { id } => {
            client.remove_token(TokenId(id)).await?;
            terminal::done(format_args!("token {id} is revoked"), global.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl From<Purpose> for Kind {
    fn from(purpose: Purpose) -> Self {
        match purpose {
            Purpose::Join => Self::Join,
            Purpose::Gateway => Self::Gateway,
            Purpose::Login => Self::Login,
        }
    }
}

const COLUMNS: &[Column<TokenEntry>] = &[
    ("ID", |token| token.id.to_string()),
    ("KIND", |token| token.kind.to_string()),
    ("ORG", |token| or_dash(token.org.as_ref())),
    ("USES", |token| {
        format!("{}/{}", token.uses, or_dash(token.uses_max))
    }),
    ("APPROVAL", |token| {
        or_dash(token.approval.then_some("needed"))
    }),
    ("CREATED", |token| time(token.created)),
    ("EXPIRES", |token| time(token.expires)),
];
