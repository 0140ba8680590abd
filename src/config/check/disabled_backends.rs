//! Checks what `backends[].enabled: false` means for the whole, and of a disabled backend only its keys:
//! its secrets and files may be gone.

use std::collections::BTreeMap;

use super::credentials::BACKEND_CREDENTIAL_KEYS;
use super::shared::BACKEND_TLS_KEYS;
use crate::config::changes::join_shortened;
use crate::config::values::DeploymentMap;
use crate::config::yaml::{YamlMapping, YamlNode};

/// Reports unknown keys of `credential` and `tls`, whose values are not read.
pub(super) fn check_keys_of_disabled_backend(backend: &YamlMapping<'_, '_>) {
    if let Some(credential) = backend.get("credential") {
        credential.read_secret_mapping(&BACKEND_CREDENTIAL_KEYS);
    }
    if let Some(tls) = backend.get("tls") {
        tls.read_mapping(&BACKEND_TLS_KEYS);
    }
}

/// Reports deployments that only disabled backends serve, and a file without an enabled backend.
pub(super) fn check_disabled_backends(
    backends: &YamlNode<'_, '_>,
    enabled: &[&DeploymentMap],
    disabled: &[&DeploymentMap],
) {
    if enabled.is_empty() {
        backends.report_error::<()>("are all disabled (enabled: false); at least one must be enabled");
        return;
    }
    let is_served = |name| enabled.iter().any(|deployments| deployments.upstream_name(name).is_some());
    let mut left = BTreeMap::new();
    for (name, _) in disabled.iter().flat_map(|deployments| deployments.listed_entries()) {
        if !is_served(name) {
            left.entry(name.to_lowercase()).or_insert_with(|| name.to_string());
        }
    }
    let names: Vec<&str> = left.values().map(String::as_str).collect();
    if names.is_empty() {
        return;
    }
    let (noun, verb) = if names.len() == 1 { ("deployment", "is") } else { ("deployments", "are") };
    backends.report_warning(format!(
        "{noun} {} {verb} served by disabled backends only (enabled: false); every request for {} is answered 404",
        join_shortened(&names),
        if names.len() == 1 { "it" } else { "them" },
    ));
}

#[cfg(test)]
mod tests {
    use crate::config::testing::{assert_errors, assert_warnings, parse_valid};
    use crate::config::{DisabledBackend, Endpoint};

    const EAST: &str =
        "{ name: east, endpoint: 'https://a.b', credential: { api_key: k }, deployments: { gpt-4o: x } }";

    fn backends(entries: &[&str]) -> String {
        format!("backends:\n{}", entries.iter().map(|entry| format!("  - {entry}\n")).collect::<String>())
    }

    #[test]
    fn a_disabled_backend_needs_no_secret_and_no_file() {
        let gone = "{ name: west, enabled: false, tier: 2, weight: 3, endpoint: 'https://w.b', credential: { api_key: '${NONE}' }, \
                    tls: { ca: /no/such/file }, deployments: { gpt-4o: y } }";
        let bare = "{ name: old, enabled: 'false', endpoint: 'https://o.b' }";
        let yaml = backends(&[gone, EAST, bare]);
        let config = parse_valid(&yaml).config;
        assert_eq!(config.backends.iter().map(|b| b.name.as_str()).collect::<Vec<_>>(), ["east"]);
        let disabled = config.disabled_backends.iter();
        let seen = disabled.map(|DisabledBackend { position, name, endpoint, tier, weight, .. }| {
            (*position, name.as_str(), endpoint.clone(), tier.get(), weight.get())
        });
        let endpoint = |url| Endpoint::parse(url).unwrap();
        assert_eq!(
            seen.collect::<Vec<_>>(),
            [(0, "west", endpoint("https://w.b"), 2, 3), (2, "old", endpoint("https://o.b"), 1, 1)]
        );
        // Enabled, it needs all of them.
        assert_errors(&[(
            &yaml.replace("enabled: false, ", ""),
            &[
                "backends[0].credential.api_key: ${NONE} is not set; set NONE or write ${NONE:-default}",
                "backends[0].tls.ca: cannot read the file: No such file or directory",
            ],
        )]);
    }

    #[test]
    fn what_is_wrong_in_a_disabled_backend_is_reported_as_far_as_it_is_read() {
        let bad = "{ name: east, enabled: false, endpoint: 'https://w.b', weight: 0, credential: { api_kye: hunter2 }, \
                   tls: { caa: x }, http2: maybe, provisioned: 1 }";
        assert_errors(&[
            (
                &backends(&[EAST, bad]),
                &[
                    "backends[1].name: is also the name of backends[0]; names are unique",
                    "backends[1].weight: must be a whole number from 1 to 1000",
                    "backends[1].provisioned: must be a mapping with units or cost_per_hour, not a number",
                    "backends[1].http2: must be true or false",
                    "backends[1].credential: has an unknown key; did you mean `api_key`?",
                    "backends[1].tls.caa: unknown key; did you mean `ca`?",
                ],
            ),
            (
                &backends(&["{ name: a, enabled: no, endpoint: 'https://a.b', credential: { api_key: k } }"]),
                &["backends[0].enabled: must be true or false"],
            ),
            (
                &backends(&["{ name: a, enabled: false, endpoint: 'https://a.b' }"]),
                &["backends: are all disabled (enabled: false); at least one must be enabled"],
            ),
        ]);
    }

    #[test]
    fn what_is_left_without_a_backend_is_a_warning() {
        let off = |deployments: &str| {
            format!("{{ name: off, enabled: false, endpoint: 'https://o.b', deployments: {deployments} }}")
        };
        let only = "backends: deployment o3 is served by disabled backends only (enabled: false); every request for it is \
                    answered 404";
        let many: String = (10..35).map(|i| format!("d{i}: x, ")).collect();
        assert_warnings(&[
            (&backends(&[EAST, &off("{ GPT-4O: y }")]), &[]),
            (&backends(&[EAST, &off("{ gpt-4o: y, o3: z }")]), &[only]),
            (
                &backends(&[EAST, &off(&format!("{{ {many} }}"))]),
                &[
                    "backends: deployments d10, d11, d12, d13, d14, d15, d16, d17, d18, d19, d20, d21, d22, d23, d24, d25, d26, d27, d28, d29 and 5 more are served by disabled \
                   backends only (enabled: false); every request for them is answered 404",
                ],
            ),
            // It passes every name on.
            (&backends(&[&EAST.replace("gpt-4o: x", "'*': '*'"), &off("{ o3: z }")]), &[]),
            (
                &(backends(&[EAST, &off("{ gpt-4o: y }")]) + "requests: { home: off }"),
                &[
                    "requests.home: is disabled (enabled: false): calls that name no deployment, such as files and batches, \
                   are refused with 503 until it is enabled or another backend is named here",
                ],
            ),
            (
                &(backends(&[EAST, &off("{ o3: z }")])
                    + "clients: [ { name: a, keys: [ { sha256: '0000000000000000000000000000000000000000000000000000000000000001' } ], deployments: [o3] } ]"),
                &[only],
            ),
        ]);
    }

    #[test]
    fn the_default_backend_is_found_among_the_enabled_ones() {
        let off = "{ name: off, enabled: false, endpoint: 'https://o.b' }";
        let west = EAST.replace("east", "west").replace("name", "tier: 2, name");
        for (yaml, expected) in [
            (backends(&[off, &west, EAST]), Some(1)),
            (backends(&[off, &west, EAST]) + "requests: { home: west }", Some(0)),
            (backends(&[&west, off, EAST]) + "requests: { home: east }", Some(1)),
            (backends(&[&west, off, EAST]) + "requests: { home: off }", None),
        ] {
            assert_eq!(parse_valid(&yaml).config.requests.default_backend_index, expected, "{yaml}");
        }
    }
}
