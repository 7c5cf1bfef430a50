//! An error that a person reads, with what to do about it.

use std::{borrow::Cow, fmt};

/// An error with its remedy. It prints its whole chain itself and has no source.
pub struct Advised {
    error: anyhow::Error,
    remedy: Cow<'static, str>,
}

impl Advised {
    /// Puts one line that says what to do beside an error.
    pub fn new(error: anyhow::Error, remedy: impl Into<Cow<'static, str>>) -> Self {
        let remedy = remedy.into();
        Self { error, remedy }
    }

    /// Returns what to do.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }
}

/// Makes an error of a sentence and what to do about it.
pub(crate) fn advise(
    message: impl fmt::Display,
    remedy: impl Into<Cow<'static, str>>,
) -> anyhow::Error {
    Advised::new(anyhow::anyhow!("{message}"), remedy).into()
}

impl fmt::Display for Advised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl fmt::Debug for Advised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}; {}", self.error, self.remedy)
    }
}

impl std::error::Error for Advised {}
