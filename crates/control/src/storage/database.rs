//! Where the store lies, a file or a PostgreSQL, and how it is opened and migrated.
//!
//! The statements are the same for both. Here stands all that is not: how one connects, how a
//! transaction begins, and the schemas.

use std::{fmt::Write as _, os::unix::ffi::OsStrExt as _, path::Path, time::Duration};

use sqlx::{
    AnyPool, ConnectOptions as _, Connection as _, Executor as _, Row as _, SqlSafeStr as _,
    any::{AnyConnectOptions, AnyPoolOptions},
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

use super::{Connection, Store};

/// Readers beside the one writer; more find no free core on small servers.
const READERS_MAX: u32 = 8;

/// How long a request waits for the writer or for a reader before it is refused.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a server waits for the one before it to leave the database.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);

/// Which of the two a store is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
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
    #[error("another server works on this database")]
    InUse,
    #[error("migrate the database")]
    Migrate(#[source] MigrateError),
    #[error("open the database")]
    Open(#[source] sqlx::Error),
}

type Migrations = &'static [(i64, &'static str, &'static str)];

const SQLITE: Migrations = &[
    (
        1,
        "first",
        include_str!("../../migrations/sqlite/0001_first.sql"),
    ),
    (
        2,
        "ssh",
        include_str!("../../migrations/sqlite/0002_ssh.sql"),
    ),
    (
        3,
        "policy",
        include_str!("../../migrations/sqlite/0003_policy.sql"),
    ),
    (
        4,
        "ssh_cut",
        include_str!("../../migrations/sqlite/0004_ssh_cut.sql"),
    ),
    (
        5,
        "ssh_session",
        include_str!("../../migrations/sqlite/0005_ssh_session.sql"),
    ),
    (
        6,
        "people",
        include_str!("../../migrations/sqlite/0006_people.sql"),
    ),
    (
        7,
        "site",
        include_str!("../../migrations/sqlite/0007_site.sql"),
    ),
    (
        8,
        "oidc",
        include_str!("../../migrations/sqlite/0008_oidc.sql"),
    ),
    (
        9,
        "audit_chain",
        include_str!("../../migrations/sqlite/0009_audit_chain.sql"),
    ),
    (
        10,
        "peer",
        include_str!("../../migrations/sqlite/0010_peer.sql"),
    ),
    (
        11,
        "site_mode",
        include_str!("../../migrations/sqlite/0011_site_mode.sql"),
    ),
    (
        12,
        "browser",
        include_str!("../../migrations/sqlite/0012_browser.sql"),
    ),
    (
        13,
        "site_auto",
        include_str!("../../migrations/sqlite/0013_site_auto.sql"),
    ),
    (
        14,
        "org_serial",
        include_str!("../../migrations/sqlite/0014_org_serial.sql"),
    ),
];

/// Numbered as those of SQLite: no PostgreSQL is older than the eighth.
const POSTGRES: Migrations = &[
    (
        8,
        "first",
        include_str!("../../migrations/postgres/0008_first.sql"),
    ),
    (
        9,
        "audit_chain",
        include_str!("../../migrations/postgres/0009_audit_chain.sql"),
    ),
    (
        10,
        "peer",
        include_str!("../../migrations/postgres/0010_peer.sql"),
    ),
    (
        11,
        "site_mode",
        include_str!("../../migrations/postgres/0011_site_mode.sql"),
    ),
    (
        12,
        "browser",
        include_str!("../../migrations/postgres/0012_browser.sql"),
    ),
    (
        13,
        "site_auto",
        include_str!("../../migrations/postgres/0013_site_auto.sql"),
    ),
    (
        14,
        "org_serial",
        include_str!("../../migrations/postgres/0014_org_serial.sql"),
    ),
];

/// The version of the schema that this ginnel writes.
pub(crate) const SCHEMA: i64 = SQLITE[SQLITE.len() - 1].0;

/// Opens a database to read from it. It is neither made nor migrated nor claimed.
pub(super) async fn open_reader(kind: Kind, url: &str) -> Result<AnyPool, OpenError> {
    sqlx::any::install_default_drivers();
    let options: AnyConnectOptions = url.parse().map_err(OpenError::Open)?;
    let pool = kind
        .pool(1)
        .connect_with(options.disable_statement_logging());
    pool.await.map_err(OpenError::Open)
}

impl Store {
    /// Opens the database at `path`, makes it if it is missing, and migrates it.
    pub(crate) async fn open(path: &Path) -> Result<Self, OpenError> {
        let writer = url_of(path, "rwc");
        let reader = url_of(path, "ro");
        Self::connect(Kind::Sqlite, &writer, &reader, SCHEMA).await
    }

    /// Makes a database at `path` with an older schema, to be filled with what has it.
    pub(super) async fn open_at_schema(path: &Path, schema: i64) -> Result<Self, OpenError> {
        let writer = url_of(path, "rwc");
        let reader = url_of(path, "ro");
        Self::connect(Kind::Sqlite, &writer, &reader, schema).await
    }

    /// Opens the PostgreSQL database that `url` names, and migrates it. It is this server's alone:
    /// another one would not learn of its changes.
    pub(crate) async fn open_postgres(url: &str) -> Result<Self, OpenError> {
        Self::connect(Kind::Postgres, url, url, SCHEMA).await
    }

    async fn connect(
        kind: Kind,
        writer: &str,
        reader: &str,
        schema: i64,
    ) -> Result<Self, OpenError> {
        sqlx::any::install_default_drivers();
        let parse = |url: &str| {
            let options: AnyConnectOptions = url.parse().map_err(OpenError::Open)?;
            Ok(options.disable_statement_logging())
        };
        let writer = parse(writer)?;
        kind.claim(&writer).await?;
        let writer = kind.writer().connect_with(writer);
        let writer = writer.await.map_err(OpenError::Open)?;
        migrate(kind, &writer, schema).await?;
        let reader = kind.pool(READERS_MAX).connect_with(parse(reader)?);
        let reader = reader.await.map_err(OpenError::Open)?;
        Ok(Self {
            kind,
            writer,
            reader,
        })
    }
}

impl Kind {
    /// How a change begins, which is the only one then.
    pub(super) fn begin_change(self) -> &'static str {
        match self {
            // A deferred transaction that has read cannot become a writer after another process
            // wrote.
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN",
        }
    }

    /// How one reads from a snapshot.
    pub(super) fn begin_read(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN",
            Self::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        }
    }

    fn pool(self, connections_max: u32) -> AnyPoolOptions {
        let options = AnyPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(ACQUIRE_TIMEOUT);
        match self {
            // What must last through a loss of power, and how long a statement waits for another
            // process, such as a backup, that holds the database.
            Self::Sqlite => options.after_connect(|connection, _| {
                let pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                               PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000;";
                Box::pin(async move { connection.execute(pragmas).await.map(drop) })
            }),
            Self::Postgres => options,
        }
    }

    /// The one connection that writes. It holds the lock of the database, also when it had to be
    /// made anew: what another server has taken meanwhile is not written to.
    fn writer(self) -> AnyPoolOptions {
        match self {
            Self::Sqlite => self.pool(1),
            Self::Postgres => self.pool(1).after_connect(|connection, _| {
                Box::pin(async move {
                    match lock(connection).await? {
                        true => Ok(()),
                        false => Err(sqlx::Error::PoolTimedOut),
                    }
                })
            }),
        }
    }

    /// Finds out whether the database answers and whether another server works on it; one that
    /// has just ended is waited for.
    ///
    /// SQLite has a directory of its own, which the server locks.
    async fn claim(self, options: &AnyConnectOptions) -> Result<(), OpenError> {
        if self == Self::Sqlite {
            return Ok(());
        }
        let mut connection = options.connect().await.map_err(OpenError::Open)?;
        if !lock(&mut connection).await.map_err(OpenError::Open)? {
            let seconds = CLAIM_TIMEOUT.as_secs();
            tracing::info!(
                seconds,
                "another server works on this database; waiting for it"
            );
            wait_for_lock(&mut connection).await?;
        }
        connection.close().await.map_err(OpenError::Open)?;
        Ok(())
    }

    fn migrations(self) -> Migrations {
        match self {
            Self::Sqlite => SQLITE,
            Self::Postgres => POSTGRES,
        }
    }
}

/// Takes the lock of a PostgreSQL for as long as the connection lasts, unless somebody has it.
async fn lock(connection: &mut Connection) -> sqlx::Result<bool> {
    let locked = sqlx::query("SELECT CASE WHEN pg_try_advisory_lock($1) THEN 1 ELSE 0 END AS n");
    let row = locked.bind(LOCK).fetch_one(connection).await?;
    Ok(row.try_get::<i64, _>("n")? == 1)
}

/// Takes the lock once nobody has it any more: PostgreSQL learns a little late that a server ended.
async fn wait_for_lock(connection: &mut Connection) -> Result<(), OpenError> {
    let timeout = format!("{}ms", CLAIM_TIMEOUT.as_millis());
    let limited = sqlx::query("SELECT set_config('lock_timeout', $1, false)").bind(timeout);
    limited
        .execute(&mut *connection)
        .await
        .map_err(OpenError::Open)?;
    // The type `void` has no place in a row that both databases could give.
    let locked = sqlx::query("SELECT CAST(pg_advisory_lock($1) AS TEXT)").bind(LOCK);
    match locked.execute(connection).await {
        Ok(_) => Ok(()),
        Err(error) if has_code(&error, LOCK_NOT_AVAILABLE) => Err(OpenError::InUse),
        Err(error) => Err(OpenError::Open(error)),
    }
}

fn has_code(error: &sqlx::Error, code: &str) -> bool {
    let found = error.as_database_error().and_then(|error| error.code());
    found.is_some_and(|found| found == code)
}

/// Tells whether the same may work a little later.
pub(super) fn is_busy(error: &sqlx::Error) -> bool {
    // SQLITE_BUSY and SQLITE_LOCKED (sqlite.org/rescode.html); extended codes share the byte. The
    // codes of PostgreSQL have five characters.
    let is_busy = |code: &str| {
        let sqlite = code.len() < 5
            && code
                .parse::<u32>()
                .is_ok_and(|code| matches!(code & 0xff, 5 | 6));
        // The server starts or ends; too many connections.
        sqlite
            || matches!(
                code,
                LOCK_NOT_AVAILABLE | "57P01" | "57P02" | "57P03" | "53300"
            )
    };
    let lost = matches!(
        error,
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_)
    );
    let code = error.as_database_error().and_then(|error| error.code());
    lost || code.is_some_and(|code| is_busy(&code))
}

/// Brings the schema up to the version `newest`.
async fn migrate(kind: Kind, writer: &AnyPool, newest: i64) -> Result<(), OpenError> {
    let known = kind.migrations();
    let migrations = known
        .iter()
        .filter(|&&(version, ..)| version <= newest)
        .map(|&(version, name, sql)| {
            let sql = sql.into_sql_str();
            Migration::new(version, name.into(), MigrationType::Simple, sql, false)
        })
        .collect();
    let known = known.last().map_or(0, |&(version, ..)| version);
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

/// Writes a path as a URL; whatever has a meaning there is escaped (RFC 3986, 2.1).
pub(super) fn url_of(path: &Path, mode: &str) -> String {
    let mut url = String::from("sqlite://");
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            write!(url, "%{byte:02X}").expect("a String takes everything");
        }
    }
    url + "?mode=" + mode
}

/// What PostgreSQL says when a lock was not to be had within `lock_timeout` (its appendix A).
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// The advisory lock of a server: any number that no other program has.
const LOCK: i64 = 0x6769_6e6e_656c;
