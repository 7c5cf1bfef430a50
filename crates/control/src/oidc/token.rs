//! ID tokens and logout tokens: what makes one count (OpenID Connect Core 1.0, 3.1.3.7;
//! Back-Channel Logout 1.0, 2.6).

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    errors::ErrorKind,
    jwk::{Jwk, JwkSet, KeyAlgorithm, PublicKeyUse},
};
use model::{api::OIDC_TEXT_LENGTH_MAX, name::is_deceptive};
use serde::Deserialize;
use serde_json::Value;

/// How far the clocks of provider and server may be apart, in seconds.
const SKEW_SECONDS_MAX: i64 = 60;

/// How old a logout token may be, in seconds; it is sent as soon as it is made.
const LOGOUT_AGE_SECONDS_MAX: i64 = 120;

/// The longest token that is read.
const TOKEN_BYTES_MAX: usize = 64 * 1024;

/// What a logout token says happened (Back-Channel Logout 1.0, 2.4).
const LOGOUT_EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// Signatures that only the provider can make. A MAC with the client secret is none, and `none`
/// is no algorithm to the parser.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Whose tokens count, and for whom they must be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    pub(super) issuer: &'a str,
    pub(super) client_id: &'a str,
    /// Seconds since the Unix epoch.
    pub(super) now: i64,
}

/// What an ID token says that counts.
#[derive(Debug)]
pub(super) struct IdToken {
    pub(super) subject: String,
    pub(super) expires: i64,
    /// The session at the provider.
    pub(super) sid: Option<String>,
    /// Every claim.
    pub(super) claims: Value,
}

/// Who signed out.
#[derive(Debug)]
pub(crate) struct LogoutToken {
    pub(crate) subject: Option<String>,
    pub(crate) sid: Option<String>,
    pub(crate) issued: i64,
}

/// Why a token does not count.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it is no signed token")]
    Malformed,
    #[error("its algorithm is none that only the provider can sign by")]
    Algorithm,
    #[error("the provider has no such key")]
    Key,
    #[error("its signature is not the provider's")]
    Signature,
    #[error("it demands what is not understood")]
    Critical,
    #[error("it is of another issuer")]
    Issuer,
    #[error("it is for another audience")]
    Audience,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    NotYet,
    #[error("it belongs to another sign-in")]
    Nonce,
    #[error("it is of another person")]
    Subject,
    #[error("it does not say that somebody signed out")]
    Event,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: Option<String>,
    aud: Audience,
    azp: Option<String>,
    exp: Option<i64>,
    iat: i64,
    nbf: Option<i64>,
    nonce: Option<String>,
    sid: Option<String>,
    events: Option<serde_json::Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Reads an ID token. `nonce` is that of the sign-in; a token that came with a refresh has none
/// to compare.
pub(super) fn id_token(
    keys: &JwkSet,
    text: &str,
    expected: Expected<'_>,
    nonce: Option<&str>,
) -> Result<IdToken, Refusal> {
    let (claims, all) = signed(keys, text, expected)?;
    let expires = claims.exp.ok_or(Refusal::Malformed)?;
    if nonce.is_some() && claims.nonce.as_deref() != nonce {
        return Err(Refusal::Nonce);
    }
    let subject = claims.sub.ok_or(Refusal::Malformed)?;
    // Both are stored, and the audit says the subject.
    let is_plain = |text: &String| !text.chars().any(is_deceptive);
    if !(1..=OIDC_TEXT_LENGTH_MAX).contains(&subject.len())
        || !is_plain(&subject)
        || !claims.sid.as_ref().is_none_or(is_plain)
    {
        return Err(Refusal::Malformed);
    }
    Ok(IdToken {
        subject,
        expires,
        sid: claims.sid,
        claims: all,
    })
}

/// Reads a logout token.
pub(super) fn logout_token(
    keys: &JwkSet,
    text: &str,
    expected: Expected<'_>,
) -> Result<LogoutToken, Refusal> {
    let (claims, _) = signed(keys, text, expected)?;
    if claims.iat < expected.now - LOGOUT_AGE_SECONDS_MAX {
        return Err(Refusal::Expired);
    }
    // An ID token has a nonce and no event: it must never pass for the other kind.
    let events = claims.events.unwrap_or_default();
    let says_so = events.get(LOGOUT_EVENT).is_some_and(Value::is_object);
    if !says_so || claims.nonce.is_some() || (claims.sub.is_none() && claims.sid.is_none()) {
        return Err(Refusal::Event);
    }
    Ok(LogoutToken {
        subject: claims.sub,
        sid: claims.sid,
        issued: claims.iat,
    })
}

/// Tells whether the provider may have made new keys since `keys` were fetched.
pub(super) fn names_unknown_key(keys: &JwkSet, text: &str) -> bool {
    text.len() <= TOKEN_BYTES_MAX
        && decode_header(text).is_ok_and(|header| {
            ALGORITHMS.contains(&header.alg) && key(keys, header.kid.as_deref()).is_none()
        })
}

fn signed(keys: &JwkSet, text: &str, expected: Expected<'_>) -> Result<(Claims, Value), Refusal> {
    if text.len() > TOKEN_BYTES_MAX {
        return Err(Refusal::Malformed);
    }
    let header = decode_header(text).map_err(|_| Refusal::Malformed)?;
    if !ALGORITHMS.contains(&header.alg) {
        return Err(Refusal::Algorithm);
    }
    // RFC 7515, 4.1.11: whoever does not understand an extension must refuse the token.
    if header.crit.is_some() {
        return Err(Refusal::Critical);
    }
    let key = key(keys, header.kid.as_deref()).ok_or(Refusal::Key)?;
    let only = key.common.key_algorithm;
    if only.is_some_and(|only| only != KeyAlgorithm::from(header.alg)) {
        return Err(Refusal::Algorithm);
    }
    let key = DecodingKey::from_jwk(key).map_err(|_| Refusal::Key)?;
    // Only the signature is verified there: time is an argument here.
    let mut validation = Validation::new(header.alg);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    let all = decode::<Value>(text, &key, &validation).map_err(|error| refusal(error.kind()))?;
    let claims = Claims::deserialize(&all.claims).map_err(|_| Refusal::Malformed)?;
    hold(&claims, expected)?;
    Ok((claims, all.claims))
}

/// Holds the claims to what both kinds of token must fulfil.
fn hold(claims: &Claims, expected: Expected<'_>) -> Result<(), Refusal> {
    if claims.iss != expected.issuer {
        return Err(Refusal::Issuer);
    }
    let is_for_us = match &claims.aud {
        Audience::One(audience) => audience == expected.client_id,
        Audience::Many(audiences) => {
            let one_of_several = audiences.iter().any(|one| one == expected.client_id);
            one_of_several && (audiences.len() == 1 || claims.azp.is_some())
        }
    };
    let party = claims.azp.as_deref().unwrap_or(expected.client_id);
    if !is_for_us || party != expected.client_id {
        return Err(Refusal::Audience);
    }
    let past = expected.now - SKEW_SECONDS_MAX;
    let future = expected.now + SKEW_SECONDS_MAX;
    if claims.exp.is_some_and(|expires| expires <= past) {
        return Err(Refusal::Expired);
    }
    if claims.iat > future || claims.nbf.is_some_and(|begins| begins > future) {
        return Err(Refusal::NotYet);
    }
    Ok(())
}

/// Finds the key of an id; a token without one may have the only key there is.
fn key<'a>(keys: &'a JwkSet, id: Option<&str>) -> Option<&'a Jwk> {
    let signs = |key: &&Jwk| {
        let usage = &key.common.public_key_use;
        usage
            .as_ref()
            .is_none_or(|usage| *usage == PublicKeyUse::Signature)
    };
    let mut signing = keys.keys.iter().filter(signs);
    match id {
        Some(_) => signing.find(|key| key.common.key_id.as_deref() == id),
        None => signing.next().filter(|_| signing.next().is_none()),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enum is jsonwebtoken's and may grow"
)]
fn refusal(kind: &ErrorKind) -> Refusal {
    match kind {
        ErrorKind::InvalidSignature => Refusal::Signature,
        ErrorKind::InvalidAlgorithm => Refusal::Algorithm,
        _ => Refusal::Malformed,
    }
}

#[cfg(test)]
mod tests;
