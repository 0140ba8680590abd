//! `aoai-lb drain` and `aoai-lb undrain`: keep new requests away from a backend, and send them there again.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::admin_client::{AdminArguments, AdminClient};
use super::cli_error::CliError;
use super::runtime::start_background_runtime;

/// How long the response may take: a file is written for it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// What the names of backends do not have, escaped.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

/// The arguments of both commands.
#[derive(Args)]
pub(super) struct DrainArguments {
    /// The name of the backend.
    name: String,
    #[command(flatten)]
    admin: AdminArguments,
}

pub(super) fn drain(arguments: &DrainArguments) -> Result<(), CliError> {
    let response = post(arguments, "drain")?;
    let in_flight = match response["in_flight"].as_u64() {
        Some(0) => "; no request is in flight there".to_owned(),
        Some(1) => "; 1 request is still in flight there".to_owned(),
        Some(count) => format!("; {count} requests are still in flight there"),
        None => String::new(),
    };
    let state = if response["changed"] == false { "was drained already" } else { "is drained" };
    let mut out = io::stdout();
    writeln!(out, "{} {state}{in_flight}", arguments.name)?;
    if let Some(text) = describe_homed_requests(&response["resource"]) {
        writeln!(out, "{text}")?;
    }
    let stranded = response["left_without_backend"].as_array().into_iter().flatten();
    let stranded: Vec<&str> = stranded.filter_map(Value::as_str).collect();
    if !stranded.is_empty() {
        writeln!(io::stderr(), "warning: left without a backend: {}", stranded.join(", "))?;
    }
    warn_if_not_saved(&response)
}

/// What still refers to objects of the resource; `None` from a process of an earlier version.
fn describe_homed_requests(resource: &Value) -> Option<String> {
    let name = resource["name"].as_str()?;
    let (entries, requests) = (resource["entries"].as_u64()?, resource["last_minute_requests"].as_u64()?);
    if entries == 0 && requests == 0 {
        return Some(format!("no object of its resource {name} is remembered"));
    }
    let others: Vec<&str> = resource["other_backends"].as_array()?.iter().filter_map(Value::as_str).collect();
    let place = match others.as_slice() {
        [] => "still go there: the resource has no other backend that is not drained".to_owned(),
        others => format!(
            "go to {}, and still there as long as no other backend of the resource can take them",
            others.join(", ")
        ),
    };
    let objects = if entries == 1 { "1 object lives" } else { &format!("{entries} objects live") };
    let came = match requests {
        0 => "none in the last minute".to_owned(),
        count => format!("{count} in the last minute"),
    };
    Some(format!("{objects} on its resource {name}; requests that refer to them ({came}) {place}"))
}

pub(super) fn undrain(arguments: &DrainArguments) -> Result<(), CliError> {
    let response = post(arguments, "undrain")?;
    let state = if response["changed"] == false { "was not drained" } else { "is no longer drained" };
    writeln!(io::stdout(), "{} {state}", arguments.name)?;
    warn_if_not_saved(&response)
}

fn post(arguments: &DrainArguments, verb: &str) -> Result<Value, CliError> {
    let client = AdminClient::new(&arguments.admin, REQUEST_TIMEOUT)?;
    let path = format!("/api/backends/{}/{verb}", utf8_percent_encode(&arguments.name, ESCAPED));
    Ok(start_background_runtime()?.block_on(client.post(&path))?)
}

fn warn_if_not_saved(response: &Value) -> Result<(), CliError> {
    if let Some(problem) = response["save_problem"].as_str() {
        writeln!(io::stderr(), "warning: this ends with the process, since it cannot be saved: {problem}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_still_comes_for_the_objects_of_a_drained_backend_is_told() {
        let resource = |entries: u64, requests: u64, others: &[&str]| json!({ "name": "r:443", "entries": entries, "last_minute_requests": requests, "other_backends": others });
        for (resource, expected) in [
            (Value::Null, None),
            (resource(0, 0, &[]), Some("no object of its resource r:443 is remembered")),
            (
                resource(1, 0, &[]),
                Some(
                    "1 object lives on its resource r:443; requests that refer to them (none in the last minute) still \
                     go there: the resource has no other backend that is not drained",
                ),
            ),
            (
                resource(12, 3, &["b", "c"]),
                Some(
                    "12 objects live on its resource r:443; requests that refer to them (3 in the last minute) go to b, \
                     c, and still there as long as no other backend of the resource can take them",
                ),
            ),
        ] {
            assert_eq!(describe_homed_requests(&resource).as_deref(), expected, "{resource}");
        }
    }
}
