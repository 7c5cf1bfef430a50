//! Whether the server answers: the node says it in its status and works by its last map.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::watch;

use crate::agent::protocol::Control;

/// How it stands with the server. Clones share it.
#[derive(Clone)]
pub(crate) struct Contact {
    state: Arc<Mutex<State>>,
    /// Since when the server was silent that answers again.
    returned: watch::Sender<Option<Instant>>,
}

enum State {
    /// The first request has no answer yet.
    Asking,
    /// The last request was answered, or the next one waits for a change.
    Reached,
    /// The last request failed.
    Away {
        since: Instant,
        error: String,
        /// Since when not even a refusal came back, if that was so at all.
        silent: Option<Instant>,
    },
}

impl Contact {
    /// Begins without knowing.
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::new(Mutex::new(State::Asking)),
            returned: watch::Sender::new(None),
        }
    }

    /// Tells whenever the server answers again after silence, since when.
    pub(super) fn returned(&self) -> watch::Receiver<Option<Instant>> {
        self.returned.subscribe()
    }

    /// Takes that the server has answered.
    pub(super) fn reached(&self) {
        let mut state = self.lock();
        if let State::Away { silent, .. } = *state {
            tracing::info!("control plane: reached again");
            if silent.is_some() {
                self.returned.send_replace(silent);
            }
        }
        *state = State::Reached;
    }

    /// Takes that the server refused to serve, or was not even reached; only the first failure of
    /// a row is worth a warning.
    pub(super) fn failed(&self, now: Instant, error: &anyhow::Error, is_silent: bool) {
        let mut state = self.lock();
        let error = format!("{error:#}");
        let (since, silent) = match &*state {
            State::Away { since, silent, .. } => {
                tracing::debug!(error, "control plane");
                (*since, *silent)
            }
            State::Asking | State::Reached => {
                tracing::warn!("control plane: {error}; working by the last map");
                (now, None)
            }
        };
        let silent = silent.or(is_silent.then_some(now));
        *state = State::Away {
            since,
            error,
            silent,
        };
    }

    /// Shows how it stands at `now` with the server at `url`.
    pub(crate) fn status(&self, now: Instant, url: &str) -> Control {
        let (reached, away) = match &*self.lock() {
            State::Asking => (None, None),
            State::Reached => (Some(true), None),
            State::Away { since, error, .. } => {
                let seconds = now.saturating_duration_since(*since).as_secs();
                (Some(false), Some((seconds, error.clone())))
            }
        };
        let (away_seconds, error) = away.unzip();
        Control {
            url: url.to_owned(),
            reached,
            away_seconds,
            error,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_absence_counts_from_its_first_failure_and_ends_with_an_answer() {
        let begin = os::clock::Clock::start().now();
        let contact = Contact::new();
        let mut returned = contact.returned();
        assert_eq!(contact.status(begin, "u").reached, None);
        for seconds in [0, 5] {
            let now = begin + Duration::from_secs(seconds);
            let error = anyhow::anyhow!("attempt at {seconds}");
            contact.failed(now, &error, seconds == 5);
        }
        let status = contact.status(begin + Duration::from_secs(7), "u");
        assert_eq!(
            (status.reached, status.away_seconds),
            (Some(false), Some(7))
        );
        assert_eq!(status.error.as_deref(), Some("attempt at 5"));
        assert_eq!(returned.has_changed().ok(), Some(false));
        contact.reached();
        let silent = begin + Duration::from_secs(5);
        assert_eq!(*returned.borrow_and_update(), Some(silent));
        contact.failed(silent, &anyhow::anyhow!("refused"), false);
        contact.reached();
        assert_eq!(returned.has_changed().ok(), Some(false));
        let status = contact.status(begin, "u");
        assert_eq!((status.reached, status.error), (Some(true), None));
    }
}
