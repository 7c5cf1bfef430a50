//! The node's key, replaced when a capture has given it away: a key log holds it.
//!
//! The next key is on disk before the first packet is captured, and until the server knows it. So
//! whatever crashes meanwhile, the node begins with a key that works and goes on replacing it.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use model::{
    api::NewKey,
    id::NodeId,
    key::{PublicKey, SecretKey},
};
use tokio::{sync::watch, time};
use tunnel::Tunnel;
use wireguard::StaticSecret;

use super::source::{BACK_OFF, BACK_OFF_MAX, with_jitter};
use crate::{
    api::{Client, Error},
    enrolment::State,
};

/// The key of an enrolled node. Clones share it.
#[derive(Clone)]
pub(crate) struct NodeKey {
    state: State,
    client: Arc<Client>,
    node: NodeId,
    tunnel: Tunnel,
    /// Whether the key in use is known to somebody else.
    exposed: watch::Sender<bool>,
}

impl NodeKey {
    /// Takes the key of `node`, and goes on replacing it where a former process had to stop.
    pub(crate) fn open(
        state: State,
        client: Arc<Client>,
        node: NodeId,
        tunnel: Tunnel,
    ) -> Result<Self> {
        let exposed = state.next_key()?.is_some();
        let key = Self {
            state,
            client,
            node,
            tunnel,
            exposed: watch::Sender::new(exposed),
        };
        if exposed {
            tokio::spawn(key.clone().replace());
        }
        Ok(key)
    }

    /// Tells whether the key was given away and is still in use.
    pub(crate) fn is_exposed(&self) -> bool {
        *self.exposed.borrow()
    }

    /// Says that the key is about to be given away; it must be replaced from now on.
    pub(crate) async fn expose(&self) -> Result<()> {
        let state = self.state.clone();
        let made = tokio::task::spawn_blocking(move || state.next_key_or_new().map(drop));
        made.await.context("make the next key")??;
        self.exposed.send_replace(true);
        Ok(())
    }

    /// Replaces the key; while the server is away, again and again.
    pub(crate) async fn replace(self) {
        let mut back_off = BACK_OFF;
        while let Err(error) = self.try_replace().await {
            if error.downcast_ref().is_some_and(Error::is_removed) {
                return;
            }
            tracing::warn!("replace the key that a capture gave away: {error:#}");
            time::sleep(with_jitter(back_off)).await;
            back_off = (back_off * 2).min(BACK_OFF_MAX);
        }
    }

    /// Waits until the key is not known to anybody else; false after `timeout`.
    pub(crate) async fn replaced(&self, timeout: Duration) -> bool {
        let mut exposed = self.exposed.subscribe();
        let waited = time::timeout(timeout, exposed.wait_for(|exposed| !exposed));
        waited.await.is_ok()
    }

    async fn try_replace(&self) -> Result<()> {
        let state = self.state.clone();
        let next = tokio::task::spawn_blocking(move || state.next_key());
        let Some(next) = next.await.context("read the next key")?? else {
            return Ok(());
        };
        let request = NewKey {
            public_key: public(&next),
        };
        self.client.replace_key(self.node, &request).await?;
        self.tunnel
            .with(|node, now| node.set_private_key(now, &next));
        let state = self.state.clone();
        let kept = tokio::task::spawn_blocking(move || state.keep_next_key(&next));
        kept.await.context("keep the next key")??;
        self.exposed.send_replace(false);
        tracing::info!("the key that a capture gave away is replaced");
        Ok(())
    }
}

fn public(key: &SecretKey) -> PublicKey {
    PublicKey(StaticSecret::new(*key.expose()).public_key().0)
}
