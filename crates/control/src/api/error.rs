//! Errors of the API: a code and a message for the asker, a cause for the log.

use std::sync::Arc;

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use model::api::{ErrorBody, ErrorCode};

use crate::storage;

/// Why a request was refused or failed.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    /// Logged with the request id and never sent.
    cause: Option<Arc<anyhow::Error>>,
}

impl ApiError {
    /// Refuses with a sentence for the asker.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            cause: None,
        }
    }

    /// Refuses without telling whether the thing exists.
    pub(crate) fn not_found() -> Self {
        Self::new(ErrorCode::NotFound, "there is no such thing")
    }

    /// Fails for a reason that only the log names.
    pub(crate) fn internal(cause: anyhow::Error) -> Self {
        Self {
            code: ErrorCode::Internal,
            message: "the server failed; its log has the reason under the request id".to_owned(),
            cause: Some(Arc::new(cause)),
        }
    }

    /// Fails for a reason that may lie in the database, which is then named.
    pub(crate) fn failed(cause: anyhow::Error) -> Self {
        match cause.downcast::<storage::Error>() {
            Ok(error) => error.into(),
            Err(cause) => Self::internal(cause),
        }
    }

    /// Fails because there is too much to do.
    pub(crate) fn unavailable(cause: Option<anyhow::Error>) -> Self {
        Self {
            code: ErrorCode::Unavailable,
            message: "the server is busy; try again in some seconds".to_owned(),
            cause: cause.map(Arc::new),
        }
    }

    /// Fails because the database does not answer, or because its disk fails.
    pub(crate) fn storage_failed(message: &str, cause: Option<anyhow::Error>) -> Self {
        Self {
            code: ErrorCode::StorageFailed,
            message: message.to_owned(),
            cause: cause.map(Arc::new),
        }
    }

    /// Tells whether the fault is the server's: the same request may succeed later.
    pub(crate) fn is_of_server(&self) -> bool {
        self.code.status() >= 500
    }

    /// Writes the reply and the log.
    pub(crate) fn respond(&self, request_id: &str) -> Response {
        let body = self.log(request_id);
        let status = StatusCode::from_u16(self.code.status()).expect("codes have valid statuses");
        (status, Json(body)).into_response()
    }

    /// Writes the log, and returns what the asker is told.
    pub(crate) fn log(&self, request_id: &str) -> ErrorBody {
        if let Some(cause) = &self.cause {
            let error = format!("{cause:#}");
            if self.code == ErrorCode::Unavailable {
                tracing::warn!(request_id, error, "a request waited too long");
            } else {
                tracing::error!(request_id, error, "a request failed");
            }
        }
        ErrorBody {
            code: self.code,
            message: self.message.clone(),
            request_id: request_id.to_owned(),
        }
    }
}

/// Hands the error to the layer that knows the request id.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<storage::Error> for ApiError {
    fn from(error: storage::Error) -> Self {
        match error {
            storage::Error::Busy(_) => Self::unavailable(Some(error.into())),
            storage::Error::Silent => Self::storage_failed(SILENT, None),
            storage::Error::Away(_) => Self::storage_failed(SILENT, Some(error.into())),
            storage::Error::Disk(_) => Self::storage_failed(
                "the disk of the server's database fails or takes no writes",
                Some(error.into()),
            ),
            storage::Error::Full(_) => Self {
                code: ErrorCode::StorageFull,
                message: "the disk of the server's database is full; nothing was changed"
                    .to_owned(),
                cause: Some(Arc::new(error.into())),
            },
            storage::Error::Corrupt(_) | storage::Error::Failed(_) => Self::internal(error.into()),
        }
    }
}

/// What is said while the database is away.
const SILENT: &str = "the server's database does not answer";
