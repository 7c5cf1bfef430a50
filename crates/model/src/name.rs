//! Names of organisations, nodes and services: single DNS labels; and what no free text may hold.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The zone under which every private name lives.
pub const ZONE: &str = "internal";

/// A DNS label of letters, digits and hyphens in lower case (RFC 1123, 2.1).
///
/// Because it holds nothing else, it can stand in files, shell lines and pages as it is.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Label(String);

/// The text is not a label.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a name has 1 to 63 letters, digits or hyphens and neither starts nor ends with a hyphen")]
pub struct MalformedLabel;

/// Labels that mean something else below the zone.
const RESERVED: [&str; 3] = ["svc", "site", "internal"];

impl Label {
    /// The longest label (RFC 1035, 2.3.4).
    pub const LENGTH_MAX: usize = 63;

    /// Returns the label as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Tells whether the label has a meaning of its own in the zone and cannot name a thing.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        RESERVED.contains(&self.as_str())
    }
}

/// Tells whether a letter of a free text could make a reader see another text: a control character,
/// an end of a line, or a mark that changes the order of letters (Unicode Standard Annex 9, 2).
#[must_use]
pub fn is_deceptive(letter: char) -> bool {
    let reorders = matches!(
        letter,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    letter.is_control() || reorders || matches!(letter, '\u{2028}' | '\u{2029}')
}

impl FromStr for Label {
    type Err = MalformedLabel;

    /// Parses a label; upper case is folded, as DNS compares without case (RFC 1035, 2.3.3).
    fn from_str(text: &str) -> Result<Self, MalformedLabel> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let well_formed = (1..=Self::LENGTH_MAX).contains(&text.len())
            && text.bytes().all(allowed)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if !well_formed {
            return Err(MalformedLabel);
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Label {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_folded_to_lower_case() {
        let label: Label = "Web-1".parse().expect("a well-formed label");
        assert_eq!(label.as_str(), "web-1");
    }

    #[test]
    fn a_letter_that_deceives_is_told_from_one_that_does_not() {
        for letter in [
            '\0', '\n', '\u{1b}', '\u{7f}', '\u{9b}', '\u{2028}', '\u{202e}', '\u{2069}',
        ] {
            assert!(is_deceptive(letter), "{letter:?}");
        }
        for letter in ['a', ' ', '"', '\'', 'é', 'ش', '漢', '\u{200d}', '😀'] {
            assert!(!is_deceptive(letter), "{letter:?}");
        }
    }

    #[test]
    fn hostile_names_are_refused() {
        let long = "a".repeat(64);
        for text in [
            "", "-a", "a-", "a.b", "a b", "a\n", "\"", "$(id)", "ä", "../x", &long,
        ] {
            assert_eq!(text.parse::<Label>(), Err(MalformedLabel), "{text}");
        }
    }
}
