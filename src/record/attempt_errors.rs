//! What went wrong in the attempts of a request, in plain words.

use super::exchange::AttemptRecord;
use crate::names::BackendName;

/// The last error of each backend, in the order of their first attempts: `a: connection refused, b: 503`.
pub fn last_error_by_backend(attempts: &[AttemptRecord]) -> String {
    let mut backends: Vec<&BackendName> = Vec::new();
    for attempt in attempts {
        if !backends.contains(&&attempt.backend) {
            backends.push(&attempt.backend);
        }
    }
    let errors = backends.into_iter().filter_map(|backend| {
        let attempts = attempts.iter().rev().filter(|attempt| attempt.backend == *backend);
        Some(format!("{backend}: {}", attempts.filter_map(attempt_error_in_words).next()?))
    });
    errors.collect::<Vec<_>>().join(", ")
}

/// What went wrong in an attempt; `None` if nothing did.
fn attempt_error_in_words(attempt: &AttemptRecord) -> Option<String> {
    let words = match attempt.error_code {
        None => return attempt.status.filter(|status| *status >= 400).map(|status| status.to_string()),
        Some("dns") => "its name does not resolve",
        Some("connect_timeout") => "no connection in time",
        Some("connect_refused") => "connection refused",
        Some("connect") => "no connection",
        Some("tls") => "TLS handshake failed, or its certificate is not trusted",
        Some("reset") => "connection reset",
        Some("protocol") => "invalid HTTP",
        Some("first_byte_timeout") => "no first byte in time",
        Some("idle_timeout") => "nothing more in time",
        Some("credential") => "no usable credential",
        Some("stalled") => "no first byte, and the backend does not answer any more",
        Some("client_gone") => "the client disconnected",
        Some(code) => code,
    };
    Some(words.to_owned())
}
