//! People sign in by a real identity provider, `oidc-provider`, in a real browser, and are out when
//! it says so.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::{
    clipboard::are_installed,
    world::{Process, WAIT_MAX, World, note, serve_echo, wait_for, word},
};

const CLIENT_SECRET: &str = "a secret of the tests";

/// A world whose server knows a provider, and who signs in there.
struct Scene {
    provider: Provider,
    browser: Browser,
    _laptop: Process,
    world: World,
}

/// The provider, which takes commands on its standard input.
struct Provider {
    issuer: String,
    input: ChildStdin,
    lines: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
    child: Child,
}

/// A WebDriver of Chromium.
struct Browser {
    port: u16,
    child: Child,
}

impl Scene {
    /// Starts server, provider and browser; `None` where one of their programs is missing.
    fn new(revalidation: &str) -> Option<Self> {
        let modules = modules()?;
        if !are_installed(&["node", "chromedriver", "chromium"]) {
            return None;
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        certify(directory.path());
        let ca = path("ca.pem");
        let ca = ca.to_str().expect("UTF-8");
        let flags = ["--provider-ca", ca, "--revalidation", revalidation];
        let world = World::with_flags(&flags);
        world.login("laptop");
        let laptop = world.up("laptop");
        let mut provider = Command::new("node");
        provider
            .arg(program("provider.mjs"))
            .args([&modules, &path("key.pem"), &path("leaf.pem")])
            .arg(&world.url)
            .env("NODE_EXTRA_CA_CERTS", world.path("data/ca.pem"));
        let provider = Provider::start(&mut provider, &world.path("provider.log"));
        let scene = Self {
            provider,
            browser: Browser::start(),
            _laptop: laptop,
            world,
        };
        scene.set_client("ginnel");
        Some(scene)
    }

    /// Has the server be a client of this name at the provider.
    fn set_client(&self, id: &str) {
        let secret = self.world.path("secret");
        fs::write(&secret, format!("{CLIENT_SECRET}\n")).expect("a file");
        let line = [
            "oidc",
            "set",
            "--issuer",
            &self.provider.issuer,
            "--client-id",
            id,
            "--client-secret-file",
            secret.to_str().expect("UTF-8"),
            "--role",
            "ops=admin",
            "--role",
            "dev=developer",
        ];
        self.world.run("laptop", &line);
    }

    /// Signs a person in on a device, as `ginnel oidc show` says how.
    fn sign_in(&self, who: &str, person: &str, flags: &[&str]) {
        let shown = self.world.json("laptop", &["oidc", "show"]);
        let pin = shown["pin"].as_str().expect("a pin");
        let line = ["login", &self.world.url, "--pin", pin, "--name", who];
        let line = [&line, flags].concat();
        let errors = self.world.path(&format!("{who}.err"));
        let mut login = self.world.ginnel(who, &line);
        let mut login = Process::spawn(&mut login, errors);
        let url = || {
            let text = login.stderr();
            let found = text
                .split_whitespace()
                .find(|word| word.starts_with("https://"));
            found.map(str::to_owned).filter(|_| text.ends_with('\n'))
        };
        wait_for("a URL", || url().is_some());
        let url = url().expect("it was just there");
        self.browser.sign_in(&url, person, who);
        let ended = login.ended();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let sentence = format!("signed in as {person}");
        assert!(ended.stdout.contains(&sentence), "{ended:?}");
    }
}

impl Provider {
    fn start(command: &mut Command, log: &Path) -> Self {
        use std::io::BufRead as _;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(log).expect("a file"))
            .spawn()
            .expect("start node");
        let stdout = child.stdout.take().expect("piped");
        let mut lines = std::io::BufReader::new(stdout).lines();
        let issuer = lines.next().expect("it starts").expect("UTF-8");
        Self {
            issuer,
            input: child.stdin.take().expect("piped"),
            lines,
            child,
        }
    }

    /// Has the provider do something, and waits until it has.
    fn tell(&mut self, command: &str) {
        writeln!(self.input, "{command}").expect("it reads");
        let done = format!("done {command}");
        // It says other things too.
        while self.lines.next().expect("it answers").expect("UTF-8") != done {}
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

impl Browser {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        drop(listener);
        let child = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start chromedriver");
        wait_for("chromedriver", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self { port, child }
    }

    /// Signs a person in.
    fn sign_in(&self, url: &str, person: &str, name: &str) {
        let mut story = self.story("browser.mjs", url, person, &format!("sign-in-{name}"));
        let ended = crate::world::finish(&mut story);
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }

    /// Returns what a person does at this browser; the screenshots stay under `target`.
    fn story(&self, story: &str, url: &str, person: &str, shots: &str) -> Command {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
        fs::create_dir_all(&folder).expect("a directory");
        let mut command = Command::new("node");
        command
            .arg(program(story))
            .args([&self.port.to_string(), url, person])
            .arg(folder.join(shots));
        command
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // It may have ended by itself.
    drop(child.kill());
    drop(child.wait());
}

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/network/oidc")
        .join(name)
}

/// Returns where `oidc-provider` is installed, as `cargo xtask test` does it.
fn modules() -> Option<PathBuf> {
    let found = env::var_os("NODE_PATH").map(PathBuf::from).or_else(|| {
        let home = PathBuf::from(env::var_os("HOME")?);
        Some(home.join(".cache/ginnel-ci/npm/node_modules"))
    });
    let found = found.filter(|path| path.join("oidc-provider").is_dir());
    if found.is_none() {
        note("skipped: `oidc-provider` of npm is not installed");
    }
    found
}

/// Makes an authority and the provider's certificate.
fn certify(directory: &Path) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(params, key).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let leaf = params.signed_by(&key, &authority).expect("a certificate");
    let write = |name: &str, text: String| {
        fs::write(directory.join(name), text).expect("a file");
    };
    write("ca.pem", authority.pem());
    write("leaf.pem", leaf.pem());
    write("key.pem", key.serialize_pem());
}

#[test]
fn people_sign_in_with_a_browser_and_with_a_code_and_their_role_follows_their_groups() {
    let Some(mut scene) = Scene::new("1s") else {
        return;
    };
    scene.sign_in("desk", "alice", &[]);
    let whoami = scene.world.run("desk", &["whoami"]);
    assert!(
        whoami.contains("signed in as alice (developer)"),
        "{whoami}"
    );
    scene.sign_in("tablet", "alice", &["--device"]);
    let whoami = scene.world.run("tablet", &["whoami"]);
    assert!(whoami.contains("alice (developer)"), "{whoami}");
    scene.sign_in("phone", "mallory", &[]);
    let whoami = scene.world.run("phone", &["whoami"]);
    assert!(whoami.contains("mallory (guest)"), "{whoami}");
    scene.provider.tell("groups alice ops");
    wait_for("another role", || {
        scene
            .world
            .run("desk", &["whoami"])
            .contains("alice (admin)")
    });
    let secrets = [CLIENT_SECRET, "refresh_token", "id_token"];
    let logs = scene.world.logs();
    for secret in secrets {
        assert!(!logs.contains(secret), "`{secret}` is in a log");
    }
    let database = fs::read(scene.world.path("data/ginnel.db")).expect("a database");
    let clear = CLIENT_SECRET.as_bytes();
    assert!(!database.windows(clear.len()).any(|bytes| bytes == clear));
    // Signed out at the provider, which tells it by the back channel.
    scene.provider.tell("logout mallory");
    wait_for("the end of a session", || {
        scene.world.try_run("phone", &["whoami"]).code == Some(1)
    });
    let audit = scene.world.run("laptop", &["audit", "list"]);
    assert!(audit.contains("says that the person signed out"), "{audit}");
    scene.world.run("desk", &["whoami"]);
}

#[test]
fn nothing_of_a_person_works_within_a_minute_after_the_provider_disabled_her() {
    let Some(mut scene) = Scene::new("1s") else {
        return;
    };
    let world = &scene.world;
    world.join("shed");
    world.publish("shed", "echo", 7000, serve_echo());
    let _shed = world.up_with("shed", &["--ssh"]);
    scene.provider.tell("groups alice ops");
    scene.sign_in("desk", "alice", &[]);
    let world = &scene.world;
    let mut desk = world.up("desk");
    let (_forward, local) = world.forward("desk", "echo.svc", 7000);
    let mut open = TcpStream::connect(local).expect("the forward listens");
    open.set_read_timeout(Some(WAIT_MAX)).expect("not zero");
    let mut echo = || {
        open.write_all(b"still")?;
        open.read_exact(&mut [0; 5])
    };
    echo().expect("it is open");
    wait_for("an SSH server", || {
        world.try_run("desk", &["ssh", "root@shed", "true"]).code == Some(0)
    });
    let marker = world.path("session");
    let line = format!("echo $$ > {}; exec sleep 600", marker.display());
    let line = ["ssh", "root@shed", &line];
    let mut session = world.spawn(&mut world.ginnel("desk", &line));
    wait_for("a session", || {
        fs::read_to_string(&marker).is_ok_and(|text| text.ends_with('\n'))
    });
    let program = fs::read_to_string(&marker).expect("a file");
    let program = PathBuf::from(format!("/proc/{}", program.trim()));
    // The provider confirmed her and told of another group, and she is still in.
    scene.provider.tell("groups alice ops,web");
    let world = &scene.world;
    wait_for("a confirmation", || {
        let audit = world.run("laptop", &["audit", "list"]);
        audit.contains("alice admin groups:ops,web")
    });
    echo().expect("it is still open");

    scene.provider.tell("disable alice");
    let world = &scene.world;
    let waited = wait_for("the end of the forward", || echo().is_err());
    assert_eq!(session.ended().code, Some(255));
    wait_for("the end of the program", || !program.exists());
    note(&format!(
        "off-boarding: the forward was dead after {waited:?}"
    ));
    assert_eq!(desk.ended().code, Some(1));
    assert_nothing_works(world, "desk");
    let audit = world.run("laptop", &["audit", "list"]);
    let found = audit
        .lines()
        .find(|line| line.contains("oidc_session_ended"));
    let line = found.expect("a row of the audit");
    assert!(line.contains("alice node:"), "{line}");
    assert!(
        line.contains("the identity provider refuses: invalid_grant"),
        "{line}"
    );
    let nobody = world.try_run("laptop", &["node", "list"]);
    assert!(!nobody.stdout.contains("desk"), "{nobody:?}");
    // She comes back on the same device when the provider lets her.
    let before = word(&line.replace(' ', "\n"), "user:");
    scene.provider.tell("enable alice");
    scene.sign_in("desk", "alice", &[]);
    let user = scene.world.json("desk", &["whoami"])["user"].to_string();
    assert_eq!(before, format!("user:{user}"));
}

/// She has no device: nothing but her browser is there to be asked about.
#[test]
fn a_person_signs_in_at_the_page_and_is_out_when_the_provider_has_disabled_her() {
    let Some(mut scene) = Scene::new("1s") else {
        return;
    };
    scene.set_client("ginnel-page");
    let world = &scene.world;
    let mut story = scene
        .browser
        .story("page.mjs", &world.url, "alice", "page-sign-in");
    let mut visit = world.spawn(&mut story);
    visit.until("signed in");
    let nodes = world.run("laptop", &["node", "list"]);
    assert!(!nodes.contains("alice"), "{nodes}");
    // The provider confirms her first, and tells of another group.
    scene.provider.tell("groups alice ops");
    let world = &scene.world;
    wait_for("a confirmation", || {
        let audit = world.run("laptop", &["audit", "list"]);
        audit.contains("alice admin groups:ops")
    });
    assert_eq!(visit.lines_so_far(), [""; 0]);
    scene.provider.tell("disable alice");
    let ended = visit.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stdout, "signed out", "{ended:?}");
    let audit = scene.world.run("laptop", &["audit", "list"]);
    let line = audit
        .lines()
        .find(|line| line.contains("browser_session_ended"));
    let line = line.expect("a row of the audit");
    assert!(line.contains("alice browser:"), "{line}");
    assert!(
        line.contains("the identity provider refuses: invalid_grant"),
        "{line}"
    );
}

fn assert_nothing_works(world: &World, who: &str) {
    for line in [
        &["node", "list"][..],
        &["resolve", "shed"],
        &["dial", "shed", "7000"],
        &["ssh", "root@shed", "true"],
        &["cert"],
    ] {
        let ended = world.try_run(who, line);
        assert_ne!(ended.code, Some(0), "{line:?}: {ended:?}");
        assert!(
            ended.stderr.contains("this node was removed"),
            "{line:?}: {ended:?}"
        );
    }
}
