//! Stories about SSH's texts: what is ours parses to itself, all else is refused.

use proptest::prelude::*;

use super::*;
use crate::address::OrgPrefix;

/// `ssh-keygen` made it; the second half of the base64 is the key itself.
const KEY: &str = "ssh-ed25519 \
                   AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";

fn org(byte: u8) -> OrgPrefix {
    OrgPrefix::new([byte; 5])
}

fn statement(users: usize, hosts: usize) -> Statement {
    let keys = |count: usize, kind: u8| {
        let key = |index: usize| {
            let mut bytes = [kind; 32];
            bytes[0] = u8::try_from(index).expect("few keys");
            PublicKeyText(bytes)
        };
        (0..count).map(key).collect()
    };
    Statement {
        version: 3,
        keys: CaKeys {
            user: keys(users, 1),
            host: keys(hosts, 2),
        },
        signature: SignatureText([9; 64]),
    }
}

#[test]
fn a_public_key_is_its_openssh_text_without_the_comment() {
    let key: PublicKeyText = format!("{KEY} me@laptop\n").parse().expect("a key");
    assert_eq!(key, PublicKeyText([1; 32]));
    assert_eq!(key.to_string(), KEY);
}

#[test]
fn what_is_no_ed25519_key_is_refused() {
    let check = |text: &str| {
        assert_eq!(
            text.parse::<PublicKeyText>(),
            Err(MalformedPublicKey),
            "{text}"
        );
    };
    for text in [
        "",
        "ssh-ed25519",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ==",
        "AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB",
        "ssh-ed25519-cert-v01@openssh.com AAAA",
    ] {
        check(text);
    }
    check(&KEY[..KEY.len() - 1]);
    check(&KEY.replacen("IAEB", "IQEB", 1));
    check(&KEY.replacen("lZDI1NTE5", "lZDI1NTE4", 1));
    check(&format!("{KEY}AAAA"));
    check(&format!("ssh-ed25519 {}", "A".repeat(1 << 20)));
}

#[test]
fn a_principal_cannot_break_out_of_a_file_of_openssh() {
    for text in [
        "root",
        "db",
        "db.acme.internal",
        "fd00::1",
        "_apt",
        "a@b",
        "a+b-c",
    ] {
        assert_eq!(text.parse::<Principal>().expect(text).as_str(), text);
    }
    let long = "a".repeat(256);
    for text in [
        "",
        " ",
        "a b",
        "a,b",
        "*",
        "!a",
        "a\nroot",
        "a\0",
        "\"a\"",
        "$(id)",
        "-oProxyCommand=x",
        "#a",
        "%u",
        "ä",
        "a\\",
        &long,
    ] {
        assert_eq!(text.parse::<Principal>(), Err(MalformedPrincipal), "{text}");
    }
}

#[test]
fn a_key_id_is_one_printable_word() {
    assert!("user=1;name=admin;request=0a-1".parse::<KeyId>().is_ok());
    let long = "a".repeat(256);
    for text in ["", "a b", "a\n", "\u{1b}[2J", "\"", "'", "\\", "ä", &long] {
        assert_eq!(text.parse::<KeyId>(), Err(MalformedKeyId), "{text}");
    }
}

#[test]
fn a_statement_is_read_back_from_its_record_which_fits_a_packet() {
    for (users, hosts) in [(1, 1), (2, 2), (CA_KEYS_MAX, CA_KEYS_MAX), (0, 0)] {
        let statement = statement(users, hosts);
        let txt = statement.to_txt(org(1));
        assert!(txt.iter().all(|string| string.len() <= 255));
        assert!(txt.iter().map(|string| string.len() + 1).sum::<usize>() < 1_100);
        assert_eq!(Statement::from_txt(org(1), &txt), Ok(statement.clone()));
        let message = Statement::message(org(1), 3, &statement.keys);
        let signed = format!("{}\n", txt[..txt.len() - 1].join("\n"));
        assert_eq!(message, signed.into_bytes());
    }
}

#[test]
fn what_is_no_statement_of_the_organisation_is_refused() {
    let txt = statement(1, 1).to_txt(org(1));
    let check = |txt: &[String], fault| {
        assert_eq!(Statement::from_txt(org(1), txt), Err(fault), "{txt:?}");
    };
    check(
        &statement(1, 1).to_txt(org(2)),
        MalformedStatement::OtherOrg,
    );
    let crowd = statement(CA_KEYS_MAX + 1, 1).to_txt(org(1));
    check(&crowd, MalformedStatement::TooManyKeys);
    check(&[], MalformedStatement::Form);
    for missing in 0..txt.len() {
        let mut less = txt.clone();
        less.remove(missing);
        if less.iter().any(|string| string.starts_with("user="))
            && less.iter().any(|string| string.starts_with("host="))
        {
            assert!(Statement::from_txt(org(1), &less).is_err(), "{less:?}");
        }
    }
    let mut more = txt.clone();
    more.push("user=x".to_owned());
    check(&more, MalformedStatement::Form);
    let mut zeros = txt;
    zeros[2] = "version=003".to_owned();
    check(&zeros, MalformedStatement::Form);
}

#[test]
fn a_certificate_has_its_form_and_a_bound() {
    let blob = "AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29t";
    let text = format!("ssh-ed25519-cert-v01@openssh.com {blob}");
    let parsed: CertificateText = format!("{text} me@here\n").parse().expect("a certificate");
    assert_eq!(parsed.as_str(), text);
    let long = format!("{text}{}", "A".repeat(CertificateText::LENGTH_MAX));
    for text in ["", KEY, &text[..50], &long, &text.replacen("v01", "v00", 1)] {
        assert_eq!(
            text.parse::<CertificateText>(),
            Err(MalformedCertificate),
            "{text}"
        );
    }
}

#[test]
fn more_than_the_bounds_is_refused_when_read() {
    let keys = vec![KEY; CA_KEYS_MAX + 1];
    let text = serde_json::json!({ "user": keys, "host": [] }).to_string();
    assert!(serde_json::from_str::<CaKeys>(&text).is_err());
    let principals = vec!["a"; PRINCIPALS_MAX + 1];
    let text = serde_json::json!({ "public_key": KEY, "principals": principals }).to_string();
    assert!(serde_json::from_str::<UserCertificateRequest>(&text).is_err());
}

proptest! {
    #[test]
    fn any_text_is_a_value_with_one_form_or_an_error(
        text in "(ssh-ed25519 )?[A-Za-z0-9+/= ]{0,90}",
    ) {
        if let Ok(key) = text.parse::<PublicKeyText>() {
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }
        if let Ok(principal) = text.parse::<Principal>() {
            prop_assert_eq!(principal.as_str(), text.as_str());
        }
    }

    #[test]
    fn any_record_is_a_statement_or_an_error(
        strings in proptest::collection::vec(".{0,40}", 0..8),
    ) {
        drop(Statement::from_txt(org(1), &strings));
    }

    #[test]
    fn any_change_of_one_byte_is_noticed_or_signed(index in 0usize..600, byte in 32u8..127) {
        let statement = statement(2, 2);
        let mut record = statement.to_txt(org(1)).join("\u{1f}").into_bytes();
        let index = index % record.len();
        record[index] = byte;
        let record = String::from_utf8(record).expect("ASCII stays ASCII");
        let strings: Vec<_> = record.split('\u{1f}').collect();
        if let Ok(read) = Statement::from_txt(org(1), &strings) {
            let same = Statement::message(org(1), read.version, &read.keys)
                == Statement::message(org(1), statement.version, &statement.keys);
            prop_assert_eq!(read == statement, same && read.signature == statement.signature);
        }
    }
}
