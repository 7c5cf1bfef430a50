//! Whether a PostgreSQL answers. It is asked all the time, so that nobody waits for one that has
//! stopped: a database that ended refuses connections, but one that stands still, or whose machine
//! does, says nothing for as long as one listens.

use std::{pin::pin, time::Duration};

use sqlx::{Any, AnyConnection, Connection as _, Transaction, any::AnyConnectOptions};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{sleep, timeout},
};

use super::{Error, Store};

/// How long a database may be silent before requests are refused. With [`INTERVAL`] that is less
/// than two seconds, and far more than a loaded database takes for nothing.
pub(crate) const SILENCE_MAX: Duration = Duration::from_millis(1_500);

/// The pause between an answer and the next question.
const INTERVAL: Duration = Duration::from_millis(250);

/// How long an answer is waited for before another connection is tried. One that stood still
/// answers when it goes on; it should not find hundreds of connections then.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for as long as it lives.
pub(super) struct Pulse {
    answers: watch::Receiver<bool>,
    asking: AbortHandle,
}

impl Pulse {
    /// Begins to ask by a connection of its own.
    pub(super) fn begin(options: AnyConnectOptions) -> Self {
        let (answers, receiver) = watch::channel(true);
        let asking = tokio::spawn(async move {
            let mut connection = None;
            loop {
                connection = ask(&options, connection, &answers).await;
                sleep(INTERVAL).await;
            }
        });
        Self {
            answers: receiver,
            asking: asking.abort_handle(),
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

impl Store {
    /// Tells whether the database has fallen silent.
    pub(crate) fn is_silent(&self) -> bool {
        self.pulse
            .as_ref()
            .is_some_and(|pulse| !*pulse.answers.borrow())
    }

    /// Waits until the database answers.
    pub(crate) async fn answers(&self) {
        if let Some(pulse) = &self.pulse {
            let mut answers = pulse.answers.clone();
            // An error says that the store is closed, which whoever goes on is told.
            drop(answers.wait_for(|answers| *answers).await);
        }
    }

    /// Waits until the database has fallen silent. A file never does.
    async fn silent(&self) {
        if let Some(pulse) = &self.pulse {
            let mut answers = pulse.answers.clone();
            if answers.wait_for(|answers| !answers).await.is_ok() {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// Does `work` for as long as the database answers; what it has begun is undone then.
    pub(crate) async fn while_it_answers<T, E: From<Error>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.silent() => Err(Error::Silent.into()),
        }
    }

    /// Begins a transaction, unless the database is silent or falls so meanwhile.
    pub(super) async fn begin_while_it_answers(
        &self,
        begin: impl Future<Output = sqlx::Result<Transaction<'static, Any>>>,
    ) -> Result<Transaction<'static, Any>, Error> {
        if self.is_silent() {
            return Err(Error::Silent);
        }
        self.while_it_answers(async { Ok(begin.await?) }).await
    }
}

/// Asks once, says whether there was an answer, and returns the connection if it is good.
async fn ask(
    options: &AnyConnectOptions,
    connection: Option<AnyConnection>,
    answers: &watch::Sender<bool>,
) -> Option<AnyConnection> {
    let mut asked = pin!(timeout(PATIENCE, answer(options, connection)));
    let answered = match timeout(SILENCE_MAX, &mut asked).await {
        Ok(answered) => answered,
        Err(_) => {
            tell(answers, false);
            asked.await
        }
    };
    match answered {
        Ok(Ok(connection)) => {
            tell(answers, true);
            Some(connection)
        }
        Ok(Err(error)) => {
            // A refusal of another kind, such as of one connection more, is an answer.
            tell(answers, !matches!(Error::from(error), Error::Away(_)));
            None
        }
        Err(_) => None,
    }
}

/// Waits for an answer; on a new connection if there is none or it broke.
async fn answer(
    options: &AnyConnectOptions,
    connection: Option<AnyConnection>,
) -> sqlx::Result<AnyConnection> {
    if let Some(mut connection) = connection
        && connection.ping().await.is_ok()
    {
        return Ok(connection);
    }
    AnyConnection::connect_with(options).await
}

fn tell(answers: &watch::Sender<bool>, answered: bool) {
    let changed = answers.send_if_modified(|known| std::mem::replace(known, answered) != answered);
    match (changed, answered) {
        (true, true) => tracing::info!("the database answers again"),
        (true, false) => tracing::error!("the database does not answer; changes are refused"),
        (false, _) => {}
    }
}
