//! Changes of state, for whoever follows them.

use model::event::Event;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::Tunnel;

/// The events of a tunnel from now on.
///
/// It never holds the tunnel up: what is not taken in time is missed, and that is told.
pub struct Following(Receiver<Event>);

/// Events that wait for a follower; further ones displace the oldest.
pub(crate) const FOLLOWED_MAX: usize = 1_024;

impl Tunnel {
    /// Follows the events of the tunnel.
    pub fn follow(&self) -> Following {
        Following(self.turn().followers.subscribe())
    }
}

impl Following {
    /// Waits for the next event; `None` when the tunnel has ended.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(count)) => Some(Event::Missed { count }),
            Err(RecvError::Closed) => None,
        }
    }
}
