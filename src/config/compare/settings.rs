//! Compares the blocks that are no lists.

use crate::config::schema::{
    AdminConfig, AffinityConfig, BreakerConfig, ClientsConfig, Config, CooldownConfig, KeyVaultConfig,
    LimitsConfig, QueueConfig, RecordConfig, RedisConfig, RequestsConfig, RetryConfig, ServerConfig,
    ShedConfig, TimeoutsConfig, TracesConfig, WebSocketConfig,
};
use crate::money::PriceList;

/// The changed keys of the blocks that are no lists.
pub(super) fn changed_settings(before: &Config, after: &Config) -> Vec<String> {
    let mut settings = Vec::new();
    let mut add = |block: &str, keys: Vec<&'static str>| {
        settings.extend(keys.into_iter().map(|key| match (block, key) {
            ("", key) => key.to_owned(),
            (block, "") => block.to_owned(),
            (block, key) => format!("{block}.{key}"),
        }));
    };
    let Config {
        listeners: _,
        backends: _,
        disabled_backends: _,
        clients,
        client_tokens,
        limits,
        queue,
        shed,
        requests,
        affinity,
        balance_policy,
        pool_policies,
        retry,
        cooldown,
        breaker,
        timeouts,
        websocket,
        prices,
        record,
        traces,
        key_vault,
        shared,
        admin,
        server,
    } = before;
    match (clients, &after.clients) {
        (ClientsConfig::Anyone, ClientsConfig::Listed(_)) => add("", vec!["clients (no longer open)"]),
        (ClientsConfig::Listed(_), ClientsConfig::Anyone) => add("", vec!["clients (open now)"]),
        _ => {}
    }
    if *client_tokens != after.client_tokens {
        add("", vec!["entra"]);
    }
    let limits = changed_keys!(LimitsConfig, limits, after.limits, {
        mode => "mode",
        default => "default",
        cached_weight_permille => "cached_weight",
    });
    add("limits", limits);
    match (queue, &after.queue) {
        (Some(queue), Some(after)) => {
            let queue = changed_keys!(QueueConfig, queue, after, {
                max_wait => "wait",
                max_requests => "requests",
                max_body_bytes => "body_memory",
            });
            add("queue", queue);
        }
        (before, after) if before != after => add("", vec!["queue"]),
        _ => {}
    }
    let shed = changed_keys!(ShedConfig, shed, after.shed, {
        interactive => "interactive",
        standard => "standard",
        batch => "batch",
    });
    add("shed", shed);
    add("requests", changed_requests_keys(before, after, requests));
    let affinity = changed_keys!(AffinityConfig, affinity, after.affinity, {
        ask_limit => "ask",
        memory_bytes => "memory",
        read_lag => "read_lag",
        unavailable_policy => "unavailable",
        owner_policy => "owner",
    });
    add("affinity", affinity);
    if *balance_policy != after.balance_policy {
        add("", vec!["balance"]);
    }
    if *pool_policies != after.pool_policies {
        add("", vec!["pools"]);
    }
    add("retry", changed_retry_keys(retry, &after.retry));
    let cooldown = changed_keys!(CooldownConfig, cooldown, after.cooldown, {
        default_duration => "default",
        max_duration => "maximum",
    });
    add("cooldown", cooldown);
    let breaker = changed_keys!(BreakerConfig, breaker, after.breaker, {
        min_failures => "failures",
        min_failure_percentage => "ratio",
        window => "window",
        open_duration => "open",
        max_open_duration => "maximum",
    });
    add("breaker", breaker);
    add("timeouts", changed_timeout_keys(timeouts, &after.timeouts));
    let websocket = changed_keys!(WebSocketConfig, websocket, after.websocket, {
        first_frame_timeout => "first_frame",
        max_frame_bytes => "max_frame",
        rotate_after => "rotate",
    });
    add("websocket", websocket);
    add("prices", changed_block_keys(prices.as_ref(), after.prices.as_ref(), changed_price_keys));
    add("record", changed_block_keys(record.as_ref(), after.record.as_ref(), changed_record_keys));
    let changed_traces_keys = |before: &TracesConfig, after: &TracesConfig| {
        let mut keys = changed_keys!(TracesConfig, before, after, {
            endpoint => "endpoint",
            path => "endpoint",
            sample => "sample",
            headers => "headers",
            forwards_context => "forward",
            ca_file => "tls",
        });
        keys.dedup();
        keys
    };
    add("traces", changed_block_keys(traces.as_ref(), after.traces.as_ref(), changed_traces_keys));
    let mut key_vault = changed_keys!(KeyVaultConfig, key_vault, after.key_vault, {
        identity => "credential",
        token_scope => "credential",
        refresh_interval => "refresh",
    });
    key_vault.dedup();
    add("key_vault", key_vault);
    let changed_redis_keys = |before: &RedisConfig, after: &RedisConfig| {
        changed_keys!(RedisConfig, before, after, {
            endpoint => "redis.url",
            username => "redis.username",
            credential => "redis.password",
            ca_file => "redis.ca",
            prefix => "redis.prefix",
        })
    };
    add("shared", changed_block_keys(shared.as_ref(), after.shared.as_ref(), changed_redis_keys));
    let changed_admin_keys = |before: &AdminConfig, after: &AdminConfig| {
        changed_keys!(AdminConfig, before, after, {
            address => "address",
            token => "token",
            tls => "tls",
        })
    };
    add("admin", changed_block_keys(admin.as_ref(), after.admin.as_ref(), changed_admin_keys));
    let server = changed_keys!(ServerConfig, server, after.server, {
        worker_threads => "threads",
        grace_period => "grace_period",
        drain_delay => "drain_delay",
        tcp_keepalive_idle => "tcp_keepalive",
        upgrade_socket_path => "upgrade_socket",
        state_directory => "state_directory",
    });
    add("server", server);
    settings
}

/// The changed keys of a block that may be absent; the block itself if it came or went.
fn changed_block_keys<T>(
    before: Option<&T>,
    after: Option<&T>,
    changed_keys: impl Fn(&T, &T) -> Vec<&'static str>,
) -> Vec<&'static str> {
    match (before, after) {
        (None, None) => Vec::new(),
        (Some(before), Some(after)) => changed_keys(before, after),
        _ => vec![""],
    }
}

fn changed_requests_keys(before: &Config, after: &Config, requests: &RequestsConfig) -> Vec<&'static str> {
    let mut keys = changed_keys!(RequestsConfig, requests, after.requests, {
        allow_rules => "allow",
        default_api_version => "api_version",
        models_source => "models",
        default_backend_index => "index of home",
        max_buffered_body_bytes => "max_body",
        max_streamed_body_bytes => "max_streamed_body",
        max_total_buffered_bytes => "body_memory",
        set_headers => "set_headers",
        remove_headers => "remove_headers",
    });
    // The index also changes when backends come and go before it.
    keys.retain(|key| *key != "index of home");
    let home = |config: &Config| {
        let index = config.requests.default_backend_index?;
        Some(config.backends.get(index)?.name.clone())
    };
    if home(before) != home(after) {
        keys.push("home");
    }
    keys
}

fn changed_price_keys(before: &PriceList, after: &PriceList) -> Vec<&'static str> {
    let keys = [(before.currency() != after.currency(), "currency"), (before.rows() != after.rows(), "rows")];
    keys.into_iter().filter_map(|(is_changed, key)| is_changed.then_some(key)).collect()
}

fn changed_retry_keys(before: &RetryConfig, after: &RetryConfig) -> Vec<&'static str> {
    changed_keys!(RetryConfig, before, after, {
        max_retries => "attempts",
        retryable_statuses => "statuses",
        retry_start_time_limit => "deadline",
        max_outage => "outage",
        max_cooldown_wait => "wait",
        budget_percentage => "budget",
        stream_hold => "hold",
    })
}

fn changed_timeout_keys(before: &TimeoutsConfig, after: &TimeoutsConfig) -> Vec<&'static str> {
    changed_keys!(TimeoutsConfig, before, after, {
        connect => "connect",
        first_byte => "first_byte",
        first_byte_of_stream => "first_byte_stream",
        response_idle => "idle",
        request_head => "request_header",
        request_body => "request_body",
        pooled_connection_idle => "pool_idle",
    })
}

fn changed_record_keys(before: &RecordConfig, after: &RecordConfig) -> Vec<&'static str> {
    let RecordConfig {
        recorded_content,
        max_content_bytes,
        stream_usage_mode,
        redaction_patterns,
        jsonl,
        log_analytics,
        spool,
    } = before;
    let is_same_pattern = |a: &regex::Regex, b: &regex::Regex| a.as_str() == b.as_str();
    let redacts_the_same = redaction_patterns.len() == after.redaction_patterns.len()
        && redaction_patterns.iter().zip(&after.redaction_patterns).all(|(a, b)| is_same_pattern(a, b));
    [
        (*recorded_content != after.recorded_content, "content"),
        (*max_content_bytes != after.max_content_bytes, "content_limit"),
        (*stream_usage_mode != after.stream_usage_mode, "usage"),
        (!redacts_the_same, "redact"),
        (*jsonl != after.jsonl, "jsonl"),
        (*log_analytics != after.log_analytics, "log_analytics"),
        (*spool != after.spool, "spool"),
    ]
    .into_iter()
    .filter_map(|(is_changed, key)| is_changed.then_some(key))
    .collect()
}
