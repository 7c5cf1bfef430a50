//! What happens to a node, in the stable form of `ginnel events --json`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{key::PublicKey, name::Label, site::Health};

/// A change of state.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A tunnel stands.
    HandshakeCompleted {
        /// With whom.
        #[serde(flatten)]
        peer: Who,
        /// Where the peer is.
        endpoint: Option<SocketAddr>,
    },
    /// Nobody answered for 90 s.
    HandshakeAbandoned {
        /// With whom.
        #[serde(flatten)]
        peer: Who,
        /// Where the peer was asked.
        endpoint: Option<SocketAddr>,
    },
    /// A peer was heard from another address.
    EndpointMoved {
        /// Who.
        #[serde(flatten)]
        peer: Who,
        /// Where it is now.
        endpoint: SocketAddr,
    },
    /// An initiation came from a key that the map does not hold; the control plane is asked.
    UnknownInitiator {
        /// The key, which is claimed and not proven.
        public_key: PublicKey,
        /// Where it came from.
        source: SocketAddr,
    },
    /// The node works by another map.
    MapApplied {
        /// Its serial.
        serial: u64,
    },
    /// The control plane answers.
    ControlReached,
    /// The control plane does not answer.
    ControlAway {
        /// Why.
        error: String,
    },
    /// Another node carries a site that has several: told by its gateway, which has decided so,
    /// and by the nodes of the site that hear it from there.
    SiteMoved {
        /// Name of the organisation.
        org: Label,
        /// Name of the site.
        site: Label,
        /// Who carries it now.
        carrier: Label,
        /// Who carried it before.
        former: Label,
        /// How it stands with that one: `silent`, `no_lan` or `not_forwarding`; `healthy` and the
        /// others when a node that is preferred to it is well again.
        former_health: Health,
    },
    /// Packets were not delivered within the last second.
    Discarded {
        /// The reason, as the status names it.
        reason: String,
        /// How many.
        count: u64,
    },
    /// Somebody captures what passes the tunnel.
    CaptureBegun {
        /// Whether keys are in the file.
        keys: bool,
        /// Who asked for it from elsewhere; absent for a command at the machine.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    /// Nobody captures any more.
    CaptureEnded,
    /// The reader was too slow.
    Missed {
        /// So many events are not told.
        count: u64,
    },
}

/// A WireGuard peer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Who {
    /// Name of the node behind it; `None` with a plain configuration.
    pub peer: Option<Label>,
    /// Its public key.
    pub public_key: PublicKey,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_read_the_names_that_the_manual_gives() {
        let event = Event::EndpointMoved {
            peer: Who {
                peer: Some("gate".parse().expect("a label")),
                public_key: PublicKey([1; 32]),
            },
            endpoint: SocketAddr::from(([192, 0, 2, 1], 51820)),
        };
        let json = serde_json::to_value(&event).expect("plain data");
        let expected = serde_json::json!({
            "event": "endpoint_moved",
            "peer": "gate",
            "public_key": PublicKey([1; 32]).to_string(),
            "endpoint": "192.0.2.1:51820",
        });
        assert_eq!(json, expected);
        let read: Event = serde_json::from_value(json).expect("its own form");
        assert_eq!(read, event);
        let moved = Event::SiteMoved {
            org: "acme".parse().expect("a label"),
            site: "oslo".parse().expect("a label"),
            carrier: "loft".parse().expect("a label"),
            former: "office".parse().expect("a label"),
            former_health: Health::NoLan,
        };
        let json = serde_json::to_value(&moved).expect("plain data");
        let expected = serde_json::json!({
            "event": "site_moved",
            "org": "acme",
            "site": "oslo",
            "carrier": "loft",
            "former": "office",
            "former_health": "no_lan",
        });
        assert_eq!(json, expected);
        let json = serde_json::to_value(&Event::ControlReached).expect("plain data");
        assert_eq!(json, serde_json::json!({ "event": "control_reached" }));
    }
}
