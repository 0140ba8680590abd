//! The current value of one secret, whether it was rejected, and whether a fetch is pending. The
//! background task in `refresh.rs` writes it; requests read it without waiting.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use tokio::sync::{Notify, watch};

use super::expiry::{Expiry, earlier, earliest_expiry};
use super::fetched_secret::{FetchedSecret, sensitive_header_value};
use crate::config::Secret;

/// One value of a secret. A renewal creates a new one.
pub struct SecretValue {
    /// The secret itself, for calls that put it elsewhere than into a header.
    pub secret: Secret,
    /// The value of the header that carries the secret.
    pub header_value: HeaderValue,
    /// Unique among all secret values of the process; never 0. A fetch that returns the same secret keeps
    /// the id.
    pub id: u64,
    expires_at: Option<Instant>,
}

impl std::fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretValue").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why there is no value, or no newer one.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct SecretError(Arc<str>);

/// How many fetches were requested that callers wait for, and how many of them have ended. A fetch that
/// was already running when another one was requested does not count for that request.
#[derive(Debug)]
struct FetchProgress {
    requested_count: u64,
    ended_count: u64,
}

impl FetchProgress {
    fn is_pending(&self) -> bool {
        self.requested_count > self.ended_count
    }
}

/// The current value of a secret and the progress of its fetches.
#[derive(Debug)]
pub struct SecretState {
    description: String,
    /// It never changes, and no task fetches it.
    is_fixed: bool,
    value_id_counter: Arc<AtomicU64>,
    current_value: ArcSwapOption<SecretValue>,
    /// The id of the value that was rejected last; 0: none.
    last_rejected_value_id: AtomicU64,
    refresh_notify: Notify,
    fetch_progress: watch::Sender<FetchProgress>,
    last_fetch_error: Mutex<SecretError>,
    /// The last fetch failed.
    is_renewal_failing: AtomicBool,
    source_expiry: Mutex<SourceExpiry>,
}

/// When what a secret comes from ends.
#[derive(Clone, Copy, Debug, Default)]
struct SourceExpiry {
    /// The secret itself, according to its source.
    own: Option<Expiry>,
    /// What it is fetched with.
    proof: Option<Expiry>,
}

impl SecretState {
    /// A secret without a value, whose first fetch is pending.
    pub(super) fn new(description: String, value_id_counter: Arc<AtomicU64>) -> Self {
        let last_error = SecretError(format!("the {description} has not been fetched yet").into());
        Self {
            description,
            is_fixed: false,
            value_id_counter,
            current_value: ArcSwapOption::empty(),
            last_rejected_value_id: AtomicU64::new(0),
            refresh_notify: Notify::new(),
            fetch_progress: watch::Sender::new(FetchProgress { requested_count: 1, ended_count: 0 }),
            last_fetch_error: Mutex::new(last_error),
            is_renewal_failing: AtomicBool::new(false),
            source_expiry: Mutex::default(),
        }
    }

    /// A secret that does not change.
    pub(super) fn fixed(secret: &Secret, id: u64) -> Self {
        let mut state = Self::new("a secret of the configuration".to_owned(), Arc::default());
        state.is_fixed = true;
        // The configuration check has made sure that a secret that is sent in a header is legal there.
        let header_value =
            sensitive_header_value(secret.expose_secret()).unwrap_or(HeaderValue::from_static(""));
        let value = SecretValue { secret: secret.clone(), header_value, id, expires_at: None };
        state.current_value.store(Some(Arc::new(value)));
        state.mark_fetches_ended_up_to(1);
        state
    }

    /// The current value; `None` before the first successful fetch.
    pub fn current_value(&self) -> Option<Arc<SecretValue>> {
        self.current_value.load_full()
    }

    /// The id of the current value; 0 if there is none.
    pub fn current_value_id(&self) -> u64 {
        self.current_value.load().as_ref().map_or(0, |value| value.id)
    }

    /// The current value; if there is none, waits for the pending fetch.
    ///
    /// # Errors
    /// [`SecretError`] if there is still none.
    pub async fn wait_for_value(&self) -> Result<Arc<SecretValue>, SecretError> {
        if let Some(value) = self.current_value() {
            return Ok(value);
        }
        self.wait_for_pending_fetch().await;
        self.current_value().ok_or_else(|| self.last_fetch_error())
    }

    /// Why the last failed fetch failed.
    pub fn last_fetch_error(&self) -> SecretError {
        self.last_fetch_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The service rejected the value with this id. The first report for the current value requests a fetch;
    /// reports for an older value, or repeated ones, are ignored.
    pub fn on_value_rejected(&self, id: u64) {
        if self.is_fixed
            || id == 0
            || id != self.current_value_id()
            || self.last_rejected_value_id.swap(id, Ordering::AcqRel) == id
        {
            return;
        }
        // Before the task is woken: it reads the count to know which requests its fetch completes.
        self.fetch_progress.send_modify(|progress| progress.requested_count += 1);
        self.refresh_notify.notify_one();
    }

    /// Whether a fetch is pending that may bring a new value.
    pub fn is_fetch_pending(&self) -> bool {
        self.fetch_progress.borrow().is_pending()
    }

    /// Waits until no fetch is pending.
    pub async fn wait_for_pending_fetch(&self) {
        // It fails only if the sender is dropped, and this state owns the sender.
        let _ = self.fetch_progress.subscribe().wait_for(|progress| !progress.is_pending()).await;
    }

    /// Records that this many of the requested fetches have ended, successfully or not.
    pub(super) fn mark_fetches_ended_up_to(&self, completed: u64) {
        self.fetch_progress.send_modify(|progress| progress.ended_count = completed);
    }

    /// Whether the current value was rejected.
    pub(super) fn is_current_value_rejected(&self) -> bool {
        let id = self.current_value_id();
        id != 0 && self.last_rejected_value_id.load(Ordering::Acquire) == id
    }

    #[cfg(test)]
    pub(crate) fn replace_for_test(&self, text: &str) {
        let header_value = sensitive_header_value(text).unwrap_or(HeaderValue::from_static(""));
        let secret = Secret::new(text);
        let renew_after = std::time::Duration::MAX;
        self.store_fetched(&FetchedSecret {
            secret,
            header_value,
            renew_after,
            expires_in: None,
            source_expiry: None,
        });
        self.mark_fetches_ended_up_to(self.requested_fetch_count());
    }

    /// Makes the fetched secret the current value; returns whether it differs from the previous one.
    pub(super) fn store_fetched(&self, fetched: &FetchedSecret) -> bool {
        let expires_at = fetched.expires_in.map(|expires_in| Instant::now() + expires_in);
        let previous = self.current_value();
        let unchanged = previous.as_ref().filter(|value| value.secret == fetched.secret);
        let id = match unchanged {
            Some(value) => value.id,
            None => self.value_id_counter.fetch_add(1, Ordering::Relaxed) + 1,
        };
        let (secret, header_value) = (fetched.secret.clone(), fetched.header_value.clone());
        self.current_value.store(Some(Arc::new(SecretValue { secret, header_value, id, expires_at })));
        self.lock_source_expiry().own = fetched.source_expiry;
        self.is_renewal_failing.store(false, Ordering::Release);
        unchanged.is_none()
    }

    /// Records why a fetch failed; returns whether that differs from the previous failure.
    pub(super) fn record_failure(&self, message: &str) -> bool {
        let mut last_error = self.last_fetch_error.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = &*last_error.0 != message;
        *last_error = SecretError(message.into());
        self.is_renewal_failing.store(true, Ordering::Release);
        is_new
    }

    /// Records when the credential ends that it is fetched with.
    pub(super) fn set_proof_expiry(&self, expiry: Option<Expiry>) {
        self.lock_source_expiry().proof = expiry;
    }

    /// When the secret ends according to its source, or what it is fetched with, whichever comes first.
    pub(super) fn source_expiry(&self) -> Option<Expiry> {
        let SourceExpiry { own, proof } = *self.lock_source_expiry();
        earlier(own, proof)
    }

    /// When it ends, as far as that is known; a token counts only if it cannot be renewed. `now` and `wall_now`
    /// are the same moment.
    pub fn expiry(&self, now: Instant, wall_now: SystemTime) -> Option<Expiry> {
        let token_expires_at = self.current_value.load().as_ref().and_then(|value| value.expires_at);
        let is_failing = self.is_renewal_failing.load(Ordering::Acquire);
        earliest_expiry(self.source_expiry(), token_expires_at, is_failing, now, wall_now)
    }

    /// Why it cannot be renewed at the moment; `None` if it can.
    pub fn renewal_error(&self) -> Option<SecretError> {
        self.is_renewal_failing.load(Ordering::Acquire).then(|| self.last_fetch_error())
    }

    fn lock_source_expiry(&self) -> MutexGuard<'_, SourceExpiry> {
        self.source_expiry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the secret is, for the log.
    pub(super) fn description(&self) -> &str {
        &self.description
    }

    /// Whether there is a value that has not expired.
    pub(super) fn has_unexpired_value(&self, now: Instant) -> bool {
        self.current_value.load().as_ref().is_some_and(|value| value.expires_at.is_none_or(|at| now < at))
    }

    /// How many fetches have been requested so far.
    pub(super) fn requested_fetch_count(&self) -> u64 {
        self.fetch_progress.borrow().requested_count
    }

    /// Waits until a rejected value requests a fetch.
    pub(super) async fn wait_for_refresh_request(&self) {
        self.refresh_notify.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn fetched(text: &str) -> FetchedSecret {
        let secret = Secret::new(text);
        let header_value = sensitive_header_value(text).unwrap();
        FetchedSecret {
            secret,
            header_value,
            renew_after: Duration::from_secs(60),
            expires_in: None,
            source_expiry: None,
        }
    }

    #[tokio::test]
    async fn a_rejected_value_requests_one_fetch() {
        let state = SecretState::new("it".to_owned(), Arc::default());
        assert!(state.is_fetch_pending() && state.current_value().is_none() && state.current_value_id() == 0);
        assert!(state.store_fetched(&fetched("one")));
        state.mark_fetches_ended_up_to(1);
        let first = state.current_value_id();
        state.on_value_rejected(first + 1);
        assert!(!state.is_fetch_pending(), "another value was rejected");
        state.on_value_rejected(first);
        assert!(state.is_fetch_pending() && state.is_current_value_rejected());
        // The source still has the same value: a second rejection does not request another fetch.
        assert!(
            !state.store_fetched(&fetched("one"))
                && state.current_value_id() == first
                && state.is_current_value_rejected()
        );
        state.mark_fetches_ended_up_to(1);
        assert!(state.is_fetch_pending(), "a fetch that began before the rejection does not count");
        state.mark_fetches_ended_up_to(2);
        state.on_value_rejected(first);
        assert!(!state.is_fetch_pending());
        assert!(
            state.store_fetched(&fetched("two"))
                && state.current_value_id() > first
                && !state.is_current_value_rejected()
        );
        state.on_value_rejected(first);
        assert!(!state.is_fetch_pending(), "the value has been replaced already");
    }

    #[test]
    fn debug_output_hides_the_secret() {
        let state = SecretState::fixed(&Secret::new("hunter2"), 1);
        state.on_value_rejected(1);
        assert!(!state.is_fetch_pending(), "no task would fetch it");
        assert!(!format!("{state:?} {:?}", state.current_value()).contains("hunter2"));
        assert_eq!(state.current_value().unwrap().header_value, "hunter2");
    }
}
