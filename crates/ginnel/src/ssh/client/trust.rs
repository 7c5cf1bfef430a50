//! Which hosts are believed: those with a certificate of the organisation. Never a first use.

use std::time::UNIX_EPOCH;

use model::{name::ZONE, ssh::CaKeys};
use russh::keys::{
    PublicKeyOrCertificate,
    ssh_key::public::{Ed25519PublicKey, KeyData},
};

use crate::ssh::acceptance;

/// What proves that a host is the one that we want.
#[derive(Clone, Debug)]
pub(in crate::ssh) struct Trust {
    /// Names by which it may be certified; the last is the one that a refusal tells.
    names: Vec<String>,
    /// Who certifies hosts.
    authorities: Vec<KeyData>,
}

impl Trust {
    /// Trusts what `keys` certify for `host`, also where the zone was left out of its name.
    pub(in crate::ssh) fn new(host: &str, keys: &CaKeys) -> Self {
        let host = host.trim_end_matches('.');
        let mut names = vec![host.to_owned()];
        if !host.contains(['.', ':']) {
            names.push(format!("{host}.{ZONE}"));
        }
        let authorities = keys.host.iter().map(|key| Ed25519PublicKey(key.0).into());
        Self {
            names,
            authorities: authorities.collect(),
        }
    }

    /// Decides whether a host that proves itself by `key` is the one that we want; else says why
    /// not.
    pub(super) fn believe(&self, key: &PublicKeyOrCertificate) -> Result<(), String> {
        let certificate = match key {
            PublicKeyOrCertificate::PublicKey { .. } => {
                return Err("it shows a key without a certificate".to_owned());
            }
            PublicKeyOrCertificate::Certificate(certificate) => certificate,
        };
        // A clock before 1970 finds every certificate not valid yet.
        let now = os::clock::wall().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        let mut doubt = String::from("it has no name");
        for name in &self.names {
            match acceptance::accept_host(certificate, name, now, &self.authorities) {
                Ok(()) => return Ok(()),
                Err(reason) => doubt = format!("its certificate: {reason}"),
            }
        }
        Err(doubt)
    }
}
