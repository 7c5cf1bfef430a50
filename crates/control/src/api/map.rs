//! Maps for nodes and gateways, the look-up of a key that a gateway does not know yet, and how the
//! tunnels stand there.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::{Query, Request, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use model::{
    api::{
        ErrorBody, ErrorCode, MAP_WAIT_SECONDS_MAX, MapQuery, NodeByKey, TUNNELS_MAX, TunnelReport,
    },
    key::PublicKey,
    map::Told,
};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    error::ApiError,
    extract::{Asked, Body, Named},
    permission::Access,
};
use crate::{Server, map::Known};

/// Until when a request waits for another map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(pub(super) Instant);

impl Deadline {
    /// An answer is due at once.
    pub(super) fn now() -> Self {
        Self(sleep(Duration::ZERO).deadline())
    }
}

/// Returns until when a request for a map waits; `None` when it cannot be read.
pub(super) fn deadline(request: &Request) -> Option<Deadline> {
    let Query(query) = Query::<MapQuery>::try_from_uri(request.uri()).ok()?;
    let wait = query
        .wait
        .unwrap_or(MAP_WAIT_SECONDS_MAX)
        .min(MAP_WAIT_SECONDS_MAX);
    Some(Deadline(sleep(Duration::from_secs(wait)).deadline()))
}

/// Returns the asking node's map, or with `differences` what changed in it. With `after`, waits
/// until it is another than the asker's.
#[utoipa::path(get, path = "/v1/map", params(MapQuery),
    responses((status = 200, body = Object, description = "A network map."),
        (status = 204, description = "Nothing changed in time; ask again."),
        (status = 226, body = Object,
            description = "What changed after the asker's map (RFC 3229)."),
        (status = "4XX", body = ErrorBody)))]
pub(super) async fn map(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<MapQuery>,
    Extension(deadline): Extension<Deadline>,
) -> Result<Response, ApiError> {
    let node = access.own()?;
    let known = query.after.map(|serial| Known {
        serial,
        differences: query.differences,
    });
    let deadline = sleep_until(deadline.0);
    server.saw(node.id);
    Ok(
        match server.told(node.id, node.org(), known, deadline).await? {
            Told::Map(map) => Json(map).into_response(),
            Told::Difference(difference) => (StatusCode::IM_USED, Json(difference)).into_response(),
            Told::Same => StatusCode::NO_CONTENT.into_response(),
            Told::Removed => {
                let message = "this node was removed";
                return Err(ApiError::new(ErrorCode::NodeRemoved, message));
            }
        },
    )
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

/// Takes how the tunnels of nodes stand at the asking gateway.
#[utoipa::path(post, path = "/v1/tunnels", request_body = TunnelReport,
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn report_tunnels(
    State(server): State<Server>,
    access: Access,
    Body(report): Body<TunnelReport>,
) -> Result<StatusCode, ApiError> {
    access.own()?;
    if report.tunnels.len() > TUNNELS_MAX {
        let message = format!("a report has at most {TUNNELS_MAX} tunnels");
        return Err(ApiError::new(ErrorCode::LimitReached, message));
    }
    server.report_tunnels(&report);
    Ok(StatusCode::NO_CONTENT)
}

/// More than [`TUNNELS_MAX`] tunnels are in JSON.
pub(super) const REPORT_BYTES_MAX: usize = TUNNELS_MAX * 256;
