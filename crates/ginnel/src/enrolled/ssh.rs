//! The node's own SSH server at port 22 of its address, by what the map says of the authority.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use model::{
    map::NetworkMap,
    ssh::{HOST_TTL_SECONDS, HostCertificateRequest, PublicKeyText},
};
use russh::keys::{
    Certificate,
    ssh_key::public::{Ed25519PublicKey, KeyData},
};
use tokio::time;
use tunnel::{TcpListener, Tunnel};

use super::{record::Records, refusal};
use crate::{
    api::Client,
    authority::Pinned,
    cert,
    remedy::Advise as _,
    ssh::{Authority, Identity, Lookup, Organisation, Server},
};

const PORT: u16 = 22;

/// A key and its certificate serve so long, then both are made anew.
const RENEWAL: Duration = Duration::from_secs(HOST_TTL_SECONDS / 2);

/// How often it is looked whether the organisation still trusts who certified this host.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The wait after a failure: the server is away, or another program has the port.
const BACK_OFF: Duration = Duration::from_secs(5);

/// The wait after a failed accept: out of descriptors, some will be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The network around the server.
#[derive(Clone)]
struct Surroundings {
    tunnel: Tunnel,
    pinned: Pinned,
}

/// Serves SSH at the node's own address; until it has a certificate nobody is served.
pub(super) async fn serve(tunnel: Tunnel, pinned: Pinned, client: Arc<Client>) -> Infallible {
    let surroundings = Surroundings { tunnel, pinned };
    let refused = refusal::teller(Arc::clone(&client));
    loop {
        surroundings.admitted().await;
        let organisation = Organisation {
            authority: surroundings.lookup(),
            refused: Arc::clone(&refused),
            archive: Some(Arc::new(Records(Arc::clone(&client)))),
        };
        match open(&surroundings, organisation, &client).await {
            Ok(Opened {
                listener,
                server,
                certificate,
            }) => {
                // Connections that are open stay with the server that accepted them.
                let serving = accept(&listener, &server);
                let ends = async {
                    tokio::select! {
                        never = serving => match never {},
                        () = surroundings.doubts(&certificate) => {}
                    }
                };
                // That its time is over and that nobody believes it any more ask for the same.
                drop(time::timeout(RENEWAL, ends).await);
                tracing::info!("ssh: a new host key");
            }
            Err(error) => {
                tracing::warn!("ssh: {error:#}");
                time::sleep(BACK_OFF).await;
            }
        }
    }
}

struct Opened {
    listener: TcpListener,
    server: Server,
    certificate: Certificate,
}

async fn open(
    surroundings: &Surroundings,
    organisation: Organisation,
    client: &Client,
) -> Result<Opened> {
    let tunnel = &surroundings.tunnel;
    let addresses = tunnel.with(|node, _| node.addresses());
    let own = addresses.first().context("this node has no address")?;
    let local = SocketAddr::new(*own, PORT);
    // First, so that no certificate is signed for a port that another program has.
    let listener = TcpListener::bind(tunnel, local)
        .with_context(|| format!("listen at {local}"))
        .remedy("stop what serves that port, or leave --ssh out")?;
    let key = cert::make_key()?;
    let public_key = cert::public_key(&key)?;
    let issued = client
        .certify_host(&HostCertificateRequest { public_key })
        .await?;
    let certificate = Certificate::from_openssh(issued.certificate.as_str())
        .context("read the server's certificate")?;
    let identity = Identity {
        key,
        certificate: Some(certificate.clone()),
    };
    let server = Server::new(identity, organisation)?;
    tracing::info!(%local, "ssh: serving");
    Ok(Opened {
        listener,
        server,
        certificate,
    })
}

async fn accept(listener: &TcpListener, server: &Server) -> Infallible {
    loop {
        match listener.accept().await {
            Ok(stream) => {
                let (remote, local) = (stream.remote(), stream.local());
                tokio::spawn(server.serve(stream, remote, local));
            }
            Err(error) => {
                tracing::warn!(%error, "ssh: accept");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Surroundings {
    fn lookup(&self) -> Lookup {
        let surroundings = self.clone();
        Arc::new(move |peer| {
            let known = surroundings.known(peer);
            Box::pin(async move { known.map(Arc::new) })
        })
    }

    /// Returns whom the map trusts now, as the peer with this address meets it.
    fn known(&self, peer: IpAddr) -> Result<Authority, String> {
        self.tunnel.with(|node, _| {
            let map = node.map();
            let said = self.pinned.verified(map);
            let said = said.map_err(|refusal| refusal.to_string())?;
            let data = |key: &PublicKeyText| KeyData::from(Ed25519PublicKey(key.0));
            let cut = match peer {
                IpAddr::V6(peer) => said.cut.get(&peer),
                IpAddr::V4(_) => None,
            };
            Ok(Authority {
                user_ca: said.statement.keys.user.iter().map(data).collect(),
                host_ca: said.statement.keys.host.iter().map(data).collect(),
                revoked: said.revoked.iter().map(|serial| serial.0).collect(),
                cut: cut.map(|serial| serial.0),
                recording: said.recording,
                is_stranger: !map.is_some_and(|map| has(map, peer)),
            })
        })
    }

    /// Waits until others know this node: before, nobody certifies it.
    async fn admitted(&self) {
        let state = |node: &node::Node| node.map().is_none_or(|map| map.own.state.is_active());
        while !self.tunnel.with(|node, _| state(node)) {
            time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until the organisation does not trust who made a host certificate, or took it back.
    async fn doubts(&self, certificate: &Certificate) {
        loop {
            time::sleep(LOOK_AGAIN).await;
            let stands = self.tunnel.with(|node, _| {
                let said = self.pinned.verified(node.map());
                // Whom to trust instead is not known either.
                said.map_or(true, |said| {
                    let mut revoked = said.revoked.iter();
                    let mut keys = said.statement.keys.host.iter();
                    let signer = certificate.signature_key();
                    keys.any(|key| *signer == KeyData::from(Ed25519PublicKey(key.0)))
                        && !revoked.any(|serial| serial.0 == certificate.serial())
                })
            });
            if !stands {
                return;
            }
        }
    }
}

/// Tells whether a node of the own organisation has `address`.
fn has(map: &NetworkMap, address: IpAddr) -> bool {
    let mut nodes = map.own_org().into_iter().flat_map(|org| org.nodes.values());
    nodes.any(|node| IpAddr::V6(node.address) == address)
}
