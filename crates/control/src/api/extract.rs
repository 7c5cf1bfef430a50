//! Parts of a request, parsed into types or refused with a sentence.

use axum::{
    extract::{
        FromRequest, FromRequestParts, Path, Query, Request,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::{StatusCode, request::Parts},
};
use model::api::ErrorCode;
use serde::de::DeserializeOwned;

use super::{error::ApiError, permission::Access};

/// The body, parsed from JSON.
pub(crate) struct Body<T>(pub(crate) T);

/// The query, parsed.
pub(crate) struct Asked<T>(pub(crate) T);

/// The variable part of the path, parsed.
pub(crate) struct Named<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let parsed: Result<axum::Json<T>, JsonRejection> =
            axum::Json::from_request(request, state).await;
        parsed.map(|json| Self(json.0)).map_err(|rejection| {
            let code = match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => ErrorCode::TooLarge,
                _ => ErrorCode::MalformedRequest,
            };
            ApiError::new(code, rejection.body_text())
        })
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let parsed: Result<Query<T>, QueryRejection> =
            Query::from_request_parts(parts, state).await;
        parsed
            .map(|query| Self(query.0))
            .map_err(|rejection| ApiError::new(ErrorCode::MalformedRequest, rejection.body_text()))
    }
}

/// A path that cannot name a thing names none: 404.
impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let parsed: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        parsed
            .map(|path| Self(path.0))
            .map_err(|_| ApiError::not_found())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Access {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let access = parts.extensions.get::<Self>().cloned();
        access.ok_or_else(|| ApiError::internal(anyhow::anyhow!("a route has no rule")))
    }
}
