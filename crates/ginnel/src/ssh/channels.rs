//! What has come on each channel and waits for its reader.
//!
//! russh grants the peer a new window when data arrives, not when it was used, and its event loop
//! must not wait for a reader: a program that waits for the peer to take its output would never
//! read again, and the grant that it waits for stands behind the data that we do not read. So what
//! comes is queued here, without waiting as long as there is little, and slower and slower above.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use russh::{Channel, ChannelId, ChannelMsg, ChannelWriteHalf};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{Notify, mpsc, watch},
    time,
};

/// The window of a channel: enough for 150 MiB/s at a round trip of 100 ms.
pub(super) const WINDOW: u32 = 16 * 1024 * 1024;

/// The window of a channel with OpenSSH, as large as its own. Its client reads as much ahead as it
/// may send; on a path slower than its source 16 MiB cost it four times the CPU of 2 MiB
/// (docs/benchmarks.md).
pub(super) const WINDOW_OPENSSH: u32 = 2 * 1024 * 1024;

/// The window while a reader is behind, so that little stands before what the peer grants us.
const WINDOW_STRAINED: u32 = 64 * 1024;

/// Bytes that wait for the reader of one channel before its window becomes small.
const BYTES_EASY: usize = 8 * 1024 * 1024;

/// Bytes that wait before the peer is held up: by then it has used up the window that it had.
const BYTES_FULL: usize = BYTES_EASY + 20 * 1024 * 1024;

/// Bytes that wait for the reader of one channel at most; then its data ends the connection.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long a packet is held up, first and at most. Below the peer's patience for an answer.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Channels of one connection, whoever opens them.
pub(super) const CHANNELS_MAX: usize = 1_024;

/// Bytes that are read at a time from a program or a socket.
const BUFFER: usize = 32 * 1024;

/// The channels of one connection.
#[derive(Clone, Default)]
pub(super) struct Channels {
    table: Arc<Mutex<Table>>,
    strain: Arc<Strain>,
}

/// Together bounded by `CHANNELS_MAX`.
#[derive(Default)]
struct Table {
    /// Open channels.
    entries: BTreeMap<u32, Entry>,
    /// Channels that we have asked the peer to open.
    asked: usize,
}

/// Both ends of the queue of one channel, as long as nobody has taken them.
#[derive(Default)]
struct Entry {
    feed: Option<Feed>,
    inbox: Option<Inbox>,
}

/// How the readers of one connection keep up.
#[derive(Default)]
struct Strain {
    /// Channels with more than `BYTES_EASY`.
    behind: AtomicUsize,
    /// Tasks that wait until the peer takes output.
    sending: AtomicUsize,
    /// Counts what has moved, in either direction.
    moved: AtomicUsize,
}

/// What came.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Item {
    /// Bytes.
    Data(Vec<u8>),
    /// The peer has sent its last bytes.
    End,
}

/// Where the data of a channel is read.
pub(super) struct Inbox {
    items: mpsc::UnboundedReceiver<Item>,
    level: Arc<Level>,
    open: watch::Receiver<()>,
}

#[derive(Clone)]
struct Feed {
    /// Bounded by `BYTES_MAX`.
    items: mpsc::UnboundedSender<Item>,
    level: Arc<Level>,
    /// Dropped when the channel is closed.
    _open: Arc<watch::Sender<()>>,
}

struct Level {
    bytes: AtomicUsize,
    drained: Notify,
    strain: Arc<Strain>,
}

/// More than `BYTES_MAX` bytes wait.
#[derive(Debug)]
pub(super) struct TooFarBehind;

impl Channels {
    /// Returns the inbox of a channel, once; opens the channel if nobody has yet.
    pub(super) fn take(&self, id: ChannelId) -> Inbox {
        let entries = &mut self.table().entries;
        let entry = entries.entry(id.number()).or_default();
        let fresh = entry.inbox.take();
        let inbox = fresh.unwrap_or_else(|| self.pair(entry));
        if entry.feed.is_none() {
            entries.remove(&id.number());
        }
        inbox
    }

    /// Opens a channel that the peer asks for and whose reader will come; false at the bound.
    pub(super) fn admit(&self, id: ChannelId) -> bool {
        let mut table = self.table();
        let has_room = table.has_room();
        if has_room {
            self.insert(&mut table, id);
        }
        has_room
    }

    /// Opens a channel whose reader will come.
    pub(super) fn open(&self, id: ChannelId) {
        self.insert(&mut self.table(), id);
    }

    /// Queues what came, holding the peer up if the reader is far behind.
    pub(super) async fn push(&self, id: ChannelId, data: &[u8]) -> Result<(), TooFarBehind> {
        let entry = |table: &Table| table.entries.get(&id.number())?.feed.clone();
        let feed = entry(&self.table());
        match feed {
            Some(feed) => feed.push(data).await,
            // Nobody reads this channel.
            None => Ok(()),
        }
    }

    /// Queues the end of a channel's data.
    pub(super) fn end(&self, id: ChannelId) {
        if let Some(entry) = self.table().entries.get(&id.number())
            && let Some(feed) = &entry.feed
        {
            // The reader may have gone.
            drop(feed.items.send(Item::End));
        }
    }

    /// Closes a channel: its reader sees what came, then nothing.
    pub(super) fn close(&self, id: ChannelId) {
        let entries = &mut self.table().entries;
        if let Some(entry) = entries.get_mut(&id.number()) {
            entry.feed = None;
            if entry.inbox.is_none() {
                entries.remove(&id.number());
            }
        }
    }

    /// Closes every channel: the connection has ended, and no message does so any more.
    pub(super) fn close_all(&self) {
        self.table().entries.clear();
    }

    /// Returns a number that changes whenever something moves.
    pub(super) fn moved(&self) -> usize {
        self.strain.moved.load(Ordering::Relaxed)
    }

    /// Returns the window that a peer shall get next whose readers are not behind with `easy`.
    pub(super) fn window(&self, easy: u32) -> u32 {
        match self.strain.behind.load(Ordering::Relaxed) {
            0 => easy,
            _ => WINDOW_STRAINED,
        }
    }

    /// Sends bytes, waiting until the peer takes them.
    pub(super) async fn send<M>(
        &self,
        write: &ChannelWriteHalf<M>,
        stream: Option<u32>,
        bytes: Vec<u8>,
    ) -> Result<(), russh::Error>
    where
        M: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static,
    {
        let _sending = Sending::new(&self.strain);
        match stream {
            None => write.data_bytes(bytes).await,
            Some(number) => write.extended_data_bytes(number, bytes).await,
        }
    }

    /// Sends all that `from` gives; true if it ended by itself.
    pub(super) async fn pump<M>(
        &self,
        mut from: impl AsyncRead + Unpin,
        write: &ChannelWriteHalf<M>,
        stream: Option<u32>,
    ) -> bool
    where
        M: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static,
    {
        let mut buffer = vec![0; BUFFER];
        loop {
            let Ok(length) = from.read(&mut buffer).await else {
                return true;
            };
            if length == 0 {
                return true;
            }
            if self
                .send(write, stream, buffer[..length].to_vec())
                .await
                .is_err()
            {
                return false;
            }
        }
    }

    /// Asks the peer by `opening` for a channel and moves bytes between it and `stream`; at the
    /// bound the stream is closed.
    pub(super) async fn lead<M>(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        opening: impl Future<Output = Result<Channel<M>, russh::Error>>,
    ) where
        M: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static,
    {
        let Some(asked) = Asked::new(&self.table) else {
            tracing::debug!("ssh: {CHANNELS_MAX} channels are open");
            return;
        };
        let opened = opening.await;
        drop(asked);
        if let Ok(channel) = opened {
            let (_, write) = channel.split();
            let inbox = self.take(write.id());
            self.splice(stream, write, inbox).await;
        }
    }

    /// Moves bytes between a channel and `stream` until both directions have ended.
    pub(super) async fn splice<M>(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        write: ChannelWriteHalf<M>,
        mut inbox: Inbox,
    ) where
        M: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static,
    {
        let (read, mut sink) = tokio::io::split(stream);
        let closed = inbox.closed();
        let down = async {
            tokio::select! {
                _ = self.pump(read, &write, None) => {}
                () = closed => {}
            }
            // The peer may have closed.
            drop(write.eof().await);
        };
        // What came before the channel was closed is still written.
        let up = async {
            while let Some(Item::Data(bytes)) = inbox.recv().await {
                if sink.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            drop(sink.shutdown().await);
        };
        tokio::join!(down, up);
        drop(write.close().await);
    }

    fn insert(&self, table: &mut Table, id: ChannelId) {
        let entry = table.entries.entry(id.number()).or_default();
        if entry.feed.is_none() && entry.inbox.is_none() {
            entry.inbox = Some(self.pair(entry));
        }
    }

    fn pair(&self, entry: &mut Entry) -> Inbox {
        let (items, receiver) = mpsc::unbounded_channel();
        let (open, watch) = watch::channel(());
        let level = Arc::new(Level {
            bytes: AtomicUsize::new(0),
            drained: Notify::new(),
            strain: Arc::clone(&self.strain),
        });
        entry.feed = Some(Feed {
            items,
            level: Arc::clone(&level),
            _open: Arc::new(open),
        });
        Inbox {
            items: receiver,
            level,
            open: watch,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Table {
    fn has_room(&self) -> bool {
        self.entries.len() + self.asked < CHANNELS_MAX
    }
}

/// Counts a channel from our question to the peer's answer.
struct Asked<'a>(&'a Mutex<Table>);

impl<'a> Asked<'a> {
    fn new(table: &'a Mutex<Table>) -> Option<Self> {
        let mut locked = lock(table);
        if !locked.has_room() {
            return None;
        }
        locked.asked += 1;
        Some(Self(table))
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        lock(self.0).asked -= 1;
    }
}

impl Feed {
    async fn push(&self, data: &[u8]) -> Result<(), TooFarBehind> {
        let level = &self.level;
        level.strain.moved.fetch_add(1, Ordering::Relaxed);
        let before = level.bytes.fetch_add(data.len(), Ordering::Relaxed);
        let now = before + data.len();
        if now > BYTES_MAX {
            return Err(TooFarBehind);
        }
        if self.items.send(Item::Data(data.to_vec())).is_err() {
            // The reader has gone; the channel is about to close.
            level.take(data.len());
            return Ok(());
        }
        if before <= BYTES_EASY && now > BYTES_EASY {
            level.strain.behind.fetch_add(1, Ordering::Relaxed);
        }
        if now <= BYTES_FULL {
            return Ok(());
        }
        // The fuller, the slower: 16 steps between the two bounds.
        let step = (now - BYTES_FULL) / ((BYTES_MAX - BYTES_FULL) / 16);
        let factor = 1_u32.checked_shl(u32::try_from(step).unwrap_or(16));
        let pause = match level.strain.sending.load(Ordering::Relaxed) {
            0 => PAUSE_MAX,
            _ => PAUSE_MIN
                .saturating_mul(factor.unwrap_or(u32::MAX))
                .min(PAUSE_MAX),
        };
        // That time has passed is as good as that there is room.
        drop(time::timeout(pause, level.drained.notified()).await);
        Ok(())
    }
}

impl Level {
    fn take(&self, length: usize) {
        let before = self.bytes.fetch_sub(length, Ordering::Relaxed);
        if before > BYTES_EASY && before - length <= BYTES_EASY {
            self.strain.behind.fetch_sub(1, Ordering::Relaxed);
        }
        if before > BYTES_FULL {
            self.drained.notify_one();
        }
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        if *self.bytes.get_mut() > BYTES_EASY {
            self.strain.behind.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Inbox {
    /// Waits for what comes next; `None` once the channel is closed.
    pub(super) async fn recv(&mut self) -> Option<Item> {
        let item = self.items.recv().await?;
        if let Item::Data(data) = &item {
            self.level.take(data.len());
        }
        Some(item)
    }

    /// Waits until the channel is closed.
    pub(super) fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut open = self.open.clone();
        async move { while open.changed().await.is_ok() {} }
    }
}

/// Counts a task that waits for the peer while it lives.
struct Sending<'a>(&'a Strain);

impl<'a> Sending<'a> {
    fn new(strain: &'a Strain) -> Self {
        strain.sending.fetch_add(1, Ordering::Relaxed);
        strain.moved.fetch_add(1, Ordering::Relaxed);
        Self(strain)
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.sending.fetch_sub(1, Ordering::Relaxed);
    }
}
