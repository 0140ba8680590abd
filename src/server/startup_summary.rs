//! What a process that starts says of itself: a few lines for the log.

use std::collections::BTreeMap;

use crate::admin::config_status::ConfigStatus;
use crate::config::{
    AdminAddress, ClientsConfig, Config, LimitMode, ListenerConfig, QueueConfig, RequestClass, join_shortened,
};

/// Version, configuration, listeners, backends, deployments, clients, limits, `shed`, the queue and `shared` if
/// there are any, and sinks, one line for each or two of them.
pub(super) fn describe_start(config: &Config, status: &ConfigStatus) -> Vec<String> {
    let file = match &status.file {
        Some(file) => format!("configuration {} (SHA-256 {})", file.display(), status.short_sha256()),
        None => "a configuration of its own, without a file".to_owned(),
    };
    let mut lines = vec![
        format!("aoai-lb {} with {file}", env!("CARGO_PKG_VERSION")),
        format!("{}; {}", describe_listeners(config), describe_admin(config)),
        format!("{}; {}", describe_backends(config), describe_deployments(config)),
        describe_clients(config),
    ];
    lines.extend(describe_limits(config));
    lines.extend(describe_shed(config));
    lines.extend(describe_queue(config));
    lines.extend(describe_shared(config));
    lines.push(describe_sinks(config));
    lines
}

fn describe_listeners(config: &Config) -> String {
    let describe = |listener: &ListenerConfig| {
        let tls = match &listener.tls {
            None => "",
            Some(tls) if tls.client_ca_file.is_some() => " with TLS and client certificates",
            Some(_) => " with TLS",
        };
        let http2 = if listener.http2_enabled { ", HTTP/2" } else { "" };
        format!("{}{tls}{http2}", listener.address)
    };
    let listeners: Vec<String> = config.listeners.iter().map(describe).collect();
    format!("listeners: {}", join_shortened(&listeners))
}

fn describe_admin(config: &Config) -> String {
    let Some(admin) = &config.admin else { return "no admin API".to_owned() };
    let address = match &admin.address {
        AdminAddress::Tcp(address) => address.to_string(),
        AdminAddress::Unix(path) => format!("unix:{}", path.display()),
    };
    let token = if admin.token.is_some() { "with a token" } else { "without a token" };
    format!("admin API: {address} {token}")
}

fn describe_backends(config: &Config) -> String {
    let enabled = config.backends.iter().map(|backend| {
        let provisioned = if backend.provisioned.is_some() { ", provisioned" } else { "" };
        format!("{} (tier {}{provisioned})", backend.name, backend.tier.get())
    });
    let disabled = config.disabled_backends.iter().map(|backend| format!("{} (disabled)", backend.name));
    let backends: Vec<String> = enabled.chain(disabled).collect();
    format!("backends: {}", join_shortened(&backends))
}

/// The deployments of enabled backends, as clients name them.
fn describe_deployments(config: &Config) -> String {
    let listed = config.backends.iter().flat_map(|backend| backend.deployments.listed_entries());
    let mut by_name = BTreeMap::new();
    for (name, _) in listed {
        // In the spelling that comes first in the file.
        by_name.entry(name.to_lowercase()).or_insert_with(|| name.to_string());
    }
    let mut names: Vec<String> = by_name.into_values().collect();
    let count = names.len();
    if config.backends.iter().any(|backend| backend.deployments.passes_unlisted()) {
        names.push(if count == 0 { "all names".to_owned() } else { "all other names".to_owned() });
    }
    format!("deployments: {}", join_shortened(&names))
}

fn describe_clients(config: &Config) -> String {
    match &config.clients {
        ClientsConfig::Anyone => "clients: open, nobody needs a key".to_owned(),
        ClientsConfig::Listed(clients) => {
            let names: Vec<&str> = clients.iter().map(|client| client.name.as_str()).collect();
            format!("clients: {}", join_shortened(&names))
        }
    }
}

/// How many clients have limits; `None` if none has.
fn describe_limits(config: &Config) -> Option<String> {
    let has_default = config.limits.default.is_some();
    let who = match &config.clients {
        ClientsConfig::Anyone if has_default => "all clients together have limits".to_owned(),
        ClientsConfig::Anyone => return None,
        ClientsConfig::Listed(clients) => {
            let limited = clients.iter().filter(|client| has_default || client.limits.is_some()).count();
            if limited == 0 {
                return None;
            }
            format!("{limited} of {} clients have limits", clients.len())
        }
    };
    let mode = match config.limits.mode {
        LimitMode::Enforce => "enforced",
        LimitMode::Observe => "observed only, nothing is refused",
    };
    Some(format!("limits: {who}; {mode}"))
}

/// Which classes leave provisioned deployments; `None` if none does.
fn describe_shed(config: &Config) -> Option<String> {
    let thresholds = RequestClass::ALL.into_iter().filter_map(|class| {
        let threshold = config.shed.threshold(class)?;
        Some(format!("{} above {}%", class.as_str(), threshold.percent()))
    });
    let thresholds: Vec<String> = thresholds.collect();
    (!thresholds.is_empty()).then(|| {
        format!("shed: provisioned deployments are left for the next tier by {}", join_shortened(&thresholds))
    })
}

/// How long and how many requests wait; `None` if they do not.
fn describe_queue(config: &Config) -> Option<String> {
    let QueueConfig { max_wait, max_requests, max_body_bytes: _ } = config.queue.as_ref()?;
    let wait = humantime::format_duration(*max_wait);
    Some(format!("queue: at most {max_requests} requests wait for a free backend, each for at most {wait}"))
}

/// Through which server this instance acts as one with others; `None` if it is alone.
fn describe_shared(config: &Config) -> Option<String> {
    let redis = config.shared.as_ref()?;
    let tls = if redis.endpoint.uses_tls { " with TLS" } else { "" };
    Some(format!("shared: Redis at {}{tls}, prefix {}", redis.address(), redis.prefix))
}

fn describe_sinks(config: &Config) -> String {
    let Some(record) = &config.record else { return "records: none, there is no block `record`".to_owned() };
    let mut sinks = Vec::new();
    sinks.extend(record.jsonl.as_ref().map(|jsonl| jsonl.path.display().to_string()));
    sinks.extend(record.log_analytics.as_ref().map(|table| format!("Log Analytics, {}", table.stream_name)));
    format!("records: {}; spool: {}", sinks.join(" and "), record.spool.directory.display())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::SystemTime;

    use super::*;
    use crate::config::parse_and_check_yaml;

    fn lines(yaml: &str, file: Option<&str>) -> Vec<String> {
        let config = parse_and_check_yaml(yaml, Path::new("/etc/aoai-lb"), &|_| None).unwrap().config;
        let status = ConfigStatus {
            file: file.map(Into::into),
            activation_number: 1,
            sha256: "0123456789abcdef".repeat(4),
            loaded_at: SystemTime::UNIX_EPOCH,
            last_reload_error: None,
            config_keys_needing_upgrade: Vec::new(),
        };
        describe_start(&config, &status)
    }

    #[test]
    fn a_start_says_what_it_serves_in_a_few_lines() {
        let version = env!("CARGO_PKG_VERSION");
        let all = "
listeners: [ { address: '127.0.0.1:8080' }, { address: '[::1]:81' } ]
admin: { address: 'unix:/run/x/admin.sock', token: hush }
backends:
  - { name: ptu, endpoint: 'https://a.b', credential: { api_key: hush }, provisioned: {}, deployments: { o3: a, GPT-4o: b } }
  - { name: west, tier: 2, endpoint: 'https://c.d', credential: { api_key: hush }, deployments: { gpt-4o: b, '*': '*' } }
  - { name: old, endpoint: 'https://e.f', enabled: false, deployments: { gone: x } }
clients:
  - { name: team-a, keys: [ { sha256: '0000000000000000000000000000000000000000000000000000000000000001' } ] }
  - { name: team-b, keys: [ { sha256: '0000000000000000000000000000000000000000000000000000000000000002' } ] }
record:
  jsonl: { path: x.jsonl }
  log_analytics: { endpoint: 'https://e.ingest.monitor.azure.com', rule: dcr-00000000000000000000000000000000,
                   stream: Custom-AoaiExchanges, credential: { entra: { managed_identity: {} } } }
";
        assert_eq!(
            lines(all, Some("/etc/aoai-lb/aoai-lb.yaml")),
            [
                &format!(
                    "aoai-lb {version} with configuration /etc/aoai-lb/aoai-lb.yaml (SHA-256 0123456789ab)"
                ),
                "listeners: 127.0.0.1:8080 and [::1]:81; admin API: unix:/run/x/admin.sock with a token",
                "backends: ptu (tier 1, provisioned), west (tier 2) and old (disabled); deployments: GPT-4o, o3 and all \
                 other names",
                "clients: team-a and team-b",
                "records: /etc/aoai-lb/x.jsonl and Log Analytics, Custom-AoaiExchanges; spool: /etc/aoai-lb/x-spool",
            ]
        );
        let small = "listeners: [ { address: '127.0.0.1:8080' } ]\nclients: open\n\
                     backends: [ { name: a, endpoint: 'https://a.b', credential: { api_key: k } } ]";
        assert_eq!(
            lines(small, None),
            [
                &format!("aoai-lb {version} with a configuration of its own, without a file"),
                "listeners: 127.0.0.1:8080; no admin API",
                "backends: a (tier 1); deployments: all names",
                "clients: open, nobody needs a key",
                "records: none, there is no block `record`",
            ]
        );
        let many: String = (1..=60)
            .map(|i| format!("  - {{ name: b{i}, endpoint: 'https://a.b', credential: {{ api_key: k }} }}\n"))
            .collect();
        let many =
            format!("listeners: [ {{ address: '127.0.0.1:8080' }} ]\nclients: open\nbackends:\n{many}");
        assert!(lines(&many, None)[2].contains("b20 (tier 1) and 40 more; deployments"));
    }

    #[test]
    fn a_start_says_which_classes_leave_provisioned_deployments() {
        for (shed, expected) in [
            ("", None),
            (
                "shed: { batch: 80%, standard: 95% }",
                Some(
                    "shed: provisioned deployments are left for the next tier by standard above 95% and batch above 80%",
                ),
            ),
        ] {
            let yaml = format!(
                "listeners: [ {{ address: '127.0.0.1:8080' }} ]\nclients: open\n\
                 backends: [ {{ name: w, endpoint: 'https://a.b', credential: {{ api_key: k }} }} ]\n{shed}"
            );
            let lines = lines(&yaml, None);
            let line = lines.iter().find(|line| line.starts_with("shed: "));
            assert_eq!(line.map(String::as_str), expected, "{yaml}");
        }
    }

    #[test]
    fn a_start_says_how_long_requests_wait_in_the_queue() {
        for (queue, expected) in [
            ("", None),
            ("queue: {}", Some("queue: at most 1000 requests wait for a free backend, each for at most 5s")),
            (
                "queue: { wait: 1500ms, requests: 7 }",
                Some("queue: at most 7 requests wait for a free backend, each for at most 1s 500ms"),
            ),
        ] {
            let yaml = format!(
                "listeners: [ {{ address: '127.0.0.1:8080' }} ]\nclients: open\n{queue}\n\
                 backends: [ {{ name: w, endpoint: 'https://a.b', credential: {{ api_key: k }} }} ]"
            );
            let lines = lines(&yaml, None);
            let found = lines.iter().find(|line| line.starts_with("queue: "));
            assert_eq!(found.map(String::as_str), expected, "{queue}");
        }
    }

    #[test]
    fn a_start_says_which_server_instances_share() {
        for (shared, expected) in [
            ("", None),
            (
                "shared: { redis: { url: 'redis://[::1]:9' } }",
                Some("shared: Redis at [::1]:9, prefix aoai-lb"),
            ),
            (
                "shared: { redis: { url: 'rediss://a.b:6380', prefix: x, username: u, password: hush } }",
                Some("shared: Redis at a.b:6380 with TLS, prefix x"),
            ),
        ] {
            let yaml = format!(
                "listeners: [ {{ address: '127.0.0.1:8080' }} ]\nclients: open\n{shared}\n\
                 backends: [ {{ name: w, endpoint: 'https://a.b', credential: {{ api_key: k }} }} ]"
            );
            let lines = lines(&yaml, None);
            let found = lines.iter().find(|line| line.starts_with("shared: "));
            assert_eq!(found.map(String::as_str), expected, "{shared}");
        }
    }

    #[test]
    fn a_start_says_how_many_clients_have_limits() {
        let listed = |limits: &str| {
            let key = |digit| format!("keys: [ {{ sha256: {digit:064} }} ]");
            format!(
                "{limits}\nclients:\n  - {{ name: a, {}, limits: {{ in_flight: 2 }} }}\n  - {{ name: b, {} }}",
                key(1),
                key(2)
            )
        };
        let default = "limits: { mode: observe, default: { in_flight: 1 } }";
        for (yaml, expected) in [
            (listed(""), Some("limits: 1 of 2 clients have limits; enforced")),
            (listed(default), Some("limits: 2 of 2 clients have limits; observed only, nothing is refused")),
            (
                format!("{default}\nclients: open"),
                Some("limits: all clients together have limits; observed only, nothing is refused"),
            ),
            (listed("").replace(", limits: { in_flight: 2 }", ""), None),
            ("limits: { mode: observe }\nclients: open".to_owned(), None),
        ] {
            let yaml = format!(
                "listeners: [ {{ address: '127.0.0.1:8080' }} ]\n\
                 backends: [ {{ name: w, endpoint: 'https://a.b', credential: {{ api_key: k }} }} ]\n{yaml}"
            );
            let lines = lines(&yaml, None);
            assert_eq!(
                lines.iter().find(|line| line.starts_with("limits: ")).map(String::as_str),
                expected,
                "{yaml}"
            );
        }
    }
}
