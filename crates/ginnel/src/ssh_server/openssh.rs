//! OpenSSH's server with the organisation's authority: written, tested, renewed, taken back.
//!
//! All of it stands in one drop-in file and one directory of our own, so that what the operator
//! wrote is never changed and taking it back is removing files.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use model::{
    api::Timestamp,
    map::NetworkMap,
    ssh::{Authority, HostCertificateRequest, PublicKeyText},
};
use russh::keys::ssh_key::{Certificate, public::KeyData};

use crate::{
    admin::time,
    api::Client,
    authority::Pinned,
    cli::Global,
    enrolment::State,
    remedy::{Advise as _, advise},
    terminal,
};

/// Where OpenSSH's server is.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// The directory under which `etc/ssh` lies
    #[arg(long, default_value = "/", value_name = "DIR")]
    root: PathBuf,

    /// The server program
    #[arg(long, default_value = "/usr/sbin/sshd", value_name = "FILE")]
    sshd: PathBuf,
}

const CONFIG: &str = "etc/ssh/sshd_config";
const DROP_IN: &str = "etc/ssh/sshd_config.d/10-ginnel.conf";
const FOLDER: &str = "etc/ssh/ginnel";
const USER_KEYS: &str = "etc/ssh/ginnel/user_ca.pub";
const HOST_CERTIFICATE: &str = "etc/ssh/ginnel/host-cert.pub";
const HOST_KEY: &str = "etc/ssh/ssh_host_ed25519_key.pub";
const SERVICE: &str = "etc/systemd/system/ginnel-ssh-renew.service";
const TIMER: &str = "etc/systemd/system/ginnel-ssh-renew.timer";
const PID: &str = "run/sshd.pid";

/// What this node knows of itself and of its authority.
struct Node {
    state: State,
    map: NetworkMap,
    authority: Authority,
}

/// Writes everything, tests it, and takes it back if the test fails.
pub(super) async fn install(args: &Args, global: &Global) -> Result<ExitCode> {
    let node = Node::read(global)?;
    let config = args.drop_in(&node)?;
    let certificate = certify(args, &node).await?;
    let before = read_optional(&args.at(DROP_IN))?;
    fs::create_dir_all(args.at(FOLDER)).context("make `etc/ssh/ginnel`")?;
    write(&args.at(HOST_CERTIFICATE), &certificate)?;
    write(&args.at(USER_KEYS), &node.user_keys())?;
    write(&args.at(DROP_IN), &config)?;
    if let Err(error) = args.test().and_then(|()| args.is_in_effect()) {
        match &before {
            Some(before) => write(&args.at(DROP_IN), before)?,
            None => args.take_back()?,
        }
        return Err(error.context("sshd does not take the configuration; it is taken back"));
    }
    let program = std::env::current_exe().context("find this program")?;
    let timed = args.start_timer(&program, &node)?;
    let reloaded = args.reload()?;
    let until = time(ends(&certificate)?);
    terminal::done(
        format_args!(
            "sshd accepts the certificates of {}; its host certificate lasts until {until}",
            node.org_name()
        ),
        global.json,
    )?;
    if !timed {
        terminal::note("no systemd runs here: call `ginnel ssh-server renew` every hour");
    }
    if !reloaded {
        terminal::note("no sshd runs here: start it");
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the trusted keys anew, and the host certificate when half of its time is over.
pub(super) async fn renew(args: &Args, global: &Global) -> Result<ExitCode> {
    let node = Node::read(global)?;
    if read_optional(&args.at(DROP_IN))?.is_none() {
        return Err(advise(
            "OpenSSH's server does not use certificates here",
            "run `ginnel ssh-server install` first",
        ));
    }
    // sshd reads these keys at each login, so that they need no reload.
    let keys = node.user_keys();
    if read_optional(&args.at(USER_KEYS))?.as_deref() != Some(keys.as_str()) {
        write(&args.at(USER_KEYS), &keys)?;
    }
    let known = read_optional(&args.at(HOST_CERTIFICATE))?;
    let now = seconds(os::clock::wall());
    if known.is_some_and(|known| is_fresh(&known, &node, args, now)) {
        terminal::done("nothing is due", global.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let certificate = certify(args, &node).await?;
    write(&args.at(HOST_CERTIFICATE), &certificate)?;
    args.test()?;
    args.reload()?;
    let until = time(ends(&certificate)?);
    terminal::done(
        format_args!("the host certificate lasts until {until}"),
        global.json,
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Removes what `install` wrote. Works without an enrolment and twice.
pub(super) fn remove(args: &Args, global: &Global) -> Result<ExitCode> {
    args.take_back()?;
    args.test()?;
    args.reload()?;
    terminal::done("sshd is as it was before", global.json)?;
    Ok(ExitCode::SUCCESS)
}

impl Node {
    fn read(global: &Global) -> Result<Self> {
        // sshd and systemd run anywhere.
        let state = State::locate(global)?.absolute()?;
        state.enrolment()?;
        let map = state.map()?.context("this node has no map yet")?;
        let pinned = Pinned::open(state.clone())?;
        let authority = pinned.verified(Some(&map)).cloned();
        let authority = authority
            .context("SSH")
            .remedy("start `ginnel up --tun` once, or ask for a newer server")?;
        Ok(Self {
            state,
            map,
            authority,
        })
    }

    fn user_keys(&self) -> String {
        let keys = &self.authority.statement.keys.user;
        keys.iter().map(|key| format!("{key}\n")).collect()
    }

    fn org_name(&self) -> String {
        let org = self.map.own_org();
        org.map_or_else(String::new, |org| org.name.to_string())
    }
}

impl Args {
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Writes the configuration. Paths in it are plain words, so that nothing needs quotes.
    fn drop_in(&self, node: &Node) -> Result<String> {
        let program = std::env::current_exe().context("find this program")?;
        let program = word(&program)?;
        let state = word(node.state.directory())?;
        let (keys, certificate) = (self.at(USER_KEYS), self.at(HOST_CERTIFICATE));
        let (keys, certificate) = (word(&keys)?, word(&certificate)?);
        Ok(format!(
            "# Written by `ginnel ssh-server install`; `ginnel ssh-server remove` takes it back.\n\
             TrustedUserCAKeys {keys}\n\
             AuthorizedPrincipalsCommand {program} --state {state} ssh-server principals \
             --account=%u --serial=%s --authority=%K\n\
             AuthorizedPrincipalsCommandUser root\n\
             HostCertificate {certificate}\n"
        ))
    }

    /// Asks sshd whether it can start with the configuration as it is.
    fn test(&self) -> Result<()> {
        self.run_sshd(&["-t"]).map(|_| ())
    }

    /// Asks sshd whether the configuration says what we wrote, and nothing before it another.
    fn is_in_effect(&self) -> Result<()> {
        let effective = self.run_sshd(&["-T", "-C", "user=root,host=localhost,addr=::1"])?;
        let (keys, certificate) = (self.at(USER_KEYS), self.at(HOST_CERTIFICATE));
        let wanted = [
            format!("trustedusercakeys {}", word(&keys)?),
            format!("hostcertificate {}", word(&certificate)?),
            "authorizedprincipalscommanduser root".to_owned(),
        ];
        for wanted in wanted {
            if !effective.lines().any(|line| line.trim() == wanted) {
                return Err(advise(
                    format_args!("sshd does not apply `{wanted}`"),
                    format!(
                        "let `{}` begin with `Include {}`, and see that nothing before it sets \
                         the same",
                        self.at(CONFIG).display(),
                        self.at("etc/ssh/sshd_config.d/*.conf").display()
                    ),
                ));
            }
        }
        Ok(())
    }

    fn run_sshd(&self, flags: &[&str]) -> Result<String> {
        let output = Command::new(&self.sshd)
            .args(flags)
            .arg("-f")
            .arg(self.at(CONFIG))
            .output()
            .with_context(|| format!("run `{}`", self.sshd.display()))
            .remedy("install OpenSSH's server, or name it: --sshd FILE")?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("sshd: {}", said.trim().escape_debug());
    }

    /// Lets the running sshd read its configuration anew; `false` if none runs.
    fn reload(&self) -> Result<bool> {
        let pid = read_optional(&self.at(PID))?;
        let pid = pid.and_then(|text| text.trim().parse::<u32>().ok());
        // A stale file must not send the signal to whoever has the number now.
        let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm"));
        let Some(pid) = pid.filter(|pid| name(*pid).is_ok_and(|name| name.trim() == "sshd")) else {
            return Ok(self.is_managed() && systemctl(&["reload", "ssh.service"]).is_ok());
        };
        let status = Command::new("kill")
            .args(["-HUP", &pid.to_string()])
            .status()
            .context("reload sshd")?;
        Ok(status.success())
    }

    /// Renews every hour; `false` where no systemd runs.
    fn start_timer(&self, program: &Path, node: &Node) -> Result<bool> {
        let service = service(program, node.state.directory())?;
        if !self.is_managed() {
            return Ok(false);
        }
        write(&self.at(SERVICE), &service)?;
        write(&self.at(TIMER), TIMER_UNIT)?;
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "--now", "ginnel-ssh-renew.timer"])?;
        Ok(true)
    }

    /// Tells whether systemd runs this machine, and this is the machine.
    fn is_managed(&self) -> bool {
        self.root == Path::new("/") && Path::new("/run/systemd/system").is_dir()
    }

    fn take_back(&self) -> Result<()> {
        if self.is_managed() && self.at(TIMER).exists() {
            systemctl(&["disable", "--now", "ginnel-ssh-renew.timer"])?;
        }
        let files = [DROP_IN, USER_KEYS, HOST_CERTIFICATE, SERVICE, TIMER];
        for path in files.map(|path| self.at(path)) {
            remove_optional(fs::remove_file(&path), &path)?;
        }
        let folder = self.at(FOLDER);
        remove_optional(fs::remove_dir(&folder), &folder)
    }
}

/// Writes the unit that renews (systemd.service(5)), of plain words.
fn service(program: &Path, state: &Path) -> Result<String> {
    let (program, state) = (word(program)?, word(state)?);
    Ok(format!(
        "[Unit]\nDescription=Renew what sshd knows of ginnel's SSH authority\n\n\
         [Service]\nType=oneshot\nExecStart={program} --state {state} ssh-server renew\n"
    ))
}

/// When it runs (systemd.timer(5)).
const TIMER_UNIT: &str = "[Unit]\nDescription=Renew what sshd knows of ginnel's SSH authority\n\n\
                          [Timer]\nOnActiveSec=1h\nOnUnitActiveSec=1h\n\
                          RandomizedDelaySec=5min\n\n[Install]\nWantedBy=timers.target\n";

/// Has this machine's host key certified. The key itself is not read.
async fn certify(args: &Args, node: &Node) -> Result<String> {
    let public_key = host_key(args)?;
    let enrolment = node.state.enrolment()?;
    let client = Client::with_token(&enrolment.url, enrolment.token)?;
    let issued = client
        .certify_host(&HostCertificateRequest { public_key })
        .await?;
    Ok(format!("{}\n", issued.certificate))
}

fn host_key(args: &Args) -> Result<PublicKeyText> {
    let path = args.at(HOST_KEY);
    fs::read_to_string(&path)
        .with_context(|| format!("read the host key `{}`", path.display()))
        .remedy("make host keys: `ssh-keygen -A`")?
        .parse()
        .with_context(|| format!("read the host key `{}`", path.display()))
}

/// Tells whether a host certificate is still right and more than half of its time is left.
fn is_fresh(text: &str, node: &Node, args: &Args, now: u64) -> bool {
    let Ok(certificate) = Certificate::from_openssh(text.trim()) else {
        return false;
    };
    let (after, before) = (certificate.valid_after(), certificate.valid_before());
    let is_young = now < after + before.saturating_sub(after) / 2;
    let trusted = &node.authority.statement.keys.host;
    let by_current = matches!(
        (certificate.signature_key(), trusted.first()),
        (KeyData::Ed25519(key), Some(current)) if key.0 == current.0
    );
    let of_key = matches!(
        (certificate.public_key(), host_key(args)),
        (KeyData::Ed25519(key), Ok(own)) if key.0 == own.0
    );
    let name = node.map.own.name.as_str();
    let of_name = certificate
        .valid_principals()
        .first()
        .is_some_and(|first| first == name);
    is_young && by_current && of_key && of_name
}

fn ends(text: &str) -> Result<Timestamp> {
    let certificate = Certificate::from_openssh(text.trim()).context("read the certificate")?;
    let seconds = i64::try_from(certificate.valid_before()).unwrap_or(i64::MAX);
    Ok(Timestamp(seconds))
}

/// Returns a path that stands for itself in sshd_config(5) and in a unit file.
fn word(path: &Path) -> Result<&str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._+@-".contains(&byte);
    let text = path.to_str().filter(|text| text.bytes().all(plain));
    text.ok_or_else(|| {
        let shown = path.to_string_lossy();
        let shown = shown.escape_debug();
        advise(
            format_args!("`{shown}` cannot stand in sshd's configuration"),
            "use paths of letters, digits and `/._+@-`",
        )
    })
}

fn systemctl(line: &[&str]) -> Result<()> {
    let output = Command::new("systemctl").args(line).output();
    let output = output.context("run `systemctl`")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!(
        "systemctl {}: {}",
        line.join(" "),
        said.trim().escape_debug()
    );
}

fn read_optional(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read `{}`", path.display())),
    }
}

fn remove_optional(removed: io::Result<()>, path: &Path) -> Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove `{}`", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn write(path: &Path, content: &str) -> Result<()> {
    os::file::write_private(path, content.as_bytes())
        .with_context(|| format!("write `{}`", path.display()))
        .remedy("run it as root")
}

fn seconds(wall: SystemTime) -> u64 {
    wall.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

    use super::*;

    #[test]
    fn a_path_that_means_more_than_itself_is_refused() {
        for path in ["/usr/local/bin/ginnel", "/var/lib/ginnel", "/a-b_c.d+e@f"] {
            assert_eq!(word(Path::new(path)).ok(), Some(path), "{path}");
        }
        for path in [
            b"/a b".as_slice(),
            b"/a\n",
            b"/a\nExecStartPost=/bin/touch /pwned",
            b"/%u",
            b"/\"",
            b"/'",
            b"/$HOME",
            b"/$(id)",
            b"/${HOME}",
            b"/`id`",
            b"/a;b",
            b"/a#",
            b"/\\",
            b"/\x1b[2J",
            b"/\xff",
            "/\u{202e}a".as_bytes(),
            "/é".as_bytes(),
        ] {
            let path = Path::new(OsStr::from_bytes(path));
            assert!(word(path).is_err(), "{path:?}");
            assert!(service(path, Path::new("/var/lib/ginnel")).is_err());
            assert!(service(Path::new("/usr/bin/ginnel"), path).is_err());
        }
    }

    #[test]
    fn systemd_finds_no_fault_in_the_units() {
        if Command::new("systemd-analyze")
            .arg("--version")
            .output()
            .is_err()
        {
            eprintln!("SKIPPED: no systemd-analyze");
            return;
        }
        let directory = tempfile::tempdir().expect("a new directory");
        let path = |name: &str| directory.path().join(name);
        let units = ["ginnel-ssh-renew.service", "ginnel-ssh-renew.timer"].map(path);
        let program = Path::new("/bin/true");
        let long = format!("/var/lib/{}", "a".repeat(255));
        for state in ["/var/lib/ginnel", "/a-b_c.d+e@f", "/-rf/--x/@a/+b", &long] {
            let text = service(program, Path::new(state)).expect("plain words");
            fs::write(&units[0], text).expect("a new file");
            fs::write(&units[1], TIMER_UNIT).expect("a new file");
            let mut analyze = Command::new("systemd-analyze");
            let verified = analyze.args(["verify", "--man=no"]).args(&units).output();
            let verified = verified.expect("it runs");
            let said = String::from_utf8_lossy(&verified.stderr);
            assert!(verified.status.success() && said.is_empty(), "{said}");
        }
    }
}
