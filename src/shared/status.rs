//! Whether the connection is up, since when, and what is wrong if it is not. Each change is logged once.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};
use tokio::sync::watch;

/// What it means for an operator that the server is away.
const CONSEQUENCE: &str = "This instance goes on with what it knows, and connects again as soon as it can";

/// What it means that a part of a cluster is away.
const PARTIAL_CONSEQUENCE: &str = "This instance goes on by itself with what is kept there";

/// The state of the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkStatus {
    /// Commands are answered; in part, if there is a problem.
    pub is_up: bool,
    /// What is wrong, in one sentence; `None` while all of it is up, and before the first attempt has ended.
    pub problem: Option<String>,
    /// Since when it is up or not; `None` before the first attempt has ended.
    pub since: Option<SystemTime>,
}

/// Keeps the state, tells of changes, and wakes those who wait for one.
#[derive(Debug)]
pub(super) struct StatusKeeper {
    /// `HOST:PORT`.
    address: String,
    status: Mutex<(LinkStatus, Instant)>,
    is_up: watch::Sender<bool>,
}

impl StatusKeeper {
    pub(super) fn new(address: String, now: Instant) -> Self {
        Self { address, status: Mutex::new((LinkStatus::default(), now)), is_up: watch::Sender::new(false) }
    }

    pub(super) fn current(&self) -> LinkStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// A receiver that is woken by each change.
    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.is_up.subscribe()
    }

    pub(super) fn on_up(&self, now: Instant) {
        let message = {
            let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
            let was_down = !status.0.is_up && status.0.problem.is_some();
            let away = was_down.then(|| now.saturating_duration_since(status.1));
            *status = (LinkStatus { is_up: true, problem: None, since: Some(SystemTime::now()) }, now);
            up_message(&self.address, away)
        };
        info!("{message}");
        self.is_up.send_replace(true);
    }

    /// While it is up: a part of the cluster cannot be used; `None` if all of it can. Logged when it begins and ends.
    pub(super) fn on_partial_problem(&self, problem: Option<String>) {
        let problem =
            problem.map(|problem| format!("cannot use a part of Redis at {}: {problem}", self.address));
        let before = {
            let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
            if !status.0.is_up {
                return;
            }
            std::mem::replace(&mut status.0.problem, problem.clone())
        };
        match (before, problem) {
            (None, Some(problem)) => warn!("shared.redis: {problem}. {PARTIAL_CONSEQUENCE}"),
            (Some(_), None) => {
                info!("shared.redis: all of the cluster at {} can be used again", self.address);
            }
            _ => {}
        }
    }

    /// Logged if it was not down already. The newest problem is what an operator sees.
    pub(super) fn on_down(&self, problem: &str, now: Instant) {
        let problem = format!("cannot use Redis at {}: {problem}", self.address);
        let is_new = {
            let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
            let is_new = status.0.is_up || status.0.problem.is_none();
            if is_new {
                *status = (LinkStatus { since: Some(SystemTime::now()), ..LinkStatus::default() }, now);
            }
            status.0.problem = Some(problem.clone());
            is_new
        };
        if is_new {
            warn!("shared.redis: {problem}. {CONSEQUENCE}");
        }
        self.is_up.send_replace(false);
    }
}

/// `away` is how long it was away, if it was.
fn up_message(address: &str, away: Option<Duration>) -> String {
    match away {
        None => format!("shared.redis: connected to {address}"),
        Some(away) => {
            let precision = if away < Duration::from_secs(10) { 1 } else { 0 };
            format!("shared.redis: connected to {address} again, after {:.precision$}s", away.as_secs_f64())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_problem_is_kept_with_the_time_of_the_first() {
        let (keeper, now) = (StatusKeeper::new("a:1".to_owned(), Instant::now()), Instant::now());
        assert_eq!(keeper.current(), LinkStatus::default());
        keeper.on_down("closed", now);
        let first = keeper.current();
        keeper.on_down("refused", now);
        let second = keeper.current();
        assert_eq!(second.problem.as_deref(), Some("cannot use Redis at a:1: refused"));
        assert_eq!((first.since, first.is_up, second.is_up), (second.since, false, false));
        keeper.on_up(now);
        let up = keeper.current();
        assert!(up.is_up && up.problem.is_none() && *keeper.subscribe().borrow());
        keeper.on_down("closed", now);
        assert!(!keeper.current().is_up && !*keeper.subscribe().borrow());
    }

    #[test]
    fn a_part_can_be_away_only_while_it_is_up() {
        let (keeper, now) = (StatusKeeper::new("a:1".to_owned(), Instant::now()), Instant::now());
        keeper.on_partial_problem(Some("2 slots".to_owned()));
        assert_eq!(keeper.current(), LinkStatus::default());
        keeper.on_up(now);
        let since = keeper.current().since;
        keeper.on_partial_problem(Some("2 slots".to_owned()));
        let partial = keeper.current();
        assert_eq!(partial.problem.as_deref(), Some("cannot use a part of Redis at a:1: 2 slots"));
        assert_eq!((partial.is_up, partial.since), (true, since));
        keeper.on_partial_problem(None);
        assert_eq!(keeper.current().problem, None);
    }

    #[test]
    fn who_is_back_says_how_long_it_was_away() {
        let message = |away: Option<u64>| up_message("a:1", away.map(Duration::from_millis));
        assert_eq!(message(None), "shared.redis: connected to a:1");
        assert_eq!(message(Some(1_260)), "shared.redis: connected to a:1 again, after 1.3s");
        assert_eq!(message(Some(61_700)), "shared.redis: connected to a:1 again, after 62s");
    }
}
