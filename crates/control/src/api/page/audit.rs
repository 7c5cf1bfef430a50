//! The audit: who changed what, and when.

use axum::response::Response;
use maud::html;
use model::api::{AuditEntry, Page};
use serde::Deserialize;

use super::{
    Fault, ITEMS_MAX, Visit,
    layout::{self, Section},
};
use crate::api::extract::Asked;

/// Which changes are asked for.
#[derive(Default, Deserialize)]
pub(super) struct Query {
    #[serde(default)]
    org: String,
    #[serde(default)]
    actor: String,
    #[serde(default)]
    action: String,
    #[serde(default)]
    days: String,
    #[serde(default)]
    after: String,
}

/// Of how many days changes are shown if nobody says.
const DAYS: i64 = 7;

/// Lists the changes, oldest first.
pub(super) async fn list(visit: Visit, Asked(query): Asked<Query>) -> Result<Response, Fault> {
    let days = query.days.parse().unwrap_or(DAYS).clamp(0, 400);
    let since = (visit.server.now() - days * 86_400).to_string();
    let asked = [
        ("org", query.org.as_str()),
        ("actor", &query.actor),
        ("action", &query.action),
        ("since", &since),
        ("after", &query.after),
        ("limit", ITEMS_MAX),
    ];
    let entries: Page<AuditEntry> = visit.get("/v1/audit", &asked).await?;
    let days = days.to_string();
    let next = super::query(&[
        ("org", &query.org),
        ("actor", &query.actor),
        ("action", &query.action),
        ("days", &days),
    ]);
    let rows = html! {
        table {
            caption { "Oldest first." }
            (layout::titles(&["Time", "Who", "What", "Whom", "Organisation"]))
            tbody {
                @for entry in &entries.items {
                    tr {
                        td data-label="Time" { (layout::at(entry.time)) }
                        td data-label="Who" { (entry.actor) }
                        td data-label="What" { (entry.action) }
                        td data-label="Whom" { (entry.subject) }
                        td data-label="Organisation" {
                            @if let Some(org) = &entry.org { (org) } @else { "–" }
                        }
                    }
                }
            }
        }
        @if entries.items.is_empty() { p { "There is no such change." } }
        (layout::more("/ui/audit", &next, entries.next))
    };
    let main = html! {
        form.row method="get" action="/ui/audit" role="search" {
            (layout::field("Who", "actor", &query.actor, "A name, or such as user:1."))
            (layout::field("What", "action", &query.action, "Such as node_removed."))
            (layout::field("Days", "days", &days, "How far back."))
            @if visit.user.operator {
                (layout::field("Organisation", "org", &query.org, ""))
            }
            button type="submit" { "Show" }
        }
        (layout::live("changes", &rows))
    };
    Ok(visit.page(Section::Audit, &main))
}
