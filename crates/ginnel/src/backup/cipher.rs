//! How a backup is encrypted: the age format (C2SP, `age.md`), by a passphrase or to public keys.

use std::{
    fs,
    io::{self, BufRead, IsTerminal as _, Read as _, Write},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use age::{
    DecryptError, Decryptor, Encryptor, Identity, IdentityFile, Recipient, scrypt,
    secrecy::SecretString,
    stream::{StreamReader, StreamWriter},
    x25519,
};
use anyhow::{Context as _, Result, ensure};
use os::terminal::Raw;
use zeroize::Zeroizing;

use crate::{
    remedy::{Advise as _, advise},
    terminal,
};

/// What a guess at a passphrase costs: scrypt with N = 2^17, r = 8 and p = 1, which takes 128 MiB.
const WORK_FACTOR: u8 = 17;

/// What a backup that was encrypted elsewhere may cost: 1 GiB.
const WORK_FACTOR_MAX: u8 = 20;

/// The longest passphrase and the longest file of keys.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Where a passphrase comes from; asked for at the terminal unless a file holds it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Passphrase {
    /// The passphrase is the first line of FILE, instead of asked for
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Passphrase {
    /// Reads or asks for the passphrase; a new one is asked for twice.
    pub(crate) fn read(&self, new: bool) -> Result<SecretString> {
        let text = match &self.passphrase_file {
            Some(path) => first_line(path)?,
            None => ask("passphrase of the backup: ")?,
        };
        ensure!(!text.is_empty(), "the passphrase is empty");
        if new && self.passphrase_file.is_none() {
            let again = ask("once more: ")?;
            ensure!(*again == *text, "these are two passphrases");
        }
        Ok(SecretString::from(text.as_str().to_owned()))
    }
}

/// Encrypts by a passphrase.
pub(crate) fn encrypt<W: Write>(passphrase: SecretString, sink: W) -> Result<StreamWriter<W>> {
    let mut recipient = scrypt::Recipient::new(passphrase);
    recipient.set_work_factor(WORK_FACTOR);
    begin(std::iter::once(&recipient as &dyn Recipient), sink)
}

/// Encrypts to whoever has the key of one of the recipients.
pub(crate) fn encrypt_to<W: Write>(
    recipients: &[x25519::Recipient],
    sink: W,
) -> Result<StreamWriter<W>> {
    let recipients = recipients
        .iter()
        .map(|recipient| recipient as &dyn Recipient);
    begin(recipients, sink)
}

fn begin<'a, W: Write>(
    recipients: impl Iterator<Item = &'a dyn Recipient>,
    sink: W,
) -> Result<StreamWriter<W>> {
    let encryptor = Encryptor::with_recipients(recipients).context("encrypt the backup")?;
    encryptor.wrap_output(sink).context("write the backup")
}

/// Decrypts what [`encrypt`] or age made.
pub(crate) fn decrypt<R: BufRead>(passphrase: SecretString, source: R) -> Result<StreamReader<R>> {
    let mut identity = scrypt::Identity::new(passphrase);
    identity.set_max_work_factor(WORK_FACTOR_MAX);
    let decryptor = decryptor(source)?;
    if !decryptor.is_scrypt() {
        return Err(advise(
            "the backup is encrypted to keys, not by a passphrase",
            "name the file that holds one of them: --identity FILE",
        ));
    }
    let opened = decryptor.decrypt(std::iter::once(&identity as &dyn Identity));
    opened
        .map_err(|error| refused(&error))
        .remedy("it is another passphrase, or the file was altered: try another copy of it")
}

/// Decrypts what [`encrypt_to`] or age made.
pub(crate) fn decrypt_with<R: BufRead>(keys: &Path, source: R) -> Result<StreamReader<R>> {
    let text = read_secret(keys)?;
    let identities = IdentityFile::from_buffer(text.as_slice())
        .with_context(|| format!("read keys from `{}`", keys.display()))
        .remedy("name a file that `age-keygen` wrote")?
        .into_identities()
        .map_err(|error| refused(&error))?;
    let identities = identities
        .iter()
        .map(|identity| &**identity as &dyn Identity);
    let opened = decryptor(source)?.decrypt(identities);
    opened
        .map_err(|error| refused(&error))
        .remedy("it is encrypted to other keys, or the file was altered: try another copy of it")
}

fn decryptor<R: BufRead>(source: R) -> Result<Decryptor<R>> {
    Decryptor::new_buffered(source)
        .map_err(|error| refused(&error))
        .remedy("it is no backup, or its beginning was altered: try another copy of it")
}

/// The crate's errors write several lines for people; the first says what it is.
fn refused(error: &DecryptError) -> anyhow::Error {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    anyhow::anyhow!("decrypt the backup: {first}")
}

fn first_line(path: &Path) -> Result<Zeroizing<String>> {
    let bytes = read_secret(path)?;
    let line = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let text = std::str::from_utf8(line);
    let text = text.with_context(|| format!("`{}` is not UTF-8", path.display()))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let read = || {
        let mut content = Zeroizing::new(Vec::new());
        let file = fs::File::open(path)?;
        file.take(SECRET_BYTES_MAX).read_to_end(&mut content)?;
        io::Result::Ok(content)
    };
    read().with_context(|| format!("read `{}`", path.display()))
}

/// Asks the person at the terminal, who does not see what she types.
fn ask(question: &str) -> Result<Zeroizing<String>> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(advise(
            "nobody is at a terminal to be asked for the passphrase",
            "name a file that holds it: --passphrase-file FILE",
        ));
    }
    let raw = Raw::enter(stdin.as_fd()).context("silence the terminal")?;
    let mut stderr = io::stderr().lock();
    write!(stderr, "{question}").and_then(|()| stderr.flush())?;
    let typed = typed(stdin.lock());
    drop(raw);
    terminal::note("");
    typed
}

/// Reads what is typed on a raw terminal up to the end of the line.
fn typed(keys: impl BufRead) -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(Vec::new());
    for key in keys.bytes() {
        match key.context("read the terminal")? {
            b'\r' | b'\n' => {
                let text = std::str::from_utf8(&text).context("the passphrase is not UTF-8")?;
                return Ok(Zeroizing::new(text.to_owned()));
            }
            // ^C and ^D, which make no signal of a raw terminal.
            3 | 4 => break,
            // Backspace takes a whole character.
            8 | 0x7f => while text.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            byte => text.push(byte),
        }
        ensure!(
            (text.len() as u64) < SECRET_BYTES_MAX,
            "the passphrase is too long"
        );
    }
    Err(anyhow::anyhow!("no passphrase was given"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(keys: &Path, backup: &[u8]) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        decrypt_with(keys, backup)?.read_to_end(&mut text)?;
        Ok(text)
    }

    #[test]
    fn a_backup_that_was_changed_anywhere_or_cut_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (keys, key) = (folder.path().join("keys"), x25519::Identity::generate());
        let secret = age::secrecy::ExposeSecret::expose_secret(&key.to_string()).to_owned();
        fs::write(&keys, secret).unwrap();
        let text = b"a line of a backup\n".repeat(20);
        let mut backup = Vec::new();
        let mut writer = encrypt_to(&[key.to_public()], &mut backup).unwrap();
        writer.write_all(&text).unwrap();
        writer.finish().unwrap();
        assert_eq!(opened(&keys, &backup).unwrap(), text);
        for place in 0..backup.len() {
            let mut changed = backup.clone();
            changed[place] ^= 1;
            assert!(opened(&keys, &changed).is_err(), "byte {place}");
            assert!(opened(&keys, &backup[..place]).is_err(), "cut at {place}");
        }
        backup.push(0);
        assert!(opened(&keys, &backup).is_err(), "something follows");
    }

    #[test]
    fn what_is_typed_ends_with_its_line_and_can_be_mended() {
        let said = |keys: &[u8]| typed(keys).map(|text| text.to_string());
        assert_eq!(said(b"open\x7fn sesame\r").unwrap(), "open sesame");
        assert_eq!(said("\u{e4}\u{f6}\x08\r".as_bytes()).unwrap(), "\u{e4}");
        assert!(said(b"half\x03").is_err());
        assert!(said(b"half").is_err());
    }
}
