//! Tells which backends are drained when a configuration becomes active.

use std::time::{Instant, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use log::warn;

use crate::gateway::Gateway;

/// Logs the drained backends, those that the configuration does not have as well.
pub(super) fn log_drained_backends(gateway: &Gateway) {
    let now = Instant::now();
    for (name, since) in gateway.process_state.health_registry.drained_backends(now) {
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
