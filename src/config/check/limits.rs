//! Reads and checks `limits` and `clients[].limits`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::partial_backends::PartialBackends;
use crate::config::schema::{ClientLimits, LimitMode, LimitSet, LimitsConfig};
use crate::config::yaml::{YamlMapping, YamlNode};
use crate::money::{Amount, AmountError};
use crate::names::DeploymentName;

const LIMIT_KEYS: [&str; 7] = [
    "requests_per_minute",
    "tokens_per_minute",
    "tokens_per_day",
    "tokens_per_month",
    "cost_per_day",
    "cost_per_month",
    "in_flight",
];
/// More than anybody uses, and small enough that no sum of such numbers overflows.
const MAX_LIMIT: u64 = 1_000_000_000_000_000;
/// The same number in millionths.
const MAX_COST: Amount = Amount::from_millionths(MAX_LIMIT);
const COST_WITHOUT_PRICES: &str = "needs prices, without which no response has a cost; add the block prices, or limit \
                                   tokens_per_day or tokens_per_month instead";
const NESTED_DEPLOYMENTS: (&str, &str) = (
    "deployments",
    "must not be among the limits of a deployment; list each deployment once, beside this one",
);

/// Reads the block.
pub(super) fn read_limits(
    root: &YamlMapping<'_, '_>,
    backends: Option<&PartialBackends>,
) -> Option<LimitsConfig> {
    let map = root.read_block("limits", &["mode", "default", "cached_weight"])?;
    let mode = map.read_or("mode", LimitMode::Enforce, |node| {
        node.read_choice(&[("enforce", LimitMode::Enforce), ("observe", LimitMode::Observe)])
    });
    let served_deployments = backends.and_then(PartialBackends::served_deployments);
    let default = map.read_optional("default", |node| {
        let what_it_means_without = "remove the key for no limits";
        let context = LimitContext::new(root, served_deployments.as_ref());
        read_client_limits(node, what_it_means_without, None, context)
    });
    let cached_weight_permille = map.read_or("cached_weight", 1000, read_permille);
    Some(LimitsConfig { mode: mode?, default: default?, cached_weight_permille: cached_weight_permille? })
}

/// What limits are checked against.
#[derive(Clone, Copy)]
pub(super) struct LimitContext<'c> {
    served_deployments: Option<&'c HashSet<&'c DeploymentName>>,
    has_prices: bool,
}

impl<'c> LimitContext<'c> {
    /// That of a file.
    pub(super) fn new(
        root: &YamlMapping<'_, '_>,
        served_deployments: Option<&'c HashSet<&'c DeploymentName>>,
    ) -> Self {
        Self { served_deployments, has_prices: root.get("prices").is_some() }
    }
}

/// Reads the limits of one client, or those of all that have none of their own. `without` says what to do instead of
/// writing no limit. A client with a list of deployments may use no others.
pub(super) fn read_client_limits(
    node: &YamlNode<'_, '_>,
    without: &str,
    allowed_deployments: Option<&[DeploymentName]>,
    context: LimitContext<'_>,
) -> Option<Arc<ClientLimits>> {
    let map = node.read_mapping(&[&LIMIT_KEYS[..], &["deployments"]].concat())?;
    if map.is_empty() {
        return node.report_error(format!("must have a limit, such as tokens_per_minute: 200000; {without}"));
    }
    let total = read_limit_set(&map, context);
    let deployments = map.read_or("deployments", BTreeMap::new(), |node| {
        let entries = node.read_named_entries()?;
        if entries.is_empty() {
            return node.report_error(
                "must not be empty; remove the key, or write limits such as gpt-4o: { tokens_per_minute: 50000 }",
            );
        }
        let mut sets = BTreeMap::new();
        for (key, node) in &entries {
            let name = read_deployment_key(key, node, allowed_deployments, context.served_deployments);
            let set = read_deployment_limits(node, total.as_ref(), context);
            if let Some(name) = name
                && sets.insert(name, set).is_some()
            {
                node.report_error::<()>("is in the mapping twice: names are compared without case");
            }
        }
        sets.into_iter().map(|(name, set)| Some((name, set?))).collect()
    });
    Some(Arc::new(ClientLimits { total: total?, deployments: deployments? }))
}

fn read_limit_set(map: &YamlMapping<'_, '_>, context: LimitContext<'_>) -> Option<LimitSet> {
    let count = |key| map.read_optional(key, |node| node.read_integer(1..=MAX_LIMIT));
    let cost = |key| map.read_optional(key, |node| read_cost_limit(node, context));
    let (requests_per_minute, tokens_per_minute) = (count("requests_per_minute"), count("tokens_per_minute"));
    let (tokens_per_day, tokens_per_month) = (count("tokens_per_day"), count("tokens_per_month"));
    let (cost_per_day, cost_per_month) = (cost("cost_per_day"), cost("cost_per_month"));
    let in_flight = count("in_flight");
    Some(LimitSet {
        requests_per_minute: requests_per_minute?,
        tokens_per_minute: tokens_per_minute?,
        tokens_per_day: tokens_per_day?,
        tokens_per_month: tokens_per_month?,
        cost_per_day: cost_per_day?,
        cost_per_month: cost_per_month?,
        in_flight: in_flight?,
    })
}

fn read_cost_limit(node: &YamlNode<'_, '_>, context: LimitContext<'_>) -> Option<Amount> {
    let limit = node.read_parsed(|text| match Amount::parse(text.trim()) {
        Ok(amount) if amount > Amount::ZERO && amount <= MAX_COST => Ok(amount),
        Err(AmountError::TooPrecise) => Err("must have at most six decimals, such as 100.00".to_owned()),
        _ => Err(format!("must be an amount above 0 and up to {MAX_COST}, such as 100.00")),
    })?;
    if !context.has_prices {
        return node.report_error(COST_WITHOUT_PRICES);
    }
    Some(limit)
}

/// Reads the name of a deployment that has limits.
fn read_deployment_key(
    key: &str,
    node: &YamlNode<'_, '_>,
    allowed: Option<&[DeploymentName]>,
    served: Option<&HashSet<&DeploymentName>>,
) -> Option<DeploymentName> {
    if key == "*" {
        return node
            .report_error("must be a name; limits for all deployments together are written without it");
    }
    let name = match DeploymentName::parse(key) {
        Ok(name) => name,
        Err(problem) => return node.report_error(format!("{problem}; this key is not one")),
    };
    if allowed.is_some_and(|allowed| !allowed.contains(&name)) {
        node.report_error::<()>(
            "is not a deployment that this client may use; add it to the client's deployments, or remove it here",
        );
    } else if served.is_some_and(|served| !served.contains(&name)) {
        node.report_warning("has no effect: no backend serves this deployment");
    }
    Some(name)
}

/// Reads the limits of a deployment. Warns about those that are never reached.
fn read_deployment_limits(
    node: &YamlNode<'_, '_>,
    total: Option<&LimitSet>,
    context: LimitContext<'_>,
) -> Option<LimitSet> {
    let map = node.read_mapping_with_refused_keys(&LIMIT_KEYS, &[NESTED_DEPLOYMENTS])?;
    if map.is_empty() {
        return node.report_error(
            "must have a limit, such as tokens_per_minute: 50000; remove the name for no limits",
        );
    }
    let set = read_limit_set(&map, context)?;
    for ((key, limit), (_, total)) in set.named().into_iter().zip(total.map(LimitSet::named)?) {
        if limit.zip(total).is_some_and(|(limit, total)| limit > total) {
            map.report_warning_at(
                key,
                format!(
                    "has no effect: it is above {key} for all deployments together, which is reached first"
                ),
            );
        }
    }
    Some(set)
}

/// Reads a number from 0 to 1 as thousandths.
fn read_permille(node: &YamlNode<'_, '_>) -> Option<u32> {
    let thousandths = node.read_decimal(1.0, "0.5")? * 1000.0;
    // Exact for each number of up to three decimals.
    if thousandths.fract() != 0.0 {
        return node.report_error("must have at most three decimals, such as 0.5 or 0.125");
    }
    Some(thousandths as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{assert_errors, assert_warnings, errors_in, parse_valid};
    use crate::config::{ClientsConfig, RequestClass};

    const BACKENDS: &str = "backends: [ { name: a, endpoint: 'https://a.b', credential: { api_key: k }, deployments: { gpt-4o: x, o3: y } } ]\n";

    const PRICES: &str = "prices: { currency: USD, rows: [ { model: m, input: 1 } ] }\n";

    #[test]
    fn a_limit_by_cost_is_exact_and_needs_prices() {
        for (written, millionths) in
            [("100.00", 100_000_000), ("0.000001", 1), ("'1000000000'", MAX_LIMIT), ("'${FOUR}'", 4_000_000)]
        {
            let limits = format!(
                "{PRICES}limits: {{ default: {{ cost_per_day: {written}, deployments: {{ x: {{ cost_per_month: {written} }} }} }} }}"
            );
            let limits = parse_valid(&limits).config.limits.default.unwrap();
            let expected = Some(Amount::from_millionths(millionths));
            let of_deployment = limits.deployments.values().next().unwrap();
            assert_eq!(
                (limits.total.cost_per_day, of_deployment.cost_per_month),
                (expected, expected),
                "{written}"
            );
        }
        let prices_with_error = "prices: { currency: USD }\nlimits: { default: { cost_per_day: 1 } }";
        let problems = errors_in(prices_with_error);
        assert!(problems.iter().all(|problem| problem.starts_with("prices")), "{problems:?}");
    }

    /// A file with one client that has this key and these further keys.
    fn one_client(more: &str) -> String {
        format!("clients: [ {{ name: a, keys: [ {{ sha256: '{}' }} ], {more} }} ]", "a".repeat(64))
    }

    fn class_and_limits(more: &str) -> (RequestClass, Option<Arc<ClientLimits>>) {
        let ClientsConfig::Listed(clients) = parse_valid(&one_client(more)).config.clients else {
            panic!("the file lists a client")
        };
        (clients[0].class, clients[0].limits.clone())
    }

    fn tokens_per_minute(limit: u64) -> LimitSet {
        LimitSet { tokens_per_minute: Some(limit), ..LimitSet::default() }
    }

    #[test]
    fn without_any_key_nothing_is_limited() {
        let config = parse_valid("").config;
        let expected = LimitsConfig { mode: LimitMode::Enforce, default: None, cached_weight_permille: 1000 };
        assert_eq!((&config.limits, LimitsConfig::default()), (&expected, expected.clone()));
        assert_eq!(class_and_limits(""), (RequestClass::Standard, None));
    }

    #[test]
    fn written_values_replace_the_defaults() {
        let yaml = "limits: { mode: observe, default: { tokens_per_minute: 100000 }, cached_weight: 0.125 }";
        let expected = LimitsConfig {
            mode: LimitMode::Observe,
            default: Some(Arc::new(ClientLimits {
                total: tokens_per_minute(100_000),
                deployments: BTreeMap::new(),
            })),
            cached_weight_permille: 125,
        };
        assert_eq!(parse_valid(yaml).config.limits, expected);
        let yaml = "class: batch, limits: { requests_per_minute: 1, tokens_per_minute: 2, tokens_per_day: 3, \
                    tokens_per_month: '${FOUR}', in_flight: 1000000000000000, deployments: { GPT-4o: { tokens_per_minute: 2 } } }";
        let total = LimitSet {
            requests_per_minute: Some(1),
            tokens_per_minute: Some(2),
            tokens_per_day: Some(3),
            tokens_per_month: Some(4),
            cost_per_day: None,
            cost_per_month: None,
            in_flight: Some(1_000_000_000_000_000),
        };
        let deployment = DeploymentName::parse("gpt-4O").unwrap();
        let limits =
            ClientLimits { total, deployments: BTreeMap::from([(deployment, tokens_per_minute(2))]) };
        assert_eq!(class_and_limits(yaml), (RequestClass::Batch, Some(Arc::new(limits))));
        let limits = class_and_limits("limits: { deployments: { x: { in_flight: 1 } } }").1.unwrap();
        assert_eq!((limits.total, limits.deployments.len()), (LimitSet::default(), 1));
    }

    #[test]
    fn each_limit_stands_beside_its_key() {
        for key in LIMIT_KEYS {
            let ClientsConfig::Listed(clients) =
                parse_valid(&format!("{PRICES}{}", one_client(&format!("limits: {{ {key}: 7 }}"))))
                    .config
                    .clients
            else {
                panic!("the file lists a client")
            };
            let limits = clients[0].limits.clone().unwrap();
            let written: Vec<_> =
                limits.total.named().into_iter().filter(|(_, limit)| limit.is_some()).collect();
            assert_eq!(written, [(key, Some(if key.starts_with("cost") { 7_000_000 } else { 7 }))]);
        }
    }

    #[test]
    fn the_weight_of_cached_tokens_is_kept_in_thousandths() {
        for (yaml, expected) in [
            ("0", Ok(0)),
            ("1", Ok(1000)),
            ("1.000", Ok(1000)),
            ("0.5", Ok(500)),
            ("0.001", Ok(1)),
            ("0.999", Ok(999)),
            ("0.57", Ok(570)),
            ("0.285", Ok(285)),
            ("'0.5'", Ok(500)),
            ("0.0005", Err("must have at most three decimals, such as 0.5 or 0.125")),
            ("1.001", Err("must be a number from 0 to 1, such as 0.5")),
            ("-0.5", Err("must be a number from 0 to 1, such as 0.5")),
            ("50%", Err("must be a number from 0 to 1, such as 0.5")),
            (".5", Err("must be a number from 0 to 1, such as 0.5")),
            ("[]", Err("must be a number, not a list")),
            ("", Err("is empty; remove it or give it a value")),
        ] {
            let yaml = format!("limits: {{ default: {{ in_flight: 1 }}, cached_weight: {yaml} }}");
            match expected {
                Ok(permille) => {
                    assert_eq!(parse_valid(&yaml).config.limits.cached_weight_permille, permille, "{yaml}");
                }
                Err(problem) => {
                    assert_eq!(errors_in(&yaml), [format!("limits.cached_weight: {problem}")], "{yaml}");
                }
            }
        }
    }

    #[test]
    fn invalid_limits_are_reported_for_clients_and_for_the_default() {
        const NUMBER: &str = "must be a whole number from 1 to 1000000000000000";
        const KEYS: &str = "requests_per_minute, tokens_per_minute, tokens_per_day, tokens_per_month, cost_per_day, cost_per_month";
        let cost = |key: &str| format!("{key}: {COST_WITHOUT_PRICES}");
        let amount =
            |key: &str| format!("{key}: must be an amount above 0 and up to 1000000000, such as 100.00");
        let empty_deployment = ".deployments.x: must have a limit, such as tokens_per_minute: 50000; remove the name for no limits";
        for (limits, expected) in [
            ("{ requests_per_minute: 0 }", vec![format!(".requests_per_minute: {NUMBER}")]),
            ("{ tokens_per_minute: -1 }", vec![format!(".tokens_per_minute: {NUMBER}")]),
            ("{ tokens_per_day: 1.5 }", vec![format!(".tokens_per_day: {NUMBER}")]),
            ("{ tokens_per_month: 1_000 }", vec![format!(".tokens_per_month: {NUMBER}")]),
            ("{ tokens_per_month: 1000000000000001 }", vec![format!(".tokens_per_month: {NUMBER}")]),
            ("{ in_flight: many }", vec![format!(".in_flight: {NUMBER}")]),
            ("{ in_flight: [1] }", vec![".in_flight: must be a number, not a list".to_owned()]),
            ("{ in_flight: }", vec![".in_flight: is empty; remove it or give it a value".to_owned()]),
            ("5", vec![format!(": must be a mapping with {KEYS}, in_flight or deployments, not a number")]),
            ("", vec![": is empty; remove it or give it a value".to_owned()]),
            ("{ token_per_minute: 5 }", vec![".token_per_minute: unknown key; did you mean `tokens_per_minute`?".to_owned()]),
            ("{ speed: 5 }", vec![format!(".speed: unknown key; the keys here are {KEYS}, in_flight and deployments")]),
            ("{ cost_per_day: 100.00, cost_per_month: 2000 }", vec![cost(".cost_per_day"), cost(".cost_per_month")]),
            ("{ cost_per_day: x, cost_per_month: 0 }", vec![amount(".cost_per_day"), amount(".cost_per_month")]),
            ("{ cost_per_day: -1, cost_per_month: 1000000000.000001 }", vec![amount(".cost_per_day"), amount(".cost_per_month")]),
            ("{ cost_per_day: $5, cost_per_month: 1e3 }", vec![amount(".cost_per_day"), amount(".cost_per_month")]),
            ("{ cost_per_day: 0.0000001 }", vec![".cost_per_day: must have at most six decimals, such as 100.00".to_owned()]),
            ("{ cost_per_day: [1] }", vec![".cost_per_day: must be a string, not a list".to_owned()]),
            (
                "{ deployments: {} }",
                vec![".deployments: must not be empty; remove the key, or write limits such as gpt-4o: { tokens_per_minute: 50000 }".to_owned()],
            ),
            ("{ deployments: [x] }", vec![".deployments: must be a mapping of names, not a list".to_owned()]),
            ("{ deployments: { x: {} } }", vec![empty_deployment.to_owned()]),
            ("{ deployments: { x: } }", vec![".deployments.x: is empty; remove it or give it a value".to_owned()]),
            ("{ deployments: { x: 5 } }", vec![format!(".deployments.x: must be a mapping with {}, not a number", KEYS.to_owned() + " or in_flight")]),
            ("{ deployments: { x: { in_flight: 0 } } }", vec![format!(".deployments.x.in_flight: {NUMBER}")]),
            ("{ deployments: { x: { cost_per_day: 1 } } }", vec![cost(".deployments.x.cost_per_day")]),
            ("{ deployments: { x: { deployments: {} } } }", vec![format!(".deployments.x.deployments: {}", NESTED_DEPLOYMENTS.1)]),
            (
                "{ deployments: { '*': { in_flight: 1 } } }",
                vec![".deployments[\"*\"]: must be a name; limits for all deployments together are written without it".to_owned()],
            ),
            (
                "{ deployments: { a b: { in_flight: 1 } } }",
                vec![".deployments[…]: a deployment name has 1 to 64 of the characters A-Z a-z 0-9 . _ -; this key is not one".to_owned()],
            ),
            (
                "{ deployments: { X: { in_flight: 1 }, x: { in_flight: 1 } } }",
                vec![".deployments.x: is in the mapping twice: names are compared without case".to_owned()],
            ),
        ] {
            let under = |path: &str| expected.iter().map(|problem| format!("{path}{problem}")).collect::<Vec<_>>();
            assert_eq!(errors_in(&one_client(&format!("limits: {limits}"))), under("clients[0].limits"), "{limits}");
            assert_eq!(errors_in(&format!("limits: {{ default: {limits} }}")), under("limits.default"), "{limits}");
        }
        assert_errors(&[
            (
                &one_client("class: urgent, limits: {}"),
                &[
                    "clients[0].class: must be interactive, standard or batch",
                    "clients[0].limits: must have a limit, such as tokens_per_minute: 200000; without the key, limits.default applies",
                ],
            ),
            (
                "limits: { mode: warn, default: {}, cache_weight: 1 }",
                &[
                    "limits.cache_weight: unknown key; did you mean `cached_weight`?",
                    "limits.mode: must be enforce or observe",
                    "limits.default: must have a limit, such as tokens_per_minute: 200000; remove the key for no limits",
                ],
            ),
            ("limits: 5", &["limits: must be a mapping with mode, default or cached_weight, not a number"]),
            (
                &one_client(
                    "deployments: [gpt-4o], limits: { deployments: { GPT-4o: { in_flight: 1 }, o3: { in_flight: 1 } } }",
                ),
                &[
                    "clients[0].limits.deployments.o3: is not a deployment that this client may use; add it to the client's deployments, or remove it here",
                ],
            ),
        ]);
    }

    #[test]
    fn limits_without_effect_are_warnings() {
        let with_backends = |more: &str| format!("{BACKENDS}{}", one_client(more));
        let above = "has no effect: it is above tokens_per_minute for all deployments together, which is reached first";
        let default = "limits: { default: { in_flight: 1 } }\n";
        let other = format!("{{ name: b, keys: [ {{ sha256: '{}' }} ] }}, {{ name: a", "b".repeat(64));
        let two_clients = one_client("limits: { in_flight: 1 }").replace("{ name: a", &other);
        let two_clients = format!("{default}{two_clients}");
        assert_warnings(&[
            (
                &with_backends(
                    "limits: { deployments: { GPT-4O: { in_flight: 1 }, gpt-5: { in_flight: 1 } } }",
                ),
                &["clients[0].limits.deployments.gpt-5: has no effect: no backend serves this deployment"],
            ),
            (
                &format!(
                    "{BACKENDS}limits: {{ default: {{ deployments: {{ gpt-5: {{ in_flight: 1 }} }} }} }}"
                ),
                &["limits.default.deployments.gpt-5: has no effect: no backend serves this deployment"],
            ),
            // One backend serves every name.
            (&one_client("limits: { deployments: { gpt-5: { in_flight: 1 } } }"), &[]),
            (
                &one_client(
                    "limits: { tokens_per_minute: 5, deployments: { x: { tokens_per_minute: 6, in_flight: 9 }, y: { tokens_per_minute: 5 } } }",
                ),
                &[&format!("clients[0].limits.deployments.x.tokens_per_minute: {above}")],
            ),
            (
                "limits: { mode: observe }",
                &["limits: has no effect: it has no default, and no client has limits"],
            ),
            (&format!("limits: {{}}\n{}", one_client("limits: { in_flight: 1 }")), &[]),
            (
                &format!("{default}{}", one_client("limits: { in_flight: 1 }")),
                &["limits.default: has no effect: every client has limits of its own"],
            ),
            (&format!("{default}{}", one_client("")), &[]),
            (&two_clients, &[]),
            (default, &[]),
        ]);
    }
}
