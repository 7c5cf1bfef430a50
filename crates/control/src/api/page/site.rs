//! Sites.

use axum::{http::Method, response::Response};
use maud::{Markup, html};
use model::{
    api::{ErrorCode, Node, Page, Site},
    id::SiteId,
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
    permission::Action,
};

/// Lists the sites.
pub(super) async fn list(visit: Visit, Asked(part): Asked<Part>) -> Result<Response, Fault> {
    let sites: Page<Site> = visit.get("/v1/sites", &part.query()).await?;
    let titles = ["Name", "Behind", "Prefixes", "Mode", "Network", "Change"];
    let rows = html! {
        table {
            (layout::titles(&titles))
            tbody {
                @for site in &sites.items { (row(&visit, site)) }
            }
        }
        @if sites.items.is_empty() { p { "There is no such site." } }
        (layout::more("/ui/sites", &part.next(), sites.next))
    };
    let main = html! {
        (part.filter(&visit, "/ui/sites"))
        (layout::live("sites", &rows))
        @if visit.may(Action::ChangeSite) {
            h2 { "Add a site" }
            p { "Nobody reaches its hosts until a rule names it." }
            form method="post" action="/ui/sites" {
                (layout::proof(&visit))
                (layout::field("Name", "name", "", ""))
                (layout::field("Node", "node", "", NODE_HINT))
                (layout::field("Prefixes", "prefixes", "", "Such as 192.168.1.0/24."))
                (layout::field("Aliases", "aliases", "", ALIAS_HINT))
                (layout::choice("Mode", "mode", &["auto", "masquerade", "routed"], "masquerade"))
                (layout::org_field(&visit))
                button type="submit" { "Add" }
            }
        }
    };
    Ok(visit.page(Section::Sites, &main))
}

fn row(visit: &Visit, site: &Site) -> Markup {
    let path = format!("/ui/sites/{}/remove", site.id);
    let sure = html! { p { "Rules that name “" (site.name) "” stay and have no effect." } };
    html! {
        tr {
            td data-label="Name" {
                span {
                    strong { (site.name) }
                    @if visit.user.operator { " " span.note { (site.org) } }
                }
            }
            td data-label="Behind" {
                @for (at, node) in site.nodes.iter().enumerate() {
                    @if at > 0 { ", " }
                    (node.node_name)
                    @match (node.carries, node.health) {
                        (Some(true), _) => { " " span.note { "carries it" } }
                        (Some(false), Some(health)) => {
                            " " span.note { (health.in_words()) }
                        }
                        (Some(false), None) | (None, _) => {}
                    }
                }
            }
            td data-label="Prefixes" {
                @for (at, prefix) in site.prefixes.iter().enumerate() {
                    @if at > 0 { ", " }
                    (prefix)
                    @for alias in site.aliases.iter().filter(|it| it.prefix() == *prefix) {
                        " " span.note { "alias " (alias.alias()) }
                    }
                }
            }
            td data-label="Mode" { (site.mode) }
            td data-label="Network" { code { (site.network) } }
            td data-label="Change" {
                @if visit.may(Action::ChangeSite) {
                    div { (layout::folded(visit, "Remove", &path, "Remove for good", &sure)) }
                }
            }
        }
    }
}

const ALIAS_HINT: &str = "Such as 192.168.1.0/24=10.99.1.0/24, by which machines with an interface \
                          know its hosts.";

const NODE_HINT: &str = "The name of the node behind which it lies; of several, separated by \
                         blanks, the first that is well carries it.";

/// Adds a site behind the nodes of some names.
pub(super) async fn add(visit: Visit, form: Form) -> Result<Response, Fault> {
    let org = form.some("org").unwrap_or(visit.org.as_str());
    let mut ids = Vec::new();
    for name in form.items("node") {
        let query = [("name", name), ("org", org)];
        let nodes: Page<Node> = visit.get("/v1/nodes", &query).await?;
        let node = nodes.items.first().ok_or_else(|| {
            let message = format!("there is no node `{name}`");
            ApiError::new(ErrorCode::NotFound, message)
        })?;
        ids.push(node.id);
    }
    let (node, standbys) = ids.split_first().ok_or_else(|| {
        let message = "name the node behind which the site lies";
        ApiError::new(ErrorCode::MalformedRequest, message)
    })?;
    let body = json!({
        "name": form.text("name"), "node": node, "standbys": standbys,
        "prefixes": form.items("prefixes"), "aliases": form.items("aliases"),
        "mode": form.text("mode"),
    });
    visit.send::<Site>(Method::POST, "/v1/sites", &body).await?;
    Ok(then("/ui/sites"))
}

/// Removes a site.
pub(super) async fn remove(
    visit: Visit,
    Named(id): Named<SiteId>,
    _form: Form,
) -> Result<Response, Fault> {
    visit.delete(&format!("/v1/sites/{id}")).await?;
    Ok(then("/ui/sites"))
}
