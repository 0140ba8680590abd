//! Compares two configurations: here the lists, with each entry by its name; in `settings` the other blocks.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use self::settings::changed_settings;
use super::changes::{ChangedEntry, ConfigChanges, ListChanges};
use super::schema::{BackendConfig, ClientConfig, ClientsConfig, Config, DisabledBackend, ListenerConfig};

/// The keys whose fields differ between two values of a type.
macro_rules! changed_keys {
    ($type:ident, $before:expr, $after:expr, { $($field:ident => $key:literal),* $(,)? }) => {{
        // Without `..`, so that a new field is not forgotten here.
        let $type { $($field),* } = $before;
        let mut keys: Vec<&'static str> = Vec::new();
        $(if *$field != $after.$field {
            keys.push($key);
        })*
        keys
    }};
}

// Below the macro, which it uses.
mod settings;

/// What differs between two configurations.
pub fn compare_configs(before: &Config, after: &Config) -> ConfigChanges {
    let names = |config| all_backends(config).iter().map(AnyBackend::name).collect::<Vec<_>>();
    let order = is_reordered(&names(before), &names(after)).then(|| "the order of backends".to_owned());
    ConfigChanges {
        backends: compare_backends(before, after),
        clients: compare_lists(
            listed_clients(before),
            listed_clients(after),
            |client| client.name.to_string(),
            changed_client_keys,
        ),
        listeners: compare_lists(
            &before.listeners,
            &after.listeners,
            |listener| listener.address.to_string(),
            changed_listener_keys,
        ),
        settings: order.into_iter().chain(changed_settings(before, after)).collect(),
    }
}

/// A backend of the file.
#[derive(Clone, Copy)]
enum AnyBackend<'c> {
    Enabled(&'c BackendConfig),
    Disabled(&'c DisabledBackend),
}

impl AnyBackend<'_> {
    fn name(&self) -> String {
        match self {
            Self::Enabled(backend) => backend.name.to_string(),
            Self::Disabled(backend) => backend.name.to_string(),
        }
    }
}

/// All backends, in the order of the file.
fn all_backends(config: &Config) -> Vec<AnyBackend<'_>> {
    let mut all: Vec<_> = config.backends.iter().map(AnyBackend::Enabled).collect();
    for backend in &config.disabled_backends {
        all.insert(backend.position.min(all.len()), AnyBackend::Disabled(backend));
    }
    all
}

fn compare_backends(before: &Config, after: &Config) -> ListChanges {
    compare_lists(&all_backends(before), &all_backends(after), AnyBackend::name, |before, after| {
        match (before, after) {
            (AnyBackend::Enabled(before), AnyBackend::Enabled(after)) => changed_backend_keys(before, after),
            (AnyBackend::Disabled(before), AnyBackend::Disabled(after)) => {
                let keys = changed_keys!(DisabledBackend, before, after, {
                                    position => "position",
                                    name => "name",
                                    endpoint => "endpoint",
                resource => "resource",
                                    tier => "tier",
                                    weight => "weight",
                                    deployments => "deployments",
                                });
                // Its place among the others is no key of its own.
                without_implied_resource(keys.into_iter().filter(|key| *key != "position").collect())
            }
            _ => vec!["enabled"],
        }
    })
}

fn changed_backend_keys(before: &BackendConfig, after: &BackendConfig) -> Vec<&'static str> {
    without_implied_resource(changed_keys!(BackendConfig, before, after, {
            name => "name",
            endpoint => "endpoint",
    resource => "resource",
            tier => "tier",
            weight => "weight",
            credential => "credential",
            deployments => "deployments",
            api_version_override => "api_version",
            tls => "tls",
            http2_enabled => "http2",
            health_probe_after_idle => "probe",
            provisioned => "provisioned",
    }))
}

/// A resource is named after its endpoint unless the file names it.
fn without_implied_resource(mut keys: Vec<&'static str>) -> Vec<&'static str> {
    let implies = keys.contains(&"endpoint");
    keys.retain(|key| *key != "resource" || !implies);
    keys
}

fn listed_clients(config: &Config) -> &[ClientConfig] {
    match &config.clients {
        ClientsConfig::Anyone => &[],
        ClientsConfig::Listed(clients) => clients,
    }
}

fn changed_client_keys(before: &ClientConfig, after: &ClientConfig) -> Vec<&'static str> {
    deduplicated(changed_keys!(ClientConfig, before, after, {
        name => "name",
        key_hashes => "keys",
        token_app_ids => "entra",
        token_app_roles => "entra",
        certificate_subjects => "certificates",
        allowed_deployments => "deployments",
        allows_stateful_calls => "stateful",
        recorded_content_override => "record",
        class => "class",
        limits => "limits",
    }))
}

fn changed_listener_keys(before: &ListenerConfig, after: &ListenerConfig) -> Vec<&'static str> {
    changed_keys!(ListenerConfig, before, after, {
        address => "address",
        tls => "tls",
        http2_enabled => "http2",
        trusted_proxies => "trusted_proxies",
        max_connections_per_client_address => "connections_per_client",
    })
}

/// Compares entries that have the same name.
fn compare_lists<T>(
    before: &[T],
    after: &[T],
    name: impl Fn(&T) -> String,
    changed_keys: impl Fn(&T, &T) -> Vec<&'static str>,
) -> ListChanges {
    let earlier: HashMap<String, &T> = before.iter().map(|entry| (name(entry), entry)).collect();
    let later: HashSet<String> = after.iter().map(&name).collect();
    let mut changes = ListChanges::default();
    for entry in after {
        let name = name(entry);
        match earlier.get(&name) {
            None => changes.added.push(name),
            Some(before) => {
                let keys = changed_keys(before, entry);
                if !keys.is_empty() {
                    changes.changed.push(ChangedEntry { name, keys });
                }
            }
        }
    }
    changes.removed = before.iter().map(&name).filter(|name| !later.contains(name)).collect();
    changes
}

/// Whether the names that both lists have are in another order.
fn is_reordered<T: Eq + Hash>(before: &[T], after: &[T]) -> bool {
    let (earlier, later): (HashSet<_>, HashSet<_>) = (before.iter().collect(), after.iter().collect());
    let common_before = before.iter().filter(|name| later.contains(name));
    let common_after = after.iter().filter(|name| earlier.contains(name));
    !common_before.eq(common_after)
}

fn deduplicated(mut keys: Vec<&'static str>) -> Vec<&'static str> {
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::parse_valid;

    const HASH: &str = "0000000000000000000000000000000000000000000000000000000000000001";

    fn backends(entries: &[&str]) -> String {
        let entry = |entry: &&str| {
            format!("  - {{ endpoint: 'https://a.b', credential: {{ api_key: k }}, {entry} }}\n")
        };
        format!("backends:\n{}", entries.iter().map(entry).collect::<String>())
    }

    fn clients(entries: &[&str]) -> String {
        let entry = |entry: &&str| format!("  - {{ {entry} }}\n");
        format!("clients:\n{}", entries.iter().map(entry).collect::<String>())
    }

    #[test]
    fn each_change_is_told_by_name_and_key_and_nothing_else() {
        let key = |name: &str| format!("name: {name}, keys: [ {{ sha256: '{HASH}' }} ]");
        let listener = |more: &str| format!("listeners: [ {{ address: '127.0.0.1:80'{more} }} ]");
        let other_hash = HASH.replace('1', "2");
        for (before, after, expected) in [
            (String::new(), String::new(), "nothing changed"),
            (String::new(), "# a comment\nbalance: headroom".to_owned(), "nothing changed"),
            (
                backends(&["name: a", "name: b"]),
                backends(&["name: c", "name: b"]),
                "backends: added c, removed a; settings: requests.home",
            ),
            (
                backends(&["name: a", "name: b"]),
                backends(&["name: b", "name: a"]),
                "settings: the order of backends, requests.home",
            ),
            // The default backend stays the same.
            (backends(&["name: a"]), backends(&["name: x, tier: 2", "name: a"]), "backends: added x"),
            (
                backends(&["name: a", "name: b"]),
                backends(&[
                    "name: a, weight: 2, tier: 1, http2: true, api_version: 2024-10-21, probe: { interval: 9s }",
                    "name: b, deployments: { x: y }, tls: { server_name: c.d }, provisioned: {}",
                ]),
                "backends: changed a (weight, api_version, http2, probe) and b (deployments, tls, provisioned)",
            ),
            (
                backends(&["name: a", "name: b"]),
                backends(&["name: a", "name: b"]).replacen("api_key: k", "api_key: other-secret", 1),
                "backends: changed a (credential)",
            ),
            (
                backends(&["name: a", "name: b"]).replacen("https://a.b", "https://a.c", 1),
                backends(&["name: a", "name: b"]),
                "backends: changed a (endpoint)",
            ),
            (
                backends(&["name: a", "name: b"]),
                backends(&["name: a", "name: b, enabled: false, weight: 3"]),
                "backends: changed b (enabled)",
            ),
            (
                backends(&["name: a", "name: b, enabled: false", "name: c"]),
                backends(&["name: a", "name: b, enabled: false, weight: 3", "name: c, enabled: false"]),
                "backends: changed b (weight) and c (enabled)",
            ),
            (
                backends(&["name: a, enabled: false", "name: b"]),
                backends(&["name: b"]),
                "backends: removed a",
            ),
            (
                clients(&[&key("x"), &key("y").replace(HASH, &other_hash)]),
                clients(&[&(key("x").replace('1', "3") + ", stateful: false"), &key("z")]),
                "clients: added z, removed y, changed x (keys, stateful)",
            ),
            (
                clients(&[
                    &(key("x") + ", limits: { deployments: { a: { in_flight: 1 } } }"),
                    &(key("y").replace(HASH, &other_hash) + ", limits: { in_flight: 1 }"),
                ]),
                clients(&[
                    &(key("x") + ", class: batch, limits: { deployments: { a: { in_flight: 2 } } }"),
                    &(key("y").replace(HASH, &other_hash) + ", limits: { deployments: { a: { in_flight: 1 } }, in_flight: 1 }"),
                ]),
                "clients: changed x (class, limits) and y (limits)",
            ),
            ("clients: open".to_owned(), clients(&[&key("x")]), "clients: added x; settings: clients (no longer open)"),
            (clients(&[&key("x")]), "clients: open".to_owned(), "clients: removed x; settings: clients (open now)"),
            (
                listener(""),
                listener(", trusted_proxies: [10.0.0.0/8], connections_per_client: 9"),
                "listeners: changed 127.0.0.1:80 (trusted_proxies, connections_per_client)",
            ),
            (
                listener(""),
                listener("").replace(":80", ":81"),
                "listeners: added 127.0.0.1:81, removed 127.0.0.1:80",
            ),
            (
                String::new(),
                "retry: { attempts: 1, hold: { time: 1s } }\nbreaker: { failures: 9 }\ncooldown: { default: 9s }\n\
                 limits: { mode: observe, default: { in_flight: 1 }, cached_weight: 0.5 }\nshed: { batch: 80%, interactive: 99% }\ntimeouts: { idle: 9s }\nwebsocket: { first_frame: 9s, max_frame: 1MiB, rotate: 9s }\nserver: { drain_delay: 9s, state_directory: x }\nbalance: round_robin\npools: { x: { balance: prompt_cache } }\n\
                 requests: { max_body: 1MiB }\naffinity: { ask: 0 }\nkey_vault: { refresh: 9s }"
                    .to_owned(),
                "settings: limits.mode, limits.default, limits.cached_weight, shed.interactive, shed.batch, requests.max_body, affinity.ask, balance, pools, retry.attempts, retry.hold, cooldown.default, breaker.failures, \
                 timeouts.idle, websocket.first_frame, websocket.max_frame, websocket.rotate, key_vault.refresh, server.drain_delay and server.state_directory",
            ),
            (
                "record: { jsonl: { path: /x }, redact: [a] }\nadmin: { address: '127.0.0.1:9', token: one-token }".to_owned(),
                "record: { jsonl: { path: /x, keep: 1 }, redact: [b] }\nadmin: { address: '127.0.0.1:9', token: two-token }"
                    .to_owned(),
                "settings: record.redact, record.jsonl and admin.token",
            ),
            (
                "shared: { redis: { url: 'redis://localhost:1', password: one } }".to_owned(),
                "shared: { redis: { url: 'redis://localhost:2', password: two, prefix: x } }".to_owned(),
                "settings: shared.redis.url, shared.redis.password and shared.redis.prefix",
            ),
            (
                "traces: { endpoint: 'https://a', headers: { x: one-secret } }".to_owned(),
                "traces: { endpoint: 'https://b/c', headers: { x: two-secret }, forward: true }".to_owned(),
                "settings: traces.endpoint, traces.headers and traces.forward",
            ),
            (
                "shared: { redis: { url: 'redis://localhost:1' } }".to_owned(),
                String::new(),
                "settings: shared",
            ),
            (
                "record: { jsonl: { path: /x } }".to_owned(),
                "admin: { address: '127.0.0.1:9' }".to_owned(),
                "settings: record and admin",
            ),
        ] {
            let (earlier, later) = (parse_valid(&before).config, parse_valid(&after).config);
            let expected = expected.replace("backends, requests.home", "backends and requests.home");
            let text = compare_configs(&earlier, &later).to_string();
            assert_eq!(text, expected, "{before}\n{after}");
            assert_eq!(compare_configs(&later, &later).to_string(), "nothing changed", "{after}");
        }
    }
}
