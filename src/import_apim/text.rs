//! Values of policies as values of the configuration: named values, URLs, numbers, and what is an expression.

use super::plan::{Part, Value};
use super::variables::{VariableKind, Variables};
use crate::config::Endpoint;

/// The paths after a host that an endpoint may have, and which say nothing.
const USUAL_PATHS: [&str; 5] = ["", "/", "/openai", "/openai/", "/openai/v1"];

/// Whether it is `@(…)` or `@{…}`.
pub(super) fn is_expression(text: &str) -> bool {
    text.starts_with("@(") || text.starts_with("@{")
}

/// The named value, if the text is `{{name}}` and nothing else.
pub(super) fn as_named_value(text: &str) -> Option<&str> {
    let name = text.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    (!name.is_empty() && !name.contains(['{', '}'])).then_some(name)
}

/// The text with its named values as variables of this kind. `None` if a literal part is not printable ASCII.
pub(super) fn with_named_values(text: &str, kind: VariableKind, variables: &mut Variables) -> Option<Value> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}")?;
        if !before.is_empty() {
            parts.push(Part::Literal(before.to_owned()));
        }
        parts.push(Part::Variable(variables.named_value(name, kind)));
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Literal(rest.to_owned()));
    }
    let is_printable = |part: &Part| match part {
        Part::Literal(text) => text.bytes().all(|b| b.is_ascii_graphic() || b == b' '),
        Part::Variable(_) => true,
    };
    (!parts.is_empty() && parts.iter().all(is_printable)).then_some(Value(parts))
}

/// The endpoint that a URL of a policy names, and comments about what of it is not in it. `backend` is the backend's name.
pub(super) fn endpoint(url: &str, backend: &str, variables: &mut Variables) -> (Value, Vec<String>) {
    let mut own = |reason: &str| {
        let wish = format!("{backend}_ENDPOINT");
        let name = variables.add(&wish, VariableKind::Url, format!("the endpoint of {backend}"));
        (Value::variable(name), vec![reason.to_owned()])
    };
    if is_expression(url) || url.starts_with('[') {
        return own("The endpoint is computed in the policy or template.");
    }
    let (base, path) = split_url(url);
    if let Some(name) = as_named_value(base) {
        let value = Value::variable(variables.named_value(name, VariableKind::Url));
        return (value, path_comment(path));
    }
    if base.contains("{{") {
        return own("Part of the endpoint is a named value.");
    }
    match Endpoint::parse(base) {
        Ok(endpoint) => {
            let scheme = if endpoint.uses_tls { "https" } else { "http" };
            (Value::literal(format!("{scheme}://{}", endpoint.authority())), path_comment(path))
        }
        Err(_) => own("The policy has no URL here that is an endpoint."),
    }
}

/// Splits a URL after its host.
fn split_url(url: &str) -> (&str, &str) {
    let after_scheme = url.find("://").map_or(0, |at| at + 3);
    let host_end = url.get(after_scheme..).and_then(|rest| rest.find(['/', '?', '#']));
    url.split_at(host_end.map_or(url.len(), |at| after_scheme + at))
}

fn path_comment(path: &str) -> Vec<String> {
    if USUAL_PATHS.contains(&path.to_ascii_lowercase().as_str()) {
        return Vec::new();
    }
    let text = if path.contains("/deployments/") {
        "The URL in the policy names a deployment. If clients use another name, write deployments: { NAME-FOR-CLIENTS: \
         NAME-ON-THIS-RESOURCE }."
    } else {
        "The URL in the policy has a path after the host, which is not used: aoai-lb forwards the path of the client."
    };
    vec![text.to_owned()]
}

/// A number of a limit: a literal or a named value. `None` for anything else.
pub(super) fn limit_number(text: &str, variables: &mut Variables) -> Option<Value> {
    if let Some(name) = as_named_value(text) {
        return Some(Value::variable(variables.named_value(name, VariableKind::Number)));
    }
    let number: u64 = text.trim().parse().ok()?;
    (1..=1_000_000_000_000_000).contains(&number).then(|| Value::literal(number.to_string()))
}

/// A valid name for a backend or client that is like `wish`.
pub(super) fn entry_name(wish: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = wish.chars().take(56).map(allowed).collect();
    let name = name.trim_matches(['-', '.']).to_owned();
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_become_endpoints_or_variables() {
        let no_url = "The policy has no URL here that is an endpoint.";
        let expected = [
            ("https://A.openai.azure.com/openai", Some("https://a.openai.azure.com"), ""),
            ("https://a.b:8443/", Some("https://a.b:8443"), ""),
            ("{{url}}/openai", None, ""),
            ("https://{{name}}.openai.azure.com", None, "Part of the endpoint is a named value."),
            ("https://user:secret@a.b", None, no_url),
            ("nonsense", None, no_url),
            ("@(x)", None, "The endpoint is computed in the policy or template."),
        ];
        for (url, literal, comment) in expected {
            let (value, comments) = endpoint(url, "b", &mut Variables::default());
            assert_eq!((value.as_literal(), comments.join("")), (literal, comment.to_owned()), "{url}");
        }
        let (_, comments) =
            endpoint("https://a.b/openai/deployments/x?sig=secret", "b", &mut Variables::default());
        assert!(comments[0].contains("names a deployment") && !comments[0].contains("secret"));
    }

    #[test]
    fn names_are_valid() {
        for (wish, name) in [("a b/c", "a-b-c"), ("..", "unnamed"), ("é", "unnamed"), ("x.y_z-1", "x.y_z-1")]
        {
            assert_eq!(entry_name(wish), name);
        }
        assert!(entry_name(&"x".repeat(100)).len() < 64);
    }
}
