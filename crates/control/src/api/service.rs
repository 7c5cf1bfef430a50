//! Services.

use axum::{Json, extract::State, http::StatusCode};
use model::{
    api::{self, ErrorBody, ErrorCode, ListQuery, NewService, Page},
    id::ServiceId,
};

use super::{
    error::ApiError,
    extract::{Asked, Body, Named},
    org_of_list, page, parse_endpoint,
    permission::{Access, Reach},
    rows_of_page,
};
use crate::{
    Server,
    storage::{self, Touched, audit::Entry, node::Part, service::Service},
};

/// Most services of one node.
const SERVICES_PER_NODE_MAX: usize = 64;

/// Lists the services that the asker may know.
#[utoipa::path(get, path = "/v1/services", params(ListQuery),
    responses((status = 200, body = Page<api::Service>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<api::Service>>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let org = org_of_list(&mut read, &access, query.org.as_ref()).await?;
    let (after, limit) = (query.after.unwrap_or(0), rows_of_page(query.limit));
    let name = query.name.as_ref();
    let services = storage::service::services(&mut read, org, name, after, limit).await?;
    let services = services
        .into_iter()
        .map(|service| described(&access, service));
    Ok(Json(page(services.collect(), query.limit, |service| {
        service.id.0
    })))
}

/// Shows a service.
#[utoipa::path(get, path = "/v1/services/{service}", params(("service" = i64, Path)),
    responses((status = 200, body = api::Service), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<ServiceId>,
) -> Result<Json<api::Service>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let service = storage::service::service(&mut read, id).await?;
    let service = service.ok_or_else(ApiError::not_found)?;
    access.reaches(Some(service.org), Some(service.node))?;
    Ok(Json(described(&access, service)))
}

/// Publishes a port of a node.
#[utoipa::path(post, path = "/v1/services", request_body = NewService,
    responses((status = 201, body = api::Service), (status = "4XX", body = ErrorBody)))]
pub(super) async fn add(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<NewService>,
) -> Result<(StatusCode, Json<api::Service>), ApiError> {
    let refuse = |code, message: String| Err(ApiError::new(code, message));
    let port = request.port;
    if port == 0 {
        return refuse(
            ErrorCode::MalformedRequest,
            "a port is 1 to 65535".to_owned(),
        );
    }
    let target = request
        .target
        .unwrap_or_else(|| format!("127.0.0.1:{port}"));
    parse_endpoint(&target)?;
    let mut change = server.change().await?;
    let id = match request.node {
        Some(id) => id,
        None => access.own()?.id,
    };
    let node = storage::node::node(change.connection(), id).await?;
    let node = node
        .filter(|node| node.removed.is_none())
        .ok_or_else(ApiError::not_found)?;
    access.reaches(node.org(), Some(id))?;
    let Part::Client { org, .. } = node.part else {
        let message = "a gateway offers no services".to_owned();
        return refuse(ErrorCode::MalformedRequest, message);
    };
    let others = storage::service::services_of_node(change.connection(), id).await?;
    if others.len() >= SERVICES_PER_NODE_MAX {
        let message = format!("a node offers at most {SERVICES_PER_NODE_MAX} services");
        return refuse(ErrorCode::LimitReached, message);
    }
    if others.iter().any(|other| other.name == request.name) {
        let message = format!("node `{}` offers `{}` already", node.name, request.name);
        return refuse(ErrorCode::NameTaken, message);
    }
    if let Some(other) = others.iter().find(|other| other.port == port) {
        let message = format!(
            "node `{}` offers `{}` at port {port}",
            node.name, other.name
        );
        return refuse(ErrorCode::PortTaken, message);
    }
    let (now, name) = (change.now(), &request.name);
    let connection = change.connection();
    let id = storage::service::insert(connection, now, id, name, port, &target).await?;
    let service = storage::service::service(connection, id).await?;
    let service = service.ok_or_else(ApiError::not_found)?;
    let entry = Entry {
        actor: access.actor(),
        action: "service_added",
        subject: format!("service:{id} {name} node:{}", service.node),
        org: Some(org),
    };
    server.commit(change, entry, Touched::Org(org)).await?;
    Ok((StatusCode::CREATED, Json(described(&access, service))))
}

/// Withdraws a service.
#[utoipa::path(delete, path = "/v1/services/{service}", params(("service" = i64, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<ServiceId>,
) -> Result<StatusCode, ApiError> {
    let mut change = server.change().await?;
    let service = storage::service::service(change.connection(), id).await?;
    let service = service.ok_or_else(ApiError::not_found)?;
    access.reaches(Some(service.org), Some(service.node))?;
    storage::service::delete(change.connection(), id).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "service_removed",
        subject: format!("service:{id} {} node:{}", service.name, service.node),
        org: Some(service.org),
    };
    let touched = Touched::Org(service.org);
    server.commit(change, entry, touched).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn described(access: &Access, service: Service) -> api::Service {
    let own = access
        .node
        .as_ref()
        .is_some_and(|node| node.id == service.node);
    let sees_target = own || access.reach == Reach::Everything;
    api::Service {
        id: service.id,
        name: service.name,
        org: service.org_name,
        node: service.node,
        node_name: service.node_name,
        port: service.port,
        target: sees_target.then_some(service.target),
    }
}
