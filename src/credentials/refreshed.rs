//! A value that the background keeps fresh: it is renewed before it ends, on a timer, and once
//! when it is refused. While it cannot be renewed the last good one stays.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use log::{debug, error, info, warn};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::{application, key_vault, managed_identity};
use crate::config::Secret;
use crate::outbound::Outbound;

/// The first pause after a failure; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Pauses grow up to this, and this is how long Azure's SDKs leave a service alone.
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// A refused value that turned out to be the same is asked for again so soon at the latest.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// The longest that a service is left alone for because it asked.
const LONGEST_HINT: Duration = Duration::from_secs(60);

/// A secret as it is at a moment.
pub struct Value {
    /// The secret.
    pub secret: Secret,
    /// The same as a header's value.
    pub header: HeaderValue,
    /// Which it is: no two values of a process have the same.
    pub number: u64,
    ends: Option<Instant>,
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Value").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Why there is no value.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoValue(Arc<str>);

/// What a source answers.
pub(super) struct Fetched {
    pub(super) secret: Secret,
    pub(super) header: HeaderValue,
    /// When it is to be renewed.
    pub(super) renew: Duration,
    /// When it ends, if it does.
    pub(super) ends: Option<Duration>,
}

/// Why a source has no answer.
pub(super) struct Failed {
    pub(super) why: String,
    /// It asked to wait so long.
    pub(super) after: Option<Duration>,
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Self { why, after: None }
    }
}

/// Where a value comes from.
pub(super) enum Fetch {
    Token(application::Fetch),
    Managed(managed_identity::Fetch),
    Secret(key_vault::Fetch),
}

impl Fetch {
    /// What it fetches, for the log.
    pub(super) fn what(&self) -> String {
        match self {
            Self::Token(fetch) => fetch.what(),
            Self::Managed(fetch) => fetch.what(),
            Self::Secret(fetch) => fetch.what(),
        }
    }

    async fn fetch(&mut self, outbound: &Outbound) -> Result<Fetched, Failed> {
        match self {
            Self::Token(fetch) => fetch.fetch(outbound).await,
            Self::Managed(fetch) => fetch.fetch(outbound).await,
            Self::Secret(fetch) => fetch.fetch(outbound).await,
        }
    }
}

/// How many fetches were asked for that are worth waiting for, and how many of them are done. One
/// that is under way when another is asked for is not yet that one.
#[derive(Debug)]
struct Fetches {
    asked: u64,
    done: u64,
}

impl Fetches {
    fn is_awaited(&self) -> bool {
        self.asked > self.done
    }
}

/// The value at hand and what is asked about it.
#[derive(Debug)]
pub struct State {
    what: String,
    /// Nobody renews it.
    is_fixed: bool,
    numbers: Arc<AtomicU64>,
    current: ArcSwapOption<Value>,
    /// The number of the value that was refused last.
    refused: AtomicU64,
    asked: Notify,
    fetches: watch::Sender<Fetches>,
    problem: Mutex<NoValue>,
}

impl State {
    /// Nothing yet, but soon.
    pub(super) fn new(what: String, numbers: Arc<AtomicU64>) -> Self {
        let problem = NoValue(format!("{what} has not been fetched yet").into());
        Self {
            what,
            is_fixed: false,
            numbers,
            current: ArcSwapOption::empty(),
            refused: AtomicU64::new(0),
            asked: Notify::new(),
            fetches: watch::Sender::new(Fetches { asked: 1, done: 0 }),
            problem: Mutex::new(problem),
        }
    }

    /// A value that does not change.
    pub(super) fn fixed(secret: &Secret, number: u64) -> Self {
        let mut this = Self::new("a secret of the configuration".to_owned(), Arc::default());
        this.is_fixed = true;
        // Checked with the configuration where it is sent as it is.
        let header = header(secret.expose()).unwrap_or(HeaderValue::from_static(""));
        this.current.store(Some(Arc::new(Value { secret: secret.clone(), header, number, ends: None })));
        this.fetched(1);
        this
    }

    /// The value at hand.
    pub fn now(&self) -> Option<Arc<Value>> {
        self.current.load_full()
    }

    /// The number of the value at hand; 0 while there is none.
    pub fn number(&self) -> u64 {
        self.current.load().as_ref().map_or(0, |value| value.number)
    }

    /// The value, after a wait for the fetch that is under way.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn value(&self) -> Result<Arc<Value>, NoValue> {
        if let Some(value) = self.now() {
            return Ok(value);
        }
        self.settled().await;
        self.now().ok_or_else(|| self.problem())
    }

    /// Why there is no value, or no newer one.
    pub fn problem(&self) -> NoValue {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// This value was refused: it is renewed now, once, however many say so.
    pub fn refuse(&self, number: u64) {
        if self.is_fixed
            || number == 0
            || number != self.number()
            || self.refused.swap(number, Ordering::AcqRel) == number
        {
            return;
        }
        self.fetches.send_modify(|fetches| fetches.asked += 1);
        self.asked.notify_one();
    }

    /// Whether a fetch is under way that is worth waiting for.
    pub fn is_awaited(&self) -> bool {
        self.fetches.borrow().is_awaited()
    }

    /// Waits until there is nothing to wait for.
    pub async fn settled(&self) {
        // The sender is this state's own.
        let _ = self.fetches.subscribe().wait_for(|fetches| !fetches.is_awaited()).await;
    }

    /// So many of the fetches that were asked for are done, be it well or not.
    fn fetched(&self, done: u64) {
        self.fetches.send_modify(|fetches| fetches.done = done);
    }

    fn is_refused(&self) -> bool {
        let number = self.number();
        number != 0 && self.refused.load(Ordering::Acquire) == number
    }

    #[cfg(test)]
    pub(crate) fn renew_for_test(&self, text: &str) {
        let header = header(text).unwrap_or(HeaderValue::from_static(""));
        self.accept(&Fetched { secret: Secret::new(text), header, renew: Duration::MAX, ends: None });
        let asked = self.fetches.borrow().asked;
        self.fetched(asked);
    }

    /// Takes what was fetched; returns whether it is a new value.
    fn accept(&self, fetched: &Fetched) -> bool {
        let ends = fetched.ends.map(|life| Instant::now() + life);
        let now = self.now();
        let same = now.as_ref().filter(|value| value.secret == fetched.secret);
        let number = match same {
            Some(value) => value.number,
            None => self.numbers.fetch_add(1, Ordering::Relaxed) + 1,
        };
        let value = Value { secret: fetched.secret.clone(), header: fetched.header.clone(), number, ends };
        self.current.store(Some(Arc::new(value)));
        same.is_none()
    }

    /// Takes note that nothing could be fetched; returns whether that is news.
    fn fail(&self, why: &str) -> bool {
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = &*problem.0 != why;
        *problem = NoValue(why.into());
        is_news
    }
}

/// Keeps a value fresh for as long as it is polled.
pub(super) async fn keep(state: Arc<State>, mut fetch: Fetch, outbound: Arc<Outbound>) {
    let (mut failures, mut repeats) = (0, 0);
    loop {
        let asked = state.fetches.borrow().asked;
        let pause = match fetch.fetch(&outbound).await {
            Ok(fetched) => {
                let had_one = state.now().is_some();
                let is_new = state.accept(&fetched);
                match () {
                    () if failures > 0 => info!("{} is fetched again", state.what),
                    () if had_one && is_new => debug!("{} is a new one", state.what),
                    () => {}
                }
                failures = 0;
                repeats = if state.is_refused() { repeats + 1 } else { 0 };
                if repeats > 0 {
                    // The other side knows a newer one, or soon will.
                    backoff(repeats, REFUSED_PAUSE).min(fetched.renew)
                } else {
                    fetched.renew
                }
            }
            Err(Failed { why, after }) => {
                failures += 1;
                let held = state.now();
                let is_good =
                    held.as_ref().is_some_and(|value| value.ends.is_none_or(|end| Instant::now() < end));
                if state.fail(&why) || failures == 1 {
                    match is_good {
                        true => warn!("{} cannot be renewed, the last one stays: {why}", state.what),
                        false => error!("there is no good {}: {why}", state.what),
                    }
                }
                let own = backoff(failures, LAST_PAUSE);
                after.map_or(own, |after| after.min(LONGEST_HINT).max(own))
            }
        };
        state.fetched(asked);
        tokio::select! {
            () = sleep(pause) => {}
            () = state.asked.notified() => {}
        }
    }
}

/// Doubles with each, with some jitter.
fn backoff(count: u32, most: Duration) -> Duration {
    let pause = (FIRST_PAUSE * 2_u32.saturating_pow(count.saturating_sub(1).min(16))).min(most);
    pause.mul_f64(0.75 + fastrand::f64() / 4.0)
}

/// A header's value that is never shown; `None` for text that is none.
pub(super) fn header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(text: &str) -> Fetched {
        let secret = Secret::new(text);
        Fetched { secret, header: header(text).unwrap(), renew: Duration::from_secs(60), ends: None }
    }

    #[tokio::test]
    async fn a_value_is_asked_for_once_when_it_is_refused() {
        let state = State::new("it".to_owned(), Arc::default());
        assert!(state.is_awaited() && state.now().is_none() && state.number() == 0);
        assert!(state.accept(&fetched("one")));
        state.fetched(1);
        let first = state.number();
        state.refuse(first + 1);
        assert!(!state.is_awaited(), "another value was refused");
        state.refuse(first);
        assert!(state.is_awaited() && state.is_refused());
        // It is still the same one: nobody waits for it again.
        assert!(!state.accept(&fetched("one")) && state.number() == first && state.is_refused());
        state.fetched(1);
        assert!(state.is_awaited(), "a fetch that began before it was refused is not the one");
        state.fetched(2);
        state.refuse(first);
        assert!(!state.is_awaited());
        assert!(state.accept(&fetched("two")) && state.number() > first && !state.is_refused());
        state.refuse(first);
        assert!(!state.is_awaited(), "it is a new one already");
    }

    #[test]
    fn nothing_of_it_is_shown() {
        let state = State::fixed(&Secret::new("hunter2"), 1);
        state.refuse(1);
        assert!(!state.is_awaited(), "nobody would come");
        assert!(!format!("{state:?} {:?}", state.now()).contains("hunter2"));
        assert_eq!(state.now().unwrap().header, "hunter2");
    }
}
