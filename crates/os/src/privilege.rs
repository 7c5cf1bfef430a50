//! Giving up what a process does not need once it is set up: its user, its groups, capabilities
//! (capabilities(7)) and the ways to new ones (`no_new_privs`).

use std::io;

use nix::unistd::{Uid, User, setgid, setgroups, setuid};
use rustix::thread::{self, CapabilitySet, CapabilitySets};
use thiserror::Error;

/// A right beyond those of an ordinary user that a process may keep.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Capability {
    /// Firewall marks, and socket buffers beyond the system's limit.
    NetAdmin,
    /// Ports below 1024.
    NetBindService,
}

/// Why privileges were not dropped.
#[derive(Debug, Error)]
pub enum DropError {
    /// No such user.
    #[error("no user has the name `{0}`")]
    UnknownUser(String),
    /// Only root may become somebody else.
    #[error("not permitted to become `{0}`")]
    Denied(String),
    /// The system refused otherwise, or gave back what was dropped.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Keeps only those of `capabilities` that this process has, becomes `user` if one is named, and
/// lets no program that is started from here gain more; all for good.
///
/// Capabilities belong to threads: call it while there is one, so that those that it starts later
/// inherit them.
pub fn drop_all_but(capabilities: &[Capability], user: Option<&str>) -> Result<(), DropError> {
    let user = user.map(find).transpose()?;
    let wanted = capabilities
        .iter()
        .map(|capability| capability.set())
        .collect::<CapabilitySet>();
    let had = thread::capabilities(None).map_err(io::Error::from)?;
    let kept = wanted & had.permitted;
    if had.effective.contains(CapabilitySet::SETPCAP) {
        shrink_bounds(kept)?;
    }
    if let Some(user) = &user {
        // Otherwise the change of user would take the permitted ones too.
        thread::set_keep_capabilities(true).map_err(io::Error::from)?;
        become_user(user)?;
        thread::set_keep_capabilities(false).map_err(io::Error::from)?;
    }
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    // Kernels before 4.3 have no ambient set.
    thread::clear_ambient_capability_set().ok();
    thread::set_capabilities(None, sets).map_err(io::Error::from)?;
    thread::set_no_new_privs(true).map_err(io::Error::from)?;
    let back = user.is_some_and(|user| !user.uid.is_root() && setuid(Uid::from_raw(0)).is_ok());
    if back || thread::capabilities(None).map_err(io::Error::from)? != sets {
        return Err(io::Error::other("the kernel gave back what was dropped").into());
    }
    Ok(())
}

impl Capability {
    fn set(self) -> CapabilitySet {
        match self {
            Self::NetAdmin => CapabilitySet::NET_ADMIN,
            Self::NetBindService => CapabilitySet::NET_BIND_SERVICE,
        }
    }
}

fn find(name: &str) -> Result<User, DropError> {
    let user = User::from_name(name).map_err(io::Error::from)?;
    user.ok_or_else(|| DropError::UnknownUser(name.to_owned()))
}

fn become_user(user: &User) -> Result<(), DropError> {
    let changed = setgroups(&[])
        .and_then(|()| setgid(user.gid))
        .and_then(|()| setuid(user.uid));
    changed.map_err(|errno| {
        let error = io::Error::from(errno);
        if error.kind() == io::ErrorKind::PermissionDenied {
            DropError::Denied(user.name.clone())
        } else {
            DropError::Io(error)
        }
    })
}

/// Takes all others out of the bounding set, which limits what an exec may gain.
fn shrink_bounds(kept: CapabilitySet) -> Result<(), DropError> {
    for capability in CapabilitySet::all().iter() {
        if kept.contains(capability) {
            continue;
        }
        match thread::remove_capability_from_bounding_set(capability) {
            // This kernel does not know it yet.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(DropError::Io(errno.into())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_that_does_not_exist_is_named_and_nothing_is_dropped() {
        let before = thread::capabilities(None).unwrap();
        let error = drop_all_but(&[], Some("no-such-user-here")).unwrap_err();
        assert!(matches!(error, DropError::UnknownUser(name) if name == "no-such-user-here"));
        assert_eq!(thread::capabilities(None).unwrap(), before);
    }

    #[test]
    fn what_is_not_kept_is_gone_for_this_thread() {
        std::thread::spawn(|| {
            let before = thread::capabilities(None).unwrap();
            drop_all_but(&[Capability::NetAdmin], None).unwrap();
            let after = thread::capabilities(None).unwrap();
            assert_eq!(after.permitted, before.permitted & CapabilitySet::NET_ADMIN);
            assert_eq!(after.effective, after.permitted);
            assert!(thread::no_new_privs().unwrap());
            // Again changes nothing.
            drop_all_but(&[Capability::NetAdmin], None).unwrap();
        })
        .join()
        .unwrap();
    }
}
