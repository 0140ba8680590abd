//! Drains and undrains a backend.

use std::sync::atomic::Ordering;
use std::time::Instant;

use log::{info, warn};
use serde_json::json;

use super::response::{self, FullResponse};
use crate::gateway::Gateway;
use crate::refusal::{Refusal, RefusalReason};
use crate::routing::availability::UnavailableReason;

/// Drains or undrains the backend of this name.
pub(super) fn set_drained(gateway: &Gateway, name: &str, drained: bool) -> FullResponse {
    let Some(backend) = gateway.backends.iter().find(|backend| backend.config.name.as_str() == name) else {
        let names: Vec<&str> = gateway.backends.iter().map(|backend| backend.config.name.as_str()).collect();
        let message = format!("no backend has this name; the backends are {}", names.join(", "));
        return response::with_refusal(404, &Refusal::new(RefusalReason::PathNotAllowed, message));
    };
    let now = Instant::now();
    let changed = if drained { backend.health.drain(now) } else { backend.health.undrain(now) };
    if changed {
        let state = if drained { "drained" } else { "undrained" };
        info!("backend {name}: {state} by the operator");
    }
    let stranded = if drained { fully_drained_pools(gateway, now) } else { Vec::new() };
    if changed && !stranded.is_empty() {
        warn!("all backends of {} are drained", stranded.join(", "));
    }
    let in_flight = backend.health.attempts_in_flight.load(Ordering::Relaxed);
    let body = json!({
        "backend": name,
        "drained": drained,
        "changed": changed,
        "in_flight": in_flight,
        "left_without_backend": stranded,
    });
    response::with_json(200, body.to_string().into_bytes())
}

/// The pools whose backends are all drained.
fn fully_drained_pools(gateway: &Gateway, now: Instant) -> Vec<String> {
    let is_drained = |index: usize| {
        let outage = gateway.backends.get(index).and_then(|backend| backend.current_outage(now));
        outage.is_some_and(|outage| outage.unavailable.reason == UnavailableReason::Drained)
    };
    let pools = gateway.pools().into_iter();
    let stranded = pools.filter(|(_, pool)| pool.candidates().iter().all(|c| is_drained(c.backend_index)));
    stranded.map(|(key, _)| key.to_string()).collect()
}
