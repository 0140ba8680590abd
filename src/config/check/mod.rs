//! Reads and checks a whole configuration: its blocks with their keys and defaults, and what must agree
//! between blocks. Each module has one or a few blocks.
//!
//! All blocks are read even if some have errors, so that every problem is reported at once.

mod admin;
mod affinity;
mod backends;
mod balance;
mod clients;
mod credentials;
mod disabled_backends;
mod limits;
mod listeners;
mod partial_backends;
mod prices;
mod provisioned;
mod queue;
mod record;
mod requests;
mod retry;
mod server;
mod shared;
mod shared_redis;
mod shed;
mod timeouts;
mod traces;
mod websocket;

use std::path::PathBuf;

pub(crate) use self::requests::reserved_header_reason;
pub(crate) use self::shared::is_api_version;

use super::schema::{AdminConfig, Config};
use super::yaml::YamlNode;

const TOP_LEVEL_KEYS: [&str; 23] = [
    "listeners",
    "backends",
    "clients",
    "entra",
    "limits",
    "queue",
    "shed",
    "requests",
    "affinity",
    "balance",
    "pools",
    "retry",
    "breaker",
    "cooldown",
    "timeouts",
    "websocket",
    "prices",
    "record",
    "traces",
    "key_vault",
    "shared",
    "admin",
    "server",
];

/// Reads the whole document; `None` if an error was reported.
pub(super) fn read_config(root: &YamlNode<'_, '_>) -> Option<Config> {
    let root = root.read_mapping(&TOP_LEVEL_KEYS)?;
    // First, since other blocks refer to them.
    let listeners = listeners::read_listeners(&root);
    let backends = backends::read_backends(&root);
    let clients = clients::read_clients(&root, backends.as_ref());
    let client_tokens = root.read_optional("entra", clients::read_client_tokens);
    let limits = limits::read_limits(&root, backends.as_ref());
    let shed = shed::read_shed(&root, backends.as_ref());
    let requests = requests::read_requests(&root, backends.as_ref());
    let affinity = affinity::read_affinity(&root, backends.as_ref());
    let balance_policy = balance::read_balance_policy(&root);
    let pool_policies = balance::read_pool_policies(&root, backends.as_ref());
    let retry = retry::read_retry(&root);
    let queue = queue::read_queue(&root, requests.as_ref(), retry.as_ref());
    let breaker = retry::read_breaker(&root);
    let cooldown = retry::read_cooldown(&root);
    let timeouts = timeouts::read_timeouts(&root);
    let websocket = websocket::read_websocket(&root, requests.as_ref());
    let prices = root.read_optional("prices", |node| prices::read_prices(node, backends.as_ref()));
    let record = root.read_optional("record", record::read_record);
    let traces = traces::read_traces(&root);
    let key_vault = credentials::read_key_vault(&root);
    let shared = shared_redis::read_shared(&root);
    let admin =
        root.read_optional("admin", |node| admin::read_admin(node, listeners.as_deref().unwrap_or_default()));
    let server = server::read_server(&root);

    let clients = clients?;
    if record.as_ref().is_some_and(Option::is_none) {
        clients::warn_if_client_record_is_unused(&root, &clients);
    }
    if let Some(limits) = &limits {
        clients::warn_if_limits_are_unused(&root, &clients, limits);
    }
    if let Some(listeners) = &listeners {
        clients::check_client_authentication(&root, &clients, root.get("entra").is_some(), listeners);
        clients::warn_if_open_beyond_loopback(&root, &clients, listeners);
    }
    let (backends, disabled_backends) = backends?.into_backends()?;
    Some(Config {
        listeners: listeners?,
        backends,
        disabled_backends,
        clients,
        client_tokens: client_tokens?,
        limits: limits?,
        queue: queue?,
        shed: shed?,
        requests: requests?,
        affinity: affinity?,
        balance_policy: balance_policy?,
        pool_policies: pool_policies?,
        retry: retry?,
        breaker: breaker?,
        cooldown: cooldown?,
        timeouts: timeouts?,
        websocket: websocket?,
        prices: prices?,
        record: record?,
        traces: traces?,
        key_vault: key_vault?,
        shared: shared?,
        admin: admin?,
        server: server?,
    })
}

/// Reads only `server.upgrade_socket`; the values of other keys may be invalid.
pub(super) fn read_upgrade_socket_path(root: &YamlNode<'_, '_>) -> Option<PathBuf> {
    let root = root.read_mapping(&TOP_LEVEL_KEYS)?;
    server::read_upgrade_socket_path(&root.read_block("server", &server::SERVER_KEYS)?)
}

/// Reads only `admin`; the values of other keys may be invalid. The inner `None` means that there is no such block.
pub(super) fn read_admin_alone(root: &YamlNode<'_, '_>, needs_token: bool) -> Option<Option<AdminConfig>> {
    let root = root.read_mapping(&TOP_LEVEL_KEYS)?;
    root.read_optional("admin", |node| admin::read_admin_for_client(node, needs_token))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::server::default_worker_threads;
    use crate::config::StreamUsageMode;
    use crate::config::schema::{CooldownConfig, RecordedContent, ServerConfig, TimeoutsConfig};
    use crate::config::testing::{assert_errors, errors_in, parse_valid};
    use crate::config::values::StatusSet;

    #[test]
    fn an_empty_file_gets_the_documented_defaults() {
        let config = parse_valid("").config;
        let seconds = Duration::from_secs;
        let retry = &config.retry;
        assert_eq!(
            (retry.max_retries, retry.retry_start_time_limit, retry.max_cooldown_wait),
            (12, seconds(120), Duration::from_millis(250))
        );
        assert_eq!(retry.retryable_statuses, StatusSet::default_retryable());
        assert_eq!(
            config.cooldown,
            CooldownConfig { default_duration: seconds(10), max_duration: seconds(60) }
        );
        let timeouts = TimeoutsConfig {
            connect: seconds(5),
            first_byte: seconds(600),
            first_byte_of_stream: seconds(60),
            response_idle: seconds(300),
            request_head: seconds(15),
            request_body: seconds(60),
            pooled_connection_idle: seconds(90),
        };
        assert_eq!(config.timeouts, timeouts);
        assert!(config.record.is_none() && config.admin.is_none());
        let server = ServerConfig {
            worker_threads: default_worker_threads(),
            grace_period: seconds(600),
            drain_delay: seconds(10),
            tcp_keepalive_idle: seconds(60),
            upgrade_socket_path: "/run/aoai-lb/upgrade.sock".into(),
            state_directory: Some("/var/lib/aoai-lb".into()),
        };
        assert_eq!(config.server, server);
        let record = parse_valid("record: { jsonl: { path: x.jsonl } }").config.record.unwrap();
        assert_eq!(
            (record.recorded_content, record.max_content_bytes, record.stream_usage_mode),
            (RecordedContent::Full, 65_536, StreamUsageMode::AskUpstream)
        );
    }

    #[test]
    fn written_values_replace_the_defaults() {
        let yaml = "retry: { attempts: 0, statuses: [400-499, '503'], deadline: 0s, wait: 1s }\nserver: { threads: '${FOUR}' }\n\
                    record: { content: none, content_limit: 1MB, usage: observe, jsonl: { path: x } }";
        let config = parse_valid(yaml).config;
        assert_eq!(
            (config.retry.max_retries, config.retry.retry_start_time_limit, config.server.worker_threads),
            (0, Duration::ZERO, 4)
        );
        let statuses =
            [399, 400, 499, 500, 503, 504].map(|status| config.retry.retryable_statuses.contains(status));
        assert_eq!(statuses, [false, true, true, false, true, false]);
        let record = config.record.unwrap();
        assert_eq!(
            (record.recorded_content, record.max_content_bytes, record.stream_usage_mode),
            (RecordedContent::None, 1_000_000, StreamUsageMode::ObserveOnly)
        );
        let config = parse_valid("retry: { statuses: [] }").config;
        assert_eq!(config.retry.retryable_statuses, StatusSet::EMPTY);
    }

    #[test]
    fn invalid_values_are_reported_with_their_key_path() {
        const STATUS: &str = "must be a status such as 429 or a range such as 500-599, within 400 to 599";
        const DURATION: &str = "be a duration with its unit, such as 250ms, 5s, 10m or 1h";
        assert_errors(&[
            (
                "retry: { attempts: 101, statuses: [200, 500-600, x], deadline: 5, wait: soon }",
                &[
                    "retry.attempts: must be a whole number from 0 to 100",
                    &format!("retry.statuses[0]: {STATUS}"),
                    &format!("retry.statuses[1]: {STATUS}"),
                    &format!("retry.statuses[2]: {STATUS}"),
                    "retry.deadline: has no unit; give it one, such as 10s or 10ms",
                    &format!("retry.wait: must {DURATION}"),
                ],
            ),
            (
                "retry: { wait: '0', deadline: '${FOUR}' }",
                &[
                    "retry.deadline: has no unit; give it one, such as 10s or 10ms (the value is from ${FOUR})",
                    "retry.wait: has no unit; give it one, such as 10s or 10ms",
                ],
            ),
            (
                "retry: { budget: 20, hold: { time: 1 } }\nbreaker: { ratio: 120%, open: 10m }",
                &[
                    "retry.budget: has no unit; give it one, such as 10% or 10 %",
                    "retry.hold.time: has no unit; give it one, such as 10s or 10ms",
                    "breaker.ratio: must be a whole number of percent from 0% to 100%",
                    "breaker.maximum: must be at least breaker.open",
                ],
            ),
            (
                "retry: 12",
                &[
                    "retry: must be a mapping with attempts, statuses, deadline, outage, wait, budget or hold, not a number",
                ],
            ),
            ("retry:", &["retry: is empty; remove it or give it a value"]),
            ("retry: { attempts: 1.5 }", &["retry.attempts: must be a whole number from 0 to 100"]),
            ("braker: {}", &["braker: unknown key; did you mean `breaker`?"]),
            ("timeout: {}", &["timeout: unknown key; did you mean `timeouts`?"]),
            ("cooldown: { default: 2m }", &["cooldown.maximum: must be at least cooldown.default"]),
            ("cooldown: { default: 2x, maximum: 1s }", &[&format!("cooldown.default: must {DURATION}")]),
            (
                "timeouts: { connect: 0s, idle: 2 days, first_bytes: 1s }",
                &[
                    "timeouts.first_bytes: unknown key; did you mean `first_byte`?",
                    "timeouts.connect: must be longer than 0s",
                    "timeouts.idle: must be at most 24h (m is minutes, M months)",
                ],
            ),
            ("record: {}", &["record: must have jsonl: { path: FILE }, or log_analytics, or both"]),
            ("record: { jsonl: {} }", &["record.jsonl.path: is missing; write the file that records go to"]),
            (
                "server: { threads: 0, tcp_keepalive: 100ms }",
                &[
                    "server.threads: must be a whole number from 1 to 256",
                    "server.tcp_keepalive: must be whole seconds, 1s to 9h",
                ],
            ),
        ]);
    }

    #[test]
    fn api_versions_must_be_dates() {
        for (version, is_good) in [
            ("2024-10-21", true),
            ("2025-03-01-preview", true),
            ("2024-10-21-preview-preview", false),
            ("2024-00-21", false),
            ("2024-1-1", false),
            ("20241021", false),
            ("preview", false),
        ] {
            assert_eq!(
                errors_in(&format!("requests: {{ api_version: '{version}' }}")).is_empty(),
                is_good,
                "{version}"
            );
        }
    }
}
