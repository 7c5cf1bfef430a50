//! Sign-in by an identity provider: its settings, the two halves of a sign-in, and its logout.

use axum::{
    Form, Json,
    extract::{State, rejection::FormRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use model::{
    api::{
        AuthorizationResponse, BegunSignIn, EnrolRequest, ErrorBody, ErrorCode, ListQuery,
        LoggedIn, NewProvider, NewSignIn, OIDC_ROLES_MAX, OIDC_SCOPES_MAX, OIDC_TEXT_LENGTH_MAX,
        PendingSignIn, Provider, Secret, SignIn, Timestamp,
    },
    id::{OrgId, UserId},
    key::PublicKey,
    name::{Label, is_deceptive},
};
use serde::Deserialize;
use tokio::sync::SemaphorePermit;

use super::{
    enrol,
    error::ApiError,
    extract::{Asked, Body, Named},
    org_or_own,
    page::cookie::{self, Opened},
    permission::Access,
    user::USERS_PER_ORG_MAX,
};
use crate::{
    Server,
    oidc::{self, Begun, Redirect, SignedIn},
    storage::{
        self, Change, Touched,
        audit::{Actor, Entry},
        org::Org,
    },
};

/// How many names are tried for a person whose own is taken.
const NAMES_MAX: u32 = 1_000;

/// Whom a provider says has signed out (OpenID Connect Back-Channel Logout 1.0, 2.5).
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub(super) struct LogoutForm {
    /// The logout token.
    logout_token: String,
}

/// Shows the identity provider of an organisation, without its secret.
#[utoipa::path(get, path = "/v1/oidc/provider", params(ListQuery),
    responses((status = 200, body = Provider), (status = "4XX", body = ErrorBody)))]
pub(super) async fn provider(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Provider>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let org = org_or_own(&mut read, &access, query.org.as_ref()).await?;
    let row = provider_of(&mut read, &org).await?;
    Ok(Json(described(&server, org, row)))
}

/// Sets the identity provider of an organisation, if it answers as one.
#[utoipa::path(put, path = "/v1/oidc/provider", request_body = NewProvider,
    responses((status = 200, body = Provider), (status = "4XX", body = ErrorBody)))]
pub(super) async fn set(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<NewProvider>,
) -> Result<Json<Provider>, ApiError> {
    hold(&request)?;
    let mut read = server.inner.store.read().await?;
    let org = org_or_own(&mut read, &access, request.org.as_ref()).await?;
    drop(read);
    server.discover(&request.issuer).await?;
    let mut change = server.change().await?;
    let secret = request.client_secret.as_ref();
    let row = storage::oidc::Provider {
        org: org.id,
        client_secret: secret
            .map(|secret| server.seal_client_secret(org.id, &request.issuer, secret)),
        issuer: request.issuer,
        client_id: request.client_id,
        scopes: request.scopes,
        groups_claim: request.groups_claim,
        roles: request.roles,
        created: change.now(),
    };
    storage::oidc::upsert_provider(change.connection(), &row).await?;
    let roles: Vec<_> = row
        .roles
        .iter()
        .map(|(group, role)| format!("{group}={role}"))
        .collect();
    let entry = Entry {
        actor: access.actor(),
        action: "oidc_provider_set",
        subject: format!(
            "{} client:{} {}",
            row.issuer,
            row.client_id,
            roles.join(" ")
        ),
        org: Some(org.id),
    };
    server.commit(change, entry, Touched::Nobody).await?;
    Ok(Json(described(&server, org, row)))
}

/// Removes the identity provider of an organisation; the sessions that it gave end within the
/// interval of their confirmation.
#[utoipa::path(delete, path = "/v1/oidc/provider", params(ListQuery),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<ListQuery>,
) -> Result<StatusCode, ApiError> {
    let mut change = server.change().await?;
    let org = org_or_own(change.connection(), &access, query.org.as_ref()).await?;
    let row = provider_of(change.connection(), &org).await?;
    storage::oidc::delete_provider(change.connection(), org.id).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "oidc_provider_removed",
        subject: row.issuer,
        org: Some(org.id),
    };
    server.commit(change, entry, Touched::Nobody).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Begins a sign-in on a device: tells where the person goes with a browser.
#[utoipa::path(post, path = "/v1/oidc/sign-ins", request_body = NewSignIn,
    responses((status = 200, body = BegunSignIn), (status = "4XX", body = ErrorBody)))]
pub(super) async fn begin(
    State(server): State<Server>,
    Body(request): Body<NewSignIn>,
) -> Result<Json<BegunSignIn>, ApiError> {
    let redirect = request.redirect_port.map(Redirect::Loopback);
    let begun = begin_at(&server, &request.org, Some(request.public_key), redirect).await?;
    Ok(Json(BegunSignIn {
        attempt: begun.attempt,
        url: begun.url,
        user_code: begun.user_code,
        interval_seconds: begun.interval,
        expires: Timestamp(begun.expires),
    }))
}

/// Begins a sign-in at a browser, which comes back to the web page.
pub(super) async fn begin_at_page(server: &Server, org: &Label) -> Result<Begun, ApiError> {
    begin_at(server, org, None, Some(Redirect::Page)).await
}

async fn begin_at(
    server: &Server,
    org: &Label,
    public_key: Option<PublicKey>,
    redirect: Option<Redirect>,
) -> Result<Begun, ApiError> {
    let _turn = turn(server)?;
    let mut read = server.inner.store.read().await?;
    // Whether there is such an organisation is nobody's business who has not signed in.
    let missing = || {
        let message = format!("`{org}` has no identity provider here");
        ApiError::new(ErrorCode::NotFound, message)
    };
    let org = storage::org::org_named(&mut read, org).await?;
    let org = org.ok_or_else(missing)?;
    let provider = storage::oidc::provider(&mut read, org.id).await?;
    drop(read);
    let provider = provider.ok_or_else(missing)?;
    Ok(server.begin_sign_in(provider, public_key, redirect).await?)
}

/// Ends a sign-in: the device becomes a node of the person whom the provider names.
#[utoipa::path(post, path = "/v1/oidc/sessions", request_body = SignIn,
    responses((status = 200, body = LoggedIn),
        (status = 202, body = PendingSignIn, description = "She has not signed in yet."),
        (status = "4XX", body = ErrorBody)))]
pub(super) async fn sign_in(
    State(server): State<Server>,
    Body(request): Body<SignIn>,
) -> Result<Response, ApiError> {
    let _turn = turn(&server)?;
    let org = server.org_of_attempt(&request.attempt)?;
    let mut read = server.inner.store.read().await?;
    let org = storage::org::org(&mut read, org).await?;
    let org = org.ok_or_else(ApiError::not_found)?;
    let provider = provider_of(&mut read, &org).await?;
    drop(read);
    let ended = server
        .end_sign_in(provider, &request.attempt, request.answer.as_ref())
        .await;
    let signed_in = match ended {
        Ok(signed_in) => signed_in,
        Err(oidc::Error::Pending(interval_seconds)) => {
            let pending = PendingSignIn { interval_seconds };
            return Ok((StatusCode::ACCEPTED, Json(pending)).into_response());
        }
        Err(error) => return Err(refused(&server, org.id, error).await),
    };
    let logged_in = admit(&server, org, request.name, &signed_in).await?;
    Ok(Json(logged_in).into_response())
}

/// Ends a sign-in at a browser. Returns what it is known by from now on.
pub(super) async fn end_at_page(
    server: &Server,
    attempt: &Secret,
    answer: &AuthorizationResponse,
) -> Result<Opened, ApiError> {
    let _turn = turn(server)?;
    let org = server.org_of_attempt(attempt)?;
    let mut read = server.inner.store.read().await?;
    let org = storage::org::org(&mut read, org).await?;
    let org = org.ok_or_else(ApiError::not_found)?;
    let provider = provider_of(&mut read, &org).await?;
    drop(read);
    let ended = server.end_sign_in(provider, attempt, Some(answer)).await;
    let signed_in = match ended {
        // The sign-in of a device does not let a browser in.
        Ok(signed_in) if signed_in.public_key.is_some() => {
            return Err(oidc::Error::Attempt.into());
        }
        Ok(signed_in) => signed_in,
        Err(error) => return Err(refused(server, org.id, error).await),
    };
    let mut change = server.change().await?;
    let (user, changed) = user_of(server, &mut change, &org, &signed_in).await?;
    let opened = cookie::open(server, &mut change, user, Some(&signed_in)).await?;
    server.inner.relying_party.end(&signed_in, change.now())?;
    let (issuer, subject) = (&signed_in.provider.issuer, &signed_in.identity.subject);
    let mut entry = opened.entry(org.id);
    entry
        .subject
        .push_str(&format!(" as {subject} of {issuer}"));
    if let Some(changed) = changed {
        let changed = format!(", now {}", changed.subject);
        entry.subject.push_str(&changed);
    }
    server.commit(change, entry, Touched::Org(org.id)).await?;
    Ok(opened)
}

/// Takes a provider's word that a person signed out there: her sessions end.
#[utoipa::path(post, path = "/v1/oidc/logout/{org}", params(("org" = String, Path)),
    request_body(content = LogoutForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200), (status = "4XX", body = ErrorBody)))]
pub(super) async fn back_channel_logout(
    State(server): State<Server>,
    Named(name): Named<Label>,
    form: Result<Form<LogoutForm>, FormRejection>,
) -> Result<StatusCode, ApiError> {
    let Form(form) = form
        .map_err(|rejection| ApiError::new(ErrorCode::MalformedRequest, rejection.body_text()))?;
    let _turn = turn(&server)?;
    let mut read = server.inner.store.read().await?;
    let org = storage::org::org_named(&mut read, &name).await?;
    let org = org.ok_or_else(ApiError::not_found)?;
    let provider = provider_of(&mut read, &org).await?;
    drop(read);
    let issuer = provider.issuer.clone();
    let token = server.logout_token(provider, &form.logout_token).await;
    // The provider is told 400, whatever is wrong with its token (2.8 there).
    let token = token.map_err(|error| match ApiError::from(error) {
        error if error.code == ErrorCode::SignInRefused => {
            ApiError::new(ErrorCode::MalformedRequest, error.message)
        }
        error => error,
    })?;
    let (subject, sid) = (token.subject.as_deref(), token.sid.as_deref());
    let mut read = server.inner.store.read().await?;
    // A token that comes twice ends nothing that began after it.
    let begun = token.issued.saturating_add(CLOCKS_SECONDS);
    let sessions =
        storage::oidc::sessions_of(&mut read, org.id, &issuer, subject, sid, begun).await?;
    drop(read);
    let reason = "the identity provider says that the person signed out";
    for session in sessions {
        server.end_session(&session, reason).await?;
    }
    let mut change = server.change().await?;
    let connection = change.connection();
    let ended =
        storage::browser::delete_of_provider(connection, org.id, &issuer, subject, sid, begun);
    let ended = ended.await?;
    if ended > 0 {
        let entry = Entry {
            actor: Actor::Server,
            action: "browser_session_ended",
            subject: format!("{ended} browsers: {reason}"),
            org: Some(org.id),
        };
        server.commit(change, entry, Touched::Nobody).await?;
    }
    Ok(StatusCode::OK)
}

/// Lets a request that needs no token wait for a provider, unless too many do already.
fn turn(server: &Server) -> Result<SemaphorePermit<'_>, ApiError> {
    let turns = &server.inner.relying_party.turns;
    turns.try_acquire().map_err(|_| ApiError::unavailable(None))
}

/// How far the provider's clock may be behind, in seconds.
const CLOCKS_SECONDS: i64 = 5;

/// Enrols the device of a person who has signed in, and makes the person if she is new.
async fn admit(
    server: &Server,
    org: Org,
    name: Label,
    signed_in: &SignedIn,
) -> Result<LoggedIn, ApiError> {
    let request = EnrolRequest {
        name,
        // The sign-in of a browser makes no device.
        public_key: signed_in.public_key.ok_or(oidc::Error::Attempt)?,
    };
    let mut change = server.change().await?;
    let (user, changed) = user_of(server, &mut change, &org, signed_in).await?;
    let admitted = enrol::admit(server, &mut change, &org, &request, user).await?;
    server
        .insert_oidc_session(&mut change, admitted.node, user, signed_in)
        .await?;
    server.inner.relying_party.end(signed_in, change.now())?;
    let mut entry = admitted.entry(&org, &request);
    let (issuer, subject) = (&signed_in.provider.issuer, &signed_in.identity.subject);
    entry
        .subject
        .push_str(&format!(" as {subject} of {issuer}"));
    if let Some(changed) = changed {
        entry
            .subject
            .push_str(&format!(", now {}", changed.subject));
    }
    server.commit(change, entry, Touched::Org(org.id)).await?;
    admitted.logged_in(server, org, request).await
}

/// Finds the person by issuer and subject, never by a name or an address, and gives her the role
/// of her groups. Returns what the audit says if that is another one.
async fn user_of(
    server: &Server,
    change: &mut Change,
    org: &Org,
    signed_in: &SignedIn,
) -> Result<(UserId, Option<Entry>), ApiError> {
    let (issuer, identity) = (&signed_in.provider.issuer, &signed_in.identity);
    let given = oidc::role(&signed_in.provider.roles, identity.groups());
    let (now, subject) = (change.now(), &identity.subject);
    let connection = change.connection();
    let known = storage::oidc::user_with_identity(connection, org.id, issuer, subject).await?;
    if let Some(user) = known {
        let changed = server.follow(change, &user, identity, given).await?;
        return Ok((user.id, changed));
    }
    if storage::user::count_of(connection, org.id).await? >= USERS_PER_ORG_MAX {
        let message = format!("an organisation has at most {USERS_PER_ORG_MAX} people");
        return Err(ApiError::new(ErrorCode::LimitReached, message));
    }
    let name = free_name(connection, org.id, identity.name.as_ref()).await?;
    let id = storage::user::insert(connection, now, org.id, &name, given, false).await?;
    storage::oidc::insert_identity(connection, id, org.id, issuer, subject).await?;
    storage::oidc::update_groups(connection, id, &identity.labels()).await?;
    Ok((id, None))
}

/// Returns the name that a new person would like, with a number if another has it.
async fn free_name(
    connection: &mut storage::Connection,
    org: OrgId,
    liked: Option<&Label>,
) -> Result<Label, ApiError> {
    let liked = liked.map_or("user", Label::as_str);
    let mut number = 1;
    loop {
        let suffix = if number == 1 {
            String::new()
        } else {
            format!("-{number}")
        };
        let longest = Label::LENGTH_MAX - suffix.len();
        let start = liked.get(..longest).unwrap_or(liked).trim_end_matches('-');
        let name: Label = format!("{start}{suffix}")
            .parse()
            .map_err(|error| ApiError::internal(anyhow::Error::new(error)))?;
        let taken = storage::user::user_named(connection, org, &name).await?;
        if taken.is_none() {
            return Ok(name);
        }
        if number == NAMES_MAX {
            let message = format!("too many people are called `{liked}`");
            return Err(ApiError::new(ErrorCode::LimitReached, message));
        }
        number += 1;
    }
}

/// Writes into the audit that a token of the provider does not count, which nobody can make happen
/// who does not have a code of the provider.
async fn refused(server: &Server, org: OrgId, error: oidc::Error) -> ApiError {
    let is_token = matches!(error, oidc::Error::Token(_));
    let error = ApiError::from(error);
    if !is_token {
        return error;
    }
    let entry = Entry {
        actor: Actor::Server,
        action: "oidc_sign_in_refused",
        subject: error.message.clone(),
        org: Some(org),
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

async fn provider_of(
    connection: &mut storage::Connection,
    org: &Org,
) -> Result<storage::oidc::Provider, ApiError> {
    let provider = storage::oidc::provider(connection, org.id).await?;
    provider.ok_or_else(|| {
        let message = format!("organisation `{}` has no identity provider", org.name);
        ApiError::new(ErrorCode::NotFound, message)
    })
}

/// Refuses settings that no provider can have.
fn hold(request: &NewProvider) -> Result<(), ApiError> {
    let refuse = |message: String| Err(ApiError::new(ErrorCode::MalformedRequest, message));
    let fits = |text: &str| (1..=OIDC_TEXT_LENGTH_MAX).contains(&text.len());
    // RFC 6749, appendix A.1 and 3.3.
    let is_visible = |text: &str| text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    let is_scope = |text: &String| {
        fits(text)
            && text
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte))
    };
    let is_plain = |text: &str| fits(text) && !text.chars().any(is_deceptive);
    if !is_plain(&request.issuer) || !oidc::is_issuer(&request.issuer) {
        return refuse(format!(
            "an issuer is an https URL of at most {OIDC_TEXT_LENGTH_MAX} bytes, without query"
        ));
    }
    if !fits(&request.client_id) || !is_visible(&request.client_id) {
        return refuse(format!(
            "a client id has 1 to {OIDC_TEXT_LENGTH_MAX} visible ASCII letters"
        ));
    }
    let secret = request.client_secret.as_ref();
    if secret.is_some_and(|secret| secret.expose().is_empty() || secret.expose().len() > 4_096) {
        return refuse("a client secret has 1 to 4096 bytes".to_owned());
    }
    if request.scopes.len() > OIDC_SCOPES_MAX || !request.scopes.iter().all(is_scope) {
        return refuse(format!(
            "there are at most {OIDC_SCOPES_MAX} scopes, without spaces"
        ));
    }
    if !is_plain(&request.groups_claim) {
        return refuse("the claim with the groups has a name or a JSON Pointer".to_owned());
    }
    if request.roles.len() > OIDC_ROLES_MAX || !request.roles.keys().all(|group| is_plain(group)) {
        return refuse(format!(
            "at most {OIDC_ROLES_MAX} groups have a role, each with a name of at most \
             {OIDC_TEXT_LENGTH_MAX} bytes without control characters"
        ));
    }
    Ok(())
}

fn described(server: &Server, org: Org, row: storage::oidc::Provider) -> Provider {
    let url = server.url();
    Provider {
        back_channel_logout_uri: format!("{url}/v1/oidc/logout/{}", org.name),
        org: org.name,
        issuer: row.issuer,
        client_id: row.client_id,
        has_secret: row.client_secret.is_some(),
        scopes: row.scopes,
        groups_claim: row.groups_claim,
        roles: row.roles,
        created: Timestamp(row.created),
        url,
        pin: server.pin(),
    }
}

impl From<oidc::Error> for ApiError {
    fn from(error: oidc::Error) -> Self {
        let code = match &error {
            oidc::Error::Fault(_)
            | oidc::Error::Malformed(_)
            | oidc::Error::Status(..)
            | oidc::Error::Issuer(_)
            | oidc::Error::Missing(_) => ErrorCode::ProviderFailed,
            oidc::Error::Denied(_)
            | oidc::Error::Token(_)
            | oidc::Error::Attempt
            | oidc::Error::Late
            | oidc::Error::Ended
            | oidc::Error::Pending(_) => ErrorCode::SignInRefused,
        };
        Self::new(code, error.to_string())
    }
}
