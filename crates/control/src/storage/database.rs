//! Where the store lies, a file or a PostgreSQL, and how it is opened and migrated.
//!
//! The statements are the same for both. Here stands all that is not: how one connects, how a
//! transaction begins, and the schemas.
//!
//! Several servers may work on one PostgreSQL. Each holds the lock of the database shared with the
//! others for as long as it runs, so that nobody migrates it beneath them; and the lock of changes
//! alone for each of its changes, so that these are serial as in a file.

use std::{fmt::Write as _, os::unix::ffi::OsStrExt as _, path::Path, time::Duration};

use sqlx::{
    Any, AnyPool, AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _,
    SqlSafeStr as _, Transaction,
    any::{AnyConnectOptions, AnyPoolOptions},
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

use tokio::time::{sleep, timeout};

use super::{Connection, Error, Store, pulse::Pulse};

/// Readers beside the one writer; more find no free core on small servers.
const READERS_MAX: u32 = 8;

/// How long a request waits for the writer or for a reader before it is refused.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a server waits for others to leave the database.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it looks meanwhile.
const CLAIM_PAUSE: Duration = Duration::from_millis(50);

/// After so long PostgreSQL ends a change of a server that has stopped in the middle of it, so that
/// the others go on. Nothing in a change waits for anything but the database.
const IDLE_CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Which of the two a store is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
}

/// Who may work on a PostgreSQL at once; a file is locked with its directory by the program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Claim {
    /// Servers with the same schema.
    Servers,
    /// Whoever opens it, and nobody else.
    Alone,
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
    #[error("another server works on this database, or a copy or a restore does")]
    InUse,
    #[error(
        "servers with an older schema work on this database, which has to be migrated: stop all \
         of them, then start the newer version"
    )]
    InOlderUse,
    #[error("migrate the database")]
    Migrate(#[source] MigrateError),
    #[error("open the database")]
    Open(#[source] sqlx::Error),
    #[error("write to the database")]
    Begin(#[source] Error),
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
    (
        15,
        "several_servers",
        include_str!("../../migrations/sqlite/0015_several_servers.sql"),
    ),
    (
        16,
        "browser_session",
        include_str!("../../migrations/sqlite/0016_browser_session.sql"),
    ),
    (
        17,
        "node_approval",
        include_str!("../../migrations/sqlite/0017_node_approval.sql"),
    ),
    (
        18,
        "site_standby",
        include_str!("../../migrations/sqlite/0018_site_standby.sql"),
    ),
    (
        19,
        "site_alias",
        include_str!("../../migrations/sqlite/0019_site_alias.sql"),
    ),
    (
        20,
        "org_index",
        include_str!("../../migrations/sqlite/0020_org_index.sql"),
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
    (
        15,
        "several_servers",
        include_str!("../../migrations/postgres/0015_several_servers.sql"),
    ),
    (
        16,
        "browser_session",
        include_str!("../../migrations/postgres/0016_browser_session.sql"),
    ),
    (
        17,
        "node_approval",
        include_str!("../../migrations/postgres/0017_node_approval.sql"),
    ),
    (
        18,
        "site_standby",
        include_str!("../../migrations/postgres/0018_site_standby.sql"),
    ),
    (
        19,
        "site_alias",
        include_str!("../../migrations/postgres/0019_site_alias.sql"),
    ),
    (
        20,
        "org_index",
        include_str!("../../migrations/postgres/0020_org_index.sql"),
    ),
];

/// The version of the schema that this ginnel writes.
pub(crate) const SCHEMA: i64 = SQLITE[SQLITE.len() - 1].0;

/// Opens a database to read from it. It is neither made nor migrated nor claimed.
pub(super) async fn open_reader(kind: Kind, url: &str) -> Result<AnyPool, OpenError> {
    sqlx::any::install_default_drivers();
    let pool = kind.pool(1).connect_with(parse(url)?);
    pool.await.map_err(OpenError::Open)
}

impl Store {
    /// Opens the database at `path`, makes it if it is missing, and migrates it.
    pub(crate) async fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_sqlite(path, SCHEMA).await
    }

    /// Makes a database at `path` with an older schema, to be filled with what has it.
    pub(super) async fn open_at_schema(path: &Path, schema: i64) -> Result<Self, OpenError> {
        Self::open_sqlite(path, schema).await
    }

    /// Opens the PostgreSQL database that `url` names, and migrates it if nobody else works on it.
    pub(crate) async fn open_postgres(url: &str, claim: Claim) -> Result<Self, OpenError> {
        sqlx::any::install_default_drivers();
        let options = parse(url)?;
        prepare(&options, claim).await?;
        let writer = postgres_writer(claim).connect_with(options.clone());
        let writer = writer.await.map_err(OpenError::Open)?;
        let reader = Kind::Postgres
            .pool(READERS_MAX)
            .connect_with(options.clone());
        let reader = reader.await.map_err(OpenError::Open)?;
        Ok(Self {
            kind: Kind::Postgres,
            writer,
            reader,
            pulse: (claim == Claim::Servers).then(|| Pulse::begin(options)),
        })
    }

    /// Begins a transaction that writes, which is the only one then.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Any>, Error> {
        let begin = async {
            let mut transaction = self.writer.begin_with(self.kind.begin_change()).await?;
            self.kind.lock_changes(&mut transaction).await?;
            Ok(transaction)
        };
        self.begin_while_it_answers(begin).await
    }

    /// Tells whether no other server works on the database.
    pub(crate) async fn is_alone(&self) -> Result<bool, Error> {
        match self.kind {
            Kind::Sqlite => Ok(true),
            Kind::Postgres => {
                let mut connection = self.writer.acquire().await?;
                let row = sqlx::query(HOLDERS).bind(LOCK).fetch_one(&mut *connection);
                Ok(row.await?.try_get::<i64, _>("n")? == 1)
            }
        }
    }

    async fn open_sqlite(path: &Path, schema: i64) -> Result<Self, OpenError> {
        sqlx::any::install_default_drivers();
        let kind = Kind::Sqlite;
        let writer = kind.pool(1).connect_with(parse(&url_of(path, "rwc"))?);
        let writer = writer.await.map_err(OpenError::Open)?;
        migrate(kind, &writer, schema).await?;
        let reader = kind
            .pool(READERS_MAX)
            .connect_with(parse(&url_of(path, "ro"))?);
        let reader = reader.await.map_err(OpenError::Open)?;
        Ok(Self {
            kind,
            writer,
            reader,
            pulse: None,
        })
    }
}

fn parse(url: &str) -> Result<AnyConnectOptions, OpenError> {
    let options: AnyConnectOptions = url.parse().map_err(OpenError::Open)?;
    Ok(options.disable_statement_logging())
}

impl Kind {
    /// How a change begins.
    fn begin_change(self) -> &'static str {
        match self {
            // A deferred transaction that has read cannot become a writer after another process
            // wrote.
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN",
        }
    }

    /// Waits until no other server makes a change, in a transaction that has just begun: what
    /// others changed is seen by the statements after it.
    async fn lock_changes(self, transaction: &mut Connection) -> sqlx::Result<()> {
        match self {
            Self::Sqlite => Ok(()),
            Self::Postgres => {
                // The type `void` has no place in a row that both databases could give.
                let lock = sqlx::query("SELECT CAST(pg_advisory_xact_lock($1) AS TEXT)");
                lock.bind(CHANGE_LOCK).execute(transaction).await.map(drop)
            }
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
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_release(|connection, _| Box::pin(is_good(connection)));
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

    fn migrations(self) -> Migrations {
        match self {
            Self::Sqlite => SQLITE,
            Self::Postgres => POSTGRES,
        }
    }
}

/// Tells whether a connection can be used again, once what was left of its transaction is undone.
///
/// One whose other end is gone is given up; the kernel would wait for a quarter of an hour. SQLite
/// undoes the transaction itself when its disk is full, and sqlx takes it for one that goes on.
async fn is_good(connection: &mut Connection) -> sqlx::Result<bool> {
    let answered = timeout(ACQUIRE_TIMEOUT, connection.ping()).await;
    answered.map_err(|_| sqlx::Error::PoolTimedOut)??;
    Ok(!connection.is_in_transaction())
}

/// The one connection of a server that writes. It holds the lock of the database, also when it had
/// to be made anew: a database that has been taken or migrated meanwhile is not written to.
fn postgres_writer(claim: Claim) -> AnyPoolOptions {
    Kind::Postgres.pool(1).after_connect(move |connection, _| {
        Box::pin(async move {
            if !lock(connection, claim).await? {
                return Err(sqlx::Error::PoolTimedOut);
            }
            let schema = schema(connection).await?;
            if schema != SCHEMA {
                let message = format!("the schema is {schema} now, and this server's is {SCHEMA}");
                return Err(sqlx::Error::Protocol(message));
            }
            let mut timeouts = format!("SET lock_timeout = {}", ACQUIRE_TIMEOUT.as_millis());
            if claim == Claim::Servers {
                let idle = IDLE_CHANGE_TIMEOUT.as_millis();
                write!(
                    timeouts,
                    "; SET idle_in_transaction_session_timeout = {idle}"
                )
                .expect("a String takes everything");
            }
            let set = sqlx::raw_sql(AssertSqlSafe(timeouts));
            set.execute(connection).await.map(drop)
        })
    })
}

/// Finds out whether a PostgreSQL answers and may be worked on, and migrates it if it has to be,
/// while nobody works on it. Whoever has just ended is waited for.
async fn prepare(options: &AnyConnectOptions, claim: Claim) -> Result<(), OpenError> {
    // A pool would only say that it took too long.
    let connection = options.connect().await.map_err(OpenError::Open)?;
    connection.close().await.map_err(OpenError::Open)?;
    // One connection: what it locks stays locked between statements.
    let pool = Kind::Postgres.pool(1).connect_with(options.clone());
    let pool = pool.await.map_err(OpenError::Open)?;
    let looks_max = CLAIM_TIMEOUT.as_millis() / CLAIM_PAUSE.as_millis();
    for look in 0..=looks_max {
        let mut connection = pool.acquire().await.map_err(OpenError::Open)?;
        let found = schema(&mut connection).await.map_err(OpenError::Open)?;
        let needed = if found < SCHEMA { Claim::Alone } else { claim };
        let locked = lock(&mut connection, needed).await;
        drop(connection);
        if locked.map_err(OpenError::Open)? {
            migrate(Kind::Postgres, &pool, SCHEMA).await?;
            let unlock = sqlx::query("SELECT CAST(pg_advisory_unlock_all() AS TEXT)");
            unlock.execute(&pool).await.map_err(OpenError::Open)?;
            pool.close().await;
            return Ok(());
        }
        if look == looks_max && needed != claim {
            return Err(OpenError::InOlderUse);
        }
        if look == 0 {
            let seconds = CLAIM_TIMEOUT.as_secs();
            tracing::info!(seconds, "others work on this database; waiting for them");
        }
        sleep(CLAIM_PAUSE).await;
    }
    Err(OpenError::InUse)
}

/// Takes the lock of a PostgreSQL for as long as the connection lasts, unless somebody has it who
/// shares it with nobody, or at all.
async fn lock(connection: &mut Connection, claim: Claim) -> sqlx::Result<bool> {
    let lock = match claim {
        Claim::Servers => "SELECT CASE WHEN pg_try_advisory_lock_shared($1) THEN 1 ELSE 0 END AS n",
        Claim::Alone => "SELECT CASE WHEN pg_try_advisory_lock($1) THEN 1 ELSE 0 END AS n",
    };
    let row = sqlx::query(lock).bind(LOCK).fetch_one(connection).await?;
    Ok(row.try_get::<i64, _>("n")? == 1)
}

/// Returns the schema of a PostgreSQL; 0 before the first one.
async fn schema(connection: &mut Connection) -> sqlx::Result<i64> {
    let has_one = "SELECT CASE WHEN to_regclass('_sqlx_migrations') IS NULL THEN 0 ELSE 1 END AS n";
    let row = sqlx::query(has_one).fetch_one(&mut *connection).await?;
    if row.try_get::<i64, _>("n")? == 0 {
        return Ok(0);
    }
    let newest = "SELECT COALESCE(MAX(version), 0) AS n FROM _sqlx_migrations";
    let row = sqlx::query(newest).fetch_one(connection).await?;
    row.try_get("n")
}

/// What a failure means for whoever asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// The same may work a little later.
    Busy,
    /// There is no database to talk to.
    Away,
    /// The disk below the database fails, or is read-only.
    Disk,
    /// The disk below the database is full.
    Full,
    /// Nobody foresaw it.
    Other,
}

/// Tells what a failure means.
pub(super) fn failure(error: &sqlx::Error) -> Failure {
    if matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed) {
        return Failure::Busy;
    }
    if matches!(error, sqlx::Error::Io(_)) {
        return Failure::Away;
    }
    let code = error.as_database_error().and_then(|error| error.code());
    code.map_or(Failure::Other, |code| failure_of(&code))
}

/// Tells what the code of a database means: a number of SQLite (sqlite.org/rescode.html), or the
/// five characters of PostgreSQL (its appendix A).
fn failure_of(code: &str) -> Failure {
    if code.len() == SQLSTATE_LENGTH {
        return match code {
            // The server starts or ends; too many connections.
            LOCK_NOT_AVAILABLE | IDLE_IN_TRANSACTION | "53300" => Failure::Busy,
            "57P01" | "57P02" | "57P03" => Failure::Away,
            "53100" => Failure::Full,
            // The system refused, a read or a write failed, a server that only reads.
            "58000" | "58030" | "25006" => Failure::Disk,
            _ => Failure::Other,
        };
    }
    match code.parse::<u32>() {
        Ok(SQLITE_IOERR_SHMSIZE) => Failure::Full,
        // Extended codes share the byte.
        Ok(code) => match code & 0xff {
            // BUSY, LOCKED.
            5 | 6 => Failure::Busy,
            // READONLY, IOERR, CANTOPEN.
            8 | 10 | 14 => Failure::Disk,
            // FULL.
            13 => Failure::Full,
            _ => Failure::Other,
        },
        Err(_) => Failure::Other,
    }
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

const SQLSTATE_LENGTH: usize = 5;

/// The index of the WAL cannot grow, for which SQLite has no other reason than a full disk.
const SQLITE_IOERR_SHMSIZE: u32 = 10 | 19 << 8;

/// What PostgreSQL says when a lock was not to be had within `lock_timeout` (its appendix A).
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// What it says when a transaction has waited for its client too long.
const IDLE_IN_TRANSACTION: &str = "25P03";

/// The advisory lock of whoever works on the database: any number that no other program has.
const LOCK: i64 = 0x6769_6e6e_656c;

/// Counts who holds an advisory lock of this database; its number stands in two halves
/// (documentation of PostgreSQL, `pg_locks`).
const HOLDERS: &str = "SELECT COUNT(DISTINCT pid) AS n FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND CAST(classid AS BIGINT) = CAST($1 AS BIGINT) >> 32
      AND CAST(objid AS BIGINT) = CAST($1 AS BIGINT) & 4294967295";

/// The advisory lock of a change.
const CHANGE_LOCK: i64 = LOCK + 1;

/// The advisory lock of the server that leads.
pub(super) const LEAD_LOCK: i64 = LOCK + 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_of_a_database_says_what_failed() {
        for (codes, failure) in [
            // SQLITE_BUSY, SQLITE_BUSY_SNAPSHOT, SQLITE_LOCKED.
            (
                &["5", "517", "6", "55P03", "25P03", "53300"][..],
                Failure::Busy,
            ),
            (&["57P01", "57P02", "57P03"], Failure::Away),
            (&["13", "4874", "53100"], Failure::Full),
            // SQLITE_IOERR_WRITE, _FSYNC and _READ, SQLITE_READONLY, SQLITE_CANTOPEN.
            (
                &["778", "1034", "266", "8", "14", "58030", "58000", "25006"],
                Failure::Disk,
            ),
            // SQLITE_CONSTRAINT_TRIGGER and _UNIQUE, SQLITE_CORRUPT; their likes.
            (
                &["1811", "2067", "11", "P0001", "23505", "XX001", ""],
                Failure::Other,
            ),
        ] {
            for code in codes {
                assert_eq!(failure_of(code), failure, "{code}");
            }
        }
    }
}
