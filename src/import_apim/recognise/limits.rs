//! Limits of clients: tokens and calls.

use crate::import_apim::plan::{Limits, Value};
use crate::import_apim::reading::{Element, tokens};
use crate::import_apim::text::{is_expression, limit_number};
use crate::import_apim::variables::{VariableKind, Variables};

/// What became of a limit.
pub(super) enum FoundLimits {
    /// The keys of a client's limits, with comments.
    Limits(Limits, Vec<String>),
    /// No counterpart, and what to do instead.
    None(String),
}

/// Whose requests a limit counts together.
enum CountedBy {
    Client,
    /// Each deployment of a client.
    ClientAndDeployment,
    Address,
    All,
    Other,
}

/// Whose requests `counter-key` counts together.
fn counted_by(element: &Element) -> CountedBy {
    let Some(key) = element.attribute("counter-key") else { return CountedBy::Client };
    if !is_expression(key) {
        return CountedBy::All;
    }
    let words = tokens(key);
    let has = |names: &[&str]| words.iter().any(|word| names.iter().any(|name| word.is_word(name)));
    let has_text = |names: &[&str]| {
        words.iter().any(|word| {
            matches!(word, crate::import_apim::reading::Token::Text(text)
            if names.iter().any(|name| text.eq_ignore_ascii_case(name)))
        })
    };
    let is_by_client = has(&["Subscription", "User", "Jwt", "AsJwt"])
        || has_text(&["api-key", "Ocp-Apim-Subscription-Key", "Authorization", "subscription-key"]);
    if has(&["MatchedParameters", "Body"]) || has_text(&["deployment-id", "model"]) {
        if is_by_client { CountedBy::ClientAndDeployment } else { CountedBy::Other }
    } else if is_by_client {
        CountedBy::Client
    } else if has(&["IpAddress"]) {
        CountedBy::Address
    } else {
        CountedBy::Other
    }
}

/// `azure-openai-token-limit` and `llm-token-limit`. `is_of_deployments`: under a condition that names deployments.
pub(super) fn token_limits(
    element: &Element,
    is_of_deployments: bool,
    variables: &mut Variables,
) -> FoundLimits {
    if let Some(reason) = why_not_by_client(element, is_of_deployments) {
        return FoundLimits::None(reason);
    }
    let (mut limits, mut comments) = (Limits::new(), Vec::new());
    if let Some(written) = element.attribute("tokens-per-minute") {
        limits.insert("tokens_per_minute", number(written, "TOKENS_PER_MINUTE", variables, &mut comments));
    }
    if let Some(written) = element.attribute("token-quota") {
        let key = match element.attribute("token-quota-period").unwrap_or_default() {
            "Daily" => Some("tokens_per_day"),
            "Monthly" => Some("tokens_per_month"),
            _ => None,
        };
        match key {
            Some(key) => {
                limits.insert(key, number(written, &key.to_ascii_uppercase(), variables, &mut comments));
            }
            None => comments.push(format!(
                "{}: a quota for an hour, a week or a year has no counterpart; choose tokens_per_day or tokens_per_month.",
                element.place
            )),
        }
    }
    if limits.is_empty() {
        let hint = "choose limits of the client: tokens_per_minute, tokens_per_day or tokens_per_month (docs/limits.md)";
        return FoundLimits::None(hint.to_owned());
    }
    FoundLimits::Limits(limits, comments)
}

/// `rate-limit`, `rate-limit-by-key`, `quota` and `quota-by-key`; `is_of_deployments` as above.
pub(super) fn call_limits(
    element: &Element,
    is_of_deployments: bool,
    variables: &mut Variables,
) -> FoundLimits {
    if let Some(reason) = why_not_by_client(element, is_of_deployments) {
        return FoundLimits::None(reason);
    }
    let is_rate = element.name.starts_with("rate-limit");
    let counts_tokens = element.attribute("increment-count").is_some_and(|count| count.contains("tokens"));
    let mut comments = Vec::new();
    let Some(calls) = element.attribute("calls") else {
        let hint = "a limit by bytes has no counterpart; limit tokens_per_day or tokens_per_month of the client \
                    (docs/limits.md)";
        return FoundLimits::None(hint.to_owned());
    };
    if !is_rate && !counts_tokens {
        let hint = "a quota of calls has no counterpart; limit tokens_per_day, tokens_per_month or requests_per_minute of \
                    the client (docs/limits.md)";
        return FoundLimits::None(hint.to_owned());
    }
    let period = element.attribute("renewal-period").and_then(|period| period.parse::<u64>().ok());
    let (key, unit) = match (counts_tokens, period) {
        (true, Some(86_400)) => ("tokens_per_day", 86_400),
        (true, Some(2_592_000..=2_678_400)) => ("tokens_per_month", period.unwrap_or(60)),
        (true, _) => ("tokens_per_minute", 60),
        (false, _) => ("requests_per_minute", 60),
    };
    let value = match (calls.parse::<u64>(), period) {
        (Ok(calls), Some(period)) if period > 0 && period != unit => {
            comments.push(format!(
                "{}: in the policy {calls} in {period} s; converted to a minute, it allows shorter bursts or longer ones.",
                element.place
            ));
            let scaled = u128::from(calls) * u128::from(unit) / u128::from(period);
            Value::literal(scaled.clamp(1, 1_000_000_000_000_000).to_string())
        }
        _ => number(calls, &key.to_ascii_uppercase(), variables, &mut comments),
    };
    FoundLimits::Limits(Limits::from([(key, value)]), comments)
}

fn why_not_by_client(element: &Element, is_of_deployments: bool) -> Option<String> {
    let reason = match counted_by(element) {
        CountedBy::Client => return None,
        CountedBy::ClientAndDeployment if is_of_deployments => return None,
        CountedBy::ClientAndDeployment => {
            "it counts each deployment of a client on its own; name them in limits.default.deployments"
        }
        CountedBy::All => {
            "it counts all clients together; limit each client (limits.default, or clients[].limits) so that the sum fits"
        }
        CountedBy::Address => {
            "it counts by address; limit each client instead (limits.default), and connections by \
             listeners[].connections_per_client"
        }
        CountedBy::Other => {
            "it counts by something other than the client; limit each client (limits.default), and deployments of it by \
             clients[].limits.deployments"
        }
    };
    Some(reason.to_owned())
}

/// A number, or a variable if it is computed.
fn number(written: &str, wish: &str, variables: &mut Variables, comments: &mut Vec<String>) -> Value {
    limit_number(written, variables).unwrap_or_else(|| {
        comments.push("A limit is computed in the policy, or is not a number from 1.".to_owned());
        Value::variable(variables.add(
            wish,
            VariableKind::Number,
            "a limit that the policy computes".to_owned(),
        ))
    })
}
