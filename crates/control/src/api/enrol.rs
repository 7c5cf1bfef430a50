//! Enrolling: machines join, people log in, gateways enrol, all may leave again.

use std::net::Ipv6Addr;

use axum::{Json, extract::State, http::StatusCode};
use model::{
    address::Kind as AddressKind,
    api::{
        EnrolRequest, Enrolled, ErrorBody, ErrorCode, GatewayEnrolled, GatewayRequest, LoggedIn,
        Timestamp,
    },
    id::{NodeId, UserId},
    key::PublicKey,
    map::NetworkMap,
    name::Label,
    token::{Kind, Token},
};

use super::{error::ApiError, extract::Body, parse_endpoint, permission::Access, usable};
use crate::{
    Server,
    storage::{
        self, Change, Touched,
        audit::{Actor, Entry},
        node::{Node, Part},
        org::Org,
        token::Grant,
        user::User,
    },
};

/// Most nodes of one organisation: its map still fits a reply.
const NODES_PER_ORG_MAX: u32 = 100_000;

/// Most gateways of an installation.
const GATEWAYS_MAX: u32 = 256;

/// How long a person's session lasts (facts: people keep command line sessions for a month).
const SESSION_SECONDS: i64 = 30 * 24 * 60 * 60;

/// How often an address is drawn before the server gives up: a second draw is a rarity already.
const DRAWS_MAX: u32 = 16;

/// Enrols a machine.
#[utoipa::path(post, path = "/v1/join", request_body = EnrolRequest,
    responses((status = 200, body = Enrolled), (status = "4XX", body = ErrorBody)))]
pub(super) async fn join(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<EnrolRequest>,
) -> Result<Json<Enrolled>, ApiError> {
    let mut change = server.change().await?;
    consume(&mut change, &access).await?;
    let org = org_of(&mut change, &access).await?;
    let (id, address) = enrol(&server, &mut change, &org, &request, None).await?;
    let mut subject = format!("node:{id} {}", request.name);
    if access.token()?.approval {
        let now = change.now();
        storage::node::update_pending(change.connection(), id, Some(now)).await?;
        subject.push_str(" pending");
    }
    let node_token = server.mint(Kind::Node);
    insert_node_token(&mut change, &node_token, id).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "node_joined",
        subject,
        org: Some(org.id),
    };
    server.commit(change, entry, Touched::Org(org.id)).await?;
    Ok(Json(Enrolled {
        id,
        name: request.name,
        org: org.name,
        address,
        node_token,
        map: map_of(&server, id).await?,
    }))
}

/// Signs a person in on a device, which becomes a node.
#[utoipa::path(post, path = "/v1/login", request_body = EnrolRequest,
    responses((status = 200, body = LoggedIn), (status = "4XX", body = ErrorBody)))]
pub(super) async fn login(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<EnrolRequest>,
) -> Result<Json<LoggedIn>, ApiError> {
    let mut change = server.change().await?;
    consume(&mut change, &access).await?;
    let org = org_of(&mut change, &access).await?;
    let user = access.token()?.user.ok_or_else(ApiError::not_found)?;
    let admitted = admit(&server, &mut change, &org, &request, user).await?;
    let entry = admitted.entry(&org, &request);
    server.commit(change, entry, Touched::Org(org.id)).await?;
    Ok(Json(admitted.logged_in(&server, org, request).await?))
}

/// A person who was let in on a device.
pub(super) struct Admitted {
    pub(super) node: NodeId,
    address: Ipv6Addr,
    node_token: Token,
    person: User,
    session_token: Token,
    expires: i64,
}

/// Makes a device a node of a person and gives her a session there.
pub(super) async fn admit(
    server: &Server,
    change: &mut Change,
    org: &Org,
    request: &EnrolRequest,
    user: UserId,
) -> Result<Admitted, ApiError> {
    let (node, address) = enrol(server, change, org, request, Some(user)).await?;
    let node_token = server.mint(Kind::Node);
    insert_node_token(change, &node_token, node).await?;
    let session_token = server.mint(Kind::Session);
    let expires = change.now() + SESSION_SECONDS;
    let (hash, now) = (crate::secret::hash(&session_token), change.now());
    let grant = Grant::Session { node, user };
    storage::token::insert(change.connection(), now, hash, grant, None, Some(expires)).await?;
    let person = storage::user::user(change.connection(), user).await?;
    let person = person
        .filter(|person| person.removed.is_none())
        .ok_or_else(ApiError::not_found)?;
    Ok(Admitted {
        node,
        address,
        node_token,
        person,
        session_token,
        expires,
    })
}

impl Admitted {
    /// Returns what the audit says of it.
    pub(super) fn entry(&self, org: &Org, request: &EnrolRequest) -> Entry {
        Entry {
            actor: Actor::User(self.person.id),
            action: "user_logged_in",
            subject: format!("node:{} {}", self.node, request.name),
            org: Some(org.id),
        }
    }

    /// Returns what the device is told once the change is committed.
    pub(super) async fn logged_in(
        self,
        server: &Server,
        org: Org,
        request: EnrolRequest,
    ) -> Result<LoggedIn, ApiError> {
        let device = Enrolled {
            id: self.node,
            name: request.name,
            org: org.name,
            address: self.address,
            node_token: self.node_token,
            map: map_of(server, self.node).await?,
        };
        Ok(LoggedIn {
            user: self.person.id,
            user_name: self.person.name,
            session_token: self.session_token,
            session_expires: Timestamp(self.expires),
            device,
        })
    }
}

/// Enrols a gateway, which from now on serves every organisation.
#[utoipa::path(post, path = "/v1/gateways", request_body = GatewayRequest,
    responses((status = 200, body = GatewayEnrolled), (status = "4XX", body = ErrorBody)))]
pub(super) async fn gateway(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<GatewayRequest>,
) -> Result<Json<GatewayEnrolled>, ApiError> {
    let endpoint = parse_endpoint(&request.endpoint)?.to_owned();
    let mut change = server.change().await?;
    consume(&mut change, &access).await?;
    let now = change.now();
    let connection = change.connection();
    if storage::node::count_gateways(connection).await? >= GATEWAYS_MAX {
        return Err(limit_reached("gateways"));
    }
    is_free(connection, None, &request.name, request.public_key, None).await?;
    let part = Part::Gateway {
        endpoint,
        builtin: false,
    };
    let (name, key) = (&request.name, request.public_key);
    let id = match storage::node::removed_node_with_key(connection, None, key).await? {
        Some(known) => {
            storage::node::update(connection, now, known.id, name, key, &part).await?;
            known.id
        }
        None => storage::node::insert(connection, now, name, key, &part).await?,
    };
    storage::org::update_gateways(connection).await?;
    let node_token = server.mint(Kind::Node);
    insert_node_token(&mut change, &node_token, id).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "gateway_enrolled",
        subject: format!("node:{id} {name}"),
        org: None,
    };
    server.commit(change, entry, Touched::Everybody).await?;
    Ok(Json(GatewayEnrolled {
        id,
        name: request.name,
        node_token,
        map: map_of(&server, id).await?,
    }))
}

/// Removes the asking device or machine with its session.
#[utoipa::path(post, path = "/v1/logout",
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn logout(
    State(server): State<Server>,
    access: Access,
) -> Result<StatusCode, ApiError> {
    let node = access.own()?.id;
    remove(&server, node, &access, "logged_out").await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a node: its tokens end, its services go, and every map without it is published.
pub(super) async fn remove(
    server: &Server,
    id: NodeId,
    access: &Access,
    action: &'static str,
) -> Result<(), ApiError> {
    let mut change = server.change().await?;
    let node = storage::node::node(change.connection(), id).await?;
    let node = node
        .filter(|node| node.removed.is_none())
        .ok_or_else(ApiError::not_found)?;
    access.reaches(node.org(), Some(id))?;
    remove_by(server, change, node, access.actor(), action).await
}

/// Removes a node in a change, in the name of `actor`.
pub(crate) async fn remove_by(
    server: &Server,
    mut change: Change,
    node: Node,
    actor: Actor,
    action: &'static str,
) -> Result<(), ApiError> {
    let (id, now) = (node.id, change.now());
    storage::node::delete(change.connection(), now, id).await?;
    super::ssh::revoke_removed(server, &mut change, &node).await?;
    let touched = match &node.part {
        Part::Client { org, .. } => Touched::Org(*org),
        Part::Gateway { builtin: true, .. } => {
            // Only that of another server that is no more can be one that nobody uses.
            let own = server.inner.gateway.get() == Some(&id);
            if own || storage::org::uses(change.connection(), id).await? {
                let message = "the server's own gateway ends with the server";
                return Err(ApiError::new(ErrorCode::NotPermitted, message));
            }
            Touched::Everybody
        }
        Part::Gateway { builtin: false, .. } => {
            storage::org::update_gateways(change.connection()).await?;
            Touched::Everybody
        }
    };
    let entry = Entry {
        actor,
        action,
        subject: format!("node:{id} {}", node.name),
        org: node.org(),
    };
    server.commit(change, entry, touched).await?;
    server.inner.tunnels.forget(&node.public_key);
    Ok(())
}

/// Uses the token of an enrolment once, in the transaction that enrols.
pub(super) async fn consume(change: &mut Change, access: &Access) -> Result<(), ApiError> {
    let (token, now) = (access.token()?, change.now());
    if storage::token::consume(change.connection(), now, token.id).await? {
        return Ok(());
    }
    // Another used or revoked it since this request came in.
    if let Some(row) = storage::token::token(change.connection(), token.id).await? {
        usable(&row, now)?;
    }
    Err(ApiError::not_found())
}

async fn org_of(change: &mut Change, access: &Access) -> Result<Org, ApiError> {
    let id = access.token()?.org.ok_or_else(ApiError::not_found)?;
    let org = storage::org::org(change.connection(), id).await?;
    org.ok_or_else(ApiError::not_found)
}

/// Adds a client, or enrols a known key again under its old id and address.
pub(super) async fn enrol(
    server: &Server,
    change: &mut Change,
    org: &Org,
    request: &EnrolRequest,
    user: Option<UserId>,
) -> Result<(NodeId, Ipv6Addr), ApiError> {
    let now = change.now();
    let connection = change.connection();
    let key = request.public_key;
    let known = match live_device(connection, org, key, user).await? {
        Some(device) => Some(device),
        None => storage::node::removed_node_with_key(connection, Some(org.id), key).await?,
    };
    let known_id = known.as_ref().map(|node| node.id);
    is_free(connection, Some(org), &request.name, key, known_id).await?;
    if storage::node::count_of(connection, org.id).await? >= NODES_PER_ORG_MAX {
        return Err(limit_reached("nodes"));
    }
    let address = match known.as_ref().map(|node| &node.part) {
        Some(Part::Client { address, .. }) => *address,
        Some(Part::Gateway { .. }) | None => draw_address(server, change, org).await?,
    };
    let part = Part::Client {
        org: org.id,
        address,
        user,
    };
    let connection = change.connection();
    let id = match known_id {
        Some(id) => {
            storage::token::revoke_of(connection, now, id).await?;
            // Whoever enrols works by no exported configuration.
            storage::peer::delete(connection, id).await?;
            storage::node::update(connection, now, id, &request.name, key, &part).await?;
            id
        }
        None => storage::node::insert(connection, now, &request.name, key, &part).await?,
    };
    Ok((id, address))
}

/// Returns the live node of a key if it is a device of the same person, who signs in again.
async fn live_device(
    connection: &mut storage::Connection,
    org: &Org,
    key: PublicKey,
    asking: Option<UserId>,
) -> Result<Option<Node>, ApiError> {
    let node = storage::node::node_with_key(connection, key).await?;
    Ok(node.filter(|node| match &node.part {
        Part::Client { org: own, user, .. } => {
            *own == org.id && asking.is_some() && *user == asking
        }
        Part::Gateway { .. } => false,
    }))
}

/// Refuses a name or a key that another live node has.
pub(super) async fn is_free(
    connection: &mut storage::Connection,
    org: Option<&Org>,
    name: &Label,
    key: PublicKey,
    own: Option<NodeId>,
) -> Result<(), ApiError> {
    if name.is_reserved() {
        let message = format!("`{name}` has a meaning of its own and cannot name a node");
        return Err(ApiError::new(ErrorCode::NameReserved, message));
    }
    let holder = storage::node::node_with_key(connection, key).await?;
    if holder.is_some_and(|node| Some(node.id) != own) {
        let message = "a node with this key is enrolled already";
        return Err(ApiError::new(ErrorCode::KeyTaken, message));
    }
    let holder = storage::node::node_named(connection, org.map(|org| org.id), name).await?;
    if holder.is_some_and(|node| Some(node.id) != own) {
        let message = match org {
            Some(org) => format!("organisation `{}` has a node `{name}` already", org.name),
            None => format!("there is a gateway `{name}` already"),
        };
        return Err(ApiError::new(ErrorCode::NameTaken, message));
    }
    Ok(())
}

async fn draw_address(
    server: &Server,
    change: &mut Change,
    org: &Org,
) -> Result<Ipv6Addr, ApiError> {
    for _ in 0..DRAWS_MAX {
        let mut id = [0; 8];
        server.inner.random.fill(&mut id);
        let address = org
            .prefix
            .address(AddressKind::Node, u64::from_be_bytes(id));
        if !storage::node::address_is_taken(change.connection(), address).await? {
            return Ok(address);
        }
    }
    let cause = anyhow::anyhow!("{DRAWS_MAX} random addresses were all taken");
    Err(ApiError::internal(cause))
}

async fn insert_node_token(
    change: &mut Change,
    token: &Token,
    node: NodeId,
) -> Result<(), ApiError> {
    let (hash, now) = (crate::secret::hash(token), change.now());
    let grant = Grant::Node { node };
    storage::token::insert(change.connection(), now, hash, grant, None, None).await?;
    Ok(())
}

async fn map_of(server: &Server, node: NodeId) -> Result<NetworkMap, ApiError> {
    let map = server.map(node).await?;
    map.ok_or_else(|| ApiError::new(ErrorCode::NodeRemoved, "the node was removed meanwhile"))
}

fn limit_reached(what: &str) -> ApiError {
    let message = format!("no more {what} fit here; remove some that are not used");
    ApiError::new(ErrorCode::LimitReached, message)
}
