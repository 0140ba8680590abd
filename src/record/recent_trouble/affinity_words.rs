//! What became of a request that refers to objects of a resource, in plain words.

use std::time::Duration;

use super::super::affinity::AffinityRecord;
use super::super::attempt_errors::last_error_by_backend;
use super::super::exchange::AttemptRecord;
use super::TroubledRequest;
use super::trouble_kind::SLOW_WAIT;

/// The statuses with which a resource says that it does not have an object.
const DENYING_STATUSES: [u16; 2] = [400, 404];

impl TroubledRequest {
    /// A refusal because of the resource that has what the request refers to; `None` if it was another reason.
    pub(super) fn affinity_refusal(&self, code: &str) -> Option<String> {
        let home = self.affinity.as_ref().and_then(|affinity| affinity.home());
        Some(match (code, home) {
            ("home_unavailable", Some(home)) => {
                format!("{home}, which has what the request refers to, is unavailable")
            }
            ("home_unavailable", None) => match self.denying_resources() {
                Some(names) => format!(
                    "{names}: not there; other resources, which may have what the request refers to, are unavailable"
                ),
                None => "the resource that has what the request refers to is unavailable".to_owned(),
            },
            ("path_not_allowed", _) if self.status == Some(403) => {
                "the list has the objects of all clients (affinity.owner: enforce)".to_owned()
            }
            ("all_throttled", Some(home)) => {
                format!("{home}, which has what the request refers to, is throttled")
            }
            _ => return None,
        })
    }

    /// What a request that was not refused by the balancer had to do to find or reach its resource; `None` if it is
    /// about no resource, or found it at once.
    pub(super) fn affinity_cause(&self) -> Option<String> {
        let affinity = self.affinity.as_deref()?;
        let others = self.errors_besides_denials(affinity);
        let with_others = |text: String| if others.is_empty() { text } else { format!("{text}; {others}") };
        if let Some(names) = self.denying_resources() {
            return Some(with_others(match (affinity.how, affinity.home(), affinity.read_lag) {
                ("learned", Some(home), Some(lag)) => {
                    format!("{home} could read what it had made after {}", seconds(lag))
                }
                ("learned", Some(home), None) if self.status.is_some_and(|status| status < 400) => {
                    format!("{home} could not read at first what the request refers to")
                }
                ("learned", Some(home), None) => {
                    format!("{home} does not have any more what the request refers to")
                }
                (_, Some(home), _) => {
                    format!("what the request refers to was found on {home}; not on {names}")
                }
                _ => format!("no resource that was asked has what the request refers to: {names}"),
            }));
        }
        // In the queue it waits for its resource, too.
        let waited = affinity.waited + self.queued;
        let home = affinity.home().filter(|_| waited > SLOW_WAIT)?;
        Some(with_others(format!(
            "waited {} for {home}, which has what the request refers to",
            seconds(waited)
        )))
    }

    fn denying_resources(&self) -> Option<String> {
        let names: Vec<&str> =
            self.affinity.as_ref()?.denying_resources().into_iter().map(|name| name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// The last error of each backend that is more than the answer of its resource that it has no such object.
    fn errors_besides_denials(&self, affinity: &AffinityRecord) -> String {
        let has_denials = affinity.denial_count() > 0;
        let is_denial = |attempt: &AttemptRecord| {
            has_denials
                && attempt.error_code.is_none()
                && attempt.status.is_some_and(|status| DENYING_STATUSES.contains(&status))
        };
        let others: Vec<AttemptRecord> =
            self.attempts.iter().filter(|attempt| !is_denial(attempt)).cloned().collect();
        last_error_by_backend(&others)
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
