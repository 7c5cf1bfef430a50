//! `ginnel demo`: the whole network on this machine, with no root, told step by step.
//!
//! Every step runs the real command in a process of its own; the demo only reads what it prints.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::terminal;

/// Show the whole network on this machine: enrol, name, reach, revoke
///
/// Starts a server, a machine that serves a page and a developer's device, each as a process of
/// its own without root; prints every command; removes the machine in the end and cleans up.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {}

const EXAMPLES: &str = "\
Examples:
  ginnel demo
  cargo run --release -- demo";

/// The longest that one step may take before the demo gives up and says which.
const STEP_MAX: Duration = Duration::from_secs(10);

/// The longest that one attempt may take where several are made.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);

/// The page that the node serves.
const PAGE: &str = "hello from behind the gateway";

/// How often a step that waits for a state looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Runs the demo until it ends or Ctrl-C is pressed; either way nothing is left behind.
pub(crate) async fn run(_: Args) -> Result<ExitCode> {
    let mut demo = Demo::new()?;
    let outcome = tokio::select! {
        // First, so that a signal is awaited before the first process is started.
        biased;
        _ = terminal::interrupted() => Err(anyhow!("interrupted")),
        outcome = demo.tell() => outcome,
    };
    demo.clean_up().await;
    outcome.map(|()| ExitCode::SUCCESS)
}

/// The processes and the directory of one demo.
struct Demo {
    ginnel: PathBuf,
    directory: PathBuf,
    processes: Vec<Child>,
}

/// Whose state a command uses.
#[derive(Clone, Copy)]
enum Who {
    Developer,
    Machine,
}

impl Who {
    fn state(self) -> &'static str {
        match self {
            Self::Developer => "developer",
            Self::Machine => "machine",
        }
    }
}

impl Demo {
    fn new() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("ginnel-demo-{}", std::process::id()));
        os::file::create_private_directory(&directory)
            .with_context(|| format!("create `{}`", directory.display()))?;
        Ok(Self {
            ginnel: std::env::current_exe().context("find this program")?,
            directory,
            processes: Vec::new(),
        })
    }

    async fn tell(&mut self) -> Result<()> {
        let page = serve_page().await?;
        say("A server: control plane, gateway and names in one process, no root.");
        let server = self.start_server().await?;

        say("A developer signs in with the one-time token that the server printed.");
        let login = [
            "login",
            &server.url,
            "--token",
            &server.token,
            "--name",
            "laptop",
        ];
        self.step(Who::Developer, &login).await?;
        let minted = self
            .step(
                Who::Developer,
                &["token", "add", "--uses", "1", "--ttl", "1h"],
            )
            .await?;
        let token = word(&minted, "ginnel-join-").context("read the join token")?;

        say("A machine joins with it and publishes a local web page as the service `web`.");
        self.step(
            Who::Machine,
            &["join", &server.url, "--token", token, "--name", "shed"],
        )
        .await?;
        let (port, target) = (page.port().to_string(), page.to_string());
        let publish = [
            "service", "add", "web", "--port", &port, "--target", &target,
        ];
        self.step(Who::Machine, &publish).await?;
        self.start(Who::Machine, &["up", "--user"], "ready").await?;
        self.start(Who::Developer, &["up", "--user"], "ready")
            .await?;

        say("The developer reaches it by name, through WireGuard and TCP inside the program.");
        self.step(Who::Developer, &["ping", "shed", "-c", "3", "-i", "0.1"])
            .await?;
        self.step(Who::Developer, &["resolve", "web.svc.internal", "AAAA"])
            .await?;
        let line = self
            .start(Who::Developer, &["proxy", "--http", "127.0.0.1:0"], "http")
            .await?;
        let proxy = address_in(&line).context("read the proxy's address")?;
        let url = format!("http://web.svc.internal:{port}/");
        say(&format!("$ curl --proxy http://{proxy} {url}"));
        let answer = fetch(proxy, &url).await?;
        ensure!(answer.contains(PAGE), "the page did not arrive: {answer}");
        say(&format!("{PAGE}\n"));

        say("The machine is removed: its keys are dropped at the gateway, its name is gone.");
        self.step(Who::Developer, &["node", "remove", "shed"])
            .await?;
        say(&format!("$ curl --proxy http://{proxy} {url}"));
        let refused = refusal(proxy, &url).await?;
        say(&format!("{refused}\n"));
        say("That was the whole network: enrolled, named, reached, revoked. Nothing is left.");
        Ok(())
    }

    async fn start_server(&mut self) -> Result<Server> {
        let data = self.directory.join("server");
        let data = data
            .to_str()
            .context("the temporary directory is UTF-8")?
            .to_owned();
        let arguments = [
            "server",
            "--data",
            &data,
            "--listen",
            "127.0.0.1:0",
            "--wireguard",
            "127.0.0.1:0",
        ];
        let mut lines = self.spawn(None, &arguments)?;
        let (mut url, mut token) = (None, None);
        while url.is_none() || token.is_none() {
            let line = next_line(&mut lines, "server").await?;
            say(&shortened(&line));
            url = url.or_else(|| word(&line, "https://").map(str::to_owned));
            token = token.or_else(|| word(&line, "ginnel-login-").map(str::to_owned));
        }
        say("");
        keep_reading(lines);
        Ok(Server {
            url: url.expect("the loop ends when it is known"),
            token: token.expect("the loop ends when it is known"),
        })
    }

    /// Runs a command to its end and returns what it printed.
    async fn step(&mut self, who: Who, arguments: &[&str]) -> Result<String> {
        let output = self.command(Some(who), arguments).output();
        let output = timeout(STEP_MAX, output)
            .await
            .map_err(|_| anyhow!("`ginnel {}` did not end", arguments.join(" ")))??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        say(&format!("{}\n", shortened(text.trim_end())));
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("`ginnel {}` failed: {}", arguments.join(" "), reason.trim());
        }
        Ok(text)
    }

    /// Starts a command that stays, and returns the first line that contains `sign`.
    async fn start(&mut self, who: Who, arguments: &[&str], sign: &str) -> Result<String> {
        let mut lines = self.spawn(Some(who), arguments)?;
        loop {
            let line = next_line(&mut lines, arguments[0]).await?;
            if line.contains(sign) {
                say(&format!("{}\n", shortened(&line)));
                keep_reading(lines);
                return Ok(line);
            }
        }
    }

    fn spawn(
        &mut self,
        who: Option<Who>,
        arguments: &[&str],
    ) -> Result<Lines<BufReader<ChildStdout>>> {
        let mut child = self
            .command(who, arguments)
            .spawn()
            .with_context(|| format!("start `ginnel {}`", arguments[0]))?;
        let stdout = child.stdout.take().context("its output is piped")?;
        self.processes.push(child);
        Ok(BufReader::new(stdout).lines())
    }

    fn command(&self, who: Option<Who>, arguments: &[&str]) -> Command {
        say(&shortened(&format!("$ ginnel {}", arguments.join(" "))));
        let mut command = Command::new(&self.ginnel);
        command
            .args(arguments.iter().map(OsString::from))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(who) = who {
            command.env("GINNEL_STATE", self.directory.join(who.state()));
        }
        command
    }

    async fn clean_up(&mut self) {
        // The last started first: a command whose agent is gone would start another one, which
        // stays behind.
        for process in self.processes.iter_mut().rev() {
            // It may have ended by itself; then there is nothing to end.
            drop(process.kill().await);
        }
        remove(&self.directory);
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

/// What the server printed when it started.
struct Server {
    url: String,
    token: String,
}

/// Prints one line of the story.
fn say(text: &str) {
    // A closed stdout ends the story for the reader, not the demo.
    drop(terminal::line(text));
}

fn remove(directory: &Path) {
    // Removed twice on the ordinary way out: the second time there is nothing left.
    drop(std::fs::remove_dir_all(directory));
}

async fn next_line(lines: &mut Lines<BufReader<ChildStdout>>, name: &str) -> Result<String> {
    timeout(STEP_MAX, lines.next_line())
        .await
        .map_err(|_| anyhow!("`ginnel {name}` did not say that it is ready"))?
        .with_context(|| format!("read what `ginnel {name}` prints"))?
        .with_context(|| format!("`ginnel {name}` ended early"))
}

/// Reads on so that the process never blocks on a full pipe.
fn keep_reading(mut lines: Lines<BufReader<ChildStdout>>) {
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
}

/// Serves [`PAGE`] to whoever connects and returns the address.
async fn serve_page() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let length = PAGE.len() + 1;
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{PAGE}\n"
            );
            tokio::spawn(async move {
                let mut request = [0; 1024];
                // A visitor that goes away early is not the demo's concern.
                drop(stream.read(&mut request).await);
                drop(stream.write_all(answer.as_bytes()).await);
                drop(stream.shutdown().await);
            });
        }
    });
    Ok(address)
}

/// Fetches `url` through the HTTP proxy as `curl --proxy` would.
async fn fetch(proxy: SocketAddr, url: &str) -> Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(proxy).await?;
        let host = url.trim_start_matches("http://").trim_end_matches('/');
        let request = format!("GET {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    timeout(STEP_MAX, exchange)
        .await
        .map_err(|_| anyhow!("the proxy did not answer"))?
        .context("fetch the page")
}

/// Waits until the page's name is gone and returns the refusal's status line and body.
async fn refusal(proxy: SocketAddr, url: &str) -> Result<String> {
    let wait = async {
        loop {
            // A connection that is made while the machine is removed may hear nothing more.
            let Ok(answer) = timeout(ATTEMPT_MAX, fetch(proxy, url)).await else {
                continue;
            };
            let answer = answer?;
            // A look-up from just before the removal still finds an address.
            if answer.contains("does not exist") {
                let status = answer.lines().next().unwrap_or_default().to_owned();
                let reason = answer.split("\r\n\r\n").last().unwrap_or_default();
                return Ok(format!("{status}\n{}", reason.trim_end()));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    timeout(STEP_MAX, wait)
        .await
        .map_err(|_| anyhow!("the page can still be fetched after the node was removed"))?
}

/// Returns the first word of `text` that starts with `start`.
fn word<'t>(text: &'t str, start: &str) -> Option<&'t str> {
    text.split_whitespace().find(|word| word.starts_with(start))
}

/// Returns the first `ADDRESS:PORT` in `text`, alone or behind a scheme.
fn address_in(text: &str) -> Option<SocketAddr> {
    text.split_whitespace().find_map(|word| {
        let word = word.rsplit("://").next().unwrap_or(word);
        word.parse().ok()
    })
}

/// Shortens the tokens in `text`, which would fill lines on the screen.
fn shortened(text: &str) -> String {
    text.split_inclusive(char::is_whitespace)
        .map(|word| match word.char_indices().nth(24) {
            Some((end, _)) if word.starts_with("ginnel-") && word.len() > 60 => {
                let tail = if word.ends_with('\n') { "\n" } else { " " };
                format!("{}…{tail}", &word[..end])
            }
            Some(_) | None => word.to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_token_is_shortened_and_the_rest_stays() {
        let token = format!("ginnel-join-{}", "a".repeat(80));
        let text = shortened(&format!("$ ginnel join --token {token} --name shed"));
        assert_eq!(
            text,
            "$ ginnel join --token ginnel-join-aaaaaaaaaaaa… --name shed"
        );
    }

    #[test]
    fn an_address_is_found_behind_a_scheme() {
        assert_eq!(
            address_in("http on 127.0.0.1:80"),
            "127.0.0.1:80".parse().ok()
        );
        assert_eq!(
            address_in("http://127.0.0.1:80"),
            "127.0.0.1:80".parse().ok()
        );
        assert_eq!(address_in("nothing here"), None);
    }
}
