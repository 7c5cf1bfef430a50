//! What russh finds wrong with a certificate before it asks us: it tells its log and nobody else.
//!
//! It rejects a certificate outside its validity period, or with a wrong signature, without a call
//! of our handler, and offers no other way to learn why. Its log is written on the task that serves
//! the connection, so the task says whose certificate it was.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

use log::{Level, LevelFilter, Log, Metadata, Record};
use model::ssh::Reason;
use tokio::task::{self, Id};

/// Where russh decides.
const TARGET: &str = "russh::server::encrypted";

/// What russh's log says, and why that refuses. Should it change its words, the audit says
/// `no_usable_certificate` again, and the tests of refusals fail.
const WORDS: [(&str, Reason); 2] = [
    (
        "Certificate is expired or not yet valid",
        Reason::ExpiredOrNotYetValid,
    ),
    ("Certificate signature is invalid", Reason::WrongSignature),
];

/// One for each connection that has come as far as authentication; its verdict goes with it.
static VERDICTS: Mutex<Option<HashMap<Id, Option<Reason>>>> = Mutex::new(None);

/// The verdict on the certificates of one connection.
pub(super) struct Verdict(Option<Id>);

impl Verdict {
    /// Hears what russh says on the present task from now on.
    pub(super) fn listen() -> Self {
        static LISTENING: Once = Once::new();
        LISTENING.call_once(|| {
            // Another logger would hear it instead; then there is no verdict.
            if log::set_logger(&Listener).is_ok() {
                log::set_max_level(LevelFilter::Warn);
            }
        });
        let task = task::try_id();
        if let Some(task) = task {
            verdicts().get_or_insert_default().insert(task, None);
        }
        Self(task)
    }

    /// Returns the last one.
    pub(super) fn reason(&self) -> Option<Reason> {
        *verdicts().as_ref()?.get(&self.0?)?
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        if let (Some(task), Some(verdicts)) = (self.0, verdicts().as_mut()) {
            verdicts.remove(&task);
        }
    }
}

fn verdicts() -> MutexGuard<'static, Option<HashMap<Id, Option<Reason>>>> {
    VERDICTS.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Listener;

impl Log for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() == Level::Warn && metadata.target() == TARGET
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let said = record.args().as_str().unwrap_or_default();
        let known = WORDS.iter().find(|(words, _)| *words == said);
        if let (Some((_, reason)), Some(task)) = (known, task::try_id())
            && let Some(verdict) = verdicts().as_mut().and_then(|all| all.get_mut(&task))
        {
            *verdict = Some(*reason);
            tracing::warn!("ssh: refused: {}", reason.as_str());
        }
    }

    fn flush(&self) {}
}
