//! What to do about an error: one line beside the chain of causes.

use std::{borrow::Cow, fmt};

use tunnel::Advised;

use crate::api;

/// Attaches a remedy to an error that a person will read.
pub(crate) trait Advise<T> {
    /// Adds one line that says what to do; the remedy closest to the fault is kept.
    fn remedy(self, text: impl Into<Cow<'static, str>>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Advise<T> for Result<T, E> {
    fn remedy(self, text: impl Into<Cow<'static, str>>) -> anyhow::Result<T> {
        self.map_err(|error| attach(error.into(), text.into()))
    }
}

/// Makes an error of a sentence and what to do about it.
pub(crate) fn advise(
    message: impl fmt::Display,
    remedy: impl Into<Cow<'static, str>>,
) -> anyhow::Error {
    attach(anyhow::anyhow!("{message}"), remedy.into())
}

/// Returns the remedy of `error`.
pub(crate) fn remedy_of(error: &anyhow::Error) -> Option<&str> {
    let mut chain = error.chain();
    chain.find_map(|cause| {
        let advised = cause.downcast_ref::<Advised>();
        let refused = cause.downcast_ref::<api::Error>();
        let advised = advised.map(Advised::remedy);
        advised.or(refused.map(api::Error::remedy))
    })
}

fn attach(error: anyhow::Error, remedy: Cow<'static, str>) -> anyhow::Error {
    if remedy_of(&error).is_some() {
        return error;
    }
    Advised::new(error, remedy).into()
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn the_remedy_nearest_to_the_fault_is_kept_and_the_chain_is_whole() {
        let error: anyhow::Result<()> = Err(anyhow::anyhow!("no such file"));
        let error = error.context("open `wg0.conf`").remedy("give the path");
        let error = error
            .context("read configuration")
            .remedy("give up")
            .unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "read configuration: open `wg0.conf`: no such file"
        );
        assert_eq!(remedy_of(&error), Some("give the path"));
    }
}
