//! What is said of an id that was not found: what was searched, what may explain it, and where else to look.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use super::search::Searched;
use crate::cli::text::{in_bytes, printable};
use crate::config::{LogAnalyticsConfig, RecordConfig};

/// A request of this age may not have ended yet.
const RECENT: TimeDelta = TimeDelta::minutes(15);

/// An id that was not found.
pub(super) struct NotFound<'a> {
    pub(super) id: &'a str,
    pub(super) searched: &'a Searched,
    /// `None` if files were named.
    pub(super) configured: Option<ConfiguredRecords<'a>>,
    /// Why the running process could not be asked; `None` if it was asked, or is not known.
    pub(super) admin_problem: Option<String>,
    pub(super) now: DateTime<Utc>,
}

/// Where the configuration sends records.
pub(super) struct ConfiguredRecords<'a> {
    /// The configuration file.
    pub(super) file: String,
    pub(super) record: Option<&'a RecordConfig>,
}

impl NotFound<'_> {
    /// The message, of several lines.
    pub(super) fn message(&self) -> String {
        let mut lines = Vec::new();
        // The record may be in a place that could not be searched.
        let beyond = if self.searched.problems.is_empty() { "" } else { " in what could be read" };
        lines.push(format!("{}: not found{beyond}", printable(self.id)));
        lines
            .extend(self.searched.problems.iter().map(|problem| format!("not read: {}", printable(problem))));
        lines.push(self.what_was_searched());
        lines.extend(self.searched.notes.iter().map(|note| printable(note)));
        lines.extend(self.explanation());
        lines.extend(
            self.admin_problem.iter().map(|problem| format!("recent trouble: {}", printable(problem))),
        );
        if let Some(table) = self.record().and_then(|record| record.log_analytics.as_ref()) {
            lines.push(
                "records also go to Log Analytics, where they arrive within minutes. Look there with"
                    .to_owned(),
            );
            lines.push(format!("  {}", kql_query(table, self.id)));
        }
        lines.join("\n")
    }

    fn record(&self) -> Option<&RecordConfig> {
        self.configured.as_ref()?.record
    }

    fn what_was_searched(&self) -> String {
        let Searched { places, files, bytes, oldest_time, .. } = self.searched;
        if places.is_empty() && *files == 0 {
            return "searched: nothing".to_owned();
        }
        let places = match places.as_slice() {
            [] if *files == 1 => "1 file".to_owned(),
            [] => format!("{files} files"),
            places => places.join(", "),
        };
        let since = match oldest_time {
            Some(time) => format!("records since {}", printable(time)),
            None => "no record".to_owned(),
        };
        printable(&format!("searched: {places}: {}, {since}", in_bytes(*bytes)))
    }

    fn explanation(&self) -> Vec<String> {
        if let Some(ConfiguredRecords { file, record: None }) = &self.configured {
            return vec![format!("{file} has no record block: requests leave no records")];
        }
        let mut lines = Vec::new();
        let oldest =
            self.searched.oldest_time.as_deref().and_then(|time| DateTime::parse_from_rfc3339(time).ok());
        match time_of_id(self.id) {
            Some(time) => {
                let shown = time.to_rfc3339_opts(SecondsFormat::Secs, true);
                lines.push(if oldest.is_some_and(|oldest| time < oldest) {
                    let kept = self.record().and_then(|record| record.jsonl.as_ref());
                    let kept = kept.map(|jsonl| format!(" (record.jsonl.keep: {})", jsonl.max_rotated_files));
                    format!(
                        "the id was made at {shown}, before the oldest record: its file is probably deleted{}",
                        kept.unwrap_or_default()
                    )
                } else if self.now.signed_duration_since(time) < RECENT {
                    format!("the id was made at {shown}: the response may not have ended, and its record is written then")
                } else {
                    format!("the id was made at {shown}: the response has not ended, another instance made it, or its record is lost")
                });
            }
            None => lines.push(
                "known ids: x-aoai-lb-request-id, the client's x-ms-client-request-id, x-client-request-id or \
                 x-request-id, Azure's apim-request-id, and the trace id of a traceparent"
                    .to_owned(),
            ),
        }
        if self.record().is_some_and(|record| record.jsonl.is_none()) {
            lines.push(
                "there is no record.jsonl: once delivered, records are no longer on this machine".to_owned(),
            );
        }
        lines.push("each instance has the records of its own requests only".to_owned());
        lines
    }
}

/// When an id of the balancer was made; `None` for another id.
fn time_of_id(id: &str) -> Option<DateTime<Utc>> {
    let id = uuid::Uuid::try_parse(id).ok().filter(|id| id.get_version_num() == 7)?;
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
}

/// A query that finds the request in the table.
fn kql_query(table: &LogAnalyticsConfig, id: &str) -> String {
    // The names of Azure: a table ends in _CL, its stream begins with Custom-.
    let name = table.stream_name.strip_prefix("Custom-").unwrap_or(&table.stream_name);
    let name = if name.ends_with("_CL") { name.to_owned() } else { format!("{name}_CL") };
    let id = serde_json::Value::from(printable(id)).to_string();
    let columns = ["request_id", "client_request_id", "apim_request_id", "trace_id"];
    let conditions = columns.map(|column| format!("{column} =~ {id}"));
    format!("{} | where {}", printable(&name), conditions.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, parse_and_check_yaml};

    const OLD_ID: &str = "01a1fa45-8a00-7efe-9689-f3f27b33c881";

    fn config_with(record: &str) -> Config {
        let yaml = format!(
            "listeners: [ {{ address: 127.0.0.1:1 }} ]\nclients: open\nbackends: [ {{ name: a, endpoint: \
             'https://a.example', credential: {{ api_key: k }} }} ]\n{record}"
        );
        parse_and_check_yaml(&yaml, std::path::Path::new(""), &|_| None).unwrap().config
    }

    fn message(id: &str, searched: &Searched, record: Option<&str>) -> String {
        let config = record.map(config_with);
        let record = config.as_ref().and_then(|config| config.record.as_ref());
        let configured =
            config.as_ref().map(|_| ConfiguredRecords { file: "aoai-lb.yaml".to_owned(), record });
        let now = DateTime::parse_from_rfc3339("2026-11-27T12:00:00Z").unwrap().to_utc();
        NotFound { id, searched, configured, admin_problem: None, now }.message()
    }

    #[test]
    fn the_time_of_an_id_and_what_was_searched_explain_why_it_is_not_there() {
        let searched = |oldest: &str| Searched {
            places: vec!["2 files of x.jsonl".to_owned()],
            files: 2,
            bytes: 2048,
            oldest_time: Some(oldest.to_owned()),
            ..Searched::default()
        };
        let jsonl = Some("record: { jsonl: { path: x.jsonl, keep: 7 } }");
        let time = time_of_id(OLD_ID).unwrap();
        let [before, after] = [-1, 1].map(|days| (time + TimeDelta::days(days)).to_rfc3339());
        let new_id =
            uuid::Builder::from_unix_timestamp_millis(1_795_780_795_000, &[7; 10]).into_uuid().to_string();
        for (id, searched, record, expected) in [
            (
                OLD_ID,
                searched(&after),
                jsonl,
                "before the oldest record: its file is probably deleted (record.jsonl.keep: 7)",
            ),
            (OLD_ID, searched(&before), jsonl, "another instance made it, or its record is lost"),
            (
                &new_id,
                searched(&before),
                jsonl,
                "the response may not have ended, and its record is written then",
            ),
            ("mine", searched(&before), jsonl, "known ids: x-aoai-lb-request-id, the client's"),
            ("mine", searched("x"), jsonl, "searched: 2 files of x.jsonl: 2.0 KiB, records since x"),
            ("mine", Searched::default(), Some(""), "aoai-lb.yaml has no record block"),
            ("mine", Searched { files: 1, ..Searched::default() }, None, "searched: 1 file: 0 B, no record"),
        ] {
            let message = message(id, &searched, record);
            assert!(
                message.contains(expected) && message.starts_with(&format!("{id}: not found\n")),
                "{message}"
            );
        }
    }

    #[test]
    fn what_could_not_be_read_is_named_and_nothing_is_said_to_be_missing() {
        let searched = Searched {
            problems: vec!["x.jsonl: permission denied".to_owned()],
            notes: vec!["y\u{1b}[2J".to_owned()],
            ..Searched::default()
        };
        let message = message("a\u{1b}b", &searched, None);
        assert!(
            message.starts_with(
                "a\u{fffd}b: not found in what could be read\nnot read: x.jsonl: permission denied\n"
            ),
            "{message}"
        );
        assert!(message.contains("y\u{fffd}[2J"));
    }

    #[test]
    fn log_analytics_is_asked_with_a_query_of_its_language() {
        let record = "record: { log_analytics: { endpoint: 'https://x.ingest.monitor.azure.com', rule: dcr-0123456789abcdef0123456789abcdef, stream: \
                      Custom-AoaiExchanges, credential: { entra: { managed_identity: {} } } }, spool: { path: spool } }";
        let message = message("my\"id", &Searched::default(), Some(record));
        let expected =
            r#"  AoaiExchanges_CL | where request_id =~ "my\"id" or client_request_id =~ "my\"id" or "#;
        assert!(message.contains(expected) && message.contains("there is no record.jsonl"), "{message}");
    }
}
