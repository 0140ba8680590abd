//! The search for the resource that has what a request refers to, and how far it is.

use std::time::{Duration, Instant};

/// The waits before a resource is asked again that may need time until it can read what it has made: the first,
/// and the longest that doubling leads to.
const FIRST_READ_LAG_WAIT: Duration = Duration::from_millis(250);
const LONGEST_READ_LAG_WAIT: Duration = Duration::from_secs(8);

/// Where the resource is looked for that has what a request refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResourceSearch {
    /// It is known.
    Home {
        /// The index of the resource.
        resource_index: usize,
        /// Until when the resource may deny what it has, because it was made a short time ago.
        lags_until: Option<Instant>,
    },
    /// It is not known: the resources are asked.
    Ask {
        /// How many resources are asked after the first.
        max_further: u32,
        /// The waits before all of them are asked again, because the one that has it may need time until it can
        /// read it.
        further_rounds: &'static [Duration],
    },
}

/// How far a search is.
#[derive(Debug)]
pub(super) struct SearchProgress {
    pub(super) search: ResourceSearch,
    /// How many resources have denied it in this round.
    pub(super) denials_in_round: u32,
    /// How many attempts have ended with a denial.
    pub(super) denials: u32,
    /// How many waits before another round are over.
    finished_rounds: u32,
    /// When the next resource may be asked, if the client asks too often.
    pub(super) next_ask_at: Option<Instant>,
}

impl SearchProgress {
    pub(super) fn new(search: ResourceSearch) -> Self {
        Self { search, denials_in_round: 0, denials: 0, finished_rounds: 0, next_ask_at: None }
    }

    /// The wait before the resources that have denied it are asked again; `None` if they are not.
    pub(super) fn wait_before_next_round(&self, now: Instant) -> Option<Duration> {
        match self.search {
            ResourceSearch::Home { lags_until, .. } => {
                let remaining = lags_until?.checked_duration_since(now).filter(|time| !time.is_zero())?;
                let doubled = FIRST_READ_LAG_WAIT * 2_u32.saturating_pow(self.finished_rounds.min(16));
                // The last one is at the end of the lag.
                Some(doubled.min(LONGEST_READ_LAG_WAIT).min(remaining))
            }
            ResourceSearch::Ask { further_rounds, .. } => {
                further_rounds.get(self.finished_rounds as usize).copied()
            }
        }
    }

    pub(super) fn on_round_wait_over(&mut self) {
        self.finished_rounds += 1;
        self.denials_in_round = 0;
    }

    /// Whether no further resource is asked in this round.
    pub(super) fn has_asked_enough(&self) -> bool {
        match self.search {
            ResourceSearch::Home { .. } => false,
            ResourceSearch::Ask { max_further, .. } => self.denials_in_round > max_further,
        }
    }
}
