//! Tokens of a provider of the test, right and wrong.

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;

use super::*;

const NOW: i64 = 1_800_000_000;
const ISSUER: &str = "https://id.example";
const CLIENT: &str = "ginnel";

/// A provider with one key.
struct Provider {
    key: EncodingKey,
    keys: JwkSet,
}

impl Provider {
    fn new(id: &str) -> Self {
        let pair = rcgen::KeyPair::generate().expect("a key on P-256");
        let key = EncodingKey::from_ec_der(&pair.serialize_der());
        let mut public = Jwk::from_encoding_key(&key, Algorithm::ES256).expect("a public key");
        public.common.key_id = Some(id.to_owned());
        public.common.key_algorithm = Some(KeyAlgorithm::ES256);
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        let keys = JwkSet { keys: vec![public] };
        Self { key, keys }
    }

    fn sign(&self, claims: &Value) -> String {
        encode(&header("one"), claims, &self.key).expect("a signature")
    }

    fn read(&self, text: &str) -> Result<IdToken, Refusal> {
        id_token(&self.keys, text, expected(), Some("n"))
    }
}

fn header(id: &str) -> Header {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(id.to_owned());
    header
}

fn expected() -> Expected<'static> {
    Expected {
        issuer: ISSUER,
        client_id: CLIENT,
        now: NOW,
    }
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "7", "aud": CLIENT, "exp": NOW + 300, "iat": NOW, "nonce": "n",
        "sid": "s", "groups": ["ops"],
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

#[test]
fn an_id_token_counts_if_every_claim_is_right() {
    let provider = Provider::new("one");
    let token = provider
        .read(&provider.sign(&claims()))
        .expect("it is right");
    assert_eq!((token.subject.as_str(), token.expires), ("7", NOW + 300));
    assert_eq!(token.sid.as_deref(), Some("s"));
    assert_eq!(token.claims["groups"], json!(["ops"]));
    let check = |name: &str, value: Value, expected: Option<Refusal>| {
        let read = provider.read(&provider.sign(&with(name, value.clone())));
        assert_eq!(read.err(), expected, "{name} {value}");
    };
    check("iss", json!("https://evil.example"), Some(Refusal::Issuer));
    check("iss", json!("https://id.example/"), Some(Refusal::Issuer));
    check("aud", json!("other"), Some(Refusal::Audience));
    check("aud", json!([]), Some(Refusal::Audience));
    check("aud", json!([CLIENT]), None);
    check("aud", json!([CLIENT, "other"]), Some(Refusal::Audience));
    check("azp", json!("other"), Some(Refusal::Audience));
    check("azp", json!(CLIENT), None);
    check("exp", json!(NOW - 61), Some(Refusal::Expired));
    check("exp", json!(NOW - 59), None);
    check("exp", json!(i64::MIN), Some(Refusal::Expired));
    check("exp", Value::Null, Some(Refusal::Malformed));
    check("exp", json!("soon"), Some(Refusal::Malformed));
    check("iat", json!(NOW + 61), Some(Refusal::NotYet));
    check("nbf", json!(NOW + 61), Some(Refusal::NotYet));
    check("nonce", json!("other"), Some(Refusal::Nonce));
    check("nonce", Value::Null, Some(Refusal::Nonce));
    check("sub", Value::Null, Some(Refusal::Malformed));
    check("sub", json!(""), Some(Refusal::Malformed));
    check("sub", json!("x".repeat(256)), Some(Refusal::Malformed));
    check("sub", json!(7), Some(Refusal::Malformed));
}

#[test]
fn a_token_that_the_provider_did_not_sign_never_counts() {
    let (provider, other) = (Provider::new("one"), Provider::new("one"));
    let right = provider.sign(&claims());
    let check = |text: &str, expected: Refusal| {
        assert_eq!(provider.read(text).unwrap_err(), expected, "{text}");
    };
    check(&other.sign(&claims()), Refusal::Signature);
    let parts: Vec<_> = right.split('.').collect();
    let changed = BASE64URL_NOPAD.encode(with("sub", json!("8")).to_string().as_bytes());
    check(
        &format!("{}.{changed}.{}", parts[0], parts[2]),
        Refusal::Signature,
    );
    check(&format!("{}.{}.", parts[0], parts[1]), Refusal::Signature);
    // No algorithm, in every spelling.
    for none in ["none", "None", "NONE", ""] {
        let head = BASE64URL_NOPAD.encode(json!({"alg": none}).to_string().as_bytes());
        check(&format!("{head}.{}.", parts[1]), Refusal::Malformed);
        check(
            &format!("{head}.{}.{}", parts[1], parts[2]),
            Refusal::Malformed,
        );
    }
    // A MAC whose key everybody knows: the public one.
    let public = serde_json::to_vec(&provider.keys.keys[0]).expect("plain data");
    let mut mac = Header::new(Algorithm::HS256);
    mac.kid = Some("one".to_owned());
    let secret = EncodingKey::from_secret(&public);
    check(
        &encode(&mac, &claims(), &secret).unwrap(),
        Refusal::Algorithm,
    );
    let unknown = encode(&header("two"), &claims(), &provider.key).unwrap();
    check(&unknown, Refusal::Key);
    let mut critical = header("one");
    critical.crit = Some(vec!["b64".to_owned()]);
    check(
        &encode(&critical, &claims(), &provider.key).unwrap(),
        Refusal::Critical,
    );
    for text in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        &"x".repeat(TOKEN_BYTES_MAX + 1),
    ] {
        check(text, Refusal::Malformed);
    }
}

#[test]
fn a_key_is_used_for_what_its_provider_made_it() {
    let mut provider = Provider::new("one");
    let right = provider.sign(&claims());
    provider.keys.keys[0].common.key_algorithm = Some(KeyAlgorithm::ES384);
    assert_eq!(provider.read(&right).unwrap_err(), Refusal::Algorithm);
    provider.keys.keys[0].common.key_algorithm = None;
    assert!(provider.read(&right).is_ok());
    provider.keys.keys[0].common.public_key_use = Some(PublicKeyUse::Encryption);
    assert_eq!(provider.read(&right).unwrap_err(), Refusal::Key);
}

#[test]
fn only_a_key_that_is_unknown_makes_the_keys_be_fetched_again() {
    let provider = Provider::new("one");
    let asks = |text: &str| names_unknown_key(&provider.keys, text);
    assert!(!asks(&provider.sign(&claims())));
    assert!(asks(
        &encode(&header("two"), &claims(), &provider.key).unwrap()
    ));
    assert!(!asks("x"));
    let mac = EncodingKey::from_secret(b"x");
    let mac = encode(&Header::new(Algorithm::HS256), &claims(), &mac).unwrap();
    assert!(!asks(&mac));
}

#[test]
fn a_logout_token_is_no_id_token_and_the_other_way_round() {
    let provider = Provider::new("one");
    let event = json!({ LOGOUT_EVENT: {} });
    let logout = json!({
        "iss": ISSUER, "sub": "7", "aud": CLIENT, "iat": NOW, "exp": NOW + 60, "jti": "j",
        "events": event,
    });
    let read = |claims: &Value| logout_token(&provider.keys, &provider.sign(claims), expected());
    let token = read(&logout).expect("it is right");
    assert_eq!(token.subject.as_deref(), Some("7"));
    assert_eq!(token.issued, NOW);
    assert_eq!(
        provider.read(&provider.sign(&logout)).unwrap_err(),
        Refusal::Nonce
    );
    let check = |name: &str, value: Value, expected: Refusal| {
        let mut claims = logout.clone();
        claims[name] = value;
        assert_eq!(read(&claims).unwrap_err(), expected, "{claims}");
    };
    check("events", json!({}), Refusal::Event);
    check("events", json!({ LOGOUT_EVENT: true }), Refusal::Event);
    check("events", json!({"http://other": {}}), Refusal::Event);
    check("nonce", json!("n"), Refusal::Event);
    check("sub", Value::Null, Refusal::Event);
    check("iat", json!(NOW - 121), Refusal::Expired);
    check("iat", json!(NOW + 61), Refusal::NotYet);
    check("exp", json!(NOW - 61), Refusal::Expired);
    check("iss", json!("https://evil.example"), Refusal::Issuer);
    check("aud", json!("other"), Refusal::Audience);
    assert_eq!(read(&claims()).unwrap_err(), Refusal::Event);
}
