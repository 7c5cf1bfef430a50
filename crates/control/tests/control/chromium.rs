//! The web page in a real browser: Chromium, driven by WebDriver, at a server with TLS.

use std::{
    env, fs,
    io::Write as _,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use model::{api::Peer, config::Config, policy::Role};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::world::{World, label};

/// What the story in the browser ended with.
#[derive(Deserialize)]
struct Seen {
    /// The exported configuration.
    configuration: String,
    /// The modules of its QR code, one digit each.
    modules: Vec<String>,
}

/// A WebDriver of Chromium.
struct Driver {
    port: u16,
    child: Child,
}

/// Bounds only how long a test hangs.
const WAIT_MAX: Duration = Duration::from_secs(60);

impl Driver {
    async fn start() -> Self {
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
        let driver = Self { port, child };
        let listens = async {
            while TcpStream::connect(("127.0.0.1", port)).is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let listens = timeout(WAIT_MAX, listens).await;
        listens.expect("chromedriver listens");
        driver
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Tells whether the programs are there; where the ring is required they have to be.
fn are_installed() -> bool {
    for name in ["node", "chromedriver", "chromium"] {
        let found = Command::new("sh")
            .args(["-c", "command -v \"$0\"", name])
            .stdout(Stdio::null())
            .status();
        if found.expect("start sh").success() {
            continue;
        }
        let required = env::var_os("INTEROP").is_some_and(|value| value == "required");
        assert!(!required, "`{name}` is not installed");
        let mut errors = std::io::stderr();
        writeln!(errors, "skipped: `{name}` is not installed").expect("it is open");
        return false;
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_goes_through_the_page_in_a_browser() {
    if !are_installed() {
        return;
    }
    let world = World::new().await;
    let admin = world.login().await.session_token;
    world.join(&admin, None, "web", 1).await;
    world.gateway(&admin, "edge", 5).await;
    let invited = world.invite(&admin, None, "eve", Role::Admin).await;
    let body = json!({
        "from": ["user:eve"], "to": ["*"], "comment": "<script>document.title = 1</script>",
    });
    let added = world.post("/v1/rules", &admin, &body).await;
    assert!(added.status.is_success(), "{}", added.text());

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = world.server.clone();
    let served = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        server.serve(listener, stopped).await
    });
    let driver = Driver::start().await;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots/page");
    fs::create_dir_all(&folder).expect("a directory");
    let story = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/control/page/browser.mjs");
    let mut command = Command::new("node");
    command
        .arg(story)
        .arg(driver.port.to_string())
        .arg(format!("https://127.0.0.1:{port}"))
        .arg(invited.token.emit().as_str())
        .arg(folder);
    let ended = spawn_blocking(move || command.output())
        .await
        .expect("no panic");
    let ended = ended.expect("start node");
    let (out, errors) = (
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr),
    );
    assert!(ended.status.success(), "{out}\n{errors}");

    let seen: Seen = serde_json::from_str(&out).expect("its last line");
    let config = Config::parse(seen.configuration.as_bytes()).expect("what wg-quick reads");
    let query = "/v1/peers?name=handset";
    let peers: model::api::Page<Peer> = world.get(query, &admin).await.parse();
    assert_eq!(peers.items[0].name, label("handset"));
    let private = aws_lc_rs::agreement::PrivateKey::from_private_key(
        &aws_lc_rs::agreement::X25519,
        config.interface.private_key.expose(),
    );
    let public = private.expect("a key").compute_public_key().expect("a key");
    assert_eq!(public.as_ref(), peers.items[0].public_key.0);
    assert_eq!(read(&seen.modules), seen.configuration);
    drop(driver);
    drop(stop);
    served.await.expect("no panic").expect("it drains");
}

/// Reads a QR code, as an independent program sees it.
fn read(modules: &[String]) -> String {
    let side = modules.len();
    let dark = |x: usize, y: usize| modules[y / SCALE].as_bytes()[x / SCALE] == b'1';
    let mut image =
        rqrr::PreparedImage::prepare_from_greyscale(side * SCALE, side * SCALE, |x, y| {
            if dark(x, y) { 0 } else { 255 }
        });
    let grids = image.detect_grids();
    let (_, text) = grids.first().expect("a QR code").decode().expect("text");
    text
}

/// Pixels of each side of a module.
const SCALE: usize = 4;
