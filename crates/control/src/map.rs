//! Maps: what one node may know, built from the store.
//!
//! A client sees its own organisation and nothing else. A gateway sees every organisation of the
//! installation, so that nodes that still hold an older map pass through an older gateway.
//!
//! Whose device a node is stands in the maps of the organisation's own nodes. A guest's device is
//! told of its owner alone and a gateway of nobody, because neither may read the list of people.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    policy::{self, Lists, Parties},
    storage::{self, Error, node::Node, node::Part, org::Org, policy::Rule},
};
use model::{
    id::{NodeId, OrgId, RuleId},
    map::{self, NetworkMap, Own},
    policy::{Owner, Role},
};

/// Builds maps and keeps what the members of an organisation share.
pub(crate) struct Maps {
    /// One entry per organisation that somebody asked for, with the serial it was built at.
    orgs: Mutex<BTreeMap<OrgId, (u64, Arc<map::Org>)>>,
}

impl Maps {
    /// Makes an empty cache.
    pub(crate) fn new() -> Self {
        Self {
            orgs: Mutex::new(BTreeMap::new()),
        }
    }

    /// Returns the serial of the node's map as it would be built now; `None` once it is removed.
    pub(crate) async fn serial(
        &self,
        connection: &mut storage::Connection,
        node: NodeId,
    ) -> Result<Option<u64>, Error> {
        let Some(node) = live(connection, node).await? else {
            return Ok(None);
        };
        Ok(match node.org() {
            Some(org) => storage::org::org(connection, org)
                .await?
                .map(|org| org.serial),
            None => Some(installation_serial(connection).await?),
        })
    }

    /// Builds the map of a node from the connection's snapshot; `None` once it is removed.
    pub(crate) async fn map(
        &self,
        connection: &mut storage::Connection,
        now: i64,
        node: NodeId,
    ) -> Result<Option<NetworkMap>, Error> {
        let Some(node) = live(connection, node).await? else {
            return Ok(None);
        };
        let mut orgs = BTreeMap::new();
        let serial = match node.org() {
            Some(id) => {
                let Some(org) = storage::org::org(connection, id).await? else {
                    return Ok(None);
                };
                orgs.insert(
                    id,
                    for_node(&*self.org(connection, now, &org).await?, node.id),
                );
                org.serial
            }
            None => {
                for org in storage::org::orgs(connection, None, 0, u32::MAX).await? {
                    orgs.insert(
                        org.id,
                        for_node(&*self.org(connection, now, &org).await?, node.id),
                    );
                }
                installation_serial(connection).await?
            }
        };
        let role = node.role();
        let own = Own {
            id: node.id,
            name: node.name,
            role,
            capture: None,
        };
        Ok(Some(NetworkMap { serial, own, orgs }))
    }

    /// Returns what the members of an organisation share, at the serial of `org`.
    pub(crate) async fn org(
        &self,
        connection: &mut storage::Connection,
        now: i64,
        org: &Org,
    ) -> Result<Arc<map::Org>, Error> {
        if let Some((serial, shared)) = self.lock().get(&org.id)
            && *serial == org.serial
        {
            return Ok(shared.clone());
        }
        let shared = Arc::new(build(connection, now, org).await?);
        self.lock().insert(org.id, (org.serial, shared.clone()));
        Ok(shared)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<OrgId, (u64, Arc<map::Org>)>> {
        self.orgs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn live(connection: &mut storage::Connection, node: NodeId) -> Result<Option<Node>, Error> {
    let node = storage::node::node(connection, node).await?;
    Ok(node.filter(|node| node.removed.is_none()))
}

async fn installation_serial(connection: &mut storage::Connection) -> Result<u64, Error> {
    let installation = storage::installation::installation(connection).await?;
    Ok(installation.ok_or(Error::Corrupt("installation"))?.serial)
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
    let rules = storage::policy::rules(connection, Some(org.id), 0, u32::MAX).await?;
    let parties = Parties::of(connection, org.id).await?;
    let mut nodes = BTreeMap::new();
    for node in storage::node::nodes_of(connection, org.id).await? {
        let offers = offers_of.get(&node.id).map_or(&[][..], Vec::as_slice);
        let party = parties.party(&node);
        let lists = policy::lists(&rules, &party, offers);
        nodes.extend(for_others(&node, party.owner, lists).map(|others| (node.id, others)));
    }
    let mut services: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for service in offers {
        let offer = map::Service {
            node: service.node,
            port: service.port,
            target: Some(service.target),
        };
        services.entry(service.name).or_default().push(offer);
    }
    let mut sites = BTreeMap::new();
    for site in storage::site::sites_of(connection, org.id).await? {
        let may_reach = policy::site_may_reach(&rules, &site.name);
        let reached_by = policy::site_reached_by(&rules, &site.name);
        let entry = map::Site {
            name: site.name,
            node: site.node,
            prefixes: site.prefixes,
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
        Some(org) => storage::policy::rules(connection, Some(org), 0, u32::MAX).await?,
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
    for other in org.nodes.values_mut() {
        other.owner.take_if(|user| !may_know(own.as_ref(), user));
    }
    for service in org.services.values_mut().flatten() {
        if service.node != node {
            service.target = None;
        }
    }
    org
}

/// Tells whether the map of `own` names `user`; a gateway has no place among the nodes.
fn may_know(own: Option<&map::Node>, user: &map::User) -> bool {
    own.is_some_and(|own| match &own.owner {
        Some(owner) => owner.role != Role::Guest || owner == user,
        None => true,
    })
}
