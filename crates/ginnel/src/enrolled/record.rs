//! Brings the records of sessions to the control plane.

use std::{pin::Pin, sync::Arc};

use model::{
    id::SessionId,
    ssh::{NewSession, Piece, SessionEnd},
};

use crate::{api::Client, ssh::Archive};

/// The control plane as the place of records.
pub(super) struct Records(pub(super) Arc<Client>);

type Answer<T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send>>;

impl Archive for Records {
    fn begin(&self, session: NewSession) -> Answer<SessionId> {
        let client = Arc::clone(&self.0);
        Box::pin(async move {
            let begun = client.begin_session(&session).await;
            begun.map(|begun| begun.id).map_err(said)
        })
    }

    fn append(&self, session: SessionId, piece: Piece) -> Answer<()> {
        let client = Arc::clone(&self.0);
        Box::pin(async move { client.append_piece(session, &piece).await.map_err(said) })
    }

    fn end(&self, session: SessionId, end: SessionEnd) -> Answer<()> {
        let client = Arc::clone(&self.0);
        Box::pin(async move { client.end_session(session, &end).await.map_err(said) })
    }
}

fn said(error: crate::api::Error) -> String {
    format!("{:#}", anyhow::Error::from(error))
}
