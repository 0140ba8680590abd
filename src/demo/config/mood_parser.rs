//! Parses moods, in the file of `aoai-lb simulate` and in the header `x-simulate`.
//!
//! A mood is written as its name alone (`calm`), or with its arguments (`drip: 50ms`).

use std::collections::HashMap;
use std::time::Duration;

use serde_yaml::Value;

use super::duration::parse_duration;
use crate::demo::moods::mood::{BodyPosition, ErrorEventOrder, Mood};
use crate::demo::moods::simulated_error::SimulatedError;
use crate::yaml;

/// Parses the value of the header `x-simulate`.
///
/// # Errors
/// What is wrong, and what would be right.
pub(in crate::demo) fn parse_mood(text: &str) -> Result<Mood, String> {
    let mut problem = None;
    yaml::parse(text, &mut |_, _, reason| _ = problem.get_or_insert(reason));
    if let Some(problem) = problem {
        return Err(problem);
    }
    let value: Value = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    mood_from_yaml(&value)
}

/// The mood that a YAML value names.
///
/// # Errors
/// What is wrong, and what would be right.
pub(super) fn mood_from_yaml(value: &Value) -> Result<Mood, String> {
    let (name, arguments) = match value {
        Value::String(name) => (name.as_str(), &Value::Null),
        Value::Mapping(map) => match (map.len(), map.iter().next()) {
            (1, Some((Value::String(name), arguments))) => (name.as_str(), arguments),
            _ => return Err("expected exactly one mood, such as `calm` or `drip: 50ms`".to_owned()),
        },
        _ => return Err("expected the name of a mood, such as `calm` or `drip: 50ms`".to_owned()),
    };
    mood_by_name(name, &MoodArguments { mood_name: name, value: arguments })
        .map_err(|reason| format!("{name}: {reason}"))
}

fn mood_by_name(name: &str, arguments: &MoodArguments) -> Result<Mood, String> {
    if let Some(mood) = mood_without_arguments(name) {
        return if arguments.value.is_null() {
            Ok(mood)
        } else {
            Err("this mood takes no arguments".to_owned())
        };
    }
    Ok(match name {
        "throttled" => {
            arguments.allow_only_keys(&["retry_after_ms", "retry_after"])?;
            Mood::Throttled {
                retry_after_ms: arguments.number_argument("retry_after_ms")?,
                retry_after: arguments.text_argument("retry_after"),
            }
        }
        "flex_throttled" => {
            arguments.allow_only_keys(&["retry_after_ms"])?;
            Mood::FlexThrottled { retry_after_ms: arguments.number_argument("retry_after_ms")? }
        }
        "refuses" => Mood::Refuses(error_from_yaml(arguments.value)?),
        "slow_first_byte" => Mood::SlowFirstByte(arguments.sole_duration()?),
        "drip" => Mood::Drip(arguments.sole_duration()?),
        "read_lag" => Mood::ReadLag(arguments.sole_duration()?),
        "info_flood" => Mood::InfoFlood(arguments.sole_number_or(5)?),
        "truncated_length" => Mood::TruncatedLength { missing_bytes: arguments.sole_number_or(100)? },
        "mid_stream_error" => Mood::MidStreamError { after_events: arguments.sole_number_or(3)? },
        "big_created" => Mood::BigCreated { padding_bytes: arguments.sole_number_or(60_000)? },
        "reduced_limits" => Mood::ReducedLimits { limit_percent: arguments.sole_number_or(50)? as u64 },
        "async_filter" => {
            arguments.allow_only_keys(&["blocks"])?;
            Mood::AsyncFilter { blocks_content: arguments.bool_argument("blocks")? }
        }
        "reset_mid_body" => Mood::ResetMidBody { after: arguments.body_position()? },
        "close_mid_stream" => Mood::CloseMidStream { after: arguments.body_position()? },
        "silence" => {
            arguments.allow_only_keys(&["after", "lasting"])?;
            let duration = arguments.text_argument("lasting").ok_or("lasting, such as 90s, is missing")?;
            let duration = parse_duration(&duration)?;
            let after_events =
                usize::try_from(arguments.number_argument("after")?.unwrap_or(0)).unwrap_or(usize::MAX);
            Mood::Silence { after_events, duration }
        }
        "error_first" => {
            arguments.allow_only_keys(&["order", "retry_after"])?;
            let event_order = match arguments.text_argument("order").as_deref() {
                None | Some("created_error_failed") => ErrorEventOrder::CreatedErrorFailed,
                Some("error_alone") => ErrorEventOrder::ErrorAlone,
                Some("failed_then_error") => ErrorEventOrder::FailedThenError,
                Some(other) => {
                    return Err(format!(
                        "{other:?} is not an order (created_error_failed, error_alone, failed_then_error)"
                    ));
                }
            };
            Mood::ErrorFirst { event_order, retry_after: arguments.text_argument("retry_after") }
        }
        "early_answer" => {
            arguments.allow_only_keys(&["refuses", "close"])?;
            Mood::EarlyAnswer {
                error: error_from_yaml(arguments.argument("refuses"))?,
                closes_connection: arguments.bool_argument("close")?,
            }
        }
        "after" => {
            arguments.allow_only_keys(&["delay", "mood"])?;
            let delay = arguments.text_argument("delay").ok_or("delay, such as 2s, is missing")?;
            let next_mood = mood_from_yaml(arguments.argument("mood"))?;
            if matches!(next_mood, Mood::Sequence(_) | Mood::PerDeployment { .. }) {
                return Err("sequence and per_deployment cannot be inside it; put it inside them".to_owned());
            }
            Mood::After(parse_duration(&delay)?, Box::new(next_mood))
        }
        "sequence" => match arguments.value {
            Value::Sequence(steps) => {
                Mood::Sequence(steps.iter().map(mood_from_yaml).collect::<Result<_, _>>()?)
            }
            _ => return Err("expected a list of moods".to_owned()),
        },
        "per_deployment" => mood_per_deployment(arguments.value)?,
        other => return Err(format!("no such mood{}", mood_name_suggestion(other))),
    })
}

fn mood_without_arguments(name: &str) -> Option<Mood> {
    Some(match name {
        "calm" => Mood::Calm,
        "high_demand" => Mood::HighDemand,
        "late_encrypted_content" => Mood::LateEncryptedContent,
        "mute" => Mood::Mute,
        "reset_on_accept" => Mood::ResetOnAccept,
        "reset_before_head" => Mood::ResetBeforeHead,
        "close_before_head" => Mood::CloseBeforeHead,
        "clean_end_without_terminal" => Mood::CleanEndWithoutTerminal,
        "tiny_writes" => Mood::TinyWrites,
        "counters_minus_one" => Mood::CountersMinusOne,
        "unsolicited_101" => Mood::Unsolicited101,
        "http10_close" => Mood::Http10Close,
        _ => return None,
    })
}

fn mood_per_deployment(value: &Value) -> Result<Mood, String> {
    let Value::Mapping(map) = value else {
        return Err("expected a map from deployment to mood (`otherwise` for all others)".to_owned());
    };
    let mut moods_by_deployment = HashMap::new();
    for (name, mood) in map {
        let name = name.as_str().ok_or("the name of a deployment must be text")?;
        moods_by_deployment.insert(name.to_owned(), mood_from_yaml(mood)?);
    }
    let default_mood = Box::new(moods_by_deployment.remove("otherwise").unwrap_or(Mood::Calm));
    Ok(Mood::PerDeployment { moods_by_deployment, default_mood })
}

fn error_from_yaml(value: &Value) -> Result<SimulatedError, String> {
    let name = match value {
        Value::String(name) => name.clone(),
        Value::Number(number) => number.to_string(),
        _ => return Err("expected the name or status of an error, such as content_filter or 503".to_owned()),
    };
    SimulatedError::from_name(&name)
        .ok_or_else(|| format!("{name:?} is neither a known error nor a status from 400 to 599"))
}

/// What is written after the name of a mood.
struct MoodArguments<'a> {
    mood_name: &'a str,
    value: &'a Value,
}

impl MoodArguments<'_> {
    /// Checks that the arguments are absent, or a map with no other keys.
    fn allow_only_keys(&self, known: &[&str]) -> Result<(), String> {
        let Value::Mapping(map) = self.value else {
            return if self.value.is_null() {
                Ok(())
            } else {
                Err(format!("expected a map of arguments; known are {}", known.join(", ")))
            };
        };
        match map.keys().find(|key| !key.as_str().is_some_and(|key| known.contains(&key))) {
            Some(key) => {
                let key = key.as_str().unwrap_or("(not text)");
                Err(format!("unknown argument {key}; known are {}", known.join(", ")))
            }
            None => Ok(()),
        }
    }

    fn argument(&self, name: &str) -> &Value {
        self.value.get(name).unwrap_or(&Value::Null)
    }

    fn text_argument(&self, name: &str) -> Option<String> {
        match self.argument(name) {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    fn number_argument(&self, name: &str) -> Result<Option<u64>, String> {
        match self.argument(name) {
            Value::Null => Ok(None),
            value => value.as_u64().map(Some).ok_or_else(|| format!("{name} must be a whole number")),
        }
    }

    fn bool_argument(&self, name: &str) -> Result<bool, String> {
        match self.argument(name) {
            Value::Null => Ok(false),
            value => value.as_bool().ok_or_else(|| format!("{name} must be true or false")),
        }
    }

    /// The number that is the only argument, or its default.
    fn sole_number_or(&self, default: usize) -> Result<usize, String> {
        match self.value {
            Value::Null => Ok(default),
            value => value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
                .ok_or("expected a whole number".to_owned()),
        }
    }

    /// The duration that is the only argument.
    fn sole_duration(&self) -> Result<Duration, String> {
        let text =
            self.value.as_str().ok_or(format!("expected a duration, such as `{}: 250ms`", self.mood_name))?;
        parse_duration(text)
    }

    fn body_position(&self) -> Result<BodyPosition, String> {
        self.allow_only_keys(&["events", "bytes"])?;
        let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        match (self.number_argument("events")?, self.number_argument("bytes")?) {
            (Some(_), Some(_)) => Err("takes either events or bytes, not both".to_owned()),
            (None, Some(bytes)) => Ok(BodyPosition::Bytes(size(bytes))),
            (events, None) => Ok(BodyPosition::Events(size(events.unwrap_or(3)))),
        }
    }
}

/// A mood with a similar name, or the list of all moods.
fn mood_name_suggestion(name: &str) -> String {
    const MOOD_NAMES: [&str; 32] = [
        "calm",
        "read_lag",
        "late_encrypted_content",
        "throttled",
        "flex_throttled",
        "high_demand",
        "refuses",
        "mute",
        "slow_first_byte",
        "after",
        "drip",
        "reset_on_accept",
        "reset_before_head",
        "close_before_head",
        "reset_mid_body",
        "close_mid_stream",
        "truncated_length",
        "clean_end_without_terminal",
        "error_first",
        "mid_stream_error",
        "silence",
        "tiny_writes",
        "big_created",
        "async_filter",
        "counters_minus_one",
        "reduced_limits",
        "unsolicited_101",
        "info_flood",
        "http10_close",
        "early_answer",
        "sequence",
        "per_deployment",
    ];
    let normalized: String = name.to_ascii_lowercase().replace(['-', ' '], "_");
    let similar = MOOD_NAMES
        .iter()
        .find(|mood| **mood == normalized || mood.starts_with(&normalized) || normalized.starts_with(**mood));
    match similar {
        Some(mood) if !normalized.is_empty() => format!("; did you mean {mood}?"),
        _ => format!("; known moods are {}", MOOD_NAMES.join(", ")),
    }
}
