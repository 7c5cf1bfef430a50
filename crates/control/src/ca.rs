//! The server's certificate: from its own authority, which tokens pin, or from an operator.
//!
//! The authority's key is the only private key on disk. A server certificate lives in memory and
//! is made anew at each start and before it ends; its chain carries the authority, so that a
//! client that knows the pin can verify it without any other trust.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use aws_lc_rs::digest;
use model::token::Pin;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls::{
    crypto::{CryptoProvider, aws_lc_rs::default_provider},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::CertificateSource;

/// How long the authority is valid: longer than an installation lives.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);

/// How long a server certificate is valid.
const SERVER_LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// How long clients' clocks may be behind.
const SKEW_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How often the certificate is made or read anew, well within its life.
pub(crate) const RENEWAL_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

const KEY_FILE: &str = "ca.key";
const CERTIFICATE_FILE: &str = "ca.pem";

/// The server's own certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pin: Pin,
}

/// Where the certificate that clients see comes from, and the one in use.
pub(crate) struct Certificates {
    source: Source,
    current: RwLock<Arc<CertifiedKey>>,
    provider: Arc<CryptoProvider>,
}

enum Source {
    Own {
        authority: Box<Authority>,
        host: String,
    },
    Files(CertificateSource),
}

impl Authority {
    /// Reads the authority from `data`, or makes it if neither of its files is there.
    pub(crate) fn open(data: &Path, now: SystemTime) -> anyhow::Result<Self> {
        let (key_path, certificate_path) = (data.join(KEY_FILE), data.join(CERTIFICATE_FILE));
        // The certificate is written last, so that a key without one is a first start cut short.
        if !certificate_path.exists() {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make a key")?;
            let certificate = self_signed(&key, now).context("make the authority")?;
            write_private(&key_path, key.serialize_pem().as_bytes())?;
            write_private(&certificate_path, certificate.pem().as_bytes())?;
        }
        let read = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))
        };
        let key = KeyPair::from_pem(&read(&key_path)?)
            .with_context(|| format!("parse `{}`", key_path.display()))?;
        let certificate = CertificateDer::from_pem_slice(read(&certificate_path)?.as_bytes())
            .with_context(|| format!("parse `{}`", certificate_path.display()))?;
        let pin = pin(&key);
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .with_context(|| format!("parse `{}`", certificate_path.display()))?;
        Ok(Self {
            issuer,
            certificate,
            pin,
        })
    }

    /// Tells whether `data` holds an authority.
    pub(crate) fn exists(data: &Path) -> bool {
        data.join(CERTIFICATE_FILE).exists() && data.join(KEY_FILE).exists()
    }

    /// Returns what tokens carry of the authority.
    pub(crate) fn pin(&self) -> Pin {
        self.pin
    }

    /// Makes a server certificate for `host`, a name or an address, and for this machine itself.
    fn issue(
        &self,
        host: &str,
        now: SystemTime,
        provider: &CryptoProvider,
    ) -> anyhow::Result<CertifiedKey> {
        let mut names = vec![host.to_owned()];
        let local = ["localhost", "127.0.0.1", "::1"].into_iter();
        names.extend(local.filter(|name| *name != host).map(str::to_owned));
        let mut params = CertificateParams::new(names).context("name the certificate")?;
        params.distinguished_name = common_name(host);
        params.not_before = (now - SKEW_MAX).into();
        params.not_after = (now + SERVER_LIFETIME).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make a key")?;
        let leaf = params
            .signed_by(&key, &self.issuer)
            .context("sign the certificate")?;
        let chain = vec![leaf.der().clone(), self.certificate.clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        CertifiedKey::from_der(chain, key, provider).context("use the certificate")
    }
}

impl Certificates {
    /// Serves certificates of the server's own authority for `host`.
    pub(crate) fn own(authority: Authority, host: &str, now: SystemTime) -> anyhow::Result<Self> {
        let source = Source::Own {
            authority: Box::new(authority),
            host: host.to_owned(),
        };
        Self::new(source, now)
    }

    /// Serves an operator's certificate.
    pub(crate) fn files(source: CertificateSource, now: SystemTime) -> anyhow::Result<Self> {
        Self::new(Source::Files(source), now)
    }

    /// Returns what tokens carry; an operator's certificate is not pinned.
    pub(crate) fn pin(&self) -> Option<Pin> {
        match &self.source {
            Source::Own { authority, .. } => Some(authority.pin()),
            Source::Files(_) => None,
        }
    }

    /// Makes or reads the certificate anew; connections that are open keep theirs.
    pub(crate) fn renew(&self, now: SystemTime) -> anyhow::Result<()> {
        let fresh = Arc::new(self.source.load(now, &self.provider)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    fn new(source: Source, now: SystemTime) -> anyhow::Result<Self> {
        let provider = Arc::new(default_provider());
        let current = RwLock::new(Arc::new(source.load(now, &provider)?));
        Ok(Self {
            source,
            current,
            provider,
        })
    }
}

impl Source {
    fn load(&self, now: SystemTime, provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
        match self {
            Self::Own { authority, host } => authority.issue(host, now, provider),
            Self::Files(CertificateSource::Files { chain, key }) => read(chain, key, provider),
            Self::Files(CertificateSource::Own) => anyhow::bail!("no certificate files are named"),
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(current.clone())
    }
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Certificates(..)")
    }
}

/// Writes a file that only its owner may read; after a crash it is whole or not there.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        let partial = path.with_extension("partial");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        fs::File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("write `{}`", path.display()))
}

fn read(chain: &Path, key: &Path, provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect)
        .with_context(|| format!("read the certificate `{}`", chain.display()))?;
    anyhow::ensure!(
        !certificates.is_empty(),
        "`{}` holds no certificate in PEM",
        chain.display()
    );
    let key_der = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("read the private key `{}`", key.display()))?;
    CertifiedKey::from_der(certificates, key_der, provider).with_context(|| {
        let (chain, key) = (chain.display(), key.display());
        format!("use the certificate `{chain}` with the private key `{key}`")
    })
}

fn pin(key: &KeyPair) -> Pin {
    let hash = digest::digest(&digest::SHA256, &key.subject_public_key_info());
    Pin(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

fn self_signed(key: &KeyPair, now: SystemTime) -> Result<rcgen::Certificate, rcgen::Error> {
    let mut params = CertificateParams::default();
    // Browsers tell authorities apart by name, so two installations need two names.
    let mark: String = pin(key).to_string().chars().take(8).collect();
    params.distinguished_name = common_name(&format!("ginnel authority {mark}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - SKEW_MAX).into();
    params.not_after = (now + AUTHORITY_LIFETIME).into();
    params.self_signed(key)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}
