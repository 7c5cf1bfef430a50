//! Signing in at a browser, by a login token or by an identity provider, and out again.

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::{Html, IntoResponse as _, Response},
};
use maud::html;
use model::{
    api::{AuthorizationResponse, ErrorCode, Secret, Timestamp},
    name::Label,
    token::Token,
};
use serde::Deserialize;

use super::{Fault, Form, Visit, cookie, layout, layout::Section, then};
use crate::{
    Server,
    api::{
        enrol,
        error::ApiError,
        extract::Asked,
        identify, oidc,
        permission::{Access, Action},
    },
    oidc::ATTEMPT_SECONDS_MAX,
    storage::{
        self, Touched,
        audit::{Actor, Entry},
    },
};

/// What a provider sends a browser back with (RFC 6749, 4.1.2; RFC 9207, 2).
#[derive(Deserialize)]
pub(super) struct Callback {
    code: Option<Secret>,
    state: Option<String>,
    iss: Option<String>,
    error: Option<String>,
}

/// Shows who has signed in.
pub(super) async fn home(visit: Visit) -> Response {
    let user = &visit.user;
    let main = html! {
        dl {
            dt { "Name" } dd { (user.name) }
            dt { "Organisation" } dd { (visit.org) }
            dt { "Role" } dd {
                (user.role)
                @if user.operator { ", and keeps the installation" }
            }
            dt { "Signed in until" } dd { (layout::at(Timestamp(visit.expires))) }
        }
        @if !visit.may(Action::ReadNode) {
            p { "Your role shows you nothing here. What you may reach, your device knows." }
        }
    };
    visit.page(Section::Home, &main)
}

/// Shows how to sign in.
pub(super) async fn form(State(server): State<Server>, headers: HeaderMap) -> Response {
    let known = super::secret(&headers).map(Secret::new);
    let secret = known.clone().unwrap_or_else(|| cookie::drawn(&server));
    let proof = cookie::proof(secret.expose());
    let main = html! {
        form method="post" action="/ui/sign-in/provider" {
            h2 { "By your identity provider" }
            input type="hidden" name="proof" value=(proof);
            (layout::field("Organisation", "org", crate::DEFAULT_ORG, ""))
            button type="submit" { "Continue" }
        }
        form method="post" action="/ui/sign-in/token" {
            h2 { "By a login token" }
            input type="hidden" name="proof" value=(proof);
            label {
                span { "Token" }
                input name="token" type="password" autocomplete="off" required;
                small {
                    "An administrator gives you one; " code { "ginnel server" }
                    " prints the first. It works once."
                }
            }
            button type="submit" { "Sign in" }
        }
    };
    let mut response = Html(layout::bare("Sign in", &main).into_string()).into_response();
    if known.is_none() {
        let visitor = cookie::set(cookie::VISITOR, secret.expose(), ATTEMPT_SECONDS_MAX);
        response.headers_mut().append(header::SET_COOKIE, visitor);
    }
    response
}

/// Signs a person in by a login token, which is used up.
pub(super) async fn by_token(State(server): State<Server>, form: Form) -> Result<Response, Fault> {
    let token: Token =
        form.text("token")
            .parse()
            .map_err(|error: model::token::MalformedToken| {
                ApiError::new(ErrorCode::TokenUnknown, error.to_string())
            })?;
    let mut read = server.inner.store.read().await?;
    let (row, node) = identify(&mut read, &token, Action::LogIn, server.now()).await?;
    drop(read);
    let (user, org) = (row.user, row.org);
    let access = Access::new(Action::LogIn, Some(row), node, None)?;
    let user = user.ok_or_else(ApiError::not_found)?;
    let org = org.ok_or_else(ApiError::not_found)?;
    let mut change = server.change().await?;
    enrol::consume(&mut change, &access).await?;
    let opened = cookie::open(&server, &mut change, user, None).await?;
    let entry = opened.entry(org);
    server.commit(change, entry, Touched::Nobody).await?;
    Ok(signed_in(&opened))
}

/// Leads a browser to the identity provider of an organisation.
pub(super) async fn by_provider(
    State(server): State<Server>,
    form: Form,
) -> Result<Response, Fault> {
    let org = form.text("org").parse::<Label>();
    let org = org.map_err(|error| ApiError::new(ErrorCode::MalformedRequest, error.to_string()))?;
    let begun = oidc::begin_at_page(&server, &org).await?;
    // A redirect in answer to a form would have to be in the page's policy (CSP 3, 6.4.2).
    let main = html! {
        meta http-equiv="refresh" content={ "0; url=" (begun.url) };
        p role="status" { a href=(begun.url) { "Go on to the identity provider" } }
    };
    let mut response = Html(layout::bare("Sign in", &main).into_string()).into_response();
    let attempt = cookie::set(cookie::ATTEMPT, begun.attempt.expose(), ATTEMPT_SECONDS_MAX);
    response.headers_mut().append(header::SET_COOKIE, attempt);
    Ok(response)
}

/// Takes a browser back from the identity provider.
pub(super) async fn callback(
    State(server): State<Server>,
    headers: HeaderMap,
    Asked(query): Asked<Callback>,
) -> Result<Response, Fault> {
    let refuse = |message: String| ApiError::new(ErrorCode::SignInRefused, message);
    let attempt = cookie::value(&headers, cookie::ATTEMPT).map(Secret::new);
    let attempt = attempt.ok_or_else(|| {
        let message = "the sign-in is not one that this browser began here, or it took too long: \
                       sign in again";
        refuse(message.to_owned())
    })?;
    let (Some(code), Some(state)) = (query.code, query.state) else {
        let error = query.error.unwrap_or_default();
        let message = format!("the identity provider gave no code, but `{error}`");
        return Err(refuse(message).into());
    };
    let iss = query.iss;
    let answer = AuthorizationResponse { code, state, iss };
    let opened = oidc::end_at_page(&server, &attempt, &answer).await?;
    let mut response = signed_in(&opened);
    let gone = cookie::set(cookie::ATTEMPT, "", 0);
    response.headers_mut().append(header::SET_COOKIE, gone);
    Ok(response)
}

/// Signs a person out at this browser.
pub(super) async fn sign_out(visit: Visit, _form: Form) -> Result<Response, Fault> {
    let server = &visit.server;
    let mut change = server.change().await?;
    storage::browser::delete(change.connection(), visit.browser).await?;
    let entry = Entry {
        actor: Actor::User(visit.user.id),
        action: "browser_signed_out",
        subject: format!("browser:{}", visit.browser),
        org: Some(visit.user.org),
    };
    server.commit(change, entry, Touched::Nobody).await?;
    let mut response = then("/ui/sign-in");
    let gone = cookie::set(cookie::SESSION, "", 0);
    response.headers_mut().append(header::SET_COOKIE, gone);
    Ok(response)
}

fn signed_in(opened: &cookie::Opened) -> Response {
    let mut response = then("/ui");
    let session = cookie::set(cookie::SESSION, opened.secret.expose(), opened.seconds);
    let gone = cookie::set(cookie::VISITOR, "", 0);
    for cookie in [session, gone] {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}
