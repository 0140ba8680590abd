//! The settings that are fixed at startup: listeners, the admin API's address, the sinks of records and
//! Pingora's own settings. A reload keeps them and reports the keys that need an upgrade.

use crate::config::{self, Config};

/// Sets the sinks of records, and traces, to those of the startup configuration.
pub(super) fn restore_startup_sinks(startup: &Config, reloaded: &mut Config) {
    reloaded.traces.clone_from(&startup.traces);
    reloaded.record = match (&startup.record, reloaded.record.take()) {
        (Some(startup), Some(reloaded)) => Some(config::RecordConfig {
            jsonl: startup.jsonl.clone(),
            log_analytics: startup.log_analytics.clone(),
            spool: startup.spool.clone(),
            ..reloaded
        }),
        (startup, _) => startup.clone(),
    };
}

/// The keys whose values differ from those of the startup configuration and need an upgrade.
pub(super) fn config_keys_needing_upgrade(startup: &Config, reloaded: &Config) -> Vec<String> {
    let mut keys = Vec::new();
    let mut add_if = |has_changed: bool, key: String| keys.extend(has_changed.then_some(key));
    for (index, listener) in reloaded.listeners.iter().enumerate() {
        match startup.listeners.iter().find(|open| open.address == listener.address) {
            Some(open) => {
                add_if(open.tls != listener.tls, format!("listeners[{index}].tls"));
                add_if(open.http2_enabled != listener.http2_enabled, format!("listeners[{index}].http2"));
            }
            None => add_if(true, format!("listeners[{index}].address")),
        }
    }
    for open in &startup.listeners {
        let is_removed = reloaded.listeners.iter().all(|listener| listener.address != open.address);
        add_if(is_removed, format!("listeners ({} is gone)", open.address));
    }
    let admin =
        |config: &Config| config.admin.as_ref().map(|admin| (admin.address.clone(), admin.tls.clone()));
    add_if(admin(startup) != admin(reloaded), "admin".to_owned());
    let (before, after) = (&startup.server, &reloaded.server);
    for (has_changed, key) in [
        (before.worker_threads != after.worker_threads, "threads"),
        (before.grace_period != after.grace_period, "grace_period"),
        (before.drain_delay != after.drain_delay, "drain_delay"),
        (before.tcp_keepalive_idle != after.tcp_keepalive_idle, "tcp_keepalive"),
        (before.upgrade_socket_path != after.upgrade_socket_path, "upgrade_socket"),
        (before.state_directory != after.state_directory, "state_directory"),
    ] {
        add_if(has_changed, format!("server.{key}"));
    }
    add_if(startup.affinity.memory_bytes != reloaded.affinity.memory_bytes, "affinity.memory".to_owned());
    add_if(startup.shared != reloaded.shared, "shared".to_owned());
    add_if(startup.traces != reloaded.traces, "traces".to_owned());
    match (&startup.record, &reloaded.record) {
        (Some(before), Some(after)) => {
            add_if(before.jsonl != after.jsonl, "record.jsonl".to_owned());
            add_if(before.log_analytics != after.log_analytics, "record.log_analytics".to_owned());
            add_if(before.spool != after.spool, "record.spool".to_owned());
        }
        (before, after) => add_if(before.is_some() != after.is_some(), "record".to_owned()),
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config_from(yaml: &str, directory: &Path) -> Config {
        let text = format!(
            "backends: [ {{ name: a, endpoint: 'http://127.0.0.1:1', credential: {{ api_key: k }} }} ]\n\
             clients: open\n{yaml}"
        );
        config::parse_and_check_yaml(&text, directory, &|_| None).unwrap().config
    }

    #[test]
    fn changed_keys_that_need_an_upgrade_are_listed() {
        // The file of records must not be a directory of this machine.
        let directory = tempfile::tempdir().unwrap();
        let startup = config_from(
            "listeners: [ { address: '127.0.0.1:80' }, { address: '127.0.0.1:81' } ]\n\
             admin: { address: '127.0.0.1:9' }\nrecord: { jsonl: { path: x } }",
            directory.path(),
        );
        let table: [(&str, &[&str]); 3] = [
            (
                "listeners: [ { address: '127.0.0.1:81', trusted_proxies: [10.0.0.1], connections_per_client: 1 },\
                 { address: '127.0.0.1:80' } ]\nadmin: { address: '127.0.0.1:9', token: new }\n\
                 record: { jsonl: { path: x }, content: none, redact: [a] }\nbalance: round_robin",
                &[],
            ),
            (
                "listeners: [ { address: '127.0.0.1:80' }, { address: '127.0.0.1:82' } ]\n\
                 record: { jsonl: { path: x, keep: 3 } }\nserver: { threads: 7, drain_delay: 1s }",
                &[
                    "listeners[1].address",
                    "listeners (127.0.0.1:81 is gone)",
                    "admin",
                    "server.threads",
                    "server.drain_delay",
                    "record.jsonl",
                ],
            ),
            (
                "listeners: [ { address: '127.0.0.1:80' }, { address: '127.0.0.1:81' } ]\n\
                 admin: { address: '127.0.0.1:9' }\nserver: { upgrade_socket: /x/y, state_directory: z }\n\
                 affinity: { memory: 1MiB, ask: 0 }\nshared: { redis: { url: 'redis://localhost:1' } }\n\
                 traces: { endpoint: 'http://localhost:1' }",
                &[
                    "server.upgrade_socket",
                    "server.state_directory",
                    "affinity.memory",
                    "shared",
                    "traces",
                    "record",
                ],
            ),
        ];
        for (yaml, expected) in table {
            let mut reloaded = config_from(yaml, directory.path());
            let threads = if yaml.contains("threads") { 7 } else { startup.server.worker_threads };
            reloaded.server.worker_threads = threads;
            assert_eq!(config_keys_needing_upgrade(&startup, &reloaded), expected, "{yaml}");
            restore_startup_sinks(&startup, &mut reloaded);
            let sinks = |config: &Config| config.record.as_ref().map(|record| record.jsonl.clone());
            assert_eq!(sinks(&reloaded), sinks(&startup));
            assert_eq!(reloaded.traces, startup.traces);
        }
    }
}
