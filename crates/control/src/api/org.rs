//! Organisations.

use axum::{Json, extract::State, http::StatusCode};
use model::{
    address::OrgPrefix,
    api::{self, ErrorBody, ErrorCode, ListQuery, NewOrg, Page, Timestamp},
    name::Label,
};

use super::{
    error::ApiError,
    extract::{Asked, Body, Named},
    org_named, org_of_list, page,
    permission::Access,
    rows_of_page,
};
use crate::{
    Server, policy,
    storage::{self, Touched, audit::Entry, org::Org},
};

/// Most organisations of an installation.
const ORGS_MAX: u32 = 10_000;

/// How often a prefix is drawn before the server gives up: with every organisation that may be,
/// one draw in a hundred million is taken.
const DRAWS_MAX: u32 = 16;

/// Lists the organisations that the asker may know.
#[utoipa::path(get, path = "/v1/orgs", params(ListQuery),
    responses((status = 200, body = Page<api::Org>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<api::Org>>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let asked = query.org.as_ref().or(query.name.as_ref());
    let only = org_of_list(&mut read, &access, asked).await?;
    let (after, limit) = (query.after.unwrap_or(0), rows_of_page(query.limit));
    let mut items = Vec::new();
    for org in storage::org::orgs(&mut read, only, after, limit).await? {
        items.push(described(&mut read, org).await?);
    }
    Ok(Json(page(items, query.limit, |org| org.id.0)))
}

/// Shows an organisation.
#[utoipa::path(get, path = "/v1/orgs/{org}", params(("org" = String, Path)),
    responses((status = 200, body = api::Org), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(
    State(server): State<Server>,
    access: Access,
    Named(name): Named<Label>,
) -> Result<Json<api::Org>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let org = org_named(&mut read, &access, &name).await?;
    Ok(Json(described(&mut read, org).await?))
}

/// Adds an organisation with a prefix of its own.
#[utoipa::path(post, path = "/v1/orgs", request_body = NewOrg,
    responses((status = 201, body = api::Org), (status = "4XX", body = ErrorBody)))]
pub(super) async fn add(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<NewOrg>,
) -> Result<(StatusCode, Json<api::Org>), ApiError> {
    let name = request.name;
    if name.is_reserved() {
        let message = format!("`{name}` has a meaning of its own and cannot name an organisation");
        return Err(ApiError::new(ErrorCode::NameReserved, message));
    }
    let mut change = server.change().await?;
    if storage::org::org_named(change.connection(), &name)
        .await?
        .is_some()
    {
        let message = format!("there is an organisation `{name}` already");
        return Err(ApiError::new(ErrorCode::NameTaken, message));
    }
    if storage::org::count(change.connection()).await? >= ORGS_MAX {
        let message = "no more organisations fit here; remove some that are not used";
        return Err(ApiError::new(ErrorCode::LimitReached, message));
    }
    let id = server.insert_org(&mut change, &name).await;
    let id = id.map_err(ApiError::failed)?;
    let entry = Entry {
        actor: access.actor(),
        action: "org_added",
        subject: format!("org:{id} {name}"),
        org: Some(id),
    };
    server.commit(change, entry, Touched::Org(id)).await?;
    let mut read = server.inner.store.read().await?;
    let org = storage::org::org(&mut read, id).await?;
    let org = org.ok_or_else(ApiError::not_found)?;
    Ok((StatusCode::CREATED, Json(described(&mut read, org).await?)))
}

/// Removes an organisation that has no nodes left.
#[utoipa::path(delete, path = "/v1/orgs/{org}", params(("org" = String, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(
    State(server): State<Server>,
    access: Access,
    Named(name): Named<Label>,
) -> Result<StatusCode, ApiError> {
    let mut change = server.change().await?;
    let org = org_named(change.connection(), &access, &name).await?;
    let nodes = storage::node::count_of(change.connection(), org.id).await?;
    if nodes > 0 {
        let message = format!("organisation `{name}` still has {nodes} nodes; remove them first");
        return Err(ApiError::new(ErrorCode::OrgNotEmpty, message));
    }
    let now = change.now();
    storage::org::delete(change.connection(), now, org.id).await?;
    storage::ssh::delete_authority(change.connection(), org.id).await?;
    storage::policy::delete_of(change.connection(), org.id).await?;
    storage::browser::delete_of_org(change.connection(), org.id).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "org_removed",
        subject: format!("org:{} {name}", org.id),
        org: Some(org.id),
    };
    server.commit(change, entry, Touched::Org(org.id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl Server {
    /// Adds an organisation with a random prefix that no other ever had (RFC 4193, 3.2.2).
    pub(crate) async fn insert_org(
        &self,
        change: &mut storage::Change,
        name: &Label,
    ) -> anyhow::Result<model::id::OrgId> {
        let now = change.now();
        let prefix = self.draw_prefix(change).await?;
        let org = storage::org::insert(change.connection(), now, name, prefix).await?;
        self.insert_ssh_authority(change, org).await?;
        let rule = policy::first_rule();
        storage::policy::insert(change.connection(), now, org, &rule).await?;
        Ok(org)
    }

    async fn draw_prefix(&self, change: &mut storage::Change) -> anyhow::Result<OrgPrefix> {
        for _ in 0..DRAWS_MAX {
            let mut global_id = [0; 5];
            self.inner.random.fill(&mut global_id);
            let prefix = OrgPrefix::new(global_id);
            if !storage::org::prefix_is_taken(change.connection(), prefix).await? {
                return Ok(prefix);
            }
        }
        anyhow::bail!("{DRAWS_MAX} random prefixes were all taken")
    }
}

async fn described(connection: &mut storage::Connection, org: Org) -> Result<api::Org, ApiError> {
    Ok(api::Org {
        id: org.id,
        nodes: storage::node::count_of(connection, org.id).await?,
        name: org.name,
        prefix: org.prefix,
        gateway: org.gateway,
        created: Timestamp(org.created),
    })
}
