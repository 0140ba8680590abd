//! Who may call: the credential forms of both dialects, and Azure's different ways to turn one down.

use super::answer::Answer;
use super::azure::{Dialect, Route};
use super::http1::Head;
use super::live::Live;
use super::refusal::Refusal;

/// Checks the credential of a request.
///
/// `api-key` works in both dialects and wins over `Authorization`; a key as Bearer token only on v1; a
/// key in the query only for the Realtime API.
pub(super) fn check(live: &Live, head: &Head, route: &Route) -> Result<(), Box<Answer>> {
    let resource = &live.resource;
    if resource.keys.is_empty() && resource.tokens.is_empty() && resource.tokens_without_role.is_empty() {
        return Ok(());
    }
    let realtime = route.segments.first().is_some_and(|first| first == "realtime");
    let legacy = || head.value("ocp-apim-subscription-key").filter(|_| route.dialect != Dialect::V1);
    let key = head.value("api-key").or_else(legacy).map(str::to_owned);
    if let Some(key) = key.or_else(|| head.query("api-key").filter(|_| realtime)) {
        return by_key(live, &key);
    }
    let Some((scheme, token)) = head.value("authorization").and_then(|value| value.split_once(' ')) else {
        return Err(Refusal::InvalidToken.into());
    };
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") {
        Err(Refusal::InvalidToken.into())
    } else if resource.tokens.iter().any(|own| own == token) {
        Ok(())
    } else if resource.tokens_without_role.iter().any(|own| own == token) {
        Err(Refusal::PermissionDenied.into())
    } else if route.dialect == Dialect::V1 && !token.starts_with("eyJ") {
        by_key(live, token)
    } else {
        Err(Refusal::InvalidToken.into())
    }
}

fn by_key(live: &Live, key: &str) -> Result<(), Box<Answer>> {
    if !live.resource.keys.iter().any(|own| own == key) {
        Err(Refusal::InvalidKey.into())
    } else if live.resource.key_auth_disabled {
        Err(Refusal::AuthenticationTypeDisabled.into())
    } else {
        Ok(())
    }
}
