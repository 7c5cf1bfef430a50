//! Plain WireGuard clients and their configurations.
//!
//! The private key of an exported configuration is made by the script of the page, in the browser:
//! the server is told the public one and leaves the place of the private one to the script.

use axum::{http::Method, response::Response};
use maud::{Markup, html};
use model::{
    api::{KeyHolder, Page, Peer, PeerConfiguration},
    id::NodeId,
};
use serde_json::json;

use super::{
    Fault, Form, Visit,
    layout::{self, Section},
    node::Part,
    then,
};
use crate::api::{
    error::ApiError,
    extract::{Asked, Named},
};

/// Lists the plain WireGuard clients.
pub(super) async fn list(visit: Visit, Asked(part): Asked<Part>) -> Result<Response, Fault> {
    let peers: Page<Peer> = visit.get("/v1/peers", &part.query()).await?;
    let titles = ["Name", "Address", "Key", "Configuration", "Ends", "Change"];
    let rows = html! {
        table {
            (layout::titles(&titles))
            tbody {
                @for peer in &peers.items { (row(&visit, peer)) }
            }
        }
        @if peers.items.is_empty() { p { "There is no such client." } }
        (layout::more("/ui/peers", &part.next(), peers.next))
    };
    let main = html! {
        (part.filter(&visit, "/ui/peers"))
        (layout::live("peers", &rows))
        h2 { "Add a telephone, a router or another plain WireGuard client" }
        form method="post" action="/ui/peers" {
            (layout::proof(&visit))
            (layout::field("Name", "name", "", ""))
            (layout::field("Person", "user", "", "Whose it is; empty for a machine."))
            (layout::field("Public key", "public_key", "",
                "If the device has made one; empty to make a configuration here."))
            (layout::field("Days", "days", "", "How long it stays; empty for ever."))
            (layout::org_field(&visit))
            button type="submit" { "Add" }
        }
    };
    Ok(visit.page(Section::Peers, &main))
}

fn row(visit: &Visit, peer: &Peer) -> Markup {
    let path = format!("/ui/peers/{}", peer.id);
    let sure = html! { p { "“" (peer.name) "” is cut off at once." } };
    let holder = match peer.key_holder {
        KeyHolder::Device => "its own",
        KeyHolder::Configuration => "in its configuration, not managed",
        KeyHolder::Nobody => "none yet",
    };
    html! {
        tr {
            td data-label="Name" {
                span {
                    strong { (peer.name) }
                    @if visit.user.operator { " " span.note { (peer.org) } }
                    @if !peer.state.is_active() { " " span.bad { (peer.state.as_str()) } }
                }
            }
            td data-label="Address" { code { (peer.address) } }
            td data-label="Key" { (holder) }
            td data-label="Configuration" {
                span {
                    @if let Some(time) = peer.exported { (layout::at(time)) } @else { "–" }
                    @if peer.stale { " " strong.bad { "names a former gateway" } }
                }
            }
            td data-label="Ends" {
                @if let Some(time) = peer.expires { (layout::at(time)) } @else { "never" }
            }
            td data-label="Change" {
                div {
                    (export_form(visit, peer, &path))
                    (layout::folded(visit, "Remove", &format!("{path}/remove"),
                        "Remove for good", &sure))
                }
            }
        }
    }
}

fn export_form(visit: &Visit, peer: &Peer, path: &str) -> Markup {
    let makes_key = match peer.key_holder {
        KeyHolder::Device => false,
        KeyHolder::Configuration | KeyHolder::Nobody => true,
    };
    html! {
        details {
            summary { "Configuration" }
            form method="post" action={ (path) "/export" } data-makes-key[makes_key] {
                (layout::proof(visit))
                @if makes_key {
                    p {
                        "The private key is made in this browser. A former configuration works no "
                        "more."
                    }
                    input type="hidden" name="public_key" value="";
                    noscript {
                        "That needs JavaScript: else use " code { "ginnel peer export" } "."
                    }
                }
                button type="submit" { "Make it" }
            }
        }
    }
}

/// Adds a plain WireGuard client.
pub(super) async fn add(visit: Visit, form: Form) -> Result<Response, Fault> {
    let body = json!({
        "name": form.text("name"), "user": form.some("user"), "org": form.some("org"),
        "public_key": form.some("public_key"),
        "ttl_seconds": form.days("days")?,
    });
    visit.send::<Peer>(Method::POST, "/v1/peers", &body).await?;
    Ok(then("/ui/peers"))
}

/// Shows the configuration of a client, with the place of a private key that the browser has.
pub(super) async fn export(
    visit: Visit,
    Named(id): Named<NodeId>,
    form: Form,
) -> Result<Response, Fault> {
    let body = json!({ "public_key": form.some("public_key") });
    let path = format!("/v1/peers/{id}/export");
    let configuration: PeerConfiguration = visit.send(Method::POST, &path, &body).await?;
    let text = configuration.emit(None);
    let text = text.map_err(|error| ApiError::internal(error.into()))?;
    let main = html! {
        p role="status" {
            "This configuration is shown once: save it, or scan it with the WireGuard app."
        }
        div #qr {}
        pre #configuration data-public-key=[form.some("public_key")] { (text.as_str()) }
        p #save {}
        p { a href="/ui/peers" { "Back" } }
    };
    Ok(visit.page(Section::Peers, &main))
}

/// Removes a plain WireGuard client.
pub(super) async fn remove(
    visit: Visit,
    Named(id): Named<NodeId>,
    _form: Form,
) -> Result<Response, Fault> {
    visit.delete(&format!("/v1/peers/{id}")).await?;
    Ok(then("/ui/peers"))
}
