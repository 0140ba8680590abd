//! Whether the request would wait in the queue, and for how long.

use std::time::Instant;

use crate::config::RetryConfig;
use crate::gateway::{AdmittedRequest, Gateway};
use crate::routing::retry_plan::ResourceSearch;

/// What becomes of the request while its backends are throttled; nothing if requests do not wait.
pub(super) fn queue_lines(
    gateway: &Gateway,
    retry: &RetryConfig,
    admitted: &AdmittedRequest,
    now: Instant,
) -> Vec<String> {
    if gateway.queue_config().is_none() {
        return Vec::new();
    }
    let not_queued = |reason: &str| vec![format!("it does not wait in the queue {reason}")];
    let has_home = match admitted.search() {
        Some(ResourceSearch::Ask { .. }) => {
            return not_queued("while resources are asked for what it refers to");
        }
        Some(ResourceSearch::Home { .. }) => true,
        None => false,
    };
    let limits = gateway.retry_limits_for_request(admitted, now, now, None);
    let Some(wait) = limits.max_queue_wait else {
        return not_queued("for the resource that it needs (affinity.unavailable: refuse)");
    };
    if admitted.queue_line.is_none() {
        return not_queued(
            "until a backend has answered for this deployment, which the configuration does not list",
        );
    }
    let deadline = retry.retry_start_time_limit;
    let key = if has_home || wait > deadline { "retry.deadline" } else { "queue.wait" };
    let wait = humantime::format_duration(wait.min(deadline));
    vec![
        format!(
            "if all of them are throttled, it waits for at most {wait} ({key}), in the order of the queue"
        ),
        "then, or if the queue is full: 429 all_throttled; without a queue it would get 429 at once"
            .to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::super::{ExplainedRequest, explain_request};
    use crate::cli::runtime::start_background_runtime;
    use crate::config::parse_and_check_yaml;
    use crate::routing::homes::{HashKey, Homes};
    use crate::state::homes_log::{HomeEntry, HomeRecord, encode, header};

    /// The response that is known to be on the resource of backend `a`.
    const KNOWN: &str = "/openai/v1/responses/resp_a";

    /// The lines of an explanation that are about the queue.
    fn explained(yaml: &str, path: &str, model: Option<&str>) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let homes = Homes::with_hash_key(1 << 20, HashKey::from_bytes([7; 16]));
        let mut log = header([7; 16]).to_vec();
        let entry = HomeEntry {
            key: homes.key_of(b"resp_a").hash(),
            resource: homes.resource_tag("a.b:443").hash(),
            maker: 0,
            made_at: 0,
            used_at: u32::MAX / 2,
            lags: false,
        };
        encode(HomeRecord::Stored(entry), &mut log);
        std::fs::write(directory.path().join("homes.log"), log).unwrap();
        let yaml = format!(
            "listeners: [ {{ address: '127.0.0.1:8080' }} ]\nclients: open\nserver: {{ state_directory: . }}\n{yaml}"
        );
        let config = parse_and_check_yaml(&yaml, directory.path(), &|_| None).unwrap().config;
        let request = ExplainedRequest {
            method: if model.is_some() { Method::POST } else { Method::GET },
            path_and_query: path.to_owned(),
            model: model.map(str::to_owned),
            referenced_id: None,
            cache_key: None,
            client_name: None,
            remaining: None,
            shows_responses: false,
        };
        let runtime = start_background_runtime().ok().unwrap();
        let text = explain_request(&config, &request, runtime.handle()).unwrap();
        let lines = text.lines().skip_while(|line| !line.starts_with("queue "));
        let lines = lines.take_while(|line| !line.starts_with("limits "));
        lines.map(|line| line.get(12..).unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn it_tells_how_long_a_request_would_wait_and_when_it_would_not() {
        let backends = |deployments: &str| {
            let backend = |name| {
                format!(
                    "  - {{ name: {name}, endpoint: 'https://{name}.b', credential: {{ api_key: k }}, \
                     deployments: {{ {deployments} }} }}\n"
                )
            };
            format!("backends:\n{}{}", backend("a"), backend("b"))
        };
        let (listed, any) = (backends("gpt-4o: x"), backends("'*': '*'"));
        let waits = |time: &str| {
            vec![
                format!(
                    "if all of them are throttled, it waits for at most {time}, in the order of the queue"
                ),
                "then, or if the queue is full: 429 all_throttled; without a queue it would get 429 at once"
                    .to_owned(),
            ]
        };
        let not = |reason: &str| vec![format!("it does not wait in the queue {reason}")];
        let (responses, unknown, chat) =
            ("/openai/v1/responses", "/openai/v1/responses/resp_b", Some("gpt-4o"));
        for (backends, settings, path, model, expected) in [
            (&listed, "", responses, chat, vec![]),
            (&listed, "queue: {}", responses, chat, waits("5s (queue.wait)")),
            (&listed, "queue: { wait: 3m }", responses, chat, waits("2m (retry.deadline)")),
            (&listed, "queue: {}", KNOWN, None, waits("2m (retry.deadline)")),
            (&listed, "queue: {}", unknown, None, not("while resources are asked for what it refers to")),
            (
                &listed,
                "queue: {}\naffinity: { unavailable: refuse }",
                KNOWN,
                None,
                not("for the resource that it needs (affinity.unavailable: refuse)"),
            ),
            (
                &any,
                "queue: {}",
                responses,
                chat,
                not(
                    "until a backend has answered for this deployment, which the configuration does not list",
                ),
            ),
        ] {
            let yaml = format!("{backends}{settings}\n");
            assert_eq!(explained(&yaml, path, model), expected, "{yaml}{path}");
        }
    }
}
