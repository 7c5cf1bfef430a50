//! Maps: what one node may know, built from the store.
//!
//! A client sees its own organisation and nothing else. A gateway sees every organisation of the
//! installation, so that nodes that still hold an older map pass through an older gateway.
//!
//! Whose device a node is stands in the maps of the organisation's own nodes. A guest's device is
//! told of its owner alone and a gateway of nobody, because neither may read the list of people.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    policy::{self, Lists, Parties},
    storage::{self, Error, Store, node::Node, node::Part, org::Org, policy::Rule},
};
use model::{
    id::{NodeId, OrgId, RuleId},
    map::{self, Difference, NetworkMap, OrgChange, OrgDifference, Own, Told},
    policy::{Owner, Role},
};

/// Builds maps, keeps what the members of an organisation share, and how that changed lately.
pub(crate) struct Maps {
    /// One entry per organisation that somebody asked for. Whoever builds one holds its lock, so
    /// that it is built once though all its members ask at once.
    orgs: Mutex<BTreeMap<OrgId, Arc<tokio::sync::Mutex<Option<Shared>>>>>,
    /// Serials at which a gateway was told organisations that all are in `orgs` or among their
    /// steps; at most [`TOLD_MAX`], older ones are forgotten and told everything again.
    told: Mutex<BTreeSet<u64>>,
}

/// What the members of an organisation share.
struct Shared {
    serial: u64,
    org: Arc<map::Org>,
    /// What led to it, the oldest first, each step up to the next: at most [`STEPS_MAX`] with
    /// [`ENTRIES_MAX`] entries; whoever is further behind is told everything again.
    steps: VecDeque<Step>,
}

/// What changed after one serial of an organisation up to the next that was built.
struct Step {
    after: u64,
    difference: Arc<OrgDifference>,
}

/// The map that a node has, and whether it takes differences to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Known {
    pub(crate) serial: u64,
    pub(crate) differences: bool,
}

/// Where the snapshot of a reader stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Snapshot {
    /// Others may have read a newer one meanwhile.
    Any,
    /// What others have read of the future is none: the database was set back.
    Last,
}

const STEPS_MAX: usize = 64;
const ENTRIES_MAX: usize = 1_024;
const TOLD_MAX: usize = 1_024;

/// How often a reader whose snapshot has been overtaken takes another one.
const SNAPSHOTS_MAX: u32 = 8;

impl Maps {
    /// Makes an empty cache.
    pub(crate) fn new() -> Self {
        Self {
            orgs: Mutex::new(BTreeMap::new()),
            told: Mutex::new(BTreeSet::new()),
        }
    }

    /// Tells a node its map, or what changed in it.
    pub(crate) async fn tell(
        &self,
        store: &Store,
        now: i64,
        node: NodeId,
        known: Option<Known>,
    ) -> Result<Told, Error> {
        let mut snapshots = 0;
        loop {
            snapshots += 1;
            let snapshot = match snapshots {
                SNAPSHOTS_MAX => Snapshot::Last,
                _ => Snapshot::Any,
            };
            let mut read = store.read().await?;
            let asking = Asking {
                maps: self,
                connection: &mut read,
                now,
                snapshot,
            };
            if let Some(told) = asking.tell(node, known).await? {
                return Ok(told);
            }
        }
    }

    /// Returns what the members of an organisation share, at the serial of `org`.
    pub(crate) async fn org(
        &self,
        connection: &mut storage::Connection,
        now: i64,
        org: &Org,
    ) -> Result<Arc<map::Org>, Error> {
        let slot = self.slot(org.id);
        let mut shared = slot.lock().await;
        if let Some(shared) = shared.as_ref().filter(|shared| shared.serial == org.serial) {
            return Ok(shared.org.clone());
        }
        let built = Arc::new(build(connection, now, org).await?);
        if shared
            .as_ref()
            .is_none_or(|shared| shared.serial < org.serial)
        {
            *shared = Some(Shared::after(shared.take(), org.serial, built.clone()));
        }
        Ok(built)
    }

    fn slot(&self, org: OrgId) -> Arc<tokio::sync::Mutex<Option<Shared>>> {
        let mut orgs = self.orgs.lock().unwrap_or_else(PoisonError::into_inner);
        orgs.entry(org).or_default().clone()
    }

    fn forget_told(&self) {
        let told = self.told.lock();
        told.unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn was_told(&self, serial: u64) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.contains(&serial)
    }

    fn note_told(&self, serial: u64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.insert(serial);
        if told.len() > TOLD_MAX {
            told.pop_first();
        }
    }
}

impl Shared {
    /// Takes over what was built at a later serial than `former`.
    fn after(former: Option<Self>, serial: u64, org: Arc<map::Org>) -> Self {
        let mut steps = VecDeque::new();
        if let Some(former) = former
            && let Some(difference) = org.difference(&former.org)
        {
            steps = former.steps;
            steps.push_back(Step {
                after: former.serial,
                difference: Arc::new(difference),
            });
        }
        let entries = |steps: &VecDeque<Step>| -> usize {
            steps.iter().map(|step| step.difference.len()).sum()
        };
        while steps.len() > STEPS_MAX || entries(&steps) > ENTRIES_MAX {
            steps.pop_front();
        }
        Self { serial, org, steps }
    }

    /// Returns what changed after the last serial of the organisation that is not above `serial`;
    /// `None` when that is not known any more.
    fn since(&self, serial: u64) -> Option<Arc<OrgDifference>> {
        if self.serial <= serial {
            return Some(Arc::default());
        }
        let later = self.steps.partition_point(|step| step.after <= serial);
        let mut steps = self.steps.range(later.checked_sub(1)?..);
        let first = &steps.next()?.difference;
        if steps.len() == 0 {
            return Some(first.clone());
        }
        let mut all = first.as_ref().clone();
        steps.for_each(|step| all.extend(&step.difference));
        Some(Arc::new(all))
    }

    /// Tells whether `serial` is one at which the organisation was built.
    fn was_built_at(&self, serial: u64) -> bool {
        let steps = &self.steps;
        serial == self.serial
            || steps
                .binary_search_by_key(&serial, |step| step.after)
                .is_ok()
    }
}

/// One node that asks, and the snapshot that it is answered from.
struct Asking<'a> {
    maps: &'a Maps,
    connection: &'a mut storage::Connection,
    now: i64,
    snapshot: Snapshot,
}

impl Asking<'_> {
    /// Tells the node; `None` when the snapshot has been overtaken.
    async fn tell(mut self, node: NodeId, known: Option<Known>) -> Result<Option<Told>, Error> {
        let node = storage::node::node(self.connection, node).await?;
        let Some(node) = node.filter(|node| node.removed.is_none()) else {
            return Ok(Some(Told::Removed));
        };
        match node.org() {
            Some(org) => self.tell_client(node, org, known).await,
            None => self.tell_gateway(node, known).await,
        }
    }

    async fn tell_client(
        &mut self,
        node: Node,
        org: OrgId,
        known: Option<Known>,
    ) -> Result<Option<Told>, Error> {
        let Some(org) = storage::org::org(self.connection, org).await? else {
            return Ok(Some(Told::Removed));
        };
        let serial = org.serial;
        // Another serial, not only a later one: a restored backup may have gone back.
        if known.is_some_and(|known| known.serial == serial) {
            return Ok(Some(Told::Same));
        }
        if !node.state().is_active() {
            let alone = alone(self.connection, self.now, &node, &org).await?;
            let (own, orgs) = (own(node), BTreeMap::from([(org.id, alone)]));
            return Ok(Some(Told::Map(NetworkMap { serial, own, orgs })));
        }
        let after = known
            .filter(|known| known.differences)
            .map(|known| known.serial);
        let slot = self.maps.slot(org.id);
        let mut slot = slot.lock().await;
        let Some(shared) = self.newest(&mut slot, &org).await? else {
            return Ok(None);
        };
        let after = after.filter(|&after| after < serial && shared.was_built_at(after));
        let difference = after.and_then(|after| Some((after, shared.since(after)?)));
        let shared = shared.org.clone();
        drop(slot);
        if let Some((after, difference)) = difference
            && let Some(parts) = parts_for(&shared, &difference, node.id)
        {
            let orgs = BTreeMap::from([(org.id, Some(OrgChange::Parts(parts)))]);
            return Ok(Some(Told::Difference(Difference {
                after,
                serial,
                own: own(node),
                orgs,
            })));
        }
        let orgs = BTreeMap::from([(org.id, for_node(&shared, node.id))]);
        let own = own(node);
        Ok(Some(Told::Map(NetworkMap { serial, own, orgs })))
    }

    async fn tell_gateway(
        &mut self,
        node: Node,
        known: Option<Known>,
    ) -> Result<Option<Told>, Error> {
        let installation = storage::installation::installation(self.connection).await?;
        let serial = installation.ok_or(Error::Corrupt("installation"))?.serial;
        if known.is_some_and(|known| known.serial == serial) {
            return Ok(Some(Told::Same));
        }
        let after = known
            .filter(|known| known.differences)
            .map(|known| known.serial);
        let after = after.filter(|&after| after < serial && self.maps.was_told(after));
        let told = match after {
            Some(after) => {
                let Some(orgs) = self.changes(after, node.id).await? else {
                    return Ok(None);
                };
                Told::Difference(Difference {
                    after,
                    serial,
                    own: own(node),
                    orgs,
                })
            }
            None => {
                let mut orgs = BTreeMap::new();
                for org in storage::org::orgs(self.connection, None, 0, u32::MAX).await? {
                    let slot = self.maps.slot(org.id);
                    let mut shared = slot.lock().await;
                    let Some(shared) = self.newest(&mut shared, &org).await? else {
                        return Ok(None);
                    };
                    orgs.insert(org.id, for_node(&shared.org, node.id));
                }
                let own = own(node);
                Told::Map(NetworkMap { serial, own, orgs })
            }
        };
        self.maps.note_told(serial);
        Ok(Some(told))
    }

    /// Returns how organisations changed for a gateway that was told those of `after`.
    async fn changes(
        &mut self,
        after: u64,
        node: NodeId,
    ) -> Result<Option<BTreeMap<OrgId, Option<OrgChange>>>, Error> {
        let mut orgs = BTreeMap::new();
        for (id, org) in storage::org::changed(self.connection, after).await? {
            let Some(org) = org else {
                orgs.insert(id, None);
                continue;
            };
            let slot = self.maps.slot(id);
            let mut shared = slot.lock().await;
            let Some(shared) = self.newest(&mut shared, &org).await? else {
                return Ok(None);
            };
            let difference = shared.since(after);
            let parts = difference.and_then(|difference| parts_for(&shared.org, &difference, node));
            let change = match parts {
                Some(parts) => OrgChange::Parts(parts),
                None => OrgChange::Whole(for_node(&shared.org, node)),
            };
            orgs.insert(id, Some(change));
        }
        Ok(Some(orgs))
    }

    /// Returns what is shared at the serial of `org`, built if it has to be; `None` when somebody
    /// has read a newer one already.
    async fn newest<'b>(
        &mut self,
        shared: &'b mut Option<Shared>,
        org: &Org,
    ) -> Result<Option<&'b Shared>, Error> {
        let serial = shared.as_ref().map(|shared| shared.serial);
        if serial != Some(org.serial) {
            let overtaken = serial.is_some_and(|serial| serial > org.serial);
            if overtaken && self.snapshot == Snapshot::Any {
                return Ok(None);
            }
            let built = Arc::new(build(self.connection, self.now, org).await?);
            if overtaken {
                self.maps.forget_told();
            }
            let former = shared.take().filter(|_| !overtaken);
            *shared = Some(Shared::after(former, org.serial, built));
        }
        Ok(shared.as_ref())
    }
}

fn own(node: Node) -> Own {
    let (role, state) = (node.role(), node.state());
    Own {
        id: node.id,
        name: node.name,
        role,
        state,
        capture: None,
    }
}

/// Builds an organisation as a node sees it whom the others do not know: itself, and the keys that
/// it pins.
async fn alone(
    connection: &mut storage::Connection,
    now: i64,
    node: &Node,
    org: &Org,
) -> Result<map::Org, Error> {
    let lists = Lists {
        may_reach: Vec::new(),
        reached_by: Vec::new(),
    };
    let own = for_others(node, None, lists);
    let mut ssh = storage::ssh::published(connection, now, org.id).await?;
    if let Some(authority) = &mut ssh {
        authority.revoked.clear();
        authority.cut.clear();
    }
    Ok(map::Org {
        name: org.name.clone(),
        prefix: org.prefix,
        gateway: None,
        nodes: own.map(|own| (node.id, own)).into_iter().collect(),
        services: BTreeMap::new(),
        sites: BTreeMap::new(),
        rules: Some(BTreeMap::new()),
        ssh,
    })
}

/// Builds an organisation with all targets in it.
async fn build(
    connection: &mut storage::Connection,
    now: i64,
    org: &Org,
) -> Result<map::Org, Error> {
    let offers = storage::service::services_of(connection, org.id).await?;
    let mut offers_of: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for offer in &offers {
        offers_of.entry(offer.node).or_default().push(offer);
    }
    let rules = storage::policy::rules_of(connection, org.id).await?;
    let parties = Parties::of(connection, org.id).await?;
    let mut nodes = BTreeMap::new();
    let known = storage::node::nodes_of(connection, org.id).await?;
    for node in known.into_iter().filter(|node| node.state().is_active()) {
        let offers = offers_of.get(&node.id).map_or(&[][..], Vec::as_slice);
        let party = parties.party(&node);
        let lists = policy::lists(&rules, &party, offers);
        nodes.extend(for_others(&node, party.owner, lists).map(|others| (node.id, others)));
    }
    let mut services: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for service in offers {
        if !nodes.contains_key(&service.node) {
            continue;
        }
        let offer = map::Service {
            node: service.node,
            port: service.port,
            target: Some(service.target),
        };
        services.entry(service.name).or_default().push(offer);
    }
    let mut sites = BTreeMap::new();
    for site in storage::site::sites_of(connection, org.id).await? {
        let leads = [site.node].into_iter().chain(site.standbys);
        let mut leads = leads.filter(|node| nodes.contains_key(node));
        let Some(node) = leads.next() else {
            continue;
        };
        let standbys = leads.collect();
        let may_reach = policy::site_may_reach(&rules, &site.name);
        let reached_by = policy::site_reached_by(&rules, &site.name);
        let entry = map::Site {
            name: site.name,
            node,
            standbys,
            prefixes: site.prefixes,
            aliases: site.aliases,
            mode: site.mode,
            may_reach,
            reached_by,
        };
        sites.insert(site.id, entry);
    }
    let gateway = match org.gateway {
        Some(id) => storage::node::node(connection, id).await?,
        None => None,
    };
    let gateway = gateway.and_then(self::gateway);
    Ok(map::Org {
        name: org.name.clone(),
        prefix: org.prefix,
        gateway,
        nodes,
        services,
        sites,
        rules: Some(rules.into_iter().map(numbered).collect()),
        ssh: storage::ssh::published(connection, now, org.id).await?,
    })
}

/// Builds the one client `node` as it stands in the maps of gateways.
pub(crate) async fn client(
    connection: &mut storage::Connection,
    node: &Node,
) -> Result<Option<map::Node>, Error> {
    let rules = match node.org() {
        Some(org) => storage::policy::rules_of(connection, org).await?,
        None => return Ok(None),
    };
    let offers = storage::service::services_of_node(connection, node.id).await?;
    let parties = Parties::of_node(connection, node).await?;
    let offers: Vec<_> = offers.iter().collect();
    let lists = policy::lists(&rules, &parties.party(node), &offers);
    Ok(for_others(node, None, lists))
}

/// Returns how clients reach a gateway; `None` for a client.
pub(crate) fn gateway(node: Node) -> Option<map::Gateway> {
    match node.part {
        Part::Gateway { endpoint, .. } => Some(map::Gateway {
            id: node.id,
            name: node.name,
            public_key: node.public_key,
            endpoint,
        }),
        Part::Client { .. } => None,
    }
}

fn numbered(rule: Rule) -> (RuleId, model::policy::Rule) {
    let traffic = rule.terms.traffic;
    (rule.id, model::policy::Rule { traffic })
}

/// Returns a client as others see it; a gateway has no place among them.
fn for_others(node: &Node, owner: Option<Owner>, lists: Lists) -> Option<map::Node> {
    let owner = owner.map(|Owner { name, role, .. }| map::User { name, role });
    match &node.part {
        Part::Client { address, .. } => Some(map::Node {
            name: node.name.clone(),
            public_key: node.public_key,
            address: *address,
            owner,
            may_reach: lists.may_reach,
            reached_by: lists.reached_by,
        }),
        Part::Gateway { .. } => None,
    }
}

/// Copies an organisation without the targets and people that are none of the node's business.
fn for_node(org: &map::Org, node: NodeId) -> map::Org {
    let mut org = org.clone();
    let own = org.nodes.get(&node).cloned();
    conceal_people(own.as_ref(), org.nodes.values_mut());
    conceal_targets(node, org.services.values_mut().flatten());
    org
}

/// Copies what changed in an organisation without what is none of the node's business; `None` when
/// the node itself changed, because that decides what its business is.
fn parts_for(org: &map::Org, difference: &OrgDifference, node: NodeId) -> Option<OrgDifference> {
    if difference.nodes.contains_key(&node) {
        return None;
    }
    let mut parts = difference.clone();
    conceal_people(org.nodes.get(&node), parts.nodes.values_mut().flatten());
    conceal_targets(node, parts.services.values_mut().flatten().flatten());
    Some(parts)
}

fn conceal_people<'a>(own: Option<&map::Node>, nodes: impl Iterator<Item = &'a mut map::Node>) {
    for node in nodes {
        node.owner.take_if(|user| !may_know(own, user));
    }
}

fn conceal_targets<'a>(node: NodeId, services: impl Iterator<Item = &'a mut map::Service>) {
    for service in services.filter(|service| service.node != node) {
        service.target = None;
    }
}

/// Tells whether the map of `own` names `user`; a gateway has no place among the nodes.
fn may_know(own: Option<&map::Node>, user: &map::User) -> bool {
    own.is_some_and(|own| match &own.owner {
        Some(owner) => owner.role != Role::Guest || owner == user,
        None => true,
    })
}
