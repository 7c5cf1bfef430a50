//! The record of a session (asciicast v2), which goes to the control plane while the session lasts.
//!
//! Where a session has to be recorded, nothing of it is shown that the record does not hold: its
//! output waits until there is room, and it ends when the record cannot be brought on.

use std::{
    fmt::Write as _,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use model::{
    id::SessionId,
    ssh::{NewSession, PIECE_BYTES_MAX, Piece, RECORD_BYTES_MAX, SessionEnd},
};
use os::terminal::Size;
use tokio::{sync::mpsc, time};

/// Lines of a record that wait to be brought on; more hold the session up.
const LINES_MAX: usize = 16;

/// Bytes that are worth a request at once.
const BYTES_ENOUGH: usize = PIECE_BYTES_MAX / 2;

/// The longest that a line waits for others.
const LINE_WAIT: Duration = Duration::from_secs(1);

/// How long the control plane may take to begin a record.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);

/// For so long it is tried again to bring a piece on; then the session ends.
const RETRY_MAX: Duration = Duration::from_secs(30);
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A terminal of a session that has none, for whoever plays its record.
const SIZE: (u16, u16) = (80, 24);

type Answer<T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send>>;

/// Where records go; an error is a sentence for the log.
pub(crate) trait Archive: Send + Sync {
    /// Begins a record.
    fn begin(&self, session: NewSession) -> Answer<SessionId>;
    /// Appends to it; the same piece may come twice.
    fn append(&self, session: SessionId, piece: Piece) -> Answer<()>;
    /// Ends it.
    fn end(&self, session: SessionId, end: SessionEnd) -> Answer<()>;
}

/// What a record says of its session at the beginning.
pub(super) struct Head<'a> {
    pub(super) size: Option<Size>,
    pub(super) term: Option<&'a str>,
    pub(super) shell: &'a str,
    pub(super) title: String,
}

/// A record that has been begun. Clones write to the same.
#[derive(Clone)]
pub(super) struct Record {
    items: mpsc::Sender<Item>,
    begun: Instant,
    /// Whether line ends of the output need a carriage return to look right.
    plain: bool,
    failed: Arc<Mutex<Option<String>>>,
}

enum Item {
    Line(String),
    End(Option<u32>),
}

/// One output of a session: a character may be cut in two by its reads.
pub(super) struct Output {
    record: Record,
    rest: Vec<u8>,
}

/// The record cannot be brought on, and the session has to end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Broken;

impl Record {
    /// Begins a record, before anything of the session has run.
    pub(super) async fn begin(
        archive: Arc<dyn Archive>,
        session: NewSession,
        head: Head<'_>,
    ) -> Result<Self, String> {
        let plain = head.size.is_none();
        let first = header(&session, &head);
        let begun = time::timeout(BEGIN_TIMEOUT, archive.begin(session)).await;
        let id = begun.unwrap_or_else(|_| Err("no answer in time".to_owned()))?;
        let (items, waiting) = mpsc::channel(LINES_MAX);
        let failed = Arc::new(Mutex::new(None));
        let writer = Writer {
            archive,
            id,
            number: 0,
            bytes: 0,
            text: first,
        };
        tokio::spawn(writer.run(waiting, Arc::clone(&failed)));
        Ok(Self {
            items,
            begun: now(),
            plain,
            failed,
        })
    }

    /// Returns one output of the session.
    pub(super) fn output(&self) -> Output {
        Output {
            record: self.clone(),
            rest: Vec::new(),
        }
    }

    /// Says that the terminal has another size; while the record is held up it does not.
    pub(super) fn resize(&self, size: Size) {
        let text = format!("{}x{}", size.columns, size.rows);
        let line = Item::Line(self.line('r', &text));
        // The output that follows is recorded all the same.
        drop(self.items.try_send(line));
    }

    /// Ends the record with the exit status.
    pub(super) async fn end(&self, status: Option<u32>) {
        // Whether it arrives is the writer's to tell.
        drop(self.items.send(Item::End(status)).await);
    }

    /// Waits until the record cannot be brought on, and says why.
    pub(super) async fn broken(&self) -> String {
        self.items.closed().await;
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.clone().unwrap_or_default()
    }

    async fn write(&self, text: &str) -> Result<(), Broken> {
        if text.is_empty() {
            return Ok(());
        }
        let line = match self.plain {
            true => self.line('o', &text.replace('\n', "\r\n")),
            false => self.line('o', text),
        };
        let sent = self.items.send(Item::Line(line)).await;
        sent.map_err(|_| Broken)
    }

    /// An event: its time, its code and its data.
    fn line(&self, code: char, text: &str) -> String {
        let elapsed = now().duration_since(self.begun).as_secs_f64();
        let text = serde_json::Value::from(text);
        format!("[{elapsed:.6}, \"{code}\", {text}]\n")
    }
}

impl Output {
    /// Records what the session put out. What is no UTF-8 is replaced, as a terminal does.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.rest.extend_from_slice(bytes);
        let end = complete(&self.rest);
        let text = String::from_utf8_lossy(&self.rest[..end]).into_owned();
        self.rest.drain(..end);
        self.record.write(&text).await
    }
}

/// Returns how many bytes hold whole characters, or faults that nothing can complete.
fn complete(bytes: &[u8]) -> usize {
    // Only the last character can be one that is cut.
    let cut = bytes.utf8_chunks().last().map_or(0, |chunk| {
        let rest = chunk.invalid();
        let is_cut = std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_none());
        if is_cut { rest.len() } else { 0 }
    });
    bytes.len() - cut
}

/// The first line (asciicast v2).
fn header(session: &NewSession, head: &Head<'_>) -> String {
    let (width, height) = match head.size {
        Some(size) if size.columns > 0 && size.rows > 0 => (size.columns, size.rows),
        Some(_) | None => SIZE,
    };
    let timestamp = os::clock::wall().duration_since(std::time::UNIX_EPOCH);
    let timestamp = timestamp.map_or(0, |time| time.as_secs());
    let header = serde_json::json!({
        "version": 2,
        "width": width,
        "height": height,
        "timestamp": timestamp,
        "title": head.title,
        "command": session.command,
        "env": { "TERM": head.term, "SHELL": head.shell },
    });
    let mut line = String::new();
    writeln!(line, "{header}").expect("a string takes everything");
    line
}

fn now() -> Instant {
    os::clock::Clock::start().now()
}

/// Brings a record on.
struct Writer {
    archive: Arc<dyn Archive>,
    id: SessionId,
    /// Of the next piece.
    number: u32,
    /// All of the record so far.
    bytes: u64,
    /// What has not been brought on.
    text: String,
}

impl Writer {
    async fn run(mut self, mut items: mpsc::Receiver<Item>, failed: Arc<Mutex<Option<String>>>) {
        if let Err(reason) = self.follow(&mut items).await {
            tracing::warn!(session = %self.id, "ssh: the record breaks off: {reason}");
            let mut place = failed.lock().unwrap_or_else(PoisonError::into_inner);
            *place = Some(reason);
        }
        // Whoever waits sees it when `items` is dropped.
    }

    async fn follow(&mut self, items: &mut mpsc::Receiver<Item>) -> Result<(), String> {
        // When the first line that waits has waited enough, whatever follows it.
        let mut due = time::Instant::from_std(now()) + LINE_WAIT;
        loop {
            let item = match self.text.is_empty() {
                true => {
                    let item = items.recv().await;
                    due = time::Instant::from_std(now()) + LINE_WAIT;
                    item
                }
                false => match time::timeout_at(due, items.recv()).await {
                    Ok(item) => item,
                    Err(_) => {
                        self.flush().await?;
                        continue;
                    }
                },
            };
            match item {
                Some(Item::Line(line)) => {
                    let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
                    self.bytes = self.bytes.saturating_add(length);
                    if self.bytes > RECORD_BYTES_MAX {
                        self.flush().await?;
                        self.finish(None).await?;
                        return Err(format!("it has {} MiB", RECORD_BYTES_MAX >> 20));
                    }
                    self.text.push_str(&line);
                    if self.text.len() >= BYTES_ENOUGH {
                        self.flush().await?;
                    }
                }
                Some(Item::End(status)) => {
                    self.flush().await?;
                    return self.finish(status).await;
                }
                // The session went away without an end.
                None => {
                    self.flush().await?;
                    return self.finish(None).await;
                }
            }
        }
    }

    async fn flush(&mut self) -> Result<(), String> {
        while !self.text.is_empty() {
            let mut end = self.text.len().min(PIECE_BYTES_MAX);
            while !self.text.is_char_boundary(end) {
                end -= 1;
            }
            let piece = Piece {
                number: self.number,
                text: self.text[..end].to_owned(),
            };
            let (archive, id) = (Arc::clone(&self.archive), self.id);
            insist(|| archive.append(id, piece.clone())).await?;
            self.number += 1;
            self.text.drain(..end);
        }
        Ok(())
    }

    async fn finish(&self, status: Option<u32>) -> Result<(), String> {
        let end = SessionEnd { status };
        insist(|| self.archive.end(self.id, end)).await
    }
}

/// Tries until it works or the time is over.
async fn insist(attempt: impl Fn() -> Answer<()>) -> Result<(), String> {
    let begin = now();
    loop {
        match attempt().await {
            Ok(()) => return Ok(()),
            Err(reason) if now().duration_since(begin) >= RETRY_MAX => return Err(reason),
            Err(_) => time::sleep(RETRY_PAUSE).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Kept {
        text: Mutex<String>,
        end: Mutex<Option<SessionEnd>>,
        refuses: bool,
    }

    impl Archive for Arc<Kept> {
        fn begin(&self, _: NewSession) -> Answer<SessionId> {
            let refuses = self.refuses;
            Box::pin(async move {
                match refuses {
                    true => Err("the disk is full".to_owned()),
                    false => Ok(SessionId(1)),
                }
            })
        }

        fn append(&self, _: SessionId, piece: Piece) -> Answer<()> {
            assert!(piece.text.len() <= PIECE_BYTES_MAX);
            self.text.lock().unwrap().push_str(&piece.text);
            Box::pin(async { Ok(()) })
        }

        fn end(&self, _: SessionId, end: SessionEnd) -> Answer<()> {
            *self.end.lock().unwrap() = Some(end);
            Box::pin(async { Ok(()) })
        }
    }

    fn session() -> NewSession {
        NewSession {
            serial: model::ssh::Serial(5),
            account: "root".parse().unwrap(),
            source: "fd00::1".parse().unwrap(),
            terminal: true,
            command: Some("a \"b\"".to_owned()),
        }
    }

    fn head(size: Option<Size>) -> Head<'static> {
        Head {
            size,
            term: Some("xterm"),
            shell: "/bin/sh",
            title: "root@db".to_owned(),
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().build().unwrap().block_on(future)
    }

    /// What the record holds after its session put out `parts`, without times.
    fn recorded(size: Option<Size>, parts: &[&[u8]]) -> (serde_json::Value, Vec<String>) {
        let kept = Arc::new(Kept::default());
        block_on(async {
            let archive = Arc::new(Arc::clone(&kept));
            let record = Record::begin(archive, session(), head(size)).await.unwrap();
            let mut output = record.output();
            for part in parts {
                output.write(part).await.unwrap();
            }
            record.end(Some(3)).await;
            record.broken().await;
        });
        let end = kept.end.lock().unwrap().take();
        assert_eq!(end, Some(SessionEnd { status: Some(3) }));
        let text = kept.text.lock().unwrap().clone();
        let mut lines = text.lines();
        let header = serde_json::from_str(lines.next().unwrap()).unwrap();
        let events = lines.map(|line| {
            let (time, code, data): (f64, String, String) = serde_json::from_str(line).unwrap();
            assert!(time >= 0.0 && code == "o", "{line}");
            data
        });
        (header, events.collect())
    }

    fn size() -> Option<Size> {
        Some(Size {
            columns: 100,
            rows: 30,
            width: 0,
            height: 0,
        })
    }

    #[test]
    fn a_record_begins_with_the_terminal_and_holds_all_output() {
        let (header, events) = recorded(size(), &[b"a\r\n\x1b[0m", b"\"\\\x07"]);
        assert_eq!(
            (&header["version"], &header["width"], &header["height"]),
            (&2.into(), &100.into(), &30.into())
        );
        assert_eq!(header["command"], "a \"b\"");
        assert_eq!(events, ["a\r\n\x1b[0m", "\"\\\x07"]);
    }

    #[test]
    fn a_character_that_is_cut_is_whole_in_the_record_and_a_fault_holds_nothing_up() {
        let (_, events) = recorded(size(), &[b"\xe2\x82", b"\xac", b"\xff\xc3", b"x", b"y"]);
        assert_eq!(events, ["€", "\u{fffd}", "\u{fffd}x", "y"]);
    }

    #[test]
    fn lines_of_a_command_without_a_terminal_begin_at_the_left() {
        let (header, events) = recorded(None, &[b"a\nb\n"]);
        assert_eq!(
            (&header["width"], &header["height"]),
            (&80.into(), &24.into())
        );
        assert_eq!(events, ["a\r\nb\r\n"]);
    }

    #[test]
    fn a_record_that_cannot_be_begun_says_why() {
        let kept = Arc::new(Kept {
            refuses: true,
            ..Kept::default()
        });
        let archive = Arc::new(kept);
        let begun = block_on(Record::begin(archive, session(), head(None)));
        assert_eq!(begun.err().as_deref(), Some("the disk is full"));
    }

    #[test]
    fn a_record_that_is_full_ends_its_session() {
        let kept = Arc::new(Kept::default());
        let archive = Arc::new(Arc::clone(&kept));
        let why = block_on(async {
            let record = Record::begin(archive, session(), head(size()))
                .await
                .unwrap();
            let mut output = record.output();
            let much = vec![b'x'; 1 << 20];
            for _ in 0..1_000 {
                if output.write(&much).await == Err(Broken) {
                    return record.broken().await;
                }
            }
            panic!("there is a bound");
        });
        assert_eq!(why, "it has 64 MiB");
        let length = u64::try_from(kept.text.lock().unwrap().len()).unwrap();
        assert!(length <= RECORD_BYTES_MAX + 1_024, "{length}");
        assert_eq!(*kept.end.lock().unwrap(), Some(SessionEnd { status: None }));
    }
}
