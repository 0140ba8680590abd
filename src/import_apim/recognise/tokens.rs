//! `validate-jwt` and `validate-azure-ad-token`: which tokens of Entra ID are accepted from clients.

use crate::import_apim::plan::{Part, Tokens, Value};
use crate::import_apim::reading::Element;
use crate::import_apim::text::{as_named_value, is_expression, with_named_values};
use crate::import_apim::variables::{VariableKind, Variables};

const PUBLIC_AUTHORITY: &str = "login.microsoftonline.com";
const AUTHORITIES: [&str; 4] =
    [PUBLIC_AUTHORITY, "sts.windows.net", "login.microsoftonline.us", "login.partner.microsoftonline.cn"];
/// The most values of one kind.
const MAX_VALUES: usize = 200;

/// What a statement accepts.
pub(super) struct FoundTokens {
    pub(super) tokens: Tokens,
    pub(super) app_ids: Vec<Value>,
    pub(super) roles: Vec<Value>,
}

/// Reads a statement. `None` if it is about another issuer than Entra ID.
pub(super) fn read_tokens(element: &Element, variables: &mut Variables) -> Option<FoundTokens> {
    let config_url =
        element.children_named("openid-config").next().and_then(|config| config.attribute("url"));
    let mut comments = vec![format!("{}: {}", element.place, element.name)];
    let (tenant, authority) = match (element.attribute("tenant-id"), config_url) {
        (Some(tenant), _) => (tenant, None),
        (None, Some(url)) => {
            let (host, rest) = url.strip_prefix("https://")?.split_once('/')?;
            let known = AUTHORITIES.iter().find(|known| host.eq_ignore_ascii_case(known))?;
            let is_other = known.starts_with("login.") && *known != PUBLIC_AUTHORITY;
            (rest.split('/').next()?, is_other.then(|| format!("https://{known}")))
        }
        (None, None) => return None,
    };
    let is_id = |text: &str| text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    let tenant = match as_named_value(tenant) {
        Some(name) => Value::variable(variables.named_value(name, VariableKind::Id)),
        None if is_id(tenant) => Value::literal(tenant),
        None => {
            comments.push(
                "The tenant is not written as an id; aoai-lb needs the id of the directory.".to_owned(),
            );
            Value::variable(variables.add(
                "TENANT_ID",
                VariableKind::Id,
                "the id of the directory".to_owned(),
            ))
        }
    };
    let mut texts = |values: Vec<&str>, kind| collect(&values, kind, variables);
    let mut audiences = texts(element.texts_in("audiences", "audience").collect(), VariableKind::Text);
    audiences.extend(texts(
        element.texts_in("backend-application-ids", "application-id").collect(),
        VariableKind::Text,
    ));
    let issuers = texts(element.texts_in("issuers", "issuer").collect(), VariableKind::Text);
    let mut app_ids =
        texts(element.texts_in("client-application-ids", "application-id").collect(), VariableKind::Id);
    let mut roles = Vec::new();
    let mut other_claims = Vec::new();
    let claims = element.children_named("required-claims").flat_map(|claims| claims.children_named("claim"));
    for claim in claims {
        let values: Vec<&str> = claim.children_named("value").map(Element::text).collect();
        match claim.attribute("name").unwrap_or_default() {
            "appid" | "azp" => app_ids.extend(texts(values, VariableKind::Id)),
            "roles" => roles.extend(texts(values, VariableKind::Text)),
            _ => other_claims.push(claim.place.clone()),
        }
    }
    for place in other_claims.into_iter().take(MAX_VALUES) {
        comments.push(format!(
            "{place}: this claim is not checked. aoai-lb decides by application ids (app_ids) and app roles (roles)."
        ));
    }
    if audiences.is_empty() {
        comments.push(
            "The policy names no audience, and accepts tokens for anyone; aoai-lb needs it.".to_owned(),
        );
        let purpose = "the audience of the tokens, such as api://APP-ID".to_owned();
        audiences.push(Value::variable(variables.add("TOKEN_AUDIENCE", VariableKind::Text, purpose)));
    }
    for values in [&mut audiences, &mut app_ids, &mut roles] {
        remove_duplicates(values);
    }
    Some(FoundTokens { tokens: Tokens { tenant, audiences, issuers, authority, comments }, app_ids, roles })
}

/// Removes values that are the same without case, as ids are.
pub(super) fn remove_duplicates(values: &mut Vec<Value>) {
    let mut seen = std::collections::HashSet::new();
    values.retain(|value| seen.insert(format!("{:?}", value.0).to_ascii_lowercase()));
}

/// The texts as values: what is computed, or has spaces, is left out.
fn collect(texts: &[&str], kind: VariableKind, variables: &mut Variables) -> Vec<Value> {
    let is_word = |value: &Value| {
        value.0.iter().all(|part| match part {
            Part::Literal(text) => text.len() <= 256 && !text.contains(char::is_whitespace),
            Part::Variable(_) => true,
        })
    };
    texts
        .iter()
        .take(MAX_VALUES)
        .filter(|text| !is_expression(text) && text.len() <= 256)
        .filter_map(|text| with_named_values(text, kind, variables))
        .filter(is_word)
        .collect()
}
