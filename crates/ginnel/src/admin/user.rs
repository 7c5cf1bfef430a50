//! `ginnel user`: the people of an organisation.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use model::{
    api::{ListQuery, NewUser, User, UserChange},
    name::Label,
    policy::Role,
};

use crate::{
    admin::{all, client, time},
    api::Client,
    cli::Global,
    remedy::{Advise as _, advise},
    terminal::{self, Column},
};

/// List, invite, change and remove people
///
/// An administrator changes everything in the organisation; a developer reaches what the policy
/// gives, sees nodes and rules, and publishes services of her devices; a guest reaches what the
/// policy gives. Removing a person ends her sessions, certificates and devices everywhere at once.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,

    /// The organisation, if you are in several
    #[arg(long, global = true)]
    org: Option<Label>,
}

const EXAMPLES: &str = "\
Examples:
  ginnel user list
  ginnel user add alice --role developer     prints a token for `ginnel login`
  ginnel user set alice --role guest
  ginnel user remove alice";

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the people
    List,
    /// Show one person
    Show {
        /// Her name
        name: Label,
    },
    /// Invite a person and print a token that signs her in on one device
    Add {
        /// Her name
        name: Label,
        /// What she may be
        #[arg(long, default_value = "developer", value_parser = role())]
        role: Role,
        /// How long the token is valid, such as 1h or 7d; one year at most
        #[arg(long, default_value = "1d", value_parser = humantime::parse_duration)]
        ttl: Duration,
    },
    /// Give a person another role or name; her certificates end
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Set {
        /// Her name
        name: Label,
        /// What she may be
        #[arg(long, value_parser = role(), group = "change")]
        role: Option<Role>,
        /// The new name
        #[arg(long = "name", value_name = "NEW", group = "change")]
        new: Option<Label>,
    },
    /// Remove a person: all that is hers is cut off everywhere at once
    Remove {
        /// Her exact name
        name: Label,
    },
}

/// Parses a role, and lets help and completions name them all.
fn role() -> impl clap::builder::TypedValueParser<Value = Role> {
    use clap::builder::TypedValueParser as _;
    let names = Role::ALL.map(Role::name);
    clap::builder::PossibleValuesParser::new(names).try_map(|name| name.parse::<Role>())
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let client = client(global)?;
    let org = args.org;
    match args.action {
        Action::List => {
            let query = ListQuery {
                org,
                ..ListQuery::default()
            };
            let users = all(query, async |query| client.users(query).await).await?;
            terminal::list(&users, COLUMNS, global.json)?;
        }
        Action::Show { name } => {
            let user = find(&client, org, &name).await?;
            let user = client.user(user.id).await?;
            terminal::show(&user, COLUMNS, global.json)?;
        }
        Action::Add { name, role, ttl } => {
            let request = NewUser {
                org,
                name,
                role,
                ttl_seconds: Some(ttl.as_secs()),
            };
            let created = client.add_user(&request).await?;
            if global.json {
                terminal::json(&created)?;
            } else {
                terminal::line(created.token.emit().as_str())?;
            }
        }
        Action::Set { name, role, new } => {
            let user = find(&client, org, &name).await?;
            let request = UserChange { name: new, role };
            let user = client.change_user(user.id, &request).await?;
            terminal::show(&user, COLUMNS, global.json)?;
        }
        Action::Remove { name } => {
            let user = find(&client, org, &name).await?;
            client.remove_user(user.id).await?;
            terminal::done(
                format_args!("{name} is removed and cut off with every device"),
                global.json,
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds the one person of that exact name.
async fn find(client: &Client, org: Option<Label>, name: &Label) -> Result<User> {
    let query = ListQuery {
        org,
        name: Some(name.clone()),
        ..ListQuery::default()
    };
    let mut users = client.users(&query).await?.items;
    if users.len() > 1 {
        return Err(advise(
            format_args!("{} people have the name `{name}`", users.len()),
            "say which with --org",
        ));
    }
    users
        .pop()
        .with_context(|| format!("nobody has the name `{name}`"))
        .remedy("see `ginnel user list`")
}

const COLUMNS: &[Column<User>] = &[
    ("ID", |user| user.id.to_string()),
    ("NAME", |user| user.name.to_string()),
    ("ORG", |user| user.org.to_string()),
    ("ROLE", |user| user.role.to_string()),
    ("OPERATOR", |user| {
        if user.operator { "yes" } else { "no" }.to_owned()
    }),
    ("CREATED", |user| time(user.created)),
];
