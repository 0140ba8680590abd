//! The file of `aoai-lb simulate`.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_yaml::Value;

use super::duration::parse_duration;
use super::error::SimulatorConfigError;
use super::mood_parser::mood_from_yaml;
use crate::demo::moods::mood::Mood;
use crate::demo::resource::definition::{ResponseTiming, SimulatedDeployment, SimulatedResource};
use crate::demo::resource::rate_limiter::DeploymentKind;
use crate::demo::util::ids::IdForm;
use crate::files::read_text_file;
use crate::yaml::{self, MAX_BYTES};

/// How many input tokens one output token of a provisioned deployment counts for, if the file does not say.
const DEFAULT_OUTPUT_WEIGHT: u64 = 4;

/// Reads a file of `aoai-lb simulate`.
///
/// # Errors
/// When the file cannot be read, is not valid YAML, or has an invalid value.
pub fn load_resources(path: &Path) -> Result<Vec<SimulatedResource>, SimulatorConfigError> {
    let text = read_text_file(path, MAX_BYTES)
        .map_err(|source| SimulatorConfigError::UnreadableFile { path: path.to_owned(), source })?;
    parse_resources(&text)
}

/// Parses the text of a file of `aoai-lb simulate`.
///
/// # Errors
/// When the text is not valid YAML, or has an invalid value.
pub fn parse_resources(text: &str) -> Result<Vec<SimulatedResource>, SimulatorConfigError> {
    check_limits(text)?;
    let file: ResourceFile = serde_yaml::from_str(text)?;
    let mut names: Vec<String> = Vec::new();
    let mut resources = Vec::new();
    for (index, entry) in file.resources.into_iter().enumerate() {
        let location = format!("resources[{index}]");
        if names.contains(&entry.name) {
            let reason = format!("{:?} is the name of another resource already", entry.name);
            return Err(SimulatorConfigError::invalid_value(&format!("{location}.name"), reason));
        }
        names.push(entry.name.clone());
        resources.push(resource_from_entry(entry, &location)?);
    }
    if resources.is_empty() {
        return Err(SimulatorConfigError::invalid_value("resources", "at least one resource is needed"));
    }
    Ok(resources)
}

/// Checks size, nesting and aliases before values are built from the text.
fn check_limits(text: &str) -> Result<(), SimulatorConfigError> {
    let mut first_problem = None;
    yaml::parse(text, &mut |location, line, reason| {
        let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        let location = format!("{line}{location}");
        let location = location.trim_end_matches(": ");
        first_problem.get_or_insert_with(|| SimulatorConfigError::invalid_value(location, reason));
    });
    first_problem.map_or(Ok(()), Err)
}

/// The file as it is written. The fields of these three types are the keys of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a map with the key `resources`")]
struct ResourceFile {
    resources: Vec<ResourceEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a resource with `name` and `address`")]
struct ResourceEntry {
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
    deployments: Vec<DeploymentEntry>,
    mood: Option<Value>,
    #[serde(default)]
    moods_by_header: bool,
    first_byte: Option<String>,
    between_events: Option<String>,
    idle_limit: Option<String>,
    websocket_limit: Option<String>,
    #[serde(default)]
    stream_ids: StreamIds,
    background_time: Option<String>,
    read_lag: Option<String>,
    #[serde(default)]
    ids: IdFormName,
}

/// What a Responses WebSocket does with `stream_id`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StreamIds {
    Accept,
    #[default]
    Refuse,
}

/// The names of [`IdForm`].
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum IdFormName {
    #[default]
    Chained,
    KeyAtEnd,
    Plain,
    Mixed,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a deployment with `name`")]
struct DeploymentEntry {
    name: String,
    model: Option<String>,
    tokens_per_minute: Option<u64>,
    requests_per_minute: Option<u64>,
    #[serde(default)]
    provisioned: bool,
    output_weight: Option<u64>,
}

fn resource_from_entry(
    entry: ResourceEntry,
    location: &str,
) -> Result<SimulatedResource, SimulatorConfigError> {
    let defaults = SimulatedResource::new(entry.name);
    let invalid = |field: &str, reason: String| {
        SimulatorConfigError::invalid_value(&format!("{location}.{field}"), reason)
    };
    let duration = |field: &str, text: Option<String>| {
        text.map(|text| parse_duration(&text).map_err(|reason| invalid(field, reason))).transpose()
    };
    let listen_address: SocketAddr = entry.address.parse().map_err(|_| {
        invalid("address", format!("{:?} is not an IP:PORT such as 127.0.0.1:8101", entry.address))
    })?;
    let deployments = entry.deployments.into_iter().enumerate().map(|(index, deployment)| {
        let kind = deployment_kind(&deployment)
            .map_err(|reason| invalid(&format!("deployments[{index}]"), reason))?;
        Ok(SimulatedDeployment {
            model: deployment.model.unwrap_or_else(|| deployment.name.clone()),
            name: deployment.name,
            kind,
        })
    });
    Ok(SimulatedResource {
        listen_address,
        region: entry.region.unwrap_or(defaults.region),
        required_host: entry.host,
        api_keys: entry.keys,
        is_key_auth_disabled: entry.key_auth_disabled,
        entra_tokens: entry.tokens,
        entra_tokens_without_role: entry.tokens_without_role,
        deployments: deployments.collect::<Result<_, SimulatorConfigError>>()?,
        initial_mood: entry
            .mood
            .map_or(Ok(Mood::Calm), |value| mood_from_yaml(&value))
            .map_err(|reason| invalid("mood", reason))?,
        allows_mood_header: entry.moods_by_header,
        timing: ResponseTiming {
            first_byte_delay: duration("first_byte", entry.first_byte)?.unwrap_or(Duration::ZERO),
            event_interval: duration("between_events", entry.between_events)?.unwrap_or(Duration::ZERO),
        },
        idle_timeout: duration("idle_limit", entry.idle_limit)?,
        max_websocket_lifetime: duration("websocket_limit", entry.websocket_limit)?
            .unwrap_or(defaults.max_websocket_lifetime),
        accepts_stream_ids: entry.stream_ids == StreamIds::Accept,
        background_response_duration: duration("background_time", entry.background_time)?
            .unwrap_or(defaults.background_response_duration),
        read_lag: duration("read_lag", entry.read_lag)?.unwrap_or(defaults.read_lag),
        id_form: match entry.ids {
            IdFormName::Chained => IdForm::Chained,
            IdFormName::KeyAtEnd => IdForm::KeyAtEnd,
            IdFormName::Plain => IdForm::Plain,
            IdFormName::Mixed => IdForm::Mixed,
        },
        name: defaults.name,
        records_request_bodies: false,
    })
}

fn deployment_kind(entry: &DeploymentEntry) -> Result<DeploymentKind, String> {
    match (entry.provisioned, entry.tokens_per_minute) {
        (true, None) => Err("a provisioned deployment needs tokens_per_minute".to_owned()),
        (true, Some(_)) if entry.requests_per_minute.is_some() => {
            Err("requests_per_minute does not apply to a provisioned deployment".to_owned())
        }
        (false, _) if entry.output_weight.is_some() => {
            Err("output_weight applies only to a provisioned deployment".to_owned())
        }
        (false, None) if entry.requests_per_minute.is_some() => {
            Err("requests_per_minute also needs tokens_per_minute".to_owned())
        }
        (true, Some(tokens_per_minute)) => Ok(DeploymentKind::Provisioned {
            tokens_per_minute,
            output_weight: entry.output_weight.unwrap_or(DEFAULT_OUTPUT_WEIGHT),
        }),
        (false, Some(tokens_per_minute)) => {
            Ok(DeploymentKind::Standard { tokens_per_minute, requests_per_minute: entry.requests_per_minute })
        }
        (false, None) => Ok(DeploymentKind::Unlimited),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_is_valid() {
        let example = include_str!("../../../conf/simulate.yaml");
        assert_eq!(parse_resources(example).unwrap().len(), 3);
    }

    #[test]
    fn an_invalid_file_is_refused_with_the_location_and_the_reason() {
        let file = |line: &str| format!("resources:\n  - name: a\n    address: 127.0.0.1:0\n    {line}\n");
        let cases = [
            ("mood: throtled", "resources[0].mood: throtled: no such mood"),
            ("mood: error", "did you mean error_first?"),
            ("mood: {drip: 50}", "expected a duration"),
            ("mood: {drip: 50x}", "write a number and a unit"),
            (
                "mood: {throttled: {after: 1}}",
                "unknown argument after; known are retry_after_ms, retry_after",
            ),
            ("mood: {refuses: 200}", "neither a known error nor a status"),
            ("mood: {sequence: [calm, {per_deployment: {x: nope}}]}", "per_deployment: nope: no such mood"),
            (
                "deployments: [{name: d, provisioned: true}]",
                "resources[0].deployments[0]: a provisioned deployment needs",
            ),
            ("colour: red", "unknown field `colour`"),
            ("idle_limit: soon", "resources[0].idle_limit"),
            ("ids: none", "unknown variant `none`"),
            ("stream_ids: maybe", "unknown variant `maybe`"),
            ("read_lag: 5", "resources[0].read_lag"),
            ("mood: read_lag", "expected a duration, such as `read_lag: 250ms`"),
        ];
        for (line, expected) in cases {
            let message = parse_resources(&file(line)).unwrap_err().to_string();
            assert!(message.contains(expected), "{line}: {message}");
        }
    }
}
