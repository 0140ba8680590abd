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

    /// The secret itself. Only for where a credential is written into a request.
    /// What it returns goes into no log, message, label or record.
    pub fn expose_secret(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Secret {
    /// In constant time, for secrets of the same length.
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (self.0.as_bytes(), other.0.as_bytes());
        a.len() == b.len() && openssl::memcmp::eq(a, b)
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_hides_the_secret() {
        let secret = Secret::new("hunter2");
        assert_eq!((format!("{secret:?}").as_str(), secret.expose_secret()), ("Secret(..)", "hunter2"));
    }
}
