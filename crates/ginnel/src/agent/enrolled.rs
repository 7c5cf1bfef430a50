//! The tunnel of an enrolled node.

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
};

use anyhow::Context as _;

use super::profile::Opened;
use crate::{
    api::Client,
    enrolled::{Enrolled, NodeKey, Source},
    enrolment::State,
    remedy::Advise as _,
};
use tunnel::Wanted;

/// Opens the tunnel; its background follows the map and serves published ports.
pub(super) async fn open(
    state: State,
    interface: Option<&Wanted>,
    ssh: bool,
) -> anyhow::Result<Opened> {
    let enrolment = state.enrolment()?;
    let key = state
        .private_key()?
        .context("the state directory has no private key")
        .remedy("run `ginnel logout --force` and enrol again")?;
    let client = Arc::new(Client::with_token(&enrolment.url, enrolment.token)?);
    let any_port = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let source = Source::Server(Arc::clone(&client));
    let enrolled = Enrolled::open(state.clone(), &key, source, any_port, interface).await?;
    let tunnel = enrolled.tunnel().clone();
    let key = NodeKey::open(state, Arc::clone(&client), enrolment.id, tunnel.clone())?;
    enrolled.replace_key_after_captures(key.clone());
    Ok(Opened {
        tunnel,
        key: Some(key),
        control: Some((enrolment.url, enrolled.contact())),
        led: enrolled.led(),
        asked: enrolled.asked(),
        sites: enrolled.sites(),
        background: match ssh {
            true => Box::pin(enrolled.run_with_ssh(client)),
            false => Box::pin(enrolled.run()),
        },
    })
}
