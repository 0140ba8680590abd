//! Reads and checks `affinity`, and which backends are one resource.

use std::time::Duration;

use super::partial_backends::PartialBackends;
use crate::config::schema::{AffinityConfig, AskLimit, OwnerPolicy, UnavailableHomePolicy};
use crate::config::yaml::{YamlMapping, YamlNode};

const AFFINITY_KEYS: [&str; 5] = ["ask", "memory", "read_lag", "unavailable", "owner"];
/// The smallest memory that holds enough ids to be of use.
const MIN_MEMORY_BYTES: u64 = 1 << 20;
/// Far more than the ids of any fleet take.
const MAX_MEMORY_BYTES: u64 = 64 << 30;

/// Reads the block.
pub(super) fn read_affinity(
    root: &YamlMapping<'_, '_>,
    backends: Option<&PartialBackends>,
) -> Option<AffinityConfig> {
    let map = root.read_block("affinity", &AFFINITY_KEYS)?;
    let ask_limit = map.read_or("ask", AskLimit::All, |node| read_ask_limit(node, backends));
    let memory_bytes = map.read_or("memory", 64 << 20, |node| {
        let bytes = node.read_byte_size()?;
        if !(MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&bytes) {
            return node.report_error("must be from 1MiB to 64GiB; 1MiB holds about 30,000 ids");
        }
        Some(bytes)
    });
    let read_lag = map.read_or("read_lag", Duration::from_secs(40), YamlNode::read_duration);
    let unavailable_policy = map.read_or("unavailable", UnavailableHomePolicy::Wait, |node| {
        node.read_choice(&[("wait", UnavailableHomePolicy::Wait), ("refuse", UnavailableHomePolicy::Refuse)])
    });
    let owner_policy = map.read_or("owner", OwnerPolicy::Off, |node| {
        node.read_choice(&[("off", OwnerPolicy::Off), ("enforce", OwnerPolicy::Enforce)])
    });
    Some(AffinityConfig {
        ask_limit: ask_limit?,
        memory_bytes: memory_bytes?,
        read_lag: read_lag?,
        unavailable_policy: unavailable_policy?,
        owner_policy: owner_policy?,
    })
}

fn read_ask_limit(node: &YamlNode<'_, '_>, backends: Option<&PartialBackends>) -> Option<AskLimit> {
    let limit = node.read_parsed(|text| match text {
        "all" => Ok(AskLimit::All),
        number => number.parse().map(AskLimit::AtMost).map_err(
            |_| "must be all, or how many further resources are asked for an id whose resource is not known",
        ),
    })?;
    if let (AskLimit::AtMost(limit), Some(others)) =
        (limit, backends.and_then(PartialBackends::resource_count).map(|count| count.saturating_sub(1)))
        && u64::from(limit) < others as u64
    {
        let are = if others == 1 { "resource is" } else { "resources are" };
        node.report_warning(format!(
            "is below the number of further resources: {others} {are} there besides the first one. An id that lives on \
             one that is not asked is \"not found\" for the client"
        ));
    }
    Some(limit)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::testing::{assert_errors, assert_warnings, parse_valid};
    use crate::config::{AffinityConfig, AskLimit, OwnerPolicy, UnavailableHomePolicy};

    fn three_backends(resources: [&str; 3]) -> String {
        let entries = ["a", "b", "c"].iter().zip(resources).map(|(name, resource)| {
            format!("  - {{ name: {name}, endpoint: 'https://{name}.b', credential: {{ api_key: k }}{resource} }}\n")
        });
        format!("backends:\n{}", entries.collect::<String>())
    }

    #[test]
    fn the_block_has_defaults() {
        let expected = AffinityConfig {
            ask_limit: AskLimit::All,
            memory_bytes: 64 << 20,
            read_lag: Duration::from_secs(40),
            unavailable_policy: UnavailableHomePolicy::Wait,
            owner_policy: OwnerPolicy::Off,
        };
        assert_eq!(parse_valid("").config.affinity, expected);
        let written = "affinity: { ask: 0, memory: 1MiB, read_lag: 0s, unavailable: refuse, owner: enforce }";
        let expected = AffinityConfig {
            ask_limit: AskLimit::AtMost(0),
            memory_bytes: 1 << 20,
            read_lag: Duration::ZERO,
            unavailable_policy: UnavailableHomePolicy::Refuse,
            owner_policy: OwnerPolicy::Enforce,
        };
        assert_eq!(parse_valid(written).config.affinity, expected);
        assert_eq!(parse_valid("affinity: { owner: off }").config.affinity.owner_policy, OwnerPolicy::Off);
    }

    #[test]
    fn a_resource_is_a_host_and_port_or_what_the_file_calls_one() {
        let yaml = three_backends([", resource: x", "", ", resource: x"]);
        let resources: Vec<String> =
            parse_valid(&yaml).config.backends.iter().map(|backend| backend.resource.to_string()).collect();
        assert_eq!(resources, ["x", "b.b:443", "x"]);
        let same_host = "backends:\n\
            - { name: a, endpoint: 'https://a.b', credential: { api_key: k } }\n\
            - { name: b, endpoint: 'https://A.b:443/openai/v1', credential: { api_key: k } }\n\
            - { name: c, endpoint: 'https://a.b:444', credential: { api_key: k } }\n";
        let backends = parse_valid(same_host).config.backends;
        assert_eq!(backends[0].resource, backends[1].resource);
        assert_ne!(backends[0].resource, backends[2].resource);
    }

    #[test]
    fn too_few_asked_resources_are_warned_about() {
        let message = "affinity.ask: is below the number of further resources: 2 resources are there besides the first \
                       one. An id that lives on one that is not asked is \"not found\" for the client";
        let apart = three_backends(["", "", ""]);
        let together = three_backends([", resource: x", ", resource: x", ""]);
        assert_warnings(&[
            (&format!("{apart}affinity: {{ ask: 1 }}"), &[message]),
            (&format!("{apart}affinity: {{ ask: 2 }}"), &[]),
            (&format!("{together}affinity: {{ ask: 1 }}"), &[]),
        ]);
    }

    #[test]
    fn invalid_values_are_reported() {
        assert_errors(&[
            (
                "affinity: { ask: some, memory: 1KiB, read_lag: 4, unavailable: strip, owner: on, lag: 1s }",
                &[
                    "affinity.lag: unknown key; the keys here are ask, memory, read_lag, unavailable and owner",
                    "affinity.ask: must be all, or how many further resources are asked for an id whose resource is not known",
                    "affinity.memory: must be from 1MiB to 64GiB; 1MiB holds about 30,000 ids",
                    "affinity.read_lag: has no unit; give it one, such as 10s or 10ms",
                    "affinity.unavailable: must be wait or refuse",
                    "affinity.owner: must be off or enforce",
                ],
            ),
            (
                &three_backends([", resource: 'a b'", "", ""]),
                &["backends[0].resource: must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"],
            ),
        ]);
    }
}
