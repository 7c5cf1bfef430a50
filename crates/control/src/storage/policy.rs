//! Rules of who may reach what, and the tags of nodes that rules speak of.

use std::collections::BTreeMap;

use model::{
    id::{NodeId, OrgId, RuleId},
    name::Label,
    policy::{Selector, Traffic},
};
use sqlx::{AnyConnection, Row as _, any::AnyRow};

use super::{Error, joined, number, of_org, split, text};

/// A rule's row.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) id: RuleId,
    pub(crate) org: OrgId,
    pub(crate) terms: Terms,
    pub(crate) created: i64,
}

/// What a rule says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Terms {
    pub(crate) from: Vec<Selector>,
    pub(crate) to: Vec<Selector>,
    pub(crate) traffic: Vec<Traffic>,
    pub(crate) comment: String,
}

/// Adds a rule.
pub(crate) async fn insert(
    connection: &mut AnyConnection,
    now: i64,
    org: OrgId,
    terms: &Terms,
) -> Result<RuleId, Error> {
    let row = sqlx::query(
        "INSERT INTO rule (org, source, target, traffic, comment, created)
         VALUES ($1, $2, $3, $4, $5, $6) RETURNING id",
    )
    .bind(org.0)
    .bind(joined(&terms.from))
    .bind(joined(&terms.to))
    .bind(joined(&terms.traffic))
    .bind(&terms.comment)
    .bind(now)
    .fetch_one(connection)
    .await?;
    Ok(RuleId(row.try_get("id")?))
}

/// Changes what a rule says.
pub(crate) async fn update(
    connection: &mut AnyConnection,
    id: RuleId,
    terms: &Terms,
) -> Result<(), Error> {
    sqlx::query(
        "UPDATE rule SET source = $1, target = $2, traffic = $3, comment = $4 WHERE id = $5",
    )
    .bind(joined(&terms.from))
    .bind(joined(&terms.to))
    .bind(joined(&terms.traffic))
    .bind(&terms.comment)
    .bind(id.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes a rule.
pub(crate) async fn delete(connection: &mut AnyConnection, id: RuleId) -> Result<(), Error> {
    sqlx::query("DELETE FROM rule WHERE id = $1")
        .bind(id.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes every rule of an organisation.
pub(crate) async fn delete_of(connection: &mut AnyConnection, org: OrgId) -> Result<(), Error> {
    sqlx::query("DELETE FROM rule WHERE org = $1")
        .bind(org.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns a rule.
pub(crate) async fn rule(
    connection: &mut AnyConnection,
    id: RuleId,
) -> Result<Option<Rule>, Error> {
    sqlx::query("SELECT * FROM rule WHERE id = $1")
        .bind(id.0)
        .fetch_optional(connection)
        .await?
        .map(parse)
        .transpose()
}

pub(super) const RULES: [&str; 2] = of_all_or_one!(
    "SELECT * FROM rule WHERE id > $1 AND",
    "org",
    "ORDER BY id LIMIT $3"
);

/// Returns the rules after `after` in the order of their ids.
pub(crate) async fn rules(
    connection: &mut AnyConnection,
    org: Option<OrgId>,
    after: i64,
    limit: u32,
) -> Result<Vec<Rule>, Error> {
    sqlx::query(of_org(RULES, org))
        .bind(after)
        .bind(org.map(|org| org.0))
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(parse)
        .collect()
}

/// Returns all rules of an organisation in the order of their ids.
pub(crate) async fn rules_of(
    connection: &mut AnyConnection,
    org: OrgId,
) -> Result<Vec<Rule>, Error> {
    sqlx::query(RULES_OF)
        .bind(org.0)
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(parse)
        .collect()
}

/// Built into every map, so it visits no rows of others.
pub(super) const TAGS_OF: &str = "SELECT t.node, t.tag
    FROM node_tag t JOIN node n ON n.id = t.node
    WHERE n.org = $1 AND n.removed IS NULL ORDER BY t.node, t.tag";

/// Built into every map, so it visits no rows of others.
pub(super) const RULES_OF: &str = "SELECT * FROM rule WHERE org = $1 ORDER BY id";

/// Counts the rules of an organisation.
pub(crate) async fn count_of(connection: &mut AnyConnection, org: OrgId) -> Result<u32, Error> {
    let row = sqlx::query("SELECT COUNT(*) AS n FROM rule WHERE org = $1")
        .bind(org.0)
        .fetch_one(connection)
        .await?;
    number(&row, "n")
}

/// Gives a node exactly these tags.
pub(crate) async fn update_tags(
    connection: &mut AnyConnection,
    node: NodeId,
    tags: &[Label],
) -> Result<(), Error> {
    sqlx::query("DELETE FROM node_tag WHERE node = $1")
        .bind(node.0)
        .execute(&mut *connection)
        .await?;
    for tag in tags {
        sqlx::query("INSERT INTO node_tag (node, tag) VALUES ($1, $2)")
            .bind(node.0)
            .bind(tag.as_str())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Returns the tags of a node, in the order of the alphabet.
pub(crate) async fn tags_of_node(
    connection: &mut AnyConnection,
    node: NodeId,
) -> Result<Vec<Label>, Error> {
    sqlx::query("SELECT tag FROM node_tag WHERE node = $1 ORDER BY tag")
        .bind(node.0)
        .fetch_all(connection)
        .await?
        .iter()
        .map(|row| text(row, "tag"))
        .collect()
}

/// Returns the tags of every live node of an organisation that has any.
pub(crate) async fn tags_of(
    connection: &mut AnyConnection,
    org: OrgId,
) -> Result<BTreeMap<NodeId, Vec<Label>>, Error> {
    let rows = sqlx::query(TAGS_OF)
        .bind(org.0)
        .fetch_all(connection)
        .await?;
    let mut tags: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for row in rows {
        let node = NodeId(row.try_get("node")?);
        tags.entry(node).or_default().push(text(&row, "tag")?);
    }
    Ok(tags)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn parse(row: AnyRow) -> Result<Rule, Error> {
    Ok(Rule {
        id: RuleId(row.try_get("id")?),
        org: OrgId(row.try_get("org")?),
        terms: Terms {
            from: split(&row, "source")?,
            to: split(&row, "target")?,
            traffic: split(&row, "traffic")?,
            comment: row.try_get("comment")?,
        },
        created: row.try_get("created")?,
    })
}
