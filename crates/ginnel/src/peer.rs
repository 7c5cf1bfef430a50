//! `ginnel peer show`: one WireGuard tunnel of this node in every detail.

use std::time::Duration;

use model::status::{Handshake, Session};

use crate::{
    agent::{
        Client, client,
        protocol::{Answer, Path, Request, ShownPeer},
    },
    cli::Global,
    status, terminal,
};

/// Longer than a name may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Asks the agent and prints.
pub(crate) async fn show(name: String, global: &Global) -> anyhow::Result<()> {
    let (answer, _) = Client::of(global)?
        .ask(&Request::Peer { name }, TIMEOUT)
        .await?;
    let Answer::Peer(details) = answer else {
        return Err(client::unexpected(&answer));
    };
    if global.json {
        terminal::json(&details)?;
    } else {
        terminal::line(text(&details))?;
    }
    Ok(())
}

fn text(shown: &ShownPeer) -> String {
    let details = &shown.details;
    let peer = &details.peer;
    let mut lines = vec![
        format!("peer         {}", status::peer_text(peer)),
        format!("public key   {}", peer.public_key),
        format!(
            "preshared    {}",
            if details.preshared_key { "yes" } else { "no" }
        ),
        format!("allowed IPs  {}", peer.allowed_ips.join(", ")),
        format!(
            "datagrams    {} received, {} sent",
            peer.traffic.received_datagrams, peer.traffic.sent_datagrams
        ),
        format!("transport    {}", shown.transport),
        format!("handshake    {}", handshake_text(&details.handshake)),
    ];
    lines.extend(shown.path.as_ref().map(path_text));
    lines.extend(details.sessions.iter().map(session_text));
    let timers = details.timers_due_ms.iter();
    lines.extend(timers.map(|(name, due)| format!("timer        {name} in {}", seconds(*due))));
    lines.extend(details.endpoints.iter().map(|heard| {
        let age = status::age(heard.age_seconds);
        format!("heard from   {} first {age} ago", heard.endpoint)
    }));
    if details.staged_packets > 0 {
        lines.push(format!("staged       {} packets", details.staged_packets));
    }
    let discards = details.discards.iter();
    lines.extend(discards.map(|(reason, count)| format!("discarded    {count} {reason}")));
    lines.join("\n")
}

fn path_text(path: &Path) -> String {
    let mut parts = vec![format!(
        "path         {} of {} echoes answered by {}",
        path.answered, path.sent, path.target
    )];
    if let Some(times) = path.round_trip_us {
        let millis = |micros: u64| format!("{}.{:03}", micros / 1_000, micros % 1_000);
        let (min, avg, max) = (millis(times.min), millis(times.avg), millis(times.max));
        parts.push(format!("min/avg/max {min}/{avg}/{max} ms"));
        parts.push(match path.carries_bytes {
            Some(bytes) => format!("packets of {bytes} bytes pass"),
            None => "full packets do not pass: see `ginnel doctor`".to_owned(),
        });
    }
    parts.join(", ")
}

fn handshake_text(told: &Handshake) -> String {
    let mut parts = Vec::new();
    match (told.initiation_index, told.attempt_age_ms) {
        (Some(index), Some(age)) => parts.push(format!(
            "initiation {index:08x} is unanswered, attempt began {} ago",
            seconds(age)
        )),
        (Some(index), None) => parts.push(format!("initiation {index:08x} is unanswered")),
        (None, _) => parts.push("none is under way".to_owned()),
    }
    if told.attempts > 0 {
        parts.push(format!("{} initiations since the last one", told.attempts));
    }
    if let Some(age) = told.sent_age_ms {
        parts.push(format!("last message sent {} ago", seconds(age)));
    }
    if let Some(age) = told.initiation_received_age_ms {
        parts.push(format!("last initiation taken {} ago", seconds(age)));
    }
    parts.join(", ")
}

fn session_text(session: &Session) -> String {
    format!(
        "session      {}: ours {:08x}, theirs {:08x}, as {}, {} old, ends in {}, {} messages \
         sealed",
        session.place,
        session.local_index,
        session.remote_index,
        if session.initiator {
            "initiator"
        } else {
            "responder"
        },
        seconds(session.age_ms),
        seconds(session.expires_in_ms),
        session.sent_messages,
    )
}

fn seconds(millis: u64) -> String {
    format!("{}.{} s", millis / 1_000, millis / 100 % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::protocol::RoundTrips;

    #[test]
    fn a_path_says_what_was_lost_how_long_it_took_and_what_it_carries() {
        let mut path = Path {
            target: "fd00::1".parse().expect("an address"),
            sent: 5,
            answered: 4,
            round_trip_us: Some(RoundTrips {
                min: 950,
                avg: 1_005,
                max: 20_000,
            }),
            carries_bytes: Some(1_280),
        };
        assert_eq!(
            path_text(&path),
            "path         4 of 5 echoes answered by fd00::1, min/avg/max 0.950/1.005/20.000 ms, \
             packets of 1280 bytes pass"
        );
        path.answered = 0;
        path.round_trip_us = None;
        path.carries_bytes = None;
        let silent = "path         0 of 5 echoes answered by fd00::1";
        assert_eq!(path_text(&path), silent);
    }

    #[test]
    fn a_handshake_says_whether_it_waits_for_an_answer() {
        let idle = Handshake {
            initiation_index: None,
            attempts: 0,
            attempt_age_ms: None,
            sent_age_ms: Some(12_345),
            initiation_received_age_ms: None,
        };
        assert_eq!(
            handshake_text(&idle),
            "none is under way, last message sent 12.3 s ago"
        );
        let waiting = Handshake {
            initiation_index: Some(0xabc),
            attempts: 3,
            attempt_age_ms: Some(10_000),
            ..idle
        };
        assert_eq!(
            handshake_text(&waiting),
            "initiation 00000abc is unanswered, attempt began 10.0 s ago, 3 initiations since the \
             last one, last message sent 12.3 s ago"
        );
    }
}
