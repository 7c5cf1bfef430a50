//! Cookies: what a browser is known by, and the proof that a form is one of ours.

use aws_lc_rs::{digest, hmac};
use axum::http::{HeaderMap, HeaderValue, header};
use data_encoding::BASE64URL_NOPAD;
use model::{
    api::Secret,
    id::{BrowserId, OrgId, UserId},
};

use crate::{
    Server,
    api::error::ApiError,
    oidc::SignedIn,
    storage::{
        self, Change,
        audit::{Actor, Entry},
        browser::NewBrowser,
        oidc::Place,
    },
};

/// Holds the secret of a browser in which a person has signed in. With this prefix it comes from
/// this host by HTTPS and from no other (RFC 6265bis, 4.1.3.2).
pub(crate) const SESSION: &str = "__Host-ginnel-session";

/// Holds the secret of a browser in which nobody has signed in.
pub(crate) const VISITOR: &str = "__Host-ginnel-visitor";

/// Holds a sign-in that has begun, sealed.
pub(crate) const ATTEMPT: &str = "__Host-ginnel-attempt";

/// How long a person stays signed in by a login token, in seconds: a working day. So she does by an
/// identity provider that is asked all along.
const SESSION_SECONDS: i64 = 12 * 60 * 60;

/// How long she stays signed in by an identity provider that gave no refresh token, in seconds.
const PROVIDER_SECONDS: i64 = 60 * 60;

/// Length of the secret of a browser, in bytes.
const SECRET_LENGTH: usize = 32;

/// A browser in which a person has just signed in.
pub(crate) struct Opened {
    pub(crate) id: BrowserId,
    pub(crate) user: UserId,
    pub(crate) secret: Secret,
    /// How long it stays so.
    pub(crate) seconds: i64,
}

impl Opened {
    /// Returns what the audit says of it.
    pub(crate) fn entry(&self, org: OrgId) -> Entry {
        Entry {
            actor: Actor::User(self.user),
            action: "browser_signed_in",
            subject: format!("browser:{}", self.id),
            org: Some(org),
        }
    }
}

/// Signs a person in at a browser, in a change; `signed_in` is how, if not by a login token.
pub(crate) async fn open(
    server: &Server,
    change: &mut Change,
    user: UserId,
    signed_in: Option<&SignedIn>,
) -> Result<Opened, ApiError> {
    let secret = drawn(server);
    let now = change.now();
    let mut seconds = match signed_in {
        Some(_) => PROVIDER_SECONDS,
        None => SESSION_SECONDS,
    };
    let new = NewBrowser {
        user,
        hash: hash(secret.expose()),
        issuer: signed_in.map(|signed_in| signed_in.provider.issuer.as_str()),
        sid: signed_in.and_then(|signed_in| signed_in.sid.as_deref()),
        expires: now + seconds,
    };
    let id = storage::browser::insert(change.connection(), now, &new).await?;
    if let Some(signed_in) = signed_in.filter(|signed_in| signed_in.refresh_token.is_some()) {
        seconds = SESSION_SECONDS;
        let session = server.begun_session(now, Place::Browser(id), user, signed_in);
        let expires = now + seconds;
        storage::browser::update_session(change.connection(), id, &session, expires).await?;
    }
    Ok(Opened {
        id,
        user,
        secret,
        seconds,
    })
}

/// Draws the secret of a browser.
pub(crate) fn drawn(server: &Server) -> Secret {
    let mut bytes = zeroize::Zeroizing::new([0; SECRET_LENGTH]);
    server.inner.random.fill(&mut *bytes);
    Secret::new(BASE64URL_NOPAD.encode(&*bytes))
}

/// Returns what the store keeps of a secret: it is random, so that a plain hash cannot be searched.
pub(crate) fn hash(secret: &str) -> [u8; 32] {
    let hash = digest::digest(&digest::SHA256, secret.as_bytes());
    hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Returns what every form of a browser carries: other sites cannot know it.
pub(crate) fn proof(secret: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    BASE64URL_NOPAD.encode(hmac::sign(&key, PROOF_PURPOSE).as_ref())
}

/// Tells whether a form comes from a page that was given to the browser of this secret.
pub(crate) fn is_proof(secret: &str, proof: &str) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let proof = BASE64URL_NOPAD.decode(proof.as_bytes());
    proof.is_ok_and(|proof| hmac::verify(&key, PROOF_PURPOSE, &proof).is_ok())
}

const PROOF_PURPOSE: &[u8] = b"ginnel form";

/// Returns the value of a cookie (RFC 6265, 4.2.1).
pub(crate) fn value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).into_iter();
    let pairs = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'));
    pairs
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value)
}

/// Sets a cookie for so many seconds; zero removes it. It comes with links from other sites, such
/// as the identity provider's, but not with their forms.
pub(crate) fn set(name: &str, value: &str, seconds: i64) -> HeaderValue {
    let text = format!("{name}={value}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Lax");
    let mut value = HeaderValue::from_str(&text).expect("values are base64");
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        let lines = ["a=1; b=2", "x; =y;c==3; a=other"];
        for line in lines {
            headers.append(header::COOKIE, HeaderValue::from_static(line));
        }
        assert_eq!(value(&headers, "a"), Some("1"));
        assert_eq!(value(&headers, "b"), Some("2"));
        assert_eq!(value(&headers, "c"), Some("=3"));
        assert_eq!(value(&headers, "x"), None);
    }

    #[test]
    fn a_proof_is_of_one_secret() {
        let right = proof("one");
        assert!(is_proof("one", &right));
        for (secret, text) in [
            ("two", right.as_str()),
            ("one", ""),
            ("one", "%"),
            ("", "AA"),
        ] {
            assert!(!is_proof(secret, text), "{secret} {text}");
        }
        assert!(!is_proof("one", &right[1..]));
    }
}
