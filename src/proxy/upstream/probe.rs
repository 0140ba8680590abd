//! Asking backends without traffic whether they are well: cheaply (a list of models bills no
//! tokens), with their own credential, on connections of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::Method;
use log::debug;
use pingora::connectors::http::Connector;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::control_request::{ANSWER, Question, ask};
use crate::proxy::Serving;

/// Where a probe goes: on every resource, and free of charge.
pub(in crate::proxy) const MODELS: &str = "/openai/models?api-version=2024-10-21";

/// The probes of a configuration, for as long as this is held.
#[must_use]
pub fn watch(serving: &Arc<Serving>) -> JoinSet<()> {
    let mut probes = JoinSet::new();
    for (index, backend) in serving.gateway.backends.iter().enumerate() {
        let Some(interval) = backend.config.probe else { continue };
        let (serving, backend) = (Arc::clone(serving), backend.memory.clone());
        probes.spawn(async move {
            let connector = Connector::new(None);
            let mut well = true;
            loop {
                let before = backend.attempts.load(Ordering::Relaxed);
                sleep(interval).await;
                // Traffic tells more than a probe.
                if backend.attempts.load(Ordering::Relaxed) == before {
                    well = probe(&serving, index, &connector, !well).await;
                }
            }
        });
    }
    probes
}

/// Asks once; `repeated` says that the last probe failed too. Returns whether this one went
/// well.
async fn probe(serving: &Serving, index: usize, connector: &Connector, repeated: bool) -> bool {
    let Some(backend) = serving.gateway.backends.get(index) else { return true };
    // A name that does not resolve is said where it does not, and so is a missing secret.
    let Some(shown) = backend.credential.present() else { return true };
    let secret = shown.1.number;
    let Some(peer) = serving.peers.of(index, false) else { return true };
    let models = Question { method: Method::GET, target: MODELS, body: "" };
    let reply = match timeout(
        ANSWER + serving.gateway.timeouts.connect,
        ask(backend, shown, &peer, connector, models),
    )
    .await
    {
        Ok(Ok(reply)) => Some(reply),
        Ok(Err(problem)) => {
            debug!("probe of backend {}: {problem}", backend.config.name);
            None
        }
        Err(_) => None,
    };
    let reply = reply.as_ref().map(|(status, body)| (*status, body.as_slice()));
    serving.gateway.probed(backend, reply, secret, repeated, Instant::now())
}
