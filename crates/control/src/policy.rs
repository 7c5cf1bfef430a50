//! From rules to maps, and from questions to answers.

use std::{borrow::Cow, collections::BTreeMap};

use model::{
    api::{Answer, Example, Verdict},
    id::{NodeId, OrgId, RuleId, UserId},
    map,
    name::Label,
    policy::{Owner, Party, Question, Reach, Selector, SiteReach, Traffic, Wanted, Whom, decide},
    site::Ipv4Prefix,
};

use crate::storage::{
    self, Error,
    node::{Node, Part},
    policy::{Rule, Terms},
    service::Service,
    user,
};

/// The rule that a new organisation begins with: every machine serves everybody, and the devices
/// of people are reached by nobody.
pub(crate) fn first_rule() -> Terms {
    Terms {
        from: vec![Selector::Everything],
        to: vec![Selector::Machines],
        traffic: vec![Traffic::All],
        comment: "machines serve everybody".to_owned(),
    }
}

/// Under which rules a node may reach others and be reached.
pub(crate) struct Lists {
    pub(crate) may_reach: Vec<RuleId>,
    pub(crate) reached_by: Vec<Reach>,
}

/// Returns what the rules say of one node that offers `services`.
pub(crate) fn lists(rules: &[Rule], party: &Party, services: &[&Service]) -> Lists {
    let mut lists = Lists {
        may_reach: Vec::new(),
        reached_by: Vec::new(),
    };
    for Rule { id, terms, .. } in rules {
        if terms.from.iter().any(|from| from.selects(party)) {
            lists.may_reach.push(*id);
        }
        if terms.to.iter().any(|to| to.selects(party)) {
            lists.reached_by.push(Reach {
                rule: *id,
                port: None,
            });
            continue;
        }
        let named = |service: &&&Service| {
            let names =
                |to: &Selector| matches!(to, Selector::Service(name) if *name == service.name);
            terms.to.iter().any(names)
        };
        let reaches = services.iter().filter(named).map(|service| Reach {
            rule: *id,
            port: Some(service.port),
        });
        lists.reached_by.extend(reaches);
    }
    lists
}

/// Returns under which rules hosts of the site `name` may reach others.
pub(crate) fn site_may_reach(rules: &[Rule], name: &Label) -> Vec<SiteReach> {
    let about = |rule: &Rule| hosts_named(rule.id, &rule.terms.from, name);
    rules.iter().flat_map(about).collect()
}

/// Returns under which rules hosts of the site `name` may be reached.
pub(crate) fn site_reached_by(rules: &[Rule], name: &Label) -> Vec<SiteReach> {
    let about = |rule: &Rule| hosts_named(rule.id, &rule.terms.to, name);
    rules.iter().flat_map(about).collect()
}

/// Lists which hosts of the site `name` some selectors of a rule name.
fn hosts_named(rule: RuleId, selectors: &[Selector], name: &Label) -> Vec<SiteReach> {
    let mut named = Vec::new();
    for selector in selectors {
        if let Selector::Site { name: other, hosts } = selector
            && other == name
        {
            let hosts = *hosts;
            named.push(SiteReach { rule, hosts });
        }
    }
    named
}

/// What rules know of the nodes of an organisation.
pub(crate) struct Parties {
    tags: BTreeMap<NodeId, Vec<Label>>,
    owners: BTreeMap<UserId, Owner>,
}

impl Parties {
    /// Reads what rules know of every node of `org`.
    pub(crate) async fn of(
        connection: &mut storage::Connection,
        org: OrgId,
    ) -> Result<Self, Error> {
        let users = user::users_of(connection, org).await?;
        let mut groups = storage::oidc::groups_of(connection, org).await?;
        let owner = |user: user::User| {
            let groups = groups.remove(&user.id).unwrap_or_default();
            owner(user, groups)
        };
        Ok(Self {
            tags: storage::policy::tags_of(connection, org).await?,
            owners: users.into_iter().map(owner).collect(),
        })
    }

    /// Reads what rules know of one node.
    pub(crate) async fn of_node(
        connection: &mut storage::Connection,
        node: &Node,
    ) -> Result<Self, Error> {
        let tags = storage::policy::tags_of_node(connection, node.id).await?;
        let user = match &node.part {
            Part::Client {
                user: Some(user), ..
            } => user::user(connection, *user).await?,
            Part::Client { user: None, .. } | Part::Gateway { .. } => None,
        };
        let mut owners = BTreeMap::new();
        if let Some(user) = user {
            let groups = storage::oidc::groups(connection, user.id).await?;
            owners.extend([owner(user, groups)]);
        }
        Ok(Self {
            tags: BTreeMap::from([(node.id, tags)]),
            owners,
        })
    }

    /// Returns what rules know of `node`.
    pub(crate) fn party(&self, node: &Node) -> Party {
        let owner = match &node.part {
            Part::Client { user, .. } => user.and_then(|user| self.owners.get(&user).cloned()),
            Part::Gateway { .. } => None,
        };
        Party {
            name: node.name.clone(),
            owner,
            tags: self.tags.get(&node.id).cloned().unwrap_or_default(),
        }
    }
}

fn owner(user: user::User, groups: Vec<Label>) -> (UserId, Owner) {
    let owner = Owner {
        name: user.name,
        role: user.role,
        groups,
    };
    (user.id, owner)
}

/// Most pairs of unlike nodes that one question may be about.
const PAIRS_MAX: usize = 1_000_000;

/// One organisation as its questions are answered: by the very lists that its nodes hold.
pub(crate) struct Judge<'a> {
    pub(crate) org: &'a map::Org,
    pub(crate) parties: BTreeMap<NodeId, Party>,
}

impl Judge<'_> {
    /// Answers a question; `None` when it is about too many unlike nodes.
    ///
    /// Nodes of which the rules say the same are judged once, so that the cost grows with what
    /// the rules tell apart and not with the square of the number of nodes.
    pub(crate) fn answer(&self, question: &Question) -> Option<Answer> {
        let senders = self.senders(&question.from);
        if senders.is_empty() {
            return Some(nobody(Verdict::NobodySends));
        }
        let reached = self.reached(question);
        if reached.is_empty() {
            return Some(nobody(Verdict::NobodyReached));
        }
        if senders.len().saturating_mul(reached.len()) > PAIRS_MAX {
            return None;
        }
        let no_rules = BTreeMap::new();
        let rules = self.org.rules.as_ref().unwrap_or(&no_rules);
        let (mut allowed, mut refused) = (None, None);
        for (may_reach, from) in &senders {
            for ((reached_by, wanted), to) in &reached {
                let rule = decide(rules, may_reach, reached_by.iter().copied(), *wanted);
                let example = match rule {
                    Some(_) => &mut allowed,
                    None => &mut refused,
                };
                example.get_or_insert_with(|| Example {
                    from: Label::clone(from),
                    to: Label::clone(to),
                    wanted: *wanted,
                    rule,
                });
            }
        }
        let verdict = match (&allowed, &refused) {
            (Some(_), Some(_)) => Verdict::Partly,
            (Some(_), None) => Verdict::Allowed,
            (None, _) => Verdict::Refused,
        };
        Some(Answer {
            verdict,
            example: refused.or(allowed),
        })
    }

    /// Returns a name for each list of rules by which those who are asked for may reach others.
    fn senders(&self, whom: &Whom) -> BTreeMap<Cow<'_, [RuleId]>, &Label> {
        if let Whom::Selector(Selector::Site { name, hosts }) = whom {
            let mut sites = self.org.sites.values();
            let site = sites.find(|site| site.name == *name);
            let ways = site.into_iter().flat_map(|site| {
                let ways = ways(site, &site.may_reach, *hosts);
                let rules = |way: Vec<Reach>| way.into_iter().map(|reach| reach.rule).collect();
                ways.map(move |way| (Cow::Owned(rules(way)), &site.name))
            });
            return ways.collect();
        }
        let nodes = self.nodes(whom);
        nodes
            .map(|(_, node)| (Cow::from(&node.may_reach), &node.name))
            .collect()
    }

    /// Returns a name for each way in which those who are asked for can be reached.
    fn reached(&self, question: &Question) -> BTreeMap<(Cow<'_, [Reach]>, Wanted), &Label> {
        let wanted = question.wanted.unwrap_or(Wanted::Ping);
        match &question.to {
            Whom::Selector(Selector::Service(name)) => {
                let offers = self.org.services.get(name).into_iter().flatten();
                let offers = offers.filter_map(|offer| {
                    let node = self.org.nodes.get(&offer.node)?;
                    let wanted = question.wanted.unwrap_or(Wanted::Tcp(offer.port));
                    Some(((Cow::from(&node.reached_by), wanted), &node.name))
                });
                offers.collect()
            }
            Whom::Selector(Selector::Site { name, hosts }) => {
                let mut sites = self.org.sites.values();
                let site = sites.find(|site| site.name == *name);
                let ways = site.into_iter().flat_map(|site| {
                    let ways = ways(site, &site.reached_by, *hosts);
                    ways.map(move |way| ((Cow::from(way), wanted), &site.name))
                });
                ways.collect()
            }
            whom @ (Whom::Selector(_) | Whom::Name(_)) => self
                .nodes(whom)
                .map(|(_, node)| ((Cow::from(&node.reached_by), wanted), &node.name))
                .collect(),
        }
    }

    fn nodes<'a>(&'a self, whom: &Whom) -> impl Iterator<Item = (NodeId, &'a map::Node)> {
        let selector = match whom {
            Whom::Selector(selector) => selector.clone(),
            Whom::Name(name) if self.parties.values().any(|party| party.name == *name) => {
                Selector::Node(name.clone())
            }
            Whom::Name(name) => Selector::User(name.clone()),
        };
        self.parties
            .iter()
            .filter(move |(_, party)| selector.selects(party))
            .filter_map(|(id, _)| Some((*id, self.org.nodes.get(id)?)))
    }
}

/// Returns which of `rules` are about the hosts of a site, once for each set of hosts that the
/// rules tell apart; of `hosts`, if these are given.
fn ways(
    site: &map::Site,
    rules: &[SiteReach],
    hosts: Option<Ipv4Prefix>,
) -> impl Iterator<Item = Vec<Reach>> {
    let ruled = rules.iter().filter_map(|reach| reach.hosts);
    let sets = site.prefixes.iter().copied().chain(ruled);
    // Of two sets that overlap the smaller is what both have.
    let sets = sets.filter_map(move |set| match hosts {
        None => Some(set),
        Some(hosts) if set.covers(hosts) => Some(hosts),
        Some(hosts) => hosts.covers(set).then_some(set),
    });
    sets.filter(|set| site.prefixes.iter().any(|prefix| prefix.covers(*set)))
        .map(|set| rules.iter().filter_map(|reach| reach.of(set)).collect())
}

fn nobody(verdict: Verdict) -> Answer {
    Answer {
        verdict,
        example: None,
    }
}

#[cfg(test)]
mod tests;
