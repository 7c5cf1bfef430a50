//! What the doctor asks the local agent, which is started if none runs.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{net::UnixStream, time};

use super::finding::{Cause, Finding};
use crate::{
    agent::{
        Client, client,
        protocol::{Answer, Failure, RecordKind, Request, Status},
        wire,
    },
    cli::Global,
};

/// The agent of this machine's node.
pub(super) struct Agent(Client);

/// What came of echo requests.
pub(super) enum Echoed {
    Reply(Duration),
    /// A router said that it is forbidden.
    Prohibited,
    /// A router, or the gateway, said that nobody is there.
    Unreachable,
    Nothing,
    /// No request was sent.
    Failed(Failure),
}

/// The agent bounds each request; this bounds the agent.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long the remote port may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);

/// Echo requests of one question, so that one lost packet is no finding.
const ECHOES: u16 = 3;
const ECHO_INTERVAL_MS: u64 = 200;

impl Agent {
    pub(super) fn of(global: &Global) -> Result<Self, Finding> {
        let client = Client::of(global);
        let client = client.map_err(|error| Finding::of_error(Cause::Agent, &error))?;
        Ok(Self(client))
    }

    pub(super) async fn status(&self) -> Result<Box<Status>, Finding> {
        let (answer, _) = self.ask(&Request::Status).await?;
        let Answer::Status(status) = answer else {
            return Err(misunderstood(&answer));
        };
        Ok(status)
    }

    /// Asks for the IPv6 addresses of a name, and for the IPv4 addresses.
    pub(super) async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Finding> {
        let request = Request::Resolve {
            name: name.to_owned(),
            kinds: vec![RecordKind::Aaaa, RecordKind::A],
        };
        let (answer, _) = self.ask(&request).await?;
        if let Answer::Failed(failure) = answer {
            return Err(failure.into());
        }
        let Answer::Records(records) = answer else {
            return Err(misunderstood(&answer));
        };
        let addresses = records.iter().filter_map(|r| r.value.parse().ok());
        Ok(addresses.collect())
    }

    /// Opens a TCP connection and ends it; returns its other end.
    pub(super) async fn dial(&self, host: &str, port: u16) -> Result<SocketAddr, Finding> {
        let request = Request::Dial {
            host: host.to_owned(),
            port,
            timeout_ms: u64::try_from(DIAL_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
        };
        let (answer, _) = self.ask(&request).await?;
        if let Answer::Failed(failure) = answer {
            return Err(failure.into());
        }
        let Answer::Connected { remote, .. } = answer else {
            return Err(misunderstood(&answer));
        };
        Ok(remote)
    }

    /// Sends some echo requests with `size` bytes of data and takes the first reply.
    pub(super) async fn ping(&self, address: IpAddr, size: u16) -> Result<Echoed, Finding> {
        let request = Request::Ping {
            host: address.to_string(),
            count: Some(ECHOES),
            interval_ms: ECHO_INTERVAL_MS,
            size,
        };
        let (answer, mut stream) = self.ask(&request).await?;
        if let Answer::Failed(failure) = answer {
            return Ok(Echoed::Failed(failure));
        }
        let mut told = Echoed::Nothing;
        loop {
            let answer = time::timeout(TIMEOUT, wire::receive(&mut stream)).await;
            let answer = answer.map_err(|_| is_gone())?.map_err(|_| is_gone())?;
            let Some(Answer::Echo {
                round_trip_us,
                error,
                prohibited,
                ..
            }) = answer
            else {
                return Ok(told);
            };
            if let Some(time) = round_trip_us {
                return Ok(Echoed::Reply(Duration::from_micros(time)));
            }
            if prohibited {
                told = Echoed::Prohibited;
            } else if error.is_some() {
                told = Echoed::Unreachable;
            }
        }
    }

    async fn ask(&self, request: &Request) -> Result<(Answer, UnixStream), Finding> {
        let asked = self.0.ask(request, TIMEOUT).await;
        asked.map_err(|error| Finding::of_error(Cause::Agent, &error))
    }
}

fn misunderstood(answer: &Answer) -> Finding {
    Finding::of_error(Cause::Agent, &client::unexpected(answer))
}

fn is_gone() -> Finding {
    Finding::new(
        Cause::Agent,
        "local agent: it says nothing more",
        "try again; its log says why it ended",
    )
}
