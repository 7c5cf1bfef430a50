//! The text of tokens: what they are for, their secret, and the server that they belong to.
//!
//! ```text
//! ginnel-join-<secret: 20 bytes>-<pin: 32 bytes>      base32 in lower case, no padding (RFC 4648)
//! ```
//! The pin is the SHA-256 of the SubjectPublicKeyInfo of the server's own certificate authority
//! (RFC 5280, 4.1.2.7). Whoever holds a token with a pin needs no other trust to reach its server.
//! A token of a server with an operator's certificate carries no pin.

use std::{fmt, str::FromStr};

use data_encoding::{BASE32_NOPAD, BASE32_NOPAD_NOCASE};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A token: a bearer credential for one kind of request. Zeroized on drop, never printed.
#[derive(Clone, Eq, PartialEq)]
pub struct Token {
    kind: Kind,
    secret: Secret,
    pin: Option<Pin>,
}

/// What a token is for.
#[derive(
    Clone,
    Copy,
    Debug,
    Deserialize,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Signs a person's device in (`ginnel login`).
    Login,
    /// Enrols machines (`ginnel join`).
    Join,
    /// Enrols gateways (`ginnel gateway`).
    Gateway,
    /// Speaks for a person who has signed in.
    Session,
    /// Speaks for one enrolled node.
    Node,
}

/// SHA-256 of the SubjectPublicKeyInfo of a server's certificate authority.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Pin(pub [u8; 32]);

/// Length of a token's secret in bytes: 160 random bits cannot be guessed and fit 32 characters.
pub const SECRET_LENGTH: usize = 20;

/// The longest text of a token; longer text is refused unread.
pub const TEXT_LENGTH_MAX: usize = 128;

/// The text is not a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MalformedToken {
    /// It does not begin like a token.
    #[error("a token starts with `ginnel-`; this text does not")]
    NotAToken,
    /// Its kind has no meaning here.
    #[error("a token of this kind is not known; a newer ginnel may have made it")]
    UnknownKind,
    /// The secret was cut or changed.
    #[error("the token is incomplete or mistyped; copy the whole text again")]
    Secret,
    /// The pin was cut or changed.
    #[error("the end of the token is incomplete or mistyped; copy the whole text again")]
    Pin,
}

/// A token of another kind was given.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this is {} token; {} needs {} token", .found.with_article(), .needed.user(),
    .needed.with_article())]
pub struct WrongKind {
    /// The kind that was given.
    pub found: Kind,
    /// The kind that is needed.
    pub needed: Kind,
}

#[derive(Clone, Eq, PartialEq, Zeroize, ZeroizeOnDrop)]
struct Secret([u8; SECRET_LENGTH]);

const PREFIX: &str = "ginnel-";

impl Token {
    /// Makes a token of a secret, which the caller draws at random.
    #[must_use]
    pub fn new(kind: Kind, secret: [u8; SECRET_LENGTH], pin: Option<Pin>) -> Self {
        Self {
            kind,
            secret: Secret(secret),
            pin,
        }
    }

    /// Returns what the token is for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the pin of the server that made the token.
    #[must_use]
    pub fn pin(&self) -> Option<Pin> {
        self.pin
    }

    /// Shows the secret to code that hashes it.
    #[must_use]
    pub fn expose(&self) -> &[u8; SECRET_LENGTH] {
        &self.secret.0
    }

    /// Writes the token, for its owner's eyes, a file with mode 0600 or an encrypted request.
    #[must_use]
    pub fn emit(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(TEXT_LENGTH_MAX));
        text.push_str(PREFIX);
        text.push_str(self.kind.as_str());
        text.push('-');
        let mut secret = Zeroizing::new(BASE32_NOPAD.encode(&self.secret.0));
        secret.make_ascii_lowercase();
        text.push_str(&secret);
        if let Some(pin) = self.pin {
            text.push('-');
            text.push_str(&pin.to_string());
        }
        text
    }

    /// Returns the token if it is of the kind that is needed.
    pub fn require(self, needed: Kind) -> Result<Self, WrongKind> {
        if self.kind == needed {
            return Ok(self);
        }
        Err(WrongKind {
            found: self.kind,
            needed,
        })
    }
}

impl FromStr for Token {
    type Err = MalformedToken;

    /// Parses a token; white space around it, as copying leaves, is ignored.
    fn from_str(text: &str) -> Result<Self, MalformedToken> {
        let text = text.trim_ascii();
        let rest = text.strip_prefix(PREFIX).ok_or(MalformedToken::NotAToken)?;
        let (kind, rest) = rest.split_once('-').ok_or(MalformedToken::Secret)?;
        let kind = Kind::from_word(kind).ok_or(MalformedToken::UnknownKind)?;
        if text.len() > TEXT_LENGTH_MAX {
            return Err(MalformedToken::Secret);
        }
        let (secret, pin) = match rest.split_once('-') {
            Some((secret, pin)) => (secret, Some(pin.parse()?)),
            None => (rest, None),
        };
        let mut secret = BASE32_NOPAD_NOCASE
            .decode(secret.as_bytes())
            .map_err(|_| MalformedToken::Secret)?;
        let bytes = <[u8; SECRET_LENGTH]>::try_from(secret.as_slice());
        secret.zeroize();
        Ok(Self {
            kind,
            secret: Secret(bytes.map_err(|_| MalformedToken::Secret)?),
            pin,
        })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, ..)", self.kind.as_str())
    }
}

/// Writes the secret: only for encrypted replies and files with mode 0600.
impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.emit())
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Zeroizing::new(String::deserialize(deserializer)?)
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Login,
        Self::Join,
        Self::Gateway,
        Self::Session,
        Self::Node,
    ];

    /// Returns the word that stands in the token's text, in the store and in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Join => "join",
            Self::Gateway => "gateway",
            Self::Session => "session",
            Self::Node => "node",
        }
    }

    /// Returns the kind of a word of [`Kind::as_str`].
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    fn with_article(self) -> &'static str {
        match self {
            Self::Login => "a login",
            Self::Join => "a join",
            Self::Gateway => "a gateway",
            Self::Session => "a session",
            Self::Node => "a node",
        }
    }

    fn user(self) -> &'static str {
        match self {
            Self::Login => "`login`",
            Self::Join => "`join`",
            Self::Gateway => "`gateway`",
            Self::Session => "a person's request",
            Self::Node => "a node's request",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}

impl FromStr for Pin {
    type Err = MalformedToken;

    fn from_str(text: &str) -> Result<Self, MalformedToken> {
        let bytes = BASE32_NOPAD_NOCASE
            .decode(text.as_bytes())
            .map_err(|_| MalformedToken::Pin)?;
        bytes.try_into().map(Self).map_err(|_| MalformedToken::Pin)
    }
}

impl Serialize for Pin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_is_kind_secret_and_pin() {
        let token = Token::new(Kind::Join, [0; SECRET_LENGTH], Some(Pin([0xff; 32])));
        let text = token.emit();
        assert_eq!(
            text.as_str(),
            format!("ginnel-join-{}-{}q", "a".repeat(32), "7".repeat(51))
        );
        assert_eq!(format!(" {}\n", text.as_str()).parse(), Ok(token));
        for kind in Kind::ALL {
            let token = Token::new(kind, [9; SECRET_LENGTH], None);
            assert_eq!(token.emit().parse(), Ok(token));
        }
    }

    #[test]
    fn a_damaged_token_names_its_fault() {
        let whole = Token::new(Kind::Login, [1; SECRET_LENGTH], Some(Pin([2; 32]))).emit();
        let check = |text: &str, fault| assert_eq!(text.parse::<Token>(), Err(fault), "{text}");
        check("", MalformedToken::NotAToken);
        check("glpat-123", MalformedToken::NotAToken);
        check("ginnel-", MalformedToken::Secret);
        check("ginnel-login", MalformedToken::Secret);
        check("ginnel-login-", MalformedToken::Secret);
        check("ginnel-root-aaaa", MalformedToken::UnknownKind);
        check(&whole[..whole.len() - 1], MalformedToken::Pin);
        check(&whole[..40], MalformedToken::Secret);
        check(&whole.replacen("aeaq", "ae!q", 1), MalformedToken::Secret);
        check(&format!("{}a", whole.as_str()), MalformedToken::Pin);
        check(
            &format!("ginnel-join-{}", "a".repeat(1 << 20)),
            MalformedToken::Secret,
        );
    }

    #[test]
    fn a_token_of_another_kind_says_what_is_needed() {
        let token = Token::new(Kind::Join, [1; SECRET_LENGTH], None);
        let wrong = token
            .require(Kind::Login)
            .expect_err("a join token is no login token");
        assert_eq!(
            wrong.to_string(),
            "this is a join token; `login` needs a login token"
        );
    }

    #[test]
    fn debug_does_not_print_a_secret() {
        let token = Token::new(Kind::Node, [1; SECRET_LENGTH], None);
        assert_eq!(format!("{token:?}"), "Token(node, ..)");
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_an_error(text in "(ginnel-)?(join-|node-)?[a-z2-7é-]{0,120}") {
            if let Ok(token) = text.parse::<Token>() {
                prop_assert_eq!(token.emit().parse(), Ok(token));
            }
        }
    }
}
