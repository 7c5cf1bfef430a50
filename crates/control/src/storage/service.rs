//! Services: ports that nodes publish.

use model::{
    id::{NodeId, OrgId, ServiceId},
    name::Label,
};
use sqlx::{AnyConnection, Row as _, any::AnyRow};

use super::{Error, number, of_org, text};

/// A service's row, with the names of its node and organisation.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) id: ServiceId,
    pub(crate) org: OrgId,
    pub(crate) org_name: Label,
    pub(crate) node: NodeId,
    pub(crate) node_name: Label,
    pub(crate) name: Label,
    pub(crate) port: u16,
    pub(crate) target: String,
}

/// Publishes a port.
pub(crate) async fn insert(
    connection: &mut AnyConnection,
    now: i64,
    node: NodeId,
    name: &Label,
    port: u16,
    target: &str,
) -> Result<ServiceId, Error> {
    let row = sqlx::query(
        "INSERT INTO service (node, name, port, target, created)
         VALUES ($1, $2, $3, $4, $5) RETURNING id",
    )
    .bind(node.0)
    .bind(name.as_str())
    .bind(i64::from(port))
    .bind(target)
    .bind(now)
    .fetch_one(connection)
    .await?;
    Ok(ServiceId(row.try_get("id")?))
}

/// Withdraws a service.
pub(crate) async fn delete(connection: &mut AnyConnection, id: ServiceId) -> Result<(), Error> {
    sqlx::query("DELETE FROM service WHERE id = $1")
        .bind(id.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns a service.
pub(crate) async fn service(
    connection: &mut AnyConnection,
    id: ServiceId,
) -> Result<Option<Service>, Error> {
    sqlx::query(
        "SELECT s.id, s.node, s.name, s.port, s.target, n.org, n.name AS node_name,
                o.name AS org_name
         FROM service s JOIN node n ON n.id = s.node JOIN org o ON o.id = n.org
         WHERE s.id = $1",
    )
    .bind(id.0)
    .fetch_optional(connection)
    .await?
    .map(parse)
    .transpose()
}

pub(super) const SERVICES: [&str; 2] = of_all_or_one!(
    "SELECT s.id, s.node, s.name, s.port, s.target, n.org, n.name AS node_name, o.name AS org_name
     FROM service s JOIN node n ON n.id = s.node JOIN org o ON o.id = n.org
     WHERE n.removed IS NULL AND s.id > $1 AND",
    "n.org",
    "AND ($3 IS NULL OR s.name = $3) ORDER BY s.id LIMIT $4"
);

/// Returns the services after `after` in the order of their ids.
pub(crate) async fn services(
    connection: &mut AnyConnection,
    org: Option<OrgId>,
    name: Option<&Label>,
    after: i64,
    limit: u32,
) -> Result<Vec<Service>, Error> {
    sqlx::query(of_org(SERVICES, org))
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

/// Returns all services of an organisation.
pub(crate) async fn services_of(
    connection: &mut AnyConnection,
    org: OrgId,
) -> Result<Vec<Service>, Error> {
    sqlx::query(SERVICES_OF)
        .bind(org.0)
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(parse)
        .collect()
}

/// Built into every map, so it visits no rows of others.
pub(super) const SERVICES_OF: &str = "SELECT s.id, s.node, s.name, s.port, s.target, n.org,
        n.name AS node_name, o.name AS org_name
    FROM service s JOIN node n ON n.id = s.node JOIN org o ON o.id = n.org
    WHERE n.org = $1 AND n.removed IS NULL ORDER BY s.id";

/// Returns all services of a node.
pub(crate) async fn services_of_node(
    connection: &mut AnyConnection,
    node: NodeId,
) -> Result<Vec<Service>, Error> {
    sqlx::query(
        "SELECT s.id, s.node, s.name, s.port, s.target, n.org, n.name AS node_name,
                o.name AS org_name
         FROM service s JOIN node n ON n.id = s.node JOIN org o ON o.id = n.org
         WHERE s.node = $1 ORDER BY s.id",
    )
    .bind(node.0)
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(parse)
    .collect()
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn parse(row: AnyRow) -> Result<Service, Error> {
    Ok(Service {
        id: ServiceId(row.try_get("id")?),
        org: OrgId(row.try_get("org")?),
        org_name: text(&row, "org_name")?,
        node: NodeId(row.try_get("node")?),
        node_name: text(&row, "node_name")?,
        name: text(&row, "name")?,
        port: number(&row, "port")?,
        target: row.try_get("target")?,
    })
}
