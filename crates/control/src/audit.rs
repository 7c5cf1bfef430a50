//! The chain of the audit: each row has a hash of itself and of the one before.

use aws_lc_rs::digest;
use model::api::{AuditChain, AuditEntry, AuditHash};

/// Follows the chain row by row, oldest first.
#[derive(Clone, Copy, Debug)]
pub struct AuditVerifier {
    last_id: i64,
    last: AuditHash,
}

/// Where the audit is not what was written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AuditFault {
    /// The row does not have the content that its hash covers.
    #[error("row {0} was altered")]
    Altered(i64),
    /// Rows before this one are gone, or were altered together with their hashes.
    #[error(
        "row {before} does not follow row {after}: what stood between is missing, or row \
             {after} was altered together with its hash"
    )]
    Missing {
        /// The row before the gap; zero before the first row.
        after: i64,
        /// The row behind the gap.
        before: i64,
    },
    /// The end of the audit is gone.
    #[error("the rows after {0} are missing")]
    Cut(i64),
    /// The row comes without its hash.
    #[error("row {0} has no hash; operators alone are given them")]
    Unchained(i64),
}

/// Returns the hash of a row that follows one with the hash `previous`.
#[must_use]
pub fn audit_hash(previous: AuditHash, entry: &AuditEntry) -> AuditHash {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&previous.0);
    context.update(&entry.content());
    let hash = context.finish();
    AuditHash(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

impl AuditVerifier {
    /// Begins behind the last row that was deleted because of its age.
    #[must_use]
    pub fn new(chain: &AuditChain) -> Self {
        Self {
            last_id: chain.past_id,
            last: chain.past,
        }
    }

    /// Begins at the first row of a part of the audit, whose predecessor is believed.
    #[must_use]
    pub fn of_part(first: &AuditEntry) -> Self {
        Self {
            last_id: first.id - 1,
            last: first
                .link
                .as_ref()
                .map_or_else(AuditHash::default, |link| link.previous),
        }
    }

    /// Takes the next row.
    pub fn follow(&mut self, entry: &AuditEntry) -> Result<(), AuditFault> {
        let (id, link) = (entry.id, entry.link.as_ref());
        let link = link.ok_or(AuditFault::Unchained(id))?;
        if audit_hash(link.previous, entry) != link.hash {
            return Err(AuditFault::Altered(id));
        }
        if id <= self.last_id || link.previous != self.last {
            return Err(AuditFault::Missing {
                after: self.last_id,
                before: id,
            });
        }
        (self.last_id, self.last) = (id, link.hash);
        Ok(())
    }

    /// Compares the last row with the end of the chain.
    pub fn finish(self, chain: &AuditChain) -> Result<(), AuditFault> {
        if (self.last_id, self.last) == (chain.last_id, chain.last) {
            Ok(())
        } else {
            Err(AuditFault::Cut(self.last_id))
        }
    }

    /// Returns the id and the hash of the last row that was taken.
    #[must_use]
    pub fn last(&self) -> (i64, AuditHash) {
        (self.last_id, self.last)
    }
}
