//! Maps for nodes and gateways, and the look-up of a key that a gateway does not know yet.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use model::{
    api::{ErrorBody, ErrorCode, MAP_WAIT_SECONDS_MAX, MapQuery, NodeByKey},
    key::PublicKey,
};
use tokio::time::sleep;

use super::{
    error::ApiError,
    extract::{Asked, Named},
    permission::Access,
};
use crate::Server;

/// Returns the asking node's map. With `after`, waits until it is another than the asker's.
#[utoipa::path(get, path = "/v1/map", params(MapQuery),
    responses((status = 200, body = Object, description = "A network map."),
        (status = 204, description = "Nothing changed in time; ask again."),
        (status = "4XX", body = ErrorBody)))]
pub(super) async fn map(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<MapQuery>,
) -> Result<Response, ApiError> {
    let node = access.own()?;
    let mut changes = server.inner.publisher.subscribe(node.org());
    let mut stopping = server.inner.stopping.subscribe();
    let wait = query
        .wait
        .unwrap_or(MAP_WAIT_SECONDS_MAX)
        .min(MAP_WAIT_SECONDS_MAX);
    let mut deadline = std::pin::pin!(sleep(Duration::from_secs(wait)));
    let removed = || ApiError::new(ErrorCode::NodeRemoved, "this node was removed");
    server.saw(node.id);
    loop {
        // Whatever is published from here on wakes the wait below.
        changes.borrow_and_update();
        let mut read = server.inner.store.read().await?;
        let serial = server.inner.maps.serial(&mut read, node.id).await?;
        // Another serial, not only a later one: a restored backup may have gone back.
        if query.after != Some(serial.ok_or_else(removed)?) {
            let map = server.map_from(&mut read, node.id).await?;
            return Ok(Json(map.ok_or_else(removed)?).into_response());
        }
        drop(read);
        let changed = tokio::select! {
            changed = changes.changed() => changed.is_ok(),
            () = &mut deadline => false,
            _ = stopping.wait_for(|stopping| *stopping) => false,
        };
        if !changed {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
    }
}

/// Returns the client of a public key, for a gateway that met the key in a handshake.
#[utoipa::path(get, path = "/v1/nodes/by-key/{key}",
    params(("key" = String, Path, description = "The key in base64, percent-encoded.")),
    responses((status = 200, body = NodeByKey), (status = "4XX", body = ErrorBody)))]
pub(super) async fn node_by_key(
    State(server): State<Server>,
    access: Access,
    Named(key): Named<PublicKey>,
) -> Result<Json<NodeByKey>, ApiError> {
    access.own()?;
    let found = server.node_with_key(key).await?;
    found.map(Json).ok_or_else(ApiError::not_found)
}
