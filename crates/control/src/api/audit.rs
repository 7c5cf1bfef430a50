//! The audit.

use axum::{Json, extract::State};
use model::api::{AuditChain, AuditEntry, AuditQuery, ErrorBody, ErrorCode, Page};

use super::{
    error::ApiError,
    extract::Asked,
    org_of_list, page,
    permission::{Access, Reach},
    rows_of_page,
};
use crate::{
    Server,
    storage::{self, audit::Filter},
};

/// Lists the changes, oldest first.
#[utoipa::path(get, path = "/v1/audit", params(AuditQuery),
    responses((status = 200, body = Page<AuditEntry>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<AuditQuery>,
) -> Result<Json<Page<AuditEntry>>, ApiError> {
    // No row holds it, and PostgreSQL fails at it.
    let texts = [&query.actor, &query.action];
    if texts.into_iter().flatten().any(|text| text.contains('\0')) {
        let message = "no actor and no action has a NUL in its name";
        return Err(ApiError::new(ErrorCode::MalformedRequest, message));
    }
    let mut read = server.inner.store.read().await?;
    let filter = Filter {
        org: org_of_list(&mut read, &access, query.org.as_ref()).await?,
        actor: query.actor,
        action: query.action,
        since: query.since,
        after: query.after.unwrap_or(0),
        limit: rows_of_page(query.limit),
    };
    let mut rows = storage::audit::rows(&mut read, &filter).await?;
    if access.reach != Reach::Everything {
        // The hash of a foreign row would let one guess what it says.
        rows.iter_mut().for_each(|row| row.link = None);
    }
    Ok(Json(page(rows, query.limit, |entry| entry.id)))
}

/// Shows the ends of the chain of all changes.
#[utoipa::path(get, path = "/v1/audit/chain",
    responses((status = 200, body = AuditChain), (status = "4XX", body = ErrorBody)))]
pub(super) async fn chain(
    State(server): State<Server>,
    _access: Access,
) -> Result<Json<AuditChain>, ApiError> {
    let mut read = server.inner.store.read().await?;
    Ok(Json(storage::audit::chain(&mut read).await?))
}
