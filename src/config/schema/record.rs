//! `record`: what is written down.

use std::path::PathBuf;

use super::credentials::EntraCredential;
use crate::config::values::Endpoint;

/// What is written down of each exchange.
#[derive(Clone, Debug)]
pub struct RecordConfig {
    /// What is kept of prompts and answers, where the client does not say otherwise.
    pub content: RecordedContent,
    /// Most bytes kept of each of the two; above zero.
    pub max_content_bytes: u64,
    /// How token counts of streams are come by.
    pub token_usage: TokenUsageMode,
    /// What is taken out of prompts and answers before they are written down.
    pub redaction_patterns: Vec<regex::Regex>,
    /// The file of JSON lines; that or the table, or both.
    pub jsonl: Option<JsonlConfig>,
    /// The table in Log Analytics.
    pub log_analytics: Option<LogAnalyticsConfig>,
    /// Where records wait for their sinks.
    pub spool: SpoolConfig,
}

/// What is kept of prompts and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordedContent {
    /// Both.
    Full,
    /// The prompt only.
    PromptOnly,
    /// Neither.
    None,
}

/// How token counts of streams are come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenUsageMode {
    /// Upstream is asked for them where the client did not.
    AskUpstream,
    /// Only what passes anyway is read.
    ObserveOnly,
}

/// A file of one JSON object per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonlConfig {
    /// Its path; the directory existed at the check.
    pub path: PathBuf,
    /// From so many bytes on a new file is begun.
    pub rotate_at_bytes: u64,
    /// How many old files are kept.
    pub max_rotated_files: usize,
}

/// A table in Log Analytics, reached by a data collection rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogAnalyticsConfig {
    /// The rule's or the data collection endpoint's.
    pub endpoint: Endpoint,
    /// The rule's immutable id.
    pub rule_immutable_id: String,
    /// The rule's stream.
    pub stream_name: String,
    /// Who may send to it.
    pub credential: EntraCredential,
}

/// Where records wait for their sinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolConfig {
    /// A directory of the balancer's own.
    pub directory: PathBuf,
    /// Bytes beyond which the oldest go.
    pub max_bytes: u64,
}
