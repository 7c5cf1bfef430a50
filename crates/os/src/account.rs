//! Accounts of this machine, and programs that run as one of them.

use std::{
    ffi::CString,
    io,
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::PathBuf,
    process::Command,
};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

/// An account, as the system's user database has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Account {
    /// Its login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All its groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: PathBuf,
    /// Login shell; never empty.
    pub shell: PathBuf,
}

impl Account {
    /// Returns the account with that login name; `None` if there is none.
    pub fn named(name: &str) -> io::Result<Option<Self>> {
        User::from_name(name)?.map(Self::of).transpose()
    }

    /// Returns the account of this process; `None` if the user database does not know it.
    pub fn own() -> io::Result<Option<Self>> {
        User::from_uid(Uid::effective())?.map(Self::of).transpose()
    }

    /// Whether the account is for people: its shell is not one that only says no.
    #[must_use]
    pub fn has_shell(&self) -> bool {
        let name = self.shell.file_name();
        !name.is_some_and(|name| name == "nologin" || name == "false")
    }

    fn of(user: User) -> io::Result<Self> {
        let name = CString::new(user.name.as_str())?;
        let groups = getgrouplist(&name, user.gid)?;
        let shell = match user.shell.as_os_str().is_empty() {
            // passwd(5): an empty field means `/bin/sh`.
            true => "/bin/sh".into(),
            false => user.shell,
        };
        Ok(Self {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            groups: groups.into_iter().map(Gid::as_raw).collect(),
            home: user.dir,
            shell,
        })
    }
}

/// Returns the group that owns terminals (`tty`), if the system has one.
pub fn terminal_group() -> io::Result<Option<u32>> {
    Ok(Group::from_name("tty")?.map(|group| group.gid.as_raw()))
}

/// Prepares `command` to lead a session of its own in the account's home directory.
///
/// With `switch` it becomes the account first: groups, group, user, in this order and for good;
/// only root can. With `terminal` its standard input is to be the session's controlling terminal.
pub fn enter(command: &mut Command, account: &Account, switch: bool, terminal: bool) {
    let Account { uid, gid, .. } = *account;
    let groups = account.groups.clone();
    // A home with a zero byte in it cannot exist.
    let home = CString::new(account.home.as_os_str().as_bytes()).unwrap_or_default();
    // SAFETY: between fork and exec the closure only makes system calls that are safe in a signal
    // handler (setsid, ioctl, setgroups, setgid, setuid, chdir) and reads memory that it owns; it
    // does not allocate.
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            if terminal && libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            if switch {
                if libc::setgroups(groups.len(), groups.as_ptr()) < 0
                    || libc::setgid(gid) < 0
                    || libc::setuid(uid) < 0
                {
                    return Err(io::Error::last_os_error());
                }
                if uid != 0 && libc::setuid(0) == 0 {
                    return Err(io::ErrorKind::PermissionDenied.into());
                }
            }
            // Only now, with the account's own rights. Who has no home begins at the root.
            if libc::chdir(home.as_ptr()) < 0 && libc::chdir(c"/".as_ptr()) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_account_is_found_by_its_name_too() {
        let own = Account::own().unwrap().unwrap();
        assert_eq!(Account::named(&own.name).unwrap(), Some(own));
        assert_eq!(Account::named("no-such-user-here").unwrap(), None);
    }

    #[test]
    fn a_program_runs_as_the_account_in_its_home_and_cannot_come_back() {
        let Some(account) = Account::named("nobody").unwrap() else {
            return;
        };
        if crate::process::euid() != 0 {
            return;
        }
        let mut command = Command::new("sh");
        command.args(["-c", "id -u; id -g; id -G; ps -o sid= -p $$; echo $$; pwd"]);
        enter(&mut command, &account, true, false);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        assert_eq!(lines[0], account.uid.to_string());
        assert_eq!(lines[1], account.gid.to_string());
        assert_eq!(lines[2], account.gid.to_string(), "no group of root's");
        assert_eq!(lines[3], lines[4], "it must lead its session");
        assert_eq!(lines[5], "/", "nobody has no home");
    }
}
