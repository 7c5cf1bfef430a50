//! A million questions about nodes against one who reads every rule as it is written.

use model::{id::ServiceId, policy::Role};

use super::*;

const POLICIES: u64 = 10_000;
const QUESTIONS: usize = 100;

/// What stands in an organisation: nodes, their services, and rules.
struct Drawn {
    parties: Vec<Party>,
    services: Vec<Vec<Service>>,
    rules: Vec<Rule>,
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Chance(u64);

#[test]
fn a_million_nodes_reach_others_where_reading_every_rule_says_so() {
    let (mut allowed, mut all) = (0_u64, 0_u64);
    for seed in 0..POLICIES {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let drawn = Drawn::draw(&mut chance);
        let lists: Vec<_> = drawn.lists().collect();
        let rules: BTreeMap<_, _> = drawn.rules.iter().map(as_in_a_map).collect();
        for _ in 0..QUESTIONS {
            let (from, to) = (chance.index(NAMES.len()), chance.index(NAMES.len()));
            let wanted = drawn.wanted(&mut chance, to);
            let reached_by = lists[to].reached_by.iter().copied();
            let decided = decide(&rules, &lists[from].may_reach, reached_by, wanted);
            let expected = drawn.first_rule(from, to, wanted);
            assert_eq!(
                decided, expected,
                "seed {seed}: {from} to {to} with {wanted}: {:?}\n{:?} offers {:?}\n{:#?}",
                drawn.parties[from], drawn.parties[to], drawn.services[to], drawn.rules
            );
            allowed += u64::from(expected.is_some());
            all += 1;
        }
    }
    // A test of nothing but refusals would be none.
    assert!(
        allowed * 10 > all && allowed * 10 < all * 9,
        "{allowed} of {all}"
    );
}

const NAMES: [&str; 6] = ["laptop", "phone", "db", "web", "cache", "ci"];
const PEOPLE: [&str; 3] = ["ann", "bob", "cid"];
const GROUPS: [&str; 2] = ["ops", "dev"];
const TAGS: [&str; 3] = ["blue", "red", "web"];
const SERVICES: [&str; 2] = ["postgres", "http"];
const PORTS: [u16; 6] = [1, 22, 80, 443, 5432, u16::MAX];

fn as_in_a_map(rule: &Rule) -> (RuleId, model::policy::Rule) {
    let traffic = rule.terms.traffic.clone();
    (rule.id, model::policy::Rule { traffic })
}

impl Drawn {
    fn draw(chance: &mut Chance) -> Self {
        let party = |name: &&str, chance: &mut Chance| Party {
            name: label(name),
            owner: chance.once_in(2).then(|| Owner {
                name: label(chance.one_of::<&str>(&PEOPLE)),
                role: *chance.one_of(&Role::ALL),
                groups: chance.some_of(&GROUPS),
            }),
            tags: chance.some_of(&TAGS),
        };
        let parties = NAMES.iter().map(|name| party(name, chance)).collect();
        let services = (1..).map(NodeId).take(NAMES.len());
        let services = services.map(|node| {
            let offers = SERVICES.iter().filter(|_| chance.once_in(3));
            let offers: Vec<_> = offers.collect();
            let service = |name: &&str| service(node, name, *chance.one_of(&PORTS));
            offers.into_iter().map(service).collect()
        });
        let services = services.collect();
        let count = chance.index(7);
        let rules = (1..).map(RuleId).take(count);
        let rules = rules.map(|id| chance.rule(id)).collect();
        Self {
            parties,
            services,
            rules,
        }
    }

    fn lists(&self) -> impl Iterator<Item = Lists> {
        let offered = self.parties.iter().zip(&self.services);
        offered.map(|(party, services)| {
            let services: Vec<_> = services.iter().collect();
            lists(&self.rules, party, &services)
        })
    }

    /// What somebody may want of a node: often a port that is named somewhere, or one beside it.
    fn wanted(&self, chance: &mut Chance, to: usize) -> Wanted {
        let mut port = *chance.one_of(&PORTS);
        if let Some(service) = self.services[to].first()
            && chance.once_in(3)
        {
            port = service.port;
        }
        let port = match chance.index(4) {
            0 => port.wrapping_sub(1),
            1 => port.wrapping_add(1),
            _ => port,
        };
        match chance.index(8) {
            0 => Wanted::Ping,
            1 => Wanted::Other,
            2 | 3 => Wanted::Udp(port),
            _ => Wanted::Tcp(port),
        }
    }

    /// Reads the rules in their order.
    fn first_rule(&self, from: usize, to: usize, wanted: Wanted) -> Option<RuleId> {
        let allows = |rule: &&Rule| {
            let Terms {
                from: froms,
                to: tos,
                traffic,
                ..
            } = &rule.terms;
            if !froms
                .iter()
                .any(|named| is_about(named, &self.parties[from]))
            {
                return false;
            }
            // A rule that names the node itself is about the node, whatever services it names.
            if tos.iter().any(|named| is_about(named, &self.parties[to])) {
                return wanted == Wanted::Ping || lets_through(traffic, wanted);
            }
            self.services[to].iter().any(|service| {
                let named = format!("service:{}", service.name);
                let is_named = tos.iter().any(|to| to.to_string() == named);
                is_named && (wanted == Wanted::Ping || wanted == Wanted::Tcp(service.port))
            })
        };
        self.rules.iter().find(allows).map(|rule| rule.id)
    }
}

/// Reads a selector as it is printed.
fn is_about(selector: &Selector, party: &Party) -> bool {
    let text = selector.to_string();
    let owner = party.owner.as_ref();
    let Some((kind, name)) = text.split_once(':') else {
        return text == "*" || text == "machines" && owner.is_none();
    };
    let is = |label: &Label| label.to_string() == name;
    match kind {
        "user" => owner.is_some_and(|owner| is(&owner.name)),
        "role" => owner.is_some_and(|owner| owner.role.name() == name),
        "group" => owner.is_some_and(|owner| owner.groups.iter().any(is)),
        "node" => is(&party.name),
        "tag" => party.tags.iter().any(is),
        _ => false,
    }
}

/// Reads traffic as it is printed.
fn lets_through(traffic: &[Traffic], wanted: Wanted) -> bool {
    let (protocol, port) = match wanted {
        Wanted::Tcp(port) => ("tcp", port),
        Wanted::Udp(port) => ("udp", port),
        Wanted::Ping | Wanted::Other => ("all", 0),
    };
    traffic.iter().any(|traffic| {
        let text = traffic.to_string();
        if text == "all" || text == protocol {
            return true;
        }
        let Some((ports, named)) = text.split_once('/') else {
            return false;
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let number = |text: &str| text.parse::<u16>().expect("a port");
        named == protocol && number(first) <= port && port <= number(last)
    })
}

fn label(text: &str) -> Label {
    text.parse().expect("a label")
}

fn service(node: NodeId, name: &str, port: u16) -> Service {
    Service {
        id: ServiceId(1),
        org: OrgId(1),
        org_name: label("acme"),
        node,
        node_name: label("db"),
        name: label(name),
        port,
        target: String::new(),
    }
}

impl Chance {
    fn index(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut state = self.0;
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bound = u64::try_from(bound).expect("small");
        usize::try_from((state ^ (state >> 31)) % bound).expect("small")
    }

    fn once_in(&mut self, times: usize) -> bool {
        self.index(times) == 0
    }

    fn one_of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.index(items.len())]
    }

    fn some_of(&mut self, items: &[&str]) -> Vec<Label> {
        let chosen = items.iter().filter(|_| self.once_in(2));
        chosen.map(|item| label(item)).collect()
    }

    fn rule(&mut self, id: RuleId) -> Rule {
        let (from, to) = (1 + self.index(3), 1 + self.index(3));
        let traffic = self.index(3);
        Rule {
            id,
            org: OrgId(1),
            terms: Terms {
                from: (0..from).map(|_| self.selector(false)).collect(),
                to: (0..to).map(|_| self.selector(true)).collect(),
                traffic: (0..traffic).map(|_| self.traffic()).collect(),
                comment: String::new(),
            },
            created: 0,
        }
    }

    fn selector(&mut self, is_reached: bool) -> Selector {
        let text = match self.index(16) {
            0 => "*".to_owned(),
            1 | 2 => "machines".to_owned(),
            3 | 4 => format!("user:{}", self.one_of(&PEOPLE)),
            5 | 6 => format!("role:{}", self.one_of(&Role::ALL)),
            7 => format!("group:{}", self.one_of(&GROUPS)),
            8 | 9 => format!("tag:{}", self.one_of(&TAGS)),
            10 => "site:office".to_owned(),
            11..14 if is_reached => format!("service:{}", self.one_of(&SERVICES)),
            _ => format!("node:{}", self.one_of(&NAMES)),
        };
        text.parse().expect("a selector")
    }

    fn traffic(&mut self) -> Traffic {
        let (one, other) = (*self.one_of(&PORTS), *self.one_of(&PORTS));
        let (first, last) = (one.min(other), one.max(other));
        let protocol = self.one_of(&["tcp", "udp"]);
        let text = match self.index(8) {
            0 => "all".to_owned(),
            1 => "ping".to_owned(),
            2 => (*protocol).to_owned(),
            3 | 4 => format!("{one}/{protocol}"),
            _ => format!("{first}-{last}/{protocol}"),
        };
        text.parse().expect("traffic")
    }
}
