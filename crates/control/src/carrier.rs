//! What gateways say of sites with several nodes: which one carries each, and why not the others.
//!
//! It is a copy of what the gateways decide by themselves, so it is kept in memory only.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use model::{
    id::{NodeId, SiteId},
    site::NodeHealth,
};

use crate::{
    Server,
    storage::{self, Error},
};

/// The last report about each site, and when it came; bounded by the sites that there have been
/// since the start.
#[derive(Default)]
pub(crate) struct Carriers(Mutex<BTreeMap<SiteId, (i64, Vec<NodeHealth>)>>);

/// A report is believed so long: gateways repeat it every minute.
const AGE_MAX_SECONDS: i64 = 150;

impl Carriers {
    /// Returns what was last said of a node of a site.
    pub(crate) fn of(&self, now: i64, site: SiteId, node: NodeId) -> Option<NodeHealth> {
        let reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, nodes) = reports.get(&site)?;
        let told = nodes.iter().find(|told| told.node == node)?;
        (now - at <= AGE_MAX_SECONDS).then_some(*told)
    }

    pub(crate) fn forget(&self, site: SiteId) {
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reports.remove(&site);
    }

    fn learn(&self, now: i64, site: SiteId, nodes: Vec<NodeHealth>) {
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reports.insert(site, (now, nodes));
    }
}

impl Server {
    /// Takes what a gateway in this process has found out about the nodes of a site. What is said
    /// by another gateway than that of the site's organisation, which no node calls, is ignored.
    pub async fn report_site(
        &self,
        gateway: NodeId,
        site: SiteId,
        nodes: &[NodeHealth],
    ) -> anyhow::Result<()> {
        Ok(self.learn_site(gateway, site, nodes).await?)
    }

    /// The same, for the API.
    pub(crate) async fn learn_site(
        &self,
        gateway: NodeId,
        id: SiteId,
        nodes: &[NodeHealth],
    ) -> Result<(), Error> {
        let mut read = self.inner.store.read().await?;
        let Some(site) = storage::site::site(&mut read, id).await? else {
            return Ok(());
        };
        let org = storage::org::org(&mut read, site.org).await?;
        if org.is_some_and(|org| org.gateway == Some(gateway)) {
            let is_behind = |told: &&NodeHealth| site.nodes().any(|node| node == told.node);
            let nodes = nodes.iter().filter(is_behind).copied().collect();
            self.inner.carriers.learn(self.now(), id, nodes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::site::Health;

    #[test]
    fn a_report_is_believed_until_it_should_have_been_repeated() {
        let carriers = Carriers::default();
        let (site, node) = (SiteId(1), NodeId(2));
        let told = NodeHealth {
            node,
            carries: true,
            health: Health::Healthy,
        };
        carriers.learn(1_000, site, vec![told]);
        assert_eq!(carriers.of(1_150, site, node), Some(told));
        assert_eq!(carriers.of(1_151, site, node), None);
        assert_eq!(carriers.of(1_000, site, NodeId(3)), None);
        carriers.forget(site);
        assert_eq!(carriers.of(1_000, site, node), None);
    }
}
