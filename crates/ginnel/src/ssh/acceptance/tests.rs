//! One good certificate, and every way in which one is bad.

use russh::keys::{
    PrivateKey,
    ssh_key::{
        certificate::{Builder, CertType},
        private::{EcdsaKeypair, Ed25519Keypair, KeypairData},
        rand_core::CryptoRng,
    },
};

use super::*;

const NOW: u64 = 1_800_000_000;

fn key(seed: u8) -> PrivateKey {
    let pair = Ed25519Keypair::from_seed(&[seed; 32]);
    PrivateKey::new(KeypairData::Ed25519(pair), "").unwrap()
}

fn authority() -> Authority {
    Authority {
        user_ca: vec![
            key(1).public_key().key_data().clone(),
            key(2).public_key().key_data().clone(),
        ],
        host_ca: vec![key(3).public_key().key_data().clone()],
        revoked: BTreeSet::from([666]),
        cut: Some(3),
        ..Authority::default()
    }
}

fn builder(subject: &PrivateKey) -> Builder {
    typed(subject, CertType::User, 5)
}

fn typed(subject: &PrivateKey, kind: CertType, serial: u64) -> Builder {
    let key = subject.public_key().key_data().clone();
    let mut builder = Builder::new([7; 16], key, NOW - 60, NOW + 3_600).unwrap();
    builder.serial(serial).unwrap();
    builder.key_id("ann, request 9").unwrap();
    builder.cert_type(kind).unwrap();
    builder
}

fn good() -> Builder {
    let mut builder = builder(&key(9));
    builder.valid_principal("deploy").unwrap();
    builder.valid_principal("ann").unwrap();
    builder
}

fn signed(builder: Builder, signer: &PrivateKey) -> Certificate {
    builder.sign(signer).unwrap()
}

fn decide(certificate: &Certificate) -> Result<Permit, Refusal> {
    let asked = Asked {
        user: "ann",
        source: "fd00::7".parse().unwrap(),
        now: NOW,
    };
    accept(certificate, asked, &authority())
}

#[track_caller]
#[expect(
    clippy::needless_pass_by_value,
    reason = "each caller makes its own, and the tests read better without a borrow"
)]
fn check(certificate: &Certificate, expected: Refusal, text: &str) {
    assert_eq!(decide(certificate), Err(expected.clone()));
    assert_eq!(expected.to_string(), text);
}

#[test]
fn a_certificate_of_the_current_or_the_next_ca_is_accepted() {
    for signer in [key(1), key(2)] {
        let permit = decide(&signed(good(), &signer)).unwrap();
        assert_eq!(
            (permit.serial, permit.key_id.as_str()),
            (5, "ann, request 9")
        );
        assert!(
            !permit.pty && !permit.port_forwarding,
            "nothing unsaid is permitted"
        );
        assert_eq!(permit.authority, signer.public_key().to_bytes().unwrap());
    }
}

#[test]
fn extensions_permit_what_they_name() {
    let mut builder = good();
    builder.extension("permit-pty", "").unwrap();
    builder.extension("permit-X11-forwarding", "").unwrap();
    builder
        .extension("permit-something-new@example.org", "")
        .unwrap();
    let permit = decide(&signed(builder, &key(1))).unwrap();
    assert!(permit.pty && permit.x11_forwarding);
    assert!(!permit.agent_forwarding && !permit.port_forwarding);
}

#[test]
fn a_host_certificate_is_not_for_users() {
    let mut builder = typed(&key(9), CertType::Host, 5);
    builder.valid_principal("ann").unwrap();
    let certificate = signed(builder, &key(1));
    check(
        &certificate,
        Refusal::NotForUsers,
        "a host certificate is not for users",
    );
}

#[test]
fn another_ca_is_not_ours_and_neither_is_the_host_ca() {
    for signer in [key(4), key(3)] {
        let certificate = signed(good(), &signer);
        check(
            &certificate,
            Refusal::WrongAuthority,
            "it was signed by another CA",
        );
    }
}

#[test]
fn the_key_of_a_ca_does_not_log_in() {
    for subject in [key(1), key(2), key(3)] {
        let mut builder = builder(&subject);
        builder.valid_principal("ann").unwrap();
        let certificate = signed(builder, &key(1));
        check(
            &certificate,
            Refusal::KeyOfAuthority,
            "it certifies the key of a CA",
        );
    }
}

#[test]
fn a_certificate_lives_from_its_first_second_to_before_its_last() {
    let at = |now| {
        let asked = Asked {
            user: "ann",
            source: "fd00::7".parse().unwrap(),
            now,
        };
        accept(&signed(good(), &key(1)), asked, &authority()).map(|permit| permit.serial)
    };
    assert_eq!(at(NOW - 61), Err(Refusal::NotYetValid));
    assert_eq!(at(NOW - 60), Ok(5));
    assert_eq!(at(NOW + 3_599), Ok(5));
    assert_eq!(at(NOW + 3_600), Err(Refusal::Expired));
    assert_eq!(Refusal::NotYetValid.to_string(), "it is not valid yet");
    assert_eq!(Refusal::Expired.to_string(), "it has expired");
}

#[test]
fn the_user_has_to_be_a_principal_and_no_principal_means_nobody() {
    let text = "user `ann` is not among its principals";
    let mut other = builder(&key(9));
    other.valid_principal("Ann").unwrap();
    check(
        &signed(other, &key(1)),
        Refusal::WrongPrincipal("ann".into()),
        text,
    );
    let mut all = builder(&key(9));
    all.all_principals_valid().unwrap();
    check(
        &signed(all, &key(1)),
        Refusal::WrongPrincipal("ann".into()),
        text,
    );
}

#[test]
fn the_source_address_is_obeyed() {
    let with = |networks: &str| {
        let mut builder = good();
        builder.critical_option("source-address", networks).unwrap();
        decide(&signed(builder, &key(1))).map(|permit| permit.serial)
    };
    let source: IpAddr = "fd00::7".parse().unwrap();
    for networks in ["fd00::7", "fd00::7/128", "10.0.0.0/8,fd00::/64", "::/0"] {
        assert_eq!(with(networks), Ok(5), "{networks}");
    }
    for networks in [
        "fd00::8",
        "fd01::/16",
        "10.0.0.0/8",
        "0.0.0.0/0",
        "",
        "fd00::/129",
        "x/0",
    ] {
        assert_eq!(
            with(networks),
            Err(Refusal::WrongSource(source)),
            "{networks}"
        );
    }
    let text = Refusal::WrongSource(source).to_string();
    assert_eq!(text, "it was not made for a login from fd00::7");
}

#[test]
fn a_forced_command_is_passed_on() {
    let mut builder = good();
    builder.critical_option("force-command", "date").unwrap();
    let permit = decide(&signed(builder, &key(1))).unwrap();
    assert_eq!(permit.force_command.as_deref(), Some("date"));
}

#[test]
fn an_unknown_critical_option_refuses() {
    let mut builder = good();
    builder.critical_option("verify-required", "").unwrap();
    let refusal = Refusal::UnknownCriticalOption("verify-required".into());
    let text = "its critical option `verify-required` is not known here";
    check(&signed(builder, &key(1)), refusal, text);
}

#[test]
fn a_revoked_serial_refuses() {
    let mut builder = typed(&key(9), CertType::User, 666);
    builder.valid_principal("ann").unwrap();
    check(
        &signed(builder, &key(1)),
        Refusal::Revoked(666),
        "serial 666 was revoked",
    );
}

#[test]
fn only_ed25519_signs() {
    let pair = EcdsaKeypair::random(&mut Fixed, russh::keys::EcdsaCurve::NistP256).unwrap();
    let signer = PrivateKey::new(KeypairData::Ecdsa(pair), "").unwrap();
    let refusal = Refusal::WeakSignature("ecdsa-sha2-nistp256".into());
    let text = "its signature is of type `ecdsa-sha2-nistp256`";
    check(&signed(good(), &signer), refusal, text);
}

#[test]
fn a_changed_certificate_is_refused() {
    let certificate = signed(good(), &key(1));
    let mut bytes = certificate.to_bytes().unwrap();
    let at = bytes.windows(3).position(|word| word == b"ann").unwrap();
    bytes[at..at + 3].copy_from_slice(b"bob");
    let changed = Certificate::from_bytes(&bytes).unwrap();
    check(&changed, Refusal::WrongSignature, "its signature is wrong");
}

/// The signature key of a good certificate is replaced by the whole certificate of the CA's key,
/// which is itself well signed.
#[test]
fn a_certificate_that_a_certificate_signed_is_refused() {
    let certificate = signed(good(), &key(1));
    let nested = signed(good(), &key(1)).to_bytes().unwrap();
    let mut bytes = certificate.to_bytes().unwrap();
    let signer = key(1).public_key().to_bytes().unwrap();
    let at = bytes
        .windows(signer.len())
        .position(|part| part == signer)
        .unwrap();
    let mut replaced = bytes[..at - 4].to_vec();
    replaced.extend(u32::try_from(nested.len()).unwrap().to_be_bytes());
    replaced.extend(&nested);
    replaced.extend(bytes.split_off(at + signer.len()));
    // Either the parser does not take it, or we do not.
    if let Ok(certificate) = Certificate::from_bytes(&replaced) {
        let text = "it was signed by a certificate, not by a key";
        check(&certificate, Refusal::SignedByCertificate, text);
    }
}

#[test]
fn a_host_proves_its_name_by_the_host_ca_alone() {
    let host = |signer: &PrivateKey, kind, wanted: &str| {
        let mut builder = typed(&key(9), kind, 5);
        builder.valid_principal("db.internal").unwrap();
        let certificate = signed(builder, signer);
        accept_host(&certificate, wanted, NOW, &authority().host_ca)
    };
    assert_eq!(host(&key(3), CertType::Host, "DB.internal"), Ok(()));
    assert_eq!(
        host(&key(3), CertType::User, "db.internal"),
        Err(HostRefusal::NotForHosts)
    );
    assert_eq!(
        host(&key(1), CertType::Host, "db.internal"),
        Err(Refusal::WrongAuthority.into())
    );
    let refusal = host(&key(3), CertType::Host, "web.internal").unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "it is for `db.internal`, not for `web.internal`"
    );
}

/// Not random: a test does not need to be.
struct Fixed;

impl russh::keys::ssh_key::rand_core::TryRng for Fixed {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(5)
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(5)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        bytes.fill(5);
        Ok(())
    }
}

impl russh::keys::ssh_key::rand_core::TryCryptoRng for Fixed {}

const _: fn() = || {
    fn is_random(_: impl CryptoRng) {}
    let _ = || is_random(Fixed);
};

#[test]
fn who_came_in_stays_as_long_as_nothing_was_taken_back() {
    let permit = decide(&signed(good(), &key(1))).unwrap();
    let still = |change: fn(&mut Authority)| {
        let mut authority = authority();
        change(&mut authority);
        permit.still(&authority)
    };
    assert_eq!(still(|_| ()), Ok(()));
    assert_eq!(still(|now| now.cut = Some(4)), Ok(()));
    for cut in [5, u64::MAX] {
        let mut now = authority();
        now.cut = Some(cut);
        assert_eq!(permit.still(&now), Err(Refusal::Revoked(5)));
    }
    let revoked = still(|now| now.revoked = BTreeSet::from([5]));
    assert_eq!(revoked, Err(Refusal::Revoked(5)));
    assert_eq!(still(|now| now.is_stranger = true), Err(Refusal::Stranger));
    let replaced = still(|now| now.user_ca.clear());
    assert_eq!(replaced, Err(Refusal::WrongAuthority));
}

#[test]
fn a_certificate_from_before_a_revocation_of_its_node_is_refused() {
    let mut before = typed(&key(9), CertType::User, 3);
    before.valid_principal("ann").unwrap();
    check(
        &signed(before, &key(1)),
        Refusal::Revoked(3),
        "serial 3 was revoked",
    );
}
