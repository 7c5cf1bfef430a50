//! Text and files that people and servers hand us: total parsers, and what they accept is stable.

use std::net::Ipv6Addr;

use model::{
    address::OrgPrefix,
    config::Config,
    endpoint::Endpoint,
    key::{PublicKey, SecretKey},
    map::NetworkMap,
    name::Label,
    ssh::{CertificateText, KeyId, Principal, PublicKeyText, Statement},
    token::Token,
    zone::{Kind, Name, Question, Zone},
};

/// A plain WireGuard configuration.
pub fn config(data: &[u8]) {
    let Ok(config) = Config::parse(data) else {
        return;
    };
    let text = config.emit();
    let again = Config::parse(text.as_bytes()).expect("our own file");
    assert_eq!(again.emit(), text, "emitted twice");
}

/// The text of a token.
pub fn token(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(token) = text.parse::<Token>() else {
        return;
    };
    let emitted = token.emit();
    assert!(
        emitted.eq_ignore_ascii_case(text.trim_ascii()),
        "no two texts for one token"
    );
    assert!(emitted.parse::<Token>().is_ok_and(|again| again == token));
    assert!(
        !format!("{token:?}").contains(&emitted[12..]),
        "a token is not printed"
    );
}

/// Labels, endpoints, keys, prefixes and names: what `Display` writes parses to the same value.
pub fn text(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(label) = text.parse::<Label>() {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        assert!(
            label.as_str().bytes().all(plain),
            "safe in files, shell lines and pages"
        );
        assert_eq!(label.to_string().parse(), Ok(label));
    }
    if let Ok(endpoint) = text.parse::<Endpoint>() {
        assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
    }
    if let Ok(key) = text.parse::<PublicKey>() {
        assert_eq!(key.to_string(), text);
    }
    if let Ok(secret) = text.parse::<SecretKey>() {
        assert_eq!(secret.to_base64(), text);
        assert!(!format!("{secret:?}").contains(&*text));
    }
    if let Ok(prefix) = text.parse::<OrgPrefix>() {
        assert_eq!(prefix.to_string().parse(), Ok(prefix));
    }
    ssh(&text);
    let _ = Name::parse(&text);
    let _ = Name::parse_relative(&text);
}

/// SSH's texts, and a statement of CA keys with one string a line.
fn ssh(text: &str) {
    if let Ok(key) = text.parse::<PublicKeyText>() {
        assert_eq!(key.to_string().parse(), Ok(key));
    }
    if let Ok(principal) = text.parse::<Principal>() {
        assert_eq!(principal.as_str(), text);
    }
    if let Ok(key_id) = text.parse::<KeyId>() {
        assert_eq!(key_id.as_str(), text);
    }
    if let Ok(certificate) = text.parse::<CertificateText>() {
        assert_eq!(certificate.as_str().parse(), Ok(certificate));
    }
    let strings: Vec<_> = text.split('\n').collect();
    let org = OrgPrefix::new([1; 5]);
    if let Ok(statement) = Statement::from_txt(org, &strings) {
        assert_eq!(
            statement.to_txt(org),
            strings,
            "no two records for one statement"
        );
    }
}

/// A network map, as it comes from the control plane or from disk, and names asked of it.
pub fn map(data: &[u8]) {
    let Ok(map) = serde_json::from_slice::<NetworkMap>(data) else {
        return;
    };
    let text = serde_json::to_vec(&map).expect("a map is plain data");
    assert!(serde_json::from_slice::<NetworkMap>(&text).is_ok_and(|again| again == map));
    for org in map.orgs.values() {
        let zone = Zone::new(org, map.serial);
        for node in org.nodes.values() {
            let name = Name::Node(node.name.clone());
            let question = Question {
                name,
                kind: Kind::Aaaa,
            };
            let _ = zone.answer(Ipv6Addr::LOCALHOST, &question, map.serial);
        }
    }
}
