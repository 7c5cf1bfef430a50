//! The metrics by name, in Prometheus's text format 0.0.4.

use std::{collections::BTreeMap, fmt};

use model::status::{Hop, Peer, Traffic, Tunnel};
use node::Discard;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text},
    metrics::MetricType,
    registry::Registry,
};

use super::Snapshot;

/// A node with more peers tells only their sums: every series costs the reader memory.
pub(crate) const PEERS_MAX: usize = 64;

/// One metric with all its label sets.
#[derive(Debug)]
struct Family {
    /// Without the prefix `ginnel_`.
    name: &'static str,
    help: &'static str,
    kind: Kind,
    samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Counter,
    Gauge,
}

#[derive(Debug)]
struct Sample {
    labels: Vec<(&'static str, String)>,
    value: i64,
}

/// Writes the text.
pub(super) fn text(snapshot: Snapshot) -> String {
    let mut registry = Registry::with_prefix("ginnel");
    registry.register_collector(Box::new(snapshot));
    let mut out = String::new();
    // Without the mark of OpenMetrics at the end: this is the older format, which all read.
    text::encode_registry(&mut out, &registry).expect("a string takes everything");
    out
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in families(self) {
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            // A counter is written as the crate writes a gauge: it would add `_total` to the
            // sample, as OpenMetrics has it, and not to the lines before.
            for Sample { labels, value } in &family.samples {
                if labels.is_empty() {
                    metric.encode_gauge(value)?;
                } else {
                    metric.encode_family(labels)?.encode_gauge(value)?;
                }
            }
        }
        Ok(())
    }
}

fn families(snapshot: &Snapshot) -> Vec<Family> {
    let mut all = Vec::new();
    all.push(gauge(
        "build_info",
        "The version of the program; always 1",
        vec![labelled([("version", snapshot.version.clone())], 1)],
    ));
    all.extend(of_contact(snapshot));
    all.extend(of_peers(snapshot));
    all.extend(of_traffic(&snapshot.node.traffic));
    all.extend(of_happened(snapshot));
    all.extend(of_sites(snapshot));
    all.extend(of_each_peer(snapshot));
    all
}

fn of_contact(snapshot: &Snapshot) -> Vec<Family> {
    let control = snapshot.control.as_ref();
    let reached = control.and_then(|control| control.reached);
    let away = control.and_then(|control| control.away_seconds);
    vec![
        gauge(
            "control_reached",
            "Whether the control plane answered last",
            reached
                .map(|reached| bare(reached.into()))
                .into_iter()
                .collect(),
        ),
        gauge(
            "control_away_seconds",
            "For how long the control plane has not answered",
            reached
                .map(|_| bare(whole(away.unwrap_or_default())))
                .into_iter()
                .collect(),
        ),
        gauge(
            "map_serial",
            "Serial of the network map that the node works by",
            snapshot
                .node
                .serial
                .map(|serial| bare(whole(serial)))
                .into_iter()
                .collect(),
        ),
        gauge(
            "commands",
            "Commands that the local agent serves now",
            snapshot
                .connections
                .map(|open| bare(length(open)))
                .into_iter()
                .collect(),
        ),
        gauge(
            "problems",
            "What keeps the node from working, by where on the way",
            [Hop::Dns, Hop::Handshake, Hop::Map]
                .map(|hop| {
                    let problems = snapshot.node.problems.iter();
                    let count = problems.filter(|problem| problem.hop == hop).count();
                    labelled([("hop", hop_name(hop).to_owned())], length(count))
                })
                .into(),
        ),
    ]
}

fn of_peers(snapshot: &Snapshot) -> [Family; 2] {
    let node = &snapshot.node;
    [
        gauge(
            "peers",
            "WireGuard peers",
            vec![bare(whole(node.peers_total))],
        ),
        gauge(
            "peers_up",
            "WireGuard peers to which a tunnel stands",
            vec![bare(whole(node.peers_up))],
        ),
    ]
}

fn of_traffic(traffic: &Traffic) -> [Family; 4] {
    [
        counter(
            "received_bytes_total",
            "Bytes received from all peers, with the headers of WireGuard",
            vec![bare(whole(traffic.received_bytes))],
        ),
        counter(
            "sent_bytes_total",
            "Bytes sent to all peers, with the headers of WireGuard",
            vec![bare(whole(traffic.sent_bytes))],
        ),
        counter(
            "received_datagrams_total",
            "Authentic datagrams received from all peers",
            vec![bare(whole(traffic.received_datagrams))],
        ),
        counter(
            "sent_datagrams_total",
            "Datagrams sent to all peers",
            vec![bare(whole(traffic.sent_datagrams))],
        ),
    ]
}

fn of_happened(snapshot: &Snapshot) -> [Family; 4] {
    let happened = &snapshot.node.happened;
    // Also reasons that did not occur, so that a first occurrence is an increase.
    let mut counts: BTreeMap<_, _> = Discard::all().map(|discard| (discard.name(), 0)).collect();
    counts.extend(snapshot.node.discards.clone());
    let discards = counts.into_iter().map(|(name, count)| {
        let (layer, reason) = name.split_once('.').unwrap_or(("node", &name));
        let labels = [("layer", layer.to_owned()), ("reason", reason.to_owned())];
        labelled(labels, whole(count))
    });
    [
        counter(
            "handshakes_completed_total",
            "Handshakes that were completed",
            vec![bare(whole(happened.handshakes_completed))],
        ),
        counter(
            "handshakes_abandoned_total",
            "Handshakes that were given up because nobody answered",
            vec![bare(whole(happened.handshakes_abandoned))],
        ),
        counter(
            "endpoints_moved_total",
            "How often a peer was heard from another address",
            vec![bare(whole(happened.endpoints_moved))],
        ),
        counter(
            "discards_total",
            "Packets that were not delivered, by reason",
            discards.collect(),
        ),
    ]
}

fn of_sites(snapshot: &Snapshot) -> [Family; 2] {
    let node = &snapshot.node;
    let nodes = node.carried.iter().flat_map(|carried| {
        carried.nodes.iter().map(|one| {
            let labels = [
                ("org", carried.org.to_string()),
                ("site", carried.site.to_string()),
                ("node", one.name.to_string()),
            ];
            labelled(labels, one.carries.into())
        })
    });
    [
        gauge(
            "site_carried",
            "Whether the node carries the site, of each node of a site with several",
            nodes.collect(),
        ),
        counter(
            "sites_moved_total",
            "How often another node of a site with several came to carry it",
            vec![bare(whole(node.happened.sites_moved))],
        ),
    ]
}

fn of_each_peer(snapshot: &Snapshot) -> Vec<Family> {
    let all = &snapshot.node.peers;
    if all.is_empty() || snapshot.node.peers_total > PEERS_MAX as u64 {
        return Vec::new();
    }
    let of_each = |value: fn(&Peer) -> Option<i64>| {
        let samples = all.iter().filter_map(|peer| {
            let name = peer.name.as_ref().map(ToString::to_string);
            let labels = [
                ("peer", name.unwrap_or_default()),
                ("public_key", peer.public_key.to_string()),
            ];
            Some(labelled(labels, value(peer)?))
        });
        samples.collect()
    };
    vec![
        gauge(
            "peer_up",
            "Whether a tunnel to the peer stands",
            of_each(|peer| Some((peer.tunnel == Tunnel::Up).into())),
        ),
        gauge(
            "peer_last_handshake_age_seconds",
            "Age of the last handshake with the peer",
            of_each(|peer| peer.last_handshake_seconds.map(whole)),
        ),
        gauge(
            "peer_path_mtu_bytes",
            "The longest IP packet that the tunnel with the peer carries",
            of_each(|peer| peer.path_mtu_bytes.map(i64::from)),
        ),
        counter(
            "peer_received_bytes_total",
            "Bytes received from the peer, with the headers of WireGuard",
            of_each(|peer| Some(whole(peer.traffic.received_bytes))),
        ),
        counter(
            "peer_sent_bytes_total",
            "Bytes sent to the peer, with the headers of WireGuard",
            of_each(|peer| Some(whole(peer.traffic.sent_bytes))),
        ),
    ]
}

fn gauge(name: &'static str, help: &'static str, samples: Vec<Sample>) -> Family {
    let kind = Kind::Gauge;
    Family {
        name,
        help,
        kind,
        samples,
    }
}

fn counter(name: &'static str, help: &'static str, samples: Vec<Sample>) -> Family {
    let kind = Kind::Counter;
    Family {
        kind,
        ..gauge(name, help, samples)
    }
}

fn bare(value: i64) -> Sample {
    labelled([], value)
}

fn labelled<const N: usize>(labels: [(&'static str, String); N], value: i64) -> Sample {
    Sample {
        labels: labels.into(),
        value,
    }
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn length(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn hop_name(hop: Hop) -> &'static str {
    match hop {
        Hop::Dns => "dns",
        Hop::Handshake => "handshake",
        Hop::Map => "map",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use model::{key::PublicKey, status::Status};

    use super::*;
    use crate::agent::protocol::Control;

    fn peer(number: u8) -> Peer {
        Peer {
            name: Some("shed".parse().expect("a label")),
            public_key: PublicKey([number; 32]),
            endpoint: None,
            allowed_ips: Vec::new(),
            tunnel: Tunnel::Up,
            last_handshake_seconds: Some(7),
            traffic: Traffic::default(),
            persistent_keepalive_seconds: None,
            path_mtu_bytes: Some(1_420),
        }
    }

    fn snapshot(peers: u8) -> Snapshot {
        let peers: Vec<_> = (0..peers).map(peer).collect();
        Snapshot {
            version: "1.2.3".to_owned(),
            control: Some(Control {
                url: "https://vpn.example.org".to_owned(),
                reached: Some(true),
                away_seconds: None,
                error: None,
            }),
            connections: Some(2),
            node: Status {
                name: None,
                role: None,
                serial: Some(9),
                public_key: None,
                addresses: Vec::new(),
                orgs: Vec::new(),
                peers_total: peers.len() as u64,
                peers,
                peers_up: 1,
                traffic: Traffic::default(),
                happened: model::status::Happened::default(),
                carried: vec![model::status::Carried {
                    org: "acme".parse().expect("a label"),
                    site: "oslo".parse().expect("a label"),
                    nodes: [("office", true), ("loft", false)]
                        .map(|(name, carries)| model::status::SiteNode {
                            name: name.parse().expect("a label"),
                            carries,
                            health: model::site::Health::Healthy,
                        })
                        .into(),
                }],
                discards: BTreeMap::from([("wireguard.mac1".to_owned(), 3)]),
                problems: Vec::new(),
            },
        }
    }

    #[test]
    fn counters_are_named_in_full_in_every_line() {
        let text = snapshot(1).text();
        for line in [
            "# TYPE ginnel_discards_total counter",
            "ginnel_discards_total{layer=\"wireguard\",reason=\"mac1\"} 3",
            "ginnel_discards_total{layer=\"node\",reason=\"policy\"} 0",
            "ginnel_build_info{version=\"1.2.3\"} 1",
            "ginnel_control_reached 1",
            "ginnel_control_away_seconds 0",
            "ginnel_commands 2",
            "ginnel_map_serial 9",
            "ginnel_problems{hop=\"dns\"} 0",
            "ginnel_peers_up 1",
            "ginnel_site_carried{org=\"acme\",site=\"oslo\",node=\"office\"} 1",
            "ginnel_site_carried{org=\"acme\",site=\"oslo\",node=\"loft\"} 0",
            "ginnel_sites_moved_total 0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
        let peers = text
            .lines()
            .filter(|line| line.starts_with("ginnel_peer_up{"));
        assert_eq!(peers.count(), 1);
    }

    #[test]
    fn every_discard_of_the_status_has_its_own_line() {
        let mut snapshot = snapshot(1);
        let discards: BTreeMap<_, _> = Discard::all().map(Discard::name).zip(1..).collect();
        snapshot.node.discards.clone_from(&discards);
        let text = snapshot.text();
        for (name, count) in discards {
            let (layer, reason) = name.split_once('.').expect("LAYER.REASON");
            let line =
                format!("ginnel_discards_total{{layer=\"{layer}\",reason=\"{reason}\"}} {count}");
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
    }

    #[test]
    fn peers_beyond_the_bound_are_told_as_sums() {
        let most = u8::try_from(PEERS_MAX).expect("small");
        assert!(snapshot(most).text().contains("ginnel_peer_up{"));
        let text = snapshot(most + 1).text();
        assert!(!text.contains("ginnel_peer_"), "{text}");
        assert!(text.contains("\nginnel_peers 65\n"), "{text}");
    }

    #[test]
    fn the_manual_has_every_metric_and_rules_and_dashboard_no_other() {
        let manual = include_str!("../../../../docs/metrics.md");
        let rules = include_str!("../../../../docs/metrics/alerts.yml");
        let dashboard = include_str!("../../../../docs/metrics/dashboard.json");
        let exposed: BTreeSet<_> = families(&snapshot(1))
            .iter()
            .map(|family| format!("ginnel_{}", family.name))
            .collect();
        let described: BTreeSet<_> = manual
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next())
            .map(str::to_owned)
            .collect();
        assert_eq!(described, exposed);
        for text in [rules, dashboard] {
            let words = text.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
            let named: BTreeSet<_> = words
                .filter(|word| word.starts_with("ginnel_"))
                .map(str::to_owned)
                .collect();
            assert!(!named.is_empty());
            let unknown: Vec<_> = named.difference(&exposed).collect();
            assert_eq!(unknown, Vec::<&String>::new());
        }
    }
}
