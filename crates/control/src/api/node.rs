//! Nodes.

use axum::{Json, extract::State, http::StatusCode};
use model::{
    api::{
        self, ErrorBody, ErrorCode, ListQuery, NODE_TTL_SECONDS_MAX, NewExpiry, NewKey, NodeChange,
        Page, Timestamp,
    },
    id::NodeId,
    name::Label,
};

use super::{
    enrol,
    error::ApiError,
    extract::{Asked, Body, Named},
    org_of_list, page,
    permission::Access,
    rows_of_page, ssh,
};
use crate::{
    Server, expiry,
    storage::{
        self, Change, Touched,
        audit::Entry,
        node::{Node, Part},
        ssh::Selection,
    },
};

/// Most tags of one node.
const TAGS_MAX: usize = 32;

/// Lists the nodes that the asker may know.
#[utoipa::path(get, path = "/v1/nodes", params(ListQuery),
    responses((status = 200, body = Page<api::Node>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<api::Node>>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let org = org_of_list(&mut read, &access, query.org.as_ref()).await?;
    let (after, limit) = (query.after.unwrap_or(0), rows_of_page(query.limit));
    let nodes = storage::node::nodes(&mut read, org, query.name.as_ref(), after, limit).await?;
    let mut items = Vec::new();
    for node in nodes {
        items.push(described(&server, &mut read, node).await?);
    }
    Ok(Json(page(items, query.limit, |node| node.id.0)))
}

/// Shows a node.
#[utoipa::path(get, path = "/v1/nodes/{node}", params(("node" = i64, Path)),
    responses((status = 200, body = api::Node), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<NodeId>,
) -> Result<Json<api::Node>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let node = storage::node::node(&mut read, id).await?;
    let node = node
        .filter(|node| node.removed.is_none())
        .ok_or_else(ApiError::not_found)?;
    access.reaches(node.org(), Some(id))?;
    Ok(Json(described(&server, &mut read, node).await?))
}

/// Renames a node or gives it other tags; its address stays.
#[utoipa::path(patch, path = "/v1/nodes/{node}", params(("node" = i64, Path)),
    request_body = NodeChange,
    responses((status = 200, body = api::Node), (status = "4XX", body = ErrorBody)))]
pub(super) async fn set(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<NodeId>,
    Body(request): Body<NodeChange>,
) -> Result<Json<api::Node>, ApiError> {
    let mut change = server.change().await?;
    let mut node = reached(&mut change, &access, id).await?;
    let mut done = Vec::new();
    if let Some(name) = request.name {
        rename(&mut change, &node, &name).await?;
        done.push(format!("name {name}"));
        node.name = name;
    }
    if let Some(mut tags) = request.tags {
        if tags.len() > TAGS_MAX {
            let message = format!("a node has at most {TAGS_MAX} tags");
            return Err(ApiError::new(ErrorCode::LimitReached, message));
        }
        if matches!(node.part, Part::Gateway { .. }) {
            let message = "a gateway has no tags: no rule is about it";
            return Err(ApiError::new(ErrorCode::MalformedRequest, message));
        }
        tags.sort();
        tags.dedup();
        storage::policy::update_tags(change.connection(), id, &tags).await?;
        let tags: Vec<_> = tags.iter().map(Label::as_str).collect();
        done.push(format!("tags {}", tags.join(",")));
    }
    if done.is_empty() {
        let message = "a change of a node has a name or tags";
        return Err(ApiError::new(ErrorCode::MalformedRequest, message));
    }
    let entry = Entry {
        actor: access.actor(),
        action: "node_changed",
        subject: format!("node:{id} {}", done.join(" ")),
        org: node.org(),
    };
    let touched = node.org().map_or(Touched::Everybody, Touched::Org);
    server.commit(change, entry, touched).await?;
    let mut read = server.inner.store.read().await?;
    Ok(Json(described(&server, &mut read, node).await?))
}

async fn rename(change: &mut Change, node: &Node, name: &Label) -> Result<(), ApiError> {
    let connection = change.connection();
    let org = match node.org() {
        Some(org) => storage::org::org(connection, org).await?,
        None => None,
    };
    let key = node.public_key;
    enrol::is_free(connection, org.as_ref(), name, key, Some(node.id)).await?;
    storage::node::update_name(connection, node.id, name).await?;
    // Another node may bear the old name soon.
    ssh::revoke_in(change, Selection::Host(node.id)).await?;
    Ok(())
}

/// Replaces the key of the asking node; the same key again changes nothing.
///
/// With the answer gateways cut what the former key has made.
#[utoipa::path(put, path = "/v1/nodes/{node}/key", params(("node" = i64, Path)),
    request_body = NewKey,
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn replace_key(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<NodeId>,
    Body(request): Body<NewKey>,
) -> Result<StatusCode, ApiError> {
    let mut change = server.change().await?;
    let node = reached(&mut change, &access, id).await?;
    let (connection, key) = (change.connection(), request.public_key);
    match storage::node::node_with_key(connection, key).await? {
        None => storage::node::update_key(connection, id, key).await?,
        Some(holder) if holder.id == id => return Ok(StatusCode::NO_CONTENT),
        Some(_) => {
            let message = "a node with this key is enrolled already";
            return Err(ApiError::new(ErrorCode::KeyTaken, message));
        }
    }
    let entry = Entry {
        actor: access.actor(),
        action: "node_key_replaced",
        subject: format!("node:{id}"),
        org: node.org(),
    };
    let touched = node.org().map_or(Touched::Everybody, Touched::Org);
    server.commit(change, entry, touched).await?;
    server.inner.tunnels.forget(&node.public_key);
    Ok(StatusCode::NO_CONTENT)
}

/// Lets a node that waits into the maps of others; one that waits for nobody stays as it is.
#[utoipa::path(post, path = "/v1/nodes/{node}/approval", params(("node" = i64, Path)),
    responses((status = 200, body = api::Node), (status = "4XX", body = ErrorBody)))]
pub(super) async fn approve(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<NodeId>,
) -> Result<Json<api::Node>, ApiError> {
    let mut change = server.change().await?;
    let mut node = reached(&mut change, &access, id).await?;
    let org = node.org().filter(|_| node.pending.take().is_some());
    if let Some(org) = org {
        storage::node::update_pending(change.connection(), id, None).await?;
        let entry = Entry {
            actor: access.actor(),
            action: "node_approved",
            subject: format!("node:{id} {}", node.name),
            org: Some(org),
        };
        server.commit(change, entry, Touched::Org(org)).await?;
    } else {
        drop(change);
    }
    let mut read = server.inner.store.read().await?;
    Ok(Json(described(&server, &mut read, node).await?))
}

/// Says when a node's time is over: then it is in the maps of others no more, and comes back with
/// its address and its key when it is given more time.
#[utoipa::path(put, path = "/v1/nodes/{node}/expiry", params(("node" = i64, Path)),
    request_body = NewExpiry,
    responses((status = 200, body = api::Node), (status = "4XX", body = ErrorBody)))]
pub(super) async fn expire(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<NodeId>,
    Body(request): Body<NewExpiry>,
) -> Result<Json<api::Node>, ApiError> {
    let mut change = server.change().await?;
    let now = change.now();
    let mut node = reached(&mut change, &access, id).await?;
    let Some(org) = node.org() else {
        let message = "a gateway has no end; remove it when its time is over";
        return Err(ApiError::new(ErrorCode::MalformedRequest, message));
    };
    node.expires = expires(now, &request)?;
    let ends = node.expires.is_some_and(|expires| expires <= now);
    node.expired = ends.then(|| node.expired.unwrap_or(now));
    let connection = change.connection();
    storage::node::update_expires(connection, id, node.expires, node.expired).await?;
    let entry = match node.expires {
        Some(_) if ends => expiry::entry(&node, access.actor()),
        Some(expires) => changed(&node, &access, &format!("expires:{expires}")),
        None => changed(&node, &access, "never"),
    };
    server.commit(change, entry, Touched::Org(org)).await?;
    let mut read = server.inner.store.read().await?;
    Ok(Json(described(&server, &mut read, node).await?))
}

/// Returns what the audit says of a node with another end.
fn changed(node: &Node, access: &Access, end: &str) -> Entry {
    Entry {
        actor: access.actor(),
        action: "node_expiry_changed",
        subject: format!("node:{} {} {end}", node.id, node.name),
        org: node.org(),
    }
}

/// Returns when a node's time is over, which nobody could mean to be in the past.
fn expires(now: i64, request: &NewExpiry) -> Result<Option<i64>, ApiError> {
    let seconds = match (request.expires, request.ttl_seconds) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            let message = "an end is a point in time or comes after a while, not both";
            return Err(ApiError::new(ErrorCode::MalformedRequest, message));
        }
        (Some(Timestamp(at)), None) if at <= now => {
            let message = "the time lies in the past; after 0 seconds the node ends at once";
            return Err(ApiError::new(ErrorCode::TtlOutOfRange, message));
        }
        (Some(Timestamp(at)), None) => u64::try_from(at.saturating_sub(now)).ok(),
        (None, Some(ttl)) => Some(ttl),
    };
    let seconds = seconds.filter(|seconds| *seconds <= NODE_TTL_SECONDS_MAX);
    let seconds = seconds.and_then(|seconds| i64::try_from(seconds).ok());
    let seconds = seconds.ok_or_else(|| {
        let message = "a node's time ends within ten years, or never";
        ApiError::new(ErrorCode::TtlOutOfRange, message)
    })?;
    Ok(Some(now + seconds))
}

/// Returns a node that is there, if it is the asker's business.
async fn reached(change: &mut Change, access: &Access, id: NodeId) -> Result<Node, ApiError> {
    let node = storage::node::node(change.connection(), id).await?;
    let node = node
        .filter(|node| node.removed.is_none())
        .ok_or_else(ApiError::not_found)?;
    access.reaches(node.org(), Some(id))?;
    Ok(node)
}

/// Removes a node everywhere.
#[utoipa::path(delete, path = "/v1/nodes/{node}", params(("node" = i64, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<NodeId>,
) -> Result<StatusCode, ApiError> {
    enrol::remove(&server, id, &access, "node_removed").await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn described(
    server: &Server,
    connection: &mut storage::Connection,
    node: Node,
) -> Result<api::Node, ApiError> {
    let org = match node.org() {
        Some(org) => storage::org::org(connection, org).await?,
        None => None,
    };
    let tags = storage::policy::tags_of_node(connection, node.id).await?;
    let (role, state) = (node.role(), node.state_at(server.now()));
    let (address, user, endpoint) = match node.part {
        Part::Client { address, user, .. } => (Some(address), user, None),
        Part::Gateway { endpoint, .. } => (None, None, Some(endpoint)),
    };
    Ok(api::Node {
        id: node.id,
        name: node.name,
        role,
        org: org.map(|org| org.name),
        address,
        public_key: node.public_key,
        endpoint,
        user,
        tags,
        state,
        expires: node.expires.map(Timestamp),
        created: Timestamp(node.enrolled),
        seen: server.seen(node.id).map(Timestamp),
        tunnel: server.inner.tunnels.of(&node.public_key),
    })
}
