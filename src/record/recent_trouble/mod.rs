//! Recent trouble: the last requests that were refused, failed, needed more than one attempt, or were slow.
//!
//! They are kept in memory, with or without a `record` block, until the process ends. They are added
//! where records are made; the admin API reads them. Neither prompts nor completions are kept, and no
//! text of a client but the name of a deployment and the client's id of the request.

mod affinity_words;
mod backend_failures;
mod cause;
mod fair_ring;
mod trouble_kind;

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

pub use self::backend_failures::BackendFailures;
use self::fair_ring::{FairRing, Holder, RingLimits};
pub use self::trouble_kind::TroubleKind;
pub(super) use self::trouble_kind::is_slow;
use super::affinity::AffinityRecord;
use super::exchange::{AttemptRecord, ExchangeOutcome, FinishedExchange};
use crate::names::{BackendName, ClientName, DeploymentName};

/// The most requests that are kept.
pub const MAX_KEPT_REQUESTS: usize = 500;
/// The most memory that they take together.
const MAX_KEPT_BYTES: usize = 1024 * 1024;
/// The most attempts that are kept of a request: its last ones.
const MAX_KEPT_ATTEMPTS: usize = 16;

/// A request that is kept.
#[derive(Clone, Debug)]
pub struct TroubledRequest {
    /// The balancer's id for the request.
    pub request_id: Arc<str>,
    /// The id of the WebSocket that it came over; `None` for an HTTP request.
    pub socket_id: Option<Arc<str>>,
    /// The ids that others have for it.
    pub foreign_ids: ForeignIds,
    /// When the request head was complete.
    pub received_at: SystemTime,
    /// The client; `None` if it is unknown, or if clients have no names.
    pub client: Option<ClientName>,
    /// The client's address.
    pub client_ip: Option<IpAddr>,
    /// The deployment that the client asked for.
    pub deployment: Option<DeploymentName>,
    /// The name of the operation; `None` if the target could not be parsed.
    pub operation: Option<&'static str>,
    /// The HTTP status sent to the client; `None` if none was sent.
    pub status: Option<u16>,
    /// How the exchange ended.
    pub outcome: ExchangeOutcome,
    /// Why it is kept.
    pub kind: TroubleKind,
    /// The code of the balancer's own refusal.
    pub refusal_code: Option<&'static str>,
    /// The backend whose response the client received.
    pub answering_backend: Option<BackendName>,
    /// The last attempts, in order.
    pub attempts: Vec<AttemptRecord>,
    /// How many attempts before these are left out.
    pub omitted_attempts: usize,
    /// From the complete request head to the end of the exchange.
    pub duration: Duration,
    /// From the complete request head to the first byte of the response body.
    pub time_to_first_body_byte: Option<Duration>,
    /// How long it waited between attempts.
    pub waited: Duration,
    /// How long it waited in the queue, which `waited` does not contain.
    pub queued: Duration,
    /// How the resource was found that has what it refers to; `None` if it refers to nothing.
    pub affinity: Option<Box<AffinityRecord>>,
}

/// The ids that the client and Azure have for a request.
#[derive(Clone, Debug, Default)]
pub struct ForeignIds {
    /// The client's own id; `None` without a `record` block.
    pub client_request_id: Option<Box<str>>,
    /// The id of its trace; `None` if it has none, or without the blocks `record` and `traces`.
    pub trace_id: Option<Box<str>>,
    /// The response header `apim-request-id`.
    pub apim_request_id: Option<Box<str>>,
}

impl ForeignIds {
    fn of(exchange: &FinishedExchange) -> Self {
        Self {
            client_request_id: exchange.client_headers.request_id.clone(),
            trace_id: exchange.trace_id().map(|id| id.to_string().into()),
            apim_request_id: exchange.apim_request_id.as_deref().map(Box::from),
        }
    }

    /// Those that are known.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        [&self.client_request_id, &self.trace_id, &self.apim_request_id].into_iter().flatten().map(|id| &**id)
    }
}

impl TroubledRequest {
    fn new(exchange: &FinishedExchange, kind: TroubleKind) -> Self {
        let omitted_attempts = exchange.attempts.len().saturating_sub(MAX_KEPT_ATTEMPTS);
        Self {
            request_id: Arc::clone(&exchange.request_id),
            socket_id: exchange.socket_id.clone(),
            foreign_ids: ForeignIds::of(exchange),
            received_at: exchange.received_at,
            client: exchange.client.as_ref().and_then(|client| client.name.clone()),
            client_ip: exchange.client_ip,
            deployment: exchange.requested_deployment.clone(),
            operation: exchange.target.as_ref().map(|target| target.operation.name()),
            status: exchange.client_status,
            outcome: exchange.outcome,
            kind,
            refusal_code: exchange.refusal_code,
            answering_backend: exchange.answering_backend.clone(),
            attempts: exchange.attempts.get(omitted_attempts..).unwrap_or_default().to_vec(),
            omitted_attempts,
            duration: exchange.duration,
            time_to_first_body_byte: exchange.time_to_first_body_byte,
            waited: exchange.waited,
            queued: exchange.queued,
            affinity: exchange.affinity.clone(),
        }
    }

    fn ended_at(&self) -> SystemTime {
        self.received_at + self.duration
    }

    /// The memory that it holds, in bytes.
    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.request_id.len()
            + self.socket_id.as_ref().map_or(0, |id| id.len())
            + self.foreign_ids.iter().map(str::len).sum::<usize>()
            + self.deployment.as_ref().map_or(0, |deployment| deployment.as_str().len())
            + self.attempts.capacity() * size_of::<AttemptRecord>()
            + self
                .affinity
                .as_ref()
                .map_or(0, |affinity| size_of::<AffinityRecord>() + affinity.memory_bytes())
    }
}

/// The requests that are kept.
#[derive(Debug)]
pub struct RecentTrouble {
    ring: Mutex<FairRing<Arc<TroubledRequest>>>,
}

impl RecentTrouble {
    /// Keeps a finished exchange if it is trouble, and returns what it keeps.
    pub(super) fn note(&self, exchange: &FinishedExchange) -> Option<Arc<TroubledRequest>> {
        let kind = TroubleKind::of(exchange)?;
        let request = Arc::new(TroubledRequest::new(exchange, kind));
        let holder = match (&exchange.client, &request.client) {
            (None, _) => Holder::UnknownClient,
            (_, Some(name)) => Holder::Client(name.clone()),
            (Some(_), None) => Holder::Address(request.client_ip.map(|ip| ip.to_canonical())),
        };
        let bytes = request.memory_bytes();
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).push(
            holder,
            kind,
            bytes,
            Arc::clone(&request),
        );
        Some(request)
    }

    /// The requests that match, at most `limit`, and how many match and are kept. The one that ended last comes
    /// first.
    pub fn find(&self, limit: usize, matches: impl Fn(&TroubledRequest) -> bool) -> FoundRequests {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut matching: Vec<_> = ring.iter_newest_first().filter(|request| matches(request)).collect();
        // Not the order in which they were added: some exchanges take the writer longer than others.
        matching.sort_by_key(|request| Reverse(request.ended_at()));
        FoundRequests {
            match_count: matching.len(),
            kept_count: ring.len(),
            requests: matching.into_iter().take(limit).cloned().collect(),
        }
    }
}

impl Default for RecentTrouble {
    fn default() -> Self {
        let limits = RingLimits { max_entries: MAX_KEPT_REQUESTS, max_bytes: MAX_KEPT_BYTES };
        Self { ring: Mutex::new(FairRing::new(limits)) }
    }
}

/// The result of a search.
#[derive(Debug)]
pub struct FoundRequests {
    /// The last of the requests that match, newest first.
    pub requests: Vec<Arc<TroubledRequest>>,
    /// How many match.
    pub match_count: usize,
    /// How many are kept.
    pub kept_count: usize,
}
