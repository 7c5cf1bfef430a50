//! The audit: who changed what, and when.

use std::fmt;

use model::{
    id::{NodeId, OrgId, TokenId, UserId},
    name::Label,
};
use sqlx::{AnyConnection, Row as _, any::AnyRow};

use super::{Error, optional_text};

/// What is written of a change.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) actor: Actor,
    pub(crate) action: &'static str,
    pub(crate) subject: String,
    pub(crate) org: Option<OrgId>,
}

/// Who makes a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Actor {
    /// The server itself, or its operator at the machine.
    Server,
    User(UserId),
    Node(NodeId),
    /// Whoever holds a token that enrols.
    Token(TokenId),
}

/// A row of the audit.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) time: i64,
    pub(crate) actor: String,
    pub(crate) action: String,
    pub(crate) subject: String,
    pub(crate) org_name: Option<Label>,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server => f.write_str("server"),
            Self::User(id) => write!(f, "user:{id}"),
            Self::Node(id) => write!(f, "node:{id}"),
            Self::Token(id) => write!(f, "token:{id}"),
        }
    }
}

/// Writes a row; only a commit does so.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    now: i64,
    entry: &Entry,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO audit (time, actor, action, subject, org) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(now)
    .bind(entry.actor.to_string())
    .bind(entry.action)
    .bind(&entry.subject)
    .bind(entry.org.map(|org| org.0))
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns the rows after `after` in the order of their ids.
pub(crate) async fn rows(
    connection: &mut AnyConnection,
    org: Option<OrgId>,
    after: i64,
    limit: u32,
) -> Result<Vec<Row>, Error> {
    sqlx::query(
        "SELECT a.id, a.time, a.actor, a.action, a.subject, o.name AS org_name
         FROM audit a LEFT JOIN org o ON o.id = a.org
         WHERE a.id > $1 AND ($2 IS NULL OR a.org = $2)
         ORDER BY a.id LIMIT $3",
    )
    .bind(after)
    .bind(org.map(|org| org.0))
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(parse)
    .collect()
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn parse(row: AnyRow) -> Result<Row, Error> {
    Ok(Row {
        id: row.try_get("id")?,
        time: row.try_get("time")?,
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        subject: row.try_get("subject")?,
        org_name: optional_text(&row, "org_name")?,
    })
}
