//! `record`: what is recorded of each request, and where the records go.

use std::path::PathBuf;

use super::credentials::EntraCredential;
use crate::config::values::Endpoint;

/// What is recorded of each request and its response, and where the records go.
#[derive(Clone, Debug)]
pub struct RecordConfig {
    /// How much of prompts and completions is recorded, unless the client has a setting of its own.
    pub recorded_content: RecordedContent,
    /// The most bytes recorded of a prompt, and of a completion; above zero.
    pub max_content_bytes: u64,
    /// How the token counts of streams are obtained.
    pub stream_usage_mode: StreamUsageMode,
    /// What matches one of these is removed from prompts and completions before they are recorded.
    pub redaction_patterns: Vec<regex::Regex>,
    /// The file of JSON lines. At least one of this and `log_analytics` is set.
    pub jsonl: Option<JsonlConfig>,
    /// The Log Analytics table.
    pub log_analytics: Option<LogAnalyticsConfig>,
    /// The on-disk queue of records that have not been delivered yet.
    pub spool: SpoolConfig,
}

/// How much of prompts and completions is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordedContent {
    /// Prompts and completions.
    Full,
    /// Prompts.
    PromptOnly,
    /// Neither.
    None,
}

/// How the token counts of streams are obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamUsageMode {
    /// If the client did not request them, the balancer requests them from upstream
    /// (`stream_options.include_usage`).
    AskUpstream,
    /// They are read only from streams for which the client requested them.
    ObserveOnly,
}

/// A file with one JSON object per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonlConfig {
    /// The file. Its directory may be missing.
    pub path: PathBuf,
    /// The file is rotated when it reaches this size.
    pub rotate_at_bytes: u64,
    /// How many rotated files are kept.
    pub max_rotated_files: usize,
}

/// A table in Log Analytics, filled through a data collection rule (Logs Ingestion API).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogAnalyticsConfig {
    /// The logs ingestion endpoint of the rule, or the data collection endpoint.
    pub endpoint: Endpoint,
    /// The immutable id of the rule.
    pub rule_immutable_id: String,
    /// The stream of the rule that records are sent to.
    pub stream_name: String,
    /// The credential to send with.
    pub credential: EntraCredential,
}

/// The on-disk queue of records that have not been delivered to their sinks yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolConfig {
    /// A directory that only the balancer uses.
    pub directory: PathBuf,
    /// Above this many bytes, the oldest records are dropped.
    pub max_bytes: u64,
}
