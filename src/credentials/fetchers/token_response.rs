//! Parses the responses of token endpoints, and encodes the requests to them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value as Json;

use super::super::fetched_secret::{FetchError, FetchedSecret, sensitive_header_value};
use super::super::loggable::loggable_word;
use crate::azure::response::hints;
use crate::config::Secret;
use crate::outbound::OutboundResponse;

/// All characters but the unreserved ones of RFC 3986 section 2.3.
const PERCENT_ENCODE_SET: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Lifetime of a token whose response does not state it.
const DEFAULT_TOKEN_LIFETIME: Duration = Duration::from_secs(3_600);
/// Longest lifetime that is trusted.
const MAX_TRUSTED_TOKEN_LIFETIME: Duration = Duration::from_secs(86_400);
/// A token that lives at least this long is renewed after half of its lifetime, as Azure's SDKs do. A
/// shorter one is renewed after three quarters: of the usual hour, 15 minutes are left for retries.
const MIN_LIFETIME_FOR_HALFWAY_RENEWAL: Duration = Duration::from_secs(7_200);
/// No token is renewed sooner, however short its lifetime.
const MIN_RENEWAL_DELAY: Duration = Duration::from_secs(1);

/// A successful response. The numbers are strings in responses of the metadata service; App Service
/// sends only `expires_on`.
#[derive(Deserialize)]
struct TokenResponse {
    access_token: String,
    expires_in: Option<Json>,
    expires_on: Option<Json>,
    refresh_in: Option<Json>,
}

/// The token in a response of `host`. If the request is refused, `hint` is appended to the error: it
/// says what an operator should check.
pub(super) fn parse_token_response(
    host: &str,
    response: &OutboundResponse,
    hint: &str,
) -> Result<FetchedSecret, FetchError> {
    if response.status != 200 {
        return Err(error_from_response(host, response, hint));
    }
    let no_token = || FetchError::from(format!("the response of {host} contains no token"));
    let parsed: TokenResponse = serde_json::from_slice(&response.body).map_err(|_| no_token())?;
    let token = parsed.access_token;
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(no_token());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let until_expiry =
        parse_seconds(parsed.expires_on.as_ref()).map(|expires_on| expires_on.saturating_sub(now));
    let lifetime = parse_seconds(parsed.expires_in.as_ref())
        .or(until_expiry)
        .map_or(DEFAULT_TOKEN_LIFETIME, Duration::from_secs);
    let lifetime = lifetime.min(MAX_TRUSTED_TOKEN_LIFETIME);
    let header_value = sensitive_header_value(&format!("Bearer {token}")).ok_or_else(no_token)?;
    let refresh_in = parse_seconds(parsed.refresh_in.as_ref()).map(Duration::from_secs);
    let refresh_in = refresh_in.filter(|refresh_in| *refresh_in < lifetime);
    Ok(FetchedSecret {
        secret: Secret::new(&token),
        header_value,
        renew_after: renewal_delay(lifetime, refresh_in),
        expires_in: Some(lifetime),
        source_expiry: None,
    })
}

/// How long after the response a token of this lifetime is renewed. Up to 5 % of it is jitter, so that
/// many balancers do not renew at the same time.
fn renewal_delay(lifetime: Duration, refresh_in: Option<Duration>) -> Duration {
    let default_delay =
        if lifetime >= MIN_LIFETIME_FOR_HALFWAY_RENEWAL { lifetime / 2 } else { lifetime.mul_f64(0.75) };
    refresh_in.unwrap_or(default_delay).mul_f64(0.95 + fastrand::f64() / 20.0).max(MIN_RENEWAL_DELAY)
}

/// A number of seconds, written as a JSON number or string.
fn parse_seconds(value: Option<&Json>) -> Option<u64> {
    match value? {
        Json::Number(number) => number.as_u64(),
        Json::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// The status and error codes of a response, but not its description, which may quote secrets.
fn error_from_response(host: &str, response: &OutboundResponse, hint: &str) -> FetchError {
    let body: Json = serde_json::from_slice(&response.body).unwrap_or_default();
    let field = |name: &str| body.get(name).and_then(Json::as_str).unwrap_or_default();
    // The description begins with the number of the error: `AADSTS7000215: Invalid client secret provided…`.
    let aadsts_code = field("error_description").split(':').next().filter(|word| word.starts_with("AADSTS"));
    let codes = [field("error"), aadsts_code.unwrap_or_default()].map(loggable_word);
    let codes: Vec<&str> = codes.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
    let codes = if codes.is_empty() { String::new() } else { format!(" ({})", codes.join(", ")) };
    let retry_after = hints::cooldown_hint(&response.headers, SystemTime::now());
    let hint = if matches!(response.status, 400..=403) { hint } else { "" };
    FetchError { message: format!("{host} responded with {}{codes}{hint}", response.status), retry_after }
}

/// Encodes the value of a form field or query parameter.
pub(super) fn percent_encode(text: &str) -> String {
    utf8_percent_encode(text, PERCENT_ENCODE_SET).to_string()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;

    use super::*;

    fn response(status: u16, body: &str) -> OutboundResponse {
        OutboundResponse { status, headers: HeaderMap::new(), body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    #[test]
    fn form_values_are_percent_encoded() {
        assert_eq!(percent_encode("aZ0-._~"), "aZ0-._~");
        assert_eq!(percent_encode("a+b/c= &é"), "a%2Bb%2Fc%3D%20%26%C3%A9");
    }

    #[test]
    fn every_form_of_token_response_is_parsed() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let expires_on = now + 5_000;
        for (body, lifetime) in [
            (r#"{"access_token":"t","expires_in":3599}"#.to_owned(), 3_599),
            (r#"{"access_token":"t","expires_in":"86399","expires_on":"1"}"#.to_owned(), 86_399),
            (format!(r#"{{"access_token":"t","expires_on":"{expires_on}"}}"#), 5_000),
            (r#"{"access_token":"t","expires_on":"9/14/2017 00:00:00 PM +00:00"}"#.to_owned(), 3_600),
            (r#"{"access_token":"t","expires_in":999999999}"#.to_owned(), 86_400),
        ] {
            let fetched =
                parse_token_response("h", &response(200, &body), "").unwrap_or_else(|_| panic!("{body}"));
            let expires_in = fetched.expires_in.unwrap().as_secs();
            assert!(expires_in.abs_diff(lifetime) <= 1, "{body}: {expires_in}");
            assert_eq!(fetched.header_value, "Bearer t");
            assert!(
                fetched.renew_after.as_secs() * 10 >= expires_in * 4
                    && fetched.renew_after.as_secs() * 4 <= expires_in * 3
            );
        }
        for body in
            ["", "{}", r#"{"access_token":""}"#, r#"{"access_token":"a\nb"}"#, r#"{"access_token":1}"#]
        {
            assert!(parse_token_response("h", &response(200, body), "").is_err(), "{body}");
        }
    }

    #[test]
    fn an_error_names_its_codes_and_quotes_nothing_else() {
        let body = r#"{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret 'hunter2' provided."}"#;
        let Err(error) = parse_token_response("login", &response(401, body), "; check it") else {
            panic!("a token was accepted")
        };
        assert_eq!(error.message, "login responded with 401 (invalid_client, AADSTS7000215); check it");
        let Err(error) = parse_token_response("login", &response(503, "<html>"), "; check it") else {
            panic!("a token was accepted")
        };
        assert_eq!(error.message, "login responded with 503");
    }
}
