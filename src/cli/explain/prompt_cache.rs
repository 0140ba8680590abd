//! How an explained request is routed by its prompt.

use crate::config::BalancePolicy;
use crate::gateway::{AdmittedRequest, Gateway, SESSION_HEADERS};

/// The key that is shown without `--cache-key`.
const EXAMPLE_KEY: &str = "example";

/// Where the key of a request is from, and the order of the backends for a key; nothing if requests are not routed by
/// their prompts.
pub(super) fn cache_lines(
    gateway: &Gateway,
    admitted: &AdmittedRequest,
    cache_key: Option<&str>,
) -> Vec<String> {
    if admitted.pool.balance_policy() != BalancePolicy::PromptCache {
        let unused =
            cache_key.map(|_| "--cache-key has no effect: only balance: prompt_cache has keys".to_owned());
        return unused.into_iter().collect();
    }
    let mut lines = vec![
        format!(
            "the key is prompt_cache_key in the body, else the header {}, else made from the beginning of the prompt",
            SESSION_HEADERS.join(", ")
        ),
        "requests with less than 4 KiB of text take turns as with balance: headroom".to_owned(),
    ];
    let Some(route) = gateway.prompt_route_of_key(admitted, cache_key.unwrap_or(EXAMPLE_KEY)) else {
        lines.push("the call names no deployment: it is not balanced".to_owned());
        return lines;
    };
    let order = admitted.pool.key_order(route.key);
    let names = order.into_iter().filter_map(|index| {
        let candidate = admitted.pool.candidate(index)?;
        let backend = gateway.backends.get(candidate.backend_index)?;
        Some(backend.config.name.to_string())
    });
    let names = names.collect::<Vec<_>>().join(", ");
    lines.push(match cache_key {
        Some(key) => format!("--cache-key {key} is key {} and has the order {names}", route.key),
        None => format!("each key has an order of its own; that of \"{EXAMPLE_KEY}\" is {names} (--cache-key KEY shows another)"),
    });
    lines
}
