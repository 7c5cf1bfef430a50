//! Ends what has an end: nodes, which stay in the list, and plain WireGuard clients, which go.
//!
//! The server sleeps until the next end. A change of maps, of this server or of another one on the
//! database, wakes it, because it may have brought an earlier one.

use std::time::{Duration, UNIX_EPOCH};

use tokio::time::sleep;

use crate::{
    Server,
    api::error::ApiError,
    storage::{
        self, Touched,
        audit::{Actor, Entry},
        node::Node,
    },
};

/// The longest sleep: a clock that was set meanwhile is noticed within it.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The shortest pause between two looks: what changes meanwhile is seen by one.
const PAUSE: Duration = Duration::from_millis(100);

/// The wait after the store has failed.
const BACK_OFF: Duration = Duration::from_secs(5);

/// Most nodes that one change ends; the next change ends more.
const NODES_MAX: u32 = 1_000;

/// Ends what is due, for as long as it is polled.
pub(crate) async fn keep_ending(server: Server) {
    let mut changes = server.inner.publisher.subscribe(None);
    loop {
        changes.borrow_and_update();
        let wait = match server.end_due().await {
            Ok(next) => next.map_or(LOOK_AGAIN, |next| server.until(next)),
            Err(error) => {
                let error = error.message;
                tracing::warn!(error, "nodes whose time is over stay");
                BACK_OFF
            }
        };
        sleep(PAUSE).await;
        tokio::select! {
            () = sleep(wait) => {}
            // The publisher lives as long as the server.
            _ = changes.changed() => {}
        }
    }
}

impl Server {
    /// Ends every node whose time is over. [`Server::serve`] does so by itself.
    pub async fn expire_nodes(&self) -> anyhow::Result<()> {
        let expired = self.expire_due_nodes().await;
        expired.map_err(|error| anyhow::anyhow!(error.message))
    }

    /// Ends what is due and returns when the next is.
    async fn end_due(&self) -> Result<Option<i64>, ApiError> {
        self.remove_due_peers().await?;
        self.expire_due_nodes().await?;
        let mut read = self.inner.store.read().await?;
        Ok(storage::node::next_expiry(&mut read).await?)
    }

    /// Ends every node whose time is over, those of one organisation in one change.
    async fn expire_due_nodes(&self) -> Result<(), ApiError> {
        loop {
            let mut read = self.inner.store.read().await?;
            let due = storage::node::due(&mut read, self.now(), 1).await?;
            drop(read);
            if due.is_empty() {
                return Ok(());
            }
            let mut change = self.change().await?;
            let now = change.now();
            // Another server may have done so, or somebody gave them more time.
            let mut due = storage::node::due(change.connection(), now, NODES_MAX).await?;
            for node in &due {
                let (id, expires) = (node.id, node.expires);
                let connection = change.connection();
                storage::node::update_expires(connection, id, expires, Some(now)).await?;
            }
            let last = due.pop().and_then(|last| Some((last.org()?, last)));
            let Some((org, last)) = last else {
                return Ok(());
            };
            for node in &due {
                change.note(&entry(node, Actor::Server)).await?;
            }
            let entry = entry(&last, Actor::Server);
            self.commit(change, entry, Touched::Org(org)).await?;
        }
    }

    /// Returns how long it is until `time`, at most [`LOOK_AGAIN`].
    fn until(&self, time: i64) -> Duration {
        let time = Duration::from_secs(u64::try_from(time).unwrap_or(0));
        let now = (self.inner.wall)().duration_since(UNIX_EPOCH);
        time.saturating_sub(now.unwrap_or_default()).min(LOOK_AGAIN)
    }
}

/// Returns what the audit says of a node whose time is over.
pub(crate) fn entry(node: &Node, actor: Actor) -> Entry {
    Entry {
        actor,
        action: "node_expired",
        subject: format!("node:{} {}", node.id, node.name),
        org: node.org(),
    }
}
