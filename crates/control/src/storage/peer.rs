//! Plain WireGuard clients: what is kept of them beside their nodes.

use model::{
    api::KeyHolder,
    id::{NodeId, OrgId},
    key::PublicKey,
    name::Label,
};
use sqlx::{AnyConnection, Row as _, any::AnyRow};

use super::{
    Error, bytes,
    node::{self, Node},
    of_org, optional_text,
};

/// A plain WireGuard client.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) node: Node,
    pub(crate) key_holder: KeyHolder,
    pub(crate) expires: Option<i64>,
    pub(crate) exported: Option<Exported>,
}

/// When a configuration was exported, and which gateway it names.
#[derive(Clone, Debug)]
pub(crate) struct Exported {
    pub(crate) time: i64,
    pub(crate) gateway_key: PublicKey,
    pub(crate) gateway_endpoint: String,
}

/// Makes a node a plain WireGuard client.
pub(crate) async fn insert(
    connection: &mut AnyConnection,
    node: NodeId,
    key_holder: KeyHolder,
    expires: Option<i64>,
) -> Result<(), Error> {
    sqlx::query("INSERT INTO peer (node, key_holder, expires) VALUES ($1, $2, $3)")
        .bind(node.0)
        .bind(word(key_holder))
        .bind(expires)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes that its configuration was exported.
pub(crate) async fn update_exported(
    connection: &mut AnyConnection,
    node: NodeId,
    key_holder: KeyHolder,
    exported: &Exported,
) -> Result<(), Error> {
    sqlx::query(
        "UPDATE peer SET key_holder = $1, exported = $2, gateway_key = $3, gateway_endpoint = $4
         WHERE node = $5",
    )
    .bind(word(key_holder))
    .bind(exported.time)
    .bind(exported.gateway_key.0.as_slice())
    .bind(exported.gateway_endpoint.as_str())
    .bind(node.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets what is kept beside the node.
pub(crate) async fn delete(connection: &mut AnyConnection, node: NodeId) -> Result<(), Error> {
    sqlx::query("DELETE FROM peer WHERE node = $1")
        .bind(node.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns a plain WireGuard client.
pub(crate) async fn peer(
    connection: &mut AnyConnection,
    node: NodeId,
) -> Result<Option<Peer>, Error> {
    sqlx::query(
        "SELECT node.*, key_holder, peer.expires AS peer_expires, exported, gateway_key,
                gateway_endpoint
         FROM node JOIN peer ON peer.node = node.id WHERE node.id = $1",
    )
    .bind(node.0)
    .fetch_optional(connection)
    .await?
    .map(parse)
    .transpose()
}

pub(super) const PEERS: [&str; 2] = of_all_or_one!(
    "SELECT node.*, key_holder, peer.expires AS peer_expires, exported, gateway_key,
            gateway_endpoint
     FROM node JOIN peer ON peer.node = node.id
     WHERE node.removed IS NULL AND node.id > $1 AND",
    "node.org",
    "AND ($3 IS NULL OR node.name = $3) ORDER BY node.id LIMIT $4"
);

/// Returns plain WireGuard clients after `after` in the order of their ids.
pub(crate) async fn peers(
    connection: &mut AnyConnection,
    org: Option<OrgId>,
    name: Option<&Label>,
    after: i64,
    limit: u32,
) -> Result<Vec<Peer>, Error> {
    sqlx::query(of_org(PEERS, org))
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

/// Returns one whose time is over.
pub(crate) async fn expired(
    connection: &mut AnyConnection,
    now: i64,
) -> Result<Option<Node>, Error> {
    sqlx::query(
        "SELECT node.* FROM node JOIN peer ON peer.node = node.id WHERE peer.expires <= $1
         ORDER BY peer.expires LIMIT 1",
    )
    .bind(now)
    .fetch_optional(connection)
    .await?
    .map(node::parse)
    .transpose()
}

fn parse(row: AnyRow) -> Result<Peer, Error> {
    let key_holder = match row.try_get("key_holder")? {
        "device" => KeyHolder::Device,
        "configuration" => KeyHolder::Configuration,
        "nobody" => KeyHolder::Nobody,
        _ => return Err(Error::Corrupt("key_holder")),
    };
    let exported = match row.try_get::<Option<i64>, _>("exported")? {
        Some(time) => Some(Exported {
            time,
            gateway_key: PublicKey(bytes(&row, "gateway_key")?),
            gateway_endpoint: optional_text(&row, "gateway_endpoint")?
                .ok_or(Error::Corrupt("gateway_endpoint"))?,
        }),
        None => None,
    };
    Ok(Peer {
        key_holder,
        expires: row.try_get("peer_expires")?,
        exported,
        node: node::parse(row)?,
    })
}

fn word(key_holder: KeyHolder) -> &'static str {
    match key_holder {
        KeyHolder::Device => "device",
        KeyHolder::Configuration => "configuration",
        KeyHolder::Nobody => "nobody",
    }
}
