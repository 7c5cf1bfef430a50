//! Who may reach what: rules, and the one function that decides by them.
//!
//! Administrators write rules about users, roles, tags, nodes and services. Nodes get them as
//! [`crate::map`] has them: numbered, and each node tells under which numbers it may reach others
//! and be reached. What no rule allows is refused.
//!
//! Whoever writes rules asks [`Question`]s about them and keeps [`Assertion`]s to hold them to.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{id::RuleId, name::Label, site::Ipv4Prefix};

/// What a person may be in an organisation.
#[derive(
    Clone,
    Copy,
    Debug,
    Deserialize,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Changes everything.
    Admin,
    /// Works with what the policy gives.
    Developer,
    /// Has what the policy gives to guests, and nothing else.
    Guest,
}

/// Which nodes a rule is about: those of a person, or machines.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Selector {
    /// Every node.
    Everything,
    /// Every node that is nobody's device.
    Machines,
    /// The devices of one person, by the person's name.
    User(Label),
    /// The devices of every person with a role.
    Role(Role),
    /// The devices of every person in a group of the sign-in provider.
    Group(Label),
    /// The node of that name.
    Node(Label),
    /// Every node with that tag.
    Tag(Label),
    /// Every node that offers a service, at the service's port; only as what is reached.
    Service(Label),
    /// Hosts of a site.
    Site {
        /// The site's name.
        name: Label,
        /// Only hosts with these addresses; every host if absent.
        hosts: Option<Ipv4Prefix>,
    },
}

/// The text is no selector.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "a selector is `*`, `machines`, `user:NAME`, `role:admin|developer|guest`, `group:NAME`, \
     `node:NAME`, `tag:NAME`, `service:NAME`, `site:NAME` or `site:NAME:ADDRESS[/LENGTH]`"
)]
pub struct MalformedSelector;

/// What a rule lets through.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Traffic {
    /// Everything.
    All,
    /// TCP to these ports.
    Tcp(Ports),
    /// UDP to these ports.
    Udp(Ports),
    /// Echo requests, which every other rule between two nodes lets through as well.
    Ping,
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ports {
    first: u16,
    last: u16,
}

/// The text names no traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("traffic is `all`, `ping`, `tcp`, `udp`, or `PORT`, `PORT-PORT`, with `/tcp` or `/udp`")]
pub struct MalformedTraffic;

/// A rule as a map carries it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Rule {
    /// What it lets through; to a node that is reached by a service, only the service's port.
    pub traffic: Vec<Traffic>,
}

/// A rule under which a node may be reached.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Reach {
    /// The rule.
    pub rule: RuleId,
    /// The TCP port of the service that the rule names; `None` when it names the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A rule under which hosts of a site may be reached, or may reach others.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct SiteReach {
    /// The rule.
    pub rule: RuleId,
    /// The hosts; `None` when the rule names the site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Ipv4Prefix>,
}

/// What somebody wants to send to a node.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Wanted {
    /// A TCP connection to a port.
    Tcp(u16),
    /// UDP datagrams to a port.
    Udp(u16),
    /// Echo requests.
    Ping,
    /// Another protocol.
    Other,
}

/// What rules can know of a node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Party {
    /// Its name.
    pub name: Label,
    /// Whose device it is; a machine is nobody's.
    pub owner: Option<Owner>,
    /// Its tags.
    pub tags: Vec<Label>,
}

/// What rules can know of a person.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Owner {
    /// The person's name.
    pub name: Label,
    /// What the person may be.
    pub role: Role,
    /// The person's groups at the sign-in provider.
    pub groups: Vec<Label>,
}

/// Whether some nodes may reach others.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Question {
    /// Who sends.
    #[schema(value_type = String)]
    pub from: Whom,
    /// Who is reached.
    #[schema(value_type = String)]
    pub to: Whom,
    /// With what, such as `22/tcp` or `ping`; for a service its own port, else a ping, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub wanted: Option<Wanted>,
}

/// The nodes that a question is about.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Whom {
    /// Those that it selects.
    Selector(Selector),
    /// The node of that name; without one the devices of the person of that name.
    Name(Label),
}

/// The text names no nodes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a node or a person is given by name, others by a selector, such as `tag:web`")]
pub struct MalformedWhom;

/// The text names nothing that can be wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("what is wanted is `ping`, or `PORT` with `/tcp` or `/udp`")]
pub struct MalformedWanted;

/// What has to be true of the rules.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Assertion {
    /// The question.
    pub question: Question,
    /// The answer: all may, or none.
    pub may: bool,
}

/// The line asserts nothing.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MalformedAssertion {
    /// It has another form.
    #[error("an assertion is `FROM may reach TO[:PORT[/udp]]` or `FROM may not reach TO...`")]
    Form,
    /// One of its ends cannot be read.
    #[error("`{0}` names no node, no person and no selector such as `tag:web`")]
    Whom(String),
}

/// Returns the first rule under which a node with `may_reach` may send `wanted` to a node with
/// `reached_by`; `None` refuses.
///
/// Both lists are in the order of the rules' ids.
#[must_use]
pub fn decide(
    rules: &BTreeMap<RuleId, Rule>,
    may_reach: &[RuleId],
    reached_by: impl IntoIterator<Item = Reach>,
    wanted: Wanted,
) -> Option<RuleId> {
    let allows = |reach: &Reach| {
        if may_reach.binary_search(&reach.rule).is_err() {
            return false;
        }
        match (reach.port, wanted) {
            (_, Wanted::Ping) => rules.contains_key(&reach.rule),
            (Some(port), Wanted::Tcp(wanted)) => port == wanted && rules.contains_key(&reach.rule),
            (Some(_), Wanted::Udp(_) | Wanted::Other) => false,
            (None, Wanted::Tcp(_) | Wanted::Udp(_) | Wanted::Other) => rules
                .get(&reach.rule)
                .is_some_and(|rule| rule.traffic.iter().any(|traffic| traffic.has(wanted))),
        }
    };
    reached_by.into_iter().find(allows).map(|reach| reach.rule)
}

impl SiteReach {
    /// Returns how a rule is about the hosts of `prefix`; `None` when it is not about all of them.
    #[must_use]
    pub fn of(self, prefix: Ipv4Prefix) -> Option<Reach> {
        let reached = self.hosts.is_none_or(|hosts| hosts.covers(prefix));
        reached.then_some(Reach {
            rule: self.rule,
            port: None,
        })
    }
}

impl Traffic {
    /// Tells whether `wanted` is among it.
    #[must_use]
    pub fn has(self, wanted: Wanted) -> bool {
        match (self, wanted) {
            (Self::All, _) | (_, Wanted::Ping) => true,
            (Self::Tcp(ports), Wanted::Tcp(port)) | (Self::Udp(ports), Wanted::Udp(port)) => {
                ports.contains(port)
            }
            (Self::Tcp(_), Wanted::Udp(_) | Wanted::Other)
            | (Self::Udp(_), Wanted::Tcp(_) | Wanted::Other)
            | (Self::Ping, Wanted::Tcp(_) | Wanted::Udp(_) | Wanted::Other) => false,
        }
    }
}

impl Ports {
    /// Every port.
    pub const ALL: Self = Self {
        first: 0,
        last: u16::MAX,
    };

    /// Returns the range; `None` when it is empty.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// Tells whether `port` lies in the range.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl Selector {
    /// Tells whether it selects a node; a service selects none, because it is a port of some, and
    /// hosts of a site are none.
    #[must_use]
    pub fn selects(&self, party: &Party) -> bool {
        let owner = party.owner.as_ref();
        match self {
            Self::Everything => true,
            Self::Machines => owner.is_none(),
            Self::User(name) => owner.is_some_and(|owner| owner.name == *name),
            Self::Role(role) => owner.is_some_and(|owner| owner.role == *role),
            Self::Group(name) => owner.is_some_and(|owner| owner.groups.contains(name)),
            Self::Node(name) => party.name == *name,
            Self::Tag(name) => party.tags.contains(name),
            Self::Service(_) | Self::Site { .. } => false,
        }
    }
}

impl Role {
    /// Every role, from the one that may most.
    pub const ALL: [Self; 3] = [Self::Admin, Self::Developer, Self::Guest];

    /// Returns its name in the API, the store and the manual.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Developer => "developer",
            Self::Guest => "guest",
        }
    }
}

/// The text names no role.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a role is `admin`, `developer` or `guest`")]
pub struct UnknownRole;

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let named = |role: &Self| role.name() == text;
        Self::ALL.into_iter().find(named).ok_or(UnknownRole)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Selector {
    type Err = MalformedSelector;

    fn from_str(text: &str) -> Result<Self, MalformedSelector> {
        match text {
            "*" => return Ok(Self::Everything),
            "machines" => return Ok(Self::Machines),
            _ => {}
        }
        let (kind, name) = text.split_once(':').ok_or(MalformedSelector)?;
        let label = || name.parse().map_err(|_| MalformedSelector);
        match kind {
            "user" => label().map(Self::User),
            "role" => name.parse().map(Self::Role).map_err(|_| MalformedSelector),
            "group" => label().map(Self::Group),
            "node" => label().map(Self::Node),
            "tag" => label().map(Self::Tag),
            "service" => label().map(Self::Service),
            "site" => site(name),
            _ => Err(MalformedSelector),
        }
    }
}

fn site(text: &str) -> Result<Selector, MalformedSelector> {
    let (name, hosts) = match text.split_once(':') {
        Some((name, hosts)) => (name, Some(hosts.parse().map_err(|_| MalformedSelector)?)),
        None => (text, None),
    };
    let name = name.parse().map_err(|_| MalformedSelector)?;
    Ok(Selector::Site { name, hosts })
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("*"),
            Self::Machines => f.write_str("machines"),
            Self::User(name) => write!(f, "user:{name}"),
            Self::Role(role) => write!(f, "role:{role}"),
            Self::Group(name) => write!(f, "group:{name}"),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Tag(name) => write!(f, "tag:{name}"),
            Self::Service(name) => write!(f, "service:{name}"),
            Self::Site { name, hosts: None } => write!(f, "site:{name}"),
            Self::Site {
                name,
                hosts: Some(hosts),
            } => write!(f, "site:{name}:{hosts}"),
        }
    }
}

impl FromStr for Traffic {
    type Err = MalformedTraffic;

    fn from_str(text: &str) -> Result<Self, MalformedTraffic> {
        match text {
            "all" => return Ok(Self::All),
            "ping" => return Ok(Self::Ping),
            "tcp" => return Ok(Self::Tcp(Ports::ALL)),
            "udp" => return Ok(Self::Udp(Ports::ALL)),
            _ => {}
        }
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let ports = Ports::new(port(first)?, port(last)?).ok_or(MalformedTraffic)?;
        match protocol {
            "tcp" => Ok(Self::Tcp(ports)),
            "udp" => Ok(Self::Udp(ports)),
            _ => Err(MalformedTraffic),
        }
    }
}

/// Parses a port as it is printed: digits without a sign, not zero.
fn port(text: &str) -> Result<u16, MalformedTraffic> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port != 0);
    port.ok_or(MalformedTraffic)
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ports, protocol) = match self {
            Self::All => return f.write_str("all"),
            Self::Ping => return f.write_str("ping"),
            Self::Tcp(ports) => (ports, "tcp"),
            Self::Udp(ports) => (ports, "udp"),
        };
        if *ports == Ports::ALL {
            f.write_str(protocol)
        } else if ports.first == ports.last {
            write!(f, "{}/{protocol}", ports.first)
        } else {
            write!(f, "{}-{}/{protocol}", ports.first, ports.last)
        }
    }
}

impl FromStr for Whom {
    type Err = MalformedWhom;

    fn from_str(text: &str) -> Result<Self, MalformedWhom> {
        if let Ok(selector) = text.parse() {
            return Ok(Self::Selector(selector));
        }
        text.parse().map(Self::Name).map_err(|_| MalformedWhom)
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Selector(selector) => selector.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl FromStr for Wanted {
    type Err = MalformedWanted;

    fn from_str(text: &str) -> Result<Self, MalformedWanted> {
        if text == "ping" {
            return Ok(Self::Ping);
        }
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let port = port(number).map_err(|_| MalformedWanted)?;
        match protocol {
            "tcp" => Ok(Self::Tcp(port)),
            "udp" => Ok(Self::Udp(port)),
            _ => Err(MalformedWanted),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "{port}/tcp"),
            Self::Udp(port) => write!(f, "{port}/udp"),
            Self::Ping => f.write_str("ping"),
            Self::Other => f.write_str("another protocol"),
        }
    }
}

impl FromStr for Assertion {
    type Err = MalformedAssertion;

    fn from_str(line: &str) -> Result<Self, MalformedAssertion> {
        let words: Vec<_> = line.split_whitespace().collect();
        let (from, may, to) = match *words {
            [from, "may", "reach", to] => (from, true, to),
            [from, "may", "not", "reach", to] => (from, false, to),
            _ => return Err(MalformedAssertion::Form),
        };
        let whom = |text: &str| {
            let malformed = |_| MalformedAssertion::Whom(text.to_owned());
            text.parse::<Whom>().map_err(malformed)
        };
        let from = whom(from)?;
        // `node:22` is port 22 of a node of that name, as it would be for any other name.
        let split = to.rsplit_once(':');
        let split = split.and_then(|(head, tail)| Some((head, tail.parse().ok()?)));
        let (to, wanted) = match split {
            Some((head, wanted)) => (whom(head)?, Some(wanted)),
            None => (whom(to)?, None),
        };
        Ok(Self {
            question: Question { from, to, wanted },
            may,
        })
    }
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Question { from, to, wanted } = &self.question;
        let not = if self.may { "" } else { " not" };
        write!(f, "{from} may{not} reach {to}")?;
        match wanted {
            Some(wanted) => write!(f, ":{wanted}"),
            None => Ok(()),
        }
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_text!(Selector, Traffic, Whom, Wanted);

#[cfg(test)]
mod tests;
