//! Notifications of PostgreSQL, by which servers on one database hear of each other's changes.

use sqlx::{
    AnyConnection, Row as _,
    postgres::{PgListener, PgPoolOptions},
};

use super::{
    Error,
    database::{Kind, LEAD_LOCK},
};

/// The channel; a notification says only that one has to look.
const CHANNEL: &str = "ginnel_change";

/// How a listening connection is named in `pg_stat_activity`.
const NAME: &str = "ginnel listener";

/// After so many seconds PostgreSQL takes a server for gone whose machine does not answer: half of
/// it until it asks, then five questions.
const SILENT_SECONDS_MAX: u32 = 20;

/// Tells the other servers, once the change is durable.
pub(super) async fn notify(kind: Kind, connection: &mut AnyConnection) -> Result<(), Error> {
    match kind {
        Kind::Sqlite => Ok(()),
        Kind::Postgres => {
            let notify = sqlx::query("SELECT CAST(pg_notify($1, '') AS TEXT)");
            notify.bind(CHANNEL).execute(connection).await?;
            Ok(())
        }
    }
}

/// A connection that hears of changes, and that leads if it holds the lock for it: both end with
/// it.
pub(crate) struct Listener(PgListener);

impl Listener {
    /// Connects to the PostgreSQL that `url` names and listens from then on.
    pub(crate) async fn connect(url: &str) -> Result<Self, Error> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect(url)
            .await?;
        let mut listener = PgListener::connect_with(&pool).await?;
        // Whoever connects anew has to know it: the lock is lost.
        listener.eager_reconnect(false);
        listener.ignore_pool_close_event(true);
        let (idle, interval) = (SILENT_SECONDS_MAX / 2, SILENT_SECONDS_MAX / 10);
        let settings = format!(
            "SET application_name = '{NAME}'; SET tcp_keepalives_idle = {idle};
             SET tcp_keepalives_interval = {interval}; SET tcp_keepalives_count = 5"
        );
        let set = sqlx::raw_sql(sqlx::AssertSqlSafe(settings));
        set.execute(&mut listener).await?;
        listener.listen(CHANNEL).await?;
        Ok(Self(listener))
    }

    /// Waits for a notification; false when the connection is lost. Cancelling it loses nothing.
    pub(crate) async fn heard(&mut self) -> bool {
        let heard = matches!(self.0.try_recv().await, Ok(Some(_)));
        // One look is enough for all that has come.
        while heard && self.0.next_buffered().is_some() {}
        heard
    }

    /// Takes the lead, unless another server has it.
    pub(crate) async fn lead(&mut self) -> Result<bool, Error> {
        let lock = sqlx::query("SELECT pg_try_advisory_lock($1) AS locked").bind(LEAD_LOCK);
        Ok(lock.fetch_one(&mut self.0).await?.try_get("locked")?)
    }
}
