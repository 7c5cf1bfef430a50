//! People.

use model::{id::UserId, name::Label};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::{Error, text};

/// A person's row.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) id: UserId,
    pub(crate) name: Label,
    pub(crate) role: Role,
    pub(crate) created: i64,
}

/// What a person may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// Everything.
    Admin,
}

/// Adds an administrator.
pub(crate) async fn insert_admin(
    connection: &mut SqliteConnection,
    now: i64,
    name: &Label,
) -> Result<UserId, Error> {
    let row = sqlx::query(
        "INSERT INTO \"user\" (name, role, created) VALUES ($1, 'admin', $2) RETURNING id",
    )
    .bind(name.as_str())
    .bind(now)
    .fetch_one(connection)
    .await?;
    Ok(UserId(row.try_get("id")?))
}

/// Returns a person.
pub(crate) async fn user(
    connection: &mut SqliteConnection,
    id: UserId,
) -> Result<Option<User>, Error> {
    sqlx::query("SELECT * FROM \"user\" WHERE id = $1")
        .bind(id.0)
        .fetch_optional(connection)
        .await?
        .map(parse)
        .transpose()
}

/// Returns the people after `after` in the order of their ids.
pub(crate) async fn users(
    connection: &mut SqliteConnection,
    after: i64,
    limit: u32,
) -> Result<Vec<User>, Error> {
    sqlx::query("SELECT * FROM \"user\" WHERE id > $1 ORDER BY id LIMIT $2")
        .bind(after)
        .bind(limit)
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(parse)
        .collect()
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn parse(row: SqliteRow) -> Result<User, Error> {
    Ok(User {
        id: UserId(row.try_get("id")?),
        name: text(&row, "name")?,
        role: match row.try_get("role")? {
            "admin" => Role::Admin,
            _ => return Err(Error::Corrupt("role")),
        },
        created: row.try_get("created")?,
    })
}
