//! SSH beside OpenSSH: bytes each way over loopback and through the tunnel, and the login time.
//!
//! ```text
//! loopback   ssh ───────────── TCP ─────────────── ginnel ssh-server run | sshd
//! tunnel     ssh, ginnel ssh ─ agent ─ gateway ─ node ─ its SSH server | published sshd
//! login      the same with relays that delay, against ssh through a relay of TCP
//! ```

mod relay;
mod world;

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use self::world::{Cpu, Openssh, Target, World};
use super::tunnel;
use crate::step;

/// What the help says about arguments.
pub(crate) const USAGE: &str = "\
  ssh takes --rounds N, --megabytes N, --ours PATH and --only loopback|tunnel|login; it needs root
  and OpenSSH's client and server";

/// The cipher of every transfer, at both servers.
const CIPHER: &str = "aes256-gcm@openssh.com";

/// What to measure and how much.
struct Plan {
    ours: PathBuf,
    rounds: usize,
    megabytes: u64,
    only: Option<String>,
}

/// One transfer.
#[derive(Clone, Copy)]
struct Moved {
    seconds: f64,
    cpu: f64,
}

/// Runs the bench and prints its tables.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let plan = parse(arguments)?;
    let wants = |name: &str| plan.only.as_deref().is_none_or(|only| only == name);
    if wants("loopback") {
        step::say(&loopback(&plan)?);
    }
    if wants("tunnel") {
        step::say(&through_tunnel(&plan)?);
    }
    if wants("login") {
        step::say(&logins(&plan)?);
    }
    Ok(())
}

fn parse(arguments: &[&str]) -> Result<Plan> {
    let (mut rounds, mut megabytes, mut ours, mut only) = (3, 512, None, None);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let value = rest.next();
        let value = value.with_context(|| format!("{argument} takes a value"))?;
        match *argument {
            "--rounds" => rounds = value.parse().context("parse --rounds")?,
            "--megabytes" => megabytes = value.parse().context("parse --megabytes")?,
            "--ours" => ours = Some(PathBuf::from(value)),
            "--only" => only = Some((*value).to_owned()),
            _ => bail!("unexpected argument `{argument}`\n{USAGE}"),
        }
    }
    ensure!(rounds > 0 && megabytes > 0, "nothing to measure");
    Ok(Plan {
        ours: tunnel::ours(ours)?.program,
        rounds,
        megabytes,
        only,
    })
}

/// The same client at both servers; the CPU is the server's with all its children.
fn loopback(plan: &Plan) -> Result<String> {
    let ssh = Openssh::new(&plan.ours)?;
    let servers = [
        ("ginnel", ssh.serve_ours()?),
        ("sshd", ssh.serve_openssh()?),
    ];
    let mut table = table(
        "loopback: `ssh` at our server and at Debian's",
        "server CPU-s per GB",
    );
    for up in [true, false] {
        let mut moved = [Vec::new(), Vec::new()];
        for _ in 0..plan.rounds {
            for ((_, server), moved) in servers.iter().zip(&mut moved) {
                let command = ssh.client(&Target::Port(server.port));
                let before = server.process.cpu()?;
                let seconds = transfer(command, up, plan.megabytes)?;
                let cpu = server.process.cpu()? - before;
                moved.push(Moved { seconds, cpu });
            }
        }
        table += &rows(
            word(up),
            plan.megabytes,
            &[servers[0].0, servers[1].0],
            &moved,
        );
    }
    Ok(table)
}

/// The CPU is that of both nodes with all their children, of sshd, and of the client.
fn through_tunnel(plan: &Plan) -> Result<String> {
    let ssh = Openssh::new(&plan.ours)?;
    let sshd = ssh.serve_openssh()?;
    let world = World::start(&plan.ours, sshd.port, Duration::ZERO)?;
    let names = ["ginnel ssh, our server", "ssh, our server", "ssh, sshd"];
    let mut table = table(
        "tunnel: through two nodes in user mode and a gateway",
        "CPU-s per GB",
    );
    for up in [true, false] {
        let mut moved = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..plan.rounds {
            let clients = [
                world.ginnel_ssh(),
                ssh.client(&Target::Node(&world)),
                ssh.client(&Target::Service(&world)),
            ];
            for (command, moved) in clients.into_iter().zip(&mut moved) {
                let before = world.cpu()? + sshd.process.cpu()? + Cpu::of_children()?;
                let seconds = transfer(command, up, plan.megabytes)?;
                let after = world.cpu()? + sshd.process.cpu()? + Cpu::of_children()?;
                moved.push(Moved {
                    seconds,
                    cpu: after - before,
                });
            }
        }
        table += &rows(word(up), plan.megabytes, &names, &moved);
    }
    Ok(table)
}

/// How long `true` takes at a node, from the start of the client to its end.
fn logins(plan: &Plan) -> Result<String> {
    let mut table = String::from(
        "\nlogin: seconds from the start of the client to its end, medians\n\n\
         | round trip | client | seconds | ratio to ssh |\n|---|---|---|---|\n",
    );
    for round_trip in [1, 50] {
        let round_trip = Duration::from_millis(round_trip);
        let ssh = Openssh::new(&plan.ours)?;
        let sshd = ssh.serve_openssh()?;
        let world = World::start(&plan.ours, sshd.port, round_trip)?;
        let direct = relay::tcp(sshd.port, round_trip / 2)?;
        let (mut warm, mut cold, mut openssh) = (Vec::new(), Vec::new(), Vec::new());
        // The first of each fills caches of names and files.
        for round in 0..=plan.rounds * 3 {
            world.warm()?;
            let figures = [
                (&mut warm, timed(world.ginnel_ssh().arg("true"))?),
                (
                    &mut openssh,
                    timed(ssh.client(&Target::Port(direct)).arg("true"))?,
                ),
                (&mut cold, {
                    world.chill()?;
                    timed(world.ginnel_ssh().arg("true"))?
                }),
            ];
            for (kept, seconds) in figures {
                if round > 0 {
                    kept.push(seconds);
                }
            }
        }
        let base = median(&mut openssh);
        for (name, seconds) in [
            ("ssh", base),
            ("ginnel ssh, warm", median(&mut warm)),
            ("ginnel ssh, cold", median(&mut cold)),
        ] {
            table += &format!(
                "| {round_trip:?} | {name} | {seconds:.3} | {:.2} |\n",
                seconds / base
            );
        }
    }
    Ok(table)
}

/// Moves so many MB and returns the seconds.
fn transfer(mut command: Command, up: bool, megabytes: u64) -> Result<f64> {
    let source = format!("head -c {megabytes}M /dev/zero");
    let mut feeder = None;
    if up {
        let mut source = Command::new("sh")
            .args(["-c", &source])
            .stdout(Stdio::piped())
            .spawn()?;
        command.arg("cat > /dev/null");
        command.stdin(source.stdout.take().context("piped")?);
        feeder = Some(source);
    } else {
        command
            .arg(source)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
    }
    let seconds = timed(&mut command)?;
    if let Some(mut feeder) = feeder {
        feeder.wait()?;
    }
    Ok(seconds)
}

fn timed(command: &mut Command) -> Result<f64> {
    let begin = step::now();
    let status = command.status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok((step::now() - begin).as_secs_f64())
}

fn table(title: &str, cpu: &str) -> String {
    format!(
        "\n{title}, {CIPHER}, medians\n\n| direction | program | MB/s | ratio | {cpu} | ratio |\n\
         |---|---|---|---|---|---|\n"
    )
}

/// Rows with the ratio of each program to the last, which is OpenSSH's.
fn rows(direction: &str, megabytes: u64, names: &[&str], moved: &[Vec<Moved>]) -> String {
    let megabytes = f64::from(u32::try_from(megabytes).unwrap_or(u32::MAX)) * 1.048_576;
    let figures: Vec<_> = moved
        .iter()
        .map(|moved| {
            let mut speeds: Vec<_> = moved.iter().map(|one| megabytes / one.seconds).collect();
            let mut cpus: Vec<_> = moved.iter().map(|one| one.cpu / megabytes * 1e3).collect();
            (median(&mut speeds), median(&mut cpus))
        })
        .collect();
    let Some((base_speed, base_cpu)) = figures.last().copied() else {
        return String::new();
    };
    let rows = names.iter().zip(&figures).map(|(name, (speed, cpu))| {
        format!(
            "| {direction} | {name} | {speed:.0} | {:.2} | {cpu:.2} | {:.2} |\n",
            speed / base_speed,
            base_cpu / cpu
        )
    });
    rows.collect()
}

fn word(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_medians_and_the_ratio_to_the_last_program() {
        let moved = |seconds, cpu| Moved { seconds, cpu };
        let ours = vec![moved(0.5, 0.1), moved(0.25, 0.2), moved(1.0, 0.1)];
        let rows = rows(
            "up",
            1_000,
            &["ginnel", "sshd"],
            &[ours, vec![moved(1.0, 0.4)]],
        );
        assert_eq!(
            rows,
            "| up | ginnel | 2097 | 2.00 | 0.10 | 4.00 |\n\
             | up | sshd | 1049 | 1.00 | 0.38 | 1.00 |\n"
        );
    }
}
