//! The file of `aoai-lb simulate`, and the three resources of `aoai-lb demo`.
//!
//! Moods are written by name, alone (`calm`) or with what they need (`drip: 50ms`); the same text is what
//! the header `x-simulate` carries.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_yaml::Value;

use super::codec::Ids;
use super::refusal::Refusal;
use super::script::{ErrorOrder, Extent, Mood};
use super::{Kind, Pace, Resource};

/// Why a file of `simulate` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not YAML of the right shape; the message names line and column.
    #[error("{0}")]
    Shape(#[from] serde_yaml::Error),
    /// A value makes no sense.
    #[error("{at}: {why}")]
    Value {
        /// Where, such as `resources[0].mood`.
        at: String,
        /// What is wrong, and what would be right.
        why: String,
    },
}

/// Reads a file of `simulate`.
///
/// # Errors
/// When it cannot be read, or says something that makes no sense.
pub fn load(path: &Path) -> Result<Vec<Resource>, LoadError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| LoadError::Unreadable { path: path.to_owned(), source })?;
    parse(&text)
}

/// Reads the text of such a file.
///
/// # Errors
/// When it says something that makes no sense.
pub fn parse(text: &str) -> Result<Vec<Resource>, LoadError> {
    let file: File = serde_yaml::from_str(text)?;
    let mut names: Vec<String> = Vec::new();
    let mut resources = Vec::new();
    for (index, written) in file.resources.into_iter().enumerate() {
        let at = format!("resources[{index}]");
        if names.contains(&written.name) {
            return Err(wrong(&format!("{at}.name"), format!("{:?} is there twice", written.name)));
        }
        names.push(written.name.clone());
        resources.push(resource(written, &at)?);
    }
    if resources.is_empty() {
        return Err(wrong("resources", "at least one is needed"));
    }
    Ok(resources)
}

/// The resources of `aoai-lb demo`: a small provisioned one and two standard ones, all on free ports, each
/// with a key made for this run.
pub fn demo_resources() -> Vec<Resource> {
    let ids = Ids::new();
    let standard = |tokens| Kind::Standard { tokens_per_minute: tokens, requests_per_minute: None };
    let new = |name: &str, region: &str, first_byte, between| Resource {
        region: region.to_owned(),
        moods_by_header: true,
        pace: Pace {
            first_byte: Duration::from_millis(first_byte),
            between_events: Duration::from_millis(between),
        },
        ..Resource::new(name).key(ids.hex("", 32))
    };
    let (chat, embeddings) = ("gpt-4o", "text-embedding-3-small");
    let provisioned = Kind::Provisioned { tokens_per_minute: 2_000, output_weight: 4 };
    vec![
        new("eastus-ptu", "East US", 80, 15).deployment("gpt-4o-ptu", chat, provisioned),
        new("westus", "West US", 180, 25).deployment(chat, chat, standard(30_000)).deployment(
            embeddings,
            embeddings,
            standard(120_000),
        ),
        new("sweden", "Sweden Central", 260, 35).deployment(chat, chat, standard(60_000)).deployment(
            embeddings,
            embeddings,
            standard(120_000),
        ),
    ]
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    resources: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    address: String,
    region: Option<String>,
    host: Option<String>,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    key_auth_disabled: bool,
    #[serde(default)]
    tokens: Vec<String>,
    #[serde(default)]
    tokens_without_role: Vec<String>,
    #[serde(default)]
    deployments: Vec<WrittenDeployment>,
    mood: Option<Value>,
    #[serde(default)]
    moods_by_header: bool,
    first_byte: Option<String>,
    between_events: Option<String>,
    idle_limit: Option<String>,
    websocket_limit: Option<String>,
    background_time: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenDeployment {
    name: String,
    model: Option<String>,
    tokens_per_minute: Option<u64>,
    requests_per_minute: Option<u64>,
    #[serde(default)]
    provisioned: bool,
    output_weight: Option<u64>,
}

fn resource(written: Written, at: &str) -> Result<Resource, LoadError> {
    let defaults = Resource::new(written.name);
    let field = |name: &str| format!("{at}.{name}");
    let time = |name: &str, text: Option<String>, default: Duration| match text {
        None => Ok(default),
        Some(text) => duration(&text).ok_or_else(|| wrong(&field(name), needs_unit(&text))),
    };
    let address: SocketAddr = written.address.parse().map_err(|_| {
        wrong(&field("address"), format!("{:?} is not IP:PORT, such as 127.0.0.1:8101", written.address))
    })?;
    let deployments = written.deployments.into_iter().enumerate().map(|(index, own)| {
        let kind = kind(&own).map_err(|why| wrong(&field(&format!("deployments[{index}]")), why))?;
        Ok(super::SimDeployment {
            model: own.model.unwrap_or_else(|| own.name.clone()),
            name: own.name,
            kind,
        })
    });
    Ok(Resource {
        address,
        region: written.region.unwrap_or(defaults.region),
        host: written.host,
        keys: written.keys,
        key_auth_disabled: written.key_auth_disabled,
        tokens: written.tokens,
        tokens_without_role: written.tokens_without_role,
        deployments: deployments.collect::<Result<_, LoadError>>()?,
        mood: written
            .mood
            .map_or(Ok(Mood::Calm), |value| mood(&value))
            .map_err(|why| wrong(&field("mood"), why))?,
        moods_by_header: written.moods_by_header,
        pace: Pace {
            first_byte: time("first_byte", written.first_byte, Duration::ZERO)?,
            between_events: time("between_events", written.between_events, Duration::ZERO)?,
        },
        idle_limit: match written.idle_limit {
            Some(text) => Some(time("idle_limit", Some(text), Duration::ZERO)?),
            None => None,
        },
        websocket_limit: time("websocket_limit", written.websocket_limit, defaults.websocket_limit)?,
        background_time: time("background_time", written.background_time, defaults.background_time)?,
        name: defaults.name,
        keep_bodies: false,
    })
}

fn kind(own: &WrittenDeployment) -> Result<Kind, String> {
    match (own.provisioned, own.tokens_per_minute) {
        (true, None) => Err("a provisioned deployment needs tokens_per_minute".to_owned()),
        (true, Some(_)) if own.requests_per_minute.is_some() => {
            Err("requests_per_minute means nothing to a provisioned deployment".to_owned())
        }
        (false, _) if own.output_weight.is_some() => {
            Err("output_weight is for provisioned deployments".to_owned())
        }
        (false, None) if own.requests_per_minute.is_some() => {
            Err("requests_per_minute needs tokens_per_minute beside it".to_owned())
        }
        (true, Some(tokens_per_minute)) => {
            Ok(Kind::Provisioned { tokens_per_minute, output_weight: own.output_weight.unwrap_or(4) })
        }
        (false, Some(tokens_per_minute)) => {
            Ok(Kind::Standard { tokens_per_minute, requests_per_minute: own.requests_per_minute })
        }
        (false, None) => Ok(Kind::Unlimited),
    }
}

/// The mood written in a header.
pub(super) fn mood_from_text(text: &str) -> Result<Mood, String> {
    let value: Value = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    mood(&value)
}

fn mood(value: &Value) -> Result<Mood, String> {
    let (name, given) = match value {
        Value::String(name) => (name.as_str(), &Value::Null),
        Value::Mapping(map) => match (map.len(), map.iter().next()) {
            (1, Some((Value::String(name), given))) => (name.as_str(), given),
            _ => return Err("one mood by name, such as `calm` or `drip: 50ms`, is expected".to_owned()),
        },
        _ => return Err("a mood is written by name, such as `calm` or `drip: 50ms`".to_owned()),
    };
    named(name, &Given { mood: name, value: given }).map_err(|why| format!("{name}: {why}"))
}

fn named(name: &str, given: &Given) -> Result<Mood, String> {
    Ok(match name {
        "calm" => given.nothing(Mood::Calm)?,
        "high_demand" => given.nothing(Mood::HighDemand)?,
        "mute" => given.nothing(Mood::Mute)?,
        "reset_on_accept" => given.nothing(Mood::ResetOnAccept)?,
        "reset_before_head" => given.nothing(Mood::ResetBeforeHead)?,
        "close_before_head" => given.nothing(Mood::CloseBeforeHead)?,
        "clean_end_without_terminal" => given.nothing(Mood::CleanEndWithoutTerminal)?,
        "tiny_writes" => given.nothing(Mood::TinyWrites)?,
        "counters_minus_one" => given.nothing(Mood::CountersMinusOne)?,
        "unsolicited_101" => given.nothing(Mood::Unsolicited101)?,
        "http10_close" => given.nothing(Mood::Http10Close)?,
        "throttled" => {
            given.only(&["retry_after_ms", "retry_after"])?;
            Mood::Throttled {
                retry_after_ms: given.count("retry_after_ms")?,
                retry_after: given.text("retry_after"),
            }
        }
        "refuses" => Mood::Refuses(refusal(given.value)?),
        "slow_first_byte" => Mood::SlowFirstByte(given.duration()?),
        "drip" => Mood::Drip(given.duration()?),
        "info_flood" => Mood::InfoFlood(given.whole(5)?),
        "truncated_length" => Mood::TruncatedLength { missing: given.whole(100)? },
        "mid_stream_error" => Mood::MidStreamError { after: given.whole(3)? },
        "big_created" => Mood::BigCreated { bytes: given.whole(60_000)? },
        "reduced_limits" => Mood::ReducedLimits { percent: given.whole(50)? as u64 },
        "async_filter" => {
            given.only(&["blocks"])?;
            Mood::AsyncFilter { blocks: given.flag("blocks")? }
        }
        "reset_mid_body" => Mood::ResetMidBody { after: given.extent()? },
        "close_mid_stream" => Mood::CloseMidStream { after: given.extent()? },
        "silence" => {
            given.only(&["after", "lasting"])?;
            let lasting = given.text("lasting").ok_or("lasting, such as 90s, is missing")?;
            let lasting = duration(&lasting).ok_or_else(|| needs_unit(&lasting))?;
            let after = usize::try_from(given.count("after")?.unwrap_or(0)).unwrap_or(usize::MAX);
            Mood::Silence { after, lasting }
        }
        "error_first" => {
            given.only(&["order", "retry_after"])?;
            let order = match given.text("order").as_deref() {
                None | Some("created_error_failed") => ErrorOrder::CreatedErrorFailed,
                Some("error_alone") => ErrorOrder::ErrorAlone,
                Some("failed_then_error") => ErrorOrder::FailedThenError,
                Some(other) => {
                    return Err(format!(
                        "{other:?} is not an order (created_error_failed, error_alone, failed_then_error)"
                    ));
                }
            };
            Mood::ErrorFirst { order, retry_after: given.text("retry_after") }
        }
        "early_answer" => {
            given.only(&["refuses", "close"])?;
            Mood::EarlyAnswer { refusal: refusal(given.member("refuses"))?, close: given.flag("close")? }
        }
        "after" => {
            given.only(&["delay", "mood"])?;
            let delay = given.text("delay").ok_or("delay, such as 2s, is missing")?;
            let then = mood(given.member("mood"))?;
            if matches!(then, Mood::Sequence(_) | Mood::PerDeployment { .. }) {
                return Err("a sequence or per_deployment belongs around it, not within".to_owned());
            }
            Mood::After(duration(&delay).ok_or_else(|| needs_unit(&delay))?, Box::new(then))
        }
        "sequence" => match given.value {
            Value::Sequence(steps) => Mood::Sequence(steps.iter().map(mood).collect::<Result<_, _>>()?),
            _ => return Err("a list of moods is expected".to_owned()),
        },
        "per_deployment" => per_deployment(given.value)?,
        other => return Err(format!("no such mood{}", suggestion(other))),
    })
}

fn per_deployment(value: &Value) -> Result<Mood, String> {
    let Value::Mapping(map) = value else {
        return Err("deployments with their moods are expected (`otherwise` for the rest)".to_owned());
    };
    let mut moods = HashMap::new();
    for (name, written) in map {
        let name = name.as_str().ok_or("deployment names are text")?;
        moods.insert(name.to_owned(), mood(written)?);
    }
    let otherwise = Box::new(moods.remove("otherwise").unwrap_or(Mood::Calm));
    Ok(Mood::PerDeployment { moods, otherwise })
}

fn refusal(value: &Value) -> Result<Refusal, String> {
    let name = match value {
        Value::String(name) => name.clone(),
        Value::Number(number) => number.to_string(),
        _ => return Err("a refusal by name or status is expected, such as content_filter or 503".to_owned()),
    };
    Refusal::named(&name)
        .ok_or_else(|| format!("{name:?} is neither a known refusal nor a status from 400 to 599"))
}

/// What was written after the name of a mood.
struct Given<'a> {
    mood: &'a str,
    value: &'a Value,
}

impl Given<'_> {
    fn nothing(&self, mood: Mood) -> Result<Mood, String> {
        if self.value.is_null() { Ok(mood) } else { Err("takes no parameters".to_owned()) }
    }

    fn only(&self, known: &[&str]) -> Result<(), String> {
        let Value::Mapping(map) = self.value else {
            return if self.value.is_null() { Ok(()) } else { Err(format!("takes {}", known.join(", "))) };
        };
        match map.keys().find(|key| !key.as_str().is_some_and(|key| known.contains(&key))) {
            Some(key) => {
                Err(format!("unknown {}; it takes {}", key.as_str().unwrap_or("key"), known.join(", ")))
            }
            None => Ok(()),
        }
    }

    fn member(&self, name: &str) -> &Value {
        self.value.get(name).unwrap_or(&Value::Null)
    }

    fn text(&self, name: &str) -> Option<String> {
        match self.member(name) {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    fn count(&self, name: &str) -> Result<Option<u64>, String> {
        match self.member(name) {
            Value::Null => Ok(None),
            value => value.as_u64().map(Some).ok_or_else(|| format!("{name} must be a whole number")),
        }
    }

    fn flag(&self, name: &str) -> Result<bool, String> {
        match self.member(name) {
            Value::Null => Ok(false),
            value => value.as_bool().ok_or_else(|| format!("{name} must be true or false")),
        }
    }

    fn whole(&self, default: usize) -> Result<usize, String> {
        match self.value {
            Value::Null => Ok(default),
            value => value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
                .ok_or("a whole number is expected".to_owned()),
        }
    }

    fn duration(&self) -> Result<Duration, String> {
        let text =
            self.value.as_str().ok_or(format!("a duration is expected, such as `{}: 250ms`", self.mood))?;
        duration(text).ok_or_else(|| needs_unit(text))
    }

    fn extent(&self) -> Result<Extent, String> {
        self.only(&["events", "bytes"])?;
        let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        match (self.count("events")?, self.count("bytes")?) {
            (Some(_), Some(_)) => Err("either events or bytes, not both".to_owned()),
            (None, Some(bytes)) => Ok(Extent::Bytes(size(bytes))),
            (events, None) => Ok(Extent::Events(size(events.unwrap_or(3)))),
        }
    }
}

/// `250ms`, `5s`, `2m`, `1h`.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "h" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        _ => None,
    }
}

fn needs_unit(text: &str) -> String {
    format!("{text:?} is not a duration; write a number and a unit, such as 250ms, 5s, 2m or 1h")
}

/// A mood spelled alike, or those there are.
fn suggestion(name: &str) -> String {
    const MOODS: [&str; 29] = [
        "calm",
        "throttled",
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
    let plain: String = name.to_ascii_lowercase().replace(['-', ' '], "_");
    let alike =
        MOODS.iter().find(|mood| **mood == plain || mood.starts_with(&plain) || plain.starts_with(**mood));
    match alike {
        Some(mood) if !plain.is_empty() => format!("; did you mean {mood}?"),
        _ => format!("; there are {}", MOODS.join(", ")),
    }
}

fn wrong(at: &str, why: impl Into<String>) -> LoadError {
    LoadError::Value { at: at.to_owned(), why: why.into() }
}
