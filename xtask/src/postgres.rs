//! A PostgreSQL that lives as long as a ring of tests needs it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{install, step};

/// A running cluster in a directory of its own, reached by a Unix socket there.
pub(crate) struct Cluster {
    programs: PathBuf,
    directory: PathBuf,
}

impl Cluster {
    /// Starts a new cluster; `None` where PostgreSQL is not installed.
    pub(crate) fn start() -> Result<Option<Self>> {
        let Some(programs) = programs() else {
            return Ok(None);
        };
        let directory = std::env::temp_dir().join(format!("ginnel-postgres-{}", process::id()));
        fs::create_dir(&directory).context("make the directory of a cluster")?;
        let cluster = Self {
            programs,
            directory,
        };
        // PostgreSQL refuses to run as root, and its own user must reach the directory.
        fs::set_permissions(&cluster.directory, fs::Permissions::from_mode(0o755))?;
        if install::is_root() {
            let mut chown = Command::new("chown");
            chown.arg("postgres").arg(&cluster.directory);
            step::must(chown)?;
        }
        let mut initdb = cluster.program("initdb");
        initdb.args(["--auth=trust", "--username=postgres", "--no-sync"]);
        step::must(initdb).context("make a PostgreSQL cluster")?;
        let mut start = cluster.program("pg_ctl");
        // What is lost with the machine is not needed any more.
        let settings = format!(
            "-k {} -c listen_addresses= -c fsync=off -c max_connections=400",
            cluster.directory.display()
        );
        start.args(["--wait", "--options", &settings, "--log"]);
        start.arg(cluster.directory.join("log")).arg("start");
        step::must(start).context("start PostgreSQL")?;
        Ok(Some(cluster))
    }

    /// Returns the URL of its first database.
    pub(crate) fn url(&self) -> String {
        let host = self.directory.display();
        format!("postgres:///?host={host}&user=postgres")
    }

    /// A program of PostgreSQL for this cluster, that runs as somebody else than root.
    fn program(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command = if install::is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
            command.arg(program);
            command
        } else {
            Command::new(program)
        };
        // Nothing of the cluster may keep our own output open.
        command.current_dir("/").stdout(Stdio::null());
        command.arg("--pgdata").arg(self.directory.join("data"));
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut stop = self.program("pg_ctl");
        stop.args(["--mode=immediate", "stop"]);
        // Whoever sees neither has nothing to clean up.
        stop.status().ok();
        fs::remove_dir_all(&self.directory).ok();
    }
}

/// Where Debian has the programs of the newest version.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir(Path::new("/usr/lib/postgresql")).ok()?;
    let mut versions: Vec<_> = versions.flatten().map(|entry| entry.path()).collect();
    versions.sort();
    Some(versions.pop()?.join("bin"))
}
