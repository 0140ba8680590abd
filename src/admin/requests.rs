//! `GET /api/requests`: the last requests that were refused, failed, retried or slow, newest first.

use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::response::{self, FullResponse};
use super::wall_clock::format_rfc3339;
use crate::gateway::Gateway;
use crate::names::{BackendName, ClientName, DeploymentName};
use crate::record::exchange::AttemptRecord;
use crate::record::recent_trouble::{MAX_KEPT_REQUESTS, TroubledRequest};
use crate::refusal::Refusal;

/// How many requests are listed unless the query says otherwise.
const DEFAULT_LIMIT: usize = 100;
/// The longest value of a key in the query.
const MAX_VALUE_BYTES: usize = 128;

/// The response of `GET /api/requests`.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it; docs/operations.md has them")]
pub struct RequestList {
    pub requests: Vec<RequestEntry>,
    /// How many of the requests that are kept match the query.
    pub matching: usize,
    /// How many requests are kept.
    pub kept: usize,
    /// The most requests that are listed.
    pub limit: usize,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct RequestEntry {
    pub id: String,
    /// The id of the WebSocket that it came over; `null` for an HTTP request. Earlier versions do not send it.
    #[serde(default)]
    pub socket_id: Option<String>,
    /// The client's own id for it; `null` without a `record` block. Earlier versions do not send it, nor the next two.
    #[serde(default)]
    pub client_request_id: Option<String>,
    /// The id of its trace; `null` if it has none, or without the blocks `record` and `traces`.
    #[serde(default)]
    pub trace_id: Option<String>,
    /// Azure's id for it.
    #[serde(default)]
    pub apim_request_id: Option<String>,
    /// When the request head was complete. The list is in the order in which requests ended.
    pub time: String,
    /// `refused`, `failed`, `retried` or `slow`: the first that applies.
    pub trouble: String,
    /// `null` if the client is unknown, or if clients have no names.
    pub client: Option<String>,
    pub client_ip: Option<String>,
    pub deployment: Option<String>,
    pub operation: Option<String>,
    /// The status sent to the client; `null` if none was sent.
    pub status: Option<u16>,
    /// `answered`, `refused`, `failed` or `client_gone`, as in the record.
    pub outcome: String,
    /// The code of the balancer's own refusal.
    pub refusal: Option<String>,
    /// In plain words.
    pub cause: String,
    /// The backend whose response the client received.
    pub backend: Option<String>,
    pub attempts: Vec<AttemptEntry>,
    /// How many attempts before these are left out.
    pub attempts_left_out: usize,
    pub duration_ms: u64,
    pub first_byte_ms: Option<u64>,
    /// How long it waited between attempts.
    pub waited_ms: u64,
    /// How long it waited in the queue, which `waited_ms` does not contain. Earlier versions do not send it.
    #[serde(default)]
    pub queued_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct AttemptEntry {
    pub backend: String,
    pub status: Option<u16>,
    pub error: Option<String>,
    /// From the arrival of the request to the choice of the backend.
    pub start_ms: u64,
    /// From there to the head of the response; `null` if none came.
    pub first_byte_ms: Option<u64>,
    /// From the choice of the backend to the end of the attempt.
    pub ms: u64,
}

/// Which statuses a query selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StatusFilter {
    /// One status, such as 429.
    Exact(u16),
    /// A class, such as `5xx`.
    Class(u16),
}

impl StatusFilter {
    fn parse(text: &str) -> Option<Self> {
        if let Some(class) = text.strip_suffix("xx").or_else(|| text.strip_suffix("XX")) {
            return class.parse().ok().filter(|class| (1..=5).contains(class)).map(Self::Class);
        }
        let is_status = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|status| is_status && (100..600).contains(status)).map(Self::Exact)
    }

    fn matches(self, status: u16) -> bool {
        match self {
            Self::Exact(wanted) => status == wanted,
            Self::Class(class) => status / 100 == class,
        }
    }
}

/// Which requests are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RequestQuery {
    /// Empty: requests of unknown clients.
    client: Option<String>,
    status: Option<StatusFilter>,
    id: Option<String>,
    limit: usize,
}

impl RequestQuery {
    /// Parses what follows the `?`.
    ///
    /// # Errors
    /// What is wrong and what would be right. Values are not quoted.
    fn parse(text: &str) -> Result<Self, String> {
        let mut query = Self { client: None, status: None, id: None, limit: DEFAULT_LIMIT };
        let mut seen_keys = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8().ok();
            let value = value.filter(|value| value.len() <= MAX_VALUE_BYTES).ok_or_else(|| {
                format!("a value of the query must be UTF-8 text of at most {MAX_VALUE_BYTES} bytes")
            })?;
            if seen_keys.contains(&key) {
                return Err("a key of the query is there twice".to_owned());
            }
            seen_keys.push(key);
            match key {
                "client" => query.client = Some(value.into_owned()),
                "status" => {
                    let status = StatusFilter::parse(&value)
                        .ok_or("status must be a status such as 429, or a class such as 4xx or 5xx")?;
                    query.status = Some(status);
                }
                "id" if value.is_empty() => return Err("id must be the id of a request".to_owned()),
                "id" => query.id = Some(value.into_owned()),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MAX_KEPT_REQUESTS).contains(limit));
                    query.limit = limit
                        .ok_or_else(|| format!("limit must be a number from 1 to {MAX_KEPT_REQUESTS}"))?;
                }
                _ => return Err("the keys of the query are client, status, id and limit".to_owned()),
            }
        }
        Ok(query)
    }

    fn matches(&self, request: &TroubledRequest) -> bool {
        let name = || request.client.as_ref().map_or("", ClientName::as_str);
        self.client.as_ref().is_none_or(|client| client == name())
            && self.id.as_ref().is_none_or(|id| {
                // A client knows the id of its WebSocket alone.
                let ids = [Some(&*request.request_id), request.socket_id.as_deref()].into_iter().flatten();
                ids.chain(request.foreign_ids.iter()).any(|known| known.eq_ignore_ascii_case(id))
            })
            && self.status.is_none_or(|filter| request.status.is_some_and(|status| filter.matches(status)))
    }
}

/// The response to a request with this query.
pub(super) fn respond(gateway: &Gateway, query: &str) -> FullResponse {
    let query = match RequestQuery::parse(query) {
        Ok(query) => query,
        Err(problem) => return response::with_refusal(400, &Refusal::bad_request(problem)),
    };
    let trouble = &gateway.process_state.recorder.metrics().recent_trouble;
    let found = trouble.find(query.limit, |request| query.matches(request));
    let list = RequestList {
        requests: found.requests.iter().map(|request| request_entry(request)).collect(),
        matching: found.match_count,
        kept: found.kept_count,
        limit: query.limit,
    };
    response::with_json(200, serde_json::to_vec(&list).unwrap_or_default())
}

fn request_entry(request: &TroubledRequest) -> RequestEntry {
    let text = |id: &Option<Box<str>>| id.as_deref().map(str::to_owned);
    RequestEntry {
        id: request.request_id.to_string(),
        socket_id: request.socket_id.as_deref().map(str::to_owned),
        client_request_id: text(&request.foreign_ids.client_request_id),
        trace_id: text(&request.foreign_ids.trace_id),
        apim_request_id: text(&request.foreign_ids.apim_request_id),
        time: format_rfc3339(request.received_at),
        trouble: request.kind.as_str().to_owned(),
        client: request.client.as_ref().map(ClientName::to_string),
        client_ip: request.client_ip.map(|ip| ip.to_canonical().to_string()),
        deployment: request.deployment.as_ref().map(DeploymentName::to_string),
        operation: request.operation.map(str::to_owned),
        status: request.status,
        outcome: request.outcome.as_str().to_owned(),
        refusal: request.refusal_code.map(str::to_owned),
        cause: request.cause(),
        backend: request.answering_backend.as_ref().map(BackendName::to_string),
        attempts: request.attempts.iter().map(attempt_entry).collect(),
        attempts_left_out: request.omitted_attempts,
        duration_ms: to_millis(request.duration),
        first_byte_ms: request.time_to_first_body_byte.map(to_millis),
        waited_ms: to_millis(request.waited),
        queued_ms: to_millis(request.queued),
    }
}

fn to_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn attempt_entry(attempt: &AttemptRecord) -> AttemptEntry {
    AttemptEntry {
        backend: attempt.backend.to_string(),
        status: attempt.status,
        error: attempt.error_code.map(str::to_owned),
        start_ms: to_millis(attempt.start),
        first_byte_ms: attempt.time_to_response_head.map(to_millis),
        ms: attempt.duration_ms,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::record::exchange::ExchangeOutcome;
    use crate::record::recent_trouble::{ForeignIds, TroubleKind};

    #[test]
    fn each_id_of_a_request_finds_it_and_that_of_a_websocket_what_came_over_it() {
        let turn = TroubledRequest {
            request_id: "019a".into(),
            socket_id: Some("018b".into()),
            foreign_ids: ForeignIds {
                client_request_id: Some("mine".into()),
                trace_id: Some("4bf9".into()),
                apim_request_id: Some("0d1e".into()),
            },
            received_at: SystemTime::UNIX_EPOCH,
            client: None,
            client_ip: None,
            deployment: None,
            operation: Some("responses"),
            status: Some(429),
            outcome: ExchangeOutcome::Refused,
            kind: TroubleKind::Refused,
            refusal_code: None,
            answering_backend: None,
            attempts: Vec::new(),
            omitted_attempts: 0,
            duration: Duration::ZERO,
            time_to_first_body_byte: None,
            waited: Duration::ZERO,
            queued: Duration::ZERO,
            affinity: None,
        };
        let http = TroubledRequest {
            request_id: "018b".into(),
            socket_id: None,
            foreign_ids: ForeignIds::default(),
            ..turn.clone()
        };
        for (id, expected) in [
            ("019A", [true, false]),
            ("018b", [true, true]),
            ("01", [false, false]),
            ("Mine", [true, false]),
            ("4bf9", [true, false]),
            ("0d1e", [true, false]),
        ] {
            let query = RequestQuery::parse(&format!("id={id}")).unwrap();
            assert_eq!([query.matches(&turn), query.matches(&http)], expected, "{id}");
        }
        let entry = request_entry(&turn);
        assert_eq!(entry.socket_id.as_deref(), Some("018b"));
        let ids = [entry.client_request_id, entry.trace_id, entry.apim_request_id].map(Option::unwrap);
        assert_eq!(ids, ["mine", "4bf9", "0d1e"]);
    }

    #[test]
    fn queries_are_parsed_or_refused_with_what_would_be_right() {
        let all = RequestQuery { client: None, status: None, id: None, limit: DEFAULT_LIMIT };
        let status = |filter| RequestQuery { status: Some(filter), ..all.clone() };
        let accepted = [
            ("", all.clone()),
            ("&&", all.clone()),
            ("client=team%2Da", RequestQuery { client: Some("team-a".to_owned()), ..all.clone() }),
            ("client=", RequestQuery { client: Some(String::new()), ..all.clone() }),
            ("client", RequestQuery { client: Some(String::new()), ..all.clone() }),
            ("status=429", status(StatusFilter::Exact(429))),
            ("status=4xx", status(StatusFilter::Class(4))),
            ("status=5XX", status(StatusFilter::Class(5))),
            ("limit=500&id=019", RequestQuery { id: Some("019".to_owned()), limit: 500, ..all.clone() }),
        ];
        for (text, expected) in accepted {
            assert_eq!(RequestQuery::parse(text), Ok(expected), "{text}");
        }
        let (status, limit, keys) =
            ("status must be a status such as 429", "limit must be a number from 1 to 500", "the keys of");
        let long = format!("client={}", "x".repeat(MAX_VALUE_BYTES + 1));
        let refused = [
            ("status=", status),
            ("status=42", status),
            ("status=0429", status),
            ("status=+42", status),
            ("status=600", status),
            ("status=xx", status),
            ("status=9xx", status),
            ("status=4x", status),
            ("limit=0", limit),
            ("limit=501", limit),
            ("limit=-1", limit),
            ("limit=", limit),
            ("id=", "id must be the id of a request"),
            ("Client=a", keys),
            ("backend=a", keys),
            ("=", keys),
            ("client=a&client=b", "there twice"),
            ("client=%ff", "UTF-8"),
            (long.as_str(), "at most 128 bytes"),
        ];
        for (text, expected) in refused {
            let problem = RequestQuery::parse(text).expect_err(text);
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }
}
