//! `/metrics`: what was counted, and how things stand at this moment.

use std::sync::atomic::Ordering;
use std::time::Instant;

use prometheus::{GaugeVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::gateway::Gateway;
use crate::record::metrics::register;
use crate::routing::health::Part;

/// Prometheus text.
pub fn text(gateway: &Gateway, now: Instant) -> String {
    let state = Registry::new();
    let gauge =
        |name, help, labels: &[&str]| register(&state, IntGaugeVec::new(Opts::new(name, help), labels));
    let in_flight = IntGauge::new("aoai_lb_in_flight", "Requests under way, WebSockets included.");
    let in_flight = register(&state, in_flight);
    in_flight.set(i64::try_from(gateway.process.in_flight.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
    let build = gauge("aoai_lb_build_info", "1; the version is a label.", &["version"]);
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    let states = gauge(
        "aoai_lb_backend_state",
        "1 for each state that holds: ok, cooling, absent, credential, permission, breaker_open, drained; of a \
         deployment, or of the backend where that is empty.",
        &["backend", "deployment", "state"],
    );
    let tokens = gauge(
        "aoai_lb_backend_remaining_tokens",
        "Tokens left in the minute, as the last reply told; below zero on calls that still succeed.",
        &["backend", "deployment"],
    );
    let requests = gauge(
        "aoai_lb_backend_remaining_requests",
        "Requests left in the minute, as the last reply told.",
        &["backend", "deployment"],
    );
    let load = GaugeVec::new(
        Opts::new(
            "aoai_lb_backend_utilization_ratio",
            "Load of a provisioned deployment, as the last reply told.",
        ),
        &["backend", "deployment"],
    );
    let load = register(&state, load);
    for backend in &gateway.backends {
        let (name, memory) = (backend.config.name.as_str(), &backend.memory);
        let whole = backend.resting(now).map_or("ok", |incident| incident.rest.reason.word());
        states.with_label_values(&[name, "", whole]).set(1);
        let resting = memory.resting(now);
        for (part, incident) in &resting {
            let deployment = match part {
                Part::Deployment(deployment) => deployment,
                Part::Operation(_) => "",
            };
            states.with_label_values(&[name, deployment, incident.rest.reason.word()]).set(1);
        }
        for (deployment, known) in memory.deployments() {
            let is_resting = resting.iter().any(|(part, _)| *part == Part::Deployment(deployment.clone()));
            if !is_resting && !deployment.is_empty() {
                states.with_label_values(&[name, &deployment, "ok"]).set(1);
            }
            let told = known.headroom.last_told();
            let labels = [name, deployment.as_str()];
            if let Some(left) = told.tokens {
                tokens.with_label_values(&labels).set(left.remaining);
            }
            if let Some(left) = told.requests {
                requests.with_label_values(&labels).set(left.remaining);
            }
            if let Some(utilization) = told.utilization {
                load.with_label_values(&labels).set(utilization);
            }
        }
    }
    gateway.process.recorder.metrics().text(&state)
}
