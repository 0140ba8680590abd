//! Asks the running process for a request of which there is no record: it keeps those that did not go well.

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::found::{FoundRecords, Place};
use super::request_id::{IdFields, RequestId};
use crate::cli::admin_client::{AdminArguments, AdminClient};
use crate::cli::cli_error::CliError;
use crate::cli::config_file::ConfigArguments;
use crate::cli::runtime::start_background_runtime;

/// How long the response may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Adds the requests that the process of this configuration keeps with this id.
///
/// # Errors
/// If it cannot be asked.
pub(super) fn add_recent_requests(
    id: &RequestId,
    config: &ConfigArguments,
    found: &mut FoundRecords,
) -> Result<(), CliError> {
    let client = AdminClient::new(&AdminArguments::of_config(config), REQUEST_TIMEOUT)?;
    let path = format!("/api/requests?limit=500&id={}", utf8_percent_encode(id.as_str(), NON_ALPHANUMERIC));
    let body = start_background_runtime()?.block_on(client.get(&path))?.body;
    let list: Value = serde_json::from_slice(&body)?;
    for request in list["requests"].as_array().into_iter().flatten() {
        let record = as_record(request);
        if let Ok(fields) = serde_json::from_slice::<IdFields<'_>>(&record) {
            let field = id.field_of(&fields).unwrap_or("request_id");
            found.add(&fields.time, &fields.request_id, field, &record, Place::RunningProcess);
        }
    }
    Ok(())
}

/// An entry of the list with the names that records have.
fn as_record(request: &Value) -> Vec<u8> {
    let mut record = request.clone();
    if let Some(fields) = record.as_object_mut() {
        let id = fields.remove("id").unwrap_or_default();
        fields.insert("request_id".to_owned(), id);
        fields.retain(|name, value| name != "attempts_left_out" || *value != 0);
    }
    record.to_string().into_bytes()
}
