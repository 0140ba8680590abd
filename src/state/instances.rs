//! The file in the state directory with the number of instances that were last seen.

use serde::{Deserialize, Serialize};

/// The name of the file.
pub const FILE_NAME: &str = "instances.json";
/// The version of its format.
const VERSION: u64 = 1;

/// Why the content of the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InstanceFileError {
    /// It is not a file of this kind.
    #[error("it is not a number of instances: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Another version of aoai-lb wrote it.
    #[error("it has version {0}, and this binary knows version {VERSION}")]
    UnknownVersion(u64),
}

#[derive(Serialize, Deserialize)]
struct InstanceFile {
    version: u64,
    last_seen: usize,
}

/// Reads the number; at least 1.
///
/// # Errors
/// [`InstanceFileError`].
pub fn parse(text: &str) -> Result<usize, InstanceFileError> {
    let file: InstanceFile = serde_json::from_str(text)?;
    if file.version == VERSION {
        Ok(file.last_seen.max(1))
    } else {
        Err(InstanceFileError::UnknownVersion(file.version))
    }
}

/// The content of the file for this number.
pub fn to_text(last_seen: usize) -> String {
    // Numbers alone cannot fail.
    serde_json::to_string(&InstanceFile { version: VERSION, last_seen }).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_read_as_it_was_written_and_is_never_zero() {
        assert_eq!(to_text(7), "{\"version\":1,\"last_seen\":7}\n");
        assert_eq!((parse(&to_text(7)).unwrap(), parse(&to_text(0)).unwrap()), (7, 1));
        for (text, expected) in [
            ("", "it is not a number of instances: "),
            ("{\"version\":1,\"last_seen\":-1}", "it is not a number of instances: "),
            ("{\"version\":2,\"last_seen\":1}", "it has version 2, and this binary knows version 1"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
