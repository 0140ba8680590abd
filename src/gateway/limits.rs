//! The limits of clients and the thresholds of classes, applied to requests.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::Method;

use super::Gateway;
use super::ProcessState;
use super::admitted_request::AdmittedRequest;
use super::requested_call::ParsedBody;
use crate::admission::client::Client;
use crate::admission::client_registry::ClientRegistry;
use crate::admission::limits::{
    Booking, Demand, LimitAnswer, LimitBooks, LimitKey, LimitKind, LimitReached, PredecessorShare,
    Reservation,
};
use crate::azure::Operation;
use crate::azure::request::embedded_data::{MIN_DATA_BYTES, bytes_without_embedded_data};
use crate::config::{Config, RequestClass};
use crate::credentials::signing_keys::SigningKeys;
use crate::refusal::{Refusal, RefusalReason};
use crate::routing::retry_plan::ShedRule;

/// A request that a limit refuses.
pub struct LimitRefusal {
    /// The limit.
    pub limit: LimitKey,
    /// What the client is told.
    pub refusal: Refusal,
}

impl Gateway {
    /// Reserves what an admitted request may use of its client's limits; `None` if the client has none. `body` is
    /// that of the request. This waits a few milliseconds at most: after a handover for the successor's permission, and
    /// where several instances share the limits for a lease, if the one that this instance has is used up.
    ///
    /// # Errors
    /// `rate_limit_exceeded`, `insufficient_quota`.
    pub async fn reserve_limits(
        &self,
        client: &Client,
        admitted: &AdmittedRequest,
        method: &Method,
        body: &[u8],
        now: Instant,
    ) -> Result<Option<Box<Reservation>>, Box<LimitRefusal>> {
        let Some(limiter) = &client.limiter else { return Ok(None) };
        let mut demand = demand_of(admitted, method, body.len() as u64);
        let (deployment, time) = (admitted.deployment.as_ref(), SystemTime::now());
        // Images and files have fewer tokens than text of that length.
        if body.len() >= MIN_DATA_BYTES
            && demand.prompt_bytes > 0
            && limiter.is_exceeded_by(deployment, &demand, now, time)
        {
            demand.prompt_bytes = bytes_without_embedded_data(body);
        }
        let accounts = &self.process_state.client_accounts;
        let reserved = match (accounts.keeper(), accounts.desk()) {
            (None, None) => limiter.reserve(deployment, &demand, now, time),
            (Some(keeper), _) => {
                limiter.reserve_with_permission(keeper, deployment, &demand, now, time).await
            }
            (None, Some(desk)) => limiter.reserve_with_lease(desk, deployment, &demand, now, time).await,
        };
        match reserved {
            Ok(reservation) => Ok(Some(Box::new(reservation))),
            Err(reached) => Err(Box::new(limit_refusal(client, reached))),
        }
    }

    /// Which backends the requests of a class leave to more urgent ones; `None` for none.
    pub fn shed_rule(&self, class: RequestClass) -> Option<ShedRule> {
        self.shed_config.threshold(class).map(|threshold| ShedRule { class, threshold })
    }

    /// Answers a predecessor that asks for permission to admit a request. What the request may use is added to `share`. If
    /// the client has no limits in this configuration, the request is granted and not counted.
    pub async fn reserve_for_predecessor(
        &self,
        share: &mut PredecessorShare,
        id: u64,
        booking: &Booking,
    ) -> LimitAnswer {
        let client = booking.scope.client();
        let client = match &client {
            Some(name) => self.clients.find_by_name(name.as_str()),
            None => self.clients.all_clients().iter().find(|client| client.name.is_none()),
        };
        let Some(limiter) = client.and_then(|client| client.limiter.as_ref()) else {
            return LimitAnswer::Granted { id, reserved_at: [None; 2] };
        };
        let (deployment, tokens) = (booking.scope.deployment(), booking.tokens);
        let (now, time) = (Instant::now(), SystemTime::now());
        let accounts = &self.process_state.client_accounts;
        let reserved = match (accounts.keeper(), accounts.desk()) {
            (None, Some(desk)) => {
                limiter.reserve_tokens_with_lease(desk, deployment.as_ref(), tokens, now, time).await
            }
            (keeper, _) => limiter.reserve_tokens(keeper, deployment.as_ref(), tokens, now, time).await,
        };
        match reserved {
            Ok(reservation) => LimitAnswer::Granted { id, reserved_at: share.hold(reservation).reserved_at },
            Err(reached) => LimitAnswer::Refused { id, reached: reached.into() },
        }
    }
}

/// The clients of this configuration. What they use is kept with the process.
pub(super) fn clients_with_limits(
    config: &Config,
    process_state: &ProcessState,
    signing_keys: Option<Arc<SigningKeys>>,
) -> ClientRegistry {
    let books = LimitBooks {
        accounts: &process_state.client_accounts,
        open_budget: &|client, deployment| process_state.budgets.open(client, deployment),
    };
    ClientRegistry::new(&config.clients, &config.limits, books, config.client_tokens.as_ref(), signing_keys)
}

/// What a request may use, as far as it tells.
pub(super) fn demand_of(admitted: &AdmittedRequest, method: &Method, body_bytes: u64) -> Demand {
    let operation = admitted.target.operation;
    match &admitted.parsed_body {
        ParsedBody::Json(facts) if *method == Method::POST => Demand {
            prompt_bytes: body_bytes,
            max_output_tokens: facts.max_output_tokens,
            choices: facts.choices.unwrap_or(1),
            has_output: matches!(operation, Operation::Chat | Operation::Completions | Operation::Responses),
        },
        // Audio and images are not limited by a count of tokens that is known before.
        _ => Demand::default(),
    }
}

/// What a client is told that has reached a limit.
fn limit_refusal(client: &Client, reached: LimitReached) -> LimitRefusal {
    let LimitReached { key, limit, demand, wait } = reached;
    let name = client.name.as_ref().map_or("all clients", |name| name.as_str());
    let (unit, demand_text) = match key.kind {
        LimitKind::RequestsPerMinute => ("requests in 60 seconds", String::new()),
        LimitKind::InFlight => ("requests at the same time", String::new()),
        LimitKind::TokensPerMinute => ("tokens in 60 seconds", format!(" about {demand} tokens")),
        LimitKind::TokensPerDay => ("tokens a day (UTC)", format!(" about {demand} tokens")),
        LimitKind::TokensPerMonth => ("tokens a month (UTC)", format!(" about {demand} tokens")),
    };
    let reason = if key.kind.is_budget() && wait.is_some() {
        RefusalReason::InsufficientQuota
    } else {
        RefusalReason::RateLimitExceeded
    };
    let message = match wait {
        Some(_) if key.kind.counts_tokens() => format!(
            "the limit {key} of {name} is reached: {limit} {unit}, and this request needs{demand_text}"
        ),
        Some(_) => format!("the limit {key} of {name} is reached: {limit} {unit}"),
        None => format!(
            "this request needs{demand_text}, and the limit {key} of {name} is {limit} {unit}: send a shorter prompt or a \
             smaller max_tokens"
        ),
    };
    let mut refusal = Refusal::new(reason, message);
    refusal.retry_after = wait;
    LimitRefusal { limit: key, refusal }
}
