//! `ginnel capture --node`: a capture of another machine, which the control plane passes on.

use anyhow::{Context as _, Result};
use model::{
    api::{CAPTURE_COMPLETE, CaptureEnd, ErrorCode, NewCapture},
    name::Label,
};
use tokio::io::AsyncWriteExt as _;

use super::Output;
use crate::{
    admin,
    api::CaptureFile,
    cli::Global,
    remedy::{Advise as _, advise},
    terminal,
};

/// Captures at `node` until Ctrl-C or a bound.
pub(super) async fn run(
    (node, org): (&Label, Option<Label>),
    keys: bool,
    wanted: &NewCapture,
    output: Output,
    global: &Global,
) -> Result<()> {
    let client = admin::client(global)?;
    let found = admin::node::find(&client, org, node).await?;
    let mut capture = match client.capture(found.id, keys, wanted).await {
        Err(error) if error.code() == Some(ErrorCode::LimitReached) => {
            return Err(advise(
                error,
                "wait until it ends, or ask whoever began it: `ginnel audit list`",
            ));
        }
        begun => begun?,
    };
    let mut file = tokio::fs::File::from_std(output.begin()?);
    let mut asked_to_end = false;
    let interrupted = terminal::interrupted();
    tokio::pin!(interrupted);
    loop {
        tokio::select! {
            bytes = capture.next() => match bytes {
                Ok(Some(bytes)) => {
                    file.write_all(&bytes).await.context("write the capture")?;
                    // Whoever looks at a live capture wants to see this packet now.
                    file.flush().await.context("write the capture")?;
                }
                Ok(None) => return told(&capture, node, keys),
                Err(error) => {
                    let broken = Err(error).context("the capture broke off");
                    return if keys { broken.remedy(LATER) } else { broken };
                }
            },
            ended = &mut interrupted => {
                ended.context("await Ctrl-C")?;
                // The second Ctrl-C does not wait for the last packets.
                if asked_to_end {
                    return Ok(());
                }
                asked_to_end = true;
                client.end_capture(capture.id(), &CaptureEnd { reason: None }).await?;
                interrupted.set(terminal::interrupted());
            }
        }
    }
}

/// What becomes of a key that was given away when nobody could wait for its end.
const LATER: &str = "its key is replaced as soon as it reaches the server: see `ginnel audit list`";

/// Says how the capture ended.
fn told(capture: &CaptureFile, node: &Label, keys: bool) -> Result<()> {
    match capture.end() {
        Some(CAPTURE_COMPLETE) => {
            if keys {
                terminal::note(format_args!("{node} has a new key"));
            }
            Ok(())
        }
        Some(reason) => Err(advise(
            format_args!("capture at {node}: {reason}"),
            if keys {
                LATER
            } else {
                "see `ginnel node list` for when it was there last, or capture at the machine"
            },
        )),
        None => Err(advise(
            format_args!("capture at {node}: the server broke it off"),
            "see the server's log",
        )),
    }
}
