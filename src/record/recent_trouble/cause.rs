//! The cause of trouble in plain words: why the balancer refused a request, or the last error of each backend.

use super::super::attempt_errors::last_error_by_backend;
use super::TroubledRequest;
use super::trouble_kind::{SLOW_WAIT, TroubleKind};

/// A cause is cut at this many bytes.
const MAX_CAUSE_BYTES: usize = 300;

impl TroubledRequest {
    /// The cause in plain words, such as `no backend answered: a: connection refused, b: 503`.
    pub fn cause(&self) -> String {
        let errors = last_error_by_backend(&self.attempts);
        let refusal = self
            .refusal_code
            .map(|code| self.affinity_refusal(code).unwrap_or_else(|| refusal_in_words(code).to_owned()));
        let affinity = if refusal.is_none() { self.affinity_cause() } else { None };
        let mut cause = match (refusal, self.kind) {
            (Some(words), _) if errors.is_empty() => words,
            (Some(words), _) => format!("{words}: {errors}"),
            (None, TroubleKind::Refused | TroubleKind::Retried | TroubleKind::Slow) if affinity.is_some() => {
                affinity.unwrap_or_default()
            }
            (None, TroubleKind::Slow) if self.waited + self.queued > SLOW_WAIT => self.waits_in_words(),
            (None, TroubleKind::Slow) => self.first_byte_in_words(),
            (None, TroubleKind::Failed) if self.status.is_none() => match errors.is_empty() {
                true => "the client got no response".to_owned(),
                false => format!("the client got no response: {errors}"),
            },
            (None, TroubleKind::Failed) if self.status == Some(101) => match errors.is_empty() {
                true => "the WebSocket ended with an error".to_owned(),
                false => format!("the WebSocket broke off: {errors}"),
            },
            (None, TroubleKind::Failed) if self.status.is_some_and(|status| status < 400) => {
                match errors.is_empty() {
                    true => "the response ended with an error, or before its end".to_owned(),
                    false => format!("the response broke off: {errors}"),
                }
            }
            (None, _) => errors,
        };
        cause.truncate(cause.floor_char_boundary(MAX_CAUSE_BYTES));
        cause
    }

    /// What it waited for: in the queue, between attempts, or both.
    fn waits_in_words(&self) -> String {
        let [waited, queued] = [self.waited, self.queued].map(|wait| format!("{:.1} s", wait.as_secs_f64()));
        match (self.waited.is_zero(), self.queued.is_zero()) {
            (_, true) => format!("waited {waited} for a backend"),
            (true, false) => format!("waited {queued} in the queue"),
            (false, false) => format!("waited {queued} in the queue and {waited} for a backend"),
        }
    }

    fn first_byte_in_words(&self) -> String {
        match self.time_to_first_body_byte {
            Some(first) => format!("the first byte came after {:.1} s", first.as_secs_f64()),
            None => format!("no first byte within {:.1} s", self.duration.as_secs_f64()),
        }
    }
}

/// A refusal of the balancer's own; a code that is not known here stands for itself.
fn refusal_in_words(code: &'static str) -> &'static str {
    match code {
        "bad_request" => "the request is malformed",
        "invalid_api_key" => "no valid key, token or certificate, or those of two clients",
        "deployment_not_allowed" => "the client may not use this deployment, or make calls without one",
        "DeploymentNotFound" => "no backend has this deployment",
        "path_not_allowed" => "requests.allow does not list this method and path",
        "mixed_resources" => {
            "the request refers to objects of different resources; no resource has all of them"
        }
        "home_unavailable" => "the resource that has what the request refers to is unavailable",
        "object_not_found" | "previous_response_not_found" | "invalid_encrypted_content" => {
            "another client made what the request refers to (affinity.owner: enforce)"
        }
        "method_not_allowed" => "this method is never served",
        "request_timeout" => "the client sent its request too slowly",
        "body_too_large" => "the body is larger than requests.max_body or max_streamed_body",
        "unsupported_encoding" => "the body is compressed",
        "unsupported_websocket_version" => "the WebSocket handshake asks for another version than 13",
        "headers_too_large" => "the request head is too large",
        "all_throttled" => "every backend that is left is throttled",
        "upstream_failed" => "no backend answered",
        "upstream_timeout" => "no backend answered in time",
        "no_backend" => "no backend is available",
        "overloaded" => "a limit of the balancer is reached: connections, or memory for bodies",
        "backend_misconfigured" => "backends refuse the balancer's credential or lack the deployment",
        code => code,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::ForeignIds;
    use super::*;
    use crate::names::{BackendName, ResourceName};
    use crate::record::affinity::{AffinityRecord, AskAnswer, AskedResource};
    use crate::record::exchange::{AttemptRecord, ExchangeOutcome};

    /// Backend, status, error.
    type Attempt<'a> = (&'a str, Option<u16>, Option<&'static str>);
    /// Kind, status, refusal code, attempts, and the cause.
    type Case<'a> = (TroubleKind, Option<u16>, Option<&'static str>, &'a [Attempt<'a>], &'a str);

    fn request(kind: TroubleKind, status: Option<u16>, attempts: &[Attempt<'_>]) -> TroubledRequest {
        let attempts = attempts.iter().map(|(backend, status, error_code)| AttemptRecord {
            backend: BackendName::new(backend),
            status: *status,
            error_code: *error_code,
            start: Duration::ZERO,
            time_to_response_head: None,
            duration_ms: 1,
            retry_after_ms: None,
            verdict: None,
            span_id: None,
        });
        TroubledRequest {
            request_id: "019".into(),
            socket_id: None,
            foreign_ids: ForeignIds::default(),
            received_at: SystemTime::UNIX_EPOCH,
            client: None,
            client_ip: None,
            deployment: None,
            operation: None,
            status,
            outcome: ExchangeOutcome::Failed,
            kind,
            refusal_code: None,
            answering_backend: None,
            attempts: attempts.collect(),
            omitted_attempts: 0,
            duration: Duration::from_millis(40_210),
            time_to_first_body_byte: None,
            waited: Duration::ZERO,
            queued: Duration::ZERO,
            affinity: None,
        }
    }

    #[test]
    fn causes_are_plain_words_and_the_last_error_of_each_backend() {
        use TroubleKind::{Failed, Refused, Retried, Slow};
        let refused = ("a", None, Some("connect_refused"));
        let table: [Case<'_>; 13] = [
            (
                Refused,
                Some(401),
                Some("invalid_api_key"),
                &[],
                "no valid key, token or certificate, or those of two clients",
            ),
            (Refused, Some(418), Some("of_another_day"), &[], "of_another_day"),
            (
                Failed,
                Some(502),
                Some("upstream_failed"),
                &[("a", Some(503), None), ("b", Some(500), None), refused],
                "no backend answered: a: connection refused, b: 500",
            ),
            (
                Refused,
                Some(429),
                Some("all_throttled"),
                &[("a", Some(429), None)],
                "every backend that is left is throttled: a: 429",
            ),
            (Refused, Some(400), None, &[("a", Some(400), None)], "a: 400"),
            (Retried, Some(200), None, &[refused, ("b", Some(200), None)], "a: connection refused"),
            (Retried, Some(200), None, &[("a", Some(429), None), ("a", Some(200), None)], "a: 429"),
            (
                Failed,
                Some(200),
                None,
                &[("a", Some(200), Some("reset"))],
                "the response broke off: a: connection reset",
            ),
            (
                Failed,
                Some(200),
                None,
                &[("a", Some(200), None)],
                "the response ended with an error, or before its end",
            ),
            (
                Failed,
                Some(101),
                None,
                &[("a", Some(101), Some("reset"))],
                "the WebSocket broke off: a: connection reset",
            ),
            (Failed, Some(101), None, &[("a", Some(101), None)], "the WebSocket ended with an error"),
            (Failed, None, None, &[], "the client got no response"),
            (Slow, None, None, &[], "no first byte within 40.2 s"),
        ];
        for (kind, status, refusal_code, attempts, expected) in table {
            let request = TroubledRequest { refusal_code, ..request(kind, status, attempts) };
            assert_eq!(request.cause(), expected);
        }
    }

    #[test]
    fn a_slow_request_tells_what_it_waited_for() {
        let mut slow = request(TroubleKind::Slow, Some(200), &[("a", Some(200), None)]);
        slow.time_to_first_body_byte = Some(Duration::from_millis(31_250));
        assert_eq!(slow.cause(), "the first byte came after 31.2 s");
        slow.waited = Duration::from_millis(1_840);
        assert_eq!(slow.cause(), "waited 1.8 s for a backend");
        slow.queued = Duration::from_millis(2_500);
        assert_eq!(slow.cause(), "waited 2.5 s in the queue and 1.8 s for a backend");
        slow.waited = Duration::ZERO;
        assert_eq!(slow.cause(), "waited 2.5 s in the queue");
    }

    #[test]
    fn a_request_about_an_object_tells_of_its_resource() {
        use AskAnswer::{Accepted, Denied};
        use TroubleKind::{Refused, Retried, Slow};
        let (a, b) = (("a", Some(404), None), ("b", Some(404), None));
        let found = ("b", Some(200), None);
        // Kind, status, refusal code, how, answers, lag in seconds, attempts, and the cause.
        type AffinityCase<'a> = (
            (TroubleKind, Option<u16>, Option<&'static str>),
            (&'static str, &'a [(&'a str, AskAnswer)], Option<u64>),
            &'a [Attempt<'a>],
            &'a str,
        );
        let table: [AffinityCase<'_>; 9] = [
            (
                (Retried, Some(200), None),
                ("asked", &[("east", Denied), ("west", Accepted)], None),
                &[a, found],
                "what the request refers to was found on west; not on east",
            ),
            (
                (Refused, Some(404), None),
                ("asked", &[("east", Denied), ("west", Denied), ("east", Denied)], None),
                &[a, b, a],
                "no resource that was asked has what the request refers to: east, west",
            ),
            (
                (Retried, Some(200), None),
                ("asked", &[("east", Denied), ("west", Accepted)], None),
                &[a, ("b", Some(503), None), found],
                "what the request refers to was found on west; not on east; b: 503",
            ),
            (
                (Refused, Some(503), Some("home_unavailable")),
                ("asked", &[("east", Denied)], None),
                &[a],
                "east: not there; other resources, which may have what the request refers to, are unavailable: a: 404",
            ),
            (
                (Refused, Some(503), Some("home_unavailable")),
                ("learned", &[], None),
                &[],
                "west, which has what the request refers to, is unavailable",
            ),
            (
                (Refused, Some(429), Some("all_throttled")),
                ("learned", &[], None),
                &[("b", Some(429), None)],
                "west, which has what the request refers to, is throttled: b: 429",
            ),
            (
                (Retried, Some(200), None),
                ("learned", &[("west", Denied)], Some(7)),
                &[b, found],
                "west could read what it had made after 7.0 s",
            ),
            (
                (Refused, Some(404), None),
                ("learned", &[("west", Denied)], None),
                &[b],
                "west does not have any more what the request refers to",
            ),
            (
                (Slow, Some(200), None),
                ("learned", &[], None),
                &[found],
                "waited 2.5 s for west, which has what the request refers to",
            ),
        ];
        for ((kind, status, refusal_code), (how, asked, lag), attempts, expected) in table {
            let asked = asked
                .iter()
                .map(|(name, answer)| AskedResource { resource: ResourceName::new(name), answer: *answer });
            let affinity = AffinityRecord {
                by: Some("response"),
                how,
                resource: Some(ResourceName::new("west")),
                asked: asked.collect(),
                waited: if kind == Slow { Duration::from_millis(600) } else { Duration::ZERO },
                read_lag: lag.map(Duration::from_secs),
            };
            let request = TroubledRequest {
                refusal_code,
                affinity: Some(Box::new(affinity)),
                queued: if kind == Slow { Duration::from_millis(1900) } else { Duration::ZERO },
                ..request(kind, status, attempts)
            };
            assert_eq!(request.cause(), expected);
        }
        let mixed =
            TroubledRequest { refusal_code: Some("mixed_resources"), ..request(Refused, Some(400), &[]) };
        assert!(mixed.cause().starts_with("the request refers to objects of different resources"));
    }

    #[test]
    fn a_cause_is_cut() {
        let names: Vec<String> =
            (0..40).map(|number| format!("backend-{number}-{}", "x".repeat(40))).collect();
        let attempts: Vec<Attempt<'_>> = names.iter().map(|name| (name.as_str(), Some(503), None)).collect();
        assert_eq!(request(TroubleKind::Failed, Some(503), &attempts).cause().len(), MAX_CAUSE_BYTES);
    }
}
