//! The audit: who changed what, and when.

use std::fmt;

use futures_util::TryStreamExt as _;
use model::{
    api::{AuditChain, AuditEntry, AuditHash, AuditLink, Timestamp},
    id::{NodeId, OrgId, TokenId, UserId},
};
use sqlx::{AnyConnection, Row as _, any::AnyRow};

use super::{Error, bytes, of_org, optional_text};
use crate::audit::audit_hash;

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

/// Which rows are asked for.
pub(crate) struct Filter {
    pub(crate) org: Option<OrgId>,
    /// An actor as the rows name it, or the name of a person or a node.
    pub(crate) actor: Option<String>,
    pub(crate) action: Option<String>,
    pub(crate) since: Option<i64>,
    pub(crate) after: i64,
    pub(crate) limit: u32,
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

/// Writes a row behind the last one; only a commit does so.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    now: i64,
    entry: &Entry,
) -> Result<(), Error> {
    let chain = chain(&mut *connection).await?;
    let row = AuditEntry {
        id: chain.last_id + 1,
        time: Timestamp(now),
        actor: entry.actor.to_string(),
        action: entry.action.to_owned(),
        subject: entry.subject.clone(),
        org: None,
        org_id: entry.org,
        link: None,
    };
    let hash = audit_hash(chain.last, &row);
    sqlx::query(
        "INSERT INTO audit (id, time, actor, action, subject, org, previous, hash)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(row.id)
    .bind(now)
    .bind(row.actor)
    .bind(row.action)
    .bind(row.subject)
    .bind(entry.org.map(|org| org.0))
    .bind(chain.last.0.as_slice())
    .bind(hash.0.as_slice())
    .execute(&mut *connection)
    .await?;
    update_last(connection, row.id, hash).await
}

/// Returns the ends of the chain.
pub(crate) async fn chain(connection: &mut AnyConnection) -> Result<AuditChain, Error> {
    let row = sqlx::query(
        "SELECT audit_past_id, audit_past, audit_last_id, audit_last FROM installation
         WHERE id = 1",
    )
    .fetch_one(connection)
    .await?;
    Ok(AuditChain {
        past_id: row.try_get("audit_past_id")?,
        past: AuditHash(bytes(&row, "audit_past")?),
        last_id: row.try_get("audit_last_id")?,
        last: AuditHash(bytes(&row, "audit_last")?),
    })
}

/// Chains the rows of a server that did not know of the chain. It does so once, so that nobody has
/// altered rows chained again by taking their hashes away.
pub(super) async fn chain_old(connection: &mut AnyConnection) -> Result<(), Error> {
    let begun = sqlx::query(
        "UPDATE installation SET audit_past_id = 0, audit_past = $1, audit_last_id = 0,
                                 audit_last = $1
         WHERE audit_last IS NULL AND NOT EXISTS (SELECT 1 FROM audit WHERE hash IS NOT NULL)",
    )
    .bind([0; 32].as_slice())
    .execute(&mut *connection)
    .await?;
    if begun.rows_affected() == 0 {
        return Ok(());
    }
    let (mut last_id, mut last) = (0, AuditHash::default());
    loop {
        let filter = Filter {
            org: None,
            actor: None,
            action: None,
            since: None,
            after: last_id,
            limit: OLD_ROWS_MAX,
        };
        let page = rows(connection, &filter).await?;
        if page.is_empty() {
            return update_last(connection, last_id, last).await;
        }
        for row in page {
            let hash = audit_hash(last, &row);
            sqlx::query("UPDATE audit SET previous = $1, hash = $2 WHERE id = $3")
                .bind(last.0.as_slice())
                .bind(hash.0.as_slice())
                .bind(row.id)
                .execute(&mut *connection)
                .await?;
            (last_id, last) = (row.id, hash);
        }
    }
}

/// Deletes the rows that are older than `before`, up to the first that is not: what remains is a
/// whole chain, though the clock was set back. Returns how many rows went.
pub(super) async fn delete_past(connection: &mut AnyConnection, before: i64) -> Result<u64, Error> {
    let last = sqlx::query(
        "SELECT id, hash FROM audit
         WHERE id < COALESCE((SELECT id FROM audit WHERE time >= $1 ORDER BY id LIMIT 1), $2)
         ORDER BY id DESC LIMIT 1",
    )
    .bind(before)
    .bind(i64::MAX)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(last) = last else { return Ok(0) };
    let id: i64 = last.try_get("id")?;
    sqlx::query("UPDATE installation SET audit_past_id = $1, audit_past = $2 WHERE id = 1")
        .bind(id)
        .bind(bytes(&last, "hash")?.as_slice())
        .execute(&mut *connection)
        .await?;
    let deleted = sqlx::query("DELETE FROM audit WHERE id <= $1").bind(id);
    Ok(deleted.execute(connection).await?.rows_affected())
}

async fn update_last(
    connection: &mut AnyConnection,
    id: i64,
    hash: AuditHash,
) -> Result<(), Error> {
    sqlx::query("UPDATE installation SET audit_last_id = $1, audit_last = $2 WHERE id = 1")
        .bind(id)
        .bind(hash.0.as_slice())
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) const ROWS: [&str; 2] = of_all_or_one!(
    "SELECT a.id, a.time, a.actor, a.action, a.subject, a.org, o.name AS org_name, a.previous,
            a.hash
     FROM audit a LEFT JOIN org o ON o.id = a.org
     WHERE a.id > $1 AND",
    "a.org",
    "AND ($3 IS NULL OR a.time >= $3) AND ($4 IS NULL OR a.action = $4)
       AND ($5 IS NULL OR a.actor = $5
            OR a.actor IN (SELECT 'user:' || u.id FROM \"user\" u WHERE u.name = $5)
            OR a.actor IN (SELECT 'node:' || n.id FROM node n WHERE n.name = $5))
     ORDER BY a.id LIMIT $6"
);

/// Returns the rows that are asked for in the order of their ids.
pub(crate) async fn rows(
    connection: &mut AnyConnection,
    filter: &Filter,
) -> Result<Vec<AuditEntry>, Error> {
    sqlx::query(of_org(ROWS, filter.org))
        .bind(filter.after)
        .bind(filter.org.map(|org| org.0))
        .bind(filter.since)
        .bind(filter.action.as_deref())
        .bind(filter.actor.as_deref())
        .bind(i64::from(filter.limit))
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(parse)
        .collect()
}

/// Returns the rows about captures whose end no row tells, the oldest first: what they say of the
/// capture, and whose they are.
pub(crate) async fn open_captures(
    connection: &mut AnyConnection,
) -> Result<Vec<(String, Option<OrgId>)>, Error> {
    let mut rows = sqlx::query(
        "SELECT action, subject, org FROM audit
         WHERE action IN ('capture_begun', 'capture_ended') ORDER BY id",
    )
    .fetch(connection);
    // Only what stands open is kept: a server that is killed leaves few.
    let mut open: Vec<(String, Option<OrgId>)> = Vec::new();
    while let Some(row) = rows.try_next().await? {
        let (action, subject): (&str, &str) = (row.try_get("action")?, row.try_get("subject")?);
        if action == "capture_begun" {
            let org: Option<i64> = row.try_get("org")?;
            open.push((subject.to_owned(), org.map(OrgId)));
        } else {
            open.retain(|(begun, _)| first_word(begun) != first_word(subject));
        }
    }
    Ok(open)
}

/// The name of what a row is about.
fn first_word(subject: &str) -> Option<&str> {
    subject.split(' ').next()
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn parse(row: AnyRow) -> Result<AuditEntry, Error> {
    let org: Option<i64> = row.try_get("org")?;
    let hash: Option<&[u8]> = row.try_get("hash")?;
    let link = match hash {
        Some(_) => Some(AuditLink {
            previous: AuditHash(bytes(&row, "previous")?),
            hash: AuditHash(bytes(&row, "hash")?),
        }),
        None => None,
    };
    Ok(AuditEntry {
        id: row.try_get("id")?,
        time: Timestamp(row.try_get("time")?),
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        subject: row.try_get("subject")?,
        org: optional_text(&row, "org_name")?,
        org_id: org.map(OrgId),
        link,
    })
}

/// Old rows that are read at once.
const OLD_ROWS_MAX: u32 = 1_000;
