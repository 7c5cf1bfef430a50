//! Sites: LANs behind nodes.

use model::{
    address::OrgPrefix,
    api::NewSite,
    id::{NodeId, OrgId, SiteId},
    name::Label,
    site::{Alias, Ipv4Prefix, Mode},
};
use sqlx::{AnyConnection, Row as _, any::AnyRow};

use super::{Error, joined, number, of_org, split, text};

/// A site's row, with the name of its node and its organisation.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) id: SiteId,
    pub(crate) org: OrgId,
    pub(crate) org_name: Label,
    pub(crate) org_prefix: OrgPrefix,
    pub(crate) name: Label,
    pub(crate) node: NodeId,
    pub(crate) node_name: Label,
    /// In the order in which they are preferred.
    pub(crate) standbys: Vec<NodeId>,
    pub(crate) prefixes: Vec<Ipv4Prefix>,
    pub(crate) aliases: Vec<Alias>,
    pub(crate) mode: Mode,
    pub(crate) created: i64,
}

impl Site {
    /// Lists the nodes that lead to it, the preferred one first.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        let standbys = self.standbys.iter().copied();
        [self.node].into_iter().chain(standbys)
    }
}

/// Adds a site.
pub(crate) async fn insert(
    connection: &mut AnyConnection,
    now: i64,
    org: OrgId,
    site: &NewSite,
) -> Result<SiteId, Error> {
    let row = sqlx::query(
        "INSERT INTO site (org, name, node, standbys, prefixes, aliases, mode, created)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id",
    )
    .bind(org.0)
    .bind(site.name.as_str())
    .bind(site.node.0)
    .bind(joined(&site.standbys))
    .bind(joined(&site.prefixes))
    .bind(joined(&site.aliases))
    .bind(site.mode.name())
    .bind(now)
    .fetch_one(connection)
    .await?;
    Ok(SiteId(row.try_get("id")?))
}

/// Removes a site.
pub(crate) async fn delete(connection: &mut AnyConnection, id: SiteId) -> Result<(), Error> {
    sqlx::query("DELETE FROM site WHERE id = $1")
        .bind(id.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Takes a node from every site behind it, and removes those that no other one leads to.
pub(crate) async fn delete_of(connection: &mut AnyConnection, node: NodeId) -> Result<(), Error> {
    let rows = sqlx::query(
        "SELECT s.*, n.name AS node_name, o.name AS org_name, o.prefix AS org_prefix
         FROM site s JOIN node n ON n.id = s.node JOIN org o ON o.id = s.org
         WHERE s.org = (SELECT org FROM node WHERE id = $1)
             AND (s.node = $1 OR s.standbys <> '')
         ORDER BY s.id",
    )
    .bind(node.0)
    .fetch_all(&mut *connection)
    .await?;
    for row in rows {
        let site = parse(row)?;
        if site.nodes().all(|other| other != node) {
            continue;
        }
        let left: Vec<_> = site.nodes().filter(|other| *other != node).collect();
        match left.split_first() {
            Some((first, others)) => update_nodes(connection, site.id, *first, others).await?,
            None => delete(connection, site.id).await?,
        }
    }
    Ok(())
}

/// Gives a site other nodes.
pub(crate) async fn update_nodes(
    connection: &mut AnyConnection,
    id: SiteId,
    node: NodeId,
    standbys: &[NodeId],
) -> Result<(), Error> {
    sqlx::query("UPDATE site SET node = $1, standbys = $2 WHERE id = $3")
        .bind(node.0)
        .bind(joined(standbys))
        .bind(id.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Gives a site other aliases.
pub(crate) async fn update_aliases(
    connection: &mut AnyConnection,
    id: SiteId,
    aliases: &[Alias],
) -> Result<(), Error> {
    sqlx::query("UPDATE site SET aliases = $1 WHERE id = $2")
        .bind(joined(aliases))
        .bind(id.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns a site.
pub(crate) async fn site(
    connection: &mut AnyConnection,
    id: SiteId,
) -> Result<Option<Site>, Error> {
    sqlx::query(
        "SELECT s.*, n.name AS node_name, o.name AS org_name, o.prefix AS org_prefix
         FROM site s JOIN node n ON n.id = s.node JOIN org o ON o.id = s.org
         WHERE s.id = $1",
    )
    .bind(id.0)
    .fetch_optional(connection)
    .await?
    .map(parse)
    .transpose()
}

pub(super) const SITES: [&str; 2] = of_all_or_one!(
    "SELECT s.*, n.name AS node_name, o.name AS org_name, o.prefix AS org_prefix
     FROM site s JOIN node n ON n.id = s.node JOIN org o ON o.id = s.org
     WHERE s.id > $1 AND",
    "s.org",
    "AND ($3 IS NULL OR s.name = $3) ORDER BY s.id LIMIT $4"
);

/// Returns the sites after `after` in the order of their ids.
pub(crate) async fn sites(
    connection: &mut AnyConnection,
    org: Option<OrgId>,
    name: Option<&Label>,
    after: i64,
    limit: u32,
) -> Result<Vec<Site>, Error> {
    sqlx::query(of_org(SITES, org))
        .bind(after)
        .bind(org.map(|org| org.0))
        .bind(name.map(Label::as_str))
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(parse)
        .collect()
}

/// Returns all sites of an organisation.
pub(crate) async fn sites_of(
    connection: &mut AnyConnection,
    org: OrgId,
) -> Result<Vec<Site>, Error> {
    sqlx::query(SITES_OF)
        .bind(org.0)
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(parse)
        .collect()
}

/// Built into every map, so it visits no rows of others.
pub(super) const SITES_OF: &str = "SELECT s.*, n.name AS node_name, o.name AS org_name,
        o.prefix AS org_prefix
    FROM site s JOIN node n ON n.id = s.node JOIN org o ON o.id = s.org
    WHERE s.org = $1 ORDER BY s.id";

/// Counts the sites of an organisation.
pub(crate) async fn count_of(connection: &mut AnyConnection, org: OrgId) -> Result<u32, Error> {
    let row = sqlx::query("SELECT COUNT(*) AS n FROM site WHERE org = $1")
        .bind(org.0)
        .fetch_one(connection)
        .await?;
    number(&row, "n")
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn parse(row: AnyRow) -> Result<Site, Error> {
    Ok(Site {
        id: SiteId(row.try_get("id")?),
        org: OrgId(row.try_get("org")?),
        org_name: text(&row, "org_name")?,
        org_prefix: text(&row, "org_prefix")?,
        name: text(&row, "name")?,
        node: NodeId(row.try_get("node")?),
        node_name: text(&row, "node_name")?,
        standbys: match row.try_get("standbys")? {
            "" => Vec::new(),
            _ => split(&row, "standbys")?.into_iter().map(NodeId).collect(),
        },
        prefixes: split(&row, "prefixes")?,
        aliases: match row.try_get("aliases")? {
            "" => Vec::new(),
            _ => split(&row, "aliases")?,
        },
        mode: text(&row, "mode")?,
        created: row.try_get("created")?,
    })
}
