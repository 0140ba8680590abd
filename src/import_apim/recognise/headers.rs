//! `set-header` and `set-query-parameter` on the way to a backend.

use http::HeaderName;

use super::credentials::header_value;
use crate::config::{is_api_version, reserved_header_reason};
use crate::import_apim::plan::{Plan, Value};
use crate::import_apim::reading::Element;
use crate::import_apim::report::Outcome;
use crate::import_apim::text::{as_named_value, is_expression, with_named_values};
use crate::import_apim::variables::{VariableKind, Variables};

/// Headers of which a value is no secret.
const HARMLESS_HEADERS: [&str; 4] = ["content-type", "accept", "accept-language", "user-agent"];

/// What became of a statement, and what to do instead if it has no counterpart.
pub(super) type Handled = (Outcome, Option<&'static str>);

/// A header that is not a credential, or one that is deleted.
pub(super) fn set_header(element: &Element, plan: &mut Plan, variables: &mut Variables) -> Handled {
    let written_name = element.attribute("name").unwrap_or_default();
    let name = written_name.to_ascii_lowercase();
    let is_client_credential = ["api-key", "authorization", "ocp-apim-subscription-key", "subscription-key"]
        .contains(&name.as_str());
    let Some(value) = header_value(element) else {
        return if is_client_credential {
            // No credential of a client reaches a backend.
            (Outcome::Implied, None)
        } else {
            (Outcome::Left, Some("to remove a header of clients, list it in requests.remove_headers"))
        };
    };
    if is_client_credential && is_expression(value) {
        // A token of a managed identity, by way of a variable.
        return (Outcome::Implied, None);
    }
    if is_expression(value) {
        return (
            Outcome::Left,
            Some("the value is computed; constant headers are set by requests.set_headers"),
        );
    }
    let is_settable = HeaderName::from_bytes(written_name.as_bytes()).is_ok()
        && reserved_header_reason(&name).is_none()
        && plan.set_headers.len() < 100;
    if !is_settable {
        return (Outcome::Left, Some("aoai-lb sets or removes this header itself"));
    }
    if element.attribute("exists-action") == Some("append") {
        return (Outcome::Left, Some("headers are set, not appended: requests.set_headers"));
    }
    let is_harmless = HARMLESS_HEADERS.contains(&name.as_str()) && value.len() <= 128;
    let value = match with_named_values(value, VariableKind::Text, variables) {
        Some(found) if is_harmless || as_named_value(value).is_some() => found,
        _ => {
            plan.request_comments.push(format!(
                "{}: the value of {} could be a secret and is not repeated here.",
                element.place, name
            ));
            let purpose = format!("the value of the header {name}");
            Value::variable(variables.add(&name, VariableKind::Text, purpose))
        }
    };
    if element.attribute("exists-action") == Some("skip") {
        plan.request_comments.push(format!(
            "{}: in the policy only if the client sends none; here it replaces what the client sends.",
            element.place
        ));
    }
    plan.set_headers.insert(name, value);
    (Outcome::Mapped, None)
}

/// A query parameter.
pub(super) fn set_query_parameter(element: &Element, plan: &mut Plan, variables: &mut Variables) -> Handled {
    let name = element.attribute("name").unwrap_or_default();
    let Some(value) = header_value(element).filter(|_| name.eq_ignore_ascii_case("api-version")) else {
        return (Outcome::Left, Some("aoai-lb sets no query parameter other than api-version"));
    };
    let value = match as_named_value(value) {
        Some(name) => Value::variable(variables.named_value(name, VariableKind::Version)),
        None if is_api_version(value) => Value::literal(value),
        None => return (Outcome::Left, Some("the version is not a date; write requests.api_version")),
    };
    if element.attribute("exists-action") == Some("skip") {
        plan.api_version.get_or_insert(value);
    } else {
        plan.api_version_override.get_or_insert(value);
    }
    (Outcome::Mapped, None)
}
