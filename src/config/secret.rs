//! A value that is never printed: what keys are kept in between the file and the wire.

use std::fmt;
use std::sync::Arc;

/// A secret of the configuration. It has no `Display` and its `Debug` says nothing; a copy
/// shares the one text.
#[derive(Clone)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Takes the secret in.
    pub fn new(secret: &str) -> Self {
        Self(secret.into())
    }

    /// The secret itself. Only for the two places that have to have it: where a credential is
    /// written into a request, and where a presented token is compared in constant time.
    /// What it returns goes into no log, message, label or record.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_says_nothing() {
        let secret = Secret::new("hunter2");
        assert_eq!((format!("{secret:?}").as_str(), secret.expose()), ("Secret(..)", "hunter2"));
    }
}
