//! The store: all SQL of the installation, one file per noun.
//!
//! One connection writes, and of several servers one at a time, so that changes are serial; several
//! read, each from a snapshot. A [`Change`] is one transaction and cannot be committed without its
//! audit row, apart from the pieces of a record and the confirmations of sessions.

pub(crate) use model::id::OrgId;
/// What every statement runs on.
pub(crate) use sqlx::AnyConnection as Connection;
use sqlx::{Any, AnyPool, Row as _, Transaction, any::AnyRow};

use self::{
    database::{Failure, Kind},
    pulse::Pulse,
};

/// The statements of a list, for [`of_org`]: without `$2`, which is NULL, and with the organisation
/// in the column that is `$2`.
macro_rules! of_all_or_one {
    ($before:literal, $column:literal, $after:literal) => {
        [
            concat!($before, " $2 IS NULL ", $after),
            concat!($before, " ", $column, " = $2 ", $after),
        ]
    };
}

pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod browser;
mod copy;
pub(crate) mod database;
pub(crate) mod installation;
pub(crate) mod node;
pub(crate) mod notification;
pub(crate) mod oidc;
pub(crate) mod org;
pub(crate) mod peer;
pub(crate) mod policy;
pub(crate) mod pulse;
pub(crate) mod service;
pub(crate) mod session;
pub(crate) mod site;
pub(crate) mod ssh;
pub(crate) mod token;
pub(crate) mod user;

/// How long a removed node keeps its address, and other rows stay that only explain the past.
pub(crate) const REMOVED_SECONDS_MIN: i64 = 30 * 24 * 60 * 60;

/// How long records of sessions stay.
pub(crate) const SESSION_SECONDS_MIN: i64 = 90 * 24 * 60 * 60;

/// How long audit rows stay.
pub(crate) const AUDIT_SECONDS_MIN: i64 = 400 * 24 * 60 * 60;

/// Returns the statement of a list that visits no rows of other organisations than `org`.
fn of_org([all, one]: [&'static str; 2], org: Option<OrgId>) -> &'static str {
    if org.is_some() { one } else { all }
}

/// The database of one installation.
pub(crate) struct Store {
    kind: Kind,
    writer: AnyPool,
    reader: AnyPool,
    /// Of a PostgreSQL that servers work on.
    pulse: Option<Pulse>,
}

/// Why the store did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No connection within the time, or another process holds the database.
    #[error("the database is busy")]
    Busy(#[source] sqlx::Error),
    /// The PostgreSQL is not there, or the connection to it broke.
    #[error("the database is away")]
    Away(#[source] sqlx::Error),
    /// The PostgreSQL has not answered for longer than [`pulse::SILENCE_MAX`].
    #[error("the database does not answer")]
    Silent,
    /// A write or a read failed below the database, or its files are read-only.
    #[error("the disk of the database fails")]
    Disk(#[source] sqlx::Error),
    /// There is no room for the change, which is undone.
    #[error("the disk of the database is full")]
    Full(#[source] sqlx::Error),
    /// A row holds what the schema does not allow.
    #[error("column `{0}` holds a value that has no meaning")]
    Corrupt(&'static str),
    #[error("the database failed")]
    Failed(#[source] sqlx::Error),
}

/// One change: a write transaction that ends with its audit row and its serial.
pub(crate) struct Change {
    kind: Kind,
    transaction: Transaction<'static, Any>,
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

impl Store {
    /// Begins a change; it waits for changes before it and rolls back when dropped.
    pub(crate) async fn change(&self, now: i64) -> Result<Change, Error> {
        Ok(Change {
            kind: self.kind,
            transaction: self.begin().await?,
            now,
        })
    }

    /// Tells whether other servers may work on the same database.
    pub(crate) fn is_shared(&self) -> bool {
        match self.kind {
            Kind::Sqlite => false,
            Kind::Postgres => true,
        }
    }

    /// Begins to read from one snapshot.
    pub(crate) async fn read(&self) -> Result<Transaction<'static, Any>, Error> {
        let begin = self.reader.begin_with(self.kind.begin_read());
        self.begin_while_it_answers(begin).await
    }

    /// Chains the audit of a database that was written before its rows had hashes.
    pub(crate) async fn chain_audit(&self) -> Result<(), Error> {
        let mut transaction = self.begin().await?;
        audit::chain_old(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Closes the database after the last statement.
    pub(crate) async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

impl Change {
    /// The connection that sees and makes the change.
    pub(crate) fn connection(&mut self) -> &mut Connection {
        &mut self.transaction
    }

    /// When the change happens, in seconds since the Unix epoch.
    pub(crate) fn now(&self) -> i64 {
        self.now
    }

    /// Writes a further audit row, of one of several things that are done at once.
    pub(crate) async fn note(&mut self, entry: &audit::Entry) -> Result<(), Error> {
        audit::insert(&mut self.transaction, self.now, entry).await
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
        if touched != Touched::Nobody {
            notification::notify(self.kind, &mut self.transaction).await?;
        }
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
        match database::failure(&error) {
            Failure::Busy => Self::Busy(error),
            Failure::Away => Self::Away(error),
            Failure::Disk => Self::Disk(error),
            Failure::Full => Self::Full(error),
            Failure::Other => Self::Failed(error),
        }
    }
}

/// Reads a column of text that parses into `T`.
fn text<T: std::str::FromStr>(row: &AnyRow, column: &'static str) -> Result<T, Error> {
    let text: &str = row.try_get(column)?;
    text.parse().map_err(|_| Error::Corrupt(column))
}

/// Reads a column of text or null.
fn optional_text<T: std::str::FromStr>(
    row: &AnyRow,
    column: &'static str,
) -> Result<Option<T>, Error> {
    let text: Option<&str> = row.try_get(column)?;
    text.map(|text| text.parse().map_err(|_| Error::Corrupt(column)))
        .transpose()
}

/// Reads a column of 32 bytes.
fn bytes(row: &AnyRow, column: &'static str) -> Result<[u8; 32], Error> {
    let bytes: &[u8] = row.try_get(column)?;
    bytes.try_into().map_err(|_| Error::Corrupt(column))
}

/// Reads a column that counts and therefore fits `T`.
fn number<T: TryFrom<i64>>(row: &AnyRow, column: &'static str) -> Result<T, Error> {
    let number: i64 = row.try_get(column)?;
    T::try_from(number).map_err(|_| Error::Corrupt(column))
}

/// Writes items into one column of text; none of them has a comma.
fn joined(items: &[impl std::fmt::Display]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(",")
}

/// Reads a column that [`joined`] wrote.
fn split<T: std::str::FromStr>(row: &AnyRow, column: &'static str) -> Result<Vec<T>, Error> {
    let text: &str = row.try_get(column)?;
    text.split(',')
        .map(|item| item.parse().map_err(|_| Error::Corrupt(column)))
        .collect()
}

#[cfg(test)]
mod tests;
