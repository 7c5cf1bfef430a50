//! `ginnel site`: LANs that are reached through a node.

use std::{process::ExitCode, str::FromStr};

use anyhow::{Context as _, Result};
use model::{
    api::{ListQuery, NewSite, Site, SiteChange, SiteNode},
    id::NodeId,
    name::Label,
    site::{Alias, Health, Ipv4Prefix, MalformedAlias, Mode},
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
/// With `--alias 192.168.1.0/24=10.99.1.0/24` machines with an interface know the devices of that
/// prefix by other IPv4 addresses too, so that programs without IPv6 reach them where
/// 192.168.1.0/24 is somebody else's: 192.168.1.10 is 10.99.1.10 there. Both have the same length,
/// and no other prefix or alias of the organisation has an address of the alias. Of two sites with
/// one prefix one may be routed if the other serves by `masquerade` and has an alias, and both if
/// both have one; devices of a routed site with an alias are seen by it. Rules, and names, have the
/// devices' own addresses.
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
  ginnel site set oslo --alias 192.168.3.0/24=10.99.3.0/24
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
        /// By which other addresses machines know the devices of a prefix; may be repeated. Where
        /// the site has one prefix, it need not be named
        #[arg(long, value_name = "[PREFIX=]ALIAS")]
        alias: Vec<Wanted>,
        /// How devices and the network reach each other
        #[arg(
            long,
            default_value = "masquerade",
            value_name = "auto|masquerade|routed"
        )]
        mode: Mode,
    },
    /// Give a site other nodes or aliases; its own addresses and rules stay
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Set {
        /// Its name
        name: Label,
        /// A node in its LAN; may be repeated, then the first that is well carries the site
        #[arg(long, group = "change", value_name = "NODE")]
        node: Vec<Label>,
        /// An alias as in `add`; may be repeated, and takes the place of all that it has
        #[arg(long, group = "change", value_name = "[PREFIX=]ALIAS")]
        alias: Vec<Wanted>,
        /// Take its aliases away
        #[arg(long, group = "change", conflicts_with = "alias")]
        no_alias: bool,
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
            alias,
            mode,
        } => {
            let aliases = aliases(&alias, &prefix)?;
            let mut nodes = ids(&client, org.as_ref(), &node).await?;
            let request = NewSite {
                name,
                node: nodes.remove(0),
                standbys: nodes,
                prefixes: prefix,
                aliases,
                mode,
            };
            let site = client.add_site(&request).await?;
            terminal::show(&site, COLUMNS, global.json)?;
            terminal::note(format_args!(
                "nobody reaches it until a rule names it: ginnel policy add --to site:{}",
                site.name
            ));
        }
        Action::Set {
            name,
            node,
            alias,
            no_alias,
        } => {
            let site = find(&client, org.clone(), &name).await?;
            let mut change = SiteChange::default();
            if !node.is_empty() {
                change.nodes = Some(ids(&client, Some(&site.org), &node).await?);
            }
            if no_alias || !alias.is_empty() {
                change.aliases = Some(aliases(&alias, &site.prefixes)?);
            }
            let site = client.change_site(site.id, &change).await?;
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

/// An alias as it is typed.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// With its prefix.
    Whole(Alias),
    /// For the only prefix of the site.
    Short(Ipv4Prefix),
}

impl FromStr for Wanted {
    type Err = MalformedAlias;

    fn from_str(text: &str) -> Result<Self, MalformedAlias> {
        if text.contains('=') {
            return text.parse().map(Self::Whole);
        }
        Ok(Self::Short(text.parse()?))
    }
}

/// Pairs what was typed with the prefixes of the site.
fn aliases(wanted: &[Wanted], prefixes: &[Ipv4Prefix]) -> Result<Vec<Alias>> {
    let pair = |wanted: &Wanted| match (*wanted, prefixes) {
        (Wanted::Whole(alias), _) => Ok(alias),
        (Wanted::Short(alias), [prefix]) => Ok(Alias::new(*prefix, alias)?),
        (Wanted::Short(alias), _) => Err(advise(
            format_args!("the site has several prefixes, and {alias} may stand for each"),
            "say for which: --alias PREFIX=ALIAS",
        )),
    };
    wanted.iter().map(pair).collect()
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

/// Writes a prefix of a site, with its alias if it has one.
fn written(site: &Site, prefix: Ipv4Prefix) -> String {
    let mut aliases = site.aliases.iter();
    let alias = aliases.find(|alias| alias.prefix() == prefix);
    alias.map_or_else(|| prefix.to_string(), ToString::to_string)
}

const COLUMNS: &[Column<Site>] = &[
    ("ID", |site| site.id.to_string()),
    ("NAME", |site| format!("{}.site.internal", site.name)),
    ("NODE", nodes),
    ("PREFIXES", |site| {
        let prefixes = site.prefixes.iter().map(|prefix| written(site, *prefix));
        prefixes.collect::<Vec<_>>().join(",")
    }),
    ("MODE", |site| site.mode.to_string()),
    ("NETWORK", |site| site.network.to_string()),
    ("CREATED", |site| time(site.created)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_paired_with_its_prefix() {
        let wanted = |text: &str| text.parse::<Wanted>().expect("an alias");
        let prefix = |text: &str| text.parse::<Ipv4Prefix>().expect("a prefix");
        let (lan, other) = (prefix("192.168.1.0/24"), prefix("10.9.0.0/16"));
        let (short, whole) = ("10.99.1.0/24", "192.168.1.0/24=10.99.1.0/24");
        let expected = whole.parse::<Alias>().expect("an alias");
        for (text, prefixes) in [(short, &[lan][..]), (whole, &[lan]), (whole, &[other, lan])] {
            let paired = aliases(&[wanted(text)], prefixes).expect("a pair");
            assert_eq!(paired, [expected], "{text}");
        }
        let refused = |text: &str, prefixes: &[Ipv4Prefix]| {
            let refused = aliases(&[wanted(text)], prefixes).expect_err("no pair");
            format!("{refused:#}")
        };
        assert!(refused(short, &[lan, other]).contains("several prefixes"));
        assert!(refused(short, &[other]).contains("different lengths"));
        for text in ["10.99.1.7/24", "192.168.1.0/24=", "=10.99.1.0/24"] {
            assert!(text.parse::<Wanted>().is_err(), "{text}");
        }
    }
}
