//! Counts the requests that were refused or failed because of backends, and keeps why the last one did.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{TroubleKind, TroubledRequest};

/// Requests that were refused or failed because of backends.
#[derive(Debug, Default)]
pub struct BackendFailures {
    count: AtomicU64,
    last: Mutex<Option<String>>,
}

impl BackendFailures {
    /// Counts a request if backends are the reason for its trouble.
    pub(in crate::record) fn note(&self, request: &TroubledRequest) {
        if !is_caused_by_backends(request.kind, request.status, request.refusal_code) {
            return;
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let deployment = request.deployment.as_ref().map_or("", |deployment| deployment.as_str());
        let status = request.status.map_or_else(|| "no response".to_owned(), |status| status.to_string());
        let text = format!("{deployment}: {status}, {} (request {})", request.cause(), request.request_id);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    /// How many there were since the process started.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The last one: its deployment, status, cause and id.
    pub fn last(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whether backends are the reason: they failed, or none of them could be used. A client's own error is not, and a
/// WebSocket that ended in silence neither.
fn is_caused_by_backends(kind: TroubleKind, status: Option<u16>, refusal_code: Option<&str>) -> bool {
    match (kind, refusal_code, status) {
        (
            _,
            Some(
                "all_throttled"
                | "upstream_failed"
                | "upstream_timeout"
                | "no_backend"
                | "home_unavailable"
                | "backend_misconfigured",
            ),
            _,
        ) => true,
        (_, Some(_), _) => false,
        (TroubleKind::Failed, None, status) => status != Some(101),
        (TroubleKind::Refused, None, status) => status == Some(429),
        (TroubleKind::Retried | TroubleKind::Slow, None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_cause_themselves_is_not_counted() {
        use TroubleKind::{Failed, Refused, Retried};
        let table = [
            (Refused, Some(429), Some("all_throttled"), true),
            (Refused, Some(503), Some("home_unavailable"), true),
            (Refused, Some(429), None, true),
            (Failed, Some(502), Some("upstream_failed"), true),
            (Refused, Some(503), Some("backend_misconfigured"), true),
            (Failed, Some(500), None, true),
            (Failed, Some(200), None, true),
            (Failed, None, None, true),
            (Failed, Some(101), None, false),
            (Refused, Some(503), Some("overloaded"), false),
            (Refused, Some(401), Some("invalid_api_key"), false),
            (Refused, Some(400), None, false),
            (Retried, Some(200), None, false),
        ];
        for (kind, status, code, expected) in table {
            assert_eq!(is_caused_by_backends(kind, status, code), expected, "{kind:?} {status:?} {code:?}");
        }
    }
}
