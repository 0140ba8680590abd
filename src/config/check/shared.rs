//! Readers that several blocks share.

use std::path::Path;

use rustix::fs::Access;

use crate::config::schema::RecordedContent;
use crate::config::values::Endpoint;
use crate::config::yaml::YamlNode;
use crate::money::{Amount, AmountError};

/// The keys of `backends[].tls`.
pub(super) const BACKEND_TLS_KEYS: [&str; 4] = ["ca", "server_name", "certificate", "private_key"];

pub(super) const RECORDED_CONTENT_WORDS: [(&str, RecordedContent); 3] = [
    ("full", RecordedContent::Full),
    ("prompt", RecordedContent::PromptOnly),
    ("none", RecordedContent::None),
];

/// Reads an `api-version` of the classic API.
pub(super) fn read_api_version(node: &YamlNode<'_, '_>) -> Option<String> {
    node.read_parsed(|text| {
        is_api_version(text)
            .then(|| text.to_owned())
            .ok_or("must be a version such as 2024-10-21 or 2025-03-01-preview")
    })
}

/// Whether it is an `api-version` of the classic API: `YYYY-MM-DD` or `YYYY-MM-DD-preview`.
pub(crate) fn is_api_version(text: &str) -> bool {
    let date = text.strip_suffix("-preview").unwrap_or(text);
    let is_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = date.split('-').collect();
    match parts[..] {
        [year, month, day] => {
            parts.iter().all(|part| is_digits(part))
                && (year.len(), month.len(), day.len()) == (4, 2, 2)
                && ("01"..="12").contains(&month)
                && ("01"..="31").contains(&day)
        }
        _ => false,
    }
}

/// Reads the name of a backend or client. It becomes a label of metrics and part of paths of the admin API.
pub(super) fn read_entry_name(node: &YamlNode<'_, '_>) -> Option<String> {
    node.read_parsed(|text| {
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let is_valid = text.len() <= 64 && text.bytes().all(is_allowed) && !matches!(text, "." | "..");
        is_valid.then(|| text.to_owned()).ok_or("must be 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    })
}

/// Reads an amount of money, from 0 to `max`. Messages show `example`.
pub(super) fn read_amount(node: &YamlNode<'_, '_>, max: Amount, example: &str) -> Option<Amount> {
    node.read_parsed(|text| match Amount::parse(text.trim()) {
        Ok(amount) if amount <= max => Ok(amount),
        Err(AmountError::TooPrecise) => Err(format!("must have at most six decimals, such as {example}")),
        _ => Err(format!("must be a number from 0 to {max}, such as {example}")),
    })
}

/// Reads the URL of a service that secrets or records are sent to.
pub(super) fn read_service_endpoint(node: &YamlNode<'_, '_>) -> Option<Endpoint> {
    let endpoint = node.read_parsed(Endpoint::parse)?;
    if !endpoint.uses_tls && !endpoint.is_loopback() {
        return node.report_error("must begin with https://: secrets and prompts are sent there");
    }
    Some(endpoint)
}

/// Whether the user of this process may write to a file, or to a directory.
pub(super) fn is_writable(path: &Path) -> bool {
    rustix::fs::access(path, Access::WRITE_OK).is_ok()
}
