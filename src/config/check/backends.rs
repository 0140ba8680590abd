//! Reads and checks `backends`: each by itself, then the weights of each tier.

use std::collections::{BTreeMap, HashMap};

use super::credentials::{read_backend_credential, read_ca_file, read_certified_key_files};
use super::disabled_backends::{check_disabled_backends, check_keys_of_disabled_backend};
use super::partial_backends::{ListedBackend, PartialBackends};
use super::provisioned::read_provisioned;
use super::shared::{BACKEND_TLS_KEYS, read_api_version, read_entry_name};
use crate::config::schema::{BackendConfig, BackendTlsConfig, DisabledBackend};
use crate::config::values::{DeploymentMap, Endpoint, parse_host_name};
use crate::config::yaml::{YamlMapping, YamlNode};
use crate::names::{BackendName, DeploymentName, ResourceName, Tier, Weight};

const BACKEND_KEYS: [&str; 13] = [
    "name",
    "endpoint",
    "resource",
    "tier",
    "weight",
    "credential",
    "deployments",
    "api_version",
    "tls",
    "http2",
    "probe",
    "enabled",
    "provisioned",
];
const HOW_TO_WRITE_INTERVAL: &str = "write how long a backend may be without traffic, such as interval: 30s";
/// The most slots of the round-robin wheel of one tier. A wheel has one slot for each unit of weight, after
/// division by the greatest common divisor.
const MAX_WHEEL_SLOTS: u64 = 10_000;

/// Reads all backends.
pub(super) fn read_backends(root: &YamlMapping<'_, '_>) -> Option<PartialBackends> {
    let node = root.require("backends", "write at least one, with name, endpoint and credential")?;
    let items = node.read_list()?;
    if items.is_empty() {
        return node.report_error("must have at least one backend");
    }
    let mut backends = PartialBackends::default();
    for (index, item) in items.iter().enumerate() {
        let backend = read_backend(item, index, &mut backends);
        backends.backends.push(backend);
    }
    check_wheel_sizes(&items, &backends.backends);
    // With errors in a backend it is not known which deployments are left without one.
    if let Some(all) = backends.backends.iter().map(Option::as_ref).collect::<Option<Vec<_>>>() {
        let enabled: Vec<_> = all.iter().filter_map(|b| Some(&b.enabled()?.deployments)).collect();
        let disabled: Vec<_> =
            all.iter().filter(|b| b.enabled().is_none()).map(|b| b.deployments()).collect();
        check_disabled_backends(&node, &enabled, &disabled);
    }
    Some(backends)
}

fn read_backend(
    node: &YamlNode<'_, '_>,
    index: usize,
    backends: &mut PartialBackends,
) -> Option<ListedBackend> {
    let Some(map) = node.read_mapping(&BACKEND_KEYS) else {
        backends.has_unknown_names = true;
        return None;
    };
    let name = map
        .require("name", "give it a unique name")
        .and_then(|node| read_unique_name(&node, index, backends));
    backends.has_unknown_names |= name.is_none();
    let endpoint = map
        .require("endpoint", "write the resource's URL, such as https://NAME.openai.azure.com")
        .and_then(|node| read_backend_endpoint(&node));
    let resource = map.read_optional("resource", read_entry_name);
    // Always with its port: `resource: NAME` has no colon, so that the two cannot be the same by accident.
    let resource = resource.and_then(|name| match name {
        Some(name) => Some(ResourceName::new(&name)),
        None => endpoint
            .as_ref()
            .map(|endpoint| ResourceName::new(&format!("{}:{}", endpoint.host, endpoint.port))),
    });
    let tier = map.read_or("tier", Tier::FIRST, |node| {
        let tier = node.read_integer(1..=u64::from(u16::MAX))?;
        Tier::new(u16::try_from(tier).ok()?)
    });
    let weight = map.read_or("weight", Weight::ONE, |node| {
        let weight = node.read_integer(1..=u64::from(Weight::MAX))?;
        Weight::new(u16::try_from(weight).ok()?)
    });
    let enabled = map.read_or("enabled", true, YamlNode::read_bool);
    let is_disabled = enabled == Some(false);
    let credential = (!is_disabled).then(|| {
        let node = map.require("credential", "write credential: { api_key: \"${NAME}\" }");
        node.and_then(|node| read_backend_credential(&node))
    });
    let all_deployments = DeploymentMap::new(Vec::new(), true);
    let deployments = map.read_or("deployments", all_deployments, read_deployments);
    let api_version_override = map.read_optional("api_version", read_api_version);
    let health_probe_interval = map.read_optional("probe", |node| {
        node.read_mapping(&["interval"])?.require("interval", HOW_TO_WRITE_INTERVAL)?.read_interval()
    });
    let tls = (!is_disabled).then(|| {
        map.read_or("tls", BackendTlsConfig::default(), |node| read_backend_tls(node, endpoint.as_ref()))
    });
    let provisioned = map.read_optional("provisioned", read_provisioned);
    let http2_enabled = map.read_or("http2", false, |node| {
        let enabled = node.read_bool()?;
        if enabled && endpoint.as_ref().is_some_and(|endpoint| !endpoint.uses_tls) {
            return node.report_error("needs an https endpoint: HTTP/2 is negotiated in the TLS handshake");
        }
        Some(enabled)
    });
    if is_disabled {
        check_keys_of_disabled_backend(&map);
        // Each of them has been read, so that its errors are reported.
        let _checked = (api_version_override?, health_probe_interval?, http2_enabled?, provisioned?);
        return Some(ListedBackend::Disabled(DisabledBackend {
            position: index,
            name: name?,
            endpoint: endpoint?,
            resource: resource?,
            tier: tier?,
            weight: weight?,
            deployments: deployments?,
        }));
    }
    enabled?;
    Some(ListedBackend::Enabled(Box::new(BackendConfig {
        name: name?,
        endpoint: endpoint?,
        resource: resource?,
        tier: tier?,
        weight: weight?,
        credential: credential??,
        deployments: deployments?,
        api_version_override: api_version_override?,
        tls: tls??,
        http2_enabled: http2_enabled?,
        health_probe_after_idle: health_probe_interval?,
        provisioned: provisioned?,
    })))
}

fn read_unique_name(
    node: &YamlNode<'_, '_>,
    index: usize,
    backends: &mut PartialBackends,
) -> Option<BackendName> {
    let name = read_entry_name(node)?;
    let backend_name = BackendName::new(&name);
    match backends.index_by_name.get(&name) {
        Some(other) => {
            // The error is reported here; the name itself is valid, so references to it are not errors too.
            node.report_error::<()>(format!("is also the name of backends[{other}]; names are unique"));
        }
        None => {
            backends.index_by_name.insert(name, index);
        }
    }
    Some(backend_name)
}

fn read_backend_endpoint(node: &YamlNode<'_, '_>) -> Option<Endpoint> {
    let endpoint = node.read_parsed(Endpoint::parse)?;
    if !endpoint.uses_tls && !endpoint.is_loopback() {
        node.report_warning("is http: the key and every prompt are sent unencrypted to this host; use https");
    }
    Some(endpoint)
}

fn read_deployments(node: &YamlNode<'_, '_>) -> Option<DeploymentMap> {
    let entries = node.read_named_entries()?;
    if entries.is_empty() {
        return node.report_error(
            "must not be empty; remove the key to serve all names, or list what this resource serves",
        );
    }
    let mut spelling_by_name: HashMap<String, &str> = HashMap::new();
    let mut listed_names = Vec::with_capacity(entries.len());
    let (mut passes_unlisted, mut all_valid) = (false, true);
    for (key, node) in &entries {
        if *key == "*" {
            passes_unlisted = true;
            match node.read_text() {
                Some(text) if text.value == "*" => {}
                Some(_) => {
                    node.report_error::<()>("must be \"*\": all other names are passed on unchanged");
                    all_valid = false;
                }
                None => all_valid = false,
            }
            continue;
        }
        let client_name = match DeploymentName::parse(key) {
            Ok(name) => Some(name),
            Err(problem) => node.report_error(format!("{problem}; this key is not one")),
        };
        let upstream_name = node.read_parsed(DeploymentName::parse);
        let (Some(client_name), Some(upstream_name)) = (client_name, upstream_name) else {
            all_valid = false;
            continue;
        };
        if let Some(other) = spelling_by_name.insert(client_name.to_lowercase(), key) {
            node.report_error::<()>(format!(
                "is the same name as {other:?}: names are compared without case"
            ));
            all_valid = false;
            continue;
        }
        listed_names.push((client_name, upstream_name));
    }
    all_valid.then(|| DeploymentMap::new(listed_names, passes_unlisted))
}

fn read_backend_tls(node: &YamlNode<'_, '_>, endpoint: Option<&Endpoint>) -> Option<BackendTlsConfig> {
    let map = node.read_mapping(&BACKEND_TLS_KEYS)?;
    if endpoint.is_some_and(|endpoint| !endpoint.uses_tls) {
        return node.report_error("cannot be used with an http endpoint; remove it or use https");
    }
    let ca_file = map.read_optional("ca", read_ca_file);
    let server_name = map.read_optional("server_name", |node| {
        node.read_parsed(|text| parse_host_name(text).ok_or("must be a host name, without scheme and port"))
    });
    let has_certificate = map.get("certificate").or(map.get("private_key")).is_some();
    let client_certificate =
        if has_certificate { read_certified_key_files(&map).map(Some) } else { Some(None) };
    Some(BackendTlsConfig {
        ca_file: ca_file?,
        server_name_override: server_name?,
        client_certificate: client_certificate?,
    })
}

/// Checks that the round-robin wheel of each tier does not get too large.
fn check_wheel_sizes(items: &[YamlNode<'_, '_>], backends: &[Option<ListedBackend>]) {
    let mut tiers: BTreeMap<Tier, (usize, u64, u64)> = BTreeMap::new();
    for (index, backend) in backends.iter().enumerate() {
        let Some(backend) = backend.as_ref().and_then(ListedBackend::enabled) else { continue };
        let weight = u64::from(backend.weight.get());
        let (_, sum, factor) = tiers.entry(backend.tier).or_insert((index, 0, 0));
        *sum += weight;
        *factor = greatest_common_divisor(*factor, weight);
    }
    for (first, sum, factor) in tiers.into_values() {
        if sum / factor.max(1) > MAX_WHEEL_SLOTS {
            let message = "the weights of its tier, divided by their common factor, must add up to at most 10000; \
                           use smaller weights, or weights with a common factor";
            items[first].problems.report_error::<()>(&format!("{}.weight", items[first].key_path), message);
        }
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{
        assert_errors, assert_warnings, errors_in, literal_api_key, parse_valid, write_test_certificate,
    };

    /// A file with one backend that has `more` besides what it needs.
    fn one_backend_with(more: &str) -> String {
        format!(
            "backends: [ {{ name: east, endpoint: 'https://a.b', credential: {{ api_key: k }}, {more} }} ]"
        )
    }

    #[test]
    fn optional_backend_keys_have_defaults() {
        let backend = &parse_valid(
            "backends: [ { name: e, endpoint: 'https://a.b', credential: { api_key: '${KEY}' } } ]",
        )
        .config
        .backends[0];
        assert_eq!((backend.tier.get(), backend.weight.get()), (1, 1));
        assert_eq!((&backend.api_version_override, &backend.tls), (&None, &BackendTlsConfig::default()));
        assert!(
            backend.deployments.passes_unlisted() && backend.deployments.listed_entries().next().is_none()
        );
        assert_eq!(literal_api_key(&backend.credential), "k3y-of-the-test");
    }

    #[test]
    fn written_backend_keys_are_read() {
        let yaml = one_backend_with(
            "tier: 2, weight: '3', deployments: { gpt-4o: gpt-4o-ptu, '*': '*' }, api_version: 2025-03-01-preview, tls: { server_name: C.D }",
        );
        let backend = &parse_valid(&yaml).config.backends[0];
        assert_eq!(
            (backend.tier.get(), backend.weight.get(), backend.api_version_override.as_deref()),
            (2, 3, Some("2025-03-01-preview"))
        );
        assert_eq!(backend.tls.server_name_override.as_deref(), Some("c.d"));
        let listed: Vec<_> =
            backend.deployments.listed_entries().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!((listed, backend.deployments.passes_unlisted()), (vec![("gpt-4o", "gpt-4o-ptu")], true));
    }

    #[test]
    fn invalid_backend_settings_are_reported() {
        let case = |more: &str, problem: &str| (one_backend_with(more), vec![problem.to_owned()]);
        for (yaml, expected) in [
            case("tier: 0", "backends[0].tier: must be a whole number from 1 to 65535"),
            case("weight: 0", "backends[0].weight: must be a whole number from 1 to 1000"),
            case(
                "weight: '${KEY}'",
                "backends[0].weight: must be a whole number from 1 to 1000 (the value is from ${KEY})",
            ),
            case("weight: [1]", "backends[0].weight: must be a number, not a list"),
            case("weight: ", "backends[0].weight: is empty; remove it or give it a value"),
            case("weight: !x 1", "backends[0].weight: must be a number, not a value with a YAML tag"),
            case("wieght: 1", "backends[0].wieght: unknown key; did you mean `weight`?"),
            case("http2: yes", "backends[0].http2: must be true or false"),
            case("hhtp: true", "backends[0].hhtp: unknown key; did you mean `http2`?"),
            case(
                "probe: {}",
                "backends[0].probe.interval: is missing; write how long a backend may be without traffic, such as interval: 30s",
            ),
            case("probe: { interval: 500ms }", "backends[0].probe.interval: must be at least 1s"),
            case(
                "api_version: v1",
                "backends[0].api_version: must be a version such as 2024-10-21 or 2025-03-01-preview",
            ),
            case(
                "deployments: {}",
                "backends[0].deployments: must not be empty; remove the key to serve all names, or list what this resource serves",
            ),
            case(
                "deployments: { '*': x }",
                "backends[0].deployments[\"*\"]: must be \"*\": all other names are passed on unchanged",
            ),
            case(
                "deployments: { a: '*' }",
                "backends[0].deployments.a: a deployment name has 1 to 64 of the characters A-Z a-z 0-9 . _ -",
            ),
            case(
                "deployments: { a b: c }",
                "backends[0].deployments[…]: a deployment name has 1 to 64 of the characters A-Z a-z 0-9 . _ -; this key is not one",
            ),
            case(
                "deployments: { GPT: a, gpt: b }",
                "backends[0].deployments.gpt: is the same name as \"GPT\": names are compared without case",
            ),
            case(
                "deployments: { gpt: }",
                "backends[0].deployments.gpt: is empty; remove it or give it a value",
            ),
            case("deployments: { [4]: a, b: c }", "backends[0].deployments: has a key that is a list"),
            case(
                "tls: { ca: /no/such/file }",
                "backends[0].tls.ca: cannot read the file: No such file or directory",
            ),
            case(
                "tls: { server_name: 'https://a' }",
                "backends[0].tls.server_name: must be a host name, without scheme and port",
            ),
        ] {
            assert_eq!(errors_in(&yaml), expected, "{yaml}");
        }
        assert_errors(&[
            ("backends: []", &["backends: must have at least one backend"]),
            (
                "backends: [ x, {} ]",
                &[
                    "backends[0]: must be a mapping with name, endpoint, resource, tier, weight, credential, deployments, api_version, tls, http2, probe, enabled or provisioned, not a string",
                    "backends[1].name: is missing; give it a unique name",
                    "backends[1].endpoint: is missing; write the resource's URL, such as https://NAME.openai.azure.com",
                    "backends[1].credential: is missing; write credential: { api_key: \"${NAME}\" }",
                ],
            ),
            (
                "backends: [ { name: a b, endpoint: 'https://u:hunter2@a.b', credential: hunter2 }, { name: c, endpoint: 'ftp://a.b', credential: { hunter2: } } ]",
                &[
                    "backends[0].name: must be 1 to 64 of the characters A-Z a-z 0-9 . _ -",
                    "backends[0].endpoint: must not have a user or password; the key belongs under credential.api_key",
                    "backends[0].credential: must be a mapping with api_key, key_vault or entra, not a string",
                    "backends[1].endpoint: must begin with https:// or http://",
                    "backends[1].credential: has an unknown key; the keys here are api_key, key_vault and entra",
                    "backends[1].credential: needs one of api_key, key_vault and entra; write api_key: \"${NAME}\", key_vault: URL of the secret, or entra: { managed_identity: {} }",
                ],
            ),
            (
                "backends: [ { name: a, endpoint: 'https://a.b', credential: { api_key: '' } }, { name: a, endpoint: 'https://a.b', credential: { api_key: 'hunter 2' } } ]",
                &[
                    "backends[0].credential.api_key: must not be empty",
                    "backends[1].name: is also the name of backends[0]; names are unique",
                    "backends[1].credential.api_key: must be a key without spaces, line breaks or non-ASCII characters",
                ],
            ),
            (
                "backends: [ { name: a, endpoint: 'http://127.0.0.1', credential: { api_key: '${EMPTY}' }, tls: { server_name: a.b }, http2: true } ]",
                &[
                    "backends[0].credential.api_key: must not be empty (the value is from ${EMPTY})",
                    "backends[0].tls: cannot be used with an http endpoint; remove it or use https",
                    "backends[0].http2: needs an https endpoint: HTTP/2 is negotiated in the TLS handshake",
                ],
            ),
            (
                "backends: [ { name: a, endpoint: 'https://a.b', credential: { api_key: '${NONE}' } } ]",
                &["backends[0].credential.api_key: ${NONE} is not set; set NONE or write ${NONE:-default}"],
            ),
        ]);
    }

    #[test]
    fn a_ca_file_must_contain_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        let yaml = one_backend_with(&format!("tls: {{ ca: '{}' }}", file.display()));
        std::fs::write(&file, "-----BEGIN PRIVATE KEY-----").unwrap();
        assert!(errors_in(&yaml)[0].contains("must be a PEM file with at least one certificate"));
        std::fs::write(&file, "# root\n-----BEGIN CERTIFICATE-----\nx").unwrap();
        assert!(errors_in(&yaml)[0].contains("must be a PEM file with at least one certificate"));
        write_test_certificate(dir.path(), "ca", 90, &[]);
        assert_eq!(parse_valid(&yaml).config.backends[0].tls.ca_file.as_deref(), Some(file.as_path()));
    }

    #[test]
    fn the_sum_of_reduced_weights_in_a_tier_is_bounded() {
        let tier = |weights: &[u16]| {
            let backend = |(i, w): (usize, &u16)| {
                format!(
                    "  - {{ name: b{i}, weight: {w}, endpoint: 'https://a.b', credential: {{ api_key: k }} }}\n"
                )
            };
            format!("backends:\n{}", weights.iter().enumerate().map(backend).collect::<String>())
        };
        assert_eq!(errors_in(&tier(&[1000; 200])), Vec::<String>::new());
        let mut uneven = [1000; 12];
        uneven[3] = 999;
        let problems = errors_in(&tier(&uneven));
        assert!(
            problems.len() == 1 && problems[0].starts_with("backends[0].weight: the weights of its tier"),
            "{problems:?}"
        );
    }

    #[test]
    fn plain_http_beyond_loopback_is_a_warning() {
        let at = |endpoint: &str| {
            format!("backends: [ {{ name: a, endpoint: '{endpoint}', credential: {{ api_key: k }} }} ]")
        };
        assert_warnings(&[
            (
                &at("http://10.0.0.1"),
                &[
                    "backends[0].endpoint: is http: the key and every prompt are sent unencrypted to this host; use https",
                ],
            ),
            (&at("http://localhost:9"), &[]),
        ]);
    }
}
