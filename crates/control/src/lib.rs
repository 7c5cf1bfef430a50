//! The control plane: storage, API, certificate authority and published maps.
//!
//! It knows no packet. A [`Server`] keeps its state in one directory, answers HTTPS under `/v1`
//! and gives every node the [`NetworkMap`] of what that node may see, nothing else.

use std::{
    collections::BTreeMap,
    fmt,
    future::{Future, pending},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use model::{
    api::{CaptureEnd, NodeByKey, SentBlocks, Timestamp, TunnelReport},
    id::{CaptureId, NodeId, OrgId, UserId},
    key::PublicKey,
    map::{NetworkMap, Told},
    name::Label,
    policy::Role,
    token::{Kind, Pin, Token},
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use zeroize::Zeroizing;

use crate::{
    api::error::ApiError,
    ca::{Authority, Certificates},
    capture::Captures,
    carrier::Carriers,
    map::{Known, Maps},
    master_key::MasterKey,
    oidc::RelyingParty,
    publish::Publisher,
    storage::{
        Change, Store, Touched,
        audit::{Actor, Entry},
        database::Claim,
        node::Part,
        token::Grant,
    },
    tunnels::Tunnels,
};

pub use crate::{
    api::permission::{Permission, Reach, permissions},
    audit::{AuditFault, AuditVerifier, audit_hash},
    backup::{BackupContents, backup, restore},
};

mod api;
mod audit;
mod backup;
mod ca;
mod capture;
mod carrier;
mod expiry;
mod map;
mod master_key;
mod oidc;
mod policy;
mod publish;
mod secret;
mod siblings;
mod ssh;
mod storage;
mod tls;
mod tunnels;

/// What a server needs to know and to be given.
pub struct Config {
    /// The directory of its state: database, certificates. Made with mode 0700 if missing.
    pub data: PathBuf,
    /// Where its rows are.
    pub database: Database,
    /// `HOST:PORT` at which clients reach the API; an IPv6 address stands in brackets.
    pub public: String,
    /// Where its certificate comes from.
    pub certificate: CertificateSource,
    /// Certificate authorities in PEM that identity providers may have beside the system's.
    pub provider_ca: Option<PathBuf>,
    /// How often the provider of a person's session is asked whether she is still there.
    pub revalidation: Duration,
    /// Reads the wall clock.
    pub wall: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    /// Draws tokens and addresses. Keys of certificates come from the TLS library's own source.
    pub random: Arc<dyn Random>,
}

/// Where a server keeps its rows.
#[derive(Clone, Default)]
pub enum Database {
    /// An SQLite file in the directory of its state.
    #[default]
    File,
    /// A PostgreSQL database, as `postgres://USER@HOST/DATABASE`, which several servers of one
    /// installation may share: each has the same `ca.key`, `ca.pem` and `master.key` in its
    /// directory. The URL may hold a password.
    Postgres(Zeroizing<String>),
}

/// Where the rows of a server that does not run are.
#[derive(Clone)]
pub enum Place {
    /// The SQLite file in the directory of its state.
    Folder(PathBuf),
    /// A PostgreSQL database.
    Postgres(Zeroizing<String>),
}

/// Where the server's TLS certificate comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CertificateSource {
    /// The server's own authority, which tokens pin.
    Own,
    /// An operator's files in PEM, read again every day; clients verify them with their system's
    /// roots, and tokens carry no pin.
    Files {
        /// The certificate and its intermediates, leaf first.
        chain: PathBuf,
        /// The private key.
        key: PathBuf,
    },
}

/// The system's randomness.
pub trait Random: Send + Sync {
    /// Fills `bytes` from a cryptographically secure source.
    fn fill(&self, bytes: &mut [u8]);
}

/// A control plane. Cheap to clone; clones share one state.
#[derive(Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

/// A first credential, to be printed once.
#[derive(Debug)]
pub struct Bootstrap {
    /// A login token for one use.
    pub token: Token,
    /// When it ends.
    pub expires: Timestamp,
}

struct Inner {
    public: String,
    wall: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    random: Arc<dyn Random>,
    store: Store,
    certificates: Arc<Certificates>,
    master_key: MasterKey,
    relying_party: RelyingParty,
    revalidation: Duration,
    publisher: Publisher,
    maps: Maps,
    captures: Captures,
    carriers: Carriers,
    tunnels: Tunnels,
    /// The gateway in this process, once it is registered.
    gateway: OnceLock<NodeId>,
    stopping: watch::Sender<bool>,
    /// When nodes last asked for their maps; bounded by the number of nodes.
    seen: Mutex<BTreeMap<NodeId, i64>>,
    /// The last minute in which each node told refusals, and how many; bounded by the nodes.
    reports: Mutex<BTreeMap<NodeId, (i64, u32)>>,
    /// Requests at work, without those that wait for a map; further ones wait.
    busy: Semaphore,
    /// Tells the requests of this run from those of others in the log.
    run: u32,
    requests: AtomicU64,
}

/// Reports of refused logins that one node may make in a minute, so that nobody fills the audit.
const REPORTS_PER_MINUTE_MAX: u32 = 30;

/// The organisation that is there from the first start.
pub const DEFAULT_ORG: &str = "default";

/// The person who keeps the installation from the first start on.
const OPERATOR: &str = "admin";

/// How many names are tried for that person.
const OPERATOR_NAMES_MAX: u32 = 100;

/// The name of the gateway in the server's own process; those of further servers have a number.
const BUILTIN_GATEWAY: &str = "server";

/// How many names are tried for the gateway of a further server.
const BUILTIN_GATEWAYS_MAX: u32 = 100;

/// How long a bootstrap token is valid.
const BOOTSTRAP_SECONDS: i64 = 24 * 60 * 60;

/// Requests that work at once; more would only wait for the database.
const BUSY_MAX: usize = 256;

/// How often providers are asked by default: whoever was disabled is out within a minute.
pub const REVALIDATION_INTERVAL: Duration = Duration::from_secs(60);

const DATABASE_FILE: &str = "ginnel.db";

impl Database {
    async fn open(&self, data: &Path) -> anyhow::Result<Store> {
        match self {
            Self::File => {
                let path = data.join(DATABASE_FILE);
                let store = Store::open(&path)
                    .await
                    .with_context(|| format!("open database `{}`", path.display()))?;
                restrict(&path)?;
                Ok(store)
            }
            Self::Postgres(url) => {
                let store = Store::open_postgres(url, Claim::Servers).await;
                store.context("open the PostgreSQL database")
            }
        }
    }
}

impl Server {
    /// Opens the state directory, migrates the database and prepares the certificate.
    pub async fn open(config: Config) -> anyhow::Result<Self> {
        let host = host(&config.public)?;
        make_private_folder(&config.data)?;
        let store = config.database.open(&config.data).await?;
        store.chain_audit().await.context("chain the audit")?;
        let wall = (config.wall)();
        let certificates = match &config.certificate {
            CertificateSource::Own => {
                let authority = authority(&store, &config.data, wall).await?;
                Certificates::own(authority, host, wall)?
            }
            CertificateSource::Files { .. } => {
                installed(&store, seconds(wall)).await?;
                Certificates::files(config.certificate.clone(), wall)?
            }
        };
        let mut read = store.read().await?;
        let sealed = storage::ssh::has_keys(&mut read).await?;
        drop(read);
        let master_key = MasterKey::load(&config.data, &*config.random, sealed)?;
        let relying_party = RelyingParty::new(config.provider_ca.as_deref())?;
        let mut run = [0; 4];
        config.random.fill(&mut run);
        let inner = Inner {
            public: config.public,
            wall: config.wall,
            random: config.random,
            store,
            certificates: Arc::new(certificates),
            master_key,
            relying_party,
            revalidation: config.revalidation,
            publisher: Publisher::new(),
            maps: Maps::new(),
            captures: Captures::new(),
            carriers: Carriers::default(),
            tunnels: Tunnels::default(),
            gateway: OnceLock::new(),
            stopping: watch::Sender::new(false),
            seen: Mutex::new(BTreeMap::new()),
            reports: Mutex::new(BTreeMap::new()),
            busy: Semaphore::new(BUSY_MAX),
            run: u32::from_be_bytes(run),
            requests: AtomicU64::new(0),
        };
        let server = Self {
            inner: Arc::new(inner),
        };
        server.verify_master_key().await?;
        server.catch_up().await?;
        let made = server.insert_missing_ssh_authorities().await;
        made.context("make the SSH authorities")?;
        if let Database::Postgres(url) = config.database {
            siblings::begin(&server, url);
        }
        Ok(server)
    }

    /// Makes organisation `default` and the first operator on the first start. Returns a token
    /// then, and again if an earlier one ended unused.
    pub async fn bootstrap(&self) -> anyhow::Result<Option<Bootstrap>> {
        let mut read = self.inner.store.read().await?;
        if storage::token::somebody_can_enter(&mut read, self.now()).await? {
            return Ok(None);
        }
        drop(read);
        self.admin_token().await.map(Some)
    }

    /// Makes a further login token, for an operator at the machine who lost the first one.
    pub async fn admin_token(&self) -> anyhow::Result<Bootstrap> {
        let mut change = self.inner.store.change(self.now()).await?;
        let now = change.now();
        let known = storage::user::first_operator(change.connection()).await?;
        let (org, user) = match known {
            Some(known) => (known.org, known.id),
            None => self.insert_operator(&mut change).await?,
        };
        let token = self.mint(Kind::Login);
        let (hash, expires) = (secret::hash(&token), now + BOOTSTRAP_SECONDS);
        let grant = Grant::Login { org, user };
        let connection = change.connection();
        let id =
            storage::token::insert(connection, now, hash, grant, Some(1), Some(expires)).await?;
        let entry = Entry {
            actor: Actor::Server,
            action: "token_added",
            subject: format!("token:{id} {} user:{user}", Kind::Login),
            org: Some(org),
        };
        let committed = change.commit(entry, Touched::Org(org)).await?;
        self.inner.publisher.publish(committed);
        Ok(Bootstrap {
            token,
            expires: Timestamp(expires),
        })
    }

    /// Makes the first person who keeps the installation, in organisation `default`.
    async fn insert_operator(&self, change: &mut Change) -> anyhow::Result<(OrgId, UserId)> {
        let org: Label = DEFAULT_ORG.parse().expect("a well-formed label");
        let org = match storage::org::org_named(change.connection(), &org).await? {
            Some(org) => org.id,
            None => self.insert_org(change, &org).await?,
        };
        let (now, role) = (change.now(), Role::Admin);
        let mut name: Label = OPERATOR.parse().expect("a well-formed label");
        // Somebody else may have been given the name meanwhile.
        for number in 2..=OPERATOR_NAMES_MAX {
            let taken = storage::user::user_named(change.connection(), org, &name).await?;
            if taken.is_none() {
                break;
            }
            name = format!("{OPERATOR}-{number}")
                .parse()
                .expect("a well-formed label");
        }
        let user = storage::user::insert(change.connection(), now, org, &name, role, true).await?;
        Ok((org, user))
    }

    /// Returns the URL for `login` and `join`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.inner.public)
    }

    /// Returns the pin that tokens carry; `None` with an operator's certificate.
    #[must_use]
    pub fn pin(&self) -> Option<Pin> {
        self.inner.certificates.pin()
    }

    /// Enrols the gateway in this process, or updates its key and endpoint (`HOST:PORT`).
    pub async fn register_builtin_gateway(
        &self,
        public_key: PublicKey,
        endpoint: &str,
    ) -> anyhow::Result<NodeId> {
        let endpoint =
            api::parse_endpoint(endpoint).map_err(|error| anyhow::anyhow!("{}", error.message))?;
        let id = self.builtin_gateway(public_key, endpoint).await?;
        // A second registration in one process is of the same gateway.
        self.inner.gateway.get_or_init(|| id);
        Ok(id)
    }

    async fn builtin_gateway(
        &self,
        public_key: PublicKey,
        endpoint: &str,
    ) -> anyhow::Result<NodeId> {
        let mut change = self.inner.store.change(self.now()).await?;
        let now = change.now();
        let connection = change.connection();
        let mut known = storage::node::builtin_gateway(connection, public_key, endpoint).await?;
        if known.is_none() && !self.inner.store.is_shared() {
            known = storage::node::only_builtin_gateway(connection).await?;
        }
        let part = Part::Gateway {
            endpoint: endpoint.to_owned(),
            builtin: true,
        };
        let (id, name) = match known {
            Some(known) => {
                let same = matches!(&known.part, Part::Gateway { endpoint: old, .. }
                    if *old == endpoint);
                if same && known.public_key == public_key {
                    return Ok(known.id);
                }
                let (id, name) = (known.id, known.name);
                storage::node::update(connection, now, id, &name, public_key, &part).await?;
                (id, name)
            }
            None => {
                let name = builtin_gateway_name(connection).await?;
                let id = storage::node::insert(connection, now, &name, public_key, &part).await?;
                (id, name)
            }
        };
        storage::org::update_gateways(connection).await?;
        if !self.inner.store.is_shared() {
            storage::org::use_builtin(connection, id).await?;
        }
        let entry = Entry {
            actor: Actor::Server,
            action: "gateway_registered",
            subject: format!("node:{id} {name} {endpoint}"),
            org: None,
        };
        let committed = change.commit(entry, Touched::Everybody).await?;
        self.inner.publisher.publish(committed);
        Ok(id)
    }

    /// Returns the map of a node in this process; `None` when the node was removed.
    pub async fn map_here(&self, node: NodeId) -> anyhow::Result<Option<NetworkMap>> {
        Ok(self.map(node).await?)
    }

    /// Waits until the map of a gateway in this process is another than the one with serial
    /// `after`, and tells how. [`Told::Same`] says that the server stops.
    pub async fn map_after(&self, gateway: NodeId, after: u64) -> anyhow::Result<Told> {
        let known = Known {
            serial: after,
            differences: true,
        };
        Ok(self.told(gateway, None, Some(known), pending()).await?)
    }

    /// Returns the client of a public key, for a gateway that met it in a handshake.
    pub async fn node_by_key(&self, public_key: PublicKey) -> anyhow::Result<Option<NodeByKey>> {
        Ok(self.node_with_key(public_key).await?)
    }

    /// Takes blocks of the capture that somebody asked `node` in this process for; `None` when it
    /// does not run any more.
    pub async fn send_capture(
        &self,
        node: NodeId,
        id: CaptureId,
        blocks: Vec<u8>,
    ) -> Option<SentBlocks> {
        let running = self.inner.captures.running(id)?;
        if running.node != node {
            return None;
        }
        Some(running.send(blocks.into()).await)
    }

    /// Takes that `node` in this process has ended a capture.
    pub fn end_capture(&self, node: NodeId, id: CaptureId, end: CaptureEnd) {
        let running = self.inner.captures.running(id);
        if let Some(running) = running.filter(|running| running.node == node) {
            running.ended(end);
        }
    }

    /// Takes how the tunnels of nodes stand at a gateway in this process.
    pub fn report_tunnels(&self, report: &TunnelReport) {
        self.inner.tunnels.learn(self.now(), &report.tunnels);
    }

    /// Answers HTTPS at `listener` until `shutdown`, then ends open requests within 3 seconds.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> anyhow::Result<()> {
        tls::serve(self, listener, shutdown).await
    }

    /// Returns the router of the API, for tests and for shells that bring their own listener.
    pub fn router(&self) -> axum::Router {
        api::router(self.clone())
    }

    /// Ends waiting requests and closes the database. Call it after [`Server::serve`].
    pub async fn close(&self) {
        self.stop_waiting();
        self.inner.captures.drained().await;
        self.inner.store.close().await;
    }

    /// Lets every request that waits for a map end.
    fn stop_waiting(&self) {
        self.inner.stopping.send_replace(true);
    }

    fn certificates(&self) -> Arc<Certificates> {
        self.inner.certificates.clone()
    }

    fn renew_certificate(&self) -> anyhow::Result<()> {
        self.inner.certificates.renew((self.inner.wall)())
    }

    /// Does what was due while no server ran.
    async fn catch_up(&self) -> anyhow::Result<()> {
        self.delete_past().await.context("delete old rows")?;
        let ended = self.end_open_captures().await;
        ended.context("tell the end of captures")?;
        let expired = self.expire_nodes().await;
        expired.context("end nodes whose time is over")
    }

    async fn delete_past(&self) -> anyhow::Result<()> {
        self.delete_past_ssh_keys().await?;
        let mut change = self.change().await?;
        let now = change.now();
        let gone = storage::installation::delete_past(change.connection(), now).await?;
        if gone == 0 {
            return Ok(());
        }
        let entry = Entry {
            actor: Actor::Server,
            action: "past_deleted",
            subject: format!("{gone} rows"),
            org: None,
        };
        change.commit(entry, Touched::Nobody).await?;
        Ok(())
    }

    async fn map(&self, node: NodeId) -> Result<Option<NetworkMap>, storage::Error> {
        let (store, now) = (&self.inner.store, self.now());
        let told = self.inner.maps.tell(store, now, node, None).await?;
        Ok(match self.with_capture(node, told) {
            Told::Map(map) => Some(map),
            Told::Same | Told::Difference(_) | Told::Removed => None,
        })
    }

    /// Tells a node of `org`, or a gateway, how its map is another than the one it knows; waits for
    /// that until `deadline`, or until the server stops.
    async fn told(
        &self,
        node: NodeId,
        org: Option<OrgId>,
        known: Option<Known>,
        deadline: impl Future<Output = ()>,
    ) -> Result<Told, storage::Error> {
        let mut changes = self.inner.publisher.subscribe(org);
        let mut stopping = self.inner.stopping.subscribe();
        let mut deadline = std::pin::pin!(deadline);
        let (maps, store) = (&self.inner.maps, &self.inner.store);
        loop {
            // Whatever is published from here on wakes the wait below.
            changes.borrow_and_update();
            // Boxed, so that those who wait do not each hold the room of a query.
            let told = Box::pin(maps.tell(store, self.now(), node, known));
            let told = match store.while_it_answers(told).await {
                // The database closes before the last who wait have been answered.
                Err(_) if known.is_some() && *stopping.borrow() => return Ok(Told::Same),
                told => told?,
            };
            if !matches!(told, Told::Same) {
                return Ok(self.with_capture(node, told));
            }
            let changed = tokio::select! {
                changed = changes.changed() => changed.is_ok(),
                () = &mut deadline => false,
                _ = stopping.wait_for(|stopping| *stopping) => false,
            };
            if !changed {
                return Ok(told);
            }
        }
    }

    /// Tells the node of the capture that somebody asks it for.
    fn with_capture(&self, node: NodeId, mut told: Told) -> Told {
        let own = match &mut told {
            Told::Map(map) => &mut map.own,
            Told::Difference(difference) => &mut difference.own,
            Told::Same | Told::Removed => return told,
        };
        own.capture = self.inner.captures.of(node);
        told
    }

    async fn node_with_key(&self, key: PublicKey) -> Result<Option<NodeByKey>, storage::Error> {
        let mut read = self.inner.store.read().await?;
        let node = storage::node::node_with_key(&mut read, key).await?;
        let now = self.now();
        let Some(node) = node.filter(|node| node.state_at(now).is_active()) else {
            return Ok(None);
        };
        let others = map::client(&mut read, &node).await?;
        let (id, org) = (node.id, node.org());
        Ok(others
            .zip(org)
            .map(|(node, org)| NodeByKey { org, id, node }))
    }

    async fn change(&self) -> Result<Change, storage::Error> {
        self.inner.store.change(self.now()).await
    }

    /// Makes a change durable and wakes whoever can see it.
    async fn commit(&self, change: Change, entry: Entry, touched: Touched) -> Result<(), ApiError> {
        let action = entry.action;
        let subject = entry.subject.clone();
        let committed = match change.commit(entry, touched).await {
            Ok(committed) => committed,
            Err(error) => {
                // A database that went away at the end may have made the change durable.
                self.inner.publisher.wake(touched);
                return Err(error.into());
            }
        };
        self.inner.publisher.publish(committed);
        tracing::info!(action, subject, serial = committed.serial, "changed");
        Ok(())
    }

    fn now(&self) -> i64 {
        seconds((self.inner.wall)())
    }

    fn saw(&self, node: NodeId) {
        let now = self.now();
        let mut seen = self
            .inner
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        seen.insert(node, now);
    }

    /// Counts a report of a refused login; false when a node tells too many.
    fn may_report(&self, node: NodeId) -> bool {
        let minute = self.now() / 60;
        let reports = self.inner.reports.lock();
        let mut reports = reports.unwrap_or_else(PoisonError::into_inner);
        // What is past says nothing any more.
        reports.retain(|_, (last, _)| *last == minute);
        let (_, count) = reports.entry(node).or_insert((minute, 0));
        *count += 1;
        *count <= REPORTS_PER_MINUTE_MAX
    }

    fn seen(&self, node: NodeId) -> Option<i64> {
        let seen = self
            .inner
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        seen.get(&node).copied()
    }
}

/// Copies all rows from one place to another, which has none yet, and verifies that they arrived.
/// Returns how many they were. No server may run at either; keys and certificates are not touched.
pub async fn copy(from: &Place, to: &Place) -> anyhow::Result<u64> {
    if let Place::Folder(folder) = from {
        let path = folder.join(DATABASE_FILE);
        anyhow::ensure!(path.exists(), "there is no database `{}`", path.display());
    }
    let source = from.open().await.context("open the source")?;
    let target = to.open().await.context("open the target")?;
    let copied = source.copy_to(&target).await;
    target.close().await;
    source.close().await;
    Ok(copied?)
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "Folder({})", folder.display()),
            Self::Postgres(_) => f.write_str("Postgres(..)"),
        }
    }
}

impl Place {
    async fn open(&self) -> anyhow::Result<Store> {
        match self {
            Self::Folder(folder) => {
                make_private_folder(folder)?;
                let path = folder.join(DATABASE_FILE);
                let store = Store::open(&path).await;
                let store = store.with_context(|| format!("database `{}`", path.display()))?;
                restrict(&path)?;
                Ok(store)
            }
            Self::Postgres(url) => Ok(Store::open_postgres(url, Claim::Alone).await?),
        }
    }
}

/// Returns the host of `HOST:PORT`, without brackets.
fn host(public: &str) -> anyhow::Result<&str> {
    let refuse = || {
        format!(
            "`{public}` is no public endpoint: it has the form HOST:PORT, such as vpn.example:443"
        )
    };
    api::parse_endpoint(public).map_err(|_| anyhow::anyhow!(refuse()))?;
    let (host, _) = public.rsplit_once(':').with_context(refuse)?;
    Ok(host.trim_start_matches('[').trim_end_matches(']'))
}

fn make_private_folder(path: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("make directory `{}`", path.display()))
}

/// Lets only the owner read the database, which holds names and keys of everybody.
fn restrict(path: &Path) -> anyhow::Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let file = PathBuf::from(name);
        if file.exists() {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))
                .with_context(|| format!("restrict `{}`", file.display()))?;
        }
    }
    Ok(())
}

/// Returns a name for the gateway of a server that nobody has yet.
async fn builtin_gateway_name(connection: &mut storage::Connection) -> anyhow::Result<Label> {
    for number in 1..=BUILTIN_GATEWAYS_MAX {
        let name = match number {
            1 => BUILTIN_GATEWAY.to_owned(),
            _ => format!("{BUILTIN_GATEWAY}-{number}"),
        };
        let name: Label = name.parse().expect("a well-formed label");
        if storage::node::node_named(connection, None, &name)
            .await?
            .is_none()
        {
            return Ok(name);
        }
    }
    anyhow::bail!(
        "{BUILTIN_GATEWAYS_MAX} servers have registered gateways; remove those of servers that \
         are no more with `ginnel node remove`"
    )
}

/// Makes the installation's row on the first start.
async fn installed(store: &Store, now: i64) -> anyhow::Result<storage::installation::Installation> {
    let mut change = store.change(now).await?;
    let row = storage::installation::installation(change.connection()).await?;
    if let Some(row) = row {
        return Ok(row);
    }
    storage::installation::insert(change.connection(), now).await?;
    let entry = Entry {
        actor: Actor::Server,
        action: "installed",
        subject: env!("CARGO_PKG_VERSION").to_owned(),
        org: None,
    };
    change.commit(entry, Touched::Nobody).await?;
    let mut read = store.read().await?;
    let row = storage::installation::installation(&mut read).await?;
    row.context("read the installation")
}

/// Opens the authority that the database knows, or makes the first one.
async fn authority(store: &Store, data: &Path, wall: SystemTime) -> anyhow::Result<Authority> {
    let row = installed(store, seconds(wall)).await?;
    let folder = data.display();
    anyhow::ensure!(
        row.authority.is_none() || Authority::exists(data),
        "the certificate authority (`ca.key`, `ca.pem`) is missing in `{folder}`, and every token \
         pins it; copy it from another server of this database, or restore it from a backup"
    );
    let authority = Authority::open(data, wall)?;
    match row.authority {
        Some(known) => is_authority_of(Pin(known), &authority, data)?,
        None => {
            let mut change = store.change(seconds(wall)).await?;
            let pin = authority.pin();
            let row = storage::installation::installation(change.connection()).await?;
            if let Some(known) = row.and_then(|row| row.authority) {
                // Another server has begun at the same time.
                is_authority_of(Pin(known), &authority, data)?;
                return Ok(authority);
            }
            storage::installation::update_authority(change.connection(), pin.0).await?;
            let entry = Entry {
                actor: Actor::Server,
                action: "authority_made",
                subject: pin.to_string(),
                org: None,
            };
            change.commit(entry, Touched::Nobody).await?;
        }
    }
    Ok(authority)
}

fn is_authority_of(known: Pin, authority: &Authority, data: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(
        known == authority.pin(),
        "the certificate authority in `{}` is not the one of its database; copy `ca.key`, \
         `ca.pem` and `master.key` from another server of this database, or restore both from one \
         backup",
        data.display()
    );
    Ok(())
}

/// Returns seconds since the Unix epoch; a clock before it counts as the epoch.
fn seconds(wall: SystemTime) -> i64 {
    let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
