//! Tells which backends are drained when a configuration becomes active.

use std::time::{Instant, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use log::warn;

use crate::gateway::Gateway;
use crate::names::BackendName;

/// Logs the drained backends among those that are `of_interest`, also if the configuration does not have them.
pub(super) fn log_drained_backends(gateway: &Gateway, of_interest: impl Fn(&BackendName) -> bool) {
    let now = Instant::now();
    for (name, since) in gateway.process_state.health_registry.drained_backends(now) {
        if !of_interest(&name) {
            continue;
        }
        let since = SystemTime::now().checked_sub(now.saturating_duration_since(since));
        let since =
            since.map(|since| DateTime::<Utc>::from(since).to_rfc3339_opts(SecondsFormat::Secs, true));
        let since = since.as_deref().unwrap_or("an unknown time");
        if gateway.backend_names().any(|configured| *configured == name) {
            warn!("backend {name}: drained since {since}; `aoai-lb undrain {name}` ends that");
        } else {
            warn!(
                "backend {name}: drained since {since} and not in the configuration; it stays drained if it comes \
                 back, unless `aoai-lb undrain {name}` ends that"
            );
        }
    }
}
