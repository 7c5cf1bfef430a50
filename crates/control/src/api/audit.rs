//! The audit.

use axum::{Json, extract::State};
use model::api::{AuditEntry, ErrorBody, ListQuery, Page, Timestamp};

use super::{error::ApiError, extract::Asked, org_of_list, page, permission::Access, rows_of_page};
use crate::{Server, storage};

/// Lists the changes, oldest first.
#[utoipa::path(get, path = "/v1/audit", params(ListQuery),
    responses((status = 200, body = Page<AuditEntry>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<AuditEntry>>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let org = org_of_list(&mut read, &access, query.org.as_ref()).await?;
    let (after, limit) = (query.after.unwrap_or(0), rows_of_page(query.limit));
    let rows = storage::audit::rows(&mut read, org, after, limit).await?;
    let entries = rows.into_iter().map(|row| AuditEntry {
        id: row.id,
        time: Timestamp(row.time),
        actor: row.actor,
        action: row.action,
        subject: row.subject,
        org: row.org_name,
    });
    Ok(Json(page(entries.collect(), query.limit, |entry| entry.id)))
}
