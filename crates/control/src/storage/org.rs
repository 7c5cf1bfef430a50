//! Organisations.

use model::{
    address::OrgPrefix,
    id::{NodeId, OrgId},
    name::Label,
};
use sqlx::{AnyConnection, Row as _, any::AnyRow};

use super::{Error, number, text};

/// An organisation's row.
#[derive(Clone, Debug)]
pub(crate) struct Org {
    pub(crate) id: OrgId,
    pub(crate) name: Label,
    pub(crate) prefix: OrgPrefix,
    pub(crate) gateway: Option<NodeId>,
    pub(crate) serial: u64,
    pub(crate) created: i64,
}

/// Makes an organisation that uses the installation's gateway.
pub(crate) async fn insert(
    connection: &mut AnyConnection,
    now: i64,
    name: &Label,
    prefix: OrgPrefix,
) -> Result<OrgId, Error> {
    let gateway = gateway(connection).await?;
    let row = sqlx::query(
        "INSERT INTO org (name, prefix, gateway, serial, created)
         VALUES ($1, $2, $3, 1, $4) RETURNING id",
    )
    .bind(name.as_str())
    .bind(prefix.to_string())
    .bind(gateway)
    .bind(now)
    .fetch_one(connection)
    .await?;
    Ok(OrgId(row.try_get("id")?))
}

/// Gives every organisation the installation's gateway.
pub(crate) async fn update_gateways(connection: &mut AnyConnection) -> Result<(), Error> {
    let gateway = gateway(connection).await?;
    sqlx::query("UPDATE org SET gateway = $1")
        .bind(gateway)
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns the newest stand-alone gateway, else that of a server: the one that organisations use
/// already, if they do.
async fn gateway(connection: &mut AnyConnection) -> Result<Option<i64>, Error> {
    let row = sqlx::query(
        "SELECT n.id FROM node n WHERE n.role = 'gateway' AND n.removed IS NULL
         ORDER BY n.builtin,
                  n.builtin * (SELECT COUNT(*) FROM org o WHERE o.gateway = n.id) DESC,
                  n.enrolled DESC, n.id DESC LIMIT 1",
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| row.try_get("id")).transpose()?)
}

/// Whose gateways organisations use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct UseOfBuiltin {
    /// That of the asking server.
    pub(crate) own: bool,
    /// Those of other servers.
    pub(crate) others: bool,
}

/// Tells whether organisations use the gateway of a server, or those of others.
pub(crate) async fn use_of_builtin(
    connection: &mut AnyConnection,
    own: NodeId,
) -> Result<UseOfBuiltin, Error> {
    let rows = sqlx::query(
        "SELECT DISTINCT o.gateway AS id FROM org o JOIN node n ON n.id = o.gateway
         WHERE o.removed IS NULL AND n.builtin = 1",
    )
    .fetch_all(connection)
    .await?;
    let mut used = UseOfBuiltin {
        own: false,
        others: false,
    };
    for row in rows {
        let id = NodeId(row.try_get("id")?);
        used.own |= id == own;
        used.others |= id != own;
    }
    Ok(used)
}

/// Gives organisations that use the gateway of another server that of `own`. Returns how many.
pub(crate) async fn use_builtin(connection: &mut AnyConnection, own: NodeId) -> Result<u64, Error> {
    let done = sqlx::query(
        "UPDATE org SET gateway = $1 WHERE removed IS NULL AND gateway <> $1
                AND gateway IN (SELECT id FROM node WHERE builtin = 1)",
    )
    .bind(own.0)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// Tells whether an organisation uses a gateway.
pub(crate) async fn uses(connection: &mut AnyConnection, gateway: NodeId) -> Result<bool, Error> {
    let found = sqlx::query("SELECT 1 FROM org WHERE gateway = $1 AND removed IS NULL LIMIT 1")
        .bind(gateway.0)
        .fetch_optional(connection)
        .await?;
    Ok(found.is_some())
}

/// Removes an organisation without nodes, its people, and the tokens that lead into it.
pub(crate) async fn delete(
    connection: &mut AnyConnection,
    now: i64,
    org: OrgId,
) -> Result<(), Error> {
    sqlx::query("UPDATE org SET removed = $1, gateway = NULL WHERE id = $2")
        .bind(now)
        .bind(org.0)
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "UPDATE \"user\" SET removed = $1, operator = 0 WHERE org = $2 AND removed IS NULL",
    )
    .bind(now)
    .bind(org.0)
    .execute(&mut *connection)
    .await?;
    super::oidc::delete_provider(connection, org).await?;
    sqlx::query("UPDATE token SET revoked = $1 WHERE org = $2 AND revoked IS NULL")
        .bind(now)
        .bind(org.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns an organisation.
pub(crate) async fn org(connection: &mut AnyConnection, id: OrgId) -> Result<Option<Org>, Error> {
    sqlx::query("SELECT * FROM org WHERE id = $1 AND removed IS NULL")
        .bind(id.0)
        .fetch_optional(connection)
        .await?
        .map(parse)
        .transpose()
}

/// Returns the organisation of a name.
pub(crate) async fn org_named(
    connection: &mut AnyConnection,
    name: &Label,
) -> Result<Option<Org>, Error> {
    sqlx::query("SELECT * FROM org WHERE name = $1 AND removed IS NULL")
        .bind(name.as_str())
        .fetch_optional(connection)
        .await?
        .map(parse)
        .transpose()
}

/// Tells whether a prefix was ever given.
pub(crate) async fn prefix_is_taken(
    connection: &mut AnyConnection,
    prefix: OrgPrefix,
) -> Result<bool, Error> {
    let found = sqlx::query("SELECT 1 FROM org WHERE prefix = $1")
        .bind(prefix.to_string())
        .fetch_optional(connection)
        .await?;
    Ok(found.is_some())
}

/// Returns the organisations after `after` in the order of their ids, `only` one if given.
pub(crate) async fn orgs(
    connection: &mut AnyConnection,
    only: Option<OrgId>,
    after: i64,
    limit: u32,
) -> Result<Vec<Org>, Error> {
    sqlx::query(
        "SELECT * FROM org WHERE removed IS NULL AND id > $1 AND ($2 IS NULL OR id = $2)
         ORDER BY id LIMIT $3",
    )
    .bind(after)
    .bind(only.map(|org| org.0))
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(parse)
    .collect()
}

/// Returns the organisations that changed after `serial`; `None` is one that was removed.
pub(crate) async fn changed(
    connection: &mut AnyConnection,
    serial: u64,
) -> Result<Vec<(OrgId, Option<Org>)>, Error> {
    let serial = i64::try_from(serial).unwrap_or(i64::MAX);
    let rows = sqlx::query("SELECT * FROM org WHERE serial > $1")
        .bind(serial)
        .fetch_all(connection)
        .await?;
    rows.into_iter()
        .map(|row| {
            let id = OrgId(row.try_get("id")?);
            let removed: Option<i64> = row.try_get("removed")?;
            let org = removed.is_none().then(|| parse(row)).transpose()?;
            Ok((id, org))
        })
        .collect()
}

/// Returns the organisations that changed after `serial`, with their serials.
pub(crate) async fn serials_after(
    connection: &mut AnyConnection,
    serial: u64,
) -> Result<Vec<(OrgId, u64)>, Error> {
    let serial = i64::try_from(serial).unwrap_or(i64::MAX);
    sqlx::query("SELECT id, serial FROM org WHERE serial > $1")
        .bind(serial)
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(|row| Ok((OrgId(row.try_get("id")?), number(&row, "serial")?)))
        .collect()
}

/// Counts the organisations.
pub(crate) async fn count(connection: &mut AnyConnection) -> Result<u32, Error> {
    let row = sqlx::query("SELECT COUNT(*) AS n FROM org WHERE removed IS NULL")
        .fetch_one(connection)
        .await?;
    number(&row, "n")
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn parse(row: AnyRow) -> Result<Org, Error> {
    Ok(Org {
        id: OrgId(row.try_get("id")?),
        name: text(&row, "name")?,
        prefix: text(&row, "prefix")?,
        gateway: row.try_get::<Option<i64>, _>("gateway")?.map(NodeId),
        serial: number(&row, "serial")?,
        created: row.try_get("created")?,
    })
}
