//! Health probes of backends that have no traffic (`backends[].probe`). A probe is a request for the list of
//! models, with the backend's credential. It uses connections of its own and is not billed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::Method;
use log::debug;
use pingora::connectors::http::Connector;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::balancer_request::{
    BALANCER_REQUEST_TIMEOUT, BalancerRequest, MODELS_TARGET, send_balancer_request,
};
use crate::proxy::ActiveConfig;
use crate::proxy::error_types::local_shortage;

/// Starts a task for each backend that is to be probed. Dropping the returned set ends them.
#[must_use]
pub fn spawn_probes(config: &Arc<ActiveConfig>) -> JoinSet<()> {
    let mut probes = JoinSet::new();
    for (index, backend) in config.gateway.backends.iter().enumerate() {
        let Some(interval) = backend.config.health_probe_after_idle else { continue };
        let (config, backend) = (Arc::clone(config), backend.health.clone());
        probes.spawn(async move {
            let connector = Connector::new(None);
            let mut is_healthy = true;
            loop {
                let before = backend.attempts_started.load(Ordering::Relaxed);
                sleep(interval).await;
                // If there was traffic, its responses say more about the backend than a probe would.
                if backend.attempts_started.load(Ordering::Relaxed) == before {
                    is_healthy = probe_backend(&config, index, &connector, !is_healthy).await;
                }
            }
        });
    }
    probes
}

/// Probes a backend once. `is_repeat` says that the previous probe failed. Returns whether this one
/// succeeded; a probe that could not be sent counts as a success.
async fn probe_backend(config: &ActiveConfig, index: usize, connector: &Connector, is_repeat: bool) -> bool {
    let Some(backend) = config.gateway.backends.get(index) else { return true };
    // Another instance finds out, and shares the result.
    let breaker = &backend.health.breaker.availability;
    if breaker.is_probe_held(Instant::now()) {
        return !is_repeat;
    }
    breaker.mark_wanted(Instant::now());
    let Some(ModelsAnswer { response, secret_id }) = request_models(config, index, connector).await else {
        return true;
    };
    let response = response.as_ref().map(|(status, body)| (*status, body.as_slice()));
    config.gateway.record_health_check(backend, response, secret_id, is_repeat, Instant::now())
}

/// The answer of a backend to the request for its models.
pub(super) struct ModelsAnswer {
    /// The status and the beginning of the body; `None` if there was no answer.
    pub(super) response: Option<(u16, Vec<u8>)>,
    /// The id of the secret that was sent.
    pub(super) secret_id: u64,
}

/// Asks a backend for its models. `None` if it cannot be asked: a missing secret and a name that does not resolve are
/// reported elsewhere.
pub(super) async fn request_models(
    config: &ActiveConfig,
    index: usize,
    connector: &Connector,
) -> Option<ModelsAnswer> {
    let backend = config.gateway.backends.get(index)?;
    let auth_header = backend.credential.current_auth_header()?;
    let secret_id = auth_header.1.id;
    let peer = config.peers.peer_for_attempt(index, false)?;
    let models = BalancerRequest { method: Method::GET, target: MODELS_TARGET, body: "" };
    let response = match timeout(
        BALANCER_REQUEST_TIMEOUT + config.gateway.timeouts.connect,
        send_balancer_request(backend, auth_header, &peer, connector, models),
    )
    .await
    {
        Ok(Ok(response)) => Some(response),
        Ok(Err(error)) if local_shortage(&error).is_some() => return None,
        Ok(Err(error)) => {
            debug!("probe of backend {}: {error}", backend.config.name);
            None
        }
        Err(_) => None,
    };
    Some(ModelsAnswer { response, secret_id })
}
