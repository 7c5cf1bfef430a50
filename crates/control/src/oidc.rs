//! Sign-in by an identity provider: the control plane is its relying party (OpenID Connect Core
//! 1.0).
//!
//! ```text
//!   device ── begin ──> server ── discovery ──> provider
//!   device <── URL, attempt ──┘
//!   browser ── URL ──> provider ── code ──> device's loopback interface, or a code typed there
//!   device ── attempt, code ──> server ── code, verifier ──> provider
//!   device <── session ──┘      server <── ID, access and refresh token ──┘
//! ```
//!
//! The attempt is sealed, so that whoever begins sign-ins and never ends them takes no memory.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::digest;
use data_encoding::BASE64URL_NOPAD;
use hyper::{StatusCode, body::Bytes};
use jsonwebtoken::jwk::JwkSet;
use model::{
    api::{AuthorizationResponse, OIDC_CALLBACK_PATH, Secret},
    id::OrgId,
    key::PublicKey,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::Semaphore;
use url::Url;

use crate::{
    Random, Server,
    storage::oidc::{Place, Provider, Session},
};
use http::{Authentication, Fault, Http};
use identity::Identity;
use token::{Expected, IdToken, LogoutToken, Refusal};

mod http;
mod identity;
mod session;
mod token;

pub(crate) use identity::role;

/// Where the browser comes back to the web page.
pub(crate) const PAGE_CALLBACK_PATH: &str = "/ui/callback";

/// How long a sign-in may take from its begin, in seconds, if the provider does not say less.
pub(crate) const ATTEMPT_SECONDS_MAX: i64 = 10 * 60;

/// How long a provider's metadata and keys are kept, in seconds.
const METADATA_SECONDS_MAX: i64 = 60 * 60;

/// How soon keys are fetched again for a token whose key is unknown, in seconds.
const KEYS_SECONDS_MIN: i64 = 10;

/// Providers whose metadata is kept; at the bound all of it is fetched again.
const PROVIDERS_MAX: usize = 10_000;

/// Ended attempts that are remembered; at the bound no further sign-in ends for some minutes.
const ENDED_MAX: usize = 100_000;

/// How many of the API's requests may wait for providers without a token.
const TURNS_MAX: usize = 64;

/// How long a device waits between two questions if the provider does not say (RFC 8628, 3.2).
const INTERVAL_SECONDS: u64 = 5;

/// The longest device code, so that an attempt fits a request.
const DEVICE_CODE_BYTES_MAX: usize = 4_096;

/// The longest text of a provider that is shown to people.
const TEXT_BYTES_MAX: usize = 200;

/// What the control plane keeps of its providers.
pub(crate) struct RelyingParty {
    http: Http,
    /// Metadata and keys by issuer; bounded by [`PROVIDERS_MAX`].
    known: Mutex<BTreeMap<String, Arc<Known>>>,
    /// Hashes of attempts that ended in a session, and when they would have been too late; bounded
    /// by [`ENDED_MAX`].
    ended: Mutex<BTreeMap<[u8; 32], i64>>,
    /// Requests without a token that may wait for a provider at once; further ones are refused, so
    /// that a slow provider does not take all that the API can do.
    pub(crate) turns: Semaphore,
}

/// Why a sign-in does not go on, or a session is not confirmed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The provider could not be asked.
    #[error("the identity provider cannot be asked: {0}")]
    Fault(#[from] Fault),
    #[error("the identity provider's {0} cannot be read")]
    Malformed(&'static str),
    #[error("the identity provider answered {1} for its {0}")]
    Status(&'static str, StatusCode),
    #[error("the identity provider calls itself `{0}`")]
    Issuer(String),
    #[error("the identity provider has no {0}")]
    Missing(&'static str),
    /// The provider answered an OAuth error (RFC 6749, 5.2).
    #[error("the identity provider refuses: {0}")]
    Denied(Denial),
    #[error("the token of the identity provider does not count: {0}")]
    Token(#[from] Refusal),
    #[error("the sign-in is not one that this device began here: sign in again")]
    Attempt,
    #[error("the sign-in took too long: sign in again")]
    Late,
    #[error("the sign-in has ended before: sign in again")]
    Ended,
    /// The person has not decided yet; ask again after so many seconds.
    #[error("the person has not signed in yet")]
    Pending(u64),
}

/// An OAuth error in the words of the provider, cut and without control characters.
#[derive(Debug)]
pub(crate) struct Denial {
    pub(crate) code: String,
    description: String,
}

/// What discovery and the key set said (OpenID Connect Discovery 1.0, 3).
struct Known {
    metadata: Metadata,
    keys: JwkSet,
    /// When it was fetched, in seconds since the Unix epoch.
    fetched: i64,
}

#[derive(Clone, Deserialize)]
struct Metadata {
    issuer: String,
    authorization_endpoint: Endpoint,
    token_endpoint: Endpoint,
    jwks_uri: Endpoint,
    userinfo_endpoint: Option<Endpoint>,
    device_authorization_endpoint: Option<Endpoint>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

/// A URL that is reached by HTTPS.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
struct Endpoint(Url);

/// A sign-in that has begun, as the device keeps it, sealed.
#[derive(Deserialize, Serialize)]
struct Attempt {
    org: OrgId,
    issuer: String,
    client_id: String,
    /// The key of the device; a browser has none.
    public_key: Option<PublicKey>,
    expires: i64,
    way: Way,
}

#[derive(Deserialize, Serialize)]
enum Way {
    /// The browser comes back with a code.
    Code {
        state: String,
        nonce: String,
        verifier: Secret,
        redirect: Redirect,
    },
    /// The device asks until the person has typed a code (RFC 8628).
    Device { device_code: Secret, interval: u64 },
}

/// Where the browser comes back.
#[derive(Clone, Copy, Deserialize, Serialize)]
pub(crate) enum Redirect {
    /// To the device, at this port of its loopback interface (RFC 8252, 7.3).
    Loopback(u16),
    /// To the web page.
    Page,
}

/// A sign-in that begins.
pub(crate) struct Begun {
    pub(crate) attempt: Secret,
    pub(crate) url: String,
    pub(crate) user_code: Option<String>,
    pub(crate) interval: u64,
    pub(crate) expires: i64,
}

/// Who has signed in, and what confirms it later.
pub(crate) struct SignedIn {
    pub(crate) org: OrgId,
    /// The key of the device; a browser has none.
    pub(crate) public_key: Option<PublicKey>,
    pub(crate) provider: Provider,
    pub(crate) identity: Identity,
    pub(crate) sid: Option<String>,
    /// When the ID token ends.
    pub(crate) expires: i64,
    pub(crate) refresh_token: Option<Secret>,
    attempt: [u8; 32],
    attempt_expires: i64,
}

/// What the token endpoint gave (RFC 6749, 5.1; OpenID Connect Core 1.0, 3.1.3.3).
#[derive(Deserialize)]
struct Tokens {
    access_token: Secret,
    id_token: Option<Secret>,
    refresh_token: Option<Secret>,
}

#[derive(Deserialize)]
struct OauthError {
    error: String,
    #[serde(default)]
    error_description: String,
}

#[derive(Deserialize)]
struct DeviceAuthorization {
    device_code: Secret,
    user_code: String,
    verification_uri: Endpoint,
    verification_uri_complete: Option<Endpoint>,
    expires_in: i64,
    interval: Option<u64>,
}

impl RelyingParty {
    /// Prepares to talk to providers that the system's authorities or those in `ca` certify.
    pub(crate) fn new(ca: Option<&Path>) -> anyhow::Result<Self> {
        Ok(Self {
            http: Http::new(ca)?,
            known: Mutex::new(BTreeMap::new()),
            ended: Mutex::new(BTreeMap::new()),
            turns: Semaphore::new(TURNS_MAX),
        })
    }

    /// Returns what a provider says of itself, from memory if it was asked within the hour.
    async fn known(&self, issuer: &str, now: i64) -> Result<Arc<Known>, Error> {
        let known = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(issuer).cloned()
        };
        match known {
            Some(known) if now - known.fetched < METADATA_SECONDS_MAX => Ok(known),
            Some(_) | None => self.discover(issuer, now).await,
        }
    }

    async fn discover(&self, issuer: &str, now: i64) -> Result<Arc<Known>, Error> {
        let base = issuer.strip_suffix('/').unwrap_or(issuer);
        let url = format!("{base}/.well-known/openid-configuration");
        let url = Endpoint::try_from(url).map_err(|_| Error::Malformed("issuer"))?;
        let metadata: Metadata = self.fetch("discovery document", &url).await?;
        // Whoever can write below one path must not speak for another issuer (Discovery 1.0, 4.3).
        if metadata.issuer != issuer {
            return Err(Error::Issuer(printable(&metadata.issuer)));
        }
        let keys = self.fetch("key set", &metadata.jwks_uri).await?;
        Ok(self.keep(Known {
            metadata,
            keys,
            fetched: now,
        }))
    }

    /// Returns the keys that can verify `token`: those known, or newer ones if the provider has
    /// changed them (OpenID Connect Core 1.0, 10.1.1).
    async fn with_keys_for(
        &self,
        known: Arc<Known>,
        token: &str,
        now: i64,
    ) -> Result<Arc<Known>, Error> {
        let is_new = now - known.fetched < KEYS_SECONDS_MIN;
        if is_new || !token::names_unknown_key(&known.keys, token) {
            return Ok(known);
        }
        let metadata = known.metadata.clone();
        let keys = self.fetch("key set", &metadata.jwks_uri).await?;
        Ok(self.keep(Known {
            metadata,
            keys,
            fetched: now,
        }))
    }

    fn keep(&self, fresh: Known) -> Arc<Known> {
        let fresh = Arc::new(fresh);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= PROVIDERS_MAX {
            known.clear();
        }
        known.insert(fresh.metadata.issuer.clone(), fresh.clone());
        fresh
    }

    async fn fetch<T: DeserializeOwned>(
        &self,
        what: &'static str,
        url: &Endpoint,
    ) -> Result<T, Error> {
        let (status, body) = self.http.get(&url.0, Authentication::Form).await?;
        if status != StatusCode::OK {
            return Err(Error::Status(what, status));
        }
        serde_json::from_slice(&body).map_err(|_| Error::Malformed(what))
    }

    /// Asks an endpoint that the client authenticates at.
    async fn ask<T: DeserializeOwned>(
        &self,
        what: &'static str,
        url: &Endpoint,
        known: &Known,
        client: &Client,
        form: &[(&str, &str)],
    ) -> Result<T, Error> {
        let id = client.provider.client_id.as_str();
        let mut form = form.to_vec();
        let methods = known
            .metadata
            .token_endpoint_auth_methods_supported
            .as_ref();
        let has = |method: &str| methods.is_some_and(|all| all.iter().any(|one| one == method));
        let authentication = match &client.secret {
            None => {
                form.push(("client_id", id));
                Authentication::Form
            }
            Some(secret) if has("client_secret_post") && !has("client_secret_basic") => {
                form.extend([("client_id", id), ("client_secret", secret.expose())]);
                Authentication::Form
            }
            // What a provider takes that does not say (OpenID Connect Discovery 1.0, 3).
            Some(secret) => Authentication::Basic { id, secret },
        };
        let (status, body) = self.http.post(&url.0, authentication, &form).await?;
        parse(what, status, &body)
    }

    /// Remembers that an attempt ended in a session, so that it never does so again.
    pub(crate) fn end(&self, signed_in: &SignedIn, now: i64) -> Result<(), Error> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.retain(|_, expires| *expires > now);
        if ended.len() >= ENDED_MAX {
            return Err(Error::Late);
        }
        match ended.insert(signed_in.attempt, signed_in.attempt_expires) {
            Some(_) => Err(Error::Ended),
            None => Ok(()),
        }
    }

    fn has_ended(&self, attempt: &[u8; 32]) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.contains_key(attempt)
    }
}

/// The client that the control plane is at a provider.
struct Client {
    provider: Provider,
    secret: Option<Secret>,
}

impl Server {
    /// Asks a provider whether it is one, and for its keys.
    pub(crate) async fn discover(&self, issuer: &str) -> Result<(), Error> {
        let now = self.now();
        self.inner.relying_party.discover(issuer, now).await?;
        Ok(())
    }

    /// Seals the client secret of a provider.
    pub(crate) fn seal_client_secret(&self, org: OrgId, issuer: &str, secret: &Secret) -> Vec<u8> {
        let purpose = client_purpose(org, issuer);
        self.seal(&purpose, secret.expose().as_bytes())
    }

    /// Begins a sign-in of a device with a key, or of a browser; without `redirect` the person
    /// types a code.
    pub(crate) async fn begin_sign_in(
        &self,
        provider: Provider,
        public_key: Option<PublicKey>,
        redirect: Option<Redirect>,
    ) -> Result<Begun, Error> {
        let client = self.client(provider)?;
        let now = self.now();
        let known = self.inner.relying_party.known(&client.provider.issuer, now);
        let known = known.await?;
        let (way, mut begun) = match redirect {
            Some(redirect) => self.begin_code(&client, &known, redirect),
            None => self.begin_device(&client, &known).await?,
        };
        let attempt = Attempt {
            org: client.provider.org,
            issuer: client.provider.issuer,
            client_id: client.provider.client_id,
            public_key,
            expires: begun.expires,
            way,
        };
        let text = serde_json::to_vec(&attempt).expect("an attempt is plain data");
        let text = zeroize::Zeroizing::new(text);
        begun.attempt = Secret::new(BASE64URL_NOPAD.encode(&self.seal(ATTEMPT_PURPOSE, &text)));
        Ok(begun)
    }

    /// Returns where a provider sends a browser, as the client has to be known there.
    pub(crate) fn redirect_uri(&self, redirect: Redirect) -> String {
        match redirect {
            Redirect::Loopback(port) => format!("http://127.0.0.1:{port}{OIDC_CALLBACK_PATH}"),
            Redirect::Page => format!("{}{PAGE_CALLBACK_PATH}", self.url()),
        }
    }

    fn begin_code(&self, client: &Client, known: &Known, redirect: Redirect) -> (Way, Begun) {
        let random = &*self.inner.random;
        let (state, nonce, verifier) = (drawn(random), drawn(random), drawn(random));
        let challenge = digest::digest(&digest::SHA256, verifier.as_bytes());
        let challenge = BASE64URL_NOPAD.encode(challenge.as_ref());
        let mut url = known.metadata.authorization_endpoint.0.clone();
        let scope = scope(&client.provider);
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &client.provider.client_id)
            .append_pair("redirect_uri", &self.redirect_uri(redirect))
            .append_pair("scope", &scope)
            .append_pair("state", &state)
            .append_pair("nonce", &nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        if scope.split(' ').any(|one| one == "offline_access") {
            // Without the person's consent there is no refresh token (OpenID Connect Core, 11).
            url.query_pairs_mut().append_pair("prompt", "consent");
        }
        let begun = Begun {
            attempt: Secret::new(""),
            url: url.into(),
            user_code: None,
            interval: INTERVAL_SECONDS,
            expires: self.now() + ATTEMPT_SECONDS_MAX,
        };
        let way = Way::Code {
            state,
            nonce,
            verifier: Secret::new(verifier),
            redirect,
        };
        (way, begun)
    }

    async fn begin_device(&self, client: &Client, known: &Known) -> Result<(Way, Begun), Error> {
        let endpoint = known.metadata.device_authorization_endpoint.as_ref();
        let endpoint = endpoint.ok_or(Error::Missing("sign-in by device code"))?;
        let (what, scope) = ("device authorization", scope(&client.provider));
        let party = &self.inner.relying_party;
        // A client that authenticates says its id in the form too (RFC 8628, 3.1).
        let form = [
            ("client_id", client.provider.client_id.as_str()),
            ("scope", &scope),
        ];
        let form = if client.secret.is_some() {
            &form[..]
        } else {
            &form[1..]
        };
        let device: DeviceAuthorization = party.ask(what, endpoint, known, client, form).await?;
        if device.device_code.expose().len() > DEVICE_CODE_BYTES_MAX {
            return Err(Error::Malformed(what));
        }
        let url = device
            .verification_uri_complete
            .unwrap_or(device.verification_uri);
        let interval = device.interval.unwrap_or(INTERVAL_SECONDS).clamp(1, 60);
        let begun = Begun {
            attempt: Secret::new(""),
            url: url.0.into(),
            user_code: Some(printable(&device.user_code)),
            interval,
            expires: self.now() + device.expires_in.clamp(0, ATTEMPT_SECONDS_MAX),
        };
        let device_code = device.device_code;
        Ok((
            Way::Device {
                device_code,
                interval,
            },
            begun,
        ))
    }

    /// Opens an attempt and returns the organisation that it leads into.
    pub(crate) fn org_of_attempt(&self, attempt: &Secret) -> Result<OrgId, Error> {
        Ok(self.open_attempt(attempt)?.org)
    }

    fn open_attempt(&self, attempt: &Secret) -> Result<Attempt, Error> {
        let sealed = BASE64URL_NOPAD.decode(attempt.expose().as_bytes());
        let opened = sealed
            .ok()
            .and_then(|sealed| self.inner.master_key.open(ATTEMPT_PURPOSE, &sealed));
        opened
            .and_then(|text| serde_json::from_slice(&text).ok())
            .ok_or(Error::Attempt)
    }

    /// Ends a sign-in: exchanges what the person brought for who she is.
    pub(crate) async fn end_sign_in(
        &self,
        provider: Provider,
        attempt: &Secret,
        answer: Option<&AuthorizationResponse>,
    ) -> Result<SignedIn, Error> {
        let hash = digest::digest(&digest::SHA256, attempt.expose().as_bytes());
        let hash = hash.as_ref().try_into().expect("SHA-256 has 32 bytes");
        let attempt = self.open_attempt(attempt)?;
        let (now, party) = (self.now(), &self.inner.relying_party);
        if attempt.expires <= now {
            return Err(Error::Late);
        }
        if party.has_ended(&hash) {
            return Err(Error::Ended);
        }
        if attempt.issuer != provider.issuer || attempt.client_id != provider.client_id {
            return Err(Error::Attempt);
        }
        let client = self.client(provider)?;
        let known = party.known(&client.provider.issuer, now).await?;
        let tokens = self.tokens(&client, &known, &attempt.way, answer).await?;
        let id_token = tokens
            .id_token
            .as_ref()
            .ok_or(Error::Malformed("ID token"))?;
        let nonce = match &attempt.way {
            Way::Code { nonce, .. } => Some(nonce.as_str()),
            Way::Device { .. } => None,
        };
        let known = party.with_keys_for(known, id_token.expose(), now).await?;
        let expected = client.expected(now);
        let id_token = token::id_token(&known.keys, id_token.expose(), expected, nonce)?;
        let identity = self
            .identity(&client, &known, &tokens, Some(&id_token))
            .await?;
        Ok(SignedIn {
            org: attempt.org,
            public_key: attempt.public_key,
            provider: client.provider,
            identity,
            sid: id_token.sid,
            expires: id_token.expires,
            refresh_token: tokens.refresh_token,
            attempt: hash,
            attempt_expires: attempt.expires,
        })
    }

    async fn tokens(
        &self,
        client: &Client,
        known: &Known,
        way: &Way,
        answer: Option<&AuthorizationResponse>,
    ) -> Result<Tokens, Error> {
        let (what, party) = ("token", &self.inner.relying_party);
        let endpoint = &known.metadata.token_endpoint;
        match way {
            Way::Code {
                state,
                verifier,
                redirect,
                ..
            } => {
                let answer = answer.ok_or(Error::Attempt)?;
                if answer.state != *state {
                    return Err(Error::Attempt);
                }
                // Two providers must not be taken for each other (RFC 9207, 2.4).
                let names_itself = known
                    .metadata
                    .authorization_response_iss_parameter_supported;
                let issuer = answer.iss.as_ref();
                if issuer.is_some_and(|issuer| *issuer != known.metadata.issuer)
                    || (names_itself && issuer.is_none())
                {
                    return Err(Refusal::Issuer.into());
                }
                let redirect_uri = self.redirect_uri(*redirect);
                let form = [
                    ("grant_type", "authorization_code"),
                    ("code", answer.code.expose()),
                    ("redirect_uri", &redirect_uri),
                    ("code_verifier", verifier.expose()),
                ];
                party.ask(what, endpoint, known, client, &form).await
            }
            Way::Device {
                device_code,
                interval,
            } => {
                let form = [
                    ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
                    ("device_code", device_code.expose()),
                ];
                let asked = party.ask(what, endpoint, known, client, &form).await;
                asked.map_err(|error| or_pending(error, *interval))
            }
        }
    }

    /// Reads who the person is from the ID token, and from UserInfo what that does not say.
    async fn identity(
        &self,
        client: &Client,
        known: &Known,
        tokens: &Tokens,
        id_token: Option<&IdToken>,
    ) -> Result<Identity, Error> {
        let path = &client.provider.groups_claim;
        let found = id_token.map(|token| Identity::of(&token.subject, &token.claims, path));
        let endpoint = known.metadata.userinfo_endpoint.as_ref();
        let (found, endpoint) = match (found, endpoint) {
            (Some(found), None) => return Ok(found),
            (Some(found), Some(_)) if found.is_complete() => return Ok(found),
            (None, None) => return Err(Error::Missing("UserInfo endpoint")),
            (found, Some(endpoint)) => (found, endpoint),
        };
        let bearer = Authentication::Bearer(&tokens.access_token);
        let (status, body) = self
            .inner
            .relying_party
            .http
            .get(&endpoint.0, bearer)
            .await?;
        if status != StatusCode::OK {
            return Err(Error::Status("UserInfo", status));
        }
        let read = || Error::Malformed("UserInfo");
        let claims: serde_json::Value = serde_json::from_slice(&body).map_err(|_| read())?;
        let subject = claims.get("sub").and_then(serde_json::Value::as_str);
        let subject = subject.ok_or_else(read)?;
        let more = Identity::of(subject, &claims, path);
        match found {
            // Another person's answer must not be mixed in (OpenID Connect Core 1.0, 5.3.2).
            Some(found) if found.subject != more.subject => Err(Refusal::Subject.into()),
            Some(found) => Ok(found.or(more)),
            None => Ok(more),
        }
    }

    /// Reads a logout token of a provider.
    pub(crate) async fn logout_token(
        &self,
        provider: Provider,
        text: &str,
    ) -> Result<LogoutToken, Error> {
        let (now, party) = (self.now(), &self.inner.relying_party);
        let client = self.client(provider)?;
        let known = party.known(&client.provider.issuer, now).await?;
        let known = party.with_keys_for(known, text, now).await?;
        Ok(token::logout_token(
            &known.keys,
            text,
            client.expected(now),
        )?)
    }

    /// Seals a refresh token for a session.
    pub(crate) fn seal_refresh_token(&self, place: Place, token: &Secret) -> Vec<u8> {
        self.seal(&refresh_purpose(place), token.expose().as_bytes())
    }

    fn open_refresh_token(&self, session: &Session) -> Option<Secret> {
        let sealed = session.refresh_token.as_deref()?;
        let purpose = refresh_purpose(session.place);
        secret(&self.inner.master_key.open(&purpose, sealed)?)
    }

    fn client(&self, provider: Provider) -> Result<Client, Error> {
        let purpose = client_purpose(provider.org, &provider.issuer);
        let secret = match &provider.client_secret {
            None => None,
            Some(sealed) => {
                let opened = self.inner.master_key.open(&purpose, sealed);
                let opened = opened.and_then(|opened| secret(&opened));
                Some(opened.ok_or(Error::Malformed("client secret"))?)
            }
        };
        Ok(Client { provider, secret })
    }

    fn seal(&self, purpose: &[u8], text: &[u8]) -> Vec<u8> {
        let random = &*self.inner.random;
        self.inner.master_key.seal(random, purpose, text)
    }
}

impl Client {
    fn expected(&self, now: i64) -> Expected<'_> {
        Expected {
            issuer: &self.provider.issuer,
            client_id: &self.provider.client_id,
            now,
        }
    }
}

impl TryFrom<String> for Endpoint {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let url = Url::parse(&text).map_err(|_| "no URL")?;
        let is_plain = url.username().is_empty() && url.password().is_none();
        if url.scheme() == "https" && url.host().is_some() && is_plain {
            Ok(Self(url))
        } else {
            Err("no https URL")
        }
    }
}

/// Tells whether a text can be an issuer: an `https` URL without query and fragment (OpenID
/// Connect Core 1.0, 1.2).
pub(crate) fn is_issuer(text: &str) -> bool {
    let url = Endpoint::try_from(text.to_owned());
    url.is_ok_and(|url| url.0.query().is_none() && url.0.fragment().is_none())
}

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.code)?;
        if self.description.is_empty() {
            return Ok(());
        }
        write!(f, " ({})", self.description)
    }
}

/// What an attempt is sealed for.
const ATTEMPT_PURPOSE: &[u8] = b"ginnel oidc attempt";

fn client_purpose(org: OrgId, issuer: &str) -> Vec<u8> {
    format!("ginnel oidc client {org} {issuer}").into_bytes()
}

fn refresh_purpose(place: Place) -> Vec<u8> {
    let purpose = match place {
        Place::Device(node) => format!("ginnel oidc refresh {node}"),
        Place::Browser(browser) => format!("ginnel oidc refresh browser {browser}"),
    };
    purpose.into_bytes()
}

fn secret(opened: &[u8]) -> Option<Secret> {
    std::str::from_utf8(opened).ok().map(Secret::new)
}

fn scope(provider: &Provider) -> String {
    let mut scope = "openid".to_owned();
    for one in provider.scopes.iter().filter(|one| *one != "openid") {
        scope.push(' ');
        scope.push_str(one);
    }
    scope
}

/// Tells a person who has not decided yet from one who refused (RFC 8628, 3.5).
fn or_pending(error: Error, interval: u64) -> Error {
    let Error::Denied(denial) = &error else {
        return error;
    };
    match denial.code.as_str() {
        "authorization_pending" => Error::Pending(interval),
        "slow_down" => Error::Pending(interval + 5),
        _ => error,
    }
}

/// Draws 256 bits as text.
fn drawn(random: &dyn Random) -> String {
    let mut bytes = [0; 32];
    random.fill(&mut bytes);
    BASE64URL_NOPAD.encode(&bytes)
}

/// Reads an answer of an OAuth endpoint.
fn parse<T: DeserializeOwned>(
    what: &'static str,
    status: StatusCode,
    body: &Bytes,
) -> Result<T, Error> {
    if status == StatusCode::OK {
        return serde_json::from_slice(body).map_err(|_| Error::Malformed(what));
    }
    match serde_json::from_slice::<OauthError>(body) {
        Ok(error) if status.is_client_error() => Err(Error::Denied(Denial {
            code: printable(&error.error),
            description: printable(&error.error_description),
        })),
        Ok(_) | Err(_) => Err(Error::Status(what, status)),
    }
}

/// Returns the start of a foreign text, as far as it can stand in a log and on a terminal.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|letter| letter.is_ascii_graphic() || *letter == ' ')
        .take(TEXT_BYTES_MAX)
        .collect()
}
