//! Key agreements of handshake messages, computed away from the device: they take a hundred times
//! as long as everything else about a message.

use std::{net::SocketAddr, sync::Arc};

use crate::{
    crypto::{Secret, scrub_stack},
    discard::Discard,
    key::{PresharedKey, PublicKey},
    message::{INITIATION, RESPONSE},
    noise::{Claim, Identity, Pending, TransportKeys},
    peer::PeerId,
    tai64n::Tai64n,
};

/// A handshake message, in the stages that its agreements are computed in.
///
/// After [`Agreement::compute`], on whatever thread, it goes back by `Device::handle_agreement`.
pub struct Agreement {
    /// The agreement is void when the device has another key by then.
    pub(crate) identity: Arc<Identity>,
    pub(crate) source: SocketAddr,
    pub(crate) stage: Stage,
}

pub(crate) enum Stage {
    /// Who sent this initiation? One agreement.
    Claim {
        message: Box<[u8; INITIATION]>,
        /// In a box, as all that holds keys here: a move would leave a copy behind.
        claim: Option<Box<Claim>>,
    },
    /// Did its claimed initiator send it, and what is the response? Two agreements and a key, and
    /// a third agreement with a peer that is new.
    Answer(Box<Answer>),
    /// Does this response hold? Two agreements.
    Complete(Box<Complete>),
}

pub(crate) struct Answer {
    pub(crate) message: Box<[u8; INITIATION]>,
    pub(crate) claim: Box<Claim>,
    pub(crate) peer: PeerId,
    pub(crate) key: PublicKey,
    pub(crate) preshared: Option<PresharedKey>,
    pub(crate) static_static: Option<Secret>,
    /// The newest timestamp of this initiator so far.
    pub(crate) newest: Tai64n,
    pub(crate) ephemeral: Secret,
    pub(crate) answered: Result<Answered, Discard>,
}

/// A response without its sender index and its macs, and what belongs to it.
pub(crate) struct Answered {
    pub(crate) response: [u8; RESPONSE],
    pub(crate) keys: TransportKeys,
    pub(crate) timestamp: Tai64n,
    /// The initiator's index.
    pub(crate) receiver: u32,
}

pub(crate) struct Complete {
    pub(crate) message: [u8; RESPONSE],
    pub(crate) pending: Arc<Pending>,
    pub(crate) preshared: Option<PresharedKey>,
    pub(crate) keys: Option<TransportKeys>,
}

impl Agreement {
    /// Computes the agreements of this stage: 50 to 200 µs.
    pub fn compute(&mut self) {
        self.agree();
        scrub_stack();
    }

    /// Not inlined, so that its frame is scrubbed too.
    #[inline(never)]
    fn agree(&mut self) {
        match &mut self.stage {
            Stage::Claim { message, claim } => {
                *claim = Claim::open(&self.identity, message).map(Box::new);
            }
            Stage::Answer(answer) => answer.answered = answer.compute(&self.identity),
            Stage::Complete(complete) => {
                let preshared = complete.preshared.as_ref();
                let pending = &complete.pending;
                complete.keys = pending.complete(&self.identity, preshared, &complete.message);
            }
        }
    }
}

impl Answer {
    fn compute(&mut self, identity: &Identity) -> Result<Answered, Discard> {
        if self.static_static.is_none() {
            self.static_static = identity.pair.agree(&self.key.0);
        }
        let static_static = self.static_static.as_ref().ok_or(Discard::Handshake)?;
        let proven = self.claim.prove(static_static, &self.message);
        let proven = proven.ok_or(Discard::Handshake)?;
        // A replayed initiation costs no further agreement.
        if proven.timestamp <= self.newest {
            return Err(Discard::ReplayedInitiation);
        }
        let (timestamp, receiver) = (proven.timestamp, proven.sender);
        let answer = proven.respond(&self.key, self.preshared.as_ref(), &self.ephemeral, 0);
        let (response, keys) = answer.ok_or(Discard::Handshake)?;
        Ok(Answered {
            response,
            keys,
            timestamp,
            receiver,
        })
    }
}
