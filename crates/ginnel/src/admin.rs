//! Commands about the things that the control plane keeps: one file for each noun.

pub(crate) mod audit;
pub(crate) mod node;
pub(crate) mod oidc;
pub(crate) mod org;
pub(crate) mod peer;
pub(crate) mod policy;
pub(crate) mod service;
pub(crate) mod session;
pub(crate) mod site;
pub(crate) mod ssh_ca;
pub(crate) mod token;
pub(crate) mod user;

use anyhow::{Context as _, Result};
use model::api::{ListQuery, Page, Timestamp};

use crate::{api::Client, cli::Global, enrolment::State, remedy::Advise as _};

/// Lists stop here, so that a faulty server cannot fill the memory.
const ITEMS_MAX: usize = 1_000_000;

/// Connects to this machine's server as the person who has signed in here.
pub(crate) fn client(global: &Global) -> Result<Client> {
    let state = State::locate(global)?;
    let enrolment = state.enrolment()?;
    let session = state
        .session()?
        .context("sign-in: nobody has signed in on this machine")
        .remedy("run `ginnel login URL` on the device of an administrator")?;
    Ok(Client::with_token(&enrolment.url, session.token)?)
}

/// Fetches every page of a list.
pub(crate) async fn all<T>(
    mut query: ListQuery,
    fetch: impl AsyncFn(&ListQuery) -> Result<Page<T>, crate::api::Error>,
) -> Result<Vec<T>> {
    let mut items = Vec::new();
    loop {
        let page = fetch(&query).await?;
        items.extend(page.items);
        match page.next {
            Some(next) if items.len() < ITEMS_MAX => query.after = Some(next),
            Some(_) | None => return Ok(items),
        }
    }
}

/// Writes a point in time as people read it.
pub(crate) fn time(timestamp: Timestamp) -> String {
    let seconds = u64::try_from(timestamp.0).unwrap_or_default();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Returns `value` as text, or a dash.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
