//! How much one connection may hold, and how long it may take.

use std::{
    net::Ipv4Addr,
    sync::{Mutex, PoisonError},
};

use russh::{Channel, ChannelOpenFailure, client::ChannelOpenHandle};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::ssh::channels::CHANNELS_MAX;

/// Keeps the channels that lead here.
#[derive(Clone, Default)]
struct Keeper(Arc<Mutex<Vec<Channel<client::Msg>>>>);

impl Keeper {
    fn channels(&self) -> std::sync::MutexGuard<'_, Vec<Channel<client::Msg>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl client::Handler for Keeper {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<client::Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        self.channels().push(channel);
        Ok(())
    }
}

/// A server that has so much patience.
fn patient(patience: Patience) -> Server {
    let mut server = trusting(|| Ok(authority()));
    let shared = Arc::get_mut(&mut server.shared);
    shared.expect("nobody is connected").patience = patience;
    server
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let ended = time::timeout(END_MAX, future).await;
    ended.unwrap_or_else(|_| panic!("no end of waiting for {what}"))
}

fn is_shortage(error: &russh::Error) -> bool {
    let shortage = russh::Error::ChannelOpenFailure(ChannelOpenFailure::ResourceShortage);
    error.to_string() == shortage.to_string()
}

#[test]
fn a_connection_has_so_many_sessions_and_lives_on() {
    block_on(async {
        let server = trusting(|| Ok(authority()));
        let client = log_in(&server, key(9)).await.unwrap();
        let mut sessions = Vec::new();
        for _ in 0..connection::SESSIONS_MAX {
            sessions.push(client.channel_open_session().await.unwrap());
        }
        let refused = client.channel_open_session().await;
        assert!(is_shortage(&refused.unwrap_err()));
        let closed = sessions.pop().unwrap();
        closed.close().await.unwrap();
        let again = async {
            while client.channel_open_session().await.is_err() {
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon("room that one has made", again).await;
    });
}

#[test]
fn a_connection_has_so_many_channels_and_lives_on() {
    block_on(async {
        os::process::raise_descriptor_limit().unwrap();
        let server = trusting(|| Ok(authority()));
        let client = log_in(&server, key(9)).await.unwrap();
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = target.local_addr().unwrap().port();
        let open = || client.channel_open_direct_tcpip("127.0.0.1", port.into(), "::1", 1);
        let mut accepted = Vec::new();
        let mut channels = Vec::new();
        for _ in 0..CHANNELS_MAX {
            channels.push(soon("a channel", open()).await.unwrap());
            accepted.push(target.accept().await.unwrap());
        }
        assert!(is_shortage(&open().await.unwrap_err()));
        let session = client.channel_open_session().await;
        assert!(is_shortage(&session.unwrap_err()), "sessions are channels");
        channels.pop().unwrap().close().await.unwrap();
        let again = async {
            while let Err(error) = open().await {
                assert!(is_shortage(&error));
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon("room that one has made", again).await;
    });
}

/// Whoever connects to a port of the node opens channels too.
#[test]
fn a_port_that_leads_to_the_person_takes_as_many_as_there_are_channels() {
    block_on(async {
        os::process::raise_descriptor_limit().unwrap();
        let (server, keeper) = (trusting(|| Ok(authority())), Keeper::default());
        let client = log_in_by(&server, 1, key(9), keeper.clone()).await.unwrap();
        let port = client.tcpip_forward("localhost", 0).await.unwrap();
        let there = (Ipv4Addr::LOCALHOST, u16::try_from(port).unwrap());
        let mut streams = Vec::new();
        for count in 1..=CHANNELS_MAX {
            streams.push(TcpStream::connect(there).await.unwrap());
            let led = async {
                while keeper.channels().len() < count {
                    time::sleep(Duration::from_millis(1)).await;
                }
            };
            soon("a channel", led).await;
        }
        let mut more = TcpStream::connect(there).await.unwrap();
        let read = soon("the end of one too many", more.read(&mut [0])).await;
        assert!(!matches!(read, Ok(1..)), "{read:?}");
        assert_eq!(keeper.channels().len(), CHANNELS_MAX);
        let closed = keeper.channels().pop().unwrap();
        closed.close().await.unwrap();
        let again = async {
            while keeper.channels().len() < CHANNELS_MAX {
                streams.push(TcpStream::connect(there).await.unwrap());
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon("room that one has made", again).await;
    });
}

#[test]
fn a_connection_has_so_many_listeners_and_lives_on() {
    block_on(async {
        let server = trusting(|| Ok(authority()));
        let client = log_in(&server, key(9)).await.unwrap();
        let mut ports = Vec::new();
        for _ in 0..connection::LISTENERS_MAX {
            ports.push(client.tcpip_forward("localhost", 0).await.unwrap());
        }
        assert!(client.tcpip_forward("localhost", 0).await.is_err());
        let closed = ports.pop().unwrap();
        let cancelled = client.cancel_tcpip_forward("localhost", closed).await;
        cancelled.unwrap();
        assert!(client.tcpip_forward("localhost", 0).await.is_ok());
    });
}

/// However far it has come: with nothing said, with its keys exchanged.
#[test]
fn who_does_not_log_in_is_cut_off_and_who_does_may_stay() {
    block_on(async {
        let server = patient(Patience {
            login_grace: Duration::from_millis(500),
            ..PATIENCE
        });
        let (silent, serving) = connect(&server);
        soon("the end of silence", serving).await.unwrap();
        drop(silent);
        let (near, serving) = connect(&server);
        let config = Arc::new(client::Config::default());
        // A slow machine has not come so far.
        let shy = client::connect_stream(config, near, Anybody).await;
        soon("the end of shyness", serving).await.unwrap();
        drop(shy);
        let mut inside = None;
        let logging_in = async {
            while inside.is_none() {
                inside = log_in(&server, key(9)).await;
            }
        };
        soon("a login that is fast enough", logging_in).await;
        time::sleep(2 * server.shared.patience.login_grace).await;
        let session = inside.unwrap().channel_open_session().await;
        assert!(session.is_ok());
    });
}

#[test]
fn a_connection_over_which_nothing_moves_ends() {
    block_on(async {
        let server = patient(Patience {
            idle_max: Duration::from_millis(500),
            look_again: Duration::from_millis(10),
            ..PATIENCE
        });
        let client = log_in(&server, key(9)).await.unwrap();
        let ended = async {
            while !client.is_closed() {
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon("the end", ended).await;
    });
}

#[test]
fn it_takes_a_day_without_a_byte_to_be_idle() {
    let Patience {
        idle_max,
        look_again,
        ..
    } = PATIENCE;
    let looks = u32::try_from(idle_max.as_secs() / look_again.as_secs()).unwrap();
    let mut quiet = Quiet::default();
    for day in 0..2 {
        for count in 0..looks {
            let time = quiet.look(7 + day, look_again);
            assert_eq!(time, count * look_again, "what moves begins it anew");
            assert!(time < idle_max);
        }
    }
    assert_eq!(quiet.look(8, look_again), Duration::from_secs(86_400));
}
