//! Tokens: all but their secrets.

use model::{
    id::{NodeId, OrgId, TokenId, UserId},
    token::Kind,
};
use sqlx::{AnyConnection, Row as _, any::AnyRow};

use super::{Error, number, of_org};

/// A token's row.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) id: TokenId,
    pub(crate) kind: Kind,
    pub(crate) org: Option<OrgId>,
    pub(crate) node: Option<NodeId>,
    pub(crate) user: Option<UserId>,
    pub(crate) uses: u32,
    pub(crate) uses_max: Option<u32>,
    /// Whether a machine that joins by it waits for approval.
    pub(crate) approval: bool,
    pub(crate) created: i64,
    pub(crate) expires: Option<i64>,
    pub(crate) revoked: Option<i64>,
}

/// What a token leads to; the kind follows from it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Grant {
    /// Signs this person in on a device of her organisation.
    Login { org: OrgId, user: UserId },
    /// Enrols machines into this organisation, where they may have to wait for approval.
    Join { org: OrgId, approval: bool },
    /// Enrols gateways.
    Gateway,
    /// Speaks for a person on a device.
    Session { node: NodeId, user: UserId },
    /// Speaks for a node.
    Node { node: NodeId },
}

impl Grant {
    /// Returns the kind of the token.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Login { .. } => Kind::Login,
            Self::Join { .. } => Kind::Join,
            Self::Gateway => Kind::Gateway,
            Self::Session { .. } => Kind::Session,
            Self::Node { .. } => Kind::Node,
        }
    }
}

/// Adds a token. Times and uses that do not fit the kind are refused by the schema.
pub(crate) async fn insert(
    connection: &mut AnyConnection,
    now: i64,
    hash: [u8; 32],
    grant: Grant,
    uses_max: Option<u32>,
    expires: Option<i64>,
) -> Result<TokenId, Error> {
    let (org, node, user, approval) = match grant {
        Grant::Login { org, user } => (Some(org.0), None, Some(user.0), false),
        Grant::Join { org, approval } => (Some(org.0), None, None, approval),
        Grant::Gateway => (None, None, None, false),
        Grant::Session { node, user } => (None, Some(node.0), Some(user.0), false),
        Grant::Node { node } => (None, Some(node.0), None, false),
    };
    let row = sqlx::query(
        "INSERT INTO token (kind, hash, org, node, \"user\", uses, uses_max, created, expires,
                            approval)
         VALUES ($1, $2, $3, $4, $5, 0, $6, $7, $8, $9) RETURNING id",
    )
    .bind(grant.kind().as_str())
    .bind(hash.as_slice())
    .bind(org)
    .bind(node)
    .bind(user)
    .bind(uses_max.map(i64::from))
    .bind(now)
    .bind(expires)
    .bind(approval.then_some(1_i64))
    .fetch_one(connection)
    .await?;
    Ok(TokenId(row.try_get("id")?))
}

/// Uses a token once, if it may be used now. One statement decides, so that of two who use the
/// last use at once only one succeeds.
pub(crate) async fn consume(
    connection: &mut AnyConnection,
    now: i64,
    id: TokenId,
) -> Result<bool, Error> {
    let row = sqlx::query(
        "UPDATE token SET uses = uses + 1
         WHERE id = $1 AND uses < uses_max AND expires > $2 AND revoked IS NULL
         RETURNING id",
    )
    .bind(id.0)
    .bind(now)
    .fetch_optional(connection)
    .await?;
    Ok(row.is_some())
}

/// Revokes a token.
pub(crate) async fn revoke(
    connection: &mut AnyConnection,
    now: i64,
    id: TokenId,
) -> Result<(), Error> {
    sqlx::query("UPDATE token SET revoked = $1 WHERE id = $2 AND revoked IS NULL")
        .bind(now)
        .bind(id.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Revokes all tokens that speak for a node or from it.
pub(crate) async fn revoke_of(
    connection: &mut AnyConnection,
    now: i64,
    node: NodeId,
) -> Result<(), Error> {
    sqlx::query("UPDATE token SET revoked = $1 WHERE node = $2 AND revoked IS NULL")
        .bind(now)
        .bind(node.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Revokes the login tokens of a person.
pub(crate) async fn revoke_logins_of(
    connection: &mut AnyConnection,
    now: i64,
    user: UserId,
) -> Result<(), Error> {
    sqlx::query(
        "UPDATE token SET revoked = $1
         WHERE \"user\" = $2 AND kind = 'login' AND revoked IS NULL",
    )
    .bind(now)
    .bind(user.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns the token of a hash.
pub(crate) async fn token_with_hash(
    connection: &mut AnyConnection,
    hash: [u8; 32],
) -> Result<Option<Token>, Error> {
    sqlx::query("SELECT * FROM token WHERE hash = $1")
        .bind(hash.as_slice())
        .fetch_optional(connection)
        .await?
        .map(parse)
        .transpose()
}

/// Returns a token.
pub(crate) async fn token(
    connection: &mut AnyConnection,
    id: TokenId,
) -> Result<Option<Token>, Error> {
    sqlx::query("SELECT * FROM token WHERE id = $1")
        .bind(id.0)
        .fetch_optional(connection)
        .await?
        .map(parse)
        .transpose()
}

pub(super) const TOKENS: [&str; 2] = of_all_or_one!(
    "SELECT * FROM token
     WHERE kind <> 'node' AND revoked IS NULL AND expires > $3
       AND (uses_max IS NULL OR uses < uses_max) AND id > $1 AND",
    "org",
    "ORDER BY id LIMIT $4"
);

/// Returns the tokens after `after` that still work and were not made for a node.
pub(crate) async fn tokens(
    connection: &mut AnyConnection,
    now: i64,
    org: Option<OrgId>,
    after: i64,
    limit: u32,
) -> Result<Vec<Token>, Error> {
    sqlx::query(of_org(TOKENS, org))
        .bind(after)
        .bind(org.map(|org| org.0))
        .bind(now)
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(parse)
        .collect()
}

/// Counts the tokens that enrol and still work.
pub(crate) async fn count(connection: &mut AnyConnection, now: i64) -> Result<u32, Error> {
    let row = sqlx::query(
        "SELECT COUNT(*) AS n FROM token
         WHERE uses < uses_max AND revoked IS NULL AND expires > $1",
    )
    .bind(now)
    .fetch_one(connection)
    .await?;
    number(&row, "n")
}

/// Tells whether anybody has ever signed in, or can still do so with a login token.
pub(crate) async fn somebody_can_enter(
    connection: &mut AnyConnection,
    now: i64,
) -> Result<bool, Error> {
    let row = sqlx::query(
        "SELECT 1 FROM token WHERE kind = 'login' AND (uses > 0
                OR (revoked IS NULL AND expires > $1))
         UNION ALL SELECT 1 FROM node WHERE \"user\" IS NOT NULL
         LIMIT 1",
    )
    .bind(now)
    .fetch_optional(connection)
    .await?;
    Ok(row.is_some())
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn parse(row: AnyRow) -> Result<Token, Error> {
    let uses_max: Option<i64> = row.try_get("uses_max")?;
    let uses_max = uses_max
        .map(|uses| u32::try_from(uses).map_err(|_| Error::Corrupt("uses_max")))
        .transpose()?;
    Ok(Token {
        id: TokenId(row.try_get("id")?),
        kind: Kind::from_word(row.try_get("kind")?).ok_or(Error::Corrupt("kind"))?,
        org: row.try_get::<Option<i64>, _>("org")?.map(OrgId),
        node: row.try_get::<Option<i64>, _>("node")?.map(NodeId),
        user: row.try_get::<Option<i64>, _>("user")?.map(UserId),
        uses: number(&row, "uses")?,
        uses_max,
        approval: row.try_get::<Option<i64>, _>("approval")?.is_some(),
        created: row.try_get("created")?,
        expires: row.try_get("expires")?,
        revoked: row.try_get("revoked")?,
    })
}
