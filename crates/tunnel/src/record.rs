//! The records of names that can be asked for inside a tunnel.

use serde::{Deserialize, Serialize};

/// A record type that can be asked for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum RecordKind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    #[serde(rename = "AAAA")]
    Aaaa,
    /// Texts.
    #[serde(rename = "TXT")]
    Txt,
}

impl RecordKind {
    /// Every type, in the order in which they are listed to people.
    pub const ALL: [Self; 3] = [Self::A, Self::Aaaa, Self::Txt];

    /// Returns the mnemonic.
    pub fn text(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Txt => "TXT",
        }
    }
}

/// One record.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Record {
    /// The name that has it, behind aliases and search domains.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: RecordKind,
    /// Seconds for which it may be kept.
    pub ttl: u32,
    /// The address or text.
    pub value: String,
}
