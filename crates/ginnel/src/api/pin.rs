//! Trust in one server: the authority whose key a token pins, and no other.

use std::sync::Arc;

use aws_lc_rs::digest;
use model::token::Pin;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// Accepts a chain that ends at the authority of a pin. Names and times are held as always.
#[derive(Debug)]
pub(crate) struct PinVerifier {
    pin: Pin,
    provider: Arc<CryptoProvider>,
}

/// No certificate of the chain has the pinned key.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the server's certificate authority is not the one that the token names")]
pub(crate) struct PinMismatch;

/// Longest chain that is searched; our servers send two certificates.
const CHAIN_CERTIFICATES_MAX: usize = 8;

impl PinVerifier {
    /// Trusts the authority of `pin` alone.
    pub(crate) fn new(pin: Pin, provider: Arc<CryptoProvider>) -> Self {
        Self { pin, provider }
    }

    /// Returns the store that holds the pinned authority and nothing else.
    fn root(&self, chain: &[CertificateDer<'_>]) -> Option<RootCertStore> {
        chain
            .iter()
            .take(CHAIN_CERTIFICATES_MAX)
            .find_map(|certificate| {
                let mut roots = RootCertStore::empty();
                roots.add(certificate.clone().into_owned()).ok()?;
                let key = &roots.roots.first()?.subject_public_key_info;
                (pin(key) == self.pin).then_some(roots)
            })
    }
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mismatch = || CertificateError::Other(OtherError(Arc::new(PinMismatch)));
        let roots = self.root(intermediates).ok_or_else(mismatch)?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Hashes a key whose outer SEQUENCE the trust anchor leaves out (RFC 5914, 2; X.690, 8.1.3).
fn pin(key: &[u8]) -> Pin {
    let length = key.len().to_be_bytes();
    let length = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[0x30]);
    match length {
        [] => context.update(&[0]),
        [short @ 0..0x80] => context.update(&[*short]),
        long => {
            let count = u8::try_from(long.len()).expect("a length has at most 8 bytes");
            context.update(&[0x80 | count]);
            context.update(long);
        }
    }
    context.update(key);
    let hash = context.finish();
    Pin(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PublicKeyData as _,
    };
    use rustls::crypto::aws_lc_rs::default_provider;

    use super::*;

    type Issuer = CertifiedIssuer<'static, KeyPair>;

    #[test]
    fn only_what_the_pinned_authority_signed_is_accepted() {
        let (own, other) = (authority("own"), authority("other"));
        let pinned = digest::digest(&digest::SHA256, &own.key().subject_public_key_info());
        let pin = Pin(pinned.as_ref().try_into().unwrap());
        let verifier = PinVerifier::new(pin, Arc::new(default_provider()));
        let name = ServerName::try_from("vpn.example").unwrap();
        // 2026-11-22, within the default validity of rcgen's certificates.
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_795_305_600));
        let check = |leaf: &CertificateDer<'static>, chain: &[CertificateDer<'static>], right| {
            let verdict = verifier.verify_server_cert(leaf, chain, &name, &[], now);
            assert_eq!(verdict.is_ok(), right, "{verdict:?}");
        };
        let leaf = |issuer: &Issuer, name: &str| {
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            let key = KeyPair::generate().unwrap();
            params.signed_by(&key, issuer).unwrap().der().clone()
        };
        let (own_der, other_der) = (own.der().clone(), other.der().clone());
        let right = leaf(&own, "vpn.example");
        check(&right, std::slice::from_ref(&own_der), true);
        check(&right, &[other_der.clone(), own_der.clone()], true);
        // The authority itself must be in the chain; nothing else is known of it.
        check(&right, &[], false);
        check(&right, std::slice::from_ref(&other_der), false);
        // The authority's certificate is public: showing it beside a foreign one proves nothing.
        let foreign = leaf(&other, "vpn.example");
        check(&foreign, std::slice::from_ref(&own_der), false);
        check(&foreign, &[other_der.clone(), own_der.clone()], false);
        check(&own_der, std::slice::from_ref(&own_der), false);
        let misnamed = leaf(&own, "mail.example");
        check(&misnamed, std::slice::from_ref(&own_der), false);
        let garbage = CertificateDer::from(vec![0x30, 0x80]);
        check(&right, &[garbage.clone(), own_der], true);
        check(&garbage, &[other_der], false);
    }

    fn authority(name: &str) -> Issuer {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }
}
