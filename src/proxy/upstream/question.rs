//! Sends the balancer's own questions about rejections that requests met (`gateway/backend_question.rs`).
//! They use connections of their own.

use std::sync::Arc;
use std::time::Instant;

use http::Method;
use log::debug;
use pingora::connectors::http::Connector;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::balancer_request::{
    BalancerRequest, EMPTY_REQUEST_BODY, MODELS_TARGET, deployment_target, send_balancer_request,
};
use crate::azure::Operation;
use crate::gateway::{Backend, BackendQuestion, QuestionSubject};
use crate::proxy::ActiveConfig;
use crate::routing::health::rejection_review::QUESTION_TIMEOUT;

/// The most questions that are under way at a time.
const MAX_CONCURRENT_QUESTIONS: usize = 16;

/// Adds the task that sends the questions to these tasks.
pub fn spawn_questions(config: &Arc<ActiveConfig>, tasks: &mut JoinSet<()>) {
    tasks.spawn(send_questions(Arc::clone(config)));
}

async fn send_questions(config: Arc<ActiveConfig>) {
    let connector = Arc::new(Connector::new(None));
    let mut in_progress = JoinSet::new();
    loop {
        tokio::select! {
            question = config.gateway.process_state.questions.next(),
                if in_progress.len() < MAX_CONCURRENT_QUESTIONS =>
            {
                let Some(question) = question else { return };
                let (config, connector) = (Arc::clone(&config), Arc::clone(&connector));
                in_progress.spawn(async move { ask(&config, &connector, &question).await });
            }
            Some(_) = in_progress.join_next(), if !in_progress.is_empty() => {}
        }
    }
}

/// Asks a question and records the answer.
async fn ask(config: &ActiveConfig, connector: &Connector, question: &BackendQuestion) {
    let backends = &config.gateway.backends;
    let found = backends.iter().enumerate().find(|(_, backend)| backend.config.name == question.backend);
    let Some((index, backend)) = found else { return };
    let Some(auth_header) = backend.credential.current_auth_header() else { return };
    let secret_id = auth_header.1.id;
    let Some(peer) = config.peers.peer_for_attempt(index, false) else { return };
    let default_version = config.gateway.request_config.default_api_version.as_deref();
    let Some((method, target, body)) = question_request(backend, &question.subject, default_version) else {
        return;
    };
    let request = BalancerRequest { method, target: &target, body };
    let sent = send_balancer_request(backend, auth_header, &peer, connector, request);
    let response = match timeout(QUESTION_TIMEOUT, sent).await {
        Ok(Ok(response)) => Some(response),
        Ok(Err(error)) => {
            debug!("question to backend {}: {error}", backend.config.name);
            None
        }
        Err(_) => None,
    };
    let response = response.as_ref().map(|(status, body)| (*status, body.as_slice()));
    config.gateway.record_answer(question, response, secret_id, Instant::now());
}

/// Method, target and body of the request that asks a question; `None` if no free request answers it.
fn question_request(
    backend: &Backend,
    subject: &QuestionSubject,
    default_version: Option<&str>,
) -> Option<(Method, String, &'static str)> {
    let (deployment, path) = match subject {
        QuestionSubject::Credential => return Some((Method::GET, MODELS_TARGET.to_owned(), "")),
        // Of a deployment that exists Azure says that it cannot chat, or what the body lacks.
        QuestionSubject::Deployment(deployment) => (deployment, "chat/completions"),
        QuestionSubject::Operation(operation, deployment) => match operation {
            Operation::Chat => (deployment, "chat/completions"),
            Operation::Completions => (deployment, "completions"),
            Operation::Embeddings => (deployment, "embeddings"),
            Operation::Responses => {
                return Some((Method::POST, "/openai/v1/responses".to_owned(), EMPTY_REQUEST_BODY));
            }
            _ => return None,
        },
    };
    Some((Method::POST, deployment_target(backend, deployment, path, default_version), EMPTY_REQUEST_BODY))
}
