//! What all pages have in common: their frame, forms and times, style and script.

use std::{
    fmt,
    time::{Duration, UNIX_EPOCH},
};

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use maud::{DOCTYPE, Markup, html};
use model::api::{ErrorBody, Timestamp};

use super::Visit;
use crate::api::permission::Action;

/// The parts of the page, in the order of its menu.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Section {
    Home,
    Nodes,
    Users,
    Sites,
    Policy,
    Peers,
    Certificates,
    Audit,
}

impl Section {
    const ALL: [Self; 8] = [
        Self::Home,
        Self::Nodes,
        Self::Users,
        Self::Sites,
        Self::Policy,
        Self::Peers,
        Self::Certificates,
        Self::Audit,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Home => "You",
            Self::Nodes => "Nodes",
            Self::Users => "People",
            Self::Sites => "Sites",
            Self::Policy => "Policy",
            Self::Peers => "WireGuard clients",
            Self::Certificates => "SSH certificates",
            Self::Audit => "Audit",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Home => "/ui",
            Self::Nodes => "/ui/nodes",
            Self::Users => "/ui/users",
            Self::Sites => "/ui/sites",
            Self::Policy => "/ui/policy",
            Self::Peers => "/ui/peers",
            Self::Certificates => "/ui/certificates",
            Self::Audit => "/ui/audit",
        }
    }

    /// Returns what one must be able to do for it; `None` is for everybody.
    fn action(self) -> Option<Action> {
        match self {
            Self::Home => None,
            Self::Nodes => Some(Action::ReadNode),
            Self::Users => Some(Action::ReadUser),
            Self::Sites => Some(Action::ReadSite),
            Self::Policy => Some(Action::ReadPolicy),
            Self::Peers => Some(Action::ReadPeer),
            Self::Certificates => Some(Action::ReadCertificate),
            Self::Audit => Some(Action::ReadAudit),
        }
    }
}

/// Answers with the style.
pub(super) async fn style() -> Response {
    asset("text/css; charset=utf-8", include_str!("page.css"))
}

/// Answers with the script.
pub(super) async fn script() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("page.js"))
}

/// Answers with the foreign script that draws QR codes, which is fetched when there is one to draw.
pub(super) async fn qr_code() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("qrcode.mjs"))
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    let mut response = text.into_response();
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Writes the page of somebody who has signed in.
pub(super) fn page(visit: &Visit, section: Section, main: &Markup) -> Markup {
    let permitted = |section: &Section| section.action().is_none_or(|action| visit.may(action));
    let head = html! {
        nav aria-label="Sections" {
            ul {
                @for one in Section::ALL.into_iter().filter(permitted) {
                    li {
                        a href=(one.path()) aria-current=[(one == section).then_some("page")] {
                            (one.title())
                        }
                    }
                }
            }
        }
        form.out method="post" action="/ui/sign-out" {
            (proof(visit))
            span { (visit.user.name) " at " (visit.org) }
            button type="submit" { "Sign out" }
        }
    };
    frame(section.title(), &head, main)
}

/// Writes the page of somebody who has not signed in.
pub(super) fn bare(title: &str, main: &Markup) -> Markup {
    frame(title, &html! {}, main)
}

/// Writes the page of an error.
pub(super) fn refusal(error: &ErrorBody) -> Markup {
    let main = html! {
        p.alert role="alert" { (error.message) }
        p {
            "Nothing was changed. "
            a href="/ui" { "Go to the start" }
            " or back to the page before."
        }
        p.note { "Request " code { (error.request_id) } }
    };
    bare("That did not work", &main)
}

fn frame(title: &str, head: &Markup, main: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · ginnel" }
                // Else browsers ask for one.
                link rel="icon" href="data:,";
                link rel="stylesheet" href="/ui/page.css";
                script src="/ui/page.js" type="module" {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header { span.name { "ginnel" } (head) }
                main #main tabindex="-1" {
                    h1 { (title) }
                    (main)
                }
            }
        }
    }
}

/// Returns what every form carries.
pub(super) fn proof(visit: &Visit) -> Markup {
    html! { input type="hidden" name="proof" value=(visit.proof); }
}

/// Writes a form with one button behind a word that opens it.
pub(super) fn folded(
    visit: &Visit,
    word: &str,
    action: &str,
    button: &str,
    fields: &Markup,
) -> Markup {
    html! {
        details {
            summary { (word) }
            form method="post" action=(action) {
                (proof(visit))
                (fields)
                button type="submit" { (button) }
            }
        }
    }
}

/// Writes a text field with its label.
pub(super) fn field(label: &str, name: &str, value: &str, hint: &str) -> Markup {
    html! {
        label {
            span { (label) }
            input name=(name) value=(value) autocomplete="off" autocapitalize="none"
                spellcheck="false";
            @if !hint.is_empty() { small { (hint) } }
        }
    }
}

/// Writes the field that names an organisation, for whoever acts in several.
pub(super) fn org_field(visit: &Visit) -> Markup {
    html! {
        @if visit.user.operator {
            (field("Organisation", "org", visit.org.as_str(), ""))
        }
    }
}

/// Writes a choice among words.
pub(super) fn choice(label: &str, name: &str, words: &[&str], chosen: &str) -> Markup {
    html! {
        label {
            span { (label) }
            select name=(name) {
                @for word in words {
                    option value=(word) selected[*word == chosen] { (word) }
                }
            }
        }
    }
}

/// Writes a secret that is shown once.
pub(super) fn shown_once(what: &str, secret: &str, command: &str, back: &str) -> Markup {
    html! {
        p role="status" { (what) " It is shown once." }
        p { code.secret { (secret) } }
        p { "There: " code { (command) } }
        p { a href=(back) { "Back" } }
    }
}

/// Writes a list that shows what is new by itself.
pub(super) fn live(name: &str, list: &Markup) -> Markup {
    html! { section id=(name) data-live="" aria-label=(name) { (list) } }
}

/// Writes the head of a table.
pub(super) fn titles(titles: &[&str]) -> Markup {
    html! {
        thead { tr { @for title in titles { th scope="col" { (title) } } } }
    }
}

/// Writes items between blanks.
pub(super) fn joined(items: &[impl fmt::Display]) -> Markup {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    html! { (items.join(" ")) }
}

/// Writes the link to what comes after a page of a list, with the rest of its query.
pub(super) fn more(path: &str, query: &str, next: Option<i64>) -> Markup {
    html! {
        @if let Some(next) = next {
            p { a href={ (path) "?" (query) "&after=" (next) } { "More" } }
        }
    }
}

/// Writes how long ago something was, and when.
pub(super) fn ago(visit: &Visit, time: Timestamp) -> Markup {
    let seconds = (visit.server.now() - time.0).max(0);
    let (count, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3_600 => (seconds / 60, "min"),
        3_600..86_400 => (seconds / 3_600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    let exact = exact(time);
    html! { time datetime=(exact) title=(exact) { (count) " " (unit) " ago" } }
}

/// Writes a time, in UTC.
pub(super) fn at(time: Timestamp) -> Markup {
    let exact = exact(time);
    let words = exact.replace('T', " ").replace('Z', " UTC");
    html! { time datetime=(exact) { (words) } }
}

/// The last second that RFC 3339 can write.
const LAST_SECOND: u64 = 253_402_300_799;

fn exact(time: Timestamp) -> String {
    let seconds = u64::try_from(time.0).unwrap_or(0).min(LAST_SECOND);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}
