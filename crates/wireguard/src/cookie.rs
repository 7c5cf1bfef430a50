//! mac1, mac2 and cookie replies (whitepaper 5.4.4 and 5.4.7).

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use zeroize::Zeroizing;

use crate::{
    constants::COOKIE_LIFETIME,
    crypto::{self, COOKIE_NONCE, MAC},
    key::{KEY, PublicKey},
    message::{
        COOKIE_REPLY, COOKIE_REPLY_NONCE, COOKIE_REPLY_SEALED, COOKIE_REPLY_TYPE, RECEIVER, SENDER,
        field, put,
    },
    random::Random,
};

/// What everybody who knows a responder's public key can compute: keys for mac1 and cookies.
pub(crate) struct MacKeys {
    mac1: [u8; KEY],
    cookie: [u8; KEY],
}

/// The responder's side: a secret that turns a source into its cookie.
pub(crate) struct CookieSecret {
    secret: Zeroizing<[u8; KEY]>,
    renewed: Option<Instant>,
}

/// The initiator's side: a cookie that a responder under load gave us.
#[derive(Clone, Copy)]
pub(crate) struct Cookie {
    value: [u8; MAC],
    received: Instant,
}

impl MacKeys {
    pub(crate) fn new(responder: &PublicKey) -> Self {
        Self {
            mac1: crypto::hash(&[LABEL_MAC1, &responder.0]),
            cookie: crypto::hash(&[LABEL_COOKIE, &responder.0]),
        }
    }

    /// Fills mac1 and mac2 at the end of `message` and returns mac1.
    pub(crate) fn sign(
        &self,
        message: &mut [u8],
        cookie: Option<&Cookie>,
        now: Instant,
    ) -> [u8; MAC] {
        let mac1_at = message.len() - 2 * MAC;
        let mac2_at = message.len() - MAC;
        let mac1 = crypto::mac(&self.mac1, &[&message[..mac1_at]]);
        put(message, mac1_at, &mac1);
        if let Some(cookie) = cookie.filter(|cookie| cookie.is_fresh(now)) {
            let mac2 = crypto::mac(&cookie.value, &[&message[..mac2_at]]);
            put(message, mac2_at, &mac2);
        }
        mac1
    }

    /// Tells whether the sender of a handshake message knew the responder's public key.
    pub(crate) fn mac1_holds(&self, message: &[u8]) -> bool {
        let mac1_at = message.len() - 2 * MAC;
        let mac1 = crypto::mac(&self.mac1, &[&message[..mac1_at]]);
        crypto::equal(&mac1, &message[mac1_at..mac1_at + MAC])
    }

    /// Opens a cookie reply to the message that carried `mac1`.
    pub(crate) fn open_reply(
        &self,
        message: &[u8; COOKIE_REPLY],
        mac1: &[u8; MAC],
        now: Instant,
    ) -> Option<Cookie> {
        let nonce = field(message, COOKIE_REPLY_NONCE);
        let sealed = &message[COOKIE_REPLY_SEALED..];
        let value = crypto::open_cookie(&self.cookie, nonce, mac1, sealed)?;
        Some(Cookie {
            value: value.try_into().ok()?,
            received: now,
        })
    }
}

impl CookieSecret {
    pub(crate) fn new() -> Self {
        Self {
            secret: Zeroizing::default(),
            renewed: None,
        }
    }

    /// Tells whether mac2 of a handshake message was made with the cookie of `source`.
    pub(crate) fn mac2_holds(
        &mut self,
        now: Instant,
        random: &mut dyn Random,
        source: SocketAddr,
        message: &[u8],
    ) -> bool {
        let mac2_at = message.len() - MAC;
        let cookie = self.cookie(now, random, source);
        let mac2 = crypto::mac(&cookie, &[&message[..mac2_at]]);
        crypto::equal(&mac2, &message[mac2_at..])
    }

    /// Writes the cookie reply to a handshake message of `source`.
    pub(crate) fn reply(
        &mut self,
        now: Instant,
        random: &mut dyn Random,
        source: SocketAddr,
        message: &[u8],
        keys: &MacKeys,
    ) -> [u8; COOKIE_REPLY] {
        let cookie = self.cookie(now, random, source);
        let mut nonce = [0; COOKIE_NONCE];
        random.fill(&mut nonce);
        let mac1: &[u8; MAC] = field(message, message.len() - 2 * MAC);
        let sealed = crypto::seal_cookie(&keys.cookie, &nonce, mac1, &cookie);
        let mut reply = [0; COOKIE_REPLY];
        put(&mut reply, 0, &COOKIE_REPLY_TYPE);
        put(&mut reply, RECEIVER, field::<4>(message, SENDER));
        put(&mut reply, COOKIE_REPLY_NONCE, &nonce);
        put(&mut reply, COOKIE_REPLY_SEALED, &sealed);
        reply
    }

    /// Returns the cookie of `source`: address and port, so that neighbours behind one address
    /// cannot use each other's.
    fn cookie(&mut self, now: Instant, random: &mut dyn Random, source: SocketAddr) -> [u8; MAC] {
        let fresh = |at: Instant| now.saturating_duration_since(at) < COOKIE_LIFETIME;
        if !self.renewed.is_some_and(fresh) {
            random.fill(self.secret.as_mut());
            self.renewed = Some(now);
        }
        let port = source.port().to_be_bytes();
        match source.ip() {
            IpAddr::V4(ip) => crypto::mac(&*self.secret, &[&ip.octets(), &port]),
            IpAddr::V6(ip) => crypto::mac(&*self.secret, &[&ip.octets(), &port]),
        }
    }
}

impl Cookie {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.received) < COOKIE_LIFETIME
    }
}

const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{Seeded, base};

    fn source(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_cookie_belongs_to_one_address_and_port_and_dies_with_its_secret() {
        let now = base();
        let mut random = Seeded::new(1);
        let mut secret = CookieSecret::new();
        let first = secret.cookie(now, &mut random, source("192.0.2.1:1000"));
        let again = now + COOKIE_LIFETIME / 2;
        assert_eq!(
            first,
            secret.cookie(again, &mut random, source("192.0.2.1:1000"))
        );
        for other in ["192.0.2.1:1001", "192.0.2.2:1000", "[::1]:1000"] {
            assert_ne!(first, secret.cookie(now, &mut random, source(other)));
        }
        let later = now + COOKIE_LIFETIME;
        assert_ne!(
            first,
            secret.cookie(later, &mut random, source("192.0.2.1:1000"))
        );
    }

    #[test]
    fn a_signed_message_holds_and_a_changed_one_does_not() {
        let keys = MacKeys::new(&PublicKey([5; KEY]));
        let mut message = [7; 148];
        let mac1 = keys.sign(&mut message, None, base());
        assert_eq!(mac1, message[116..132]);
        assert!(keys.mac1_holds(&message));
        message[3] ^= 1;
        assert!(!keys.mac1_holds(&message));
    }

    #[test]
    fn a_reply_opens_only_with_the_mac1_that_it_answers() {
        let now = base();
        let mut random = Seeded::new(2);
        let keys = MacKeys::new(&PublicKey([5; KEY]));
        let mut message = [7; 148];
        let mac1 = keys.sign(&mut message, None, now);
        let from = source("[2001:db8::1]:51820");
        let mut secret = CookieSecret::new();
        let reply = secret.reply(now, &mut random, from, &message, &keys);
        assert_eq!(reply[4..8], message[4..8]);
        assert!(keys.open_reply(&reply, &[0; MAC], now).is_none());
        let cookie = keys.open_reply(&reply, &mac1, now).expect("the right mac1");
        assert!(!secret.mac2_holds(now, &mut random, from, &message));
        keys.sign(&mut message, Some(&cookie), now);
        assert!(secret.mac2_holds(now, &mut random, from, &message));
    }
}
