//! People: each row is one person in one organisation.

use model::{
    id::{OrgId, UserId},
    name::Label,
    policy::Role,
};
use sqlx::{AnyConnection, Row as _, any::AnyRow};

use super::{Error, number, of_org, text};

/// A person's row.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) id: UserId,
    pub(crate) org: OrgId,
    pub(crate) name: Label,
    pub(crate) role: Role,
    /// Keeps the installation and acts in every organisation.
    pub(crate) operator: bool,
    pub(crate) created: i64,
    pub(crate) removed: Option<i64>,
}

/// Adds a person.
pub(crate) async fn insert(
    connection: &mut AnyConnection,
    now: i64,
    org: OrgId,
    name: &Label,
    role: Role,
    operator: bool,
) -> Result<UserId, Error> {
    let row = sqlx::query(
        "INSERT INTO \"user\" (org, name, role, operator, created)
         VALUES ($1, $2, $3, $4, $5) RETURNING id",
    )
    .bind(org.0)
    .bind(name.as_str())
    .bind(role.name())
    .bind(i64::from(operator))
    .bind(now)
    .fetch_one(connection)
    .await?;
    Ok(UserId(row.try_get("id")?))
}

/// Gives a person another name and role.
pub(crate) async fn update(
    connection: &mut AnyConnection,
    id: UserId,
    name: &Label,
    role: Role,
) -> Result<(), Error> {
    sqlx::query("UPDATE \"user\" SET name = $1, role = $2 WHERE id = $3")
        .bind(name.as_str())
        .bind(role.name())
        .bind(id.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes a person and revokes what signs her in; her devices are removed apart. If her
/// identity provider signs her in again, she comes as a new person.
pub(crate) async fn delete(
    connection: &mut AnyConnection,
    now: i64,
    id: UserId,
) -> Result<(), Error> {
    sqlx::query("UPDATE \"user\" SET removed = $1, operator = 0 WHERE id = $2")
        .bind(now)
        .bind(id.0)
        .execute(&mut *connection)
        .await?;
    super::oidc::delete_identity(connection, id).await?;
    super::browser::delete_of(connection, id).await?;
    sqlx::query("UPDATE token SET revoked = $1 WHERE \"user\" = $2 AND revoked IS NULL")
        .bind(now)
        .bind(id.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns a person, removed or not.
pub(crate) async fn user(
    connection: &mut AnyConnection,
    id: UserId,
) -> Result<Option<User>, Error> {
    sqlx::query("SELECT * FROM \"user\" WHERE id = $1")
        .bind(id.0)
        .fetch_optional(connection)
        .await?
        .map(parse)
        .transpose()
}

/// Returns the person of a name in an organisation.
pub(crate) async fn user_named(
    connection: &mut AnyConnection,
    org: OrgId,
    name: &Label,
) -> Result<Option<User>, Error> {
    sqlx::query("SELECT * FROM \"user\" WHERE org = $1 AND name = $2 AND removed IS NULL")
        .bind(org.0)
        .bind(name.as_str())
        .fetch_optional(connection)
        .await?
        .map(parse)
        .transpose()
}

pub(super) const USERS: [&str; 2] = of_all_or_one!(
    "SELECT * FROM \"user\" WHERE removed IS NULL AND id > $1 AND",
    "org",
    "AND ($3 IS NULL OR name = $3) ORDER BY id LIMIT $4"
);

/// Returns the people after `after` in the order of their ids.
pub(crate) async fn users(
    connection: &mut AnyConnection,
    org: Option<OrgId>,
    name: Option<&Label>,
    after: i64,
    limit: u32,
) -> Result<Vec<User>, Error> {
    sqlx::query(of_org(USERS, org))
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

/// Returns everybody in an organisation in the order of their ids.
pub(crate) async fn users_of(
    connection: &mut AnyConnection,
    org: OrgId,
) -> Result<Vec<User>, Error> {
    sqlx::query(USERS_OF)
        .bind(org.0)
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(parse)
        .collect()
}

/// Built into every map, so it visits no rows of others.
pub(super) const USERS_OF: &str =
    "SELECT * FROM \"user\" WHERE org = $1 AND removed IS NULL ORDER BY id";

/// Returns the first of those who keep the installation.
pub(crate) async fn first_operator(connection: &mut AnyConnection) -> Result<Option<User>, Error> {
    sqlx::query("SELECT * FROM \"user\" WHERE operator = 1 AND removed IS NULL ORDER BY id LIMIT 1")
        .fetch_optional(connection)
        .await?
        .map(parse)
        .transpose()
}

/// Counts those who keep the installation.
pub(crate) async fn count_operators(connection: &mut AnyConnection) -> Result<u32, Error> {
    let row =
        sqlx::query("SELECT COUNT(*) AS n FROM \"user\" WHERE operator = 1 AND removed IS NULL")
            .fetch_one(connection)
            .await?;
    number(&row, "n")
}

/// Counts the people of an organisation.
pub(crate) async fn count_of(connection: &mut AnyConnection, org: OrgId) -> Result<u32, Error> {
    let row = sqlx::query("SELECT COUNT(*) AS n FROM \"user\" WHERE org = $1 AND removed IS NULL")
        .bind(org.0)
        .fetch_one(connection)
        .await?;
    number(&row, "n")
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn parse(row: AnyRow) -> Result<User, Error> {
    Ok(User {
        id: UserId(row.try_get("id")?),
        org: OrgId(row.try_get("org")?),
        name: text(&row, "name")?,
        role: text(&row, "role")?,
        operator: row.try_get::<i64, _>("operator")? == 1,
        created: row.try_get("created")?,
        removed: row.try_get("removed")?,
    })
}
