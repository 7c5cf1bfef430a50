//! Plain WireGuard clients: nodes that do not run ginnel, with the same names and rules.
//!
//! The control plane never sees a private key: the device makes it, or whoever exports the
//! configuration, which is then marked as not managed.

use axum::{Json, extract::State, http::StatusCode};
use model::{
    api::{
        self, EnrolRequest, ErrorBody, ErrorCode, KeyHolder, ListQuery, NewPeer, Page,
        PeerConfiguration, PeerExport, TOKEN_TTL_SECONDS_MAX, Timestamp,
    },
    id::{NodeId, OrgId},
    key::PublicKey,
    map,
};

use super::{
    enrol,
    error::ApiError,
    extract::{Asked, Body, Named},
    org_of_list, org_or_own, page,
    permission::Access,
    rows_of_page,
};
use crate::{
    Server,
    storage::{
        self, Change, Error, Touched,
        audit::{Actor, Entry},
        node::Part,
        org::Org,
        peer::{Exported, Peer},
    },
};

/// Lists the plain WireGuard clients that the asker may know.
#[utoipa::path(get, path = "/v1/peers", params(ListQuery),
    responses((status = 200, body = Page<api::Peer>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<api::Peer>>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let org = org_of_list(&mut read, &access, query.org.as_ref()).await?;
    let (after, limit) = (query.after.unwrap_or(0), rows_of_page(query.limit));
    let peers = storage::peer::peers(&mut read, org, query.name.as_ref(), after, limit).await?;
    let mut items = Vec::new();
    for peer in peers {
        items.push(described(&server, &mut read, peer).await?);
    }
    Ok(Json(page(items, query.limit, |peer| peer.id.0)))
}

/// Shows a plain WireGuard client.
#[utoipa::path(get, path = "/v1/peers/{peer}", params(("peer" = i64, Path)),
    responses((status = 200, body = api::Peer), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<NodeId>,
) -> Result<Json<api::Peer>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let peer = peer_of(&mut read, &access, id).await?;
    Ok(Json(described(&server, &mut read, peer).await?))
}

/// Adds a plain WireGuard client. Without a key of its own it works once it is exported.
#[utoipa::path(post, path = "/v1/peers", request_body = NewPeer,
    responses((status = 201, body = api::Peer), (status = "4XX", body = ErrorBody)))]
pub(super) async fn add(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<NewPeer>,
) -> Result<(StatusCode, Json<api::Peer>), ApiError> {
    let mut change = server.change().await?;
    let expires = expires(change.now(), request.ttl_seconds)?;
    let org = org_or_own(change.connection(), &access, request.org.as_ref()).await?;
    let user = match &request.user {
        Some(name) => {
            let user = storage::user::user_named(change.connection(), org.id, name).await?;
            let message = || format!("organisation `{}` has nobody `{name}`", org.name);
            Some(user.ok_or_else(|| ApiError::new(ErrorCode::NotFound, message()))?)
        }
        None => None,
    };
    if let Some(user) = &user {
        access.may_change(user)?;
    }
    let (public_key, key_holder) = match request.public_key {
        Some(key) => (key, KeyHolder::Device),
        None => (nobodys_key(&server), KeyHolder::Nobody),
    };
    is_unused(&mut change, public_key).await?;
    let enrolled = EnrolRequest {
        name: request.name,
        public_key,
    };
    let user = user.map(|user| user.id);
    let (id, _) = enrol::enrol(&server, &mut change, &org, &enrolled, user).await?;
    storage::peer::insert(change.connection(), id, key_holder, expires).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "peer_added",
        subject: format!("node:{id} {}", enrolled.name),
        org: Some(org.id),
    };
    server.commit(change, entry, Touched::Org(org.id)).await?;
    let mut read = server.inner.store.read().await?;
    let peer = peer_of(&mut read, &access, id).await?;
    Ok((
        StatusCode::CREATED,
        Json(described(&server, &mut read, peer).await?),
    ))
}

/// Returns what the configuration of a plain WireGuard client says, and takes over its new key.
#[utoipa::path(post, path = "/v1/peers/{peer}/export", params(("peer" = i64, Path)),
    request_body = PeerExport,
    responses((status = 200, body = PeerConfiguration), (status = "4XX", body = ErrorBody)))]
pub(super) async fn export(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<NodeId>,
    Body(request): Body<PeerExport>,
) -> Result<Json<PeerConfiguration>, ApiError> {
    let mut change = server.change().await?;
    let peer = peer_of(change.connection(), &access, id).await?;
    let (org, address) = client(&peer)?;
    let org = storage::org::org(change.connection(), org).await?;
    let org = org.ok_or_else(ApiError::not_found)?;
    let gateway = gateway_of(change.connection(), &org).await?;
    let gateway = gateway.ok_or_else(|| {
        let message = format!("organisation `{}` has no gateway to connect to", org.name);
        ApiError::new(ErrorCode::NotFound, message)
    })?;
    let key_holder = match (request.public_key, peer.key_holder) {
        (Some(key), _) => {
            is_unused(&mut change, key).await?;
            storage::node::update_key(change.connection(), id, key).await?;
            KeyHolder::Configuration
        }
        (None, KeyHolder::Device) => KeyHolder::Device,
        (None, KeyHolder::Configuration | KeyHolder::Nobody) => {
            let message = "its device has made no key, so the export needs one";
            return Err(ApiError::new(ErrorCode::MalformedRequest, message));
        }
    };
    let exported = Exported {
        time: change.now(),
        gateway_key: gateway.public_key,
        gateway_endpoint: gateway.endpoint.clone(),
    };
    let connection = change.connection();
    storage::peer::update_exported(connection, id, key_holder, &exported).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "peer_exported",
        subject: format!("node:{id} {}", peer.node.name),
        org: Some(org.id),
    };
    server.commit(change, entry, Touched::Org(org.id)).await?;
    Ok(Json(PeerConfiguration {
        address,
        prefix: org.prefix,
        gateway,
    }))
}

/// Removes a plain WireGuard client everywhere.
#[utoipa::path(delete, path = "/v1/peers/{peer}", params(("peer" = i64, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<NodeId>,
) -> Result<StatusCode, ApiError> {
    let mut change = server.change().await?;
    let peer = peer_of(change.connection(), &access, id).await?;
    enrol::remove_by(&server, change, peer.node, access.actor(), "peer_removed").await?;
    Ok(StatusCode::NO_CONTENT)
}

impl Server {
    /// Removes every plain WireGuard client whose time is over. [`Server::serve`] does so by
    /// itself.
    pub async fn remove_expired_peers(&self) -> anyhow::Result<()> {
        let removed = self.remove_due_peers().await;
        removed.map_err(|error| anyhow::anyhow!(error.message))
    }

    pub(crate) async fn remove_due_peers(&self) -> Result<(), ApiError> {
        loop {
            let mut read = self.inner.store.read().await?;
            let due = storage::peer::expired(&mut read, self.now()).await?;
            drop(read);
            if due.is_none() {
                return Ok(());
            }
            let mut change = self.change().await?;
            let now = change.now();
            // It may have been removed meanwhile.
            let Some(node) = storage::peer::expired(change.connection(), now).await? else {
                return Ok(());
            };
            enrol::remove_by(self, change, node, Actor::Server, "peer_expired").await?;
        }
    }
}

fn expires(now: i64, ttl_seconds: Option<u64>) -> Result<Option<i64>, ApiError> {
    let Some(ttl) = ttl_seconds else {
        return Ok(None);
    };
    let seconds = i64::try_from(ttl).ok();
    let seconds = seconds.filter(|_| (1..=TOKEN_TTL_SECONDS_MAX).contains(&ttl));
    let seconds = seconds.ok_or_else(|| {
        let message = format!("a peer stays for 1 to {TOKEN_TTL_SECONDS_MAX} seconds, or for ever");
        ApiError::new(ErrorCode::TtlOutOfRange, message)
    })?;
    Ok(Some(now + seconds))
}

/// Draws a public key of which nobody has the private one.
fn nobodys_key(server: &Server) -> PublicKey {
    let mut key = [0; 32];
    server.inner.random.fill(&mut key);
    PublicKey(key)
}

/// Refuses a key that a node has, also one of the same person.
async fn is_unused(change: &mut Change, key: PublicKey) -> Result<(), ApiError> {
    let holder = storage::node::node_with_key(change.connection(), key).await?;
    match holder {
        None => Ok(()),
        Some(_) => Err(ApiError::new(
            ErrorCode::KeyTaken,
            "a node with this key is enrolled already",
        )),
    }
}

async fn peer_of(
    connection: &mut storage::Connection,
    access: &Access,
    id: NodeId,
) -> Result<Peer, ApiError> {
    let peer = storage::peer::peer(connection, id).await?;
    let peer = peer.ok_or_else(ApiError::not_found)?;
    access.reaches(peer.node.org(), Some(id))?;
    Ok(peer)
}

fn client(peer: &Peer) -> Result<(OrgId, std::net::Ipv6Addr), ApiError> {
    match &peer.node.part {
        Part::Client { org, address, .. } => Ok((*org, *address)),
        Part::Gateway { .. } => Err(Error::Corrupt("role").into()),
    }
}

/// Returns whom nodes of `org` connect to, as their maps name it.
async fn gateway_of(
    connection: &mut storage::Connection,
    org: &Org,
) -> Result<Option<map::Gateway>, Error> {
    let gateway = match org.gateway {
        Some(id) => storage::node::node(connection, id).await?,
        None => None,
    };
    Ok(gateway.and_then(crate::map::gateway))
}

async fn described(
    server: &Server,
    connection: &mut storage::Connection,
    peer: Peer,
) -> Result<api::Peer, ApiError> {
    let (id, address) = client(&peer)?;
    let org = storage::org::org(connection, id).await?;
    let org = org.ok_or_else(ApiError::not_found)?;
    let gateway = gateway_of(connection, &org).await?;
    let stale = peer.exported.as_ref().is_some_and(|exported| {
        gateway.is_none_or(|gateway| {
            gateway.public_key != exported.gateway_key
                || gateway.endpoint != exported.gateway_endpoint
        })
    });
    let user = match peer.node.part {
        Part::Client { user, .. } => user,
        Part::Gateway { .. } => None,
    };
    Ok(api::Peer {
        state: peer.node.state_at(server.now()),
        id: peer.node.id,
        name: peer.node.name,
        org: org.name,
        address,
        public_key: peer.node.public_key,
        key_holder: peer.key_holder,
        user,
        expires: peer.expires.map(Timestamp),
        exported: peer.exported.map(|exported| Timestamp(exported.time)),
        stale,
        created: Timestamp(peer.node.enrolled),
    })
}
