//! The limits of clients and the thresholds of classes, applied to requests.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::Method;

use super::Gateway;
use super::ProcessState;
use super::admitted_request::AdmittedRequest;
use super::request_prices::{RequestPrices, cost_text};
use super::requested_call::ParsedBody;
use crate::admission::client::Client;
use crate::admission::client_registry::ClientRegistry;
use crate::admission::limits::{
    Booking, Demand, LimitAnswer, LimitBooks, LimitKey, LimitKind, LimitReached, LimitUnit, PredecessorShare,
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
        if demand.may_use_tokens && limiter.limits_cost(deployment) {
            let prices = self.request_prices.as_ref();
            demand.rates = prices.map(|prices| prices.highest_rates(deployment, time));
        }
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
            Err(reached) => Err(Box::new(limit_refusal(client, reached, self.request_prices.as_ref()))),
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
        let (deployment, amounts) = (booking.scope.deployment(), booking.amounts);
        let (now, time) = (Instant::now(), SystemTime::now());
        let accounts = &self.process_state.client_accounts;
        let reserved = match (accounts.keeper(), accounts.desk()) {
            (None, Some(desk)) => {
                limiter.reserve_amounts_with_lease(desk, deployment.as_ref(), amounts, now, time).await
            }
            (keeper, _) => limiter.reserve_amounts(keeper, deployment.as_ref(), amounts, now, time).await,
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
    // What reads, lists, deletes or cancels uses no tokens, even if its response has token counts. A realtime session is a GET.
    let is_new = *method == Method::POST && !admitted.target.is_cancellation();
    let may_use_tokens = match operation {
        Operation::Realtime => true,
        Operation::Files | Operation::Uploads => false,
        _ => is_new,
    };
    match &admitted.parsed_body {
        ParsedBody::Json(facts) if is_new && may_use_tokens => Demand {
            prompt_bytes: body_bytes,
            max_output_tokens: facts.max_output_tokens,
            choices: facts.choices.unwrap_or(1),
            has_output: matches!(operation, Operation::Chat | Operation::Completions | Operation::Responses),
            may_use_tokens,
            rates: None,
        },
        // How many tokens audio and images have is not known before.
        _ => Demand { may_use_tokens, ..Demand::default() },
    }
}

/// What a client is told that has reached a limit.
fn limit_refusal(client: &Client, reached: LimitReached, prices: Option<&RequestPrices>) -> LimitRefusal {
    let LimitReached { key, limit, demand, wait } = reached;
    let name = client.name.as_ref().map_or("all clients", |name| name.as_str());
    let time = match key.kind {
        LimitKind::RequestsPerMinute | LimitKind::TokensPerMinute => "in 60 seconds",
        LimitKind::InFlight => "at the same time",
        LimitKind::TokensPerDay | LimitKind::CostPerDay => "a day (UTC)",
        LimitKind::TokensPerMonth | LimitKind::CostPerMonth => "a month (UTC)",
    };
    let (limit, demand) = match key.kind.unit() {
        LimitUnit::Requests => (format!("{limit} requests {time}"), None),
        LimitUnit::Tokens => (format!("{limit} tokens {time}"), Some(format!("about {demand} tokens"))),
        LimitUnit::Cost => {
            let demand = format!("about {}", cost_text(demand, prices));
            (format!("{} {time}", cost_text(limit, prices)), Some(demand))
        }
    };
    let reason = if key.kind.window().is_some() && wait.is_some() {
        RefusalReason::InsufficientQuota
    } else {
        RefusalReason::RateLimitExceeded
    };
    let message = match (wait, demand) {
        (Some(_), Some(demand)) => {
            format!("the limit {key} of {name} is reached: {limit}, and this request needs {demand}")
        }
        (Some(_), None) => format!("the limit {key} of {name} is reached: {limit}"),
        (None, demand) => format!(
            "this request needs {}, and the limit {key} of {name} is {limit}: send a shorter prompt or a smaller \
             max_tokens",
            demand.unwrap_or_default()
        ),
    };
    let mut refusal = Refusal::new(reason, message);
    refusal.retry_after = wait;
    LimitRefusal { limit: key, refusal }
}
