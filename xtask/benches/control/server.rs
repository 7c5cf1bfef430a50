//! The server under test, and what the kernel counts of it (proc(5)).

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tempfile::TempDir;

/// A running `ginnel server`; ended when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) authority: RootCertStore,
    pub(crate) admin_token: String,
    _data: TempDir,
}

impl Server {
    /// Starts the program with its file, or with the PostgreSQL at a URL.
    pub(crate) fn start(program: &Path, database: Option<&str>) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let mut command = Command::new(program);
        command.args(["--json", "server", "--listen", "127.0.0.1:0"]);
        command
            .args(["--wireguard", "127.0.0.1:0", "--data"])
            .arg(data.path());
        if let Some(database) = database {
            command.args(["--database", database]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the server starts");
        let output = child.stdout.take().expect("its output is piped");
        let mut line = String::new();
        let read = BufReader::new(output).read_line(&mut line);
        read.expect("the server says where it is");
        let said: serde_json::Value = serde_json::from_str(&line).expect("one object");
        let text = |name: &str| said[name].as_str().expect("a text").to_owned();
        let address = text("url").trim_start_matches("https://").parse();
        let mut authority = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(data.path().join("ca.pem"));
        let certificate = certificate.expect("its authority");
        authority.add(certificate).expect("a certificate authority");
        Self {
            child,
            address: address.expect("an address and a port"),
            authority,
            admin_token: text("admin_token"),
            _data: data,
        }
    }

    /// CPU time that all its threads have used.
    pub(crate) fn cpu(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let tasks = tasks.expect("the server lives").flatten();
        let used = tasks.map(|task| {
            // A thread that has just ended used little.
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let nanos = text.split(' ').next().and_then(|text| text.parse().ok());
            Duration::from_nanos(nanos.unwrap_or(0))
        });
        used.sum()
    }

    /// Resident memory in MB.
    pub(crate) fn resident(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("the server lives");
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        let kilobytes: f64 = number.and_then(|text| text.parse().ok()).expect("VmRSS");
        kilobytes / 1e3
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
