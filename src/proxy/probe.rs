//! Asking backends without traffic whether they are well: cheaply (a list of models bills no
//! tokens), with their own credential, on connections of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::HeaderName;
use log::debug;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::HttpPeer;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Serving, headers};
use crate::credentials::Value;
use crate::gateway::Backend;

/// Where a probe goes: on every resource, and free of charge.
const MODELS: &str = "/openai/models?api-version=2024-10-21";
/// The most a probe may take after it is connected.
const ANSWER: Duration = Duration::from_secs(10);
/// Most bytes of a reply that are looked at: those of an error.
const LOOKED_AT: usize = 64 * 1024;

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
    let reply =
        match timeout(ANSWER + serving.gateway.timeouts.connect, ask(backend, shown, &peer, connector)).await
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

/// One request and its reply: status and the beginning of the body.
async fn ask(
    backend: &Backend,
    (name, secret): (HeaderName, Arc<Value>),
    peer: &HttpPeer,
    connector: &Connector,
) -> pingora::Result<(u16, Vec<u8>)> {
    let mut request = RequestHeader::build("GET", MODELS.as_bytes(), Some(4))?;
    headers::address(&mut request, &backend.config)?;
    request.insert_header(name, secret.header.clone())?;
    let (mut session, _) = connector.get_http_session(peer).await?;
    session.set_read_timeout(Some(ANSWER));
    session.write_request_header(Box::new(request)).await?;
    session.finish_request_body().await?;
    session.read_response_header().await?;
    let status = session.response_header().map_or(0, |header| header.status.as_u16());
    let mut body = Vec::new();
    while let Some(piece) = session.read_response_body().await? {
        body.extend_from_slice(&piece);
        if body.len() > LOOKED_AT {
            break;
        }
    }
    if session.response_done() {
        connector.release_http_session(session, peer, peer.options.idle_timeout).await;
    }
    Ok((status, body))
}
