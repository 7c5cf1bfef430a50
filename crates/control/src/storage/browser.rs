//! Browsers in which a person has signed in to the web page.

use model::id::{BrowserId, OrgId, UserId};
use sqlx::{AnyConnection, Row as _, any::AnyRow};

use super::{Error, oidc::Session};

/// A browser's row.
#[derive(Clone, Debug)]
pub(crate) struct Browser {
    pub(crate) id: BrowserId,
    pub(crate) user: UserId,
    pub(crate) expires: i64,
}

/// What a browser that signs in brings.
pub(crate) struct NewBrowser<'a> {
    pub(crate) user: UserId,
    /// The hash of its secret.
    pub(crate) hash: [u8; 32],
    /// The identity provider that signed the person in.
    pub(crate) issuer: Option<&'a str>,
    /// The session there.
    pub(crate) sid: Option<&'a str>,
    pub(crate) expires: i64,
}

/// Browsers in which one person is signed in; one more ends the oldest.
const BROWSERS_PER_USER_MAX: i64 = 16;

/// Signs a person in at a browser.
pub(crate) async fn insert(
    connection: &mut AnyConnection,
    now: i64,
    new: &NewBrowser<'_>,
) -> Result<BrowserId, Error> {
    sqlx::query("DELETE FROM browser WHERE \"user\" = $1 AND expires <= $2")
        .bind(new.user.0)
        .bind(now)
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "DELETE FROM browser WHERE \"user\" = $1 AND id NOT IN
             (SELECT id FROM browser WHERE \"user\" = $1 ORDER BY id DESC LIMIT $2)",
    )
    .bind(new.user.0)
    .bind(BROWSERS_PER_USER_MAX - 1)
    .execute(&mut *connection)
    .await?;
    let row = sqlx::query(
        "INSERT INTO browser (\"user\", hash, issuer, sid, created, expires)
         VALUES ($1, $2, $3, $4, $5, $6) RETURNING id",
    )
    .bind(new.user.0)
    .bind(new.hash.as_slice())
    .bind(new.issuer)
    .bind(new.sid)
    .bind(now)
    .bind(new.expires)
    .fetch_one(connection)
    .await?;
    Ok(BrowserId(row.try_get("id")?))
}

/// Says what keeps a browser signed in from now on: a session that has a refresh token.
pub(crate) async fn update_session(
    connection: &mut AnyConnection,
    id: BrowserId,
    session: &Session,
    expires: i64,
) -> Result<(), Error> {
    sqlx::query(
        "UPDATE browser SET subject = $1, refresh_token = $2, confirmed = $3, due = $4, expires = $5
         WHERE id = $6",
    )
    .bind(session.subject.as_str())
    .bind(session.refresh_token.as_deref())
    .bind(session.confirmed)
    .bind(session.due)
    .bind(expires)
    .bind(id.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns the browser of a hash, if its time is not over.
pub(crate) async fn browser_with_hash(
    connection: &mut AnyConnection,
    now: i64,
    hash: [u8; 32],
) -> Result<Option<Browser>, Error> {
    sqlx::query("SELECT * FROM browser WHERE hash = $1 AND expires > $2")
        .bind(hash.as_slice())
        .bind(now)
        .fetch_optional(connection)
        .await?
        .map(parse)
        .transpose()
}

/// Signs a person out at a browser.
pub(crate) async fn delete(connection: &mut AnyConnection, id: BrowserId) -> Result<(), Error> {
    sqlx::query("DELETE FROM browser WHERE id = $1")
        .bind(id.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Signs a person out at every browser. Returns at how many.
pub(crate) async fn delete_of(connection: &mut AnyConnection, user: UserId) -> Result<u64, Error> {
    let done = sqlx::query("DELETE FROM browser WHERE \"user\" = $1")
        .bind(user.0)
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}

/// Signs everybody of an organisation out.
pub(crate) async fn delete_of_org(connection: &mut AnyConnection, org: OrgId) -> Result<(), Error> {
    sqlx::query("DELETE FROM browser WHERE \"user\" IN (SELECT id FROM \"user\" WHERE org = $1)")
        .bind(org.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Signs out where a provider signed a subject in, or under its own session id, until `begun`.
/// Returns at how many browsers.
pub(crate) async fn delete_of_provider(
    connection: &mut AnyConnection,
    org: OrgId,
    issuer: &str,
    subject: Option<&str>,
    sid: Option<&str>,
    begun: i64,
) -> Result<u64, Error> {
    let done = sqlx::query(
        "DELETE FROM browser
         WHERE issuer = $2 AND created <= $5
               AND \"user\" IN (SELECT id FROM \"user\" WHERE org = $1)
               AND ($3 IS NULL OR \"user\" IN (SELECT \"user\" FROM oidc_identity
                    WHERE org = $1 AND issuer = $2 AND subject = $3))
               AND ($4 IS NULL OR sid = $4) AND ($3 IS NOT NULL OR $4 IS NOT NULL)",
    )
    .bind(org.0)
    .bind(issuer)
    .bind(subject)
    .bind(sid)
    .bind(begun)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn parse(row: AnyRow) -> Result<Browser, Error> {
    Ok(Browser {
        id: BrowserId(row.try_get("id")?),
        user: UserId(row.try_get("user")?),
        expires: row.try_get("expires")?,
    })
}
