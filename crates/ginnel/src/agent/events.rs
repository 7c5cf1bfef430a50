//! The events of a node for a command: what the tunnel tells at once, and each second what has
//! changed since the last.

use std::{collections::BTreeMap, io, time::Duration};

use model::event::Event;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time,
};

use super::{
    protocol::{Answer, Occurrence},
    server::Agent,
    wire,
};

/// How often counters and states are compared: each reason of a discard is told once in it.
const PERIOD: Duration = Duration::from_secs(1);

/// What the last comparison saw.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Seen {
    serial: Option<u64>,
    /// Whether the control plane answers, and why not.
    control: Option<Result<(), String>>,
    discards: BTreeMap<String, u64>,
    /// Whether a capture runs, with keys, and who asked for it from elsewhere.
    capture: Option<(bool, Option<String>)>,
}

/// Writes one JSON object a line until the command goes away.
pub(super) async fn serve(agent: &Agent, stream: &mut UnixStream) -> io::Result<()> {
    let mut following = agent.tunnel.follow();
    let mut seen = Seen::of(agent);
    wire::send(stream, &Answer::Following).await?;
    let (mut from_command, mut to_command) = stream.split();
    let gone = from_command.read_u8();
    tokio::pin!(gone);
    let mut ticks = time::interval(PERIOD);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        let events = tokio::select! {
            event = following.next() => match event {
                Some(event) => vec![event],
                None => return Ok(()),
            },
            _ = ticks.tick() => {
                let now = Seen::of(agent);
                let events = now.since(&seen);
                seen = now;
                events
            }
            _ = &mut gone => return Ok(()),
        };
        let mut lines = Vec::new();
        for event in events {
            serde_json::to_writer(&mut lines, &occurrence(event))?;
            lines.push(b'\n');
        }
        to_command.write_all(&lines).await?;
    }
}

fn occurrence(event: Event) -> Occurrence {
    let time = humantime::format_rfc3339_millis(os::clock::wall()).to_string();
    Occurrence { time, event }
}

impl Seen {
    fn of(agent: &Agent) -> Self {
        let (seen, now) = agent.tunnel.with(|node, now| {
            let seen = Self {
                serial: node.map().map(|map| map.serial),
                control: None,
                discards: node.counters().occurred(),
                capture: node.capture().map(|capture| (capture.has_keys(), None)),
            };
            (seen, now)
        });
        let control = agent.control.as_ref();
        let control = control.map(|(url, contact)| contact.status(now, url));
        let control = control.and_then(|control| match control.reached {
            Some(true) => Some(Ok(())),
            Some(false) => Some(Err(control.error.unwrap_or_default())),
            None => None,
        });
        let by = agent.asked.running().map(|asked| asked.by);
        let capture = seen.capture.map(|(keys, _)| (keys, by));
        Self {
            control,
            capture,
            ..seen
        }
    }

    /// Tells what has changed.
    fn since(&self, before: &Self) -> Vec<Event> {
        let mut events = Vec::new();
        if let Some(serial) = self.serial.filter(|_| self.serial != before.serial) {
            events.push(Event::MapApplied { serial });
        }
        match (&before.control, &self.control) {
            (Some(Ok(())), Some(Ok(()))) | (Some(Err(_)), Some(Err(_))) | (_, None) => {}
            (_, Some(Ok(()))) => events.push(Event::ControlReached),
            (_, Some(Err(error))) => events.push(Event::ControlAway {
                error: error.clone(),
            }),
        }
        for (reason, count) in &self.discards {
            let former = before.discards.get(reason).copied().unwrap_or_default();
            if *count > former {
                events.push(Event::Discarded {
                    reason: reason.clone(),
                    count: count - former,
                });
            }
        }
        match (&before.capture, &self.capture) {
            (None, Some((keys, by))) => events.push(Event::CaptureBegun {
                keys: *keys,
                by: by.clone(),
            }),
            (Some(_), None) => events.push(Event::CaptureEnded),
            (None, None) | (Some(_), Some(_)) => {}
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_changed_is_told_once_with_the_difference_of_counters() {
        let discards = |policy, mac1| {
            let counts = [("node.policy", policy), ("wireguard.mac1", mac1)];
            counts
                .map(|(reason, count)| (reason.to_owned(), count))
                .into()
        };
        let first = Seen {
            serial: Some(3),
            control: Some(Ok(())),
            discards: discards(5, 1),
            capture: None,
        };
        assert_eq!(first.since(&first), []);
        let second = Seen {
            serial: Some(4),
            control: Some(Err("refused".to_owned())),
            discards: discards(7, 1),
            capture: Some((false, Some("ann".to_owned()))),
        };
        let error = "refused".to_owned();
        let reason = "node.policy".to_owned();
        let expected = [
            Event::MapApplied { serial: 4 },
            Event::ControlAway { error },
            Event::Discarded { reason, count: 2 },
            Event::CaptureBegun {
                keys: false,
                by: Some("ann".to_owned()),
            },
        ];
        assert_eq!(second.since(&first), expected);
        // Another attempt that failed for another reason is no change.
        let third = Seen {
            control: Some(Err("timed out".to_owned())),
            ..second.clone()
        };
        assert_eq!(third.since(&second), []);
        let back = [Event::ControlReached, Event::CaptureEnded];
        let last = Seen {
            serial: Some(4),
            ..first
        };
        let last = Seen {
            discards: second.discards.clone(),
            ..last
        };
        assert_eq!(last.since(&third), back);
    }
}
