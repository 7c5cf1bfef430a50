//! `ginnel doctor`: walks from the sign-in to a remote port, and says what fails first, why, and
//! what to do about it.
//!
//! ```text
//! sign-in ► control ► clock ► routes ► UDP ► handshake ► echo ► MTU ► names ► own sites
//!                                              name ► policy ► site ► target
//! ```
//! The network goes on without the control plane, so the walk does too; behind any other failure
//! it looks no further.

mod agent;
mod control;
mod finding;
mod site;
mod target;
mod tunnel;

use std::{fmt, process::ExitCode};

use anyhow::Result;
use model::map::{NetworkMap, Role};
use serde::Serialize;

use self::{agent::Agent, finding::Finding};
use crate::{
    cli::Global,
    enrolment::{Enrolment, State},
    remedy::advise,
    terminal,
};

/// Find out why something is not reached
///
/// Walks the whole way: sign-in, control plane, clock, routes of this machine, UDP to the gateway,
/// handshake, an echo through the tunnel, packets of full size, names, the sites behind this node,
/// and if they are given, a machine, the rules about it and its port. Says what fails first, why,
/// and what to do about it. Ends with 1 when something fails.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The machine that is to be reached
    host: Option<String>,

    /// Its TCP port; an echo is asked for when left out
    #[arg(requires = "host", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
}

const EXAMPLES: &str = "\
Examples:
  ginnel doctor
  ginnel doctor db 5432
  ginnel doctor 192-168-1-10.paris.site 22
  ginnel doctor --json
  ginnel --config wg0.conf doctor 10.0.0.5 22";

/// What `--json` prints; fields are added, never changed, while `version` stays.
#[derive(Debug, Serialize)]
struct Report {
    version: u32,
    healthy: bool,
    /// What fails first.
    finding: Option<Finding>,
    steps: Vec<Step>,
}

const VERSION: u32 = 1;

/// One step of the way.
#[derive(Debug, Serialize)]
struct Step {
    name: Hop,
    outcome: Outcome,
    /// What was seen, for people.
    detail: String,
}

/// A stretch of the way, in the order in which they are walked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Hop {
    /// This machine belongs to a network.
    SignIn,
    /// The control plane answers and knows this node.
    Control,
    /// Its clock and ours agree.
    Clock,
    /// Nothing on this machine routes the network's addresses elsewhere.
    Routes,
    /// Datagrams reach the gateway.
    Udp,
    /// The gateway makes a session with this node.
    Handshake,
    /// Packets pass the tunnel in both directions.
    Echo,
    /// Packets of full size do too.
    Mtu,
    /// The resolver of the network answers.
    Names,
    /// Devices of the sites behind this node, and other sites, find to each other.
    OwnSites,
    /// The machine has an address.
    Name,
    /// A rule lets this node reach it.
    Policy,
    /// The node of its site answers.
    Site,
    /// The machine itself answers.
    Target,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Passed,
    Failed,
    /// A step before it failed.
    Skipped,
}

/// What a step has brought, and what was seen, for people.
type Seen<T> = Result<(T, String), Finding>;

/// The way of every node.
const WAY: [Hop; 9] = [
    Hop::SignIn,
    Hop::Control,
    Hop::Clock,
    Hop::Routes,
    Hop::Udp,
    Hop::Handshake,
    Hop::Echo,
    Hop::Mtu,
    Hop::Names,
];

/// The rest of the way to a machine; a site is on it only if the machine belongs to one.
const TO_TARGET: [Hop; 3] = [Hop::Name, Hop::Policy, Hop::Target];

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    if global.config.is_some() && args.host.is_none() {
        return Err(advise(
            "configuration: a plain one names no machine that answers for the network",
            "name one, and its port: ginnel --config FILE doctor HOST PORT",
        ));
    }
    let report = walk(&args, global).await;
    if global.json {
        terminal::json(&report)?;
    } else {
        for step in &report.steps {
            let mark = match step.outcome {
                Outcome::Passed => "ok",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "-",
            };
            // Each is one line, whatever it quotes.
            let detail = terminal::plain(&step.detail);
            let line = format!("{:11}{mark:8}{}", step.name.to_string(), *detail);
            terminal::line(line.trim_end())?;
        }
        if let Some(finding) = &report.finding {
            let message = terminal::plain(&finding.message);
            terminal::line(format_args!("\n{}\n  {}", *message, finding.remedy))?;
        }
    }
    Ok(ExitCode::from(u8::from(!report.healthy)))
}

async fn walk(args: &Args, global: &Global) -> Report {
    let mut walk = Walk::default();
    if global.config.is_some() {
        walk.on_plain_configuration(args, global).await;
        walk.skip(&[Hop::Name, Hop::Target]);
    } else {
        walk.as_node(args, global).await;
        walk.skip(&WAY);
        if args.host.is_some() {
            walk.skip(&TO_TARGET);
        }
    }
    Report {
        version: VERSION,
        healthy: walk.finding.is_none(),
        finding: walk.finding,
        steps: walk.steps,
    }
}

/// How far the walk has come.
#[derive(Default)]
struct Walk {
    steps: Vec<Step>,
    finding: Option<Finding>,
}

impl Walk {
    /// Walks as an enrolled node; `None` where the way ends.
    async fn as_node(&mut self, args: &Args, global: &Global) -> Option<()> {
        let found = control::sign_in(global);
        let (state, enrolment) = self.step(Hop::SignIn, async { found }).await?;
        let map = self.control(&state, &enrolment).await?;
        if map.own.role == Role::Gateway {
            let refused = control::is_gateway();
            return self.step(Hop::Routes, async { Err(refused) }).await;
        }
        let agent = Agent::of(global);
        let agent = &match agent {
            Ok(agent) => agent,
            Err(finding) => return self.step(Hop::Routes, async { Err(finding) }).await,
        };
        self.step(Hop::Routes, tunnel::routes(agent, &map)).await?;
        let reached = tunnel::reach(agent, &map).await;
        let gateway = self.step(Hop::Udp, async { reached }).await?;
        self.step(Hop::Handshake, tunnel::handshake(agent)).await?;
        self.step(Hop::Echo, tunnel::echo(agent, gateway)).await?;
        self.step(Hop::Mtu, tunnel::full_size(agent, gateway))
            .await?;
        let names = self.step(Hop::Names, tunnel::names(agent, gateway)).await;
        if names.is_none() && self.finding.as_ref()?.code.is_of_network() {
            return None;
        }
        match site::behind(agent).await {
            Ok(None) => {}
            Ok(Some(sites)) => {
                let served = site::served(agent, &sites);
                self.step(Hop::OwnSites, served).await?;
            }
            Err(finding) => self.step(Hop::OwnSites, async { Err(finding) }).await?,
        }
        let host = args.host.as_ref()?;
        let address = self.step(Hop::Name, target::name(agent, host)).await?;
        let wanted = target::wanted(args.port);
        let allowed = target::policy(&map, host, address, wanted);
        self.step(Hop::Policy, async { allowed }).await?;
        if let Some(site) = target::site_of(&map, address) {
            self.step(Hop::Site, target::site(agent, site)).await?;
        }
        let target = target::target(agent, host, address, args.port);
        self.step(Hop::Target, target).await
    }

    /// Walks as far as the control plane; what it says of the network, or what it said last.
    async fn control(&mut self, state: &State, enrolment: &Enrolment) -> Option<NetworkMap> {
        let asked = control::control(state, enrolment);
        let map = self.step(Hop::Control, asked).await;
        if map.is_some() {
            let clock = control::clock(enrolment);
            // What a wrong clock breaks is not this way.
            self.step(Hop::Clock, clock).await;
            return map;
        }
        if self.finding.as_ref()?.code.is_of_network() {
            return None;
        }
        self.skip(&[Hop::Clock]);
        match control::last_map(state) {
            Ok(map) => Some(map),
            Err(finding) => self.step(Hop::Routes, async { Err(finding) }).await,
        }
    }

    /// Walks to a machine by a plain configuration; `None` where the way ends.
    async fn on_plain_configuration(&mut self, args: &Args, global: &Global) -> Option<()> {
        let host = args.host.as_ref()?;
        let agent = &match Agent::of(global) {
            Ok(agent) => agent,
            Err(finding) => return self.step(Hop::Name, async { Err(finding) }).await,
        };
        let address = self.step(Hop::Name, target::name(agent, host)).await?;
        let target = target::target(agent, host, address, args.port);
        self.step(Hop::Target, target).await
    }

    /// Takes a step; `None` when it fails.
    async fn step<T>(&mut self, name: Hop, step: impl Future<Output = Seen<T>>) -> Option<T> {
        let (outcome, detail, brought) = match step.await {
            Ok((brought, detail)) => (Outcome::Passed, detail, Some(brought)),
            Err(finding) => {
                let detail = finding.message.clone();
                self.finding.get_or_insert(finding);
                (Outcome::Failed, detail, None)
            }
        };
        self.steps.push(Step {
            name,
            outcome,
            detail,
        });
        brought
    }

    /// Notes the steps among `way` that were not taken.
    fn skip(&mut self, way: &[Hop]) {
        for &name in way {
            if self.steps.iter().all(|step| step.name != name) {
                self.steps.push(Step {
                    name,
                    outcome: Outcome::Skipped,
                    detail: String::new(),
                });
            }
        }
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SignIn => "sign-in",
            Self::Control => "control",
            Self::Clock => "clock",
            Self::Udp => "UDP",
            Self::Handshake => "handshake",
            Self::Echo => "echo",
            Self::Mtu => "MTU",
            Self::Names => "names",
            Self::Routes => "routes",
            Self::OwnSites => "own sites",
            Self::Name => "name",
            Self::Policy => "policy",
            Self::Site => "site",
            Self::Target => "target",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{finding::Cause, *};

    #[tokio::test]
    async fn the_first_failure_is_the_finding_and_what_lies_behind_is_skipped() {
        let mut walk = Walk::default();
        let failed = |code| Err(Finding::new(code, "why", "what to do"));
        let passed = async { Ok(((), "seen".to_owned())) };
        assert_eq!(walk.step(Hop::SignIn, passed).await, Some(()));
        for (hop, code) in [
            (Hop::Control, Cause::ControlAway),
            (Hop::Udp, Cause::UdpUnanswered),
        ] {
            let step: Option<()> = walk.step(hop, async { failed(code) }).await;
            assert_eq!(step, None);
        }
        walk.skip(&WAY);
        assert_eq!(walk.finding.map(|it| it.code), Some(Cause::ControlAway));
        let outcomes: Vec<_> = walk.steps.iter().map(|step| step.outcome).collect();
        assert_eq!(
            outcomes[..3],
            [Outcome::Passed, Outcome::Failed, Outcome::Failed]
        );
        assert_eq!(outcomes[3..], [Outcome::Skipped; 6]);
    }
}
