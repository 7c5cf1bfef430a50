//! SSH certificates that were issued.

use axum::{http::Method, response::Response};
use maud::{Markup, html};
use model::{
    api::Page,
    ssh::{Certificate, Revoked},
};
use serde_json::json;

use super::{
    Fault, Form, Visit,
    layout::{self, Section},
    node::Part,
    then,
};
use crate::api::extract::{Asked, Named};

/// Lists the certificates, oldest first.
pub(super) async fn list(visit: Visit, Asked(part): Asked<Part>) -> Result<Response, Fault> {
    let query = [("org", part.org.as_str()), ("after", &part.after)];
    let certificates: Page<Certificate> = visit.get("/v1/ssh/certificates", &query).await?;
    let titles = ["Serial", "For", "Named", "Speaks for", "Valid", "Change"];
    let rows = html! {
        table {
            caption { "Those that ended within the last 30 days are here too." }
            (layout::titles(&titles))
            tbody {
                @for certificate in &certificates.items { (row(&visit, certificate)) }
            }
        }
        @if certificates.items.is_empty() { p { "There are none." } }
        (layout::more("/ui/certificates", &part.next(), certificates.next))
    };
    let main = html! {
        @if visit.user.operator {
            form.row method="get" action="/ui/certificates" role="search" {
                (layout::field("Organisation", "org", &part.org, ""))
                button type="submit" { "Show" }
            }
        }
        (layout::live("certificates", &rows))
    };
    Ok(visit.page(Section::Certificates, &main))
}

fn row(visit: &Visit, certificate: &Certificate) -> Markup {
    let path = format!("/ui/certificates/{}/revoke", certificate.serial);
    let has_ended = certificate.valid_before.0 <= visit.server.now();
    let sure = html! { p { "Sessions that run by it end within seconds." } };
    html! {
        tr {
            td data-label="Serial" { (certificate.serial) }
            td data-label="For" { (certificate.kind) }
            td data-label="Named" { code { (certificate.key_id) } }
            td data-label="Speaks for" { (layout::joined(&certificate.principals)) }
            td data-label="Valid" {
                span {
                    (layout::at(certificate.valid_after)) " to "
                    (layout::at(certificate.valid_before))
                    @if let Some(time) = certificate.revoked {
                        " " strong.bad { "revoked " (layout::at(time)) }
                    } @else if has_ended { " " span.note { "ended" } }
                }
            }
            td data-label="Change" {
                @if certificate.revoked.is_none() && !has_ended {
                    div { (layout::folded(visit, "Revoke", &path, "Revoke", &sure)) }
                }
            }
        }
    }
}

/// Takes a certificate back.
pub(super) async fn revoke(
    visit: Visit,
    Named(serial): Named<u64>,
    _form: Form,
) -> Result<Response, Fault> {
    let (path, body) = ("/v1/ssh/revocations", json!({ "serial": serial }));
    visit.send::<Revoked>(Method::POST, path, &body).await?;
    Ok(then("/ui/certificates"))
}
