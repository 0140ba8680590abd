//! `GET /metrics`: adds the current state of backends to the counters of `record/metrics.rs`.

use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::conditions::BackendReport;
use super::status::sinks::backlog_age_seconds;
use crate::admission::client_registry::ClientRegistry;
use crate::admission::queue::{Choice, RequestQueue};
use crate::azure::Operation;
use crate::config::RequestClass;
use crate::credentials::seconds_until;
use crate::gateway::Gateway;
use crate::proxy::ActiveConfig;
use crate::record::metrics::{ABSENT_LABEL, register_metric};
use crate::routing::health::backend_health::BackendPart;
use crate::routing::health::backend_state::BackendState;
use crate::routing::service_state::ServiceState;

/// All metrics in the text format of Prometheus.
pub fn prometheus_text(config: &ActiveConfig, now: Instant) -> String {
    let gateway = &config.gateway;
    let registry = Registry::new();
    let wall_now = SystemTime::now();
    let gauge = |name, help, labels: &[&str]| {
        register_metric(&registry, IntGaugeVec::new(Opts::new(name, help), labels))
    };
    let in_flight = IntGauge::new("aoai_lb_in_flight", "Requests in flight, including WebSockets.");
    let in_flight = register_metric(&registry, in_flight);
    in_flight.set(
        i64::try_from(gateway.process_state.requests_in_flight.load(Ordering::Relaxed)).unwrap_or(i64::MAX),
    );
    let open_sockets = &gateway.process_state.open_sockets;
    let websockets = gauge("aoai_lb_websockets_open", "Open WebSockets.", &["operation"]);
    for (operation, count) in
        [(Operation::Responses, open_sockets.count()), (Operation::Realtime, open_sockets.realtime_count())]
    {
        websockets.with_label_values(&[operation.name()]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    let build_info = gauge("aoai_lb_build_info", "1; the version is a label.", &["version"]);
    build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    let service_gauge = gauge(
        "aoai_lb_service_state",
        "1 for the state of the whole: healthy, spilling, degraded or failing; 0 for the others.",
        &["state"],
    );
    let service_state = gateway.process_state.service_report.load().state;
    for state in ServiceState::ALL {
        service_gauge.with_label_values(&[state.as_str()]).set(i64::from(state == service_state));
    }
    let state_gauge = gauge(
        "aoai_lb_backend_state",
        "1 for each state that holds: healthy, cooling, breaker_open, failing, stalled, unresolvable, credential, \
         permission, absent, drained, disabled; of a deployment, or of the backend where that is empty.",
        &["backend", "deployment", "state"],
    );
    let remaining_tokens = gauge(
        "aoai_lb_backend_remaining_tokens",
        "Tokens left in the minute, as reported by the last response; below zero on calls that still succeed.",
        &["backend", "deployment"],
    );
    let remaining_requests = gauge(
        "aoai_lb_backend_remaining_requests",
        "Requests left in the minute, as reported by the last response.",
        &["backend", "deployment"],
    );
    let utilization_gauge = GaugeVec::new(
        Opts::new(
            "aoai_lb_backend_utilization_ratio",
            "Load of a provisioned deployment, as reported by the last response.",
        ),
        &["backend", "deployment"],
    );
    let utilization_gauge = register_metric(&registry, utilization_gauge);
    let oldest_attempt = register_metric(
        &registry,
        GaugeVec::new(
            Opts::new(
                "aoai_lb_oldest_attempt_seconds",
                "How long the attempt has waited for a response that has waited longest; 0 if none has for a second.",
            ),
            &["backend"],
        ),
    );
    set_expiry_gauges(&registry, gateway, now, wall_now);
    set_affinity_gauges(&registry, gateway);
    set_limit_gauge(&registry, gateway.clients(), now, wall_now);
    if gateway.queue_config().is_some() {
        set_queue_gauge(&registry, &gateway.process_state.queue);
    }
    if let Some(shared) = gateway.process_state.shared.get() {
        let dropped = gateway.process_state.shared_homes.get().map_or(0, |homes| homes.dropped_count());
        let status = shared.link.status();
        set_shared_metrics(&registry, status.is_up && status.problem.is_none(), dropped);
    }
    set_memory_gauge(&registry);
    let backlog_seconds = GaugeVec::new(
        Opts::new(
            "aoai_lb_record_backlog_seconds",
            "Age of the oldest record that is not written to the spool, or not delivered by a sink.",
        ),
        &["sink"],
    );
    let backlog_seconds = register_metric(&registry, backlog_seconds);
    for sink in gateway.process_state.recorder.sinks() {
        if let Some(seconds) = backlog_age_seconds(&sink, wall_now) {
            backlog_seconds.with_label_values(&[sink.name]).set(seconds);
        }
    }
    for (index, backend) in gateway.backends.iter().enumerate() {
        let (name, health) = (backend.config.name.as_str(), &backend.health);
        let BackendReport { condition, unavailable_parts, .. } =
            BackendReport::new(config, index, backend, now);
        state_gauge.with_label_values(&[name, "", condition.state.as_str()]).set(1);
        let waits = health.stall_watch.oldest_attempt();
        let waits = waits.map_or(0.0, |sent_at| now.saturating_duration_since(sent_at).as_secs_f64());
        oldest_attempt.with_label_values(&[name]).set(waits);
        for (part, outage) in &unavailable_parts {
            let deployment = match part {
                BackendPart::Deployment(deployment) => deployment,
                BackendPart::Operation(_) => "",
                // The deployment serves all other requests.
                BackendPart::FlexRequests(_) => continue,
            };
            state_gauge
                .with_label_values(&[
                    name,
                    deployment,
                    BackendState::from(outage.unavailable.reason).as_str(),
                ])
                .set(1);
        }
        for (deployment, deployment_health) in health.deployments() {
            let is_unavailable = unavailable_parts
                .iter()
                .any(|(part, _)| *part == BackendPart::Deployment(deployment.clone()));
            if !is_unavailable && !deployment.is_empty() {
                state_gauge.with_label_values(&[name, &deployment, BackendState::Healthy.as_str()]).set(1);
            }
            let capacity = deployment_health.headroom.last_reported_capacity();
            let labels = [name, deployment.as_str()];
            if let Some(limit) = capacity.token_rate_limit {
                remaining_tokens.with_label_values(&labels).set(limit.remaining);
            }
            if let Some(limit) = capacity.request_rate_limit {
                remaining_requests.with_label_values(&labels).set(limit.remaining);
            }
            if let Some(utilization) = capacity.provisioned_utilization {
                utilization_gauge.with_label_values(&labels).set(utilization);
            }
        }
    }
    for backend in &gateway.disabled_backends {
        state_gauge
            .with_label_values(&[backend.config.name.as_str(), "", BackendState::Disabled.as_str()])
            .set(1);
    }
    gateway.process_state.recorder.metrics().to_prometheus_text(&registry)
}

/// Adds when certificates and credentials expire, in seconds since 1970.
fn set_expiry_gauges(registry: &Registry, gateway: &Gateway, now: Instant, wall_now: SystemTime) {
    let gauge = |name, help, label: &str| {
        register_metric(registry, IntGaugeVec::new(Opts::new(name, help), &[label]))
    };
    let seconds = |time| seconds_until(time, SystemTime::UNIX_EPOCH);
    let certificate_gauge = gauge(
        "aoai_lb_certificate_expiry_timestamp_seconds",
        "When a certificate expires: of a listener, of the admin API, or for a backend that requires one.",
        "certificate",
    );
    for (file, expiry) in gateway.process_state.certificate_expiries.list() {
        certificate_gauge.with_label_values(&[&*file.to_string_lossy()]).set(seconds(expiry.expires_at));
    }
    let credential_gauge = gauge(
        "aoai_lb_credential_expiry_timestamp_seconds",
        "When the credential of a backend ends, as far as that is known; a token counts if it cannot be renewed.",
        "backend",
    );
    for backend in &gateway.backends {
        if let Some(expiry) = backend.credential.secret().expiry(now, wall_now) {
            credential_gauge.with_label_values(&[backend.config.name.as_str()]).set(seconds(expiry.at));
        }
    }
}

/// Adds how many ids are remembered, and how many were forgotten.
fn set_affinity_gauges(registry: &Registry, gateway: &Gateway) {
    let memory = gateway.process_state.homes.statistics();
    let integer = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let entries = IntGaugeVec::new(
        Opts::new(
            "aoai_lb_affinity_entries",
            "Ids of objects that are remembered, by the resource that has them.",
        ),
        &["resource"],
    );
    let entries = register_metric(registry, entries);
    for resource in &gateway.resources {
        let count = memory.entries_by_resource.get(&resource.tag).copied().unwrap_or_default();
        entries.with_label_values(&[resource.name.as_str()]).set(integer(count));
    }
    let capacity = IntGauge::new("aoai_lb_affinity_capacity", "Ids that fit into affinity.memory.");
    register_metric(registry, capacity).set(integer(memory.capacity));
    let evicted = IntCounterVec::new(
        Opts::new(
            "aoai_lb_affinity_evicted_total",
            "Ids that were forgotten because affinity.memory was full, by whether their maker was known: yes, no.",
        ),
        &["maker"],
    );
    let evicted = register_metric(registry, evicted);
    evicted.with_label_values(&["yes"]).inc_by(memory.evicted_with_maker);
    evicted.with_label_values(&["no"]).inc_by(memory.evicted.saturating_sub(memory.evicted_with_maker));
}

/// Adds what is left of the limits of clients.
fn set_limit_gauge(registry: &Registry, clients: &ClientRegistry, now: Instant, wall_now: SystemTime) {
    let remaining = GaugeVec::new(
        Opts::new(
            "aoai_lb_limit_remaining",
            "What is left of a limit of a client now: of the last 60 seconds, of the UTC day or month, or of its requests \
             in flight. A limit by cost is in the currency of the prices. 0 if all is used, or more.",
        ),
        &["client", "limit"],
    );
    let remaining = register_metric(registry, remaining);
    for client in clients.all_clients() {
        let Some(limiter) = &client.limiter else { continue };
        let name = client.name.as_ref().map_or(ABSENT_LABEL, |name| name.as_str());
        for limit in limiter.uses(now, wall_now) {
            let value = limit.key.kind.shown(limit.remaining()).as_f64();
            remaining.with_label_values(&[name, &limit.key.to_string()]).set(value);
        }
    }
}

/// Adds how many requests wait in the queue.
fn set_queue_gauge<L: Choice>(registry: &Registry, queue: &RequestQueue<L>) {
    let depth = IntGaugeVec::new(
        Opts::new(
            "aoai_lb_queue_depth",
            "Requests that wait in the queue, by class: interactive, standard, batch.",
        ),
        &["class"],
    );
    let depth = register_metric(registry, depth);
    for class in RequestClass::ALL {
        let waiting = i64::try_from(queue.waiting(class)).unwrap_or(i64::MAX);
        depth.with_label_values(&[class.as_str()]).set(waiting);
    }
}

/// Adds whether the server of `shared` answers, and what other instances were not told.
fn set_shared_metrics(registry: &Registry, is_up: bool, dropped_homes: u64) {
    let help = "1 if the server through which instances act as one answers, 0 if not, or if a part of its cluster does not.";
    register_metric(registry, IntGauge::new("aoai_lb_shared_up", help)).set(i64::from(is_up));
    let help =
        "Objects whose resource other instances were not told, because the server did not answer in time.";
    let dropped = IntCounter::new("aoai_lb_shared_homes_dropped_total", help);
    register_metric(registry, dropped).inc_by(dropped_homes);
}

/// Adds the memory of the process.
fn set_memory_gauge(registry: &Registry) {
    let gauge = IntGauge::new("process_resident_memory_bytes", "Resident memory of the process, in bytes.");
    // Without /proc it is not known, and there is no such metric.
    if let Some(bytes) = resident_memory_bytes() {
        register_metric(registry, gauge).set(bytes);
    }
}

/// The resident memory of this process: proc(5), `VmRSS`.
fn resident_memory_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::testing::{TestClients, TestQueue, tokens};

    /// The samples of a metric, sorted.
    fn samples(registry: &Registry, name: &str) -> Vec<String> {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let mut samples: Vec<String> =
            text.lines().filter_map(|line| line.strip_prefix(name).map(str::to_owned)).collect();
        samples.sort();
        samples
    }

    #[test]
    fn each_class_has_the_number_of_its_requests_that_wait() {
        let mut queue = TestQueue::new();
        let depths = |queue: &TestQueue| {
            let registry = Registry::new();
            set_queue_gauge(&registry, &queue.queue);
            samples(&registry, "aoai_lb_queue_depth")
        };
        let expected = |batch, interactive, standard| {
            [("batch", batch), ("interactive", interactive), ("standard", standard)]
                .map(|(class, count)| format!(r#"{{class="{class}"}} {count}"#))
        };
        assert_eq!(depths(&queue), expected(0, 0, 0));
        for (line, class) in
            [("a", RequestClass::Batch), ("b", RequestClass::Batch), ("b", RequestClass::Interactive)]
        {
            queue.join(line, class);
        }
        assert_eq!(depths(&queue), expected(2, 1, 0));
        queue.leave_all();
        assert_eq!(depths(&queue), expected(0, 0, 0));
    }

    #[test]
    fn what_is_left_of_each_limit_has_a_series_and_ends_with_the_limit() {
        let gauge = |clients: &TestClients| {
            let registry = Registry::new();
            set_limit_gauge(&registry, &clients.registry, clients.now, clients.wall_now);
            samples(&registry, "aoai_lb_limit_remaining")
        };
        let mut clients = TestClients::new(
            "
limits: { mode: observe }
clients:
  - { name: a, keys: [ { sha256: 0000000000000000000000000000000000000000000000000000000000000001 } ],
      limits: { tokens_per_minute: 100, tokens_per_day: 1000, deployments: { gpt-4o: { tokens_per_minute: 10 } } } }
  - { name: b, keys: [ { sha256: 0000000000000000000000000000000000000000000000000000000000000002 } ] }
",
        );
        clients.add_used("a", Some("gpt-4o"), &tokens(30));
        assert_eq!(
            gauge(&clients),
            [
                r#"{client="a",limit="deployments.gpt-4o.tokens_per_minute"} 0"#,
                r#"{client="a",limit="tokens_per_day"} 970"#,
                r#"{client="a",limit="tokens_per_minute"} 70"#,
            ]
        );
        clients.reload("limits: { default: { tokens_per_minute: 50 } }\nclients: open");
        assert_eq!(gauge(&clients), [r#"{client="none",limit="tokens_per_minute"} 50"#]);
    }
}
