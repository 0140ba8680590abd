//! Asks backends whether they answer at all while attempts wait for longer than usual (`routing/health/stall.rs`): the
//! list of models, with the backend's credential, on a fresh connection. It is not billed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use log::debug;
use pingora::connectors::http::Connector;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::balancer_request::{BalancerRequest, MODELS_TARGET, send_balancer_request};
use crate::gateway::Backend;
use crate::proxy::ActiveConfig;
use crate::proxy::error_types::local_shortage;
use crate::routing::health::stall::STALL_QUESTION_INTERVAL;

/// How often each backend is looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// After this many checks, what is known of the times that deployments take counts half.
const CHECKS_PER_FADE: u64 = 60;

/// Adds the task that asks to these tasks.
pub fn spawn_stall_questions(config: &Arc<ActiveConfig>, tasks: &mut JoinSet<()>) {
    tasks.spawn(watch_backends(Arc::clone(config)));
}

async fn watch_backends(config: Arc<ActiveConfig>) {
    let mut questions = JoinSet::new();
    let mut checks = interval(CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for check in 1.. {
        checks.tick().await;
        let now = Instant::now();
        for (index, backend) in config.gateway.backends.iter().enumerate() {
            if backend.health.stall_watch.begin_question(now) {
                let config = Arc::clone(&config);
                questions.spawn(async move { ask(&config, index).await });
            }
            if check % CHECKS_PER_FADE == 0 {
                fade_answer_times(backend);
            }
        }
        while questions.try_join_next().is_some() {}
    }
}

/// Asks a backend and records whether it answers. Without a secret or an address it is not asked: both are shown
/// as what they are.
async fn ask(config: &ActiveConfig, index: usize) {
    let Some(backend) = config.gateway.backends.get(index) else { return };
    let Some(auth_header) = backend.credential.current_auth_header() else { return };
    let Some(peer) = config.peers.peer_for_attempt(index, false) else { return };
    let connector = Connector::new(None);
    let models = BalancerRequest { method: Method::GET, target: MODELS_TARGET, body: "" };
    let response = send_balancer_request(backend, auth_header, &peer, &connector, models);
    let has_answered = match timeout(STALL_QUESTION_INTERVAL, response).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) if local_shortage(&error).is_some() => return,
        Ok(Err(error)) => {
            debug!("backend {}: no answer to whether it answers: {error}", backend.config.name);
            false
        }
        Err(_) => false,
    };
    config.gateway.record_stall_answer(backend, has_answered, Instant::now());
}

fn fade_answer_times(backend: &Backend) {
    for (_, deployment) in backend.health.deployments() {
        deployment.answer_times.fade();
    }
}
