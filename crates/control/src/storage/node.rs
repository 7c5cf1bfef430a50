//! Nodes: machines, people's devices and gateways.

use std::net::Ipv6Addr;

use model::{
    id::{NodeId, OrgId, UserId},
    key::PublicKey,
    map::{Role, State},
    name::Label,
};
use sqlx::{AnyConnection, Row as _, any::AnyRow};

use super::{Error, bytes, number, of_org, optional_text, text};

/// A node's row.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) name: Label,
    pub(crate) public_key: PublicKey,
    pub(crate) part: Part,
    pub(crate) enrolled: i64,
    /// Since when it waits for approval.
    pub(crate) pending: Option<i64>,
    /// When its time is over.
    pub(crate) expires: Option<i64>,
    /// When its time was over and the maps of others went on without it.
    pub(crate) expired: Option<i64>,
    pub(crate) removed: Option<i64>,
}

/// A node's part in the network, and what only that part has.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    Client {
        org: OrgId,
        address: Ipv6Addr,
        user: Option<UserId>,
    },
    Gateway {
        endpoint: String,
        builtin: bool,
    },
}

impl Node {
    /// Returns the organisation of a client.
    pub(crate) fn org(&self) -> Option<OrgId> {
        match &self.part {
            Part::Client { org, .. } => Some(*org),
            Part::Gateway { .. } => None,
        }
    }

    /// Tells whether it stands in the maps of others, which go by changes and not by the clock.
    pub(crate) fn state(&self) -> State {
        match (self.expired, self.pending) {
            (Some(_), _) => State::Expired,
            (None, Some(_)) => State::Pending,
            (None, None) => State::Active,
        }
    }

    /// Tells what it may do at `now`: its time may be over before the maps go on without it.
    pub(crate) fn state_at(&self, now: i64) -> State {
        match self.expires {
            Some(expires) if expires <= now => State::Expired,
            Some(_) | None => self.state(),
        }
    }

    /// Returns the role of its part.
    pub(crate) fn role(&self) -> Role {
        match &self.part {
            Part::Client { .. } => Role::Client,
            Part::Gateway { .. } => Role::Gateway,
        }
    }
}

/// Adds a node that waits for nobody and stays.
pub(crate) async fn insert(
    connection: &mut AnyConnection,
    now: i64,
    name: &Label,
    public_key: PublicKey,
    part: &Part,
) -> Result<NodeId, Error> {
    let (role, org, address, endpoint, builtin, user) = columns(part);
    let row = sqlx::query(
        "INSERT INTO node (role, org, name, public_key, address, endpoint, builtin, \"user\",
                           enrolled)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING id",
    )
    .bind(role)
    .bind(org)
    .bind(name.as_str())
    .bind(public_key.0.as_slice())
    .bind(address)
    .bind(endpoint)
    .bind(builtin)
    .bind(user)
    .bind(now)
    .fetch_one(connection)
    .await?;
    Ok(NodeId(row.try_get("id")?))
}

/// Enrols a known node again, under its old id. One that was removed begins anew; one that is there
/// waits and ends as before.
pub(crate) async fn update(
    connection: &mut AnyConnection,
    now: i64,
    id: NodeId,
    name: &Label,
    public_key: PublicKey,
    part: &Part,
) -> Result<(), Error> {
    let (role, org, address, endpoint, builtin, user) = columns(part);
    sqlx::query(
        "UPDATE node SET role = $1, org = $2, name = $3, public_key = $4, address = $5,
                endpoint = $6, builtin = $7, \"user\" = $8, enrolled = $9,
                pending = CASE WHEN removed IS NULL THEN pending ELSE NULL END,
                expires = CASE WHEN removed IS NULL THEN expires ELSE NULL END,
                expired = CASE WHEN removed IS NULL THEN expired ELSE NULL END, removed = NULL
         WHERE id = $10",
    )
    .bind(role)
    .bind(org)
    .bind(name.as_str())
    .bind(public_key.0.as_slice())
    .bind(address)
    .bind(endpoint)
    .bind(builtin)
    .bind(user)
    .bind(now)
    .bind(id.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives a node another key.
pub(crate) async fn update_key(
    connection: &mut AnyConnection,
    id: NodeId,
    public_key: PublicKey,
) -> Result<(), Error> {
    sqlx::query("UPDATE node SET public_key = $1 WHERE id = $2")
        .bind(public_key.0.as_slice())
        .bind(id.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Renames a node.
pub(crate) async fn update_name(
    connection: &mut AnyConnection,
    id: NodeId,
    name: &Label,
) -> Result<(), Error> {
    sqlx::query("UPDATE node SET name = $1 WHERE id = $2")
        .bind(name.as_str())
        .bind(id.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Lets a node wait for approval since `pending`, or for nobody.
pub(crate) async fn update_pending(
    connection: &mut AnyConnection,
    id: NodeId,
    pending: Option<i64>,
) -> Result<(), Error> {
    sqlx::query("UPDATE node SET pending = $1 WHERE id = $2")
        .bind(pending)
        .bind(id.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Gives a node an end, or none; `expired` says since when that is past.
pub(crate) async fn update_expires(
    connection: &mut AnyConnection,
    id: NodeId,
    expires: Option<i64>,
    expired: Option<i64>,
) -> Result<(), Error> {
    sqlx::query("UPDATE node SET expires = $1, expired = $2 WHERE id = $3")
        .bind(expires)
        .bind(expired)
        .bind(id.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns nodes of one organisation whose time is over and which are still in the maps of others.
pub(crate) async fn due(
    connection: &mut AnyConnection,
    now: i64,
    limit: u32,
) -> Result<Vec<Node>, Error> {
    sqlx::query(
        "SELECT * FROM node
         WHERE expires <= $1 AND expired IS NULL AND removed IS NULL
               AND org = (SELECT org FROM node
                          WHERE expires <= $1 AND expired IS NULL AND removed IS NULL
                          ORDER BY expires, id LIMIT 1)
         ORDER BY expires, id LIMIT $2",
    )
    .bind(now)
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(parse)
    .collect()
}

/// Returns when the next node's or plain WireGuard client's time is over.
pub(crate) async fn next_expiry(connection: &mut AnyConnection) -> Result<Option<i64>, Error> {
    let row = sqlx::query(
        "SELECT MIN(due) AS due FROM (
             SELECT MIN(expires) AS due FROM node
             WHERE expires IS NOT NULL AND expired IS NULL AND removed IS NULL
             UNION ALL SELECT MIN(expires) AS due FROM peer WHERE expires IS NOT NULL) AS ends",
    )
    .fetch_one(connection)
    .await?;
    Ok(row.try_get("due")?)
}

/// Removes a node with its services, the sites that no other one leads to, its tags and session and
/// revokes its tokens; the row keeps the address.
pub(crate) async fn delete(
    connection: &mut AnyConnection,
    now: i64,
    id: NodeId,
) -> Result<(), Error> {
    sqlx::query("UPDATE node SET removed = $1 WHERE id = $2")
        .bind(now)
        .bind(id.0)
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM service WHERE node = $1")
        .bind(id.0)
        .execute(&mut *connection)
        .await?;
    super::site::delete_of(connection, id).await?;
    super::peer::delete(connection, id).await?;
    super::policy::update_tags(connection, id, &[]).await?;
    super::oidc::delete_session(connection, id).await?;
    super::token::revoke_of(connection, now, id).await
}

/// Returns a node, removed or not.
pub(crate) async fn node(
    connection: &mut AnyConnection,
    id: NodeId,
) -> Result<Option<Node>, Error> {
    sqlx::query("SELECT * FROM node WHERE id = $1")
        .bind(id.0)
        .fetch_optional(connection)
        .await?
        .map(parse)
        .transpose()
}

/// Returns the live node of a public key.
pub(crate) async fn node_with_key(
    connection: &mut AnyConnection,
    key: PublicKey,
) -> Result<Option<Node>, Error> {
    sqlx::query("SELECT * FROM node WHERE public_key = $1 AND removed IS NULL")
        .bind(key.0.as_slice())
        .fetch_optional(connection)
        .await?
        .map(parse)
        .transpose()
}

/// Returns the node of a public key that was removed last from `org`, or from the gateways.
pub(crate) async fn removed_node_with_key(
    connection: &mut AnyConnection,
    org: Option<OrgId>,
    key: PublicKey,
) -> Result<Option<Node>, Error> {
    sqlx::query(
        "SELECT * FROM node WHERE public_key = $1 AND removed IS NOT NULL
                AND COALESCE(org, 0) = COALESCE($2, 0)
         ORDER BY removed DESC, id DESC LIMIT 1",
    )
    .bind(key.0.as_slice())
    .bind(org.map(|org| org.0))
    .fetch_optional(connection)
    .await?
    .map(parse)
    .transpose()
}

/// Returns the live node of a name in `org`, or among gateways.
pub(crate) async fn node_named(
    connection: &mut AnyConnection,
    org: Option<OrgId>,
    name: &Label,
) -> Result<Option<Node>, Error> {
    sqlx::query(
        "SELECT * FROM node WHERE COALESCE(org, 0) = COALESCE($1, 0) AND name = $2
                AND removed IS NULL",
    )
    .bind(org.map(|org| org.0))
    .bind(name.as_str())
    .fetch_optional(connection)
    .await?
    .map(parse)
    .transpose()
}

/// Returns the gateway that a server has registered: by its key, else by its endpoint.
pub(crate) async fn builtin_gateway(
    connection: &mut AnyConnection,
    key: PublicKey,
    endpoint: &str,
) -> Result<Option<Node>, Error> {
    sqlx::query(
        "SELECT * FROM node WHERE builtin = 1 AND removed IS NULL
                AND (public_key = $1 OR endpoint = $2)
         ORDER BY CASE WHEN public_key = $1 THEN 0 ELSE 1 END, id LIMIT 1",
    )
    .bind(key.0.as_slice())
    .bind(endpoint)
    .fetch_optional(connection)
    .await?
    .map(parse)
    .transpose()
}

/// Returns the gateway of a server that is the only one.
pub(crate) async fn only_builtin_gateway(
    connection: &mut AnyConnection,
) -> Result<Option<Node>, Error> {
    let rows = sqlx::query("SELECT * FROM node WHERE builtin = 1 AND removed IS NULL LIMIT 2")
        .fetch_all(connection)
        .await?;
    let mut nodes = rows.into_iter().map(parse);
    match (nodes.next(), nodes.next()) {
        (Some(only), None) => only.map(Some),
        (Some(_) | None, _) => Ok(None),
    }
}

/// Tells whether an address belongs to a node or did so lately.
pub(crate) async fn address_is_taken(
    connection: &mut AnyConnection,
    address: Ipv6Addr,
) -> Result<bool, Error> {
    let found = sqlx::query("SELECT 1 FROM node WHERE address = $1")
        .bind(address.to_string())
        .fetch_optional(connection)
        .await?;
    Ok(found.is_some())
}

/// Returns all live nodes of an organisation.
pub(crate) async fn nodes_of(
    connection: &mut AnyConnection,
    org: OrgId,
) -> Result<Vec<Node>, Error> {
    sqlx::query(NODES_OF)
        .bind(org.0)
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(parse)
        .collect()
}

/// Returns the live devices of a person.
pub(crate) async fn nodes_of_user(
    connection: &mut AnyConnection,
    user: UserId,
) -> Result<Vec<Node>, Error> {
    sqlx::query(NODES_OF_USER)
        .bind(user.0)
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(parse)
        .collect()
}

/// Built into every map, so it visits no rows of others.
pub(super) const NODES_OF: &str =
    "SELECT * FROM node WHERE org = $1 AND removed IS NULL ORDER BY id";

/// A person's devices are in her organisation, whose nodes an index finds.
pub(super) const NODES_OF_USER: &str = "SELECT * FROM node
    WHERE org = (SELECT org FROM \"user\" WHERE id = $1) AND \"user\" = $1 AND removed IS NULL
    ORDER BY id";

/// Counts the live nodes of an organisation.
pub(crate) async fn count_of(connection: &mut AnyConnection, org: OrgId) -> Result<u32, Error> {
    let row = sqlx::query("SELECT COUNT(*) AS n FROM node WHERE org = $1 AND removed IS NULL")
        .bind(org.0)
        .fetch_one(connection)
        .await?;
    number(&row, "n")
}

/// Counts the live gateways.
pub(crate) async fn count_gateways(connection: &mut AnyConnection) -> Result<u32, Error> {
    let row =
        sqlx::query("SELECT COUNT(*) AS n FROM node WHERE role = 'gateway' AND removed IS NULL")
            .fetch_one(connection)
            .await?;
    number(&row, "n")
}

pub(super) const NODES: [&str; 2] = of_all_or_one!(
    "SELECT * FROM node WHERE removed IS NULL AND id > $1 AND",
    "org",
    "AND ($3 IS NULL OR name = $3) ORDER BY id LIMIT $4"
);

/// Returns live nodes after `after` in the order of their ids.
pub(crate) async fn nodes(
    connection: &mut AnyConnection,
    org: Option<OrgId>,
    name: Option<&Label>,
    after: i64,
    limit: u32,
) -> Result<Vec<Node>, Error> {
    sqlx::query(of_org(NODES, org))
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

type Columns<'a> = (
    &'static str,
    Option<i64>,
    Option<String>,
    Option<&'a str>,
    i64,
    Option<i64>,
);

fn columns(part: &Part) -> Columns<'_> {
    match part {
        Part::Client { org, address, user } => {
            let user = user.map(|user| user.0);
            (
                "client",
                Some(org.0),
                Some(address.to_string()),
                None,
                0,
                user,
            )
        }
        Part::Gateway { endpoint, builtin } => (
            "gateway",
            None,
            None,
            Some(endpoint),
            i64::from(*builtin),
            None,
        ),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
pub(super) fn parse(row: AnyRow) -> Result<Node, Error> {
    let part = match row.try_get("role")? {
        "client" => Part::Client {
            org: OrgId(row.try_get("org")?),
            address: text(&row, "address")?,
            user: row.try_get::<Option<i64>, _>("user")?.map(UserId),
        },
        "gateway" => Part::Gateway {
            endpoint: optional_text(&row, "endpoint")?.ok_or(Error::Corrupt("endpoint"))?,
            builtin: row.try_get::<i64, _>("builtin")? == 1,
        },
        _ => return Err(Error::Corrupt("role")),
    };
    Ok(Node {
        id: NodeId(row.try_get("id")?),
        name: text(&row, "name")?,
        public_key: PublicKey(bytes(&row, "public_key")?),
        part,
        enrolled: row.try_get("enrolled")?,
        pending: row.try_get("pending")?,
        expires: row.try_get("expires")?,
        expired: row.try_get("expired")?,
        removed: row.try_get("removed")?,
    })
}
