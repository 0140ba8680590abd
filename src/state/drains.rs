//! The file of drained backends in the state directory.

use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

/// The name of the file.
pub const FILE_NAME: &str = "drains.json";
/// The version of its format.
const VERSION: u64 = 1;

/// A drained backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainRecord {
    /// Its name.
    pub backend: String,
    /// Since when it is drained.
    pub since: SystemTime,
}

/// Why the content of the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DrainFileError {
    /// It is not a file of this kind.
    #[error("it is not a list of drains: {0}")]
    Malformed(String),
    /// Another version of aoai-lb wrote it.
    #[error("it has version {0}, and this binary knows version {VERSION}")]
    UnknownVersion(u64),
}

impl From<serde_json::Error> for DrainFileError {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct DrainFile {
    version: u64,
    drains: Vec<DrainEntry>,
}

#[derive(Serialize, Deserialize)]
struct DrainEntry {
    backend: String,
    /// RFC 3339.
    since: String,
}

/// Reads the content of the file.
///
/// # Errors
/// [`DrainFileError`].
pub fn parse(text: &str) -> Result<Vec<DrainRecord>, DrainFileError> {
    // First, since a later version may have another form.
    let VersionOnly { version } = serde_json::from_str(text)?;
    if version != VERSION {
        return Err(DrainFileError::UnknownVersion(version));
    }
    let file: DrainFile = serde_json::from_str(text)?;
    let to_record = |DrainEntry { backend, since }| match DateTime::parse_from_rfc3339(&since) {
        Ok(since) => Ok(DrainRecord { backend, since: since.into() }),
        Err(problem) => Err(DrainFileError::Malformed(format!("`since` of {backend:?}: {problem}"))),
    };
    file.drains.into_iter().map(to_record).collect()
}

/// The content of the file for these drains.
pub fn to_text(drains: &[DrainRecord]) -> String {
    let to_entry = |drain: &DrainRecord| DrainEntry {
        backend: drain.backend.clone(),
        since: DateTime::<Utc>::from(drain.since).to_rfc3339_opts(SecondsFormat::Millis, true),
    };
    let file = DrainFile { version: VERSION, drains: drains.iter().map(to_entry).collect() };
    // Strings and numbers alone cannot fail.
    serde_json::to_string_pretty(&file).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_content_is_read_as_it_was_written() {
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_420_800_123);
        let drains = vec![
            DrainRecord { backend: "west".to_owned(), since },
            DrainRecord { backend: "east.2".to_owned(), since: SystemTime::UNIX_EPOCH },
        ];
        let text = to_text(&drains);
        assert!(text.contains("\"since\": \"2026-11-23T08:00:00.123Z\""), "{text}");
        assert_eq!(parse(&text).unwrap(), drains);
        assert_eq!(parse(&to_text(&[])).unwrap(), []);
    }

    #[test]
    fn what_another_program_or_version_wrote_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "it is not a list of drains: EOF"),
            ("{\"version\":1,\"drains\":[{\"backend\":\"a\"", "it is not a list of drains: EOF"),
            ("[]", "it is not a list of drains: "),
            ("{\"drains\":[]}", "missing field `version`"),
            (
                "{\"version\":1,\"drains\":[{\"backend\":\"a\",\"since\":\"soon\"}]}",
                "it is not a list of drains: ",
            ),
            ("{\"version\":2,\"drains\":{}}", "it has version 2, and this binary knows version 1"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        // A later addition to the same version.
        assert_eq!(parse("{\"version\":1,\"drains\":[],\"more\":1}").unwrap(), []);
    }
}
