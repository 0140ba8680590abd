//! What a reply's headers say about waiting and about what is left. Total: whatever a header
//! contains, the answer is a value or nothing. Clamping is the caller's.

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

/// The longest wait that is believed; Azure does say 86400 for a request above the whole limit.
const ABSURD_ABOVE: Duration = Duration::from_secs(86_400);

/// A rate limit as a reply tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How much there is in a minute: what Azure applies just now, at times less than what was
    /// configured.
    pub limit: NonZeroU64,
    /// How much of it is left. Azure lets tokens go below zero on calls that succeed.
    pub remaining: i64,
    /// In how long it is whole again; Azure does not say so on every reply.
    pub reset: Option<Duration>,
}

/// What a reply tells of the capacity of its deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Capacity {
    /// Requests of a standard deployment.
    pub requests: Option<Limit>,
    /// Tokens of a standard deployment.
    pub tokens: Option<Limit>,
    /// The load of a provisioned deployment as a ratio; may exceed 1.
    pub utilization: Option<f64>,
}

/// How long a reply asks to wait: `retry-after-ms`, else `x-ms-retry-after-ms`, else
/// `retry-after`, else the reset of the rate limits, each only if it makes sense. Negative
/// values, dates in the past and waits of more than a day make none.
///
/// Of two reset headers the ones whose remaining amount is told to be used up count, the later
/// of them, since both have to recover; if none is, the sooner of what is there.
pub fn cooldown_hint(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = |name| text(headers, name);
    let milliseconds = |text: &str| number(text, 1e-3);
    let hint = value(&RETRY_AFTER_MS)
        .and_then(milliseconds)
        .or_else(|| value(&X_MS_RETRY_AFTER_MS).and_then(milliseconds))
        .or_else(|| value(&RETRY_AFTER).and_then(|text| wait(text).or_else(|| until(text, now))));
    hint.or_else(|| reset(headers))
}

/// Whether a reply that is no 429 asks to be left alone: the reset of the rate limits is told
/// on every reply and no such wish.
pub fn asks_to_wait(headers: &HeaderMap) -> bool {
    [&RETRY_AFTER_MS, &X_MS_RETRY_AFTER_MS, &RETRY_AFTER].into_iter().any(|name| headers.contains_key(name))
}

/// What a reply tells of its deployment's capacity: `x-ratelimit-limit-*`, `-remaining-*` and
/// `-reset-*`, `azure-openai-deployment-utilization`. A limit of -1, which Azure has been seen
/// to send, says nothing; a reply that was spilled over tells of another deployment.
pub fn capacity(headers: &HeaderMap) -> Capacity {
    let (mut requests, mut tokens, mut utilization) = ([None; 3], [None; 3], None);
    // One walk over all of them takes less than to ask for each.
    for (name, value) in headers {
        let name = name.as_str();
        let told = match name.strip_prefix("x-ratelimit-") {
            Some("limit-requests") => requests.first_mut(),
            Some("remaining-requests") => requests.get_mut(1),
            Some("reset-requests") => requests.get_mut(2),
            Some("limit-tokens") => tokens.first_mut(),
            Some("remaining-tokens") => tokens.get_mut(1),
            Some("reset-tokens") => tokens.get_mut(2),
            Some(_) => None,
            None if name == "azure-openai-deployment-utilization" => Some(&mut utilization),
            None if name == "x-ms-spillover-from-deployment" => return Capacity::default(),
            None => None,
        };
        if let Some(told) = told {
            *told = told.or_else(|| readable(value));
        }
    }
    let limit = |[limit, remaining, reset]: [Option<&str>; 3]| {
        Some(Limit {
            limit: limit?.parse().ok()?,
            remaining: remaining?.parse().ok()?,
            reset: reset.and_then(wait),
        })
    };
    Capacity {
        requests: limit(requests),
        tokens: limit(tokens),
        utilization: utilization.and_then(self::utilization),
    }
}

/// The header is always taken as a percentage, with or without its sign.
fn utilization(text: &str) -> Option<f64> {
    let percent: f64 = text.trim_end_matches('%').trim_end().parse().ok()?;
    (percent.is_finite() && percent >= 0.0).then_some(percent / 100.0)
}

fn count(headers: &HeaderMap, name: &HeaderName) -> Option<i64> {
    text(headers, name)?.parse().ok()
}

fn reset(headers: &HeaderMap) -> Option<Duration> {
    let of = |reset, remaining| (text(headers, reset).and_then(wait), count(headers, remaining));
    let resets = [
        of(&X_RATELIMIT_RESET_REQUESTS, &X_RATELIMIT_REMAINING_REQUESTS),
        of(&X_RATELIMIT_RESET_TOKENS, &X_RATELIMIT_REMAINING_TOKENS),
    ];
    let used_up = resets.iter().filter(|(_, left)| left.is_some_and(|left| left <= 0));
    let latest = used_up.filter_map(|(reset, _)| *reset).max();
    latest.or_else(|| resets.iter().filter_map(|(reset, _)| *reset).min())
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    readable(headers.get(name)?)
}

fn readable(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok().map(str::trim).filter(|text| !text.is_empty())
}

/// Seconds (`4`, `0.5`) or units (`1m2s`, `547ms`).
fn wait(text: &str) -> Option<Duration> {
    number(text, 1.0).or_else(|| units(text))
}

/// A decimal number of `unit` seconds. No sign, exponent, `inf` or `nan`.
fn number(text: &str, unit: f64) -> Option<Duration> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let value: f64 = text.parse().ok().filter(|_| plain)?;
    believable(Duration::try_from_secs_f64(value * unit).ok()?)
}

fn units(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (value, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let seconds = match unit {
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        total = total.checked_add(number(value, seconds)?)?;
        rest = after;
    }
    believable(total)
}

fn until(text: &str, now: SystemTime) -> Option<Duration> {
    let date = httpdate::parse_http_date(text).ok()?;
    believable(date.duration_since(now).ok()?)
}

fn believable(wait: Duration) -> Option<Duration> {
    (wait <= ABSURD_ABOVE).then_some(wait)
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

    fn hint(pairs: &[(&'static str, &str)]) -> Option<u128> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        cooldown_hint(&headers(pairs), now).map(|wait| wait.as_millis())
    }

    #[test]
    fn one_header_is_read_in_all_its_forms() {
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
            assert_eq!(hint(&[("retry-after", value)]), expected, "{value}");
        }
    }

    #[test]
    fn the_most_precise_header_that_makes_sense_wins() {
        let all = [
            ("x-ratelimit-reset-tokens", "64"),
            ("retry-after", "4"),
            ("x-ms-retry-after-ms", "300"),
            ("retry-after-ms", "250"),
        ];
        assert_eq!(hint(&all), Some(250));
        assert_eq!(hint(&all[..3]), Some(300));
        assert_eq!(hint(&all[..2]), Some(4_000));
        assert_eq!(hint(&all[..1]), Some(64_000));
        assert_eq!(hint(&[("retry-after-ms", "-1"), ("retry-after", "4")]), Some(4_000));
        assert_eq!(hint(&[("retry-after-ms", "1.5")]), Some(1));
        assert_eq!(hint(&[]), None);
    }

    #[test]
    fn the_limit_that_is_used_up_sets_the_reset() {
        let resets = |requests, tokens| {
            hint(&[
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
    fn capacity_is_read_where_it_makes_sense() {
        let tokens = |limit, remaining, reset| {
            let pairs = [
                ("x-ratelimit-limit-tokens", limit),
                ("x-ratelimit-remaining-tokens", remaining),
                ("x-ratelimit-reset-tokens", reset),
            ];
            let told = capacity(&headers(&pairs)).tokens;
            told.map(|told| (told.limit.get(), told.remaining, told.reset.map(|reset| reset.as_secs())))
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
        let load =
            |value: &str| capacity(&headers(&[("azure-openai-deployment-utilization", value)])).utilization;
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
        assert!(capacity(&headers(&spilled[1..])).requests.is_some());
        assert_eq!(capacity(&headers(&spilled)), Capacity::default());
    }

    proptest! {
        #[test]
        fn a_hint_is_never_absurd(value in "[ -~]{0,40}|[0-9]{1,30}(ms|s|m|h|d)?") {
            if let Some(wait) = hint(&[("retry-after", &value)]) {
                prop_assert!(wait <= 86_400_000);
            }
            let _ = hint(&[("retry-after-ms", &value)]);
        }
    }
}
