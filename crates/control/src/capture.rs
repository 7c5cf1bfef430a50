//! Captures that run for whoever asked from elsewhere.
//!
//! ```text
//!   node ──blocks──► Running ──queue──► File ──reply──► whoever asked
//!                       ▲ ends it: bounds, silence, a permission that is gone
//! ```
//! Nothing is kept: what waits for a slow reader waits at the node, where it is counted as missing.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, stream};
use hyper::{
    HeaderMap,
    body::{Bytes, Frame},
    header::HeaderValue,
};
use model::{
    api::{AskedCapture, CAPTURE_COMPLETE, CAPTURE_END_TRAILER, CaptureEnd, SentBlocks},
    id::{CaptureId, NodeId, OrgId},
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

/// Captures that run at once; at the bound no further one begins.
const RUNNING_MAX: usize = 16;

/// Pieces of a file that wait for its reader; each has at most `CAPTURE_BLOCKS_BYTES_MAX`.
const QUEUE: usize = 4;

/// How long blocks wait for room in the queue before the node is told to send them again.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);

/// How often bounds and the permission are looked at.
const TICK: Duration = Duration::from_secs(1);

/// Ticks without a word of the node after which it is away.
const SILENT_TICKS_MAX: u32 = 15;

/// Ticks that a node may take to end, once it has to: it replaces its key meanwhile.
const ENDING_TICKS_MAX: u32 = 20;

/// Ticks for which the permission may be unknown because the database does not answer.
const UNKNOWN_TICKS_MAX: u32 = 10;

/// How long the server's end waits for captures to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// The captures that run, and those whose end the audit does not tell yet.
pub(crate) struct Captures {
    /// At most [`RUNNING_MAX`], and one of each node.
    running: watch::Sender<BTreeMap<CaptureId, Arc<Running>>>,
}

/// Why a capture does not begin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Refusal {
    /// One of this node runs.
    Taken,
    /// Too many run.
    Full,
}

/// One capture.
pub(crate) struct Running {
    pub(crate) node: NodeId,
    pub(crate) org: Option<OrgId>,
    pub(crate) asked: AskedCapture,
    /// The file may be so long.
    bytes_max: u64,
    /// It may run so long.
    seconds_max: u64,
    blocks: mpsc::Sender<Bytes>,
    state: watch::Sender<State>,
    bytes: AtomicU64,
    /// Ticks since the node was heard.
    silent: AtomicU32,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// Whether the node has to end it.
    ending: bool,
    ended: Option<End>,
}

/// How a capture ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// The file is whole.
    Complete,
    /// The node said why not.
    Refused(String),
    /// The node does not send any more.
    NodeAway,
    /// Whoever asked may not any more, or the node was removed.
    NotPermitted,
    /// Nobody knows whether it is still permitted.
    Unavailable,
    /// The node sent more than it should.
    TooLarge,
    /// The node did not end it in time.
    Late,
    /// Nobody reads any more.
    ReaderGone,
    /// The server ends.
    ServerStops,
}

/// What watches over a capture until it has ended.
pub(crate) struct Watch {
    running: Arc<Running>,
    state: watch::Receiver<State>,
    stopping: watch::Receiver<bool>,
    ticks: u64,
    /// Ticks since the node has to end it.
    ending: u32,
    /// Ticks since the permission is unknown.
    unknown: u32,
}

/// What says whether a capture is still permitted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Permitted {
    Yes,
    No,
    /// The database does not answer.
    Unknown,
}

/// The file of a capture, as the body of a reply: blocks, then why it ended as a trailer.
pub(crate) struct File {
    blocks: mpsc::Receiver<Bytes>,
    state: watch::Receiver<State>,
}

impl Captures {
    /// None runs.
    pub(crate) fn new() -> Self {
        Self {
            running: watch::Sender::new(BTreeMap::new()),
        }
    }

    /// Begins a capture; its node is told of it by the next map.
    pub(crate) fn begin(
        &self,
        (node, org): (NodeId, Option<OrgId>),
        asked: AskedCapture,
        (bytes_max, seconds_max): (u64, u64),
    ) -> Result<(Arc<Running>, File), Refusal> {
        let (blocks, taken) = mpsc::channel(QUEUE);
        let (state, followed) = watch::channel(State::default());
        let begun = Arc::new(Running {
            node,
            org,
            asked,
            bytes_max,
            seconds_max,
            blocks,
            state,
            bytes: AtomicU64::new(0),
            silent: AtomicU32::new(0),
        });
        let mut refusal = None;
        self.running.send_if_modified(|running| {
            let taken = running.values().any(|running| running.node == node);
            refusal = if taken {
                Some(Refusal::Taken)
            } else if running.len() >= RUNNING_MAX {
                Some(Refusal::Full)
            } else {
                running.insert(begun.asked.id, Arc::clone(&begun));
                None
            };
            refusal.is_none()
        });
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let file = File {
            blocks: taken,
            state: followed,
        };
        Ok((begun, file))
    }

    /// Forgets a capture.
    pub(crate) fn remove(&self, id: CaptureId) {
        self.running.send_modify(|running| {
            running.remove(&id);
        });
    }

    /// Returns a capture that runs.
    pub(crate) fn running(&self, id: CaptureId) -> Option<Arc<Running>> {
        self.running.borrow().get(&id).cloned()
    }

    /// Returns the capture that somebody asked a node for.
    pub(crate) fn of(&self, node: NodeId) -> Option<AskedCapture> {
        let running = self.running.borrow();
        let of_node = |running: &&Arc<Running>| running.node == node && !running.has_ended();
        let found = running.values().find(of_node);
        found.map(|running| running.asked.clone())
    }

    /// Waits until no capture runs; not for long.
    pub(crate) async fn drained(&self) {
        let mut running = self.running.subscribe();
        let drained = timeout(DRAIN_TIMEOUT, running.wait_for(BTreeMap::is_empty)).await;
        if drained.is_err() {
            tracing::warn!("the end of a capture is not in the audit");
        }
    }
}

impl Running {
    /// Takes blocks from the node; none at all say that it still captures.
    pub(crate) async fn send(&self, blocks: Bytes) -> SentBlocks {
        self.silent.store(0, Ordering::Relaxed);
        let taken = self.take(blocks).await;
        self.silent.store(0, Ordering::Relaxed);
        let state = self.state.borrow();
        SentBlocks {
            taken,
            end: state.ending || state.ended.is_some(),
        }
    }

    /// Takes that the node has ended the capture.
    pub(crate) fn ended(&self, end: CaptureEnd) {
        self.end(end.reason.map_or(End::Complete, End::Refused));
    }

    /// Lets the node end the capture as soon as it is heard.
    pub(crate) fn ask_for_end(&self) {
        self.state.send_modify(|state| state.ending = true);
    }

    /// Returns how long the file is.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn has_ended(&self) -> bool {
        self.state.borrow().ended.is_some()
    }

    async fn take(&self, blocks: Bytes) -> bool {
        if blocks.is_empty() || self.has_ended() {
            return true;
        }
        let Ok(room) = timeout(ROOM_TIMEOUT, self.blocks.reserve()).await else {
            return false;
        };
        // Without a reader there is nothing to send again.
        let Ok(room) = room else { return true };
        let length = u64::try_from(blocks.len()).unwrap_or(u64::MAX);
        let before = self.bytes.fetch_add(length, Ordering::Relaxed);
        if before.saturating_add(length) > self.bytes_max {
            self.end(End::TooLarge);
        } else {
            room.send(blocks);
        }
        true
    }

    /// Ends the capture, unless it has ended already.
    fn end(&self, end: End) {
        self.state.send_if_modified(|state| {
            let first = state.ended.is_none();
            state.ended.get_or_insert(end);
            first
        });
    }
}

impl Watch {
    /// Begins to watch.
    pub(crate) fn new(running: Arc<Running>, stopping: watch::Receiver<bool>) -> Self {
        Self {
            state: running.state.subscribe(),
            running,
            stopping,
            ticks: 0,
            ending: 0,
            unknown: 0,
        }
    }

    /// Waits for a tick, or for the end.
    pub(crate) async fn wait(&mut self) -> Option<End> {
        tokio::select! {
            _ = self.state.wait_for(|state| state.ended.is_some()) => {}
            () = self.running.blocks.closed() => self.running.end(End::ReaderGone),
            _ = self.stopping.wait_for(|stopping| *stopping) => {
                self.running.end(End::ServerStops);
            }
            () = sleep(TICK) => {}
        }
        self.state.borrow().ended.clone()
    }

    /// Ends what may not go on; to be called once a tick.
    pub(crate) fn look(&mut self, permitted: Permitted) {
        let running = &self.running;
        self.ticks += 1;
        self.ending += u32::from(self.state.borrow().ending);
        self.unknown = match permitted {
            Permitted::Yes => 0,
            Permitted::No => return running.end(End::NotPermitted),
            Permitted::Unknown => self.unknown + 1,
        };
        if running.silent.fetch_add(1, Ordering::Relaxed) >= SILENT_TICKS_MAX {
            running.end(End::NodeAway);
        } else if self.unknown >= UNKNOWN_TICKS_MAX {
            running.end(End::Unavailable);
        } else if self.ending >= ENDING_TICKS_MAX {
            running.end(End::Late);
        } else if self.ticks >= running.seconds_max {
            // The node counts the same seconds, but may have been told later.
            running.ask_for_end();
        }
    }
}

impl File {
    /// Yields the frames of the body.
    pub(crate) fn frames(self) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
        stream::unfold(Some(self), |file| async {
            let mut file = file?;
            match file.next().await {
                Ok(blocks) => Some((Ok(Frame::data(blocks)), Some(file))),
                Err(end) => Some((Ok(Frame::trailers(trailers(&end))), None)),
            }
        })
    }

    /// Waits for the next blocks, or for the end.
    async fn next(&mut self) -> Result<Bytes, End> {
        let ended = tokio::select! {
            biased;
            Some(blocks) = self.blocks.recv() => return Ok(blocks),
            state = self.state.wait_for(|state| state.ended.is_some()) => {
                state.ok().and_then(|state| state.ended.clone())
            }
        };
        let ended = ended.unwrap_or(End::ServerStops);
        match self.blocks.try_recv() {
            // They came between the two looks.
            Ok(blocks) if ended != End::NotPermitted => Ok(blocks),
            Ok(_) | Err(_) => Err(ended),
        }
    }
}

impl End {
    /// Names it in the audit.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Refused(_) => "refused",
            Self::NodeAway => "node_away",
            Self::NotPermitted => "not_permitted",
            Self::Unavailable => "unavailable",
            Self::TooLarge => "too_large",
            Self::Late => "late",
            Self::ReaderGone => "reader_gone",
            Self::ServerStops => "server_stops",
        }
    }

    /// Says it to whoever asked.
    fn sentence(&self) -> &str {
        match self {
            Self::Complete => CAPTURE_COMPLETE,
            Self::Refused(reason) => reason,
            Self::NodeAway => "the node does not answer",
            Self::NotPermitted => "it is not permitted any more, or the node was removed",
            Self::Unavailable => "the server's database does not answer",
            Self::TooLarge => "the node sent more than was asked for",
            Self::Late => "the node did not end it in time",
            Self::ReaderGone => "nobody read it any more",
            Self::ServerStops => "the server ended",
        }
    }
}

fn trailers(end: &End) -> HeaderMap {
    let sentence = end.sentence().chars();
    let ascii: String = sentence
        .map(|letter| match letter {
            ' '..='~' => letter,
            _ => '?',
        })
        .collect();
    let value = HeaderValue::from_str(&ascii).expect("visible ASCII");
    HeaderMap::from_iter([(
        hyper::header::HeaderName::from_static(CAPTURE_END_TRAILER),
        value,
    )])
}
