//! Secrets of tokens: drawn once, shown once, kept as a hash.

use aws_lc_rs::digest;
use model::token::{Kind, SECRET_LENGTH, Token};

use crate::Server;

impl Server {
    /// Draws a token that carries this server's pin.
    pub(crate) fn mint(&self, kind: Kind) -> Token {
        let mut secret = [0; SECRET_LENGTH];
        self.inner.random.fill(&mut secret);
        Token::new(kind, secret, self.pin())
    }
}

/// Returns what the store keeps of a token. The secret has 160 random bits, so that a plain hash
/// cannot be searched, and a look-up by hash tells nothing about the secret by its timing.
pub(crate) fn hash(token: &Token) -> [u8; 32] {
    let hash = digest::digest(&digest::SHA256, token.expose());
    hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
}
