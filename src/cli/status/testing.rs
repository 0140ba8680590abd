//! Statuses for tests.

use serde_json::{Value, json};

use crate::admin::status::queue::QueueStatus;
use crate::admin::status::{BackendStatus, StatusReport};

/// A backend in this state, without traffic.
pub(super) fn backend(name: &str, state: &str, reason: Option<&str>) -> BackendStatus {
    serde_json::from_value(json!({
        "name": name, "endpoint": "", "tier": 1, "weight": 1, "state": state, "reason": reason, "in_flight": 0,
        "attempts": 0,
        "counters": { "answered": 0, "throttled": 0, "failed": 0, "refused": 0, "client_gone": 0 },
        "last_minute": { "attempts": 0, "throttled": 0, "failed": 0 }, "resting": [], "deployments": [],
    }))
    .unwrap()
}

/// The status of a process with these backends, up for an hour.
pub(super) fn status(service: &Value, backends: Vec<BackendStatus>) -> StatusReport {
    let mut status: StatusReport = serde_json::from_value(json!({
        "build": { "version": "0.1.0" }, "service": service,
        "process": {
            "pid": 1, "started": "2026-01-01T00:00:00.000Z", "uptime_seconds": 3600, "ready": true, "stopping": false,
            "replaced": false,
        },
        "configuration": {
            "file": "/etc/aoai-lb/aoai-lb.yaml", "version": 1, "sha256": "", "loaded": "2026-01-01T00:00:00.000Z",
            "needs_upgrade": [],
        },
        "in_flight": 2, "settled": 5, "pools": [], "backends": [], "clients": [], "refusals": [], "sinks": [],
        "certificates": [], "credentials": [],
        "timeline": {
            "step_seconds": 5, "until": "", "requests": [], "throttled": [], "failed": [], "failovers": [],
            "retries_429": [], "input_tokens": [], "output_tokens": [], "p50_ms": [], "p95_ms": [], "in_flight": [],
        },
    }))
    .unwrap();
    status.backends = backends;
    status
}

/// A queue with these requests.
pub(super) fn queue(waiting: &Value, lines: &Value) -> Option<QueueStatus> {
    let queue = json!({
        "wait_ms": 5_000, "requests": 1_000, "body_memory": 268_435_456, "waiting": waiting, "lines": lines,
    });
    Some(serde_json::from_value(queue).unwrap())
}
