//! The result of one fetch of a secret or token.

use std::time::Duration;

use http::HeaderValue;

use super::expiry::Expiry;
use crate::config::Secret;

/// A secret as its source returned it.
pub(super) struct FetchedSecret {
    pub(super) secret: Secret,
    /// The value of the header that carries the secret.
    pub(super) header_value: HeaderValue,
    /// Time from the fetch to the next one.
    pub(super) renew_after: Duration,
    /// Time from the fetch to the end of its validity; `None`: it does not expire.
    pub(super) expires_in: Option<Duration>,
    /// When it ends according to its source, which then has to have another one; `None`: not known.
    pub(super) source_expiry: Option<Expiry>,
}

/// Why a fetch failed.
pub(super) struct FetchError {
    pub(super) message: String,
    /// How long the source wants no further fetch.
    pub(super) retry_after: Option<Duration>,
}

impl From<String> for FetchError {
    fn from(message: String) -> Self {
        Self { message, retry_after: None }
    }
}

/// A header value whose `Debug` hides the text; `None` if the text is not a legal header value.
pub(super) fn sensitive_header_value(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
