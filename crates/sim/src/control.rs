//! A stub of the control plane: it changes maps and answers who has a key.

use std::collections::BTreeMap;

use model::{
    address::{Kind, OrgPrefix},
    id::{NodeId, OrgId},
    key::PublicKey,
    map::{Gateway, NetworkMap, Node, Org, Own, Role, Service, State},
    name::Label,
};

use crate::seed::Seed;

/// Everything that is enrolled.
#[derive(Debug)]
pub(crate) struct Control {
    serial: u64,
    last_id: i64,
    gateway: Gateway,
    orgs: BTreeMap<OrgId, Org>,
}

impl Control {
    /// Begins with one gateway that serves every organisation.
    pub(crate) fn new(public_key: PublicKey, endpoint: &str) -> Self {
        let gateway = Gateway {
            id: NodeId(1),
            name: label("gateway"),
            public_key,
            endpoint: endpoint.to_owned(),
        };
        Self {
            serial: 1,
            last_id: 1,
            gateway,
            orgs: BTreeMap::new(),
        }
    }

    pub(crate) fn add_org(&mut self) -> OrgId {
        self.serial += 1;
        let number = u8::try_from(self.orgs.len() + 1).expect("a world has few organisations");
        let id = OrgId(i64::from(number));
        let org = Org {
            name: label(&format!("org-{number}")),
            prefix: OrgPrefix::new([number, 0x51, 0x6d, 0, 0]),
            gateway: Some(self.gateway.clone()),
            nodes: BTreeMap::new(),
            services: BTreeMap::new(),
            sites: BTreeMap::new(),
            rules: None,
            ssh: None,
        };
        self.orgs.insert(id, org);
        id
    }

    /// Enrols a node; every organisation has the same names.
    pub(crate) fn add_node(
        &mut self,
        seed: &mut Seed,
        org: OrgId,
        public_key: PublicKey,
    ) -> (NodeId, Node) {
        self.serial += 1;
        self.last_id += 1;
        let id = NodeId(self.last_id);
        let org = self
            .orgs
            .get_mut(&org)
            .expect("a node joins an organisation that exists");
        let node = Node {
            name: label(&format!("node-{}", org.nodes.len())),
            public_key,
            address: org.prefix.address(Kind::Node, seed.number()),
            owner: None,
            may_reach: Vec::new(),
            reached_by: Vec::new(),
        };
        org.nodes.insert(id, node.clone());
        (id, node)
    }

    pub(crate) fn remove_node(&mut self, org: OrgId, id: NodeId) {
        self.serial += 1;
        let org = self.orgs.get_mut(&org).expect("the organisation exists");
        org.nodes.remove(&id);
        for offers in org.services.values_mut() {
            offers.retain(|offer| offer.node != id);
        }
    }

    pub(crate) fn publish(&mut self, org: OrgId, node: NodeId, port: u16) {
        self.serial += 1;
        let org = self.orgs.get_mut(&org).expect("the organisation exists");
        let service = Service {
            node,
            port,
            target: None,
        };
        let name = label(&format!("service-{port}"));
        org.services.entry(name).or_default().push(service);
    }

    /// Returns the map of a client; `None` for one that was removed.
    pub(crate) fn map_of_client(&self, org: OrgId, id: NodeId) -> Option<NetworkMap> {
        let entry = self.orgs.get(&org)?;
        let name = entry.nodes.get(&id)?.name.clone();
        let own = Own {
            id,
            name,
            role: Role::Client,
            state: State::Active,
            capture: None,
        };
        let orgs = BTreeMap::from([(org, entry.clone())]);
        Some(NetworkMap {
            serial: self.serial,
            own,
            orgs,
        })
    }

    pub(crate) fn map_of_gateway(&self) -> NetworkMap {
        let Gateway { id, name, .. } = self.gateway.clone();
        let own = Own {
            id,
            name,
            role: Role::Gateway,
            state: State::Active,
            capture: None,
        };
        NetworkMap {
            serial: self.serial,
            own,
            orgs: self.orgs.clone(),
        }
    }

    /// Answers a gateway that met an unknown key.
    pub(crate) fn node_by_key(&self, key: &PublicKey) -> Option<(OrgId, NodeId, Node)> {
        self.orgs.iter().find_map(|(org, entry)| {
            let (id, node) = entry
                .nodes
                .iter()
                .find(|(_, node)| node.public_key == *key)?;
            Some((*org, *id, node.clone()))
        })
    }
}

fn label(text: &str) -> Label {
    text.parse().expect("the simulation's names are labels")
}
