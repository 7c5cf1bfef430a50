//! The store: all SQL of the installation, one file per noun.
//!
//! One connection writes, so that changes are serial; several read, each from a snapshot. A
//! [`Change`] is one transaction and cannot be committed without its audit row, apart from the
//! pieces of a record and the confirmations of sessions.

use std::{path::Path, time::Duration};

pub(crate) use model::id::OrgId;
/// What every statement runs on.
pub(crate) use sqlx::SqliteConnection as Connection;
use sqlx::{
    ConnectOptions as _, Row, SqlSafeStr as _, Sqlite, SqliteConnection, SqlitePool, Transaction,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};

pub(crate) mod audit;
pub(crate) mod installation;
pub(crate) mod node;
pub(crate) mod oidc;
pub(crate) mod org;
pub(crate) mod policy;
pub(crate) mod service;
pub(crate) mod session;
pub(crate) mod site;
pub(crate) mod ssh;
pub(crate) mod token;
pub(crate) mod user;

/// Readers beside the one writer; more find no free core on small servers.
const READERS_MAX: u32 = 8;

/// How long a request waits for the writer or for a reader before it is refused.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a statement waits for another process, such as a backup, that holds the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a removed node keeps its address, and other rows stay that only explain the past.
pub(crate) const REMOVED_SECONDS_MIN: i64 = 30 * 24 * 60 * 60;

/// How long records of sessions stay.
pub(crate) const SESSION_SECONDS_MIN: i64 = 90 * 24 * 60 * 60;

/// How long audit rows stay.
pub(crate) const AUDIT_SECONDS_MIN: i64 = 400 * 24 * 60 * 60;

/// The database of one installation.
pub(crate) struct Store {
    writer: SqlitePool,
    reader: SqlitePool,
}

/// Why the database could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(
        "the database was written by a newer ginnel (schema {found}, this one knows {known}); \
         start the newer version, or restore a backup made before the upgrade"
    )]
    Newer { found: i64, known: i64 },
    #[error("the database's schema was changed by hand (migration {0}); restore a backup")]
    Altered(i64),
    #[error("migrate the database")]
    Migrate(#[source] MigrateError),
    #[error("open the database")]
    Open(#[source] sqlx::Error),
}

/// Why the store did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No connection within the time, or another process holds the database.
    #[error("the database is busy")]
    Busy(#[source] sqlx::Error),
    /// A row holds what the schema does not allow.
    #[error("column `{0}` holds a value that has no meaning")]
    Corrupt(&'static str),
    #[error("the database failed")]
    Failed(#[source] sqlx::Error),
}

/// One change: a write transaction that ends with its audit row and its serial.
pub(crate) struct Change {
    transaction: Transaction<'static, Sqlite>,
    now: i64,
}

/// Whose maps a change touches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Touched {
    Nobody,
    Org(OrgId),
    Everybody,
}

/// A committed change, to be published.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    pub(crate) serial: u64,
    pub(crate) touched: Touched,
}

const MIGRATIONS: [(i64, &str, &str); 8] = [
    (
        1,
        "first",
        include_str!("../migrations/sqlite/0001_first.sql"),
    ),
    (2, "ssh", include_str!("../migrations/sqlite/0002_ssh.sql")),
    (
        3,
        "policy",
        include_str!("../migrations/sqlite/0003_policy.sql"),
    ),
    (
        4,
        "ssh_cut",
        include_str!("../migrations/sqlite/0004_ssh_cut.sql"),
    ),
    (
        5,
        "ssh_session",
        include_str!("../migrations/sqlite/0005_ssh_session.sql"),
    ),
    (
        6,
        "people",
        include_str!("../migrations/sqlite/0006_people.sql"),
    ),
    (
        7,
        "site",
        include_str!("../migrations/sqlite/0007_site.sql"),
    ),
    (
        8,
        "oidc",
        include_str!("../migrations/sqlite/0008_oidc.sql"),
    ),
];

impl Store {
    /// Opens the database at `path`, makes it if it is missing, and migrates it.
    pub(crate) async fn open(path: &Path) -> Result<Self, OpenError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.clone())
            .await
            .map_err(OpenError::Open)?;
        migrate(&writer).await?;
        let reader = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.create_if_missing(false).read_only(true))
            .await
            .map_err(OpenError::Open)?;
        Ok(Self { writer, reader })
    }

    /// Begins a change; it waits for changes before it and rolls back when dropped.
    pub(crate) async fn change(&self, now: i64) -> Result<Change, Error> {
        // A deferred transaction that has read cannot become a writer after another process wrote.
        let transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        Ok(Change { transaction, now })
    }

    /// Begins to read from one snapshot.
    pub(crate) async fn read(&self) -> Result<Transaction<'static, Sqlite>, Error> {
        Ok(self.reader.begin().await?)
    }

    /// Closes the database after the last statement.
    pub(crate) async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

impl Change {
    /// The connection that sees and makes the change.
    pub(crate) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.transaction
    }

    /// When the change happens, in seconds since the Unix epoch.
    pub(crate) fn now(&self) -> i64 {
        self.now
    }

    /// Writes the audit row and the serial, and makes the whole change durable.
    pub(crate) async fn commit(
        mut self,
        entry: audit::Entry,
        touched: Touched,
    ) -> Result<Committed, Error> {
        let now = self.now;
        audit::insert(&mut self.transaction, now, &entry).await?;
        let serial = installation::advance(&mut self.transaction, touched).await?;
        self.transaction.commit().await?;
        Ok(Committed { serial, touched })
    }

    /// Makes durable what nobody changed and no map shows: a part of a record, whose begin and end
    /// are in the audit, or that a session was confirmed.
    pub(crate) async fn commit_unaudited(self) -> Result<(), Error> {
        Ok(self.transaction.commit().await?)
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        // SQLITE_BUSY and SQLITE_LOCKED (sqlite.org/rescode.html); extended codes share the byte.
        let is_busy = |code: &str| {
            code.parse::<u32>()
                .is_ok_and(|code| matches!(code & 0xff, 5 | 6))
        };
        let busy = matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed)
            || error
                .as_database_error()
                .and_then(|error| error.code())
                .is_some_and(|code| is_busy(&code));
        if busy {
            Self::Busy(error)
        } else {
            Self::Failed(error)
        }
    }
}

/// Reads a column of text that parses into `T`.
fn text<T: std::str::FromStr>(row: &SqliteRow, column: &'static str) -> Result<T, Error> {
    let text: &str = row.try_get(column)?;
    text.parse().map_err(|_| Error::Corrupt(column))
}

/// Reads a column of text or null.
fn optional_text<T: std::str::FromStr>(
    row: &SqliteRow,
    column: &'static str,
) -> Result<Option<T>, Error> {
    let text: Option<&str> = row.try_get(column)?;
    text.map(|text| text.parse().map_err(|_| Error::Corrupt(column)))
        .transpose()
}

/// Reads a column of 32 bytes.
fn bytes(row: &SqliteRow, column: &'static str) -> Result<[u8; 32], Error> {
    let bytes: &[u8] = row.try_get(column)?;
    bytes.try_into().map_err(|_| Error::Corrupt(column))
}

/// Reads a column that counts and therefore fits `T`.
fn number<T: TryFrom<i64>>(row: &SqliteRow, column: &'static str) -> Result<T, Error> {
    let number: i64 = row.try_get(column)?;
    T::try_from(number).map_err(|_| Error::Corrupt(column))
}

/// Writes items into one column of text; none of them has a comma.
fn joined(items: &[impl std::fmt::Display]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(",")
}

/// Reads a column that [`joined`] wrote.
fn split<T: std::str::FromStr>(row: &SqliteRow, column: &'static str) -> Result<Vec<T>, Error> {
    let text: &str = row.try_get(column)?;
    text.split(',')
        .map(|item| item.parse().map_err(|_| Error::Corrupt(column)))
        .collect()
}

async fn migrate(writer: &SqlitePool) -> Result<(), OpenError> {
    let migrations = MIGRATIONS
        .into_iter()
        .map(|(version, name, sql)| {
            let sql = sql.into_sql_str();
            Migration::new(version, name.into(), MigrationType::Simple, sql, false)
        })
        .collect();
    let known = MIGRATIONS[MIGRATIONS.len() - 1].0;
    match Migrator::with_migrations(migrations).run(writer).await {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(_)) => {
            let found = sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations")
                .fetch_one(writer)
                .await
                .map_err(OpenError::Open)?;
            Err(OpenError::Newer { found, known })
        }
        Err(MigrateError::VersionMismatch(version)) => Err(OpenError::Altered(version)),
        Err(error) => Err(OpenError::Migrate(error)),
    }
}
