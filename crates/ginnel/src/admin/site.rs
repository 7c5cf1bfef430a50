//! `ginnel site`: LANs that are reached through a node.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use model::{
    api::{ListQuery, NewSite, Site, SiteChange, SiteNode},
    id::NodeId,
    name::Label,
    site::{Health, Ipv4Prefix, Mode},
};

use crate::{
    admin::{all, client, node, time},
    api::Client,
    cli::Global,
    remedy::{Advise as _, advise},
    terminal::{self, Column},
};

/// List, show, add, change and remove sites
///
/// A site is one or several LANs behind a node, such as an office: devices there are reached
/// through the node and need nothing installed. The device 192.168.1.10 of the site `paris` has
/// the name `192-168-1-10.paris.site.internal`, so two sites with the same addresses are both
/// reached. Nobody reaches a site until a rule names it.
///
/// With `--mode masquerade` the node needs no privileges: it opens ordinary connections, so devices
/// see its address, and open none to the network themselves. With `--mode routed` and an interface
/// (`ginnel up --tun`) devices of two sites see each other's own addresses and both may open
/// connections, as rules from `site:NAME` allow. For that the node's machine forwards IPv4, and the
/// router of its LAN has a route for the other sites' addresses to it. Sites that share addresses
/// with others, and everybody who is not in a site, are served as with `masquerade`.
///
/// With `--mode auto` the node tries out whether what devices answer to another site comes back,
/// and serves the site as with `routed` or `masquerade` by that. `ginnel status` and `ginnel
/// doctor` on the node say which, why, what is lost by it and what would lift that.
///
/// A site may have up to four nodes in its LAN. The gateway probes each of them every second, and
/// the first in the order given that answers and has a working interface in the LAN carries the
/// site; another one takes over within five seconds, without the control plane. One that was out
/// carries again once it has been well for 10 seconds, and for longer the more often it was out
/// lately, up to 5 minutes. What goes on already over a node that fails is cut, but for `routed`.
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
  ginnel site add paris --node office --prefix 192.168.1.0/24
  ginnel site add oslo --node office --node loft --prefix 192.168.3.0/24
  ginnel site set oslo --node loft --node office
  ginnel site show oslo
  ginnel site add rome --node attic --prefix 192.168.2.0/24 --mode auto
  ginnel policy add --from role:developer --to site:paris
  ginnel policy add --from site:rome --to site:paris --allow 443
  ginnel policy add --from user:alice --to site:paris:192.168.1.10 --allow 22
  ginnel dial 192-168-1-10.paris.site 22
  ginnel site list
  ginnel site remove paris";

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the sites of the organisation
    List,
    /// Show one site
    Show {
        /// Its name
        name: Label,
    },
    /// Add a site behind a node
    Add {
        /// The name of the site
        name: Label,
        /// The node in its LAN; may be repeated, then the first that is well carries the site
        #[arg(long, required = true, value_name = "NODE")]
        node: Vec<Label>,
        /// The addresses of its devices; may be repeated
        #[arg(long, required = true, value_name = "ADDRESS/LENGTH")]
        prefix: Vec<Ipv4Prefix>,
        /// How devices and the network reach each other
        #[arg(
            long,
            default_value = "masquerade",
            value_name = "auto|masquerade|routed"
        )]
        mode: Mode,
    },
    /// Give a site other nodes; its addresses and rules stay
    Set {
        /// Its name
        name: Label,
        /// A node in its LAN; may be repeated, then the first that is well carries the site
        #[arg(long, required = true, value_name = "NODE")]
        node: Vec<Label>,
    },
    /// Remove a site: its devices are reached no more
    Remove {
        /// Its name
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
            let sites = all(query, async |query| client.sites(query).await).await?;
            terminal::list(&sites, COLUMNS, global.json)?;
        }
        Action::Show { name } => {
            let site = find(&client, org, &name).await?;
            terminal::show(&site, COLUMNS, global.json)?;
        }
        Action::Add {
            name,
            node,
            prefix,
            mode,
        } => {
            let mut nodes = ids(&client, org.as_ref(), &node).await?;
            let request = NewSite {
                name,
                node: nodes.remove(0),
                standbys: nodes,
                prefixes: prefix,
                mode,
            };
            let site = client.add_site(&request).await?;
            terminal::show(&site, COLUMNS, global.json)?;
            terminal::note(format_args!(
                "nobody reaches it until a rule names it: ginnel policy add --to site:{}",
                site.name
            ));
        }
        Action::Set { name, node } => {
            let site = find(&client, org.clone(), &name).await?;
            let nodes = ids(&client, Some(&site.org), &node).await?;
            let site = client.change_site(site.id, &SiteChange { nodes }).await?;
            terminal::show(&site, COLUMNS, global.json)?;
        }
        Action::Remove { name } => {
            let site = find(&client, org, &name).await?;
            client.remove_site(site.id).await?;
            terminal::done(format_args!("site {name} is removed"), global.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds the nodes of these names.
async fn ids(client: &Client, org: Option<&Label>, names: &[Label]) -> Result<Vec<NodeId>> {
    let mut ids = Vec::new();
    for name in names {
        ids.push(node::find(client, org.cloned(), name).await?.id);
    }
    Ok(ids)
}

/// Writes the nodes of a site, and of several which one carries it and why the others do not.
fn nodes(site: &Site) -> String {
    let told = |node: &SiteNode| {
        let name = &node.node_name;
        match (node.carries, node.health) {
            (Some(true), Some(Health::Healthy)) => format!("{name} (carries it)"),
            (Some(true), Some(health)) => format!("{name} (carries it; {})", health.in_words()),
            (Some(false), Some(health)) => format!("{name} ({})", health.in_words()),
            (_, None) | (None, Some(_)) => name.to_string(),
        }
    };
    match &site.nodes[..] {
        [] => site.node_name.to_string(),
        nodes => nodes.iter().map(told).collect::<Vec<_>>().join(", "),
    }
}

/// Finds the one site of that exact name.
async fn find(client: &Client, org: Option<Label>, name: &Label) -> Result<Site> {
    let query = ListQuery {
        org,
        name: Some(name.clone()),
        ..ListQuery::default()
    };
    let mut sites = client.sites(&query).await?.items;
    if sites.len() > 1 {
        return Err(advise(
            format_args!("{} sites have the name `{name}`", sites.len()),
            "say which with --org",
        ));
    }
    sites
        .pop()
        .with_context(|| format!("no site has the name `{name}`"))
        .remedy("see `ginnel site list`")
}

const COLUMNS: &[Column<Site>] = &[
    ("ID", |site| site.id.to_string()),
    ("NAME", |site| format!("{}.site.internal", site.name)),
    ("NODE", nodes),
    ("PREFIXES", |site| {
        let prefixes: Vec<_> = site.prefixes.iter().map(ToString::to_string).collect();
        prefixes.join(",")
    }),
    ("MODE", |site| site.mode.to_string()),
    ("NETWORK", |site| site.network.to_string()),
    ("CREATED", |site| time(site.created)),
];
