//! Keys in the form that Wireshark reads (`wg.keylog_file`).

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::key::{KEY, PresharedKey, PublicKey, StaticSecret};

/// The keys of one handshake: lines of `TYPE = base64`, each with its line feed.
///
/// Whoever has them can read the session and *be* this device: they hold its private key. Zeroized
/// on drop and never printed by `Debug`.
#[derive(Eq, PartialEq)]
pub struct KeyLog(Zeroizing<String>);

impl KeyLog {
    /// Writes the line of a private key alone: with it initiations to it can be opened, and no
    /// data.
    #[must_use]
    pub fn of_identity(local: &StaticSecret) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(LINE_MAX));
        write_line(&mut text, "LOCAL_STATIC_PRIVATE_KEY", local.expose());
        Self(text)
    }

    /// Writes the entry; the preshared key stands behind the ephemeral key that it belongs to.
    pub(crate) fn new(
        local: &StaticSecret,
        remote: &PublicKey,
        ephemeral: &[u8; KEY],
        preshared: Option<&PresharedKey>,
    ) -> Self {
        // Room for all four lines, so that no copy of a key stays behind in a smaller buffer.
        let mut text = Zeroizing::new(String::with_capacity(LINE_MAX * 4));
        let mut line = |name: &str, key: &[u8; KEY]| write_line(&mut text, name, key);
        line("LOCAL_STATIC_PRIVATE_KEY", local.expose());
        line("REMOTE_STATIC_PUBLIC_KEY", &remote.0);
        line("LOCAL_EPHEMERAL_PRIVATE_KEY", ephemeral);
        if let Some(preshared) = preshared {
            line("PRESHARED_KEY", preshared.expose());
        }
        Self(text)
    }

    /// Shows the text to code that writes it to a key log or a decryption secrets block.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyLog(..)")
    }
}

impl ZeroizeOnDrop for KeyLog {}

fn write_line(text: &mut String, name: &str, key: &[u8; KEY]) {
    let encoded = Zeroizing::new(STANDARD.encode(key));
    text.push_str(name);
    text.push_str(" = ");
    text.push_str(&encoded);
    text.push('\n');
}

/// The longest name, ` = `, 44 characters and a line feed.
const LINE_MAX: usize = 27 + 3 + 44 + 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stand_in_the_order_that_wireshark_binds_them() {
        let local = StaticSecret::new([0x41; KEY]);
        let preshared = PresharedKey::new([3; KEY]);
        let log = KeyLog::new(&local, &PublicKey([1; KEY]), &[2; KEY], Some(&preshared));
        let names: Vec<_> = log.expose().lines().map(|l| &l[..l.len() - 47]).collect();
        assert_eq!(
            names,
            [
                "LOCAL_STATIC_PRIVATE_KEY",
                "REMOTE_STATIC_PUBLIC_KEY",
                "LOCAL_EPHEMERAL_PRIVATE_KEY",
                "PRESHARED_KEY"
            ]
        );
        assert!(
            log.expose()
                .contains(" = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n")
        );
        assert!(log.expose().len() <= LINE_MAX * 4);
        assert_eq!(format!("{log:?}"), "KeyLog(..)");
    }
}
