//! A million packets against one who reads every rule anew for each of them.
//!
//! `POLICY_RUNS` (default 10,000) says how many policies there are, a hundred packets each;
//! `POLICY_SEED` runs one of them.

use std::{fmt, net::Ipv4Addr};

use model::{
    address::{Kind, OrgPrefix},
    id::SiteId,
    map::Site,
    policy::Traffic,
};

use super::*;

const PACKETS: usize = 100;
const NODES: u64 = 4;
const SITES: i64 = 2;

/// A policy as an administrator writes it, about nodes and sites by number.
#[derive(Clone)]
struct Written(Vec<WrittenRule>);

#[derive(Clone)]
struct WrittenRule {
    from: Vec<Whom>,
    to: Vec<Whom>,
    traffic: Vec<Traffic>,
}

/// Whom a rule names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Whom {
    Node(u64),
    /// A service of a node at a port.
    Service(u64, u16),
    Hosts(i64, Option<Ipv4Prefix>),
}

/// What is sent: from where, to where, a protocol and a port.
#[derive(Clone, Copy, Debug)]
struct Sent {
    from: Place,
    to: Place,
    wanted: Wanted,
}

/// Where a packet is from, or goes.
#[derive(Clone, Copy, Debug)]
enum Place {
    Node(u64),
    Host(i64, Ipv4Addr),
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Chance(u64);

#[test]
fn a_million_packets_pass_where_reading_every_rule_says_so() {
    let number = |name: &str| {
        let text = std::env::var(name).ok();
        text.map(|text| text.parse::<u64>().expect("a number"))
    };
    let runs = number("POLICY_RUNS").unwrap_or(10_000);
    let seeds = number("POLICY_SEED").map_or(0..runs, |seed| seed..seed + 1);
    let (mut allowed, mut all) = (0, 0);
    for seed in seeds {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let written = Written::draw(&mut chance);
        let orgs = written.orgs();
        let sent: Vec<_> = (0..PACKETS)
            .map(|_| Sent::draw(&mut chance, &written))
            .collect();
        for sent in sent {
            let expected = written.allows(sent);
            if admits(&orgs, sent) != expected {
                let least = least(written, sent);
                panic!("POLICY_SEED={seed}: {sent:?} should be {expected}\n{least}");
            }
            allowed += u64::from(expected);
            all += 1;
        }
    }
    // A test of nothing but refusals would be none: of a million packets 38,322 pass.
    let is_whole = all >= 1_000_000;
    assert!(!is_whole || allowed * 50 > all, "{allowed} of {all}");
}

/// Leaves rules out for as long as the two disagree.
fn least(mut written: Written, sent: Sent) -> Written {
    let mut index = 0;
    while index < written.0.len() {
        let mut fewer = written.clone();
        fewer.0.remove(index);
        if admits(&fewer.orgs(), sent) == fewer.allows(sent) {
            index += 1;
        } else {
            written = fewer;
        }
    }
    written
}

/// Asks the filter of a node that has seen no packet before.
fn admits(orgs: &Orgs, sent: Sent) -> bool {
    Filter::new(1).admits(start(), orgs, &sent.packet())
}

impl Written {
    fn draw(chance: &mut Chance) -> Self {
        let rule = |chance: &mut Chance| WrittenRule {
            from: (0..chance.below(3) + 1)
                .map(|_| match chance.below(3) {
                    0 => Whom::hosts(chance),
                    _ => Whom::Node(chance.below(NODES)),
                })
                .collect(),
            to: (0..chance.below(3) + 1)
                .map(|_| match chance.below(4) {
                    0 => Whom::hosts(chance),
                    1 => Whom::Service(chance.below(NODES), chance.port()),
                    _ => Whom::Node(chance.below(NODES)),
                })
                .collect(),
            traffic: (0..chance.below(3)).map(|_| chance.traffic()).collect(),
        };
        let count = chance.below(7);
        Self((0..count).map(|_| rule(chance)).collect())
    }

    /// The sentence of the manual: some rule names the sender, and the receiver, and lets it
    /// through.
    fn allows(&self, sent: Sent) -> bool {
        self.0.iter().any(|rule| {
            let from = rule.from.iter().any(|whom| whom.is(sent.from));
            // At a service its port is what is let through.
            let services = rule.to.iter().any(|whom| match whom {
                Whom::Service(node, port) => {
                    let there = matches!(sent.to, Place::Node(to) if to == *node);
                    there && (sent.wanted == Wanted::Tcp(*port) || sent.wanted == Wanted::Ping)
                }
                Whom::Node(_) | Whom::Hosts(..) => false,
            });
            let to = rule.to.iter().any(|whom| whom.is(sent.to));
            from && (services || to && rule.lets_through(sent.wanted))
        })
    }

    /// What the control plane makes of it.
    fn orgs(&self) -> Orgs {
        let mut org = org();
        for (id, rule) in (1..).map(RuleId).zip(&self.0) {
            let traffic = rule.traffic.clone();
            let rules = org.rules.get_or_insert_default();
            rules.insert(id, Rule { traffic });
            for (node_id, node) in &mut org.nodes {
                let number = u64::try_from(node_id.0).expect("small");
                if rule.from.contains(&Whom::Node(number)) {
                    node.may_reach.push(id);
                }
                for whom in &rule.to {
                    match whom {
                        Whom::Node(named) if *named == number => {
                            node.reached_by.push(Reach {
                                rule: id,
                                port: None,
                            });
                        }
                        Whom::Service(named, port) if *named == number => {
                            let port = Some(*port);
                            node.reached_by.push(Reach { rule: id, port });
                        }
                        Whom::Node(_) | Whom::Service(..) | Whom::Hosts(..) => {}
                    }
                }
            }
            for (site_id, site) in &mut org.sites {
                let named = |whom: &Whom| match whom {
                    Whom::Hosts(named, hosts) if *named == site_id.0 => Some(SiteReach {
                        rule: id,
                        hosts: *hosts,
                    }),
                    Whom::Hosts(..) | Whom::Node(_) | Whom::Service(..) => None,
                };
                site.may_reach.extend(rule.from.iter().filter_map(named));
                site.reached_by.extend(rule.to.iter().filter_map(named));
            }
        }
        applied(org)
    }

    /// The ports that its rules name.
    fn ports(&self) -> impl Iterator<Item = u16> {
        let traffic = self.0.iter().flat_map(|rule| &rule.traffic);
        let ends = traffic.flat_map(|traffic| {
            let text = traffic.to_string();
            let numbers = text.split(|letter: char| !letter.is_ascii_digit());
            let numbers = numbers.filter_map(|number| number.parse().ok());
            numbers.collect::<Vec<u16>>()
        });
        let services = self.0.iter().flat_map(|rule| &rule.to);
        ends.chain(services.filter_map(|whom| match whom {
            Whom::Service(_, port) => Some(*port),
            Whom::Node(_) | Whom::Hosts(..) => None,
        }))
    }
}

impl WrittenRule {
    fn lets_through(&self, wanted: Wanted) -> bool {
        // Every rule lets echo requests through, also one of no traffic.
        if wanted == Wanted::Ping {
            return true;
        }
        self.traffic.iter().any(|traffic| {
            let text = traffic.to_string();
            let (protocol, port) = match wanted {
                Wanted::Tcp(port) => ("tcp", port),
                Wanted::Udp(port) => ("udp", port),
                Wanted::Ping | Wanted::Other => return text == "all",
            };
            let Some(ports) = text.strip_suffix(protocol) else {
                return text == "all";
            };
            let ports = ports.trim_end_matches('/');
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            let number = |text: &str, default| text.parse().unwrap_or(default);
            (number(first, 0)..=number(last, u16::MAX)).contains(&port)
        })
    }
}

impl Whom {
    /// Draws hosts whose prefixes share ends with those of others.
    fn hosts(chance: &mut Chance) -> Self {
        let prefixes = ["10.1.0.0/16", "10.1.0.0/31", "10.1.0.2/32", "10.1.255.0/24"];
        let index = usize::try_from(chance.below(5)).expect("small");
        let prefix = prefixes.get(index);
        let prefix = prefix.map(|prefix| prefix.parse().expect("a prefix"));
        Self::Hosts(chance.site(), prefix)
    }

    /// Tells whether it names a place as such.
    fn is(self, place: Place) -> bool {
        match (self, place) {
            (Self::Node(named), Place::Node(node)) => named == node,
            (Self::Hosts(named, hosts), Place::Host(site, host)) => {
                let bits = |address: Ipv4Addr| u32::from(address);
                named == site
                    && hosts.is_none_or(|hosts| {
                        let text = hosts.to_string();
                        let (address, length) = text.split_once('/').unwrap_or((&text, "32"));
                        let address: Ipv4Addr = address.parse().expect("an address");
                        let length: u32 = length.parse().expect("a length");
                        bits(address) >> (32 - length) == bits(host) >> (32 - length)
                    })
            }
            (Self::Node(_) | Self::Hosts(..), Place::Node(_) | Place::Host(..))
            | (Self::Service(..), _) => false,
        }
    }
}

impl Sent {
    fn draw(chance: &mut Chance, written: &Written) -> Self {
        let place = |chance: &mut Chance| match chance.below(3) {
            0 => {
                let hosts = [
                    [10, 1, 0, 0],
                    [10, 1, 0, 1],
                    [10, 1, 0, 2],
                    [10, 1, 255, 255],
                ];
                let index = usize::try_from(chance.below(5)).expect("small");
                let host = hosts.get(index).copied().unwrap_or([10, 2, 0, 0]);
                Place::Host(chance.site(), host.into())
            }
            // One of them is nobody.
            _ => Place::Node(chance.below(NODES + 1)),
        };
        let (from, to) = (place(chance), place(chance));
        let ports: Vec<_> = written.ports().collect();
        let near = match chance.below(4) {
            0 => [0, 1, 22, u16::MAX][usize::from(chance.port() % 4)],
            _ => {
                let count = u64::try_from(ports.len()).expect("few").max(1);
                let index = usize::try_from(chance.below(count)).expect("small");
                ports.get(index).copied().unwrap_or(22)
            }
        };
        let port = match chance.below(4) {
            0 => near.wrapping_sub(1),
            1 => near.wrapping_add(1),
            _ => near,
        };
        let wanted = match chance.below(8) {
            0 => Wanted::Ping,
            1 => Wanted::Other,
            2 | 3 => Wanted::Udp(port),
            _ => Wanted::Tcp(port),
        };
        Self { from, to, wanted }
    }

    fn packet(self) -> Vec<u8> {
        let source_port = 40_000_u16.to_be_bytes();
        let (next_header, payload) = match self.wanted {
            Wanted::Tcp(port) => {
                let header = tcp::Header {
                    source_port: 40_000,
                    destination_port: port,
                    flags: tcp::Flags::SYN,
                    ..tcp::Header::default()
                };
                let mut payload = vec![0; tcp::HEADER];
                tcp::emit_header(&header, &mut payload);
                (ip::TCP, payload)
            }
            Wanted::Udp(port) => {
                let mut payload = vec![0; udp::HEADER];
                payload[..2].copy_from_slice(&source_port);
                payload[2..4].copy_from_slice(&port.to_be_bytes());
                (ip::UDP, payload)
            }
            Wanted::Ping => {
                let echo = Echo {
                    identifier: 7,
                    sequence: 1,
                    payload: b"",
                };
                let mut payload = vec![0; icmp::HEADER];
                let (from, to) = (IpAddr::V6(self.from.address()), self.to.address());
                icmp::emit(from, to.into(), &Message::EchoRequest(echo), &mut payload);
                (ip::ICMPV6, payload)
            }
            // SCTP (RFC 9260).
            Wanted::Other => (132, vec![0; 12]),
        };
        let (from, to) = (self.from.address(), self.to.address());
        between(from.into(), to.into(), next_header, &payload)
    }
}

impl Place {
    fn address(self) -> Ipv6Addr {
        let org = OrgPrefix::new([7; 5]);
        match self {
            Self::Node(number) => org.address(Kind::Node, number),
            Self::Host(site, host) => {
                let prefix = SitePrefix::new(org, SiteId(site));
                prefix.expect("a small number").embed(host)
            }
        }
    }
}

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut state = self.0;
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (state ^ (state >> 31)) % bound
    }

    fn site(&mut self) -> i64 {
        self.below(u64::try_from(SITES).expect("small"))
            .cast_signed()
            + 1
    }

    fn port(&mut self) -> u16 {
        let ports = [1, 22, 53, 80, 443, 8080, u16::MAX];
        let index = usize::try_from(self.below(8)).expect("small");
        let drawn = u16::try_from(self.below(65_535) + 1).expect("a port");
        ports.get(index).copied().unwrap_or(drawn)
    }

    fn traffic(&mut self) -> Traffic {
        let (one, other) = (self.port(), self.port());
        let (first, last) = (one.min(other), one.max(other));
        let protocol = ["tcp", "udp"][usize::from(self.below(2) == 1)];
        let text = match self.below(8) {
            0 => "all".to_owned(),
            1 => "ping".to_owned(),
            2 => protocol.to_owned(),
            3 | 4 => format!("{one}/{protocol}"),
            _ => format!("{first}-{last}/{protocol}"),
        };
        text.parse().expect("traffic")
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rule in &self.0 {
            let traffic: Vec<_> = rule.traffic.iter().map(ToString::to_string).collect();
            let traffic = traffic.join(" ");
            writeln!(f, "{:?} may reach {:?}: {traffic}", rule.from, rule.to)?;
        }
        Ok(())
    }
}

/// Four nodes and two sites of which nothing is said.
fn org() -> Org {
    let node = |id: u64| Node {
        name: format!("node-{id}").parse().expect("a label"),
        public_key: PublicKey([u8::try_from(id + 1).expect("small"); 32]),
        address: Place::Node(id).address(),
        owner: None,
        may_reach: Vec::new(),
        reached_by: Vec::new(),
    };
    let site = |id: i64| Site {
        name: format!("site-{id}").parse().expect("a label"),
        node: NodeId(0),
        standbys: Vec::new(),
        prefixes: vec!["10.0.0.0/8".parse().expect("a prefix")],
        aliases: Vec::new(),
        mode: model::site::Mode::Masquerade,
        may_reach: Vec::new(),
        reached_by: Vec::new(),
    };
    let nodes = (0..NODES).map(|id| (NodeId(id.cast_signed()), node(id)));
    Org {
        name: "acme".parse().expect("a label"),
        prefix: OrgPrefix::new([7; 5]),
        gateway: None,
        nodes: nodes.collect(),
        services: BTreeMap::new(),
        sites: (1..=SITES).map(|id| (SiteId(id), site(id))).collect(),
        rules: Some(BTreeMap::new()),
        ssh: None,
    }
}
