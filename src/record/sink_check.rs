//! The checks of `check --live` for records: whether the file and the spool can be written, and whether Log Analytics
//! takes records. No record is written.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::sinks::log_analytics;
use crate::config::{KeyVaultConfig, LogAnalyticsConfig, RecordConfig};
use crate::credentials::{Keyring, SecretValue};
use crate::system_error::describe;

/// How long a token may take.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The result of one check.
#[derive(Debug)]
pub struct SinkFinding {
    /// The key in the configuration.
    pub key: &'static str,
    /// What was checked.
    pub checked_item: &'static str,
    /// What was found, or what is wrong.
    pub result: Result<String, String>,
}

/// Checks the sinks and the spool.
pub async fn check_sinks(
    config: &RecordConfig,
    vaults: &KeyVaultConfig,
    keyring: &Keyring,
) -> Vec<SinkFinding> {
    let mut findings = Vec::new();
    let mut add = |key, checked_item, result| findings.push(SinkFinding { key, checked_item, result });
    if let Some(jsonl) = &config.jsonl {
        add("record.jsonl", "path", check_record_file(&jsonl.path));
    }
    add("record.spool", "path", check_spool_directory(&config.spool.directory));
    if let Some(table) = &config.log_analytics {
        match fetch_token(table, vaults, keyring).await {
            Ok(token) => {
                add("record.log_analytics", "credential", Ok("a token was issued".to_owned()));
                let delivered = log_analytics::deliver_empty_batch(table, &token).await;
                let delivered = delivered.map(|status| format!("an empty batch was accepted ({status})"));
                add("record.log_analytics", "delivery", delivered);
            }
            Err(problem) => add("record.log_analytics", "credential", Err(problem)),
        }
    }
    findings
}

async fn fetch_token(
    table: &LogAnalyticsConfig,
    vaults: &KeyVaultConfig,
    keyring: &Keyring,
) -> Result<std::sync::Arc<SecretValue>, String> {
    let token = keyring.find_or_start_entra_token(&table.credential, vaults);
    match timeout(TOKEN_TIMEOUT, token.wait_for_value()).await {
        Ok(token) => token.map_err(|problem| problem.to_string()),
        Err(_) => Err(format!("no token within {TOKEN_TIMEOUT:?}")),
    }
}

/// Checks the file of records, and its directory, in which it is rotated.
fn check_record_file(path: &Path) -> Result<String, String> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.exists() {
        let opened = OpenOptions::new().append(true).open(path);
        opened.map_err(|error| format!("cannot write to {}: {}", path.display(), describe(&error)))?;
    }
    check_directory(directory)?;
    Ok(format!("{} can be written by this user", path.display()))
}

/// Checks the directory of the spool, or the one that it will be created in.
fn check_spool_directory(directory: &Path) -> Result<String, String> {
    if directory.is_dir() {
        check_directory(directory)?;
        return Ok(format!("{} can be written by this user", directory.display()));
    }
    let existing = directory.ancestors().skip(1).find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("."));
    check_directory(existing)?;
    Ok(format!("{} does not exist yet and can be created by this user", directory.display()))
}

/// Creates a file in a directory and deletes it.
fn check_directory(directory: &Path) -> Result<(), String> {
    let file = directory.join(format!(".aoai-lb-check-{}", std::process::id()));
    let create = || -> io::Result<()> {
        OpenOptions::new().write(true).create_new(true).open(&file)?;
        fs::remove_file(&file)
    };
    create().map_err(|error| format!("cannot create files in {}: {}", directory.display(), describe(&error)))
}
