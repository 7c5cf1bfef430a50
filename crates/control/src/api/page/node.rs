//! Nodes: who is in the network, and in which state.

use std::collections::{BTreeMap, BTreeSet};

use axum::{http::Method, response::Response};
use maud::{Markup, html};
use model::{
    amount::Bytes,
    api::{CreatedToken, GatewayTunnel, MAP_WAIT_SECONDS_MAX, Node, Page, Peer, User},
    id::{NodeId, UserId},
    map,
    name::Label,
};
use serde::Deserialize;
use serde_json::json;

use super::{
    Fault, Form, ITEMS_MAX, Visit,
    layout::{self, Section},
    then,
};
use crate::api::{
    extract::{Asked, Named},
    permission::Action,
};

/// Which part of a list.
#[derive(Default, Deserialize)]
pub(super) struct Part {
    /// Of one organisation.
    #[serde(default)]
    pub(super) org: String,
    /// Of one name.
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) after: String,
}

impl Part {
    /// Returns the query of the API.
    pub(super) fn query(&self) -> [(&str, &str); 4] {
        [
            ("org", &self.org),
            ("name", &self.name),
            ("after", &self.after),
            ("limit", ITEMS_MAX),
        ]
    }

    /// Returns the query of the link to the next page, without where that begins.
    pub(super) fn next(&self) -> String {
        super::query(&[("org", &self.org), ("name", &self.name)])
    }

    /// Writes the form that asks for another part.
    pub(super) fn filter(&self, visit: &Visit, path: &str) -> Markup {
        html! {
            form.row method="get" action=(path) role="search" {
                (layout::field("Name", "name", &self.name, ""))
                @if visit.user.operator {
                    (layout::field("Organisation", "org", &self.org, ""))
                }
                button type="submit" { "Show" }
            }
        }
    }
}

/// A node that has not asked for longer than this is not there, in seconds: each asks again once a
/// wait is over.
const SILENT_SECONDS: i64 = MAP_WAIT_SECONDS_MAX.cast_signed() + 15;

/// Whether whoever joins waits for approval.
const APPROVAL: [&str; 2] = [NOT_NEEDED, NEEDED];
const NOT_NEEDED: &str = "not needed";
const NEEDED: &str = "needed";

/// What goes with a list of nodes, as far as the asker may know it.
#[derive(Default)]
struct Around {
    /// The names of people.
    people: BTreeMap<UserId, Label>,
    /// Which nodes are plain WireGuard clients.
    peers: BTreeSet<NodeId>,
}

/// Lists the nodes.
pub(super) async fn list(visit: Visit, Asked(part): Asked<Part>) -> Result<Response, Fault> {
    let nodes: Page<Node> = visit.get("/v1/nodes", &part.query()).await?;
    let around = Around::of(&visit, &part.org).await?;
    let titles = [
        "Name",
        "State",
        "Last seen",
        "Handshake",
        "Tunnel",
        "Person",
        "Address",
        "Tags",
        "Change",
    ];
    let rows = html! {
        table {
            caption {
                "Last seen is when a node last asked this server for news. Handshake and tunnel "
                "are as its gateway told last, traffic since the gateway started."
            }
            (layout::titles(&titles))
            tbody {
                @for node in &nodes.items { (row(&visit, node, &around)) }
            }
        }
        @if nodes.items.is_empty() { p { "There is no such node." } }
        (layout::more("/ui/nodes", &part.next(), nodes.next))
    };
    let main = html! {
        (part.filter(&visit, "/ui/nodes"))
        (layout::live("nodes", &rows))
        @if visit.may(Action::ChangeToken) {
            h2 { "Add a machine" }
            form method="post" action="/ui/nodes" {
                (layout::proof(&visit))
                (layout::org_field(&visit))
                (layout::choice("Approval", "approval", &APPROVAL, NOT_NEEDED))
                p { "A token lets one machine join within an hour." }
                button type="submit" { "Make a join token" }
            }
        }
    };
    Ok(visit.page(Section::Nodes, &main))
}

impl Around {
    async fn of(visit: &Visit, org: &str) -> Result<Self, Fault> {
        let mut around = Self::default();
        if visit.may(Action::ReadUser) {
            let people: Page<User> = visit.get("/v1/users", &[("org", org)]).await?;
            around.people = people
                .items
                .into_iter()
                .map(|it| (it.id, it.name))
                .collect();
        }
        if visit.may(Action::ReadPeer) {
            let peers: Page<Peer> = visit.get("/v1/peers", &[("org", org)]).await?;
            around.peers = peers.items.into_iter().map(|peer| peer.id).collect();
        }
        Ok(around)
    }
}

fn row(visit: &Visit, node: &Node, around: &Around) -> Markup {
    let is_peer = around.peers.contains(&node.id);
    html! {
        tr {
            td data-label="Name" {
                span {
                    strong { (node.name) }
                    @if visit.user.operator {
                        @if let Some(org) = &node.org { " " span.note { (org) } }
                    }
                }
            }
            td data-label="State" { (state(visit, node, is_peer)) }
            td data-label="Last seen" {
                @if let Some(seen) = node.seen { (layout::ago(visit, seen)) } @else { "–" }
            }
            td data-label="Handshake" {
                @if let Some(tunnel) = &node.tunnel { (layout::ago(visit, tunnel.handshake)) }
                @else { "–" }
            }
            td data-label="Tunnel" {
                @if let Some(tunnel) = &node.tunnel { (traffic(tunnel)) } @else { "–" }
            }
            td data-label="Person" { (person(node, around)) }
            td data-label="Address" {
                @if let Some(address) = node.address { code { (address) } }
                @if let Some(endpoint) = &node.endpoint { code { (endpoint) } }
            }
            td data-label="Tags" {
                (layout::joined(&node.tags))
            }
            td data-label="Change" {
                @if visit.may(Action::ChangeNode) { div { (changes(visit, node)) } }
            }
        }
    }
}

/// What carries the tunnel of a node, and what has passed it, as the node sees it.
fn traffic(tunnel: &GatewayTunnel) -> Markup {
    let (sent, received) = (Bytes(tunnel.received_bytes), Bytes(tunnel.sent_bytes));
    html! {
        span { (tunnel.transport) ", " (sent) " sent, " (received) " received" }
    }
}

fn state(visit: &Visit, node: &Node, is_peer: bool) -> Markup {
    let is_there = |seen: i64| visit.server.now() - seen <= SILENT_SECONDS;
    html! {
        span {
            @match (node.role, node.seen) {
                _ if node.state == map::State::Pending => strong.bad { "waits for approval" },
                _ if node.state == map::State::Expired => span.bad { "expired" },
                _ if is_peer => "plain WireGuard",
                (_, Some(seen)) if is_there(seen.0) => span.good { "in touch" },
                (_, Some(_)) => span.bad { "silent" },
                (map::Role::Gateway, None) => "gateway",
                (map::Role::Client, None) => "not seen since this server started",
            }
            @if let Some(expires) = node.expires {
                " " span.note { "until " (layout::at(expires)) }
            }
        }
    }
}

fn person(node: &Node, around: &Around) -> Markup {
    html! {
        @match node.user {
            None => "–",
            Some(id) => @match around.people.get(&id) {
                Some(name) => (name),
                None => { "user " (id) },
            },
        }
    }
}

fn changes(visit: &Visit, node: &Node) -> Markup {
    let path = format!("/ui/nodes/{}", node.id);
    let tags: Vec<_> = node.tags.iter().map(Label::as_str).collect();
    let is_client = match node.role {
        map::Role::Client => true,
        map::Role::Gateway => false,
    };
    let fields = html! {
        (layout::field("Name", "name", node.name.as_str(), "Its address stays."))
        @if is_client { (layout::field("Tags", "tags", &tags.join(" "), "Separated by blanks.")) }
    };
    let sure = html! { p { "“" (node.name) "” is cut off at once and has to join again." } };
    let key = html! { p { "“" (node.name) "” has the key " code { (node.public_key) } "." } };
    let days = layout::field(
        "Days",
        "days",
        "",
        "From now; 0 is at once, empty is never.",
    );
    html! {
        @if node.state == map::State::Pending && visit.may(Action::ApproveNode) {
            (layout::folded(visit, "Approve", &format!("{path}/approval"), "Let it in", &key))
        }
        (layout::folded(visit, "Change", &path, "Save", &fields))
        @if is_client && visit.may(Action::ExpireNode) {
            (layout::folded(visit, "Expire", &format!("{path}/expiry"), "Set its end", &days))
        }
        (layout::folded(visit, "Remove", &format!("{path}/remove"), "Remove for good", &sure))
    }
}

/// Makes a token by which a machine joins.
pub(super) async fn invite(visit: Visit, form: Form) -> Result<Response, Fault> {
    let approval = form.text("approval") == NEEDED;
    let body = json!({ "kind": "join", "org": form.some("org"), "approval": approval });
    let created: CreatedToken = visit.send(Method::POST, "/v1/tokens", &body).await?;
    let token = created.token.emit();
    let command = format!("ginnel join {} --token TOKEN", visit.server.url());
    let what = "A machine can join by this token within an hour.";
    let main = layout::shown_once(what, &token, &command, "/ui/nodes");
    Ok(visit.page(Section::Nodes, &main))
}

/// Gives a node another name and other tags.
pub(super) async fn set(
    visit: Visit,
    Named(id): Named<NodeId>,
    form: Form,
) -> Result<Response, Fault> {
    let mut body = json!({ "name": form.text("name") });
    if form.has("tags") {
        body["tags"] = json!(form.items("tags"));
    }
    let path = format!("/v1/nodes/{id}");
    visit.send::<Node>(Method::PATCH, &path, &body).await?;
    Ok(then("/ui/nodes"))
}

/// Lets a node that waits into the network.
pub(super) async fn approve(
    visit: Visit,
    Named(id): Named<NodeId>,
    _form: Form,
) -> Result<Response, Fault> {
    let path = format!("/v1/nodes/{id}/approval");
    visit.send::<Node>(Method::POST, &path, &json!({})).await?;
    Ok(then("/ui/nodes"))
}

/// Says when a node's time is over.
pub(super) async fn expire(
    visit: Visit,
    Named(id): Named<NodeId>,
    form: Form,
) -> Result<Response, Fault> {
    let body = json!({ "ttl_seconds": form.days("days")? });
    let path = format!("/v1/nodes/{id}/expiry");
    visit.send::<Node>(Method::PUT, &path, &body).await?;
    Ok(then("/ui/nodes"))
}

/// Removes a node.
pub(super) async fn remove(
    visit: Visit,
    Named(id): Named<NodeId>,
    _form: Form,
) -> Result<Response, Fault> {
    visit.delete(&format!("/v1/nodes/{id}")).await?;
    Ok(then("/ui/nodes"))
}
