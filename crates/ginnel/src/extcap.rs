//! `ginnel extcap`: the tunnel among the interfaces of Wireshark (extcap(4)).

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::ArgGroup;

use crate::{
    capture::{self, Side},
    cli::Global,
    terminal,
};

/// Show the tunnel among Wireshark's interfaces
///
/// Wireshark and tshark find it when a link to this program lies in a directory that they look
/// into: `tshark -G folders` names it. Then the packets inside the tunnel are the interface
/// ginnel-inner, in the clear, and the datagrams are ginnel-outer. For the latter the options of
/// the interface can ask for keys: such a capture holds the private key of this node, which takes
/// a new one at the end. Capture filters are those of `ginnel capture`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group = ArgGroup::new("question").required(true).multiple(true).args([
    "extcap_interfaces", "extcap_dlts", "extcap_config", "capture", "extcap_capture_filter",
]))]
pub(crate) struct Args {
    /// List the interfaces
    #[arg(long)]
    extcap_interfaces: bool,

    /// The version of Wireshark
    #[arg(long, value_name = "VERSION")]
    extcap_version: Option<String>,

    /// The interface that the question is about
    #[arg(long, value_name = "NAME", value_parser = parse_interface)]
    extcap_interface: Option<Side>,

    /// Tell the link type of the interface
    #[arg(long, requires = "extcap_interface")]
    extcap_dlts: bool,

    /// List the options of the interface
    #[arg(long, requires = "extcap_interface")]
    extcap_config: bool,

    /// Capture into the pipe
    #[arg(long, requires_all = ["extcap_interface", "fifo"])]
    capture: bool,

    /// The pipe that Wireshark reads
    #[arg(long, value_name = "FILE")]
    fifo: Option<PathBuf>,

    /// Only packets that this expression wants; without --capture, tell whether it can be read
    #[arg(long, value_name = "EXPR")]
    extcap_capture_filter: Option<String>,

    /// Write the keys that open the datagrams, this node's private key among them
    #[arg(long)]
    keys: bool,
}

const EXAMPLES: &str = "\
Examples:
  tshark -G folders | grep -i extcap                   names the directories
  ln -s \"$(command -v ginnel)\" DIRECTORY/ginnel      in one of them
  wireshark -k -i ginnel-inner
  tshark -i ginnel-inner -f 'tcp port 5432'
  ginnel extcap --extcap-interfaces";

/// Puts `extcap` before what Wireshark asks, because a program in its directory has no other
/// arguments than the question.
pub(crate) fn expand(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let asks = |argument: &OsString| {
        argument == "--capture" || argument.as_encoded_bytes().starts_with(b"--extcap-")
    };
    if arguments.get(1).is_some_and(asks) {
        arguments.insert(1, "extcap".into());
    }
    arguments
}

/// Answers one question, or captures until Wireshark has had enough.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    if let (true, Some(side), Some(fifo)) = (args.capture, args.extcap_interface, args.fifo) {
        let filter = args
            .extcap_capture_filter
            .filter(|filter| !filter.is_empty());
        let filter = filter.map(|text| capture::parse_filter(&text));
        let filter = filter.transpose().map_err(anyhow::Error::msg)?;
        return capture::run(
            capture::Args::of_pipe(side, args.keys, filter, fifo),
            global,
        )
        .await;
    }
    if args.extcap_interfaces {
        let version = env!("CARGO_PKG_VERSION");
        terminal::line(format_args!(
            "extcap {{version={version}}}{{display=ginnel}}"
        ))?;
        for (side, text) in INTERFACES {
            let name = name(side);
            terminal::line(format_args!("interface {{value={name}}}{{display={text}}}"))?;
        }
    } else if args.extcap_dlts {
        // LINKTYPE_RAW: packets begin with their IP header.
        terminal::line("dlt {number=101}{name=RAW}{display=Raw IP}")?;
    } else if args.extcap_config {
        if args.extcap_interface == Some(Side::Outer) {
            terminal::line(KEYS)?;
        }
    } else if let Some(text) = args.extcap_capture_filter {
        // Whatever is said is why it cannot be read.
        if let Err(why) = capture::parse_filter(&text) {
            terminal::line(why)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

const INTERFACES: [(Side, &str); 2] = [
    (Side::Inner, "ginnel: packets inside the tunnel"),
    (Side::Outer, "ginnel: WireGuard datagrams"),
];

/// The option that asks for keys.
const KEYS: &str = "arg {number=0}{call=--keys}{display=Write keys}\
    {tooltip=They hold this node's private key, which is replaced when the capture ends}\
    {type=boolflag}{default=false}";

fn name(side: Side) -> &'static str {
    match side {
        Side::Inner => "ginnel-inner",
        Side::Outer => "ginnel-outer",
        Side::Both => "ginnel",
    }
}

fn parse_interface(text: &str) -> Result<Side, String> {
    let mut known = INTERFACES.iter().map(|(side, _)| *side);
    let side = known.find(|side| name(*side) == text);
    side.ok_or_else(|| "give ginnel-inner or ginnel-outer".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_of_wireshark_stands_first_and_other_commands_stay() {
        let expanded = |line: &str| {
            let arguments = line.split(' ').map(OsString::from).collect();
            let words = expand(arguments).into_iter();
            let words: Vec<_> = words
                .map(|word| word.into_string().expect("UTF-8"))
                .collect();
            words.join(" ")
        };
        let question = "ginnel --extcap-interfaces --extcap-version=4.0";
        let named = "ginnel extcap --extcap-interfaces --extcap-version=4.0";
        assert_eq!(expanded(question), named);
        assert_eq!(expanded(named), named);
        let capture = "ginnel --capture --extcap-interface ginnel-inner --fifo a";
        assert!(expanded(capture).starts_with("ginnel extcap --capture"));
        let other = "ginnel ssh db tool --extcap-interfaces";
        assert_eq!(expanded(other), other);
    }
}
