//! What a change costs a control plane with many nodes: one real server, driven over HTTPS.
//!
//! Every node of the installation is a client of the API as a real one is: it asks for its map with
//! a connection of its own, waits, takes the difference and asks again. Prints lines
//! `COLUMN TAB VALUE`; all organisations have the same number of nodes, so that a change is seen by
//! as many nodes at every size of the installation.

mod client;
mod follower;
mod server;

use std::{
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use model::{
    api::{
        CreatedToken, EnrolRequest, Enrolled, GatewayEnrolled, GatewayRequest, LoggedIn, NewOrg,
        NewToken, NodeChange,
    },
    key::PublicKey,
    name::Label,
    token::{Kind, Token},
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

use client::Client;
use follower::Heard;
use server::Server;

/// Nodes of one organisation.
const MEMBERS: u32 = 100;

/// Machines that join at once.
const JOINING: u32 = 10;

/// Changes that are measured, one after another.
const CHANGES: usize = 40;

/// Reads that are measured, one after another.
const READS: u32 = 200;

/// Guards against waiting for ever.
const HANG_MAX: Duration = Duration::from_secs(600);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut program, mut database, mut nodes) = (None, None, MEMBERS);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("the option takes a value");
        match argument.as_str() {
            "--program" => program = Some(PathBuf::from(value())),
            "--database" => database = Some(value()),
            "--nodes" => nodes = value().parse().expect("a number of nodes"),
            // Cargo adds it.
            "--bench" => {}
            other => panic!("unexpected argument `{other}`"),
        }
    }
    os::process::raise_descriptor_limit().expect("up to the hard limit");
    let program = program.expect("--program PATH");
    let runtime = tokio::runtime::Runtime::new().expect("an event loop");
    let server = Server::start(&program, database.as_deref());
    runtime.block_on(measure(&server, nodes));
    // Who follows ends before the server does.
    drop(runtime);
}

async fn measure(server: &Server, nodes: u32) {
    let admin = Client::new(server.address, &server.authority, &server.admin_token);
    let login = enrol_request("laptop", u32::MAX);
    let admin: LoggedIn = admin.post("/v1/login", &login).await;
    let admin = Client::new(
        server.address,
        &server.authority,
        &admin.session_token.emit(),
    );
    let orgs = nodes.div_ceil(MEMBERS);
    let (began, before) = (now(), server.cpu());
    let members = join(server, &admin, orgs).await;
    let (wall, used) = (now() - began, server.cpu() - before);
    let joined = f64::from(orgs * MEMBERS);
    print("joins per second", joined / wall.as_secs_f64());
    print("CPU ms of a join", used.as_secs_f64() * 1e3 / joined);

    let (sender, mut heard) = mpsc::unbounded_channel();
    let gateway = gateway(server, &admin).await;
    let (place, serial) = (follower::GATEWAY, gateway.map.serial);
    let client = Client::new(
        server.address,
        &server.authority,
        &gateway.node_token.emit(),
    );
    tokio::spawn(follower::follow(client, place, serial, sender.clone()));
    for (place, org) in members.iter().enumerate() {
        for member in org {
            let token = member.node_token.emit();
            let client = Client::new(server.address, &server.authority, &token);
            let serial = member.map.serial;
            tokio::spawn(follower::follow(client, place, serial, sender.clone()));
        }
    }
    // The gateway came last and every organisation has it: each member is told that once.
    for _ in members.iter().flatten() {
        next(&mut heard).await;
    }
    print("server MB", server.resident());
    reads(&admin).await;
    changes(server, &admin, &members, &mut heard).await;
    print("server MB after changes", server.resident());
}

/// Joins all machines by one token for each organisation, and returns them by organisation.
async fn join(server: &Server, admin: &Client, orgs: u32) -> Vec<Vec<Enrolled>> {
    let mut members = Vec::new();
    for org in 0..orgs {
        let name = label(&format!("org{org}"));
        let _org: serde_json::Value = admin.post("/v1/orgs", &NewOrg { name: name.clone() }).await;
        let token = token(admin, Kind::Join, Some(name), MEMBERS).await;
        let mut joining = JoinSet::new();
        for lane in 0..JOINING {
            let client = Client::new(server.address, &server.authority, &token.emit());
            joining.spawn(async move {
                let mut joined = Vec::new();
                let each = MEMBERS / JOINING;
                for member in lane * each..(lane + 1) * each {
                    let name = format!("node{member}");
                    let request = enrol_request(&name, org * MEMBERS + member);
                    joined.push(client.post("/v1/join", &request).await);
                }
                joined
            });
        }
        members.push(joining.join_all().await.into_iter().flatten().collect());
    }
    members
}

async fn gateway(server: &Server, admin: &Client) -> GatewayEnrolled {
    let token = token(admin, Kind::Gateway, None, 1).await;
    let request = GatewayRequest {
        name: label("edge"),
        public_key: key(u32::MAX - 1),
        endpoint: "edge.example:51820".to_owned(),
    };
    let client = Client::new(server.address, &server.authority, &token.emit());
    client.post("/v1/gateways", &request).await
}

async fn reads(admin: &Client) {
    let mut times = Vec::new();
    for _ in 0..READS {
        let began = now();
        let _who: serde_json::Value = admin.get("/v1/whoami").await;
        times.push(milliseconds(now() - began));
    }
    print("read p50 ms", quantile(&mut times, 50));
    print("read p99 ms", quantile(&mut times, 99));
}

/// Renames nodes of one organisation after another, and waits until everybody who sees it has it.
async fn changes(
    server: &Server,
    admin: &Client,
    members: &[Vec<Enrolled>],
    heard: &mut mpsc::UnboundedReceiver<Heard>,
) {
    let (mut answers, mut arrivals, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let (mut sizes, mut gateway, mut total) = (Vec::new(), Vec::new(), 0.0);
    let before = server.cpu();
    for change in 0..CHANGES {
        let org = change % members.len();
        let member = &members[org][change];
        let request = NodeChange {
            name: Some(label(&format!("renamed{change}"))),
            tags: None,
        };
        let began = now();
        let path = format!("/v1/nodes/{}", member.id);
        let _node: serde_json::Value = admin.patch(&path, &request).await;
        let answered = now();
        answers.push(milliseconds(answered - began));
        let mut latest = 0.0_f64;
        for _ in 0..=MEMBERS {
            let Heard { place, at, bytes } = next(heard).await;
            total += bytes;
            if place == follower::GATEWAY {
                gateway.push(bytes);
            } else {
                assert_eq!(place, org, "nobody else is told");
                sizes.push(bytes);
            }
            let arrival = milliseconds(at.saturating_duration_since(answered));
            arrivals.push(arrival);
            latest = latest.max(arrival);
        }
        last.push(latest);
    }
    let used = (server.cpu() - before).as_secs_f64() * 1e3;
    print("change p50 ms", quantile(&mut answers, 50));
    print("change p99 ms", quantile(&mut answers, 99));
    print("in force p50 ms", quantile(&mut arrivals, 50));
    print("in force at the last p50 ms", quantile(&mut last, 50));
    print("bytes to a node p50", quantile(&mut sizes, 50));
    print("bytes to the gateway p50", quantile(&mut gateway, 50));
    let changes = f64::from(u32::try_from(CHANGES).expect("few"));
    print("bytes of a change", total / changes);
    print("CPU ms of a change", used / changes);
}

async fn token(admin: &Client, kind: Kind, org: Option<Label>, uses: u32) -> Token {
    let request = NewToken {
        kind,
        org,
        user: None,
        uses_max: Some(uses),
        ttl_seconds: Some(24 * 60 * 60),
        approval: false,
    };
    let made: CreatedToken = admin.post("/v1/tokens", &request).await;
    made.token
}

async fn next(heard: &mut mpsc::UnboundedReceiver<Heard>) -> Heard {
    let heard = timeout(HANG_MAX, heard.recv()).await;
    heard.expect("a change arrives").expect("followers live")
}

fn enrol_request(name: &str, number: u32) -> EnrolRequest {
    EnrolRequest {
        name: label(name),
        public_key: key(number),
    }
}

/// Nobody speaks with these nodes, so any distinct bytes do.
fn key(number: u32) -> PublicKey {
    let mut key = [1; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    PublicKey(key)
}

fn label(text: &str) -> Label {
    text.parse().expect("a well-formed label")
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn quantile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() * percent / 100).min(values.len() - 1)]
}

/// Reads the clock.
#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn now() -> Instant {
    Instant::now()
}

fn print(column: &str, value: f64) {
    writeln!(std::io::stdout(), "{column}\t{value:.3}").expect("somebody reads");
}
