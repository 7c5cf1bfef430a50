//! `ginnel status --interface NAME`: what the process of `ginnel tun NAME` says about itself.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use serde_json::{Map, Value};

use crate::{remedy::Advise as _, terminal, tun};

/// Asks the process and prints.
pub(super) fn show(name: &str, json: bool) -> anyhow::Result<ExitCode> {
    let lines = ask(name)?;
    if json {
        terminal::json(&value(name, &lines))?;
    } else {
        terminal::line(text(name, &lines))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(name: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut stream = tun::connect(name)?;
    write!(stream, "{}\n\n", tun::REPORT).context("UAPI: ask")?;
    let mut lines = Vec::new();
    for line in BufReader::new(stream).lines() {
        let line = line.context("UAPI: read the answer")?;
        match line.split_once('=') {
            Some(("errno", "0")) => return Ok(lines),
            Some((key, value)) if lines.len() < LINES_MAX => {
                lines.push((key.to_owned(), value.to_owned()));
            }
            Some(_) | None => break,
        }
    }
    let refused = io::Error::from(io::ErrorKind::Unsupported);
    Err(refused)
        .context(format!("UAPI: ask the process of `{name}`"))
        .remedy("another program than this version of ginnel serves it: `wg show` it")
}

fn text(name: &str, lines: &[(String, String)]) -> String {
    let mut shown = vec![format!("interface    {name}")];
    for (key, value) in lines {
        shown.push(match key.as_str() {
            "offload_tun" => format!("offload      TUN, large packets: {value}"),
            "offload_joined" => format!("offload      TUN, written joined: {value}"),
            "offload_runs_sent" => format!("offload      UDP, sent in runs: {value}"),
            "offload_runs_received" => format!("offload      UDP, received in runs: {value}"),
            "discarded" => format!("discarded    {value}"),
            "not_sent" => format!("not sent     {value}"),
            "not_taken" => format!("not taken    {value} by the TUN"),
            "capture" => format!("capture      runs, {value}"),
            _ => continue,
        });
    }
    shown.join("\n")
}

fn value(name: &str, lines: &[(String, String)]) -> Value {
    let mut all = Map::new();
    all.insert("interface".to_owned(), name.into());
    for object in ["offload", "discarded", "not_sent"] {
        all.insert(object.to_owned(), Map::new().into());
    }
    all.insert("capture".to_owned(), Value::Null);
    for (key, value) in lines {
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        if key == "capture" {
            let keys = value == "with keys";
            all.insert(key.clone(), serde_json::json!({ "keys": keys }));
        } else if let Some(what) = key.strip_prefix("offload_") {
            all["offload"][what] = match value.as_str() {
                "yes" => true.into(),
                "no" => false.into(),
                "unknown" => Value::Null,
                other => other.into(),
            };
        } else if let Some((count, reason)) = value.split_once(' ') {
            all[key.as_str()][reason] = number(count).into();
        } else {
            all.insert(key.clone(), number(value).into());
        }
    }
    all.into()
}

/// Each reason of each kind once, and some more.
const LINES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_process_says_is_shown_as_text_and_as_json() {
        let lines = [
            ("offload_tun", "TCP and UDP"),
            ("offload_runs_sent", "no"),
            ("offload_runs_received", "unknown"),
            ("discarded", "3 no route"),
            ("not_taken", "2"),
            ("capture", "with keys"),
        ];
        let lines = lines.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(
            text("wg0", &lines),
            "interface    wg0\noffload      TUN, large packets: TCP and UDP\n\
             offload      UDP, sent in runs: no\noffload      UDP, received in runs: unknown\n\
             discarded    3 no route\nnot taken    2 by the TUN\n\
             capture      runs, with keys"
        );
        let expected = serde_json::json!({
            "interface": "wg0",
            "offload": { "tun": "TCP and UDP", "runs_sent": false, "runs_received": null },
            "discarded": { "no route": 3 },
            "not_sent": {},
            "not_taken": 2,
            "capture": { "keys": true },
        });
        assert_eq!(value("wg0", &lines), expected);
    }
}
