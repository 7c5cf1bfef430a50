//! What anybody may ask: is it alive, and what can it be asked.

use axum::{Extension, Json, extract::State, http::header, response::IntoResponse};
use model::api::{Health, Timestamp};

use super::Described;
use crate::Server;

/// Tells that the server is alive.
#[utoipa::path(get, path = "/v1/health", responses((status = 200, body = Health)))]
pub(super) async fn health(State(server): State<Server>) -> Json<Health> {
    Json(Health {
        status: "ok".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time: Some(Timestamp(server.now())),
    })
}

/// Describes the API in OpenAPI 3.1.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, body = Object)))]
pub(super) async fn description(Extension(described): Extension<Described>) -> impl IntoResponse {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, described.0.to_string())
}
