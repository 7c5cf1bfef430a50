//! The answer to sshd's question at each login: may this certificate open this account?
//!
//! sshd itself verifies the signature, the time and the source address. Asked here, against the
//! newest map, is what changes within seconds: which keys are trusted and what is revoked.

use std::process::ExitCode;

use anyhow::Result;
use model::ssh::{Authority, Principal, PublicKeyText, Serial};

use crate::{authority::Pinned, cli::Global, enrolment::State, terminal};

/// Say whether a certificate may log in to an account
///
/// Prints the principal that the certificate must name, or nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The account
    #[arg(long)]
    account: String,
    /// The certificate's serial
    #[arg(long)]
    serial: String,
    /// The key that signed it, in base64
    #[arg(long)]
    authority: String,
}

/// Why a certificate may not open an account.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
enum Refusal {
    #[error("its authority is not trusted any more")]
    Authority,
    #[error("it was revoked")]
    Revoked,
    #[error("it has no serial of ours")]
    Serial,
    #[error("the account cannot be a principal")]
    Account,
}

/// Runs the command. A refusal is an answer, not a failure: nothing is printed on stdout.
pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let state = State::locate(global)?;
    let map = state.map()?;
    let authority = Pinned::open(state)?.verified(map.as_ref())?;
    match principal(args, authority) {
        Ok(principal) => terminal::line(principal.as_str())?,
        Err(refusal) => terminal::note(format_args!("ginnel: certificate refused: {refusal}")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the principal that opens the account: the account itself.
fn principal(args: &Args, authority: &Authority) -> Result<Principal, Refusal> {
    let key = format!("ssh-ed25519 {}", args.authority);
    let key: PublicKeyText = key.parse().map_err(|_| Refusal::Authority)?;
    if !authority.statement.keys.user.contains(&key) {
        return Err(Refusal::Authority);
    }
    let serial = args.serial.parse().map_err(|_| Refusal::Serial)?;
    if serial == 0 {
        return Err(Refusal::Serial);
    }
    if authority.revoked.contains(&Serial(serial)) {
        return Err(Refusal::Revoked);
    }
    args.account.parse().map_err(|_| Refusal::Account)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use model::ssh::{CaKeys, Recording, SignatureText, Statement};

    use super::*;

    fn check(account: &str, serial: &str, authority: &str, expected: Result<&str, Refusal>) {
        let keys = CaKeys {
            user: vec![PublicKeyText([1; 32])],
            host: vec![PublicKeyText([2; 32])],
        };
        let known = Authority {
            signing_key: PublicKeyText([3; 32]),
            statement: Statement {
                version: 1,
                keys,
                signature: SignatureText([0; 64]),
            },
            revoked: BTreeSet::from([Serial(7)]),
            cut: BTreeMap::new(),
            recording: Recording::Off,
        };
        let args = Args {
            account: account.to_owned(),
            serial: serial.to_owned(),
            authority: authority.to_owned(),
        };
        let found = principal(&args, &known);
        let found = found
            .as_ref()
            .map(Principal::as_str)
            .map_err(|error| *error);
        assert_eq!(found, expected, "{account} {serial} {authority}");
    }

    fn blob(byte: u8) -> String {
        let text = PublicKeyText([byte; 32]).to_string();
        text.trim_start_matches("ssh-ed25519 ").to_owned()
    }

    #[test]
    fn an_account_opens_to_its_own_name_only() {
        check("root", "6", &blob(1), Ok("root"));
        check("web-data", "18446744073709551615", &blob(1), Ok("web-data"));
    }

    #[test]
    fn every_other_certificate_is_refused_for_its_reason() {
        check("root", "7", &blob(1), Err(Refusal::Revoked));
        check("root", "6", &blob(2), Err(Refusal::Authority));
        check("root", "6", &blob(9), Err(Refusal::Authority));
        check("root", "6", "", Err(Refusal::Authority));
        check("root", "0", &blob(1), Err(Refusal::Serial));
        check("root", "-1", &blob(1), Err(Refusal::Serial));
        check(
            "root",
            "18446744073709551616",
            &blob(1),
            Err(Refusal::Serial),
        );
        check("a\nroot", "6", &blob(1), Err(Refusal::Account));
        check("*", "6", &blob(1), Err(Refusal::Account));
        check("", "6", &blob(1), Err(Refusal::Account));
    }
}
