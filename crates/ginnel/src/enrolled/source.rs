//! Where maps come from: a server elsewhere, or the control plane in this process.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use hyper::body::Bytes;
use model::{
    api::{
        CaptureEnd, ErrorCode, MAP_WAIT_SECONDS_MAX, NodeByKey, SentBlocks, SiteHealth,
        TunnelReport,
    },
    id::{CaptureId, NodeId, SiteId},
    key::PublicKey,
    map::{NetworkMap, Role, Told},
    site::NodeHealth,
};
use tokio::{sync::mpsc, time};
use zeroize::Zeroizing;

use crate::{
    api::Client,
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
        /// The gateway that runs here.
        gateway: NodeId,
    },
}

/// The first wait after a failure; each further one is twice as long.
pub(super) const BACK_OFF: Duration = Duration::from_secs(1);

/// The longest wait: when the server returns, nodes follow within it.
pub(super) const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// How often a capture asks a server whose database does not answer, about each second.
const CAPTURE_TRIES_MAX: u32 = 10;

/// One update waits while one is applied; the source waits with it.
const UPDATES: usize = 1;

impl Source {
    /// Returns the first map, for a node that has none yet.
    pub(crate) async fn first(&self) -> Result<NetworkMap> {
        match self {
            Self::Server(client) => match client.map().await {
                Ok(map) => Ok(map),
                Err(error) if error.is_removed() => Err(enrolled::removed(Role::Client)),
                Err(error) => Err(error).context("fetch the network map"),
            },
            Self::Here { server, gateway } => {
                let map = server.map_here(*gateway).await?;
                map.context("the gateway of this process was removed")
            }
        }
    }

    /// Tells whether the map is read from the database of this process, and needs no file then.
    pub(crate) fn is_here(&self) -> bool {
        match self {
            Self::Server(_) => false,
            Self::Here { .. } => true,
        }
    }

    /// Yields what the node is told that knows the map with `serial`, until the receiver is
    /// dropped, and tells `contact` how the server answers.
    pub(crate) fn updates(&self, serial: u64, contact: Contact) -> mpsc::Receiver<Told> {
        let (sender, receiver) = mpsc::channel(UPDATES);
        match self.clone() {
            Self::Server(client) => tokio::spawn(poll(client, serial, sender, contact)),
            Self::Here { server, gateway } => tokio::spawn(follow(server, gateway, serial, sender)),
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
    /// Tells how the tunnels of nodes stand at this gateway.
    pub(super) async fn report_tunnels(&self, report: TunnelReport) -> Result<()> {
        match self {
            Self::Server(client) => Ok(client.report_tunnels(&report).await?),
            Self::Here { server, .. } => {
                server.report_tunnels(&report);
                Ok(())
            }
        }
    }

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
                let mut tries = 0;
                loop {
                    let error = match client.send_capture(id, blocks.clone()).await {
                        Ok(sent) => return Ok(sent),
                        Err(error) => error,
                    };
                    let waits = error.code() == Some(ErrorCode::StorageFailed);
                    tries += 1;
                    if !waits || tries == CAPTURE_TRIES_MAX {
                        return Err(format!("{:#}", anyhow::Error::from(error)));
                    }
                    time::sleep(BACK_OFF).await;
                }
            }
            Self::Here { server, .. } => Ok(server.send_capture(node, id, blocks.to_vec()).await),
        }
    }

    /// Tells what this gateway has found out about the nodes of a site; false when the control
    /// plane does not answer.
    pub(super) async fn report_site(&self, site: SiteId, nodes: &[NodeHealth]) -> bool {
        let told = match self {
            Self::Server(client) => {
                let health = SiteHealth {
                    nodes: nodes.to_vec(),
                };
                let told = client.report_site(site, &health).await;
                told.map_err(anyhow::Error::from)
            }
            Self::Here { server, gateway } => server.report_site(*gateway, site, nodes).await,
        };
        if let Err(error) = &told {
            tracing::debug!("tell the control plane who carries a site: {error:#}");
        }
        told.is_ok()
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

async fn follow(server: control::Server, gateway: NodeId, serial: u64, sender: mpsc::Sender<Told>) {
    let mut known = serial;
    let mut failed = false;
    loop {
        let told = tokio::select! {
            told = server.map_after(gateway, known) => told,
            () = sender.closed() => return,
        };
        match told {
            // The control plane ends, and this process with it.
            Ok(Told::Same) => return,
            Ok(told) => {
                failed = false;
                known = serial_of(&told).unwrap_or(known);
                if sender.send(told).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // The gateway keeps its last map until the database answers again.
                if !std::mem::replace(&mut failed, true) {
                    let error = format!("{error:#}");
                    tracing::error!(error, "the map of the server's own gateway failed");
                }
                tokio::select! {
                    () = time::sleep(BACK_OFF) => {}
                    () = sender.closed() => return,
                }
            }
        }
    }
}

async fn poll(client: Arc<Client>, serial: u64, sender: mpsc::Sender<Told>, contact: Contact) {
    let mut known = serial;
    let mut back_off = BACK_OFF;
    // The first answer comes at once, so that it is soon known whether the server is there.
    let mut reached = false;
    // A server whose database is away holds the question until it is back.
    let mut held = false;
    loop {
        let waits = reached || held;
        let wait = Duration::from_secs(if waits { MAP_WAIT_SECONDS_MAX } else { 0 });
        // An aborted wait must not outlive its receiver.
        let answer = tokio::select! {
            answer = client.map_after(known, wait) => answer,
            () = sender.closed() => return,
        };
        match answer {
            Ok(told) => {
                back_off = BACK_OFF;
                reached = true;
                contact.reached();
                known = serial_of(&told).unwrap_or(known);
                if told != Told::Same && sender.send(told).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                reached = false;
                let holds = error.code() == Some(ErrorCode::StorageFailed);
                if holds && !held {
                    back_off = BACK_OFF;
                }
                held = holds;
                let is_silent = error.code().is_none();
                contact.failed(os::clock::Clock::start().now(), &error.into(), is_silent);
                tokio::select! {
                    () = time::sleep(with_jitter(back_off)) => {}
                    () = sender.closed() => return,
                }
                back_off = (back_off * 2).min(BACK_OFF_MAX);
            }
        }
    }
}

/// Returns the serial of the map that a node has that was told so.
fn serial_of(told: &Told) -> Option<u64> {
    match told {
        Told::Map(map) => Some(map.serial),
        Told::Difference(difference) => Some(difference.serial),
        Told::Same | Told::Removed => None,
    }
}

/// Spreads the nodes that lost their server together over half the wait.
pub(super) fn with_jitter(wait: Duration) -> Duration {
    let mut byte = [0];
    os::random::fill(&mut byte);
    wait / 2 + wait * u32::from(byte[0]) / 512
}
