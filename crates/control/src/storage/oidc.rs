//! Identity providers, who people are there, and the sessions that providers gave.

use std::collections::BTreeMap;

use model::{
    id::{BrowserId, NodeId, OrgId, UserId},
    name::Label,
    policy::Role,
};
use sqlx::{AnyConnection, Row as _, any::AnyRow};

use super::{Error, text, user::User};

/// The identity provider of an organisation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Provider {
    pub(crate) org: OrgId,
    pub(crate) issuer: String,
    pub(crate) client_id: String,
    /// Sealed.
    pub(crate) client_secret: Option<Vec<u8>>,
    pub(crate) scopes: Vec<String>,
    pub(crate) groups_claim: String,
    /// The role of the members of each group.
    pub(crate) roles: BTreeMap<String, Role>,
    pub(crate) created: i64,
}

/// Where a person is signed in by a provider.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    Device(NodeId),
    Browser(BrowserId),
}

/// What a person needs to stay signed in by a provider.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) place: Place,
    pub(crate) user: UserId,
    pub(crate) org: OrgId,
    pub(crate) issuer: String,
    pub(crate) subject: String,
    pub(crate) sid: Option<String>,
    /// Sealed.
    pub(crate) refresh_token: Option<Vec<u8>>,
    pub(crate) begun: i64,
    pub(crate) confirmed: i64,
    pub(crate) due: i64,
}

/// Sets the provider of an organisation in place of any other.
pub(crate) async fn upsert_provider(
    connection: &mut AnyConnection,
    provider: &Provider,
) -> Result<(), Error> {
    delete_provider(connection, provider.org).await?;
    sqlx::query(
        "INSERT INTO oidc_provider (org, issuer, client_id, client_secret, scopes, groups_claim,
                                    created)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(provider.org.0)
    .bind(provider.issuer.as_str())
    .bind(provider.client_id.as_str())
    .bind(provider.client_secret.as_deref())
    .bind(provider.scopes.join(" "))
    .bind(provider.groups_claim.as_str())
    .bind(provider.created)
    .execute(&mut *connection)
    .await?;
    for (name, role) in &provider.roles {
        sqlx::query("INSERT INTO oidc_role (org, name, role) VALUES ($1, $2, $3)")
            .bind(provider.org.0)
            .bind(name)
            .bind(role.name())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Removes the provider of an organisation. Returns whether there was one.
pub(crate) async fn delete_provider(
    connection: &mut AnyConnection,
    org: OrgId,
) -> Result<bool, Error> {
    sqlx::query("DELETE FROM oidc_role WHERE org = $1")
        .bind(org.0)
        .execute(&mut *connection)
        .await?;
    let gone = sqlx::query("DELETE FROM oidc_provider WHERE org = $1")
        .bind(org.0)
        .execute(connection)
        .await?
        .rows_affected();
    Ok(gone > 0)
}

/// Returns the provider of an organisation.
pub(crate) async fn provider(
    connection: &mut AnyConnection,
    org: OrgId,
) -> Result<Option<Provider>, Error> {
    let row = sqlx::query("SELECT * FROM oidc_provider WHERE org = $1")
        .bind(org.0)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let roles = sqlx::query("SELECT name, role FROM oidc_role WHERE org = $1")
        .bind(org.0)
        .fetch_all(connection)
        .await?;
    let scopes: &str = row.try_get("scopes")?;
    Ok(Some(Provider {
        org,
        issuer: row.try_get("issuer")?,
        client_id: row.try_get("client_id")?,
        client_secret: row.try_get("client_secret")?,
        scopes: scopes.split_whitespace().map(str::to_owned).collect(),
        groups_claim: row.try_get("groups_claim")?,
        roles: roles
            .into_iter()
            .map(|row| Ok((row.try_get("name")?, text(&row, "role")?)))
            .collect::<Result<_, Error>>()?,
        created: row.try_get("created")?,
    }))
}

/// Says who a person is at a provider.
pub(crate) async fn insert_identity(
    connection: &mut AnyConnection,
    user: UserId,
    org: OrgId,
    issuer: &str,
    subject: &str,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO oidc_identity (\"user\", org, issuer, subject) VALUES ($1, $2, $3, $4)",
    )
    .bind(user.0)
    .bind(org.0)
    .bind(issuer)
    .bind(subject)
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets who a person is at a provider, and her groups.
pub(crate) async fn delete_identity(
    connection: &mut AnyConnection,
    user: UserId,
) -> Result<(), Error> {
    update_groups(connection, user, &[]).await?;
    sqlx::query("DELETE FROM oidc_identity WHERE \"user\" = $1")
        .bind(user.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns the person whom a provider knows as `subject`.
pub(crate) async fn user_with_identity(
    connection: &mut AnyConnection,
    org: OrgId,
    issuer: &str,
    subject: &str,
) -> Result<Option<User>, Error> {
    let row = sqlx::query(
        "SELECT i.\"user\" FROM oidc_identity i JOIN \"user\" u ON u.id = i.\"user\"
         WHERE i.org = $1 AND i.issuer = $2 AND i.subject = $3 AND u.removed IS NULL",
    )
    .bind(org.0)
    .bind(issuer)
    .bind(subject)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    super::user::user(connection, UserId(row.try_get("user")?)).await
}

/// Gives a person these groups and no others.
pub(crate) async fn update_groups(
    connection: &mut AnyConnection,
    user: UserId,
    groups: &[Label],
) -> Result<(), Error> {
    sqlx::query("DELETE FROM user_group WHERE \"user\" = $1")
        .bind(user.0)
        .execute(&mut *connection)
        .await?;
    for group in groups {
        sqlx::query("INSERT INTO user_group (\"user\", name) VALUES ($1, $2)")
            .bind(user.0)
            .bind(group.as_str())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Returns the groups of a person in the order of their names.
pub(crate) async fn groups(
    connection: &mut AnyConnection,
    user: UserId,
) -> Result<Vec<Label>, Error> {
    sqlx::query("SELECT name FROM user_group WHERE \"user\" = $1 ORDER BY name")
        .bind(user.0)
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(|row| text(&row, "name"))
        .collect()
}

/// Built into every map, so it visits no rows of others: by the index of those who are there.
pub(super) const GROUPS_OF: &str = "SELECT g.\"user\", g.name
    FROM \"user\" u JOIN user_group g ON g.\"user\" = u.id
    WHERE u.org = $1 AND u.removed IS NULL ORDER BY g.\"user\", g.name";

/// Returns the groups of everybody in an organisation.
pub(crate) async fn groups_of(
    connection: &mut AnyConnection,
    org: OrgId,
) -> Result<BTreeMap<UserId, Vec<Label>>, Error> {
    let rows = sqlx::query(GROUPS_OF)
        .bind(org.0)
        .fetch_all(connection)
        .await?;
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for row in rows {
        let user = UserId(row.try_get("user")?);
        groups.entry(user).or_default().push(text(&row, "name")?);
    }
    Ok(groups)
}

/// Begins the session of a device in place of an earlier one.
pub(crate) async fn insert_session(
    connection: &mut AnyConnection,
    node: NodeId,
    session: &Session,
) -> Result<(), Error> {
    delete_session(connection, node).await?;
    sqlx::query(
        "INSERT INTO oidc_session (node, \"user\", org, issuer, subject, sid, refresh_token, begun,
                                   confirmed, due)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(node.0)
    .bind(session.user.0)
    .bind(session.org.0)
    .bind(session.issuer.as_str())
    .bind(session.subject.as_str())
    .bind(session.sid.as_deref())
    .bind(session.refresh_token.as_deref())
    .bind(session.begun)
    .bind(session.confirmed)
    .bind(session.due)
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets the session of a device.
pub(crate) async fn delete_session(
    connection: &mut AnyConnection,
    node: NodeId,
) -> Result<(), Error> {
    sqlx::query("DELETE FROM oidc_session WHERE node = $1")
        .bind(node.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns the session of a device, or that of a browser which has a refresh token.
pub(crate) async fn session(
    connection: &mut AnyConnection,
    place: Place,
) -> Result<Option<Session>, Error> {
    let query = match place {
        Place::Device(node) => {
            sqlx::query("SELECT * FROM oidc_session WHERE node = $1").bind(node.0)
        }
        Place::Browser(browser) => sqlx::query(
            "SELECT b.*, u.org FROM browser b JOIN \"user\" u ON u.id = b.\"user\"
             WHERE b.id = $1 AND b.due IS NOT NULL",
        )
        .bind(browser.0),
    };
    let row = query.fetch_optional(connection).await?;
    row.map(|row| match place {
        Place::Device(_) => parse(row),
        Place::Browser(_) => parse_browser(row),
    })
    .transpose()
}

/// Returns sessions that are due, those that wait longest first: of devices, and of browsers.
pub(crate) async fn due_sessions(
    connection: &mut AnyConnection,
    now: i64,
    limit: u32,
) -> Result<Vec<Session>, Error> {
    let devices = sqlx::query("SELECT * FROM oidc_session WHERE due <= $1 ORDER BY due LIMIT $2")
        .bind(now)
        .bind(i64::from(limit))
        .fetch_all(&mut *connection)
        .await?;
    let browsers = sqlx::query(
        "SELECT b.*, u.org FROM browser b JOIN \"user\" u ON u.id = b.\"user\"
         WHERE b.due <= $1 AND b.expires > $1 ORDER BY b.due LIMIT $2",
    )
    .bind(now)
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    let devices = devices.into_iter().map(parse);
    devices
        .chain(browsers.into_iter().map(parse_browser))
        .collect()
}

/// Returns the sessions that a provider gave to a subject, or under its own session id, until
/// `begun`.
pub(crate) async fn sessions_of(
    connection: &mut AnyConnection,
    org: OrgId,
    issuer: &str,
    subject: Option<&str>,
    sid: Option<&str>,
    begun: i64,
) -> Result<Vec<Session>, Error> {
    sqlx::query(
        "SELECT * FROM oidc_session
         WHERE org = $1 AND issuer = $2 AND ($3 IS NULL OR subject = $3)
               AND ($4 IS NULL OR sid = $4) AND ($3 IS NOT NULL OR $4 IS NOT NULL)
               AND begun <= $5 ORDER BY node",
    )
    .bind(org.0)
    .bind(issuer)
    .bind(subject)
    .bind(sid)
    .bind(begun)
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(parse)
    .collect()
}

/// Says when to ask about a session again.
pub(crate) async fn update_due(
    connection: &mut AnyConnection,
    place: Place,
    due: i64,
) -> Result<(), Error> {
    let (statement, id) = match place {
        Place::Device(node) => ("UPDATE oidc_session SET due = $1 WHERE node = $2", node.0),
        Place::Browser(browser) => ("UPDATE browser SET due = $1 WHERE id = $2", browser.0),
    };
    sqlx::query(statement)
        .bind(due)
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Makes every session of a person due.
pub(crate) async fn update_due_of(
    connection: &mut AnyConnection,
    user: UserId,
    due: i64,
) -> Result<(), Error> {
    for statement in [
        "UPDATE oidc_session SET due = $1 WHERE \"user\" = $2 AND due > $1",
        "UPDATE browser SET due = $1 WHERE \"user\" = $2 AND due > $1",
    ] {
        sqlx::query(statement)
            .bind(due)
            .bind(user.0)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Remembers that the provider confirmed a session, and its next refresh token. The session may
/// have been replaced meanwhile: `old` is the one that was asked about.
pub(crate) async fn update_confirmed(
    connection: &mut AnyConnection,
    now: i64,
    old: &Session,
    refresh_token: &[u8],
    due: i64,
) -> Result<bool, Error> {
    let (statement, id) = match old.place {
        Place::Device(node) => (
            "UPDATE oidc_session SET confirmed = $1, refresh_token = $2, due = $3
             WHERE node = $4 AND refresh_token = $5",
            node.0,
        ),
        Place::Browser(browser) => (
            "UPDATE browser SET confirmed = $1, refresh_token = $2, due = $3
             WHERE id = $4 AND refresh_token = $5",
            browser.0,
        ),
    };
    let done = sqlx::query(statement)
        .bind(now)
        .bind(refresh_token)
        .bind(due)
        .bind(id)
        .bind(old.refresh_token.as_deref())
        .execute(connection)
        .await?;
    Ok(done.rows_affected() > 0)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn parse(row: AnyRow) -> Result<Session, Error> {
    let place = Place::Device(NodeId(row.try_get("node")?));
    parse_session(&row, place, row.try_get("begun")?)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn parse_browser(row: AnyRow) -> Result<Session, Error> {
    let place = Place::Browser(BrowserId(row.try_get("id")?));
    parse_session(&row, place, row.try_get("created")?)
}

fn parse_session(row: &AnyRow, place: Place, begun: i64) -> Result<Session, Error> {
    Ok(Session {
        place,
        user: UserId(row.try_get("user")?),
        org: OrgId(row.try_get("org")?),
        issuer: row.try_get("issuer")?,
        subject: row.try_get("subject")?,
        sid: row.try_get("sid")?,
        refresh_token: row.try_get("refresh_token")?,
        begun,
        confirmed: row.try_get("confirmed")?,
        due: row.try_get("due")?,
    })
}
