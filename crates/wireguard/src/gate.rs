//! What can be told of a datagram without the device: its type, its length and its mac1
//! (whitepaper 5.4.4).

use std::sync::Arc;

use crate::{cookie::MacKeys, discard::Discard, key::PublicKey, message::Message};

/// Refuses on any thread what the device would refuse, for the same reason, at the cost of one
/// hash.
///
/// Whoever passes knew our public key, or sent what has no mac1: a cookie reply or transport data.
/// It stays as it was when `Device::gate` returned it, whatever private key the device has since.
#[derive(Clone, Default)]
pub struct Gate {
    keys: Option<Arc<MacKeys>>,
}

impl Gate {
    pub(crate) fn new(own: Option<&PublicKey>) -> Self {
        let keys = own.map(|key| Arc::new(MacKeys::new(key)));
        Self { keys }
    }

    /// Tells why the device would refuse `datagram`, as far as that can be told here.
    pub fn admit(&self, datagram: &mut [u8]) -> Result<(), Discard> {
        match Message::parse(datagram)? {
            Message::Initiation(message) => self.verify(message),
            Message::Response(message) => self.verify(message),
            Message::CookieReply(_) | Message::Transport { .. } => Ok(()),
        }
    }

    /// Verifies mac1 of an initiation or a response, which says for whom it is.
    pub fn verify(&self, message: &[u8]) -> Result<(), Discard> {
        if self.keys()?.mac1_holds(message) {
            Ok(())
        } else {
            Err(Discard::Mac1)
        }
    }

    pub(crate) fn keys(&self) -> Result<&MacKeys, Discard> {
        self.keys.as_deref().ok_or(Discard::NoPrivateKey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Received,
        tests::{A, B, Pair, base, device},
    };

    #[test]
    fn the_gate_refuses_what_the_device_refuses_and_for_the_same_reason() {
        let mut pair = Pair::new();
        pair.devices[A].initiate(base(), pair.peers[A]);
        let initiation = pair.devices[A].poll_transmit();
        let initiation = initiation.expect("an initiation").datagram;
        let mut check = |change: &dyn Fn(&mut Vec<u8>), expected: Option<Discard>| {
            let mut datagram = initiation.clone();
            change(&mut datagram);
            let at_gate = pair.devices[B].gate().admit(&mut datagram).err();
            assert_eq!(at_gate, expected);
            let source = ([192, 0, 2, 9], 9).into();
            match pair.devices[B].handle_datagram(base(), source, &mut datagram) {
                Received::Discarded(discard) => assert_eq!(Some(discard), expected),
                Received::Handled | Received::Packet { .. } => assert_eq!(expected, None),
            }
        };
        check(&|_| {}, None);
        check(&|message| message[7] ^= 1, Some(Discard::Mac1));
        check(&|message| message.truncate(147), Some(Discard::Length));
        check(&|message| message.clear(), Some(Discard::Length));
        check(&|message| message[1] = 1, Some(Discard::MessageType));
        let mut stranger = device(9);
        stranger.set_private_key(base(), None);
        let without_key = stranger.gate().admit(&mut initiation.clone());
        assert_eq!(without_key, Err(Discard::NoPrivateKey));
    }
}
