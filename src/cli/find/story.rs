//! The story of a request for a terminal: what its record says, in the order in which it happened.

use serde_json::Value;

use super::found::FoundRecord;
use super::time_spent::time_parts;
use crate::cli::text::{Line, Style, in_bytes, printable, shortened, width};

/// The values are aligned after the longest label.
const LABEL_COLUMNS: usize = 12;
/// How much is shown of a value whose meaning this version does not know.
const MAX_OTHER_COLUMNS: usize = 200;
/// The fields that have a line or words of their own.
const WORDED_FIELDS: [&str; 48] = [
    "time",
    "request_id",
    "client_request_id",
    "trace_id",
    "socket_id",
    "client",
    "class",
    "client_ip",
    "peer_ip",
    "user_agent",
    "method",
    "path",
    "operation",
    "api",
    "api_version",
    "deployment",
    "stream",
    "status",
    "outcome",
    "refusal",
    "limited_by",
    "reserved_tokens",
    "backend",
    "upstream_deployment",
    "region",
    "model",
    "affinity",
    "attempts",
    "duration_ms",
    "waited_ms",
    "queued_ms",
    "first_byte_ms",
    "request_bytes",
    "response_bytes",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "total_tokens",
    "input_audio_tokens",
    "output_audio_tokens",
    "cached_audio_tokens",
    "audio_seconds",
    "usage_source",
    "usage_missing",
    "finish_reason",
    "apim_request_id",
    "content_cut",
];

/// The story of a request.
pub(super) fn story(found: &FoundRecord, shows_content: bool) -> Vec<Line> {
    let Ok(record) = serde_json::from_slice::<Value>(&found.bytes) else {
        return vec![Line::new("the record cannot be shown; --json prints it as it is", Style::Bad)];
    };
    let mut story = Story { record: &record, lines: Vec::new() };
    story.write_headline();
    let places: Vec<String> = found.places.iter().map(ToString::to_string).collect();
    story.write("record", &format!("in {}; found by its {}", places.join(" and in "), found.field));
    story.write_client();
    story.write_request();
    story.write_affinity();
    story.write_attempts();
    story.write_answer();
    story.write_tokens();
    story.write_other_fields();
    story.write_times();
    story.write_content(shows_content);
    story.lines
}

struct Story<'r> {
    record: &'r Value,
    lines: Vec<Line>,
}

/// Parts of a line, without those that are not known.
#[derive(Default)]
struct Parts(Vec<String>);

impl Parts {
    fn add(&mut self, text: Option<String>) {
        self.0.extend(text.filter(|text| !text.is_empty()));
    }

    fn joined(&self) -> String {
        self.0.join(", ")
    }
}

impl Story<'_> {
    /// A text of the record, safe for a terminal.
    fn text(&self, name: &str) -> Option<String> {
        self.record[name].as_str().map(printable)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.record[name].as_u64()
    }

    /// A text with words before it.
    fn named(&self, name: &str, words: &str) -> Option<String> {
        self.text(name).map(|text| format!("{words} {text}"))
    }

    fn write_line(&mut self, label: &str, value: Line) {
        let label = printable(label);
        let blanks = " ".repeat(LABEL_COLUMNS.saturating_sub(width(&label)).max(1));
        self.lines.push(Line::new(label + &blanks, Style::Dim).followed_by(value));
    }

    /// Writes a line unless the value is empty.
    fn write(&mut self, label: &str, value: &str) {
        if !value.is_empty() {
            self.write_line(label, Line::plain(value));
        }
    }

    fn write_headline(&mut self) {
        let id = self.text("request_id").unwrap_or_default();
        let mut line = Line::new(id, Style::Bold);
        if let Some(time) = self.text("time") {
            line.push(format!("  {time}"), Style::Plain);
        }
        if let Some(outcome) = self.text("outcome") {
            let (outcome, style) = (outcome.replace('_', " "), style_of(self.record));
            line.push(format!("  {outcome}"), style);
            if let Some(status) = self.number("status") {
                line.push(format!(", {status}"), style);
            }
        }
        self.lines.push(line);
    }

    fn write_client(&mut self) {
        let mut parts = Parts::default();
        parts.add(self.text("client"));
        parts.add(self.named("class", "class"));
        let (client_ip, peer_ip) = (self.text("client_ip"), self.text("peer_ip"));
        parts.add(client_ip.clone());
        parts.add(
            peer_ip
                .filter(|peer| Some(peer) != client_ip.as_ref())
                .map(|peer| format!("connected from {peer}")),
        );
        self.write("client", &parts.joined());
        self.write("program", &self.text("user_agent").unwrap_or_default());
        let mut ids = Parts::default();
        ids.add(self.named("client_request_id", "the client's"));
        ids.add(self.named("apim_request_id", "Azure's"));
        ids.add(self.named("trace_id", "trace"));
        ids.add(self.named("socket_id", "WebSocket"));
        self.write("ids", &ids.joined());
    }

    fn write_request(&mut self) {
        let line = [self.text("method"), self.text("path")];
        self.write("request", &line.into_iter().flatten().collect::<Vec<_>>().join(" "));
        let mut parts = Parts::default();
        parts.add(self.text("operation"));
        parts.add(self.text("api"));
        parts.add(self.named("api_version", "api-version"));
        parts.add(
            self.record["stream"]
                .as_bool()
                .map(|is_stream| if is_stream { "stream" } else { "no stream" }.to_owned()),
        );
        parts.add(self.number("request_bytes").map(in_bytes));
        self.write("", &parts.joined());
        let mut parts = Parts::default();
        parts.add(self.text("deployment"));
        parts.add(self.named("model", "model"));
        self.write("deployment", &parts.joined());
        let mut parts = Parts::default();
        parts.add(self.number("reserved_tokens").map(|tokens| format!("{tokens} tokens reserved")));
        parts.add(self.named("limited_by", "limited by"));
        self.write("limits", &parts.joined());
    }

    /// `file on resource b:443 (asked); 1 resource did not have it; 20 ms`
    fn write_affinity(&mut self) {
        let affinity = &self.record["affinity"];
        if !affinity.is_object() {
            return;
        }
        let text = |name: &str| affinity[name].as_str().map(printable);
        let mut parts = Parts::default();
        parts.add(text("by").map(|by| format!("by its {by}")));
        parts.add(text("how").map(|how| how.replace('_', " ")));
        parts.add(text("resource").map(|resource| format!("resource {resource}")));
        let asked = affinity["asked"].as_u64().filter(|asked| *asked > 0);
        parts.add(asked.map(|asked| format!("resources that did not have it: {asked}")));
        parts.add(affinity["waited_ms"].as_u64().filter(|ms| *ms > 0).map(|ms| format!("waited {ms} ms")));
        self.write("object", &parts.joined());
    }

    fn write_attempts(&mut self) {
        let attempts: Vec<Value> = self.record["attempts"].as_array().cloned().unwrap_or_default();
        if attempts.is_empty() {
            self.write("attempts", "none: no backend was asked");
        }
        let text = |attempt: &Value, name: &str| attempt[name].as_str().map(printable);
        let backend_of = |attempt: &Value| text(attempt, "backend").unwrap_or_else(|| "-".to_owned());
        let verdict_of = |attempt: &Value| {
            let status = attempt["status"].as_u64().map(|status| status.to_string());
            let verdict =
                [status, text(attempt, "error")].into_iter().flatten().collect::<Vec<_>>().join(" ");
            if verdict.is_empty() { "no response".to_owned() } else { verdict }
        };
        let widest = |of: &dyn Fn(&Value) -> String| {
            attempts.iter().map(|attempt| width(&of(attempt))).max().unwrap_or(0)
        };
        let (backend_columns, verdict_columns) = (widest(&backend_of), widest(&verdict_of));
        let padded = |text: String, columns: usize| {
            let blanks = " ".repeat(columns.saturating_sub(width(&text)) + 2);
            text + &blanks
        };
        for (number, attempt) in attempts.iter().enumerate() {
            let ms = |name: &str, words: &str| attempt[name].as_u64().map(|ms| format!("{words} {ms} ms"));
            let mut times = Parts::default();
            times.add(ms("start_ms", "began at"));
            times.add(ms("first_byte_ms", "response after"));
            times.add(ms("ms", "over after"));
            times.add(ms("retry_after_ms", "asked to retry after"));
            let line =
                Line::plain(format!("{}. {}", number + 1, padded(backend_of(attempt), backend_columns)))
                    .with(padded(verdict_of(attempt), verdict_columns), style_of(attempt))
                    .with(times.joined(), Style::Plain);
            self.write_line(if number == 0 { "attempts" } else { "" }, line);
        }
    }

    fn write_answer(&mut self) {
        let mut parts = Parts::default();
        parts.add(self.named("refusal", "refused by the balancer:"));
        let backend = self.text("backend").map(|backend| match self.text("upstream_deployment") {
            Some(deployment) => format!("by {backend} (deployment {deployment})"),
            None => format!("by {backend}"),
        });
        parts.add(backend);
        parts.add(self.named("region", "region"));
        parts.add(self.named("finish_reason", "finish reason"));
        parts.add(self.number("response_bytes").map(in_bytes));
        self.write("answer", &parts.joined());
    }

    /// `input 12 (cached 8), output 30 (reasoning 10), total 42 (reported)`
    fn write_tokens(&mut self) {
        let with_parts = |name: &str, words: &str, parts: &[(&str, &str)]| {
            let count = self.number(name)?;
            let parts = parts.iter().filter_map(|(name, words)| {
                self.number(name).filter(|count| *count > 0).map(|count| format!("{words} {count}"))
            });
            let parts: Vec<String> = parts.collect();
            let parts = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
            Some(format!("{words} {count}{parts}"))
        };
        let mut parts = Parts::default();
        let input = [
            ("cached_tokens", "cached"),
            ("input_audio_tokens", "audio"),
            ("cached_audio_tokens", "cached audio"),
        ];
        parts.add(with_parts("input_tokens", "input", &input));
        let output = [("reasoning_tokens", "reasoning"), ("output_audio_tokens", "audio")];
        parts.add(with_parts("output_tokens", "output", &output));
        parts.add(with_parts("total_tokens", "total", &[]));
        parts.add(self.record["audio_seconds"].as_f64().map(|seconds| format!("audio {seconds} s")));
        match self.text("usage_source") {
            Some(source) if !parts.0.is_empty() => parts.add(Some(source)),
            _ => parts.add(self.named("usage_missing", "not known:").or_else(|| self.why_not_counted())),
        }
        self.write("tokens", &parts.joined());
    }

    /// Why an answer has no tokens although none are missing: another record has those of a stored response.
    fn why_not_counted(&self) -> Option<String> {
        let text = match self.record["finish_reason"].as_str()? {
            "queued" | "in_progress" => {
                "none yet: they will be in the record of the request that first reads the end"
            }
            _ => {
                "none here: any are in the record of the request that created the response or first read its end"
            }
        };
        Some(text.to_owned())
    }

    /// The fields that have no words here, such as those of later versions, by their names.
    fn write_other_fields(&mut self) {
        let Some(fields) = self.record.as_object() else { return };
        let has_words =
            |name: &str| WORDED_FIELDS.contains(&name) || ["prompt", "completion"].contains(&name);
        let others = fields.iter().filter(|(name, value)| !has_words(name) && !value.is_null());
        for (name, value) in others {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            self.write(name, &shortened(&printable(&text), MAX_OTHER_COLUMNS));
        }
    }

    fn write_times(&mut self) {
        let Some(total) = self.number("duration_ms") else { return };
        self.write("time", &format!("{total} ms"));
        let parts = time_parts(self.record);
        let columns = total.to_string().len();
        for part in parts {
            self.write("", &format!("{:>columns$} ms  {}", part.ms, part.text));
        }
    }

    fn write_content(&mut self, shows_content: bool) {
        let mut sizes = Parts::default();
        for name in ["prompt", "completion"] {
            let Some(text) = self.record[name].as_str() else { continue };
            if shows_content {
                self.write(name, &in_bytes(text.len() as u64));
                // The lines of the text stay lines.
                let lines = text
                    .lines()
                    .map(|line| Line::new("  | ", Style::Dim).with(printable_line(line), Style::Plain));
                self.lines.extend(lines);
            } else {
                sizes.add(Some(format!("{name} {}", in_bytes(text.len() as u64))));
            }
        }
        if self.record["content_cut"] == true {
            sizes.add(Some("cut".to_owned()));
        }
        if !sizes.0.is_empty() {
            let hint = if shows_content { "" } else { " (--content shows it)" };
            self.write("content", &(sizes.joined() + hint));
        }
    }
}

/// A line of a prompt, with its indentation.
fn printable_line(line: &str) -> String {
    let indentation = line.len() - line.trim_start_matches(' ').len();
    " ".repeat(indentation) + &printable(line)
}

/// How a status looks, of a request or an attempt.
fn style_of(value: &Value) -> Style {
    let has_failed = value["error"].is_string() || value["outcome"] == "failed";
    match value["status"].as_u64() {
        _ if has_failed => Style::Bad,
        Some(429) => Style::Warning,
        Some(500..) => Style::Bad,
        Some(400..) => Style::Warning,
        Some(_) if value["outcome"] == "client_gone" => Style::Warning,
        Some(_) => Style::Good,
        None => Style::Bad,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::find::found::Place;
    use crate::cli::text::Palette;

    fn shown(record: &Value, shows_content: bool) -> String {
        let places = vec![Place::Spool(Vec::new()), Place::File("/x/exchanges.jsonl".into())];
        let found = FoundRecord { bytes: record.to_string().into_bytes(), field: "trace_id", places };
        let lines = story(&found, shows_content).into_iter();
        lines.map(|line| line.fitted(None).render(Palette::Text) + "\n").collect()
    }

    #[test]
    fn the_story_has_all_that_the_record_has() {
        // A long `json!` exceeds the recursion limit.
        let record = r#"{
            "time": "2026-11-23T08:00:00.000000Z", "request_id": "019a", "client_request_id": null, "trace_id": "4bf9",
            "socket_id": "018b", "client": "team-a", "class": "batch", "client_ip": "10.0.0.1", "peer_ip": "10.0.0.9",
            "user_agent": null, "method": "POST", "path": "/openai/v1/responses", "operation": "responses", "api": "v1",
            "api_version": null, "deployment": "gpt-4o", "stream": true, "status": 200, "outcome": "client_gone",
            "refusal": null, "limited_by": "tokens_per_minute", "reserved_tokens": 40, "backend": "b",
            "upstream_deployment": "gpt-4o-prod", "region": "East US", "model": "gpt-4o-2024-11-20",
            "affinity": { "by": "previous_response_id", "how": "asked", "resource": "b:443", "asked": 1, "waited_ms": 20 },
            "attempts": [
                { "backend": "long-name", "status": null, "error": "connect_refused", "start_ms": 5,
                  "first_byte_ms": null, "ms": 3, "retry_after_ms": null },
                { "backend": "b", "status": 200, "error": null, "start_ms": 10, "first_byte_ms": 90, "ms": 1400,
                  "retry_after_ms": 0 }
            ],
            "duration_ms": 1420, "waited_ms": 0, "queued_ms": 2, "first_byte_ms": 110, "request_bytes": 2048,
            "response_bytes": 10, "input_tokens": 12, "output_tokens": 30, "cached_tokens": 8, "reasoning_tokens": 0,
            "total_tokens": 42, "usage_source": "reported", "usage_missing": null, "finish_reason": "stop",
            "apim_request_id": "0d1e", "prompt": "[\n  {\"a\": 1}\n]", "completion": null, "content_cut": true,
            "cost": 0.0123, "service_tier": "flex", "cache": { "by": "session", "moved": false }, "spilled": null
        }"#;
        let record = serde_json::from_str(record).unwrap();
        let expected = "\
019a  2026-11-23T08:00:00.000000Z  client gone, 200
record      in the spool and in /x/exchanges.jsonl; found by its trace_id
client      team-a, class batch, 10.0.0.1, connected from 10.0.0.9
ids         Azure's 0d1e, trace 4bf9, WebSocket 018b
request     POST /openai/v1/responses
            responses, v1, stream, 2.0 KiB
deployment  gpt-4o, model gpt-4o-2024-11-20
limits      40 tokens reserved, limited by tokens_per_minute
object      by its previous_response_id, asked, resource b:443, resources that did not have it: 1, waited 20 ms
attempts    1. long-name  connect_refused  began at 5 ms, over after 3 ms
            2. b          200              began at 10 ms, response after 90 ms, over after 1400 ms, asked to retry after 0 ms
answer      by b (deployment gpt-4o-prod), region East US, finish reason stop, 10 B
tokens      input 12 (cached 8), output 30, total 42, reported
cache       {\"by\":\"session\",\"moved\":false}
cost        0.0123
service_tier flex
time        1420 ms
               2 ms  in the queue
               3 ms  the attempt without an answer
              90 ms  until the answering backend began to respond (connect, send, first byte)
              10 ms  until the first byte of the body was sent to the client
            1310 ms  until the end of the body
               5 ms  elsewhere: the request's body, and the balancer
";
        let hidden = shown(&record, false);
        assert_eq!(hidden, expected.to_owned() + "content     prompt 14 B, cut (--content shows it)\n");
        let content = "prompt      14 B\n  | [\n  |   {\"a\": 1}\n  | ]\ncontent     cut\n";
        assert_eq!(shown(&record, true), expected.to_owned() + content);
    }

    #[test]
    fn a_record_with_little_in_it_is_a_short_story() {
        let record = json!({ "time": "t", "request_id": "1", "status": null, "outcome": "failed", "refusal": "upstream_failed", "usage_missing": "image" });
        let expected = "1  t  failed\nrecord      in the spool and in /x/exchanges.jsonl; found by its trace_id\n\
                        attempts    none: no backend was asked\nanswer      refused by the balancer: upstream_failed\n\
                        tokens      not known: image\n";
        assert_eq!(shown(&record, false), expected);
    }

    #[test]
    fn a_response_that_counts_no_tokens_says_which_one_does() {
        for (finish_reason, expected) in [
            (
                json!("queued"),
                Some(
                    "tokens      none yet: they will be in the record of the request that first reads the end\n",
                ),
            ),
            (
                json!("completed"),
                Some(
                    "tokens      none here: any are in the record of the request that created the response or first read its end\n",
                ),
            ),
            (Value::Null, None),
        ] {
            let record = json!({ "request_id": "1", "usage_source": "none", "finish_reason": finish_reason });
            let story = shown(&record, false);
            assert_eq!(story.lines().find(|line| line.starts_with("tokens")), expected.map(str::trim_end));
        }
    }
}
