//! The state of things as data.

use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::Serialize;

use crate::gateway::{Backend, Gateway};
use crate::routing::health::{Part, Rest};

/// What `GET /api/status` answers.
#[derive(Debug, Serialize)]
pub struct Status {
    version: &'static str,
    uptime_seconds: u64,
    stopping: bool,
    in_flight: usize,
    settled: usize,
    backends: Vec<BackendStatus>,
}

#[derive(Debug, Serialize)]
struct BackendStatus {
    name: String,
    endpoint: String,
    tier: u16,
    weight: u16,
    /// `ok`, or why all of it rests.
    state: &'static str,
    until_ms: Option<u64>,
    in_flight: usize,
    attempts: u64,
    resting: Vec<Resting>,
}

#[derive(Debug, Serialize)]
struct Resting {
    /// `null` where it is an operation that rests.
    deployment: Option<String>,
    operation: Option<&'static str>,
    reason: &'static str,
    until_ms: u64,
}

/// The state of a gateway now; `until_ms` counts from now.
pub fn of(gateway: &Gateway, started: Instant, now: Instant) -> Status {
    let process = &gateway.process;
    Status {
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: now.saturating_duration_since(started).as_secs(),
        stopping: process.stopping.load(Ordering::Acquire),
        in_flight: process.in_flight.load(Ordering::Relaxed),
        settled: process.settled.load(Ordering::Relaxed),
        backends: gateway.backends.iter().map(|backend| of_backend(backend, now)).collect(),
    }
}

fn of_backend(backend: &Backend, now: Instant) -> BackendStatus {
    let until =
        |rest: &Rest| u64::try_from(rest.until.saturating_duration_since(now).as_millis()).unwrap_or(0);
    let whole = backend.resting(now);
    let resting = backend.memory.resting(now).into_iter().map(|(part, rest)| {
        let (deployment, operation) = match part {
            Part::Deployment(name) => (Some(name), None),
            Part::Operation(operation) => (None, Some(operation.name())),
        };
        Resting { deployment, operation, reason: rest.reason.word(), until_ms: until(&rest) }
    });
    BackendStatus {
        name: backend.config.name.to_string(),
        endpoint: backend.config.endpoint.authority(),
        tier: backend.config.tier.get(),
        weight: backend.config.weight.get(),
        state: whole.map_or("ok", |rest| rest.reason.word()),
        // What waits for a secret waits until there is one.
        until_ms: whole.as_ref().filter(|_| backend.credential.kept().number() != 0).map(until),
        in_flight: backend.memory.in_flight.load(Ordering::Relaxed),
        attempts: backend.memory.attempts.load(Ordering::Relaxed),
        resting: resting.collect(),
    }
}
