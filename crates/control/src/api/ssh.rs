//! SSH certificates: signing them, taking them back, the keys that sign.

use axum::{Extension, Json, extract::State, http::StatusCode};
use model::{
    api::{ErrorBody, ErrorCode, ListQuery, Page, Timestamp},
    name::ZONE,
    policy::Role,
    ssh::{
        AuthorityQuery, AuthorityView, BACKDATE_SECONDS, CUT_MAX, Certificate, CertificateKind,
        HOST_TTL_SECONDS, HostCertificateRequest, IssuedCertificate, NewRecording, Principal,
        REVOKED_MAX, Reason, RefusedLogin, Revocation, Revoked, Rotation, TrustedKey,
        USER_TTL_SECONDS_DEFAULT, USER_TTL_SECONDS_MAX, USER_TTL_SECONDS_MIN,
        UserCertificateRequest,
    },
};

use super::{
    RequestId,
    error::ApiError,
    extract::{Asked, Body},
    org_of_list, org_or_own, page,
    permission::{self, Access},
    rows_of_page,
};
use crate::{
    REPORTS_PER_MINUTE_MAX, Server,
    ssh::RotationRefused,
    storage::{
        self, Change, Touched,
        audit::Entry,
        node::{Node, Part},
        org::Org,
        ssh::{Content, Selection, Usage},
        user::User,
    },
};

/// Most certificates of one node that have not ended, so that a stolen token cannot fill the disk.
const CERTIFICATES_PER_NODE_MAX: u32 = 1_000;

/// Signs a certificate for the person who has signed in, to be used from the person's device.
#[utoipa::path(post, path = "/v1/ssh/user-certificate", request_body = UserCertificateRequest,
    responses((status = 200, body = IssuedCertificate), (status = "4XX", body = ErrorBody)))]
pub(super) async fn user_certificate(
    State(server): State<Server>,
    access: Access,
    Extension(request_id): Extension<RequestId>,
    Body(request): Body<UserCertificateRequest>,
) -> Result<Json<IssuedCertificate>, ApiError> {
    match sign_user(&server, &access, &request_id, &request).await {
        Ok(issued) => Ok(Json(issued)),
        Err(error) => Err(refused(&server, &access, error).await),
    }
}

/// Signs a certificate for the asking node's host key.
#[utoipa::path(post, path = "/v1/ssh/host-certificate", request_body = HostCertificateRequest,
    responses((status = 200, body = IssuedCertificate), (status = "4XX", body = ErrorBody)))]
pub(super) async fn host_certificate(
    State(server): State<Server>,
    access: Access,
    Extension(request_id): Extension<RequestId>,
    Body(request): Body<HostCertificateRequest>,
) -> Result<Json<IssuedCertificate>, ApiError> {
    match sign_host(&server, &access, &request_id, &request).await {
        Ok(issued) => Ok(Json(issued)),
        Err(error) => Err(refused(&server, &access, error).await),
    }
}

/// Lists certificates, oldest first, those that ended within the last 30 days too.
#[utoipa::path(get, path = "/v1/ssh/certificates", params(ListQuery),
    responses((status = 200, body = Page<Certificate>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn certificates(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<Certificate>>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let org = org_of_list(&mut read, &access, query.org.as_ref()).await?;
    let (after, limit) = (query.after.unwrap_or(0), rows_of_page(query.limit));
    let rows = storage::ssh::certificates(&mut read, org, after, limit).await?;
    let items = rows.into_iter().map(described);
    Ok(Json(page(items.collect(), query.limit, |certificate| {
        i64::try_from(certificate.serial.0).unwrap_or(i64::MAX)
    })))
}

/// Shows the keys that an organisation trusts.
#[utoipa::path(get, path = "/v1/ssh/authority", params(AuthorityQuery),
    responses((status = 200, body = AuthorityView), (status = "4XX", body = ErrorBody)))]
pub(super) async fn authority(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<AuthorityQuery>,
) -> Result<Json<AuthorityView>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let org = org_or_own(&mut read, &access, query.org.as_ref()).await?;
    Ok(Json(view(&mut read, server.now(), org).await?))
}

/// Takes the next step of a rotation.
#[utoipa::path(post, path = "/v1/ssh/rotation", request_body = Rotation,
    responses((status = 200, body = AuthorityView), (status = "4XX", body = ErrorBody)))]
pub(super) async fn rotate(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<Rotation>,
) -> Result<Json<AuthorityView>, ApiError> {
    let mut change = server.change().await?;
    let org = org_or_own(change.connection(), &access, request.org.as_ref()).await?;
    let rotated = server
        .rotate_ssh_keys(&mut change, org.id, request.now)
        .await;
    let action = rotated?;
    let view = view(change.connection(), server.now(), org.clone()).await?;
    let entry = Entry {
        actor: access.actor(),
        action,
        subject: format!("org:{} {} version:{}", org.id, org.name, view.version),
        org: Some(org.id),
    };
    server.commit(change, entry, Touched::Org(org.id)).await?;
    Ok(Json(view))
}

/// Takes certificates back that have not ended.
#[utoipa::path(post, path = "/v1/ssh/revocations", request_body = Revocation,
    responses((status = 200, body = Revoked), (status = "4XX", body = ErrorBody)))]
pub(super) async fn revoke(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<Revocation>,
) -> Result<Json<Revoked>, ApiError> {
    let (selection, subject) = match request {
        Revocation::Serial(serial) => (Selection::Serial(serial), format!("serial:{serial}")),
        Revocation::User(user) => (Selection::User(user), format!("user:{user}")),
        Revocation::Node(node) => (Selection::Node(node), format!("node:{node}")),
    };
    let mut change = server.change().await?;
    let mut orgs = revoke_in(&mut change, selection).await?;
    let certificates = u32::try_from(orgs.len()).unwrap_or(u32::MAX);
    orgs.extend(cut_off(&mut change, selection).await?);
    for org in &orgs {
        access.reaches(Some(*org), None)?;
    }
    if orgs.is_empty() {
        if let Selection::Serial(serial) = selection {
            let message = format!("there is no certificate {serial} that could be revoked");
            return Err(ApiError::new(ErrorCode::NotFound, message));
        }
        return Ok(Json(Revoked { certificates }));
    }
    let org = orgs
        .first()
        .copied()
        .filter(|first| orgs.iter().all(|org| org == first));
    let entry = Entry {
        actor: access.actor(),
        action: "ssh_certificates_revoked",
        subject: format!("{subject} certificates:{certificates}"),
        org,
    };
    let touched = org.map_or(Touched::Everybody, Touched::Org);
    server.commit(change, entry, touched).await?;
    Ok(Json(Revoked { certificates }))
}

/// Says which sessions the nodes of an organisation must record.
#[utoipa::path(put, path = "/v1/ssh/recording", request_body = NewRecording,
    responses((status = 200, body = AuthorityView), (status = "4XX", body = ErrorBody)))]
pub(super) async fn record(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<NewRecording>,
) -> Result<Json<AuthorityView>, ApiError> {
    let mut change = server.change().await?;
    let org = org_or_own(change.connection(), &access, request.org.as_ref()).await?;
    let recording = request.recording;
    storage::ssh::update_recording(change.connection(), org.id, recording).await?;
    let view = view(change.connection(), server.now(), org.clone()).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "ssh_recording_changed",
        subject: format!("org:{} {} {recording}", org.id, org.name),
        org: Some(org.id),
    };
    server.commit(change, entry, Touched::Org(org.id)).await?;
    Ok(Json(view))
}

/// Writes into the audit that the asking node refused a login. Where it could not tell which
/// certificate was outside its time, the newest one made for the source stands there too.
#[utoipa::path(post, path = "/v1/ssh/refusals", request_body = RefusedLogin,
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn refusal(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<RefusedLogin>,
) -> Result<StatusCode, ApiError> {
    let node = access.own()?;
    if !server.may_report(node.id) {
        let message = format!("a node tells at most {REPORTS_PER_MINUTE_MAX} refusals a minute");
        return Err(ApiError::new(ErrorCode::LimitReached, message));
    }
    let mut change = server.change().await?;
    let mut subject = request.to_string();
    if let (Reason::ExpiredOrNotYetValid, Some(org)) = (request.reason, node.org()) {
        let connection = change.connection();
        let newest = storage::ssh::newest_certificate(connection, org, request.source).await?;
        if let Some((serial, after, before)) = newest {
            let dates = format!("newest_valid_after:{after} newest_valid_before:{before}");
            subject = format!("{subject} newest_serial:{serial} {dates}");
        }
    }
    let entry = Entry {
        actor: access.actor(),
        action: "ssh_login_refused",
        subject,
        org: node.org(),
    };
    server.commit(change, entry, Touched::Nobody).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl From<RotationRefused> for ApiError {
    fn from(refused: RotationRefused) -> Self {
        match refused {
            RotationRefused::StillTrusted(until) => {
                let message = format!(
                    "keys of earlier rotations are still trusted, the next of them until {until} \
                     (seconds since 1970), when all that they signed has ended"
                );
                Self::new(ErrorCode::LimitReached, message)
            }
            RotationRefused::Failed(error) => Self::failed(error),
            RotationRefused::Storage(error) => error.into(),
        }
    }
}

/// Revokes certificates in a change that publishes the maps of the organisations returned.
///
/// # Errors
/// [`ErrorCode::LimitReached`] when a map would hold more serials than nodes read.
pub(super) async fn revoke_in(
    change: &mut Change,
    selection: Selection,
) -> Result<Vec<storage::OrgId>, ApiError> {
    let now = change.now();
    let orgs = storage::ssh::revoke(change.connection(), now, selection).await?;
    let mut distinct = orgs.clone();
    distinct.sort_unstable();
    distinct.dedup();
    for org in distinct {
        let serials = storage::ssh::revoked_serials(change.connection(), now, org).await?;
        if serials.len() > REVOKED_MAX {
            let message = "too many certificates are revoked one by one; end all of them with \
                           `ginnel ssh-ca rotate --now`";
            return Err(ApiError::new(ErrorCode::LimitReached, message));
        }
    }
    Ok(orgs)
}

/// Ends what was begun with earlier certificates of a person or a node, in a change that publishes
/// the maps of the organisations returned.
pub(super) async fn cut_off(
    change: &mut Change,
    selection: Selection,
) -> Result<Vec<storage::OrgId>, ApiError> {
    let orgs = storage::ssh::cut_off(change.connection(), selection).await?;
    let mut distinct = orgs.clone();
    distinct.sort_unstable();
    distinct.dedup();
    for org in distinct {
        if storage::ssh::cut(change.connection(), org).await?.len() > CUT_MAX {
            let message = "the certificates of too many nodes are revoked; end all of them with \
                           `ginnel ssh-ca rotate --now`";
            return Err(ApiError::new(ErrorCode::LimitReached, message));
        }
    }
    Ok(orgs)
}

/// Revokes the certificates of a node that is removed, which nothing may prevent: where no more
/// serials fit into a map, every certificate of the organisation ends.
pub(crate) async fn revoke_removed(
    server: &Server,
    change: &mut Change,
    node: &Node,
) -> Result<(), ApiError> {
    let revoked = revoke_in(change, Selection::Node(node.id)).await;
    or_rotate(server, change, node.org(), revoked.map(|_| ())).await
}

/// Revokes what a person had by her old role, where nobody is there to be told that it cannot be:
/// as with a node that is removed.
pub(crate) async fn revoke_changed(
    server: &Server,
    change: &mut Change,
    user: &User,
) -> Result<(), ApiError> {
    let mut revoked = revoke_in(change, Selection::User(user.id)).await;
    if revoked.is_ok() {
        revoked = cut_off(change, Selection::User(user.id)).await;
    }
    or_rotate(server, change, Some(user.org), revoked.map(|_| ())).await
}

/// Ends every certificate of `org` where no more serials fit into a map.
async fn or_rotate(
    server: &Server,
    change: &mut Change,
    org: Option<storage::OrgId>,
    revoked: Result<(), ApiError>,
) -> Result<(), ApiError> {
    match (revoked, org) {
        (Err(error), Some(org)) if error.code == ErrorCode::LimitReached => {
            let rotated = server.rotate_ssh_keys(change, org, true).await;
            rotated.map(|_| ()).map_err(ApiError::from)
        }
        (result, _) => result,
    }
}

async fn sign_user(
    server: &Server,
    access: &Access,
    request_id: &RequestId,
    request: &UserCertificateRequest,
) -> Result<IssuedCertificate, ApiError> {
    let lifetime = lifetime(request.ttl_seconds)?;
    let mut change = server.change().await?;
    let (node, org) = own_client(&mut change, access).await?;
    let user = access.token()?.user.ok_or_else(ApiError::not_found)?;
    let person = storage::user::user(change.connection(), user).await?;
    let person = person.ok_or_else(ApiError::not_found)?;
    let (person_name, node_name) = (&person.name, &node.name);
    let key_id = format!(
        "user={person_name};org={};node={node_name};request={}",
        org.name, request_id.0
    );
    let now = change.now();
    let content = Content {
        kind: CertificateKind::User,
        org: org.id,
        node: node.id,
        user: Some(user),
        key_id: key_id
            .parse()
            .map_err(|error| ApiError::internal(anyhow::Error::new(error)))?,
        principals: chosen(&person, &request.principals)?,
        public_key: request.public_key,
        valid_after: now - seconds(BACKDATE_SECONDS),
        valid_before: now + lifetime,
    };
    sign(server, change, access, &node, content).await
}

async fn sign_host(
    server: &Server,
    access: &Access,
    request_id: &RequestId,
    request: &HostCertificateRequest,
) -> Result<IssuedCertificate, ApiError> {
    let mut change = server.change().await?;
    let (node, org) = own_client(&mut change, access).await?;
    let key_id = format!(
        "host={};org={};request={}",
        node.name, org.name, request_id.0
    );
    let now = change.now();
    let content = Content {
        kind: CertificateKind::Host,
        org: org.id,
        node: node.id,
        user: None,
        key_id: key_id
            .parse()
            .map_err(|error| ApiError::internal(anyhow::Error::new(error)))?,
        principals: names_of(&node, &org)?,
        public_key: request.public_key,
        valid_after: now - seconds(BACKDATE_SECONDS),
        valid_before: now + seconds(HOST_TTL_SECONDS),
    };
    sign(server, change, access, &node, content).await
}

async fn sign(
    server: &Server,
    mut change: Change,
    access: &Access,
    node: &Node,
    content: Content,
) -> Result<IssuedCertificate, ApiError> {
    let now = change.now();
    let live = storage::ssh::count_certificates(change.connection(), now, node.id).await?;
    if live >= CERTIFICATES_PER_NODE_MAX {
        let message = format!(
            "`{}` has {live} certificates that have not ended",
            node.name
        );
        return Err(ApiError::new(ErrorCode::LimitReached, message));
    }
    let source = match (content.kind, &node.part) {
        (CertificateKind::User, Part::Client { address, .. }) => Some(*address),
        (CertificateKind::Host, _) | (CertificateKind::User, Part::Gateway { .. }) => None,
    };
    let signed = server.certify(&mut change, &content, source).await;
    let (serial, certificate, keys) = signed.map_err(ApiError::failed)?;
    let entry = Entry {
        actor: access.actor(),
        action: match content.kind {
            CertificateKind::User => "ssh_user_certified",
            CertificateKind::Host => "ssh_host_certified",
        },
        subject: format!("serial:{serial} {}", content.key_id),
        org: Some(content.org),
    };
    server.commit(change, entry, Touched::Nobody).await?;
    Ok(IssuedCertificate {
        certificate,
        serial,
        key_id: content.key_id,
        principals: content.principals,
        valid_after: Timestamp(content.valid_after),
        valid_before: Timestamp(content.valid_before),
        keys,
    })
}

/// Writes why a certificate was refused into the audit; a failure of the server is none.
async fn refused(server: &Server, access: &Access, error: ApiError) -> ApiError {
    let is_refusal = matches!(
        error.code,
        ErrorCode::TtlOutOfRange
            | ErrorCode::NotPermitted
            | ErrorCode::NodePending
            | ErrorCode::NodeExpired
            | ErrorCode::LimitReached
    );
    if !is_refusal {
        return error;
    }
    let entry = Entry {
        actor: access.actor(),
        action: "ssh_certificate_refused",
        subject: error.message.clone(),
        org: access.node.as_ref().and_then(Node::org),
    };
    let written = async {
        let change = server.change().await?;
        server.commit(change, entry, Touched::Nobody).await
    };
    match written.await {
        Ok(()) => error,
        Err(failure) => failure,
    }
}

/// Returns the principals that a person's role permits: of them all, or those asked for.
fn chosen(person: &User, asked: &[Principal]) -> Result<Vec<Principal>, ApiError> {
    let permitted: Vec<Principal> = match person.role {
        Role::Admin => vec![principal("root")?, principal(person.name.as_str())?],
        Role::Developer | Role::Guest => vec![principal(person.name.as_str())?],
    };
    if asked.is_empty() {
        return Ok(permitted);
    }
    match asked.iter().find(|asked| !permitted.contains(asked)) {
        None => Ok(asked.to_vec()),
        Some(other) => {
            let permitted: Vec<_> = permitted.iter().map(Principal::as_str).collect();
            let permitted = permitted.join(" and ");
            let message = format!("your role permits the principals {permitted}, not {other}");
            Err(ApiError::new(ErrorCode::NotPermitted, message))
        }
    }
}

/// Returns the names under which others reach a node.
fn names_of(node: &Node, org: &Org) -> Result<Vec<Principal>, ApiError> {
    let name = &node.name;
    let mut names = vec![
        principal(name.as_str())?,
        principal(&format!("{name}.{ZONE}"))?,
        principal(&format!("{name}.{}.{ZONE}", org.name))?,
    ];
    if let Part::Client { address, .. } = &node.part {
        names.push(principal(&address.to_string())?);
    }
    Ok(names)
}

fn principal(text: &str) -> Result<Principal, ApiError> {
    text.parse()
        .map_err(|error| ApiError::internal(anyhow::Error::new(error)))
}

fn lifetime(asked: Option<u64>) -> Result<i64, ApiError> {
    let asked = asked.unwrap_or(USER_TTL_SECONDS_DEFAULT);
    if (USER_TTL_SECONDS_MIN..=USER_TTL_SECONDS_MAX).contains(&asked) {
        return Ok(seconds(asked));
    }
    let message = "a user certificate is valid for at least one minute and at most 24 hours";
    Err(ApiError::new(ErrorCode::TtlOutOfRange, message))
}

/// Returns a bounded number of seconds as the store counts them.
fn seconds(seconds: u64) -> i64 {
    i64::try_from(seconds).expect("bounded by days")
}

/// Returns the asking client and its organisation as they are in this change.
async fn own_client(change: &mut Change, access: &Access) -> Result<(Node, Org), ApiError> {
    let node = storage::node::node(change.connection(), access.own()?.id).await?;
    let node = node.filter(|node| node.removed.is_none());
    let node = node.ok_or_else(|| {
        ApiError::new(
            ErrorCode::NodeRemoved,
            "this node was removed from the network",
        )
    })?;
    permission::is_active(node.state_at(change.now()))?;
    let org = match node.org() {
        Some(org) => storage::org::org(change.connection(), org).await?,
        None => None,
    };
    let org = org.ok_or_else(ApiError::not_found)?;
    Ok((node, org))
}

async fn view(
    connection: &mut storage::Connection,
    now: i64,
    org: Org,
) -> Result<AuthorityView, ApiError> {
    let authority = storage::ssh::authority(connection, org.id).await?;
    let authority = authority.ok_or_else(ApiError::not_found)?;
    let keys = storage::ssh::keys_of(connection, org.id).await?;
    let signing_key = keys.iter().find(|key| key.usage == Usage::Statement);
    let signing_key = signing_key.ok_or_else(ApiError::not_found)?.public_key;
    let trusted = keys.iter().filter_map(|key| match key.usage {
        Usage::Statement => None,
        Usage::Certificate(kind) => Some(TrustedKey {
            kind,
            state: key.state,
            public_key: key.public_key,
            created: Timestamp(key.created),
            trusted_until: key.trusted_until.map(Timestamp),
        }),
    });
    let revoked = storage::ssh::revoked_serials(connection, now, org.id).await?;
    Ok(AuthorityView {
        org: org.name,
        version: authority.version,
        signing_key,
        recording: authority.recording,
        keys: trusted.collect(),
        revoked: u32::try_from(revoked.len()).unwrap_or(u32::MAX),
    })
}

fn described(row: storage::ssh::Certificate) -> Certificate {
    Certificate {
        serial: row.serial,
        kind: row.content.kind,
        org: row.org_name,
        user: row.content.user,
        node: row.content.node,
        key_id: row.content.key_id,
        principals: row.content.principals,
        valid_after: Timestamp(row.content.valid_after),
        valid_before: Timestamp(row.content.valid_before),
        revoked: row.revoked.map(Timestamp),
    }
}
