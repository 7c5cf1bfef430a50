//! Whether a user certificate lets its holder in, and what it permits (OpenSSH PROTOCOL.certkeys).

use std::{collections::BTreeSet, net::IpAddr};

use model::ssh::{Reason, Recording};
use russh::keys::{
    Algorithm, Certificate,
    ssh_key::{certificate::OptionsMap, public::KeyData},
};
use thiserror::Error;

/// Whom an organisation trusts at one moment, as one peer meets it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Authority {
    /// Who signs user certificates: the current and the next key.
    pub(crate) user_ca: Vec<KeyData>,
    /// Who signs host certificates.
    pub(crate) host_ca: Vec<KeyData>,
    /// Serials of certificates that count no more.
    pub(crate) revoked: BTreeSet<u64>,
    /// Certificates up to this serial count no more if they come from the peer's address.
    pub(crate) cut: Option<u64>,
    /// The peer's address belongs to nobody any more.
    pub(crate) is_stranger: bool,
    /// Which sessions have to be recorded.
    pub(crate) recording: Recording,
}

/// Who asks to come in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// The account that is asked for.
    pub(crate) user: &'a str,
    /// The peer's address inside the network.
    pub(crate) source: IpAddr,
    /// Seconds since 1970.
    pub(crate) now: u64,
}

/// What an accepted certificate permits.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Permit {
    /// Who was named when the certificate was signed.
    pub(crate) key_id: String,
    /// Its serial.
    pub(crate) serial: u64,
    /// Who signed it.
    pub(crate) authority: Vec<u8>,
    /// This command runs, whatever is asked for.
    pub(crate) force_command: Option<String>,
    /// Terminals.
    pub(crate) pty: bool,
    /// Connections and listeners.
    pub(crate) port_forwarding: bool,
    /// The agent of the person.
    pub(crate) agent_forwarding: bool,
    /// The display of the person.
    pub(crate) x11_forwarding: bool,
}

impl Permit {
    /// Decides whether who came in by this may stay.
    pub(crate) fn still(&self, authority: &Authority) -> Result<(), Refusal> {
        authority.takes(self.serial)?;
        let mut trusted = authority.user_ca.iter();
        let is_trusted = trusted.any(|key| encoded(key).is_ok_and(|key| key == self.authority));
        is_trusted.then_some(()).ok_or(Refusal::WrongAuthority)
    }
}

impl Authority {
    /// Passes unless a certificate was taken back, or its holder's node left the network.
    fn takes(&self, serial: u64) -> Result<(), Refusal> {
        if self.is_stranger {
            return Err(Refusal::Stranger);
        }
        if self.revoked.contains(&serial) || self.cut.is_some_and(|cut| serial <= cut) {
            return Err(Refusal::Revoked(serial));
        }
        Ok(())
    }
}

/// Why somebody does not come in.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub(crate) enum Refusal {
    /// A password was sent.
    #[error("a password: only certificates are accepted")]
    Password,
    /// A bare key was offered.
    #[error("a public key without a certificate")]
    RawKey,
    /// Who is trusted could not be found out.
    #[error("the CA keys of the organisation are not known now: {0}")]
    NoAuthority(String),
    /// A host certificate.
    #[error("a host certificate is not for users")]
    NotForUsers,
    /// The signature key is itself a certificate: a chain, which certificates do not form.
    #[error("it was signed by a certificate, not by a key")]
    SignedByCertificate,
    /// The certified key is itself a certificate.
    #[error("it certifies a certificate, not a key")]
    CertifiesCertificate,
    /// Signed by somebody else.
    #[error("it was signed by another CA")]
    WrongAuthority,
    /// The CA's own key asks for a login.
    #[error("it certifies the key of a CA")]
    KeyOfAuthority,
    /// Signed by an algorithm that we do not trust.
    #[error("its signature is of type `{0}`")]
    WeakSignature(String),
    /// The signature is wrong.
    #[error("its signature is wrong")]
    WrongSignature,
    /// Before its time.
    #[error("it is not valid yet")]
    NotYetValid,
    /// After its time.
    #[error("it has expired")]
    Expired,
    /// It does not name the account.
    #[error("user `{0}` is not among its principals")]
    WrongPrincipal(String),
    /// From elsewhere than it was made for.
    #[error("it was not made for a login from {0}")]
    WrongSource(IpAddr),
    /// An option that we do not know, and that has to be obeyed.
    #[error("its critical option `{0}` is not known here")]
    UnknownCriticalOption(String),
    /// No such account.
    #[error("there is no account `{0}`")]
    NoAccount(String),
    /// Only root can become somebody else.
    #[error("this server runs as `{own}` and serves no other account than that, not `{asked}`")]
    OtherAccount {
        /// The account of the server.
        own: String,
        /// The account that was asked for.
        asked: String,
    },
    /// Revoked.
    #[error("serial {0} was revoked")]
    Revoked(u64),
    /// The peer's node was removed.
    #[error("no node has the peer's address any more")]
    Stranger,
}

impl Refusal {
    /// Returns what the organisation is told.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Password => Reason::Password,
            Self::RawKey => Reason::RawKey,
            Self::NoAuthority(_) => Reason::NoAuthority,
            Self::NotForUsers => Reason::HostCertificate,
            Self::SignedByCertificate | Self::CertifiesCertificate => {
                Reason::CertificateOfCertificate
            }
            Self::WrongAuthority => Reason::WrongAuthority,
            Self::KeyOfAuthority => Reason::KeyOfAuthority,
            Self::WeakSignature(_) => Reason::WeakSignature,
            Self::WrongSignature => Reason::WrongSignature,
            Self::NotYetValid => Reason::NotYetValid,
            Self::Expired => Reason::Expired,
            Self::WrongPrincipal(_) => Reason::WrongPrincipal,
            Self::WrongSource(_) => Reason::WrongSource,
            Self::UnknownCriticalOption(_) => Reason::UnknownCriticalOption,
            Self::NoAccount(_) => Reason::NoAccount,
            Self::OtherAccount { .. } => Reason::OtherAccount,
            Self::Revoked(_) => Reason::Revoked,
            Self::Stranger => Reason::Stranger,
        }
    }
}

const FORCE_COMMAND: &str = "force-command";
const SOURCE_ADDRESS: &str = "source-address";

/// Decides whether `certificate` lets `asked` in.
///
/// That the peer holds the certified key is not seen here: the transport has proven it before.
pub(crate) fn accept(
    certificate: &Certificate,
    asked: Asked<'_>,
    authority: &Authority,
) -> Result<Permit, Refusal> {
    if !certificate.cert_type().is_user() {
        return Err(Refusal::NotForUsers);
    }
    let signer = signed_by(certificate, &authority.user_ca)?;
    if matches!(certificate.public_key(), KeyData::Certificate(_)) {
        return Err(Refusal::CertifiesCertificate);
    }
    let keys = authority.user_ca.iter().chain(&authority.host_ca);
    if keys.into_iter().any(|key| key == certificate.public_key()) {
        return Err(Refusal::KeyOfAuthority);
    }
    valid(certificate, asked.now)?;
    // No principal means nobody, although OpenSSH's format says everybody.
    let mut principals = certificate.valid_principals().iter();
    if !principals.any(|principal| principal == asked.user) {
        return Err(Refusal::WrongPrincipal(asked.user.to_owned()));
    }
    let force_command = critical(certificate.critical_options(), asked.source)?;
    authority.takes(certificate.serial())?;
    let extensions = certificate.extensions();
    Ok(Permit {
        key_id: certificate.key_id().to_owned(),
        serial: certificate.serial(),
        authority: signer,
        force_command,
        pty: extensions.contains_key("permit-pty"),
        port_forwarding: extensions.contains_key("permit-port-forwarding"),
        agent_forwarding: extensions.contains_key("permit-agent-forwarding"),
        x11_forwarding: extensions.contains_key("permit-X11-forwarding"),
    })
}

/// Decides whether a host certificate proves that its holder is `host`.
pub(crate) fn accept_host(
    certificate: &Certificate,
    host: &str,
    now: u64,
    authorities: &[KeyData],
) -> Result<(), HostRefusal> {
    if !certificate.cert_type().is_host() {
        return Err(HostRefusal::NotForHosts);
    }
    signed_by(certificate, authorities)?;
    valid(certificate, now)?;
    if let Some(option) = certificate.critical_options().keys().next() {
        return Err(Refusal::UnknownCriticalOption(option.clone()).into());
    }
    let mut principals = certificate.valid_principals().iter();
    if !principals.any(|principal| principal.eq_ignore_ascii_case(host)) {
        return Err(HostRefusal::WrongHost {
            wanted: host.to_owned(),
            certified: certificate.valid_principals().join(", "),
        });
    }
    Ok(())
}

/// Why a host's certificate does not prove who it is.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub(crate) enum HostRefusal {
    /// A user certificate.
    #[error("a user certificate is not for hosts")]
    NotForHosts,
    /// It was made for other names.
    #[error("it is for `{certified}`, not for `{wanted}`")]
    WrongHost {
        /// The name that was asked for.
        wanted: String,
        /// The names in it.
        certified: String,
    },
    /// As for users.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Returns the encoded key of the authority that signed `certificate`.
fn signed_by(certificate: &Certificate, authorities: &[KeyData]) -> Result<Vec<u8>, Refusal> {
    let signer = certificate.signature_key();
    // CVE-2025-49825: whoever looks through a certificate for its key trusts anybody.
    if matches!(signer, KeyData::Certificate(_)) {
        return Err(Refusal::SignedByCertificate);
    }
    let algorithm = signer.algorithm();
    let weak = |algorithm: &Algorithm| Refusal::WeakSignature(algorithm.as_str().to_owned());
    if algorithm != Algorithm::Ed25519 {
        return Err(weak(&algorithm));
    }
    if !authorities.contains(signer) {
        return Err(Refusal::WrongAuthority);
    }
    let signature = certificate.signature().algorithm();
    if signature != Algorithm::Ed25519 {
        return Err(weak(&signature));
    }
    // The transport has seen it too; nobody has to remember that here.
    let proven = certificate.verify_signature();
    proven.map_err(|_| Refusal::WrongSignature)?;
    encoded(signer).map_err(|_| Refusal::WrongSignature)
}

fn encoded(key: &KeyData) -> Result<Vec<u8>, russh::keys::ssh_key::Error> {
    russh::keys::PublicKey::from(key.clone()).to_bytes()
}

fn valid(certificate: &Certificate, now: u64) -> Result<(), Refusal> {
    if now < certificate.valid_after() {
        return Err(Refusal::NotYetValid);
    }
    if now >= certificate.valid_before() {
        return Err(Refusal::Expired);
    }
    Ok(())
}

/// Obeys the critical options; returns the forced command.
fn critical(options: &OptionsMap, source: IpAddr) -> Result<Option<String>, Refusal> {
    let mut force_command = None;
    for (name, value) in options.iter() {
        match name.as_str() {
            FORCE_COMMAND => force_command = Some(value.clone()),
            SOURCE_ADDRESS => {
                if !value.split(',').any(|network| contains(network, source)) {
                    return Err(Refusal::WrongSource(source));
                }
            }
            _ => return Err(Refusal::UnknownCriticalOption(name.clone())),
        }
    }
    Ok(force_command)
}

/// Tells whether `network`, an address with or without a prefix length, holds `address`.
fn contains(network: &str, address: IpAddr) -> bool {
    let (base, length) = match network.split_once('/') {
        Some((base, length)) => (base, length.parse::<u32>().ok()),
        None => (network, Some(u32::MAX)),
    };
    let (Ok(base), Some(length)) = (base.parse::<IpAddr>(), length) else {
        return false;
    };
    let (base, address, width) = match (base, address.to_canonical()) {
        (IpAddr::V4(base), IpAddr::V4(address)) => (
            u128::from(base.to_bits()),
            u128::from(address.to_bits()),
            32,
        ),
        (IpAddr::V6(base), IpAddr::V6(address)) => (base.to_bits(), address.to_bits(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    if length != u32::MAX && length > width {
        return false;
    }
    let free = width.saturating_sub(length);
    base.checked_shr(free).unwrap_or(0) == address.checked_shr(free).unwrap_or(0)
}

#[cfg(test)]
mod tests;
