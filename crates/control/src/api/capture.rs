//! Captures of nodes elsewhere: whoever may begins one and reads it, and its node sends it.

use std::sync::Arc;

use axum::{
    Json,
    body::{Body as HttpBody, Bytes},
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use http_body_util::StreamBody;
use model::{
    api::{
        AskedCapture, CAPTURE_BYTES_MAX, CAPTURE_END_TRAILER, CAPTURE_ID_HEADER,
        CAPTURE_SECONDS_MAX, CaptureEnd, ErrorBody, ErrorCode, NewCapture, SentBlocks,
    },
    id::{CaptureId, NodeId, TokenId},
    map::Role,
};

use super::{
    error::ApiError,
    extract::{Body, Named},
    permission::{Access, Action, Reach},
    person_of, usable_node,
};
use crate::{
    Server,
    capture::{Permitted, Refusal, Running, Watch},
    storage::{self, Touched, audit::Actor, audit::Entry},
};

/// Captures what passes a node.
#[utoipa::path(post, path = "/v1/nodes/{node}/capture", params(("node" = i64, Path)),
    request_body = NewCapture,
    responses((status = 200, description = "The capture file (pcapng), as it comes."),
        (status = "4XX", body = ErrorBody)))]
pub(super) async fn begin(
    State(server): State<Server>,
    access: Access,
    Named(node): Named<NodeId>,
    Body(request): Body<NewCapture>,
) -> Result<Response, ApiError> {
    capture(server, access, node, request, Action::CaptureNode).await
}

/// Captures what passes a node, with the keys that open its datagrams.
#[utoipa::path(post, path = "/v1/nodes/{node}/capture/keys", params(("node" = i64, Path)),
    request_body = NewCapture,
    responses((status = 200, description = "The capture file (pcapng), as it comes."),
        (status = "4XX", body = ErrorBody)))]
pub(super) async fn begin_with_keys(
    State(server): State<Server>,
    access: Access,
    Named(node): Named<NodeId>,
    Body(request): Body<NewCapture>,
) -> Result<Response, ApiError> {
    capture(server, access, node, request, Action::CaptureKeys).await
}

/// Takes blocks of a capture of the asking node.
#[utoipa::path(post, path = "/v1/captures/{capture}/blocks", params(("capture" = i64, Path)),
    request_body(content = [u8], content_type = "application/octet-stream"),
    responses((status = 200, body = SentBlocks), (status = "4XX", body = ErrorBody)))]
pub(super) async fn send(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<CaptureId>,
    blocks: Bytes,
) -> Result<Json<SentBlocks>, ApiError> {
    let running = running(&server, &access, id)?;
    Ok(Json(running.send(blocks).await))
}

/// Ends a capture.
#[utoipa::path(post, path = "/v1/captures/{capture}/end", params(("capture" = i64, Path)),
    request_body = CaptureEnd,
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn end(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<CaptureId>,
    Body(request): Body<CaptureEnd>,
) -> Result<StatusCode, ApiError> {
    let running = running(&server, &access, id)?;
    match access.reach {
        Reach::OwnNode => running.ended(request),
        Reach::Nothing | Reach::OwnOrg | Reach::Everything => running.ask_for_end(),
    }
    Ok(StatusCode::NO_CONTENT)
}

fn running(server: &Server, access: &Access, id: CaptureId) -> Result<Arc<Running>, ApiError> {
    let running = server.inner.captures.running(id);
    let running = running.ok_or_else(ApiError::not_found)?;
    access.reaches(running.org, Some(running.node))?;
    Ok(running)
}

async fn capture(
    server: Server,
    access: Access,
    id: NodeId,
    request: NewCapture,
    action: Action,
) -> Result<Response, ApiError> {
    let keys = action == Action::CaptureKeys;
    let token = access.token()?.id;
    let mut change = server.change().await?;
    let node = storage::node::node(change.connection(), id).await?;
    let node = node
        .filter(|node| node.removed.is_none())
        .ok_or_else(ApiError::not_found)?;
    access.reaches(node.org(), Some(id))?;
    if keys && node.role() == Role::Gateway {
        let message = "the key of a gateway is not replaced by itself, so none is given away";
        return Err(ApiError::new(ErrorCode::MalformedRequest, message));
    }
    let bounds = bounds(&request)?;
    let asked = AskedCapture {
        id: server.draw_capture_id(),
        by: access
            .user
            .as_ref()
            .map_or_else(|| "the server".to_owned(), |user| user.name.to_string()),
        keys,
        wanted: request,
    };
    let subject = format!("capture:{} node:{id} {}", asked.id, node.name);
    let entry = Entry {
        actor: access.actor(),
        action: "capture_begun",
        subject: format!("{subject} {}", described(&asked)),
        org: node.org(),
    };
    let touched = node.org().map_or(Touched::Everybody, Touched::Org);
    let (running, file) = server
        .inner
        .captures
        .begin((id, node.org()), asked, bounds)
        .map_err(refused)?;
    let id = running.asked.id;
    if let Err(error) = server.commit(change, entry, touched).await {
        server.inner.captures.remove(id);
        return Err(error);
    }
    tokio::spawn(watch(server, running, subject, (action, token)));
    let headers = [
        (HeaderName::from_static(CAPTURE_ID_HEADER), number(id)),
        (header::CONTENT_TYPE, HeaderValue::from_static(PCAPNG)),
        (
            header::TRAILER,
            HeaderValue::from_static(CAPTURE_END_TRAILER),
        ),
    ];
    let body = HttpBody::new(StreamBody::new(file.frames()));
    Ok((headers, body).into_response())
}

/// The words of an audit row that say of which capture, which node and what name it had; names have
/// no spaces.
const SUBJECT_WORDS: usize = 3;

/// The media type that is usual for pcapng; it is not registered.
const PCAPNG: &str = "application/x-pcapng";

fn number(id: CaptureId) -> HeaderValue {
    HeaderValue::from(id.0)
}

/// Returns the most bytes and seconds.
fn bounds(request: &NewCapture) -> Result<(u64, u64), ApiError> {
    let (bytes_max, seconds_max) = (
        request.bytes_max.unwrap_or(CAPTURE_BYTES_MAX),
        request.seconds_max.unwrap_or(CAPTURE_SECONDS_MAX),
    );
    if bytes_max > CAPTURE_BYTES_MAX || seconds_max > CAPTURE_SECONDS_MAX {
        let message = format!(
            "a capture elsewhere has at most {CAPTURE_BYTES_MAX} bytes and \
             {CAPTURE_SECONDS_MAX} seconds"
        );
        return Err(ApiError::new(ErrorCode::MalformedRequest, message));
    }
    Ok((bytes_max, seconds_max))
}

fn refused(refusal: Refusal) -> ApiError {
    let message = match refusal {
        Refusal::Taken => "a capture of this node runs already",
        Refusal::Full => "as many captures run as the server passes on at once",
    };
    ApiError::new(ErrorCode::LimitReached, message)
}

/// Says in the audit what is wanted.
fn described(asked: &AskedCapture) -> String {
    let interface = match (asked.wanted.inner, asked.wanted.outer) {
        (true, true) => "both",
        (false, true) => "outer",
        (true | false, false) => "inner",
    };
    let filter = asked.wanted.filter.as_deref().unwrap_or("-");
    let keys = asked.keys;
    format!("interface:{interface} keys:{keys} filter:{filter}")
}

/// Watches over a capture to its end, which the audit then tells.
async fn watch(
    server: Server,
    running: Arc<Running>,
    subject: String,
    (action, token): (Action, TokenId),
) {
    let stopping = server.inner.stopping.subscribe();
    let mut watch = Watch::new(Arc::clone(&running), stopping);
    let end = loop {
        if let Some(end) = watch.wait().await {
            break end;
        }
        watch.look(permitted(&server, action, token, running.node).await);
    };
    let entry = Entry {
        actor: Actor::Server,
        action: "capture_ended",
        subject: format!("{subject} bytes:{} end:{}", running.bytes(), end.name()),
        org: running.org,
    };
    let told = async {
        let change = server.change().await?;
        server.commit(change, entry, Touched::Nobody).await
    };
    if let Err(error) = told.await {
        tracing::error!(
            subject,
            error = error.message,
            "the end of a capture is not in the audit"
        );
    }
    server.inner.captures.remove(running.asked.id);
}

/// Tells whether a token still permits a capture of a node.
async fn permitted(server: &Server, action: Action, token: TokenId, node: NodeId) -> Permitted {
    match still_reaches(server, action, token, node).await {
        Ok(()) => Permitted::Yes,
        Err(error) if error.is_of_server() => Permitted::Unknown,
        Err(_) => Permitted::No,
    }
}

async fn still_reaches(
    server: &Server,
    action: Action,
    token: TokenId,
    node: NodeId,
) -> Result<(), ApiError> {
    let mut read = server.inner.store.read().await?;
    let row = storage::token::token(&mut read, token).await?;
    let row = row.ok_or_else(ApiError::not_found)?;
    let own = usable_node(&mut read, &row, action, server.now()).await?;
    let user = person_of(&mut read, &row).await?;
    let access = Access::new(action, Some(row), own, user)?;
    let target = storage::node::node(&mut read, node).await?;
    let target = target
        .filter(|target| target.removed.is_none())
        .ok_or_else(ApiError::not_found)?;
    access.reaches(target.org(), Some(target.id))
}

impl Server {
    /// Tells the end of captures that ran when the server last went down without telling it. Beside
    /// other servers it tells nothing: what is open may run at one of them.
    pub(crate) async fn end_open_captures(&self) -> Result<(), storage::Error> {
        if !self.inner.store.is_alone().await? {
            return Ok(());
        }
        let mut read = self.inner.store.read().await?;
        let open = storage::audit::open_captures(&mut read).await?;
        drop(read);
        for (begun, org) in open {
            let subject: Vec<_> = begun.split(' ').take(SUBJECT_WORDS).collect();
            let entry = Entry {
                actor: Actor::Server,
                action: "capture_ended",
                subject: format!("{} bytes:- end:server_stopped", subject.join(" ")),
                org,
            };
            self.change().await?.commit(entry, Touched::Nobody).await?;
        }
        Ok(())
    }

    /// Draws the number of a capture: nobody keeps it, so a node must not mistake it for one of
    /// before a restart. JSON numbers are whole up to 53 bits (RFC 8259, 6).
    fn draw_capture_id(&self) -> CaptureId {
        let mut bytes = [0; 8];
        self.inner.random.fill(&mut bytes);
        let number = u64::from_be_bytes(bytes) >> 11;
        CaptureId(i64::try_from(number).expect("53 bits fit"))
    }
}
