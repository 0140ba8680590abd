//! Drains and undrains a backend.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use log::{info, warn};
use serde_json::{Value, json};

use super::response::{self, FullResponse};
use crate::config::closest_match;
use crate::gateway::{Gateway, HandingOver, Resource};
use crate::names::BackendName;
use crate::refusal::{Refusal, RefusalReason};
use crate::routing::health::availability::UnavailableReason;

/// Drains or undrains the backend of this name. Blocks while the change is saved.
pub(super) fn set_drained(gateway: &Gateway, name: &str, drained: bool) -> FullResponse {
    let now = Instant::now();
    let process = &gateway.process_state;
    let backend_name = BackendName::new(name);
    let is_configured = gateway.backend_names().any(|name| *name == backend_name);
    // A drain outlives its backend in the file, and has to end some time.
    let is_left_over =
        || process.health_registry.drained_backends(now).iter().any(|(drained, _)| *drained == backend_name);
    if !is_configured && (drained || !is_left_over()) {
        return unknown_name(gateway, name);
    }
    let change = match process.drains.set_drained(&process.health_registry, &backend_name, drained, now) {
        Ok(change) => change,
        Err(HandingOver) => return handing_over(),
    };
    if change.changed {
        let state = if drained { "drained" } else { "undrained" };
        info!("backend {name}: {state} by the operator");
    }
    gateway.wake_queue();
    let stranded = if drained { fully_drained_pools(gateway, now) } else { Vec::new() };
    if change.changed && !stranded.is_empty() {
        warn!("all backends of {} are drained", stranded.join(", "));
    }
    let health = process.health_registry.get_or_create_backend(&backend_name);
    let homed = gateway.resource_of(&backend_name).filter(|_| drained);
    let body = json!({
        "backend": name,
        "drained": drained,
        "changed": change.changed,
        "in_flight": health.attempts_in_flight.load(Ordering::Relaxed),
        "left_without_backend": stranded,
        "save_problem": change.save_problem,
        "resource": homed.map(|resource| homed_requests(gateway, resource, now)),
    });
    response::with_json(200, body.to_string().into_bytes())
}

/// What still refers to the objects of the resource of a drained backend. Such requests go to another backend of the
/// resource; if none can take one, to the drained one.
fn homed_requests(gateway: &Gateway, resource: &Resource, now: Instant) -> Value {
    let process = &gateway.process_state;
    let drained = process.health_registry.drained_backends(now);
    let is_drained = |name: &BackendName| drained.iter().any(|(drained, _)| drained == name);
    let others = resource.backend_indexes.iter().filter_map(|index| gateway.backends.get(*index));
    let others = others.map(|backend| &backend.config.name).filter(|name| !is_drained(name));
    let activity = process.recorder.metrics().affinity_statistics.activity(&resource.name, now);
    json!({
        "name": resource.name.as_str(),
        "entries": process.homes.entries_of(resource.tag),
        "last_minute_requests": activity.last_minute_requests,
        "other_backends": others.map(BackendName::as_str).collect::<Vec<_>>(),
    })
}

fn unknown_name(gateway: &Gateway, name: &str) -> FullResponse {
    let names: Vec<&str> = gateway.backend_names().map(BackendName::as_str).collect();
    let all = names.join(", ");
    let message = match closest_match(name, names.iter().copied()) {
        Some(closest) => {
            format!("no backend has this name; did you mean {closest}? The backends are {all}")
        }
        None => format!("no backend has this name; the backends are {all}"),
    };
    response::with_refusal(404, &Refusal::new(RefusalReason::PathNotAllowed, message))
}

fn handing_over() -> FullResponse {
    let message = "an upgrade is in progress: retry in a moment";
    let refusal = Refusal::new(RefusalReason::Overloaded, message);
    response::with_refusal(503, &refusal.with_retry_after(Duration::from_secs(1)))
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
