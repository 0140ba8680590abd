//! Reads response headers about retrying and rate limits. No header value is an error: what cannot be
//! read is ignored. The caller clamps the results.

use std::num::NonZeroU64;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};

static RETRY_AFTER: HeaderName = HeaderName::from_static("retry-after");
static RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
static X_MS_RETRY_AFTER_MS: HeaderName = HeaderName::from_static("x-ms-retry-after-ms");
static X_RATELIMIT_REMAINING_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
static X_RATELIMIT_REMAINING_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-tokens");
static X_RATELIMIT_RESET_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");
static X_RATELIMIT_RESET_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-reset-tokens");

/// A longer wait is ignored. Azure sends 86400 seconds for a request that exceeds the whole limit of
/// its deployment, which `known_errors.rs` knows by its message.
const MAX_PLAUSIBLE_WAIT: Duration = Duration::from_secs(86_400);

/// A rate limit in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The limit per minute that Azure applies now. Under load it can be lower than the configured one.
    pub limit_per_minute: NonZeroU64,
    /// How much of it is left. For tokens, Azure sends negative numbers even on successful responses.
    pub remaining: i64,
    /// The time until the limit resets. Azure does not send it with every response.
    pub resets_in: Option<Duration>,
}

/// What a response says about the capacity of its deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReportedCapacity {
    /// The request limit of a standard deployment.
    pub request_rate_limit: Option<RateLimit>,
    /// The token limit of a standard deployment.
    pub token_rate_limit: Option<RateLimit>,
    /// The utilization of a provisioned deployment as a ratio. It can exceed 1.
    pub provisioned_utilization: Option<f64>,
}

/// The wait that a response asks for: `retry-after-ms`, else `x-ms-retry-after-ms`, else `retry-after`
/// (seconds or a date, RFC 9110, section 10.2.3), else the reset of the rate limits. Negative values,
/// dates in the past and waits of more than a day are ignored, and the next header is tried.
///
/// If request or token limits are exhausted, the later reset of the exhausted ones counts, because both
/// must have recovered. If none is, the earlier reset counts.
pub fn cooldown_hint(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = |name| header_text(headers, name);
    let milliseconds = |text: &str| parse_decimal_duration(text, 1e-3);
    let hint = value(&RETRY_AFTER_MS)
        .and_then(milliseconds)
        .or_else(|| value(&X_MS_RETRY_AFTER_MS).and_then(milliseconds))
        .or_else(|| {
            value(&RETRY_AFTER)
                .and_then(|text| parse_delay(text).or_else(|| delay_until_http_date(text, now)))
        });
    hint.or_else(|| time_until_rate_limit_reset(headers))
}

/// Whether a response has one of the `retry-after` headers. In a response other than 429, only these ask
/// the client to wait: Azure sends the reset of the rate limits with successful responses too.
pub fn has_retry_after(headers: &HeaderMap) -> bool {
    [&RETRY_AFTER_MS, &X_MS_RETRY_AFTER_MS, &RETRY_AFTER].into_iter().any(|name| headers.contains_key(name))
}

/// Reads `x-ratelimit-limit-*`, `x-ratelimit-remaining-*`, `x-ratelimit-reset-*` and
/// `azure-openai-deployment-utilization`. A limit of -1, which Azure sends with some Responses calls, is
/// ignored. The headers of a response that Azure spilled over describe another deployment, so they are
/// ignored as well
/// (<https://learn.microsoft.com/azure/ai-services/openai/how-to/spillover-traffic-management>).
pub fn reported_capacity(headers: &HeaderMap) -> ReportedCapacity {
    let (mut requests, mut tokens, mut utilization) = ([None; 3], [None; 3], None);
    // One pass over all headers costs less than eight lookups.
    for (name, value) in headers {
        let name = name.as_str();
        let slot = match name.strip_prefix("x-ratelimit-") {
            Some("limit-requests") => requests.first_mut(),
            Some("remaining-requests") => requests.get_mut(1),
            Some("reset-requests") => requests.get_mut(2),
            Some("limit-tokens") => tokens.first_mut(),
            Some("remaining-tokens") => tokens.get_mut(1),
            Some("reset-tokens") => tokens.get_mut(2),
            Some(_) => None,
            None if name == "azure-openai-deployment-utilization" => Some(&mut utilization),
            None if name == "x-ms-spillover-from-deployment" => return ReportedCapacity::default(),
            None => None,
        };
        if let Some(slot) = slot {
            *slot = slot.or_else(|| non_empty_text(value));
        }
    }
    let rate_limit = |[limit, remaining, reset]: [Option<&str>; 3]| {
        Some(RateLimit {
            limit_per_minute: limit?.parse().ok()?,
            remaining: remaining?.parse().ok()?,
            resets_in: reset.and_then(parse_delay),
        })
    };
    ReportedCapacity {
        request_rate_limit: rate_limit(requests),
        token_rate_limit: rate_limit(tokens),
        provisioned_utilization: utilization.and_then(self::parse_utilization),
    }
}

/// Reads a percentage, with or without a percent sign: the exact format is not known.
fn parse_utilization(text: &str) -> Option<f64> {
    let percent: f64 = text.trim_end_matches('%').trim_end().parse().ok()?;
    (percent.is_finite() && percent >= 0.0).then_some(percent / 100.0)
}

fn header_integer(headers: &HeaderMap, name: &HeaderName) -> Option<i64> {
    header_text(headers, name)?.parse().ok()
}

fn time_until_rate_limit_reset(headers: &HeaderMap) -> Option<Duration> {
    let reset_and_remaining = |reset, remaining| {
        (header_text(headers, reset).and_then(parse_delay), header_integer(headers, remaining))
    };
    let resets = [
        reset_and_remaining(&X_RATELIMIT_RESET_REQUESTS, &X_RATELIMIT_REMAINING_REQUESTS),
        reset_and_remaining(&X_RATELIMIT_RESET_TOKENS, &X_RATELIMIT_REMAINING_TOKENS),
    ];
    let exhausted = resets.iter().filter(|(_, remaining)| remaining.is_some_and(|remaining| remaining <= 0));
    let latest = exhausted.filter_map(|(reset, _)| *reset).max();
    latest.or_else(|| resets.iter().filter_map(|(reset, _)| *reset).min())
}

fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    non_empty_text(headers.get(name)?)
}

fn non_empty_text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok().map(str::trim).filter(|text| !text.is_empty())
}

/// Reads seconds (`4`, `0.5`) or units (`1m2s`, `547ms`). Azure sends whole seconds, OpenAI units.
fn parse_delay(text: &str) -> Option<Duration> {
    parse_decimal_duration(text, 1.0).or_else(|| parse_delay_with_units(text))
}

/// Reads a decimal number without sign or exponent. `f64` alone would accept `inf` and `nan` too.
fn parse_decimal_duration(text: &str, seconds_per_unit: f64) -> Option<Duration> {
    let is_plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let value: f64 = text.parse().ok().filter(|_| is_plain)?;
    if_plausible(Duration::try_from_secs_f64(value * seconds_per_unit).ok()?)
}

fn parse_delay_with_units(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let value_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (value, after) = rest.split_at(value_end);
        let unit_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let seconds_per_unit = match unit {
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        total = total.checked_add(parse_decimal_duration(value, seconds_per_unit)?)?;
        rest = after;
    }
    if_plausible(total)
}

fn delay_until_http_date(text: &str, now: SystemTime) -> Option<Duration> {
    let date = httpdate::parse_http_date(text).ok()?;
    if_plausible(date.duration_since(now).ok()?)
}

fn if_plausible(wait: Duration) -> Option<Duration> {
    (wait <= MAX_PLAUSIBLE_WAIT).then_some(wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    fn hint_millis(pairs: &[(&'static str, &str)]) -> Option<u128> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        cooldown_hint(&headers(pairs), now).map(|wait| wait.as_millis())
    }

    #[test]
    fn retry_after_is_read_in_all_its_forms() {
        for (value, expected) in [
            ("4", Some(4_000)),
            ("0", Some(0)),
            (" 7 ", Some(7_000)),
            ("0.5", Some(500)),
            ("86400", Some(86_400_000)),
            ("86401", None),
            ("1m2s", Some(62_000)),
            ("547ms", Some(547)),
            ("6m0s", Some(360_000)),
            ("1h", Some(3_600_000)),
            ("2d", None),
            ("Sun, 06 Nov 1994 08:49:41 GMT", Some(4_000)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:36 GMT", None),
            ("Sun, 06 Nov 2094 08:49:37 GMT", None),
            ("-1", None),
            ("-1s", None),
            ("", None),
            ("soon", None),
            ("inf", None),
            ("NaN", None),
            ("1e3", None),
            ("5x", None),
            ("1m2", None),
            ("..", None),
            ("99999999999999999999999999", None),
            ("\u{80}", None),
        ] {
            assert_eq!(hint_millis(&[("retry-after", value)]), expected, "{value}");
        }
    }

    #[test]
    fn the_most_precise_plausible_header_wins() {
        let all = [
            ("x-ratelimit-reset-tokens", "64"),
            ("retry-after", "4"),
            ("x-ms-retry-after-ms", "300"),
            ("retry-after-ms", "250"),
        ];
        assert_eq!(hint_millis(&all), Some(250));
        assert_eq!(hint_millis(&all[..3]), Some(300));
        assert_eq!(hint_millis(&all[..2]), Some(4_000));
        assert_eq!(hint_millis(&all[..1]), Some(64_000));
        assert_eq!(hint_millis(&[("retry-after-ms", "-1"), ("retry-after", "4")]), Some(4_000));
        assert_eq!(hint_millis(&[("retry-after-ms", "1.5")]), Some(1));
        assert_eq!(hint_millis(&[]), None);
    }

    #[test]
    fn the_exhausted_limit_determines_the_reset() {
        let resets = |requests, tokens| {
            hint_millis(&[
                ("x-ratelimit-reset-requests", "10"),
                ("x-ratelimit-reset-tokens", "64"),
                ("x-ratelimit-remaining-requests", requests),
                ("x-ratelimit-remaining-tokens", tokens),
            ])
        };
        assert_eq!(resets("0", "5"), Some(10_000));
        assert_eq!(resets("5", "-27689"), Some(64_000));
        assert_eq!(resets("0", "0"), Some(64_000));
        assert_eq!(resets("5", "5"), Some(10_000));
        assert_eq!(resets("?", "?"), Some(10_000));
    }

    #[test]
    fn implausible_capacity_headers_are_ignored() {
        let tokens = |limit, remaining, reset| {
            let pairs = [
                ("x-ratelimit-limit-tokens", limit),
                ("x-ratelimit-remaining-tokens", remaining),
                ("x-ratelimit-reset-tokens", reset),
            ];
            let limits = reported_capacity(&headers(&pairs)).token_rate_limit;
            limits.map(|limit| {
                (limit.limit_per_minute.get(), limit.remaining, limit.resets_in.map(|reset| reset.as_secs()))
            })
        };
        for (limit, remaining, reset, expected) in [
            ("100000", "99998", "64", Some((100_000, 99_998, Some(64)))),
            ("100000", "-27689", "6m0s", Some((100_000, -27_689, Some(360)))),
            ("100000", "5", "soon", Some((100_000, 5, None))),
            ("-1", "-1", "", None),
            ("0", "0", "", None),
            ("100000", "", "", None),
            ("", "5", "", None),
            ("many", "few", "", None),
        ] {
            assert_eq!(tokens(limit, remaining, reset), expected, "{limit} {remaining} {reset}");
        }
        let load = |value: &str| {
            reported_capacity(&headers(&[("azure-openai-deployment-utilization", value)]))
                .provisioned_utilization
        };
        for (value, expected) in
            [("37%", Some(0.37)), ("137", Some(1.37)), ("-1", None), ("nan", None), ("%", None)]
        {
            assert_eq!(load(value), expected, "{value}");
        }
        let spilled = [
            ("x-ms-spillover-from-deployment", "gpt-4o-ptu"),
            ("x-ratelimit-limit-requests", "10"),
            ("x-ratelimit-remaining-requests", "1"),
        ];
        assert!(reported_capacity(&headers(&spilled[1..])).request_rate_limit.is_some());
        assert_eq!(reported_capacity(&headers(&spilled)), ReportedCapacity::default());
    }

    proptest! {
        #[test]
        fn a_hint_is_never_more_than_a_day(value in "[ -~]{0,40}|[0-9]{1,30}(ms|s|m|h|d)?") {
            if let Some(wait) = hint_millis(&[("retry-after", &value)]) {
                prop_assert!(wait <= 86_400_000);
            }
            let _ = hint_millis(&[("retry-after-ms", &value)]);
        }
    }
}
