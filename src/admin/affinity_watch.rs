//! Looks at the memory of which client made which object, on which `affinity.owner: enforce` relies: that it outlives
//! the process, and is large enough.

use std::time::Instant;

use log::{info, warn};

use crate::gateway::Gateway;
use crate::routing::episodes::{EventEpisode, EventNews, duration_in_words};
use crate::routing::service_state::{ServiceProblem, ServiceState};

/// What is remembered from one look to the next.
#[derive(Default)]
pub(super) struct AffinityWatch {
    evictions: EventEpisode,
}

impl AffinityWatch {
    /// The problems of the memory; none if clients may refer to what others have made.
    pub(super) fn look(&mut self, gateway: &Gateway, now: Instant) -> Vec<ServiceProblem> {
        let process = &gateway.process_state;
        let news = self.evictions.observe(process.homes.statistics().evicted_with_maker, now);
        if !gateway.enforces_owner() {
            return Vec::new();
        }
        tell_evictions(news);
        let not_saved = process.homes_keeper.save_problem();
        problems(not_saved.as_deref(), self.evictions.has_recent_event(now))
    }
}

fn tell_evictions(news: Option<EventNews>) {
    match news {
        Some(EventNews::Began) => warn!(
            "affinity.owner: enforce: affinity.memory is full: ids of known makers were forgotten, and any client may use \
             them"
        ),
        Some(EventNews::GoesOn { count }) => {
            info!("affinity.owner: enforce: {count} more ids of known makers were forgotten");
        }
        Some(EventNews::Over { count, lasted }) => warn!(
            "affinity.owner: enforce: ids of known makers are no longer forgotten ({count} were, within {})",
            duration_in_words(lasted)
        ),
        None => {}
    }
}

/// The problems with `affinity.owner: enforce`.
fn problems(not_saved: Option<&str>, evicts_makers: bool) -> Vec<ServiceProblem> {
    let problem = |text: String| ServiceProblem {
        state: ServiceState::Degraded,
        subject: "affinity.owner".to_owned(),
        text,
    };
    let not_saved = not_saved.map(|reason| {
        problem(format!("the makers of objects are forgotten when this process ends: {reason}"))
    });
    let evicted = evicts_makers.then(|| {
        problem(
            "affinity.memory is full: ids of known makers were forgotten, and any client may use them"
                .to_owned(),
        )
    });
    not_saved.into_iter().chain(evicted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_lets_makers_be_forgotten_is_a_problem() {
        for (not_saved, evicts_makers, expected) in [
            (None, false, &[][..]),
            (Some("disk full"), false, &["when this process ends: disk full"]),
            (None, true, &["affinity.memory is full"]),
            (Some("disk full"), true, &["when this process ends: disk full", "affinity.memory is full"]),
        ] {
            let problems = problems(not_saved, evicts_makers);
            assert_eq!(problems.len(), expected.len());
            for (problem, expected) in problems.iter().zip(expected) {
                assert_eq!(problem.state, ServiceState::Degraded);
                assert!(problem.text.contains(expected), "{}", problem.text);
            }
        }
    }
}
