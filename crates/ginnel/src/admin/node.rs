//! `ginnel node`: the machines and devices of an organisation.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use model::{
    amount::Bytes,
    api::{GatewayTunnel, ListQuery, NewExpiry, Node, NodeChange, Timestamp},
    map::Role,
    name::Label,
};

use crate::{
    admin::{all, client, or_dash, time},
    api::Client,
    cli::Global,
    remedy::{Advise as _, advise},
    terminal::{self, Column},
};

/// List, show, approve, change, end and remove nodes
///
/// A node whose time is over, or that waits for approval, is in nobody's map: it has no name and
/// gets no certificate.
///
/// Removing a node drops its session keys at every gateway at once: what it had open is cut, and
/// its name is gone.
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
  ginnel node list
  ginnel node set db --name old-db
  ginnel node set db --tag production --tag postgres
  ginnel node approve db
  ginnel node expire laptop --in 30d
  ginnel node expire laptop --at 2026-12-31T18:00:00Z
  ginnel node expire laptop --never
  ginnel node remove db";

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the nodes
    List,
    /// Show one node
    Show {
        /// Its name
        name: Label,
    },
    /// Rename a node or change its tags; its address stays
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Set {
        /// Its name
        name: Label,
        /// The new name
        #[arg(long = "name", value_name = "NEW", group = "change")]
        new: Option<Label>,
        /// A tag to add, by which rules of the policy find the node; may be repeated
        #[arg(long, group = "change")]
        tag: Vec<Label>,
        /// A tag to take away; may be repeated
        #[arg(long, value_name = "TAG", group = "change")]
        untag: Vec<Label>,
    },
    /// Let a machine into the network that joined by a token with --approval
    Approve {
        /// Its exact name
        name: Label,
    },
    /// Say when a node's time is over: it is cut off then, stays in the list, and comes back with
    /// its name and address when it is given more time
    #[command(group = clap::ArgGroup::new("end").required(true))]
    Expire {
        /// Its exact name
        name: Label,
        /// After a while, such as 12h or 30d; ten years at most
        #[arg(long = "in", value_name = "TIME", group = "end",
            value_parser = humantime::parse_duration)]
        after: Option<Duration>,
        /// At a point in time (RFC 3339), such as 2026-12-31T18:00:00Z
        #[arg(long, value_name = "TIME", group = "end", value_parser = humantime::parse_rfc3339)]
        at: Option<SystemTime>,
        /// At once
        #[arg(long, group = "end")]
        now: bool,
        /// Never
        #[arg(long, group = "end")]
        never: bool,
    },
    /// Remove a node: it is cut off everywhere at once
    Remove {
        /// Its exact name
        name: Label,
    },
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
            let nodes = all(query, async |query| client.nodes(query).await).await?;
            terminal::list(&nodes, COLUMNS, global.json)?;
        }
        Action::Show { name } => {
            let node = find(&client, org, &name).await?;
            terminal::show(&node, COLUMNS, global.json)?;
        }
        Action::Set {
            name,
            new,
            tag,
            untag,
        } => {
            let node = find(&client, org, &name).await?;
            let change = NodeChange {
                name: new,
                tags: changed_tags(&node, tag, &untag)?,
            };
            let node = client.change_node(node.id, &change).await?;
            terminal::show(&node, COLUMNS, global.json)?;
        }
        Action::Approve { name } => {
            let node = find(&client, org, &name).await?;
            let node = client.approve_node(node.id).await?;
            terminal::show(&node, COLUMNS, global.json)?;
        }
        Action::Expire {
            name,
            after,
            at,
            now,
            never: _,
        } => {
            let node = find(&client, org, &name).await?;
            let expiry = NewExpiry {
                expires: at.map(timestamp),
                ttl_seconds: after.map(whole_seconds).or(now.then_some(0)),
            };
            let node = client.expire_node(node.id, &expiry).await?;
            terminal::show(&node, COLUMNS, global.json)?;
        }
        Action::Remove { name } => {
            let node = find(&client, org, &name).await?;
            client.remove_node(node.id).await?;
            terminal::done(
                format_args!("node {name} is removed and cut off"),
                global.json,
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds the one node of that exact name.
pub(crate) async fn find(client: &Client, org: Option<Label>, name: &Label) -> Result<Node> {
    let query = ListQuery {
        org,
        name: Some(name.clone()),
        ..ListQuery::default()
    };
    let mut nodes = client.nodes(&query).await?.items;
    if nodes.len() > 1 {
        return Err(advise(
            format_args!("{} nodes have the name `{name}`", nodes.len()),
            "say which with --org",
        ));
    }
    nodes
        .pop()
        .with_context(|| format!("no node has the name `{name}`"))
        .remedy("see `ginnel node list`")
}

/// Returns a while in whole seconds, of which a part is one.
fn whole_seconds(time: Duration) -> u64 {
    let part = u64::from(time.subsec_nanos() > 0);
    time.as_secs().saturating_add(part)
}

/// Returns a point in time in whole seconds; what lies before 1970 is 1970.
fn timestamp(time: SystemTime) -> Timestamp {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(seconds.as_secs()).unwrap_or(i64::MAX))
}

/// Returns the tags that `node` has with `added` and without `taken`; `None` when none is asked.
fn changed_tags(node: &Node, added: Vec<Label>, taken: &[Label]) -> Result<Option<Vec<Label>>> {
    if added.is_empty() && taken.is_empty() {
        return Ok(None);
    }
    for tag in taken {
        if !node.tags.contains(tag) {
            return Err(advise(
                format_args!("node `{}` has no tag `{tag}`", node.name),
                "see `ginnel node show`",
            ));
        }
    }
    let mut tags = node.tags.clone();
    tags.extend(added);
    tags.retain(|tag| !taken.contains(tag));
    Ok(Some(tags))
}

const COLUMNS: &[Column<Node>] = &[
    ("ID", |node| node.id.to_string()),
    ("NAME", |node| node.name.to_string()),
    ("ROLE", |node| role(node.role).to_owned()),
    ("ORG", |node| or_dash(node.org.as_ref())),
    ("ADDRESS", |node| or_dash(node.address)),
    ("TAGS", |node| {
        let tags: Vec<_> = node.tags.iter().map(Label::as_str).collect();
        or_dash(Some(tags.join(",")).filter(|tags| !tags.is_empty()))
    }),
    ("STATE", |node| node.state.as_str().to_owned()),
    ("EXPIRES", |node| or_dash(node.expires.map(time))),
    ("SEEN", |node| or_dash(node.seen.map(time))),
    ("CREATED", |node| time(node.created)),
    ("HANDSHAKE", |node| {
        or_dash(node.tunnel.map(|tunnel| time(tunnel.handshake)))
    }),
    ("TUNNEL", |node| or_dash(node.tunnel.map(tunnel))),
];

/// What carries the tunnel of a node, and what has passed it, as the node sees it.
fn tunnel(tunnel: GatewayTunnel) -> String {
    let GatewayTunnel {
        transport,
        received_bytes,
        sent_bytes,
        ..
    } = tunnel;
    let (sent, received) = (Bytes(received_bytes), Bytes(sent_bytes));
    format!("{transport}, {sent} sent, {received} received")
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Client => "client",
        Role::Gateway => "gateway",
    }
}
