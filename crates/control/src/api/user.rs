//! People, and for whom a token speaks.

use axum::{Json, extract::State, http::StatusCode};
use model::{
    api::{
        self, CreatedUser, ErrorBody, ErrorCode, ListQuery, NewUser, Page, Timestamp, UserChange,
        WhoAmI,
    },
    id::{OrgId, UserId},
    name::Label,
    token::Kind,
};

use super::{
    error::ApiError,
    extract::{Asked, Body, Named},
    org_of_list, org_or_own, page,
    permission::Access,
    rows_of_page, ssh, token,
};
use crate::{
    Server,
    storage::{self, Touched, audit::Entry, node::Node, ssh::Selection, token::Grant, user::User},
};

/// Most people of one organisation.
pub(super) const USERS_PER_ORG_MAX: u32 = 100_000;

/// Tells for whom the token of the request speaks.
#[utoipa::path(get, path = "/v1/whoami",
    responses((status = 200, body = WhoAmI), (status = "4XX", body = ErrorBody)))]
pub(super) async fn whoami(
    State(server): State<Server>,
    access: Access,
) -> Result<Json<WhoAmI>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let token = access.token()?;
    let org = token
        .org
        .or_else(|| access.node.as_ref().and_then(Node::org));
    let org = match org {
        Some(id) => storage::org::org(&mut read, id).await?,
        None => None,
    };
    let user = access.user.as_ref();
    Ok(Json(WhoAmI {
        kind: token.kind,
        org: org.map(|org| org.name),
        node: token.node,
        node_name: access.node.as_ref().map(|node| node.name.clone()),
        user: token.user,
        user_name: user.map(|user| user.name.clone()),
        role: user.map(|user| user.role),
        expires: token.expires.map(Timestamp),
    }))
}

/// Lists the people.
#[utoipa::path(get, path = "/v1/users", params(ListQuery),
    responses((status = 200, body = Page<api::User>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<api::User>>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let org = org_of_list(&mut read, &access, query.org.as_ref()).await?;
    let (after, limit) = (query.after.unwrap_or(0), rows_of_page(query.limit));
    let name = query.name.as_ref();
    let mut items = Vec::new();
    for user in storage::user::users(&mut read, org, name, after, limit).await? {
        items.push(described(&mut read, user).await?);
    }
    Ok(Json(page(items, query.limit, |user| user.id.0)))
}

/// Shows a person.
#[utoipa::path(get, path = "/v1/users/{user}", params(("user" = i64, Path)),
    responses((status = 200, body = api::User), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<UserId>,
) -> Result<Json<api::User>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let user = known(&mut read, id).await?;
    access.reaches(Some(user.org), None)?;
    Ok(Json(described(&mut read, user).await?))
}

/// Adds a person and invites her by a token for one device; the reply shows it once.
#[utoipa::path(post, path = "/v1/users", request_body = NewUser,
    responses((status = 201, body = CreatedUser), (status = "4XX", body = ErrorBody)))]
pub(super) async fn add(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<NewUser>,
) -> Result<(StatusCode, Json<CreatedUser>), ApiError> {
    let lifetime = token::lifetime(request.ttl_seconds)?;
    let mut change = server.change().await?;
    let org = org_or_own(change.connection(), &access, request.org.as_ref()).await?;
    is_free(change.connection(), org.id, &request.name).await?;
    if storage::user::count_of(change.connection(), org.id).await? >= USERS_PER_ORG_MAX {
        let message = format!("an organisation has at most {USERS_PER_ORG_MAX} people");
        return Err(ApiError::new(ErrorCode::LimitReached, message));
    }
    let (now, name, role) = (change.now(), &request.name, request.role);
    let connection = change.connection();
    let id = storage::user::insert(connection, now, org.id, name, role, false).await?;
    let token = server.mint(Kind::Login);
    let (hash, expires) = (crate::secret::hash(&token), now + lifetime);
    let grant = Grant::Login {
        org: org.id,
        user: id,
    };
    storage::token::insert(connection, now, hash, grant, Some(1), Some(expires)).await?;
    let user = known(connection, id).await?;
    let user = described(connection, user).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "user_added",
        subject: format!("user:{id} {name} {role}"),
        org: Some(org.id),
    };
    server.commit(change, entry, Touched::Nobody).await?;
    let created = CreatedUser {
        user,
        token,
        expires: Timestamp(expires),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Gives a person another role or name; rules about the role hold at once.
#[utoipa::path(patch, path = "/v1/users/{user}", params(("user" = i64, Path)),
    request_body = UserChange,
    responses((status = 200, body = api::User), (status = "4XX", body = ErrorBody)))]
pub(super) async fn set(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<UserId>,
    Body(request): Body<UserChange>,
) -> Result<Json<api::User>, ApiError> {
    let mut change = server.change().await?;
    let mut user = known(change.connection(), id).await?;
    access.may_change(&user)?;
    if request == UserChange::default() {
        let message = "a change of a person has a name or a role";
        return Err(ApiError::new(ErrorCode::MalformedRequest, message));
    }
    if let Some(name) = request.name.filter(|name| *name != user.name) {
        is_free(change.connection(), user.org, &name).await?;
        user.name = name;
    }
    user.role = request.role.unwrap_or(user.role);
    if user.operator && user.role != model::policy::Role::Admin {
        let message = "one who keeps the installation is an administrator";
        return Err(ApiError::new(ErrorCode::MalformedRequest, message));
    }
    storage::user::update(change.connection(), id, &user.name, user.role).await?;
    // Certificates, and what was begun with them, name the person and what the role permitted.
    ssh::revoke_in(&mut change, Selection::User(id)).await?;
    ssh::cut_off(&mut change, Selection::User(id)).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "user_changed",
        subject: format!("user:{id} {} {}", user.name, user.role),
        org: Some(user.org),
    };
    let touched = Touched::Org(user.org);
    server.commit(change, entry, touched).await?;
    let mut read = server.inner.store.read().await?;
    Ok(Json(described(&mut read, user).await?))
}

/// Removes a person: her sessions, certificates and devices end everywhere at once.
#[utoipa::path(delete, path = "/v1/users/{user}", params(("user" = i64, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<UserId>,
) -> Result<StatusCode, ApiError> {
    let mut change = server.change().await?;
    let user = known(change.connection(), id).await?;
    access.may_change(&user)?;
    if user.operator && storage::user::count_operators(change.connection()).await? == 1 {
        let message = format!("`{}` is the last who keeps this installation", user.name);
        return Err(ApiError::new(ErrorCode::LastOperator, message));
    }
    let now = change.now();
    let mut subject = format!("user:{id} {}", user.name);
    for node in storage::node::nodes_of_user(change.connection(), id).await? {
        storage::node::delete(change.connection(), now, node.id).await?;
        ssh::revoke_removed(&server, &mut change, &node).await?;
        subject.push_str(&format!(" node:{} {}", node.id, node.name));
    }
    storage::user::delete(change.connection(), now, id).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "user_removed",
        subject,
        org: Some(user.org),
    };
    let touched = Touched::Org(user.org);
    server.commit(change, entry, touched).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Returns a person who was not removed.
async fn known(connection: &mut storage::Connection, id: UserId) -> Result<User, ApiError> {
    let user = storage::user::user(connection, id).await?;
    user.filter(|user| user.removed.is_none())
        .ok_or_else(ApiError::not_found)
}

/// Refuses a name that another person of the organisation has, or that stands for many.
async fn is_free(
    connection: &mut storage::Connection,
    org: OrgId,
    name: &Label,
) -> Result<(), ApiError> {
    if name.as_str() == "root" {
        let message = "`root` is an account of every machine and cannot name a person";
        return Err(ApiError::new(ErrorCode::NameReserved, message));
    }
    if storage::user::user_named(connection, org, name)
        .await?
        .is_some()
    {
        let message = format!("there is a person `{name}` already");
        return Err(ApiError::new(ErrorCode::NameTaken, message));
    }
    Ok(())
}

async fn described(
    connection: &mut storage::Connection,
    user: User,
) -> Result<api::User, ApiError> {
    let org = storage::org::org(connection, user.org).await?;
    Ok(api::User {
        id: user.id,
        name: user.name,
        org: org.ok_or_else(ApiError::not_found)?.name,
        role: user.role,
        operator: user.operator,
        created: Timestamp(user.created),
    })
}
