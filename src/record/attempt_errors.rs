//! What went wrong in the attempts of a request, in plain words.

use super::exchange::AttemptRecord;
use crate::names::BackendName;
use crate::routing::attempt_errors::attempt_error_in_words;

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
        Some(format!("{backend}: {}", attempts.filter_map(error_in_words).next()?))
    });
    errors.collect::<Vec<_>>().join(", ")
}

/// What went wrong in an attempt; `None` if nothing did.
fn error_in_words(attempt: &AttemptRecord) -> Option<String> {
    match attempt.error_code {
        None => attempt.status.filter(|status| *status >= 400).map(|status| status.to_string()),
        Some(code) => Some(attempt_error_in_words(code).to_owned()),
    }
}
