//! Where maps come from: a server elsewhere, or the control plane in this process.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use hyper::body::Bytes;
use model::{
    api::{CaptureEnd, ErrorCode, NodeByKey, SentBlocks},
    id::{CaptureId, NodeId},
    key::PublicKey,
    map::{NetworkMap, Role},
};
use tokio::{
    sync::{mpsc, watch},
    time,
};
use zeroize::Zeroizing;

use crate::{
    api::{Client, Error},
    enrolled::{self, Contact},
};

/// Where maps come from.
#[derive(Clone)]
pub(crate) enum Source {
    /// A server elsewhere.
    Server(Arc<Client>),
    /// The control plane in this process.
    Here {
        /// The control plane.
        server: control::Server,
        /// The maps of this node.
        maps: watch::Receiver<Arc<NetworkMap>>,
    },
}

/// What a source tells.
pub(crate) enum Update {
    /// There is a newer map.
    Map(Arc<NetworkMap>),
    /// The node is not part of the network any more.
    Removed,
}

/// The first wait after a failure; each further one is twice as long.
pub(super) const BACK_OFF: Duration = Duration::from_secs(1);

/// The longest wait: when the server returns, nodes follow within it.
pub(super) const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// One update waits while one is applied; the source waits with it.
const UPDATES: usize = 1;

impl Source {
    /// Returns the first map, for a node that has none yet.
    pub(crate) async fn first(&self) -> Result<NetworkMap> {
        match self {
            Self::Server(client) => match client.map(None).await {
                Ok(map) => map.context("the server has no map for this node"),
                Err(error) if is_removed(&error) => Err(enrolled::removed(Role::Client)),
                Err(error) => Err(error).context("fetch the network map"),
            },
            Self::Here { maps, .. } => Ok(maps.borrow().as_ref().clone()),
        }
    }

    /// Yields every map that is newer than `serial`, until the receiver is dropped, and tells
    /// `contact` how the server answers.
    pub(crate) fn updates(&self, serial: Option<u64>, contact: Contact) -> mpsc::Receiver<Update> {
        let (sender, receiver) = mpsc::channel(UPDATES);
        match self.clone() {
            Self::Server(client) => tokio::spawn(poll(client, serial, sender, contact)),
            Self::Here { maps, .. } => tokio::spawn(watch(maps, serial, sender)),
        };
        receiver
    }

    /// Finds the node of a key that a gateway met in a handshake; `None` when it is nobody, or
    /// when the server does not answer.
    pub(crate) async fn node_by_key(self, key: PublicKey) -> Option<NodeByKey> {
        let found = match self {
            Self::Server(client) => client.node_by_key(key).await.map_err(Into::into),
            Self::Here { server, .. } => server.node_by_key(key).await,
        };
        found.unwrap_or_else(|error: anyhow::Error| {
            tracing::debug!("look an unknown initiator up: {error:#}");
            None
        })
    }
}

impl Source {
    /// Sends blocks of the capture that somebody asked this node for; `None` when it does not run
    /// any more.
    pub(super) async fn send_capture(
        &self,
        node: NodeId,
        id: CaptureId,
        blocks: &[u8],
    ) -> Result<Option<SentBlocks>, String> {
        match self {
            Self::Server(client) => {
                let blocks = Bytes::from_owner(Zeroizing::new(blocks.to_vec()));
                let sent = client.send_capture(id, blocks).await;
                sent.map_err(|error| format!("{:#}", anyhow::Error::from(error)))
            }
            Self::Here { server, .. } => Ok(server.send_capture(node, id, blocks.to_vec()).await),
        }
    }

    /// Tells that this node has ended a capture. Without an answer the control plane finds that
    /// out by itself.
    pub(super) async fn end_capture(&self, node: NodeId, id: CaptureId, end: CaptureEnd) {
        match self {
            Self::Server(client) => {
                if let Err(error) = client.end_capture(id, &end).await {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::debug!(error, "tell the end of a capture");
                }
            }
            Self::Here { server, .. } => server.end_capture(node, id, end),
        }
    }
}

async fn watch(
    mut maps: watch::Receiver<Arc<NetworkMap>>,
    serial: Option<u64>,
    sender: mpsc::Sender<Update>,
) {
    let mut known = serial;
    loop {
        let map = Arc::clone(&maps.borrow_and_update());
        if known != Some(map.serial) {
            known = Some(map.serial);
            if sender.send(Update::Map(map)).await.is_err() {
                return;
            }
        }
        if maps.changed().await.is_err() {
            // The control plane ends, and this process with it.
            return;
        }
    }
}

async fn poll(
    client: Arc<Client>,
    serial: Option<u64>,
    sender: mpsc::Sender<Update>,
    contact: Contact,
) {
    let mut known = serial;
    let mut back_off = BACK_OFF;
    // The first answer comes at once, so that it is soon known whether the server is there.
    let mut reached = false;
    loop {
        let ask = async {
            match reached {
                true => client.map(known).await,
                false => client.map_now(known).await,
            }
        };
        // An aborted wait must not outlive its receiver.
        let answer = tokio::select! {
            answer = ask => answer,
            () = sender.closed() => return,
        };
        let update = match answer {
            Ok(Some(map)) => {
                known = Some(map.serial);
                Some(Update::Map(Arc::new(map)))
            }
            Ok(None) => None,
            Err(error) if is_removed(&error) => Some(Update::Removed),
            Err(error) => {
                reached = false;
                contact.failed(os::clock::Clock::start().now(), &error.into());
                tokio::select! {
                    () = time::sleep(with_jitter(back_off)) => {}
                    () = sender.closed() => return,
                }
                back_off = (back_off * 2).min(BACK_OFF_MAX);
                continue;
            }
        };
        back_off = BACK_OFF;
        reached = true;
        contact.reached();
        if let Some(update) = update
            && sender.send(update).await.is_err()
        {
            return;
        }
    }
}

/// Spreads the nodes that lost their server together over half the wait.
pub(super) fn with_jitter(wait: Duration) -> Duration {
    let mut byte = [0];
    os::random::fill(&mut byte);
    wait / 2 + wait * u32::from(byte[0]) / 512
}

/// Tells whether the server says that the node is not one of its own any more.
pub(super) fn is_removed(error: &Error) -> bool {
    matches!(
        error.code(),
        Some(ErrorCode::NodeRemoved | ErrorCode::TokenUnknown | ErrorCode::TokenRevoked)
    )
}
