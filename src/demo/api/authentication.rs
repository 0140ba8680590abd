//! Checks credentials: the forms that both dialects accept, and Azure's different ways to refuse one.

use super::response::ErrorResponse;
use super::route::{ApiDialect, RequestRoute};
use crate::demo::http::request_head::RequestHead;
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::resource::definition::SimulatedResource;

/// Checks the credential of a request. A resource without keys and tokens accepts every request.
///
/// `api-key` works in both dialects and takes precedence over `Authorization`. An API key is accepted as a
/// Bearer token only on v1, and in the query only for the Realtime API.
///
/// # Errors
/// 401 or 403, in Azure's words.
pub(in crate::demo) fn check_credential(
    resource: &SimulatedResource,
    head: &RequestHead,
    route: &RequestRoute,
) -> Result<(), ErrorResponse> {
    if resource.api_keys.is_empty()
        && resource.entra_tokens.is_empty()
        && resource.entra_tokens_without_role.is_empty()
    {
        return Ok(());
    }
    let is_realtime = route.operation_segments.first().is_some_and(|first| first == "realtime");
    let classic_key = || head.header("ocp-apim-subscription-key").filter(|_| route.dialect != ApiDialect::V1);
    let key_in_header = head.header("api-key").or_else(classic_key).map(str::to_owned);
    let key_in_query = || head.query_parameter("api-key").filter(|_| is_realtime);
    if let Some(key) = key_in_header.or_else(key_in_query) {
        return check_api_key(resource, &key);
    }
    let Some((scheme, token)) = head.header("authorization").and_then(|value| value.split_once(' ')) else {
        return Err(SimulatedError::InvalidToken.into());
    };
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") {
        Err(SimulatedError::InvalidToken.into())
    } else if resource.entra_tokens.iter().any(|accepted| accepted == token) {
        Ok(())
    } else if resource.entra_tokens_without_role.iter().any(|known| known == token) {
        Err(SimulatedError::PermissionDenied.into())
    } else if route.dialect == ApiDialect::V1 && !token.starts_with("eyJ") {
        // Not a JWT (whose header, `{"…`, is `eyJ…` in Base64), so that it must be an API key.
        check_api_key(resource, token)
    } else {
        Err(SimulatedError::InvalidToken.into())
    }
}

fn check_api_key(resource: &SimulatedResource, key: &str) -> Result<(), ErrorResponse> {
    if !resource.api_keys.iter().any(|accepted| accepted == key) {
        Err(SimulatedError::InvalidKey.into())
    } else if resource.is_key_auth_disabled {
        Err(SimulatedError::AuthenticationTypeDisabled.into())
    } else {
        Ok(())
    }
}
