//! The rows of a store for a backup, all from one snapshot, and back into an empty store.

use std::path::Path;

use data_encoding::{BASE64, HEXLOWER};
use futures_util::TryStreamExt as _;
use serde_json::{Map, Value as Json};
use sqlx::{AnyPool, AssertSqlSafe, Row as _};

use super::{
    Connection, Error, Store, audit,
    copy::{Fields, Sum, TABLES, Value, set_gateway, sum},
    database::{self, Kind, OpenError},
    number,
};
use crate::audit::AuditVerifier;

/// By how much ids, serials of certificates and the serial of the maps are greater after a restore:
/// what was given after the backup was made is given to nothing else.
const GIVEN_SINCE_MAX: i64 = 1 << 20;

/// Rows of the audit that are verified at a time.
const AUDIT_ROWS_MAX: u32 = 1_000;

/// A database that is only read, whoever works on it.
pub(crate) struct Source {
    kind: Kind,
    pool: AnyPool,
}

/// What is taken out of a source, in this order: what is known of it, then each table, its rows and
/// its end.
pub(crate) enum Part {
    Summary(Summary),
    Table {
        name: &'static str,
        /// The greatest id that the table ever gave.
        last_given: Option<i64>,
    },
    Row(Map<String, Json>),
    End(TableSum),
}

/// What a table holds, whatever the order of its rows.
#[derive(Clone, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub(crate) struct TableSum {
    pub(crate) rows: u64,
    /// The sum of parts of the SHA-256 of each row, in hex.
    pub(crate) sum: String,
}

/// What is known of a source before its rows.
#[derive(Clone, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub(crate) struct Summary {
    pub(crate) schema: i64,
    pub(crate) rows: u64,
    /// The last row of the audit and its hash in hex; none before rows had hashes.
    pub(crate) audit_last_id: Option<i64>,
    pub(crate) audit_last: Option<String>,
}

/// Why rows of a backup were not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error("it holds a table, a column or a value that no server writes")]
    Foreign,
    #[error("table `{0}` did not arrive as it was written")]
    Differs(&'static str),
    #[error("its audit is not whole: {0}")]
    Audit(String),
    #[error("the database failed")]
    Database(#[from] Error),
}

impl Source {
    /// Opens the database at `path`.
    pub(crate) async fn open(path: &Path) -> Result<Self, OpenError> {
        let pool = database::open_reader(Kind::Sqlite, &database::url_of(path, "ro")).await?;
        Ok(Self {
            kind: Kind::Sqlite,
            pool,
        })
    }

    /// Opens the PostgreSQL database that `url` names.
    pub(crate) async fn open_postgres(url: &str) -> Result<Self, OpenError> {
        let pool = database::open_reader(Kind::Postgres, url).await?;
        Ok(Self {
            kind: Kind::Postgres,
            pool,
        })
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    /// Hands over all that one snapshot holds.
    pub(crate) async fn read(
        &self,
        mut take: impl FnMut(Part) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let begun = self.pool.begin_with(self.kind.begin_read()).await;
        let mut snapshot = begun.map_err(Error::from)?;
        if let Some(table) = self.kind.unknown_table(&mut snapshot).await? {
            anyhow::bail!("table `{table}` is not known, so it would be left behind");
        }
        let tables = self.tables(&mut snapshot).await?;
        take(Part::Summary(summary(&mut snapshot, &tables).await?))?;
        for (table, ids) in tables {
            let last_given = match ids {
                Some(column) => Some(self.kind.last_given(&mut snapshot, table, column).await?),
                None => None,
            };
            take(Part::Table {
                name: table,
                last_given,
            })?;
            let mut total = Sum::default();
            let statement = format!("SELECT * FROM \"{table}\"");
            let mut rows = sqlx::query(AssertSqlSafe(statement)).fetch(&mut *snapshot);
            while let Some(row) = rows.try_next().await.map_err(Error::from)? {
                let fields = Fields::read(&row)?;
                total.add(&fields);
                take(Part::Row(emit(&fields)))?;
            }
            drop(rows);
            take(Part::End(total.into()))?;
        }
        Ok(())
    }

    /// Returns the tables that the schema of the source has, in the order of [`TABLES`].
    async fn tables(
        &self,
        snapshot: &mut Connection,
    ) -> Result<Vec<(&'static str, Option<&'static str>)>, Error> {
        let present = self.kind.table_names(snapshot).await?;
        let known = TABLES.into_iter();
        Ok(known
            .filter(|(table, _)| present.iter().any(|name| name == table))
            .collect())
    }
}

async fn summary(
    snapshot: &mut Connection,
    tables: &[(&'static str, Option<&'static str>)],
) -> Result<Summary, Error> {
    let mut rows = 0;
    for (table, _) in tables {
        let statement = format!("SELECT COUNT(*) AS rows FROM \"{table}\"");
        let row = sqlx::query(AssertSqlSafe(statement));
        rows += number::<u64>(&row.fetch_one(&mut *snapshot).await?, "rows")?;
    }
    let schema = sqlx::query("SELECT MAX(version) AS version FROM _sqlx_migrations");
    let schema = number(&schema.fetch_one(&mut *snapshot).await?, "version")?;
    let (mut audit_last_id, mut audit_last) = (None, None);
    if schema >= AUDIT_CHAIN_SCHEMA {
        let row = sqlx::query("SELECT audit_last_id, audit_last FROM installation WHERE id = 1");
        if let Some(row) = row.fetch_optional(snapshot).await? {
            audit_last_id = row.try_get("audit_last_id")?;
            let hash: Option<Vec<u8>> = row.try_get("audit_last")?;
            audit_last = hash.map(|hash| HEXLOWER.encode(&hash));
        }
    }
    Ok(Summary {
        schema,
        rows,
        audit_last_id,
        audit_last,
    })
}

/// The first schema whose audit rows have hashes.
const AUDIT_CHAIN_SCHEMA: i64 = 9;

/// A store that is being filled, in one transaction.
pub(crate) struct Sink {
    store: Store,
    transaction: sqlx::Transaction<'static, sqlx::Any>,
    gateways: Vec<(i64, i64)>,
    /// The table whose rows come.
    table: Option<&'static str>,
    /// What the tables that have come hold, as they were written.
    sums: Vec<(&'static str, TableSum)>,
}

impl Sink {
    /// Makes a database at `path` with a schema that a backup has.
    pub(crate) async fn create(path: &Path, schema: i64) -> Result<Self, OpenError> {
        let store = Store::open_at_schema(path, schema).await?;
        let transaction = store.begin().await.map_err(OpenError::Begin)?;
        Ok(Self {
            store,
            transaction,
            gateways: Vec::new(),
            table: None,
            sums: Vec::new(),
        })
    }

    /// Begins a table.
    pub(crate) async fn table(
        &mut self,
        name: &str,
        last_given: Option<i64>,
    ) -> Result<(), RestoreError> {
        let known = TABLES.into_iter().find(|(table, _)| *table == name);
        let (table, ids) = known.ok_or(RestoreError::Foreign)?;
        if self.table.is_some() || self.sums.iter().any(|(before, _)| *before == table) {
            return Err(RestoreError::Foreign);
        }
        self.table = Some(table);
        if let (Some(column), Some(last)) = (ids, last_given) {
            let kind = self.store.kind;
            kind.set_last_given(&mut self.transaction, table, column, last)
                .await?;
        }
        Ok(())
    }

    /// Takes a row of the table.
    pub(crate) async fn row(&mut self, row: Map<String, Json>) -> Result<(), RestoreError> {
        let table = self.table.ok_or(RestoreError::Foreign)?;
        let mut fields = parse(row).ok_or(RestoreError::Foreign)?;
        if table == "org" {
            // A gateway is a node, which comes later.
            let (gateways, rest) = fields
                .0
                .into_iter()
                .partition(|(name, _)| name == "gateway");
            fields = Fields(rest);
            let gateways: Vec<(String, Value)> = gateways;
            let id = fields.0.iter().find(|(name, _)| name == "id");
            if let (Some((_, Value::Integer(id))), [(_, Value::Integer(gateway))]) =
                (id, gateways.as_slice())
            {
                self.gateways.push((*id, *gateway));
            }
        }
        let inserted = fields.insert(&mut self.transaction, table).await;
        Ok(inserted.map_err(Error::from)?)
    }

    /// Ends the table, which held so much when it was written.
    pub(crate) fn end(&mut self, sum: TableSum) -> Result<(), RestoreError> {
        let table = self.table.take().ok_or(RestoreError::Foreign)?;
        self.sums.push((table, sum));
        Ok(())
    }

    /// Makes durable what came, if every table holds what it held when it was written.
    pub(crate) async fn finish(mut self) -> Result<(), RestoreError> {
        for (org, gateway) in std::mem::take(&mut self.gateways) {
            set_gateway(&mut self.transaction, org, gateway).await?;
        }
        for (table, _) in TABLES {
            let arrived = sum(&mut self.transaction, table).await;
            let written = self.sums.iter().find(|(known, _)| *known == table);
            let arrived = match (arrived, written) {
                // A table that came after the schema of the backup.
                (Err(_), None) => continue,
                (arrived, _) => TableSum::from(arrived?),
            };
            if written.is_none_or(|(_, written)| *written != arrived) {
                return Err(RestoreError::Differs(table));
            }
        }
        self.transaction.commit().await.map_err(Error::from)?;
        self.store.close().await;
        Ok(())
    }
}

impl Store {
    /// Follows the whole audit, and compares its end with what a backup said.
    pub(crate) async fn verify_audit(&self, summary: &Summary) -> Result<(), RestoreError> {
        let mut snapshot = self.read().await?;
        let chain = audit::chain(&mut snapshot).await?;
        let said = (summary.audit_last_id, summary.audit_last.as_deref());
        if let (Some(id), Some(hash)) = said
            && (id, hash) != (chain.last_id, HEXLOWER.encode(&chain.last.0).as_str())
        {
            return Err(RestoreError::Audit("its last row is another".to_owned()));
        }
        let mut verifier = AuditVerifier::new(&chain);
        let fault = |fault: crate::AuditFault| RestoreError::Audit(fault.to_string());
        let mut after = chain.past_id;
        loop {
            let filter = audit::Filter {
                org: None,
                actor: None,
                action: None,
                since: None,
                after,
                limit: AUDIT_ROWS_MAX,
            };
            let page = audit::rows(&mut snapshot, &filter).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            for row in &page {
                verifier.follow(row).map_err(fault)?;
            }
        }
        verifier.finish(&chain).map_err(fault)
    }
}

/// Leaves out the ids, serials and versions of maps that may have been given since a backup.
pub(crate) async fn skip_given(store: &Store, connection: &mut Connection) -> Result<(), Error> {
    for (table, ids) in TABLES {
        // The audit numbers its rows itself, without gaps.
        let Some(column) = ids.filter(|_| table != "audit") else {
            continue;
        };
        let last = store.kind.last_given(connection, table, column).await?;
        let next = last + GIVEN_SINCE_MAX;
        store
            .kind
            .set_last_given(connection, table, column, next)
            .await?;
    }
    sqlx::query("UPDATE installation SET serial = serial + $1 WHERE id = 1")
        .bind(GIVEN_SINCE_MAX)
        .execute(connection)
        .await?;
    Ok(())
}

impl From<Sum> for TableSum {
    fn from(sum: Sum) -> Self {
        Self {
            rows: sum.rows,
            sum: HEXLOWER.encode(&sum.hash.to_be_bytes()),
        }
    }
}

/// Writes a row: integers as numbers, bytes as an object, without nulls.
fn emit(fields: &Fields) -> Map<String, Json> {
    let fields = fields.0.iter().map(|(column, value)| {
        let value = match value {
            Value::Integer(value) => Json::from(*value),
            Value::Text(value) => Json::from(value.as_str()),
            Value::Blob(value) => serde_json::json!({ "base64": BASE64.encode(value) }),
        };
        (column.clone(), value)
    });
    fields.collect()
}

/// Reads a row; `None` if it is none. What stands in it reaches a statement, so a name is one.
fn parse(row: Map<String, Json>) -> Option<Fields> {
    let is_name = |name: &str| {
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
        !name.is_empty() && name.bytes().all(letter)
    };
    let mut fields = Vec::new();
    for (column, value) in row {
        let value = match value {
            Json::Number(number) => Value::Integer(number.as_i64()?),
            Json::String(text) => Value::Text(text),
            Json::Object(object) => {
                let text = object.get("base64")?.as_str()?;
                Value::Blob(BASE64.decode(text.as_bytes()).ok()?)
            }
            Json::Null | Json::Bool(_) | Json::Array(_) => return None,
        };
        if !is_name(&column) {
            return None;
        }
        fields.push((column, value));
    }
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    (!fields.is_empty()).then_some(Fields(fields))
}
