//! Copies all rows of one store into another, empty one, and verifies that they arrived.

use aws_lc_rs::digest;
use futures_util::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Column as _, Row as _, TypeInfo as _, ValueRef as _, any::AnyRow};

use super::{Connection, Error, Store, database::Kind, number};

/// Why nothing was copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("the source holds no installation")]
    NoSource,
    #[error("the target holds an installation already; name an empty one")]
    NotEmpty,
    #[error("table `{0}` is not known, so it would be left behind")]
    UnknownTable(String),
    #[error("table `{0}` did not arrive as it left; nothing was written")]
    Differs(&'static str),
    #[error("the source failed")]
    Source(#[source] Error),
    #[error("the target failed")]
    Target(#[source] Error),
}

/// What a table holds, whatever the order of its rows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Sum {
    pub(super) rows: u64,
    /// The sum of parts of the SHA-256 of each row.
    pub(super) hash: u128,
}

/// A value of any column; a null is left out.
pub(super) enum Value {
    Integer(i64),
    Text(String),
    Blob(Vec<u8>),
}

/// A row without its nulls, by the names of its columns.
pub(super) struct Fields(pub(super) Vec<(String, Value)>);

/// Every table, after those that it refers to, and the column whose values are never given again.
pub(super) const TABLES: [(&str, Option<&str>); 23] = [
    ("installation", None),
    ("org", Some("id")),
    ("user", Some("id")),
    ("node", Some("id")),
    ("token", Some("id")),
    ("service", Some("id")),
    ("audit", Some("id")),
    ("ssh_key", Some("id")),
    ("ssh_authority", None),
    ("ssh_certificate", Some("serial")),
    ("ssh_cut", None),
    ("ssh_session", Some("id")),
    ("ssh_session_piece", None),
    ("rule", Some("id")),
    ("node_tag", None),
    ("site", Some("id")),
    ("peer", None),
    ("oidc_provider", None),
    ("oidc_role", None),
    ("oidc_identity", None),
    ("user_group", None),
    ("oidc_session", None),
    ("browser", Some("id")),
];

impl Store {
    /// Copies everything into `target` in one transaction there, which is committed only once all
    /// tables hold what they hold here. Returns how many rows these are.
    pub(crate) async fn copy_to(&self, target: &Self) -> Result<u64, CopyError> {
        self.chain_audit().await.map_err(CopyError::Source)?;
        let mut source = self.read().await.map_err(CopyError::Source)?;
        let mut sink = target.begin().await.map_err(CopyError::Target)?;
        let unknown = self.kind.unknown_table(&mut source).await;
        if let Some(table) = unknown.map_err(CopyError::Source)? {
            return Err(CopyError::UnknownTable(table));
        }
        for (table, _) in TABLES {
            if sum(&mut sink, table).await.map_err(CopyError::Target)?.rows > 0 {
                return Err(CopyError::NotEmpty);
            }
        }
        let mut copied = 0;
        for (table, ids) in TABLES {
            let rows = copy_table(&mut source, &mut sink, table).await?;
            if table == "installation" && rows == 0 {
                return Err(CopyError::NoSource);
            }
            copied += rows;
            if let Some(column) = ids {
                let last = self.kind.last_given(&mut source, table, column).await;
                let last = last.map_err(CopyError::Source)?;
                let set = target
                    .kind
                    .set_last_given(&mut sink, table, column, last)
                    .await;
                set.map_err(CopyError::Target)?;
            }
        }
        copy_gateways(&mut source, &mut sink).await?;
        for (table, _) in TABLES {
            let left = sum(&mut source, table).await.map_err(CopyError::Source)?;
            let arrived = sum(&mut sink, table).await.map_err(CopyError::Target)?;
            if left != arrived {
                return Err(CopyError::Differs(table));
            }
        }
        let committed = sink.commit().await;
        committed.map_err(|error| CopyError::Target(error.into()))?;
        Ok(copied)
    }
}

impl Kind {
    /// Returns a table of the source that [`TABLES`] lacks.
    pub(super) async fn unknown_table(
        self,
        source: &mut Connection,
    ) -> Result<Option<String>, Error> {
        let names = self.table_names(source).await?.into_iter();
        Ok(names
            .filter(|name| name != "_sqlx_migrations")
            .find(|name| !TABLES.iter().any(|(table, _)| table == name)))
    }

    /// Returns the names of all tables.
    pub(super) async fn table_names(self, source: &mut Connection) -> Result<Vec<String>, Error> {
        let names = match self {
            Self::Sqlite => {
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            }
            Self::Postgres => {
                "SELECT CAST(table_name AS TEXT) AS name FROM information_schema.tables
                 WHERE table_schema = current_schema()"
            }
        };
        let rows = sqlx::query(names).fetch_all(source).await?;
        let names = rows.iter().map(|row| row.try_get("name"));
        Ok(names.collect::<sqlx::Result<_>>()?)
    }

    /// Returns the greatest id that a table ever gave.
    pub(super) async fn last_given(
        self,
        connection: &mut Connection,
        table: &str,
        column: &str,
    ) -> Result<i64, Error> {
        let (statement, name) = match self {
            Self::Sqlite => (
                "SELECT COALESCE(MAX(seq), 0) AS last FROM sqlite_sequence WHERE name = $1",
                table.to_owned(),
            ),
            Self::Postgres => (
                "SELECT COALESCE(MAX(last_value), 0) AS last FROM pg_sequences
                 WHERE schemaname = current_schema() AND sequencename = $1",
                format!("{table}_{column}_seq"),
            ),
        };
        let row = sqlx::query(statement)
            .bind(name)
            .fetch_one(&mut *connection)
            .await?;
        let given: i64 = number(&row, "last")?;
        // The audit numbers its rows itself.
        let statement = format!("SELECT COALESCE(MAX({column}), 0) AS last FROM \"{table}\"");
        let row = sqlx::query(AssertSqlSafe(statement))
            .fetch_one(connection)
            .await?;
        Ok(given.max(number(&row, "last")?))
    }

    /// Lets the next id of a table be greater than `last`.
    pub(super) async fn set_last_given(
        self,
        connection: &mut Connection,
        table: &str,
        column: &str,
        last: i64,
    ) -> Result<(), Error> {
        if last == 0 {
            return Ok(());
        }
        match self {
            Self::Sqlite => {
                let old = sqlx::query("DELETE FROM sqlite_sequence WHERE name = $1").bind(table);
                old.execute(&mut *connection).await?;
                sqlx::query("INSERT INTO sqlite_sequence (name, seq) VALUES ($1, $2)")
                    .bind(table)
                    .bind(last)
                    .execute(connection)
                    .await?;
            }
            Self::Postgres => {
                sqlx::query("SELECT setval(pg_get_serial_sequence($1, $2), $3)")
                    .bind(format!("\"{table}\""))
                    .bind(column)
                    .bind(last)
                    .execute(connection)
                    .await?;
            }
        }
        Ok(())
    }
}

/// Copies the rows of a table; the gateways of organisations are nodes, which come later.
async fn copy_table(
    source: &mut Connection,
    sink: &mut Connection,
    table: &str,
) -> Result<u64, CopyError> {
    let mut count = 0;
    let statement = format!("SELECT * FROM \"{table}\"");
    let mut rows = sqlx::query(AssertSqlSafe(statement)).fetch(source);
    let failed = |error: sqlx::Error| CopyError::Source(error.into());
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        let mut fields = Fields::read(&row).map_err(CopyError::Source)?;
        if table == "org" {
            fields.0.retain(|(column, _)| column != "gateway");
        }
        let inserted = fields.insert(sink, table).await;
        inserted.map_err(|error| CopyError::Target(error.into()))?;
        count += 1;
    }
    Ok(count)
}

async fn copy_gateways(source: &mut Connection, sink: &mut Connection) -> Result<(), CopyError> {
    let statement = "SELECT id, gateway FROM org WHERE gateway IS NOT NULL";
    let failed = |error: sqlx::Error| CopyError::Source(error.into());
    for row in sqlx::query(statement)
        .fetch_all(source)
        .await
        .map_err(failed)?
    {
        let (id, gateway): (i64, i64) = (
            row.try_get("id").map_err(failed)?,
            row.try_get("gateway").map_err(failed)?,
        );
        let set = set_gateway(sink, id, gateway).await;
        set.map_err(CopyError::Target)?;
    }
    Ok(())
}

/// Gives an organisation its gateway once that is there.
pub(super) async fn set_gateway(
    sink: &mut Connection,
    org: i64,
    gateway: i64,
) -> Result<(), Error> {
    let set = sqlx::query("UPDATE org SET gateway = $1 WHERE id = $2");
    set.bind(gateway).bind(org).execute(sink).await?;
    Ok(())
}

/// Sums up what a table holds.
pub(super) async fn sum(connection: &mut Connection, table: &str) -> Result<Sum, Error> {
    let statement = format!("SELECT * FROM \"{table}\"");
    let mut rows = sqlx::query(AssertSqlSafe(statement)).fetch(connection);
    let mut sum = Sum::default();
    while let Some(row) = rows.try_next().await? {
        sum.add(&Fields::read(&row)?);
    }
    Ok(sum)
}

impl Sum {
    pub(super) fn add(&mut self, row: &Fields) {
        self.rows += 1;
        self.hash = self.hash.wrapping_add(row.hash());
    }
}

impl Fields {
    pub(super) fn read(row: &AnyRow) -> Result<Self, Error> {
        let mut fields = Vec::new();
        for column in row.columns() {
            let (name, index) = (column.name(), column.ordinal());
            let value = row.try_get_raw(index)?;
            if value.is_null() {
                continue;
            }
            let kind = value.type_info().name().to_owned();
            let value = match kind.as_str() {
                "BIGINT" => Value::Integer(row.try_get(index)?),
                "TEXT" => Value::Text(row.try_get(index)?),
                "BLOB" => Value::Blob(row.try_get(index)?),
                _ => return Err(Error::Corrupt("a column of another type")),
            };
            fields.push((name.to_owned(), value));
        }
        // Columns that were added stand last in one database and elsewhere in the other.
        fields.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(Self(fields))
    }

    pub(super) async fn insert(self, sink: &mut Connection, table: &str) -> sqlx::Result<()> {
        let quoted = self.0.iter().map(|(column, _)| format!("\"{column}\""));
        let columns = quoted.collect::<Vec<_>>().join(", ");
        let places = (1..=self.0.len()).map(|place| format!("${place}"));
        let places = places.collect::<Vec<_>>().join(", ");
        let statement = format!("INSERT INTO \"{table}\" ({columns}) VALUES ({places})");
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for (_, value) in self.0 {
            query = match value {
                Value::Integer(value) => query.bind(value),
                Value::Text(value) => query.bind(value),
                Value::Blob(value) => query.bind(value),
            };
        }
        query.execute(sink).await.map(drop)
    }

    fn hash(&self) -> u128 {
        let mut context = digest::Context::new(&digest::SHA256);
        let mut part = |kind: u8, bytes: &[u8]| {
            context.update(&[kind]);
            let length = u64::try_from(bytes.len()).expect("a length has at most 64 bits");
            context.update(&length.to_be_bytes());
            context.update(bytes);
        };
        for (column, value) in &self.0 {
            part(0, column.as_bytes());
            match value {
                Value::Integer(value) => part(1, &value.to_be_bytes()),
                Value::Text(value) => part(2, value.as_bytes()),
                Value::Blob(value) => part(3, value),
            }
        }
        let hash = context.finish();
        let (first, _) = hash
            .as_ref()
            .split_first_chunk()
            .expect("SHA-256 has 32 bytes");
        u128::from_be_bytes(*first)
    }
}
