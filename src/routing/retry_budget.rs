//! How many further tries the requests of a pool may cost while its backends fail: in an
//! outage every client's request must not become a dozen.

use std::time::{Duration, Instant};

use super::window::{Counts, Window};
use crate::config::Ratio;

const WINDOW: Duration = Duration::from_secs(10);
/// Tries over the window that are always free: ten a second.
const FREE: u64 = 100;

/// The budget of one pool.
#[derive(Debug)]
pub struct Budget {
    window: Window,
}

impl Budget {
    pub(super) fn new(birth: Instant) -> Self {
        Self { window: Window::new(birth) }
    }

    /// A request has come.
    pub(super) fn request(&self, now: Instant) {
        self.window.add(Counts { all: 1, marked: 0 }, WINDOW, now);
    }

    /// Whether there is one more try.
    pub(super) fn allows(&self, ratio: Ratio, now: Instant) -> bool {
        let Counts { all, marked } = self.window.counts(WINDOW, now);
        marked < FREE + all * u64::from(ratio.percent()) / 100
    }

    /// It has been begun.
    pub(super) fn spend(&self, now: Instant) {
        self.window.add(Counts { all: 0, marked: 1 }, WINDOW, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_requests_and_some_for_free() {
        let now = Instant::now();
        let (budget, ratio) = (Budget::new(now), Ratio::new(20).unwrap());
        let spent = |budget: &Budget| {
            let mut spent = 0;
            while budget.allows(ratio, now) {
                budget.spend(now);
                spent += 1;
            }
            spent
        };
        assert_eq!(spent(&budget), FREE);
        (0..1000).for_each(|_| budget.request(now));
        assert_eq!(spent(&budget), 200);
        assert!(budget.allows(ratio, now + 11 * Duration::from_secs(1)));
    }
}
