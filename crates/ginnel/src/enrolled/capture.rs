//! A capture that somebody asked for from elsewhere: begun by the map, sent to the control plane.
//!
//! Whatever becomes of whoever asked, of the control plane or of the way there, the node goes on
//! forwarding, the capture ends, and a key that was given away is replaced.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use model::{
    api::{
        AskedCapture, CAPTURE_BLOCKS_BYTES_MAX, CAPTURE_BYTES_MAX, CAPTURE_REASON_LENGTH_MAX,
        CAPTURE_REPORT_SECONDS_MAX, CAPTURE_SECONDS_MAX, CaptureEnd, SentBlocks,
    },
    id::{CaptureId, NodeId},
};
use node::capture::Settings;
use packet::pcap_filter::Filter;
use tokio::{sync::watch, time};
use tunnel::Tunnel;
use zeroize::Zeroizing;

use super::{NodeKey, Source};

/// How often the control plane hears of a capture, whether or not packets pass.
const REPORT_INTERVAL: Duration = Duration::from_secs(CAPTURE_REPORT_SECONDS_MAX / 2);

/// What comes meanwhile is sent together: each time costs a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// How long whoever asked waits for the key that replaces the one that was given away.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(10);

/// Captures of this node that others asked for. Clones share them.
#[derive(Clone)]
pub(crate) struct Asked {
    state: Arc<Mutex<State>>,
    /// Held by the capture that runs: the next one waits until the key is replaced.
    turn: Arc<tokio::sync::Mutex<()>>,
    running: watch::Sender<Option<AskedCapture>>,
}

#[derive(Default)]
struct State {
    /// The last one that was begun: a map that still tells of it is no reason to begin again.
    last: Option<CaptureId>,
    /// The node's key; `None` where it is not replaced by itself.
    key: Option<NodeKey>,
}

/// What a capture needs of its node.
struct Node {
    tunnel: Tunnel,
    source: Source,
    id: NodeId,
    key: Option<NodeKey>,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            turn: Arc::default(),
            running: watch::Sender::new(None),
        }
    }
}

impl Asked {
    /// Returns the capture that runs.
    pub(crate) fn running(&self) -> Option<AskedCapture> {
        self.running.borrow().clone()
    }

    /// Lets captures give this key away: it is replaced afterwards.
    pub(super) fn set_key(&self, key: NodeKey) {
        self.lock().key = Some(key);
    }

    /// Begins the capture that a map tells of, unless it was begun before.
    pub(super) fn begin(
        &self,
        asked: Option<&AskedCapture>,
        (tunnel, source, id): (&Tunnel, &Source, NodeId),
    ) {
        let Some(asked) = asked else { return };
        let key = {
            let mut state = self.lock();
            if state.last.replace(asked.id) == Some(asked.id) {
                return;
            }
            state.key.clone()
        };
        let node = Node {
            tunnel: tunnel.clone(),
            source: source.clone(),
            id,
            key,
        };
        let (asked, captures) = (asked.clone(), self.clone());
        tokio::spawn(async move {
            let _turn = captures.turn.lock().await;
            captures.running.send_replace(Some(asked.clone()));
            tracing::info!(by = asked.by, keys = asked.keys, "a capture was asked for");
            let ended = node.capture(&asked).await;
            captures.running.send_replace(None);
            if let Err(reason) = &ended {
                tracing::info!(reason, "the capture that was asked for has ended");
            }
            node.source.end_capture(node.id, asked.id, end(ended)).await;
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Captures to the end, and says why the file is not whole.
    async fn capture(&self, asked: &AskedCapture) -> Result<(), String> {
        let settings = settings(asked)?;
        if !asked.keys {
            let capture = self.tunnel.capture(settings).map_err(said)?;
            return self.send(capture, asked).await;
        }
        let key = self.key.as_ref();
        let key = key.ok_or("the key of this node is not replaced by itself")?;
        if key.is_exposed() {
            return Err("the key that the last capture gave away is not replaced yet".to_owned());
        }
        let exposed = key.expose().await;
        exposed.map_err(|error| format!("the next key: {error:#}"))?;
        let ended = match self.tunnel.capture(settings) {
            Ok(capture) => self.send(capture, asked).await,
            Err(failure) => Err(said(failure)),
        };
        tokio::spawn(key.clone().replace());
        if !key.replaced(REPLACE_TIMEOUT).await {
            return Err("the key that was given away is not replaced yet".to_owned());
        }
        ended
    }

    /// Sends what is captured until it has all, its time is over or the control plane says so.
    async fn send(&self, mut capture: tunnel::Capture, asked: &AskedCapture) -> Result<(), String> {
        let seconds_max = asked.wanted.seconds_max.unwrap_or(CAPTURE_SECONDS_MAX);
        let over = time::sleep(Duration::from_secs(seconds_max));
        tokio::pin!(over);
        loop {
            // What was begun is sent whole: a block cut short would end the file.
            let blocks = tokio::select! {
                blocks = capture.next() => match blocks {
                    Some(blocks) => Zeroizing::new(blocks.to_vec()),
                    None => break,
                },
                () = time::sleep(REPORT_INTERVAL) => Zeroizing::default(),
                () = &mut over => break,
            };
            if self.send_pieces(asked.id, &blocks).await? {
                break;
            }
            time::sleep(PAUSE).await;
        }
        let last = Zeroizing::new(capture.end().to_vec());
        self.send_pieces(asked.id, &last).await.map(drop)
    }

    /// Sends blocks, and tells whether the capture has to end.
    async fn send_pieces(&self, id: CaptureId, blocks: &[u8]) -> Result<bool, String> {
        let mut end = false;
        let nothing = blocks.is_empty().then_some(blocks);
        for piece in blocks.chunks(CAPTURE_BLOCKS_BYTES_MAX).chain(nothing) {
            loop {
                let sent = self.source.send_capture(self.id, id, piece).await?;
                let SentBlocks { taken, end: asked } =
                    sent.ok_or("the control plane does not know of it any more")?;
                end |= asked;
                if taken {
                    break;
                }
            }
        }
        Ok(end)
    }
}

fn settings(asked: &AskedCapture) -> Result<Settings, String> {
    let filter = asked
        .wanted
        .filter
        .as_deref()
        .map(Filter::parse)
        .transpose();
    Ok(Settings {
        application: format!("ginnel {}", env!("CARGO_PKG_VERSION")),
        inner: asked.wanted.inner,
        outer: asked.wanted.outer,
        filter: filter.map_err(|error| format!("filter: {error}"))?,
        keys: asked.keys,
        // The tunnel knows it.
        port: 0,
        packets_max: asked.wanted.packets_max,
        bytes_max: Some(asked.wanted.bytes_max.unwrap_or(CAPTURE_BYTES_MAX)),
    })
}

fn said(failure: tunnel::Failure) -> String {
    failure.message
}

fn end(ended: Result<(), String>) -> CaptureEnd {
    let reason = ended.err().map(|mut reason| {
        reason.retain(|letter| !letter.is_control());
        reason.truncate(reason.floor_char_boundary(CAPTURE_REASON_LENGTH_MAX));
        reason
    });
    CaptureEnd { reason }
}
