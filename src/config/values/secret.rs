//! A secret that is never printed.

use std::fmt;
use std::sync::Arc;

/// A secret. It has no `Display`, and its `Debug` output hides it. Clones share the text.
#[derive(Clone)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: &str) -> Self {
        Self(secret.into())
    }

    /// The secret itself, to be written into a request. It must not get into a log, message, label or
    /// record.
    pub fn expose_secret(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Secret {
    /// Compares in constant time, apart from the length.
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
