//! The status of the active configuration. The server sets it at startup and at each reload; the
//! admin API shows it.

use std::path::PathBuf;
use std::time::SystemTime;

/// The status of the active configuration.
#[derive(Clone, Debug)]
pub struct ConfigStatus {
    /// The file it was read from; `None` for the demo.
    pub file: Option<PathBuf>,
    /// Counts the configurations that this process has activated, from 1.
    pub activation_number: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// When it was activated.
    pub loaded_at: SystemTime,
    /// Why the last reload failed, if it did.
    pub last_reload_error: Option<String>,
    /// The changed keys whose values take effect only with an upgrade.
    pub config_keys_needing_upgrade: Vec<String>,
}

impl ConfigStatus {
    /// The beginning of the hash: enough to tell two files apart.
    pub fn short_sha256(&self) -> &str {
        self.sha256.get(..12).unwrap_or(&self.sha256)
    }
}
