//! People and their roles.

use axum::{http::Method, response::Response};
use maud::{Markup, html};
use model::{
    api::{CreatedToken, CreatedUser, Page, User},
    id::UserId,
    policy::Role,
};
use serde_json::json;

use super::{
    Fault, Form, Visit,
    layout::{self, Section},
    node::Part,
    then,
};
use crate::api::extract::{Asked, Named};

/// Lists the people.
pub(super) async fn list(visit: Visit, Asked(part): Asked<Part>) -> Result<Response, Fault> {
    let users: Page<User> = visit.get("/v1/users", &part.query()).await?;
    let rows = html! {
        table {
            caption {
                "Who signs in by an identity provider has the role of her groups there, and gets "
                "it back at the next confirmation."
            }
            (layout::titles(&["Name", "Organisation", "Role", "Since", "Change"]))
            tbody {
                @for user in &users.items { (row(&visit, user)) }
            }
        }
        @if users.items.is_empty() { p { "There is no such person." } }
        (layout::more("/ui/users", &part.next(), users.next))
    };
    let main = html! {
        (part.filter(&visit, "/ui/users"))
        (layout::live("people", &rows))
        h2 { "Invite a person" }
        form method="post" action="/ui/users" {
            (layout::proof(&visit))
            (layout::field("Name", "name", "", "Letters, digits and hyphens."))
            (role("guest"))
            (layout::org_field(&visit))
            button type="submit" { "Invite" }
        }
    };
    Ok(visit.page(Section::Users, &main))
}

fn row(visit: &Visit, user: &User) -> Markup {
    html! {
        tr {
            td data-label="Name" { strong { (user.name) } }
            td data-label="Organisation" { (user.org) }
            td data-label="Role" {
                span {
                    (user.role)
                    @if user.operator { ", keeps the installation" }
                }
            }
            td data-label="Since" { (layout::at(user.created)) }
            td data-label="Change" { div { (changes(visit, user)) } }
        }
    }
}

fn changes(visit: &Visit, user: &User) -> Markup {
    let path = format!("/ui/users/{}", user.id);
    let fields = html! {
        (layout::field("Name", "name", user.name.as_str(), "Her SSH certificates end."))
        (role(&user.role.to_string()))
    };
    let again = html! {
        p { "A token signs her in on one more device or browser within an hour." }
    };
    let sure = html! {
        p { "All devices, sessions and certificates of “" (user.name) "” end at once." }
    };
    html! {
        (layout::folded(visit, "Change", &path, "Save", &fields))
        (layout::folded(visit, "Sign in", &format!("{path}/token"), "Make a token", &again))
        (layout::folded(visit, "Remove", &format!("{path}/remove"), "Remove for good", &sure))
    }
}

fn role(chosen: &str) -> Markup {
    let words = Role::ALL.map(Role::name);
    layout::choice("Role", "role", &words, chosen)
}

/// Invites a person.
pub(super) async fn add(visit: Visit, form: Form) -> Result<Response, Fault> {
    let body = json!({
        "name": form.text("name"), "role": form.text("role"), "org": form.some("org"),
    });
    let created: CreatedUser = visit.send(Method::POST, "/v1/users", &body).await?;
    let what = format!(
        "“{}” signs in by this token within an hour.",
        created.user.name
    );
    Ok(shown(&visit, &what, &created.token))
}

/// Makes a token by which a person signs in once more.
pub(super) async fn token(
    visit: Visit,
    Named(id): Named<UserId>,
    _form: Form,
) -> Result<Response, Fault> {
    let user: User = visit.get(&format!("/v1/users/{id}"), &[]).await?;
    let body = json!({ "kind": "login", "user": user.name, "org": user.org });
    let created: CreatedToken = visit.send(Method::POST, "/v1/tokens", &body).await?;
    let what = format!("“{}” signs in by this token within an hour.", user.name);
    Ok(shown(&visit, &what, &created.token))
}

fn shown(visit: &Visit, what: &str, token: &model::token::Token) -> Response {
    let (url, token) = (visit.server.url(), token.emit());
    let command = format!("ginnel login {url} --token TOKEN");
    let link = format!("{url}/ui/sign-in#{}", token.as_str());
    let main = html! {
        (layout::shown_once(what, &token, &command, "/ui/users"))
        p { "Or at a browser by this link:" }
        p { code.secret { (link) } }
    };
    visit.page(Section::Users, &main)
}

/// Gives a person another name and role.
pub(super) async fn set(
    visit: Visit,
    Named(id): Named<UserId>,
    form: Form,
) -> Result<Response, Fault> {
    let body = json!({ "name": form.text("name"), "role": form.text("role") });
    let path = format!("/v1/users/{id}");
    visit.send::<User>(Method::PATCH, &path, &body).await?;
    Ok(then("/ui/users"))
}

/// Removes a person.
pub(super) async fn remove(
    visit: Visit,
    Named(id): Named<UserId>,
    _form: Form,
) -> Result<Response, Fault> {
    visit.delete(&format!("/v1/users/{id}")).await?;
    Ok(then("/ui/users"))
}
