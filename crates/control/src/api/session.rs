//! Recorded sessions: nodes write them, whoever may reads them, and that too is in the audit.

use axum::{Json, extract::State, http::StatusCode};
use model::{
    api::{ErrorBody, ErrorCode, ListQuery, Page, Timestamp},
    id::SessionId,
    ssh::{
        BegunSession, NewSession, PIECE_BYTES_MAX, PIECES_MAX, Piece, RECORD_BYTES_MAX, Session,
        SessionEnd,
    },
};

use super::{
    error::ApiError,
    extract::{Asked, Body, Named},
    org_of_list, page,
    permission::Access,
    rows_of_page,
};
use crate::{
    Server,
    storage::{self, Change, Touched, audit::Entry},
};

/// A piece as JSON: each of its bytes may need two.
pub(super) const BODY_BYTES_MAX: usize = 2 * PIECE_BYTES_MAX + 1_024;

/// Bytes of all records of one organisation; at the bound no further session can be recorded.
const ORG_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// Recorded sessions of one organisation; at the bound no further session can be recorded.
const ORG_SESSIONS_MAX: u64 = 1_000_000;

/// Begins the record of a session at the asking node.
#[utoipa::path(post, path = "/v1/ssh/sessions", request_body = NewSession,
    responses((status = 201, body = BegunSession), (status = "4XX", body = ErrorBody)))]
pub(super) async fn begin(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<NewSession>,
) -> Result<(StatusCode, Json<BegunSession>), ApiError> {
    let node = access.own()?;
    let org = node.org().ok_or_else(ApiError::not_found)?;
    let mut change = server.change().await?;
    let (sessions, bytes) = storage::session::size(change.connection(), org).await?;
    if sessions >= ORG_SESSIONS_MAX || bytes >= ORG_BYTES_MAX {
        let message = "the records of this organisation are full; remove old ones";
        return Err(ApiError::new(ErrorCode::LimitReached, message));
    }
    let now = change.now();
    let at = (node.id, &node.name);
    let id = storage::session::insert(change.connection(), now, org, at, &request).await?;
    let id = id.ok_or_else(|| {
        let message = format!("there is no certificate {} here", request.serial);
        ApiError::new(ErrorCode::NotFound, message)
    })?;
    let entry = Entry {
        actor: access.actor(),
        action: "ssh_session_begun",
        subject: format!(
            "session:{id} account:{} serial:{} source:{}",
            request.account, request.serial, request.source
        ),
        org: Some(org),
    };
    server.commit(change, entry, Touched::Nobody).await?;
    Ok((StatusCode::CREATED, Json(BegunSession { id })))
}

/// Appends a piece to the record of a session at the asking node.
#[utoipa::path(post, path = "/v1/ssh/sessions/{session}/pieces", request_body = Piece,
    params(("session" = i64, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn append(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<SessionId>,
    Body(request): Body<Piece>,
) -> Result<StatusCode, ApiError> {
    let mut change = server.change().await?;
    let session = open(&mut change, &access, id).await?;
    let length = u64::try_from(request.text.len()).unwrap_or(u64::MAX);
    if request.number < session.pieces {
        return Ok(StatusCode::NO_CONTENT);
    }
    if request.number > session.pieces || request.text.len() > PIECE_BYTES_MAX {
        let message = format!(
            "the next piece has number {} and at most {PIECE_BYTES_MAX} bytes",
            session.pieces
        );
        return Err(ApiError::new(ErrorCode::MalformedRequest, message));
    }
    if session.bytes.saturating_add(length) > RECORD_BYTES_MAX {
        let message = format!("a record has at most {RECORD_BYTES_MAX} bytes");
        return Err(ApiError::new(ErrorCode::LimitReached, message));
    }
    storage::session::insert_piece(change.connection(), id, &request).await?;
    change.commit_unaudited().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends the record of a session at the asking node.
#[utoipa::path(post, path = "/v1/ssh/sessions/{session}/end", request_body = SessionEnd,
    params(("session" = i64, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn end(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<SessionId>,
    Body(request): Body<SessionEnd>,
) -> Result<StatusCode, ApiError> {
    let mut change = server.change().await?;
    open(&mut change, &access, id).await?;
    let now = change.now();
    storage::session::update_end(change.connection(), now, id, request).await?;
    change.commit_unaudited().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists recorded sessions, oldest first.
#[utoipa::path(get, path = "/v1/ssh/sessions", params(ListQuery),
    responses((status = 200, body = Page<Session>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<Session>>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let org = org_of_list(&mut read, &access, query.org.as_ref()).await?;
    let (after, limit) = (query.after.unwrap_or(0), rows_of_page(query.limit));
    let rows = storage::session::sessions(&mut read, org, after, limit).await?;
    let items = rows.into_iter().map(described).collect();
    Ok(Json(page(items, query.limit, |session: &Session| {
        session.id.0
    })))
}

/// Shows a recorded session without its record.
#[utoipa::path(get, path = "/v1/ssh/sessions/{session}", params(("session" = i64, Path)),
    responses((status = 200, body = Session), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<SessionId>,
) -> Result<Json<Session>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let session = storage::session::session(&mut read, id).await?;
    let session = session.ok_or_else(ApiError::not_found)?;
    access.reaches(Some(session.org), None)?;
    Ok(Json(described(session)))
}

/// Reads pieces of a record; `after` is the number before the first. Each request is audited.
#[utoipa::path(get, path = "/v1/ssh/sessions/{session}/pieces",
    params(("session" = i64, Path), ListQuery),
    responses((status = 200, body = Page<Piece>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn read(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<SessionId>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<Piece>>, ApiError> {
    let mut change = server.change().await?;
    let session = storage::session::session(change.connection(), id).await?;
    let session = session.ok_or_else(ApiError::not_found)?;
    access.reaches(Some(session.org), None)?;
    let first = query.after.map_or(0, |after| after.saturating_add(1));
    let connection = change.connection();
    let items = storage::session::pieces(connection, id, first, PIECES_MAX).await?;
    let last = items.last().map(|piece| piece.number);
    let next = last.filter(|last| last.saturating_add(1) < session.pieces);
    let entry = Entry {
        actor: access.actor(),
        action: "ssh_session_read",
        subject: format!("session:{id} from:{first}"),
        org: Some(session.org),
    };
    server.commit(change, entry, Touched::Nobody).await?;
    let next = next.map(i64::from);
    Ok(Json(Page { items, next }))
}

/// Removes a recorded session.
#[utoipa::path(delete, path = "/v1/ssh/sessions/{session}", params(("session" = i64, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<SessionId>,
) -> Result<StatusCode, ApiError> {
    let mut change = server.change().await?;
    let session = storage::session::session(change.connection(), id).await?;
    let session = session.ok_or_else(ApiError::not_found)?;
    access.reaches(Some(session.org), None)?;
    storage::session::delete(change.connection(), id).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "ssh_session_removed",
        subject: format!(
            "session:{id} {} account:{}",
            session.node_name, session.account
        ),
        org: Some(session.org),
    };
    server.commit(change, entry, Touched::Nobody).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Returns a session of the asking node that has not ended.
async fn open(
    change: &mut Change,
    access: &Access,
    id: SessionId,
) -> Result<storage::session::Session, ApiError> {
    let session = storage::session::session(change.connection(), id).await?;
    let session = session.ok_or_else(ApiError::not_found)?;
    access.reaches(None, Some(session.node))?;
    if session.ended.is_some() {
        let message = "the session has ended";
        return Err(ApiError::new(ErrorCode::MalformedRequest, message));
    }
    Ok(session)
}

fn described(row: storage::session::Session) -> Session {
    Session {
        id: row.id,
        org: row.org_name,
        node: row.node,
        node_name: row.node_name,
        user: row.user,
        user_name: row.user_name,
        serial: row.serial,
        account: row.account,
        source: row.source,
        terminal: row.terminal,
        command: row.command,
        begun: Timestamp(row.begun),
        ended: row.ended.map(Timestamp),
        status: row.status,
        bytes: row.bytes,
    }
}
