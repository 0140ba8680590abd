//! Reads and checks `balance` and `pools`.

use std::collections::BTreeMap;

use super::partial_backends::PartialBackends;
use crate::config::schema::BalancePolicy;
use crate::config::yaml::{YamlMapping, YamlNode, closest_match};
use crate::names::DeploymentName;

const POLICIES: [BalancePolicy; 3] =
    [BalancePolicy::RoundRobin, BalancePolicy::Headroom, BalancePolicy::PromptCache];

/// Reads `balance`.
pub(super) fn read_balance_policy(root: &YamlMapping<'_, '_>) -> Option<BalancePolicy> {
    root.read_or("balance", BalancePolicy::Headroom, read_policy)
}

/// Reads `pools`: the policies of deployments that have their own.
pub(super) fn read_pool_policies(
    root: &YamlMapping<'_, '_>,
    backends: Option<&PartialBackends>,
) -> Option<BTreeMap<DeploymentName, BalancePolicy>> {
    let served = backends.and_then(PartialBackends::served_deployments);
    root.read_or("pools", BTreeMap::new(), |node| {
        let entries = node.read_named_entries()?;
        if entries.is_empty() {
            return node.report_error(
                "must not be empty; remove the key, or write a deployment such as gpt-4o: { balance: prompt_cache }",
            );
        }
        let mut policies = BTreeMap::new();
        for (key, node) in &entries {
            let name = read_deployment(key, node);
            let map = node.read_mapping(&["balance"]);
            let policy = map.and_then(|map| {
                read_policy(&map.require("balance", "write round_robin, headroom or prompt_cache")?)
            });
            let Some(name) = name else { continue };
            if let Some(served) = &served
                && !served.contains(&name)
            {
                let near = closest_match(key, served.iter().map(|name| name.as_str()));
                let suggestion = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                node.report_error::<()>(format!("no backend serves this deployment{suggestion}"));
            }
            if policies.insert(name, policy).is_some() {
                node.report_error::<()>("is in the mapping twice: names are compared without case");
            }
        }
        policies.into_iter().map(|(name, policy)| Some((name, policy?))).collect()
    })
}

fn read_policy(node: &YamlNode<'_, '_>) -> Option<BalancePolicy> {
    node.read_choice(&POLICIES.map(|policy| (policy.as_str(), policy)))
}

fn read_deployment(key: &str, node: &YamlNode<'_, '_>) -> Option<DeploymentName> {
    if key == "*" {
        return node.report_error("must be a name; what applies to all deployments is written as `balance`");
    }
    match DeploymentName::parse(key) {
        Ok(name) => Some(name),
        Err(problem) => node.report_error(format!("{problem}; this key is not one")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{assert_errors, parse_valid};

    const BACKENDS: &str = "backends: [ { name: a, endpoint: 'https://a.b', credential: { api_key: k }, deployments: { gpt-4o: x, o3: y } } ]\n";

    #[test]
    fn deployments_have_their_own_policy_or_that_of_all() {
        for (yaml, gpt_4o, o3) in [
            ("", BalancePolicy::Headroom, BalancePolicy::Headroom),
            ("balance: round_robin", BalancePolicy::RoundRobin, BalancePolicy::RoundRobin),
            ("balance: prompt_cache", BalancePolicy::PromptCache, BalancePolicy::PromptCache),
            (
                "pools: { GPT-4o: { balance: prompt_cache } }",
                BalancePolicy::PromptCache,
                BalancePolicy::Headroom,
            ),
            (
                "balance: prompt_cache\npools: { gpt-4o: { balance: headroom }, o3: { balance: round_robin } }",
                BalancePolicy::Headroom,
                BalancePolicy::RoundRobin,
            ),
        ] {
            let config = parse_valid(&format!("{BACKENDS}{yaml}")).config;
            let policy = |name| config.balance_policy_of(&DeploymentName::parse(name).unwrap());
            assert_eq!((policy("gpt-4o"), policy("O3")), (gpt_4o, o3), "{yaml}");
        }
        // A backend that passes every name on may serve it.
        parse_valid("pools: { anything: { balance: prompt_cache } }");
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        let with = |yaml: &str| format!("{BACKENDS}{yaml}");
        assert_errors(&[
            ("balance: cache", &["balance: must be round_robin, headroom or prompt_cache"]),
            (
                "pools: {}",
                &[
                    "pools: must not be empty; remove the key, or write a deployment such as gpt-4o: { balance: prompt_cache }",
                ],
            ),
            ("pools: prompt_cache", &["pools: must be a mapping of names, not a string"]),
            (
                &with("pools: { gpt4o: { balance: prompt_cache }, other: { balance: headroom } }"),
                &[
                    "pools.gpt4o: no backend serves this deployment; did you mean `gpt-4o`?",
                    "pools.other: no backend serves this deployment",
                ],
            ),
            (
                &with("pools: { gpt-4o: { balance: random }, o3: {}, GPT-4O: { balance: headroom } }"),
                &[
                    "pools.gpt-4o.balance: must be round_robin, headroom or prompt_cache",
                    "pools.o3.balance: is missing; write round_robin, headroom or prompt_cache",
                    "pools.GPT-4O: is in the mapping twice: names are compared without case",
                ],
            ),
            (
                &with("pools: { '*': { balance: headroom }, gpt-4o: { balanced: headroom } }"),
                &[
                    "pools[\"*\"]: must be a name; what applies to all deployments is written as `balance`",
                    "pools.gpt-4o.balanced: unknown key; did you mean `balance`?",
                    "pools.gpt-4o.balance: is missing; write round_robin, headroom or prompt_cache",
                ],
            ),
        ]);
    }
}
