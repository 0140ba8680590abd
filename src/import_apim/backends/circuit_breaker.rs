//! The rule of a circuit breaker of a backend, as `breaker` and `cooldown`.

use serde_json::Value;

use crate::import_apim::plan::{Breaker, BreakerRule};

/// The longest time of the configuration, in seconds.
const MAX_SECONDS: u64 = 24 * 60 * 60;
/// What API Management uses if the rule has none.
const DEFAULT_TRIP_SECONDS: u64 = 60;

/// The first rule of `circuitBreaker`. API Management allows one.
pub(super) fn breaker_of(properties: &Value) -> Option<Breaker> {
    let rules = properties.get("circuitBreaker")?.get("rules")?.as_array()?;
    let rule = rules.first()?;
    let condition = rule.get("failureCondition").unwrap_or(&Value::Null);
    let seconds = |value: Option<&Value>| value.and_then(Value::as_str).and_then(iso_seconds);
    let trip = seconds(rule.get("tripDuration")).unwrap_or(DEFAULT_TRIP_SECONDS);
    let window = seconds(condition.get("interval")).unwrap_or(DEFAULT_TRIP_SECONDS);
    let failures = condition.get("count").and_then(number).map(|count| count.clamp(1, 10_000));
    let percentage = condition.get("percentage").and_then(number).map(|percentage| percentage.min(100));
    let ranges: Vec<(u64, u64)> = condition
        .get("statusCodeRanges")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|range| Some((number(range.get("min")?)?, number(range.get("max")?)?)))
        .collect();
    let has_reasons =
        condition.get("errorReasons").and_then(Value::as_array).is_some_and(|reasons| !reasons.is_empty());
    let throttling = ranges.iter().any(|(min, max)| (*min..=*max).contains(&429));
    let failing = has_reasons || ranges.iter().any(|(min, max)| *max >= 500 && *min <= 599);
    let mut comments = Vec::new();
    if throttling {
        let accepted = rule.get("acceptRetryAfter").and_then(Value::as_bool) == Some(true);
        comments.push(if accepted {
            "A 429 needs no breaker: the deployment rests for as long as the response says (acceptRetryAfter), else for \
             cooldown.default."
                .to_owned()
        } else {
            "A 429 needs no breaker: the deployment rests for as long as the response says, which the rule did not use \
             (acceptRetryAfter), else for cooldown.default."
                .to_owned()
        });
    }
    if rules.len() > 1 {
        comments.push("Only the first rule of the circuit breaker is used.".to_owned());
    }
    Some(Breaker {
        rule: failing.then_some(BreakerRule {
            failures: failures.unwrap_or(1),
            ratio: percentage.unwrap_or(0),
            window,
            open: trip,
        }),
        cooldown: throttling.then_some(trip),
        comments,
    })
}

/// A whole number, which templates also write as text.
pub(super) fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// The seconds of a duration such as `PT1M30S` or `P1D` (ISO 8601), from 1 to a day.
fn iso_seconds(text: &str) -> Option<u64> {
    let (mut seconds, mut number, mut is_time) = (0_u64, String::new(), false);
    for c in text.strip_prefix('P')?.chars() {
        let unit = match (c, is_time) {
            ('T', false) if number.is_empty() => {
                is_time = true;
                continue;
            }
            ('0'..='9' | '.', _) if number.len() < 12 => {
                number.push(c);
                continue;
            }
            ('W', false) => 7 * 24 * 60 * 60,
            ('D', false) => 24 * 60 * 60,
            ('H', true) => 60 * 60,
            ('M', true) => 60,
            ('S', true) => 1,
            _ => return None,
        };
        let whole = number.split('.').next().and_then(|whole| whole.parse::<u64>().ok())?;
        seconds = seconds.checked_add(whole.checked_mul(unit)?)?;
        number.clear();
    }
    number.is_empty().then(|| seconds.clamp(1, MAX_SECONDS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_iso_8601() {
        for (text, seconds) in [
            ("PT10S", Some(10)),
            ("PT1M30S", Some(90)),
            ("PT1H", Some(3600)),
            ("P1D", Some(86_400)),
            ("P9W", Some(86_400)),
            ("PT0S", Some(1)),
            ("PT0.5S", Some(1)),
            ("10s", None),
            ("PT5", None),
            ("PT99999999999999999999S", None),
            ("", None),
        ] {
            assert_eq!(iso_seconds(text), seconds, "{text}");
        }
    }

    #[test]
    fn a_rule_about_throttling_and_failures_becomes_both() {
        let properties = serde_json::json!({ "circuitBreaker": { "rules": [ {
            "failureCondition": { "count": "3", "interval": "PT5M", "statusCodeRanges": [
                { "min": 429, "max": 429 }, { "min": "500", "max": "503" } ] },
            "tripDuration": "PT1M", "acceptRetryAfter": true } ] } });
        let breaker = breaker_of(&properties).unwrap();
        assert_eq!(breaker.rule, Some(BreakerRule { failures: 3, ratio: 0, window: 300, open: 60 }));
        assert_eq!((breaker.cooldown, breaker.comments.len()), (Some(60), 1));
        let properties = serde_json::json!({ "circuitBreaker": { "rules": [ {
            "failureCondition": { "percentage": 40, "errorReasons": ["Server errors"] } } ] } });
        let breaker = breaker_of(&properties).unwrap();
        assert_eq!(breaker.rule, Some(BreakerRule { failures: 1, ratio: 40, window: 60, open: 60 }));
        assert_eq!(breaker.cooldown, None);
    }
}
