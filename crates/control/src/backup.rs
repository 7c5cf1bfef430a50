//! A whole installation as JSON Lines: its rows from one snapshot, and its keys.
//!
//! Whoever holds the text holds the installation, so it is written to what encrypts it. Lines come
//! in the order of [`Line`]; a backup without its last line is none.

use std::{
    fs,
    io::{BufRead, Read as _, Write},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, bail, ensure};
use data_encoding::BASE64;
use model::api::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use zeroize::Zeroizing;

use crate::{
    DATABASE_FILE, Database,
    ca::write_private,
    make_private_folder, restrict, seconds,
    storage::{
        Store, Touched,
        audit::{Actor, Entry},
        backup::{Part, Sink, Source, Summary, TableSum, skip_given},
        database::{Claim, SCHEMA},
    },
};

/// What a backup holds.
#[derive(Clone, Debug, Serialize)]
pub struct BackupContents {
    /// The version of ginnel that made it.
    pub version: String,
    /// The version of the database's schema.
    pub schema: i64,
    /// When it was made.
    pub made: Timestamp,
    /// Rows of all tables.
    pub rows: u64,
    /// The id and the SHA-256 (hex) of the last row of the audit.
    pub audit_last: Option<(i64, String)>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Backup(Header),
    File {
        name: String,
        base64: String,
    },
    Table {
        name: String,
        last_given: Option<i64>,
    },
    Row(Map<String, Json>),
    End(TableSum),
    Done {
        rows: u64,
    },
}

#[derive(Clone, Deserialize, Serialize)]
struct Header {
    format: u32,
    version: String,
    made: i64,
    #[serde(flatten)]
    summary: Summary,
}

/// The only form of a backup so far.
const FORMAT: u32 = 1;

/// The keys of an installation below its directory, in the order in which they are put there. Plain
/// WireGuard peers know the gateway by its key alone. Where its peers were lets it initiate to them
/// at once, from the address that routing chooses; otherwise they would notice only at their next
/// handshake.
const FILES: [&str; 5] = [
    "master.key",
    "ca.key",
    "ca.pem",
    "gateway/private.key",
    ENDPOINTS,
];

const ENDPOINTS: &str = "gateway/endpoints.json";

/// The longest file. The endpoints of 100,000 peers take less; where they take more they are left
/// out.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The longest line; the longest row that a server writes, a piece of a session's record, is far
/// below it.
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Writes everything of the installation in `data` and `database` to `sink`, whether or not its
/// server runs; nothing is changed there. What was acknowledged before the call is in it.
/// `progress` is told how many rows of how many are done.
pub async fn backup(
    data: &Path,
    database: &Database,
    made: SystemTime,
    sink: &mut dyn Write,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<BackupContents> {
    let master_key = data.join(FILES[0]);
    ensure!(
        master_key.exists(),
        "`{}` is no directory of a server: there is no `{}`",
        data.display(),
        FILES[0]
    );
    let source = match database {
        Database::File => {
            let path = data.join(DATABASE_FILE);
            ensure!(path.exists(), "there is no database `{}`", path.display());
            Source::open(&path).await
        }
        Database::Postgres(url) => Source::open_postgres(url).await,
    };
    let source = source?;
    let mut writer = Writer {
        data,
        made: seconds(made),
        sink,
        header: None,
        done: 0,
        progress,
    };
    let read = source.read(|part| writer.take(part)).await;
    source.close().await;
    read?;
    let header = writer
        .header
        .take()
        .filter(|header| header.summary.rows > 0);
    let header = header.context("the database holds no installation")?;
    let rows = writer.done;
    writer.write(&Line::Done { rows })?;
    Ok(header.into())
}

/// Writes lines as the store hands them over.
struct Writer<'a> {
    data: &'a Path,
    made: i64,
    sink: &'a mut dyn Write,
    header: Option<Header>,
    done: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Writer<'_> {
    fn take(&mut self, part: Part) -> anyhow::Result<()> {
        match part {
            Part::Summary(summary) => self.begin(summary),
            Part::Table { name, last_given } => self.write(&Line::Table {
                name: name.to_owned(),
                last_given,
            }),
            Part::Row(row) => {
                self.done += 1;
                let all = self.header.as_ref().map_or(0, |header| header.summary.rows);
                (self.progress)(self.done, all);
                self.write(&Line::Row(row))
            }
            Part::End(sum) => self.write(&Line::End(sum)),
        }
    }

    fn begin(&mut self, summary: Summary) -> anyhow::Result<()> {
        ensure!(
            summary.schema <= SCHEMA,
            "the database was written by a newer ginnel (schema {}, this one knows {SCHEMA}); back \
             it up with that version",
            summary.schema
        );
        let header = Header {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            made: self.made,
            summary,
        };
        self.write(&Line::Backup(header.clone()))?;
        self.header = Some(header);
        for name in FILES {
            let path = self.data.join(name);
            // An operator's certificate lies elsewhere, and no gateway may have started yet.
            let length = fs::metadata(&path).map(|file| file.len());
            let left_out = name == ENDPOINTS && length.is_ok_and(|length| length > FILE_BYTES_MAX);
            if path.exists() && !left_out {
                let content = read_file(&path)?;
                let base64 = BASE64.encode(&content);
                let name = name.to_owned();
                self.write(&Line::File { name, base64 })?;
            }
        }
        Ok(())
    }

    fn write(&mut self, line: &Line) -> anyhow::Result<()> {
        let mut text = Zeroizing::new(serde_json::to_vec(line).context("write a line")?);
        text.push(b'\n');
        self.sink.write_all(&text).context("write the backup")
    }
}

fn read_file(path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let read = || {
        let mut content = Zeroizing::new(Vec::new());
        let mut file = fs::File::open(path)?.take(FILE_BYTES_MAX + 1);
        file.read_to_end(&mut content)?;
        std::io::Result::Ok(content)
    };
    let content = read().with_context(|| format!("read `{}`", path.display()))?;
    ensure!(
        content.len() as u64 <= FILE_BYTES_MAX,
        "`{}` is too long",
        path.display()
    );
    Ok(content)
}

/// Makes the installation of a backup in `data` and `database`, which hold none. What fails leaves
/// nothing behind. `progress` is told how many rows of how many are done.
///
/// The rows come into a file below `data` first, with the schema of the backup, which is then
/// brought up to date; so a backup of either database comes back into either.
pub async fn restore(
    source: &mut dyn BufRead,
    data: &Path,
    database: &Database,
    now: SystemTime,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<BackupContents> {
    for name in FILES.iter().copied().chain([DATABASE_FILE]) {
        ensure!(
            !data.join(name).exists(),
            "`{}` holds an installation already (`{name}`); name an empty directory",
            data.display()
        );
    }
    let mut lines = Lines { source };
    let Line::Backup(header) = lines.next()? else {
        bail!("it is no backup of ginnel");
    };
    header.is_known()?;
    let work = Work::begin(data)?;
    let path = work.0.join(DATABASE_FILE);
    let sink = Sink::create(&path, header.summary.schema).await;
    let sink = sink.context("make a database")?;
    restrict(&path)?;
    let files = fill(&mut lines, &work, &header, sink, progress).await?;
    let store = Store::open(&path).await.context("bring it up to date")?;
    let renewed = renew(&store, &header, seconds(now)).await;
    if let (Ok(()), Database::Postgres(url)) = (&renewed, database) {
        let target = Store::open_postgres(url, Claim::Alone).await;
        let target = target.context("open the PostgreSQL database")?;
        let copied = store.copy_to(&target).await;
        target.close().await;
        store.close().await;
        copied.context("copy the rows into the PostgreSQL database")?;
        work.keep(&files, data)?;
        return Ok(header.into());
    }
    store.close().await;
    renewed?;
    // What the last one to close a database has not written into it is in its log.
    let log = fs::metadata(path.with_extension("db-wal"));
    let left = log.map_or(0, |log| log.len());
    ensure!(left == 0, "the database could not be closed");
    let mut names = files;
    names.push(DATABASE_FILE);
    work.keep(&names, data)?;
    Ok(header.into())
}

/// Takes all lines after the first. Returns which files came.
async fn fill(
    lines: &mut Lines<'_>,
    work: &Work,
    header: &Header,
    mut sink: Sink,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<Vec<&'static str>> {
    let mut files = Vec::new();
    let mut done = 0;
    loop {
        match lines.next()? {
            Line::Backup(_) => bail!("it begins twice"),
            Line::File { name, base64 } => {
                let base64 = Zeroizing::new(base64);
                let known = FILES.into_iter().find(|known| *known == name);
                let known = known.filter(|known| !files.contains(known));
                let content = BASE64.decode(base64.as_bytes()).map(Zeroizing::new);
                let (Some(name), Ok(content)) = (known, content) else {
                    bail!("it holds a file that no server has");
                };
                let path = work.0.join(name);
                make_private_folder(path.parent().context("a file lies in a directory")?)?;
                write_private(&path, &content)?;
                files.push(name);
            }
            Line::Table { name, last_given } => sink.table(&name, last_given).await?,
            Line::Row(row) => {
                sink.row(row).await?;
                done += 1;
                progress(done, header.summary.rows);
            }
            Line::End(sum) => sink.end(sum)?,
            Line::Done { rows } => {
                ensure!(rows == done, "rows are missing in it");
                break;
            }
        }
    }
    ensure!(
        lines.source.fill_buf().context(BROKEN)?.is_empty(),
        "something follows its end"
    );
    sink.finish().await?;
    Ok(files)
}

/// Verifies the audit and writes into it that this is a restored installation.
async fn renew(store: &Store, header: &Header, now: i64) -> anyhow::Result<()> {
    store.chain_audit().await?;
    store.verify_audit(&header.summary).await?;
    let mut change = store.change(now).await?;
    skip_given(store, change.connection()).await?;
    let entry = Entry {
        actor: Actor::Server,
        action: "restored",
        subject: format!("backup of {}", header.made),
        org: None,
    };
    change.commit(entry, Touched::Everybody).await?;
    Ok(())
}

const BROKEN: &str = "the backup was altered, or its end is missing";

/// The lines of a backup.
struct Lines<'a> {
    source: &'a mut dyn BufRead,
}

impl Lines<'_> {
    fn next(&mut self) -> anyhow::Result<Line> {
        let mut text = Zeroizing::new(Vec::new());
        let mut limited = (&mut *self.source).take(LINE_BYTES_MAX);
        limited.read_until(b'\n', &mut text).context(BROKEN)?;
        ensure!(text.ends_with(b"\n"), BROKEN);
        serde_json::from_slice(&text).context("it holds a line that no server writes")
    }
}

/// A directory below that of the installation, for what is not whole; gone with the value.
struct Work(PathBuf);

impl Work {
    fn begin(data: &Path) -> anyhow::Result<Self> {
        make_private_folder(data)?;
        let path = data.join(format!("restore.{}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("make directory `{}`", path.display()))?;
        Ok(Self(path))
    }

    /// Puts what is whole into its place, the database last, so that no server finds it with keys
    /// that are not all there.
    fn keep(&self, names: &[&str], data: &Path) -> anyhow::Result<()> {
        let place = |name: &str| -> anyhow::Result<()> {
            let path = data.join(name);
            let folder = path.parent().context("a file lies in a directory")?;
            make_private_folder(folder)?;
            fs::rename(self.0.join(name), &path)
                .with_context(|| format!("put `{}` into its place", path.display()))?;
            fs::File::open(folder)
                .and_then(|folder| folder.sync_all())
                .with_context(|| format!("write `{}`", folder.display()))
        };
        let placed = names.iter().try_for_each(|name| place(name));
        if placed.is_err() {
            for name in names {
                // What failed may not be there.
                drop(fs::remove_file(data.join(name)));
            }
        }
        placed
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // Nobody can do more about it, and the name says what it was.
        drop(fs::remove_dir_all(&self.0));
    }
}

impl Header {
    fn is_known(&self) -> anyhow::Result<()> {
        let schema = self.summary.schema;
        ensure!(
            self.format == FORMAT && schema <= SCHEMA,
            "the backup was made by a newer ginnel ({}, schema {schema}; this one knows {SCHEMA}); \
             restore it with that version",
            self.version
        );
        Ok(())
    }
}

impl From<Header> for BackupContents {
    fn from(header: Header) -> Self {
        let Summary {
            schema,
            rows,
            audit_last_id,
            audit_last,
        } = header.summary;
        Self {
            version: header.version,
            schema,
            made: Timestamp(header.made),
            rows,
            audit_last: audit_last_id.zip(audit_last),
        }
    }
}
