//! People, and for whom a token speaks.

use axum::{Json, extract::State};
use model::api::{self, ErrorBody, ListQuery, Page, Timestamp, WhoAmI};

use super::{error::ApiError, extract::Asked, page, permission::Access, rows_of_page};
use crate::{
    Server,
    storage::{self, node::Node},
};

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
    let user = match token.user {
        Some(id) => storage::user::user(&mut read, id).await?,
        None => None,
    };
    Ok(Json(WhoAmI {
        kind: token.kind,
        org: org.map(|org| org.name),
        node: token.node,
        node_name: access.node.as_ref().map(|node| node.name.clone()),
        user: token.user,
        user_name: user.map(|user| user.name),
        expires: token.expires.map(Timestamp),
    }))
}

/// Lists the people.
#[utoipa::path(get, path = "/v1/users", params(ListQuery),
    responses((status = 200, body = Page<api::User>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(server): State<Server>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<api::User>>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let (after, limit) = (query.after.unwrap_or(0), rows_of_page(query.limit));
    let users = storage::user::users(&mut read, after, limit).await?;
    let users = users.into_iter().map(|user| api::User {
        id: user.id,
        name: user.name,
        created: Timestamp(user.created),
    });
    Ok(Json(page(users.collect(), query.limit, |user| user.id.0)))
}
