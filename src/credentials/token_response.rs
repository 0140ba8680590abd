//! What token endpoints have in common: what they grant, and how they say no.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value as Json;

use super::refreshed::{Failed, Fetched, header};
use crate::azure::response::hints;
use crate::config::Secret;
use crate::outbound::Answer;

/// Everything but what RFC 3986 section 2.3 leaves alone.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// How long a token lives that does not say so.
const USUAL: Duration = Duration::from_secs(3_600);
/// The most that is believed.
const LONGEST: Duration = Duration::from_secs(86_400);
/// From this lifetime on a token is renewed at half of it, as Azure's SDKs do; before, at three
/// quarters, which leaves a quarter of an hour of the usual hour.
const LONG: Duration = Duration::from_secs(7_200);
/// No token is renewed sooner, however short it lives.
const SOONEST: Duration = Duration::from_secs(1);

/// A token as it is granted. The metadata service writes its numbers as strings; App Service says
/// only when a token ends.
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    expires_in: Option<Json>,
    expires_on: Option<Json>,
    refresh_in: Option<Json>,
}

/// The token that an answer of `host` grants.
pub(super) fn granted(host: &str, answer: &Answer, hint: &str) -> Result<Fetched, Failed> {
    if answer.status != 200 {
        return Err(refused(host, answer, hint));
    }
    let strange = || Failed::from(format!("what {host} answered is no token"));
    let granted: Granted = serde_json::from_slice(&answer.body).map_err(|_| strange())?;
    let token = granted.access_token;
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(strange());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let ends_on = seconds(granted.expires_on.as_ref()).map(|end| end.saturating_sub(now));
    let life = seconds(granted.expires_in.as_ref()).or(ends_on).map_or(USUAL, Duration::from_secs);
    let life = life.min(LONGEST);
    let header = header(&format!("Bearer {token}")).ok_or_else(strange)?;
    let asked = seconds(granted.refresh_in.as_ref()).map(Duration::from_secs).filter(|asked| *asked < life);
    Ok(Fetched { secret: Secret::new(&token), header, renew: renewal(life, asked), ends: Some(life) })
}

/// When a token of this life is renewed; some of it is jitter, so that many balancers do not ask at
/// once.
fn renewal(life: Duration, asked: Option<Duration>) -> Duration {
    let usual = if life >= LONG { life / 2 } else { life.mul_f64(0.75) };
    asked.unwrap_or(usual).mul_f64(0.95 + fastrand::f64() / 20.0).max(SOONEST)
}

fn seconds(value: Option<&Json>) -> Option<u64> {
    match value? {
        Json::Number(number) => number.as_u64(),
        Json::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// What a refusal says, without what it quotes.
fn refused(host: &str, answer: &Answer, hint: &str) -> Failed {
    let body: Json = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |name: &str| body.get(name).and_then(Json::as_str).unwrap_or_default();
    // The number begins the description: `AADSTS7000215: Invalid client secret provided…`.
    let number = text("error_description").split(':').next().filter(|word| word.starts_with("AADSTS"));
    let said = [text("error"), number.unwrap_or_default()].map(word);
    let said: Vec<&str> = said.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
    let said = if said.is_empty() { String::new() } else { format!(" ({})", said.join(", ")) };
    let after = hints::cooldown_hint(&answer.headers, SystemTime::now());
    let hint = if matches!(answer.status, 400..=403) { hint } else { "" };
    Failed { why: format!("{host} answered {}{said}{hint}", answer.status), after }
}

/// A word of somebody else's, fit for a log.
pub(super) fn word(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(64).collect()
}

/// Text as a form's or a query's value.
pub(super) fn escaped(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;

    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, headers: HeaderMap::new(), body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    #[test]
    fn secrets_survive_their_form() {
        assert_eq!(escaped("aZ0-._~"), "aZ0-._~");
        assert_eq!(escaped("a+b/c= &é"), "a%2Bb%2Fc%3D%20%26%C3%A9");
    }

    #[test]
    fn tokens_are_read_in_all_their_forms() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let on = now + 5_000;
        for (body, life) in [
            (r#"{"access_token":"t","expires_in":3599}"#.to_owned(), 3_599),
            (r#"{"access_token":"t","expires_in":"86399","expires_on":"1"}"#.to_owned(), 86_399),
            (format!(r#"{{"access_token":"t","expires_on":"{on}"}}"#), 5_000),
            (r#"{"access_token":"t","expires_on":"9/14/2017 00:00:00 PM +00:00"}"#.to_owned(), 3_600),
            (r#"{"access_token":"t","expires_in":999999999}"#.to_owned(), 86_400),
        ] {
            let fetched = granted("h", &answer(200, &body), "").unwrap_or_else(|_| panic!("{body}"));
            let ends = fetched.ends.unwrap().as_secs();
            assert!(ends.abs_diff(life) <= 1, "{body}: {ends}");
            assert_eq!(fetched.header, "Bearer t");
            assert!(fetched.renew.as_secs() * 10 >= ends * 4 && fetched.renew.as_secs() * 4 <= ends * 3);
        }
        for body in
            ["", "{}", r#"{"access_token":""}"#, r#"{"access_token":"a\nb"}"#, r#"{"access_token":1}"#]
        {
            assert!(granted("h", &answer(200, body), "").is_err(), "{body}");
        }
    }

    #[test]
    fn a_refusal_says_what_it_is_and_quotes_nothing() {
        let body = r#"{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret 'hunter2' provided."}"#;
        let Err(failed) = granted("login", &answer(401, body), "; check it") else { panic!("granted") };
        assert_eq!(failed.why, "login answered 401 (invalid_client, AADSTS7000215); check it");
        let Err(failed) = granted("login", &answer(503, "<html>"), "; check it") else { panic!("granted") };
        assert_eq!(failed.why, "login answered 503");
    }
}
