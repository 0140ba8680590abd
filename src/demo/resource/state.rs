//! A running resource: its definition, and everything that changes while it runs.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::batch_store::BatchStore;
use super::definition::{SimulatedDeployment, SimulatedResource};
use super::file_store::FileStore;
use super::object_store::ObjectStore;
use super::prompt_cache::{CachedPrompt, PromptCache};
use super::rate_limiter::{AdmissionDecision, ChargeSettlement, LimitOverride, RateLimiter, RequestCost};
use super::request_log::RequestLog;
use super::response_store::ResponseStore;
use crate::demo::moods::mood_selector::MoodSelector;
use crate::demo::util::fernet::FernetKey;
use crate::demo::util::ids::IdGenerator;
use crate::demo::util::locking::lock_ignoring_poison;

/// The state of a running resource.
#[derive(Debug)]
pub(in crate::demo) struct ResourceState {
    pub(in crate::demo) definition: SimulatedResource,
    pub(in crate::demo) mood_selector: Mutex<MoodSelector>,
    pub(in crate::demo) request_log: RequestLog,
    pub(in crate::demo) id_generator: IdGenerator,
    pub(in crate::demo) responses: Mutex<ResponseStore>,
    pub(in crate::demo) files: Mutex<FileStore>,
    pub(in crate::demo) objects: Mutex<ObjectStore>,
    pub(in crate::demo) batches: Mutex<BatchStore>,
    /// Encrypts reasoning and compacted conversations.
    pub(in crate::demo) encryption_key: FernetKey,
    read_lag: Mutex<Duration>,
    rate_limiters: Mutex<HashMap<String, RateLimiter>>,
    prompt_cache: Mutex<PromptCache>,
    accepted_connections: AtomicU64,
}

impl ResourceState {
    pub(in crate::demo) fn new(definition: SimulatedResource, now: Instant) -> Self {
        let id_generator = IdGenerator::new(definition.id_form);
        let rate_limiters = definition
            .deployments
            .iter()
            .map(|deployment| (deployment.name.clone(), RateLimiter::new(deployment.kind, now)))
            .collect();
        Self {
            mood_selector: Mutex::new(MoodSelector::new(definition.initial_mood.clone())),
            request_log: RequestLog::default(),
            responses: Mutex::new(ResponseStore::of_resource()),
            files: Mutex::default(),
            objects: Mutex::default(),
            batches: Mutex::default(),
            encryption_key: FernetKey::new(&id_generator),
            read_lag: Mutex::new(definition.read_lag),
            rate_limiters: Mutex::new(rate_limiters),
            prompt_cache: Mutex::default(),
            accepted_connections: AtomicU64::new(0),
            definition,
            id_generator,
        }
    }

    /// How long a streamed response is not found after its stream has ended.
    pub(in crate::demo) fn read_lag(&self) -> Duration {
        *lock_ignoring_poison(&self.read_lag)
    }

    pub(in crate::demo) fn set_read_lag(&self, read_lag: Duration) {
        *lock_ignoring_poison(&self.read_lag) = read_lag;
    }

    /// Counts a new connection, and returns its number.
    pub(in crate::demo) fn assign_connection_number(&self) -> u64 {
        self.accepted_connections.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// How many connections were accepted so far.
    pub(in crate::demo) fn accepted_connection_count(&self) -> u64 {
        self.accepted_connections.load(Ordering::SeqCst)
    }

    /// The deployment of this name. Like Azure, it ignores the case of names.
    pub(in crate::demo) fn deployment(&self, name: &str) -> Option<&SimulatedDeployment> {
        self.definition.deployments.iter().find(|deployment| deployment.name.eq_ignore_ascii_case(name))
    }

    /// Asks the rate limiter of a deployment to admit a request.
    pub(in crate::demo) fn admit_request(
        &self,
        deployment: &SimulatedDeployment,
        cost: RequestCost,
        limit_override: LimitOverride,
        now: Instant,
    ) -> AdmissionDecision {
        lock_ignoring_poison(&self.rate_limiters)
            .entry(deployment.name.clone())
            .or_insert_with(|| RateLimiter::new(deployment.kind, now))
            .admit_request(cost, limit_override, now)
    }

    /// What tokens count for in a deployment.
    pub(in crate::demo) fn weighted_tokens(
        &self,
        deployment: &str,
        input_tokens: u64,
        output_tokens: u64,
    ) -> u64 {
        lock_ignoring_poison(&self.rate_limiters)
            .get(deployment)
            .map_or(input_tokens + output_tokens, |limiter| {
                limiter.weighted_tokens(input_tokens, output_tokens)
            })
    }

    /// Corrects the rate limiter of a deployment by what a request really used.
    pub(in crate::demo) fn settle_charge(&self, charge: &ChargeSettlement) {
        if let Some(limiter) = lock_ignoring_poison(&self.rate_limiters).get_mut(&charge.deployment) {
            limiter.settle_charge(charge);
        }
    }

    /// What the prompt cache of a deployment has of a prompt. The whole prompt is cached from now on.
    pub(in crate::demo) fn look_up_and_cache_prompt(
        &self,
        deployment: &SimulatedDeployment,
        cache_key: &str,
        prompt: &str,
        now: Instant,
    ) -> CachedPrompt {
        let cached_prompt = lock_ignoring_poison(&self.prompt_cache).look_up_and_insert(
            &deployment.name,
            cache_key,
            prompt,
            now,
        );
        if deployment.bills_cache_writes() { cached_prompt } else { cached_prompt.without_billed_writes() }
    }
}
