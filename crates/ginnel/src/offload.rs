//! What may pass as one, so that it costs less: `GINNEL_OFFLOAD`.

use std::{env, ffi::OsStr};

use model::status::Offload;
use os::tun::OffloadMax;

use crate::remedy::advise;

/// Returns the most that the environment allows, which is everything unless it says otherwise.
pub(crate) fn max() -> anyhow::Result<OffloadMax> {
    let value = env::var_os(VARIABLE).unwrap_or_default();
    parse(&value).ok_or_else(|| {
        advise(
            format!("{VARIABLE}={} is none that ginnel knows", value.display()),
            format!("set {VARIABLE} to off, checksums, tcp or all, or unset it"),
        )
    })
}

/// Says what passes as one at a node, for people.
pub(crate) fn lines(offload: &Offload) -> Vec<String> {
    let word = |works| match works {
        Some(true) => "yes",
        Some(false) => "no",
        None => "unknown",
    };
    let tun = offload.tun.iter().flat_map(|tun| {
        [
            format!("TUN, large packets: {tun}"),
            format!("TUN, written joined: {}", word(offload.joined)),
        ]
    });
    let udp = [
        format!("UDP, sent in runs: {}", word(Some(offload.runs_sent))),
        format!("UDP, received in runs: {}", word(offload.runs_received)),
    ];
    tun.chain(udp).collect()
}

fn parse(value: &OsStr) -> Option<OffloadMax> {
    match value.to_str()? {
        "" | "all" => Some(OffloadMax::All),
        "tcp" => Some(OffloadMax::Tcp),
        "checksums" => Some(OffloadMax::Checksums),
        "off" => Some(OffloadMax::Off),
        _ => None,
    }
}

const VARIABLE: &str = "GINNEL_OFFLOAD";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_how_much_may_pass_as_one() {
        for (value, max) in [
            ("", Some(OffloadMax::All)),
            ("all", Some(OffloadMax::All)),
            ("tcp", Some(OffloadMax::Tcp)),
            ("checksums", Some(OffloadMax::Checksums)),
            ("off", Some(OffloadMax::Off)),
            ("OFF", None),
            ("0", None),
        ] {
            assert_eq!(parse(OsStr::new(value)), max, "{value}");
        }
    }

    #[test]
    fn user_mode_says_nothing_about_an_interface() {
        let offload = Offload {
            tun: None,
            joined: None,
            runs_sent: true,
            runs_received: None,
        };
        let expected = ["UDP, sent in runs: yes", "UDP, received in runs: unknown"];
        assert_eq!(lines(&offload), expected);
    }
}
