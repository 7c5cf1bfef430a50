//! From the sign-in to the control plane: who this machine is, and whether that is still true.

use anyhow::Result;
use model::{
    api::{ErrorCode, Timestamp},
    map::{self, NetworkMap},
};

use super::{
    Seen,
    finding::{Cause, Finding},
};
use crate::{
    api::{Client, Error, TlsFaultKind},
    cli::Global,
    enrol,
    enrolment::{Enrolment, State},
};

/// Clocks that differ by more break what has a time of its own: certificates, tokens, sign-ins.
const SKEW_MAX_SECONDS: u64 = 60;

/// Looks whether this machine belongs to a network.
pub(super) fn sign_in(global: &Global) -> Seen<(State, Enrolment)> {
    let found = State::locate(global).and_then(|state| {
        let enrolment = state.enrolment()?;
        Ok((state, enrolment))
    });
    let (state, enrolment) =
        found.map_err(|error| Finding::of_error(Cause::NotEnrolled, &error))?;
    let detail = format!("{} at {}", enrolment.name, enrolment.url);
    Ok(((state, enrolment), detail))
}

/// Asks the control plane what it knows of this node, and compares.
pub(super) async fn control(state: &State, enrolment: &Enrolment) -> Seen<NetworkMap> {
    let client = Client::with_token(&enrolment.url, enrolment.token.clone());
    let client = client.map_err(|error| refused(&error))?;
    let map = client.map().await.map_err(|error| refused(&error))?;
    let key = state.private_key();
    let key = key.map_err(|error| Finding::of_error(Cause::NotEnrolled, &error))?;
    if let Some((why, remedy)) = map.own.hindrance() {
        let cause = match map.own.state {
            map::State::Pending => Cause::NotApproved,
            map::State::Active | map::State::Expired => Cause::Expired,
        };
        return Err(Finding::new(cause, format!("map: {why}"), remedy));
    }
    let known = map.own_org().and_then(|org| org.nodes.get(&map.own.id));
    let own = key.as_ref().map(enrol::public_key);
    if let Some(known) = known
        && Some(known.public_key) != own
    {
        let own = own.map_or_else(|| "none".to_owned(), |own| own.to_string());
        return Err(Finding::new(
            Cause::KeyMismatch,
            format!(
                "key: the network knows this node by the public key {}, and the one that is kept \
                 here is {own}",
                known.public_key
            ),
            "put the right private.key back into the state directory, or run `ginnel logout \
             --force` and enrol again",
        ));
    }
    let detail = format!("it knows this node, map {}", map.serial);
    Ok((map, detail))
}

/// Reads the map by which the node works while the control plane is away.
pub(super) fn last_map(state: &State) -> Result<NetworkMap, Finding> {
    let map = state.map();
    let map = map.map_err(|error| Finding::of_error(Cause::NotEnrolled, &error))?;
    map.ok_or_else(|| {
        Finding::new(
            Cause::ControlAway,
            "control plane: it is away, and this machine has no map yet",
            "start the server",
        )
    })
}

/// Compares the clocks of this machine and of the server.
pub(super) async fn clock(enrolment: &Enrolment) -> Seen<()> {
    // Anybody may ask, and the pin is the token's.
    let client = Client::new(&enrolment.url, enrolment.token.pin(), None);
    let client = client.map_err(|error| refused(&error))?;
    let health = client.health().await.map_err(|error| refused(&error))?;
    let Some(Timestamp(theirs)) = health.time else {
        return Ok((
            (),
            "an older server, which does not tell its time".to_owned(),
        ));
    };
    let ours = os::clock::wall();
    let ours = ours
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let ours = i64::try_from(ours.as_secs()).unwrap_or(i64::MAX);
    let seconds = ours.abs_diff(theirs);
    if seconds <= SKEW_MAX_SECONDS {
        return Ok(((), format!("{seconds} s apart from the server's")));
    }
    let direction = if ours > theirs { "ahead of" } else { "behind" };
    Err(Finding::new(
        Cause::ClockSkew,
        format!("clock: this machine's is {seconds} s {direction} the server's"),
        SET_CLOCK,
    ))
}

const SET_CLOCK: &str = "set it, for example by `timedatectl set-ntp true`; or the server's, if \
                         that is the wrong one: certificates and tokens have a time";

/// Says that this is no place to look from.
pub(super) fn is_gateway() -> Finding {
    Finding::new(
        Cause::Gateway,
        "this machine is a gateway, and a tunnel is looked at from a node",
        "run `ginnel doctor` on a node that it serves",
    )
}

fn refused(error: &Error) -> Finding {
    let unready = [
        ErrorCode::Internal,
        ErrorCode::Unavailable,
        ErrorCode::StorageFailed,
        ErrorCode::StorageFull,
    ];
    let code = match (error.code(), error.tls_fault()) {
        (Some(code), _) if !unready.contains(&code) => Cause::SignInRefused,
        (_, Some(TlsFaultKind::Clock)) => Cause::ClockSkew,
        (_, Some(TlsFaultKind::Server)) => Cause::ControlReplaced,
        (Some(_) | None, Some(TlsFaultKind::Path) | None) => Cause::ControlAway,
    };
    Finding::new(code, error.to_string(), error.remedy())
}
