//! `aoai-lb usage`: sums up requests and tokens of record files by day, client, deployment and backend.
//! Reads line by line, within a bound, and keeps only the totals.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize, Serializer};

use super::cli_error::CliError;
use super::config_file::ConfigArguments;
use super::record_lines::{LineRead, read_record_line};
use super::table::write_table;
use crate::record::list_record_files;
use crate::system_error::describe;

/// Shown in a table for a field that is null.
const NULL_PLACEHOLDER: &str = "-";
/// How many record ids are kept to find duplicates. A record that is delivered twice follows soon after
/// the first.
const MAX_REMEMBERED_IDS: usize = 100_000;

/// The status of a WebSocket's own record.
const WEBSOCKET_STATUS: u16 = 101;

/// The format of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ReportFormat {
    /// Columns for a terminal, with a line of totals.
    Table,
    /// Comma-separated values with a header line.
    Csv,
    /// A JSON array of objects.
    Json,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
enum UsageError {
    /// A file cannot be read.
    #[error("{}: {}", path.display(), describe(problem))]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        problem: io::Error,
    },
    /// The report cannot be written.
    #[error("cannot write the report: {}", describe(.0))]
    Write(#[from] io::Error),
}

/// Prints the report of these files, or without any, of those that the configuration names.
pub(super) fn run(
    files: Vec<PathBuf>,
    config: &ConfigArguments,
    format: ReportFormat,
) -> Result<(), CliError> {
    let files = if files.is_empty() { configured_files(config)? } else { files };
    let mut report = UsageReport::default();
    for file in &files {
        report.add_file(file)?;
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    report.write(format, &mut out)?;
    out.flush()?;
    for (count, description) in [
        (report.unreadable_lines, "lines that are not records"),
        (report.too_long_lines, "lines that are longer than a record"),
        (report.duplicate_records, "duplicate records"),
    ] {
        if count > 0 {
            writeln!(io::stderr(), "skipped {description}: {count}")?;
        }
    }
    Ok(())
}

/// The files of `record.jsonl`.
fn configured_files(config: &ConfigArguments) -> Result<Vec<PathBuf>, CliError> {
    let checked = config.load_without_secrets()?.checked;
    let Some(jsonl) = checked.config.record.and_then(|record| record.jsonl) else {
        let file = config.file().display();
        return Err(CliError(format!("{file} has no record.jsonl; name the files of records")));
    };
    let files = list_record_files(&jsonl);
    let files =
        files.map_err(|problem| CliError(format!("{}: {}", jsonl.path.display(), describe(&problem))))?;
    if files.is_empty() {
        return Err(CliError(format!("there are no records in {} yet", jsonl.path.display())));
    }
    Ok(files)
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct UsageKey {
    day: String,
    client: Option<String>,
    deployment: Option<String>,
    backend: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct UsageTotals {
    requests: u64,
    input_tokens: u64,
    output_tokens: u64,
    cached_tokens: u64,
    reasoning_tokens: u64,
    total_tokens: u64,
    #[serde(skip)]
    audio: AudioTotals,
}

/// Shown only if there is any audio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct AudioTotals {
    input_audio_tokens: u64,
    output_audio_tokens: u64,
    cached_audio_tokens: u64,
    #[serde(rename = "audio_seconds", serialize_with = "serialize_millis_as_seconds")]
    audio_millis: u64,
}

/// The fields of a record that the report uses.
#[derive(Deserialize)]
struct RecordFields<'a> {
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow)]
    request_id: Cow<'a, str>,
    #[serde(borrow, default)]
    client: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    deployment: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    backend: Option<Cow<'a, str>>,
    #[serde(default)]
    status: Option<u16>,
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    cached_tokens: Option<u64>,
    #[serde(default)]
    reasoning_tokens: Option<u64>,
    #[serde(default)]
    total_tokens: Option<u64>,
    #[serde(default)]
    input_audio_tokens: Option<u64>,
    #[serde(default)]
    output_audio_tokens: Option<u64>,
    #[serde(default)]
    cached_audio_tokens: Option<u64>,
    #[serde(default)]
    audio_seconds: Option<f64>,
}

impl RecordFields<'_> {
    /// A WebSocket's own record does not count as a request: what came over it has records of its own.
    fn totals(&self) -> UsageTotals {
        UsageTotals {
            requests: u64::from(self.status != Some(WEBSOCKET_STATUS)),
            input_tokens: self.input_tokens.unwrap_or(0),
            output_tokens: self.output_tokens.unwrap_or(0),
            cached_tokens: self.cached_tokens.unwrap_or(0),
            reasoning_tokens: self.reasoning_tokens.unwrap_or(0),
            total_tokens: self.total_tokens.unwrap_or(0),
            audio: AudioTotals {
                input_audio_tokens: self.input_audio_tokens.unwrap_or(0),
                output_audio_tokens: self.output_audio_tokens.unwrap_or(0),
                cached_audio_tokens: self.cached_audio_tokens.unwrap_or(0),
                // A cast of a float saturates.
                audio_millis: (self.audio_seconds.unwrap_or(0.0) * 1000.0).round() as u64,
            },
        }
    }
}

/// The totals of some files.
#[derive(Debug, Default)]
struct UsageReport {
    totals: BTreeMap<UsageKey, UsageTotals>,
    seen_ids: HashSet<u128>,
    ids_by_age: VecDeque<u128>,
    /// Lines that are not records.
    unreadable_lines: u64,
    /// Lines that are longer than a record can be.
    too_long_lines: u64,
    /// Records that were delivered twice.
    duplicate_records: u64,
}

impl UsageReport {
    /// Adds a file, which is compressed if its name ends in `.gz`.
    ///
    /// # Errors
    /// If it cannot be read.
    fn add_file(&mut self, path: &Path) -> Result<(), UsageError> {
        let read_error = |problem| UsageError::Read { path: path.to_owned(), problem };
        let file = BufReader::with_capacity(256 * 1024, File::open(path).map_err(read_error)?);
        if path.extension().is_some_and(|ending| ending == "gz") {
            self.add_lines(BufReader::with_capacity(256 * 1024, MultiGzDecoder::new(file)))
                .map_err(read_error)
        } else {
            self.add_lines(file).map_err(read_error)
        }
    }

    fn add_lines(&mut self, mut lines: impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            match read_record_line(&mut lines, &mut line)? {
                LineRead::End => return Ok(()),
                LineRead::TooLong => self.too_long_lines += 1,
                LineRead::Line if line.trim_ascii().is_empty() => {}
                LineRead::Line => self.add_record(&line),
            }
        }
    }

    fn add_record(&mut self, line: &[u8]) {
        let Ok(record) = serde_json::from_slice::<RecordFields<'_>>(line) else {
            self.unreadable_lines += 1;
            return;
        };
        let Some(day) = record.time.get(..10) else {
            self.unreadable_lines += 1;
            return;
        };
        if let Ok(id) = uuid::Uuid::try_parse(&record.request_id)
            && !self.insert_id(id.as_u128())
        {
            self.duplicate_records += 1;
            return;
        }
        let totals = record.totals();
        if totals == UsageTotals::default() {
            return;
        }
        let to_owned = |text: &Option<Cow<'_, str>>| text.as_ref().map(|text| text.clone().into_owned());
        let deployment = record.deployment.as_ref().map(|name| name.to_ascii_lowercase());
        let key = UsageKey {
            day: day.to_owned(),
            client: to_owned(&record.client),
            deployment,
            backend: to_owned(&record.backend),
        };
        self.totals.entry(key).or_default().add(&totals);
    }

    /// Whether this id is new; `false` for a record that was delivered twice.
    fn insert_id(&mut self, id: u128) -> bool {
        if !self.seen_ids.insert(id) {
            return false;
        }
        self.ids_by_age.push_back(id);
        if self.ids_by_age.len() > MAX_REMEMBERED_IDS
            && let Some(oldest) = self.ids_by_age.pop_front()
        {
            self.seen_ids.remove(&oldest);
        }
        true
    }

    /// Writes the report.
    ///
    /// # Errors
    /// If it cannot be written.
    fn write(&self, format: ReportFormat, to: &mut impl Write) -> Result<(), UsageError> {
        let has_audio = self.totals.values().any(|totals| totals.audio != AudioTotals::default());
        match format {
            ReportFormat::Table => self.write_as_table(has_audio, to)?,
            ReportFormat::Csv => {
                writeln!(to, "{}", column_names(has_audio).join(","))?;
                for (key, totals) in &self.totals {
                    let fields = key.columns("").into_iter().map(quote_csv_field);
                    let fields: Vec<String> = fields.chain(totals.columns(has_audio)).collect();
                    writeln!(to, "{}", fields.join(","))?;
                }
            }
            ReportFormat::Json => {
                #[derive(Serialize)]
                struct UsageRow<'a> {
                    #[serde(flatten)]
                    key: &'a UsageKey,
                    #[serde(flatten)]
                    totals: &'a UsageTotals,
                    #[serde(flatten)]
                    audio: Option<&'a AudioTotals>,
                }
                let to_row =
                    |(key, totals)| UsageRow { key, totals, audio: has_audio.then_some(&totals.audio) };
                let rows: Vec<UsageRow<'_>> = self.totals.iter().map(to_row).collect();
                serde_json::to_writer_pretty(&mut *to, &rows).map_err(io::Error::from)?;
                writeln!(to)?;
            }
        }
        Ok(())
    }

    fn write_as_table(&self, has_audio: bool, to: &mut impl Write) -> io::Result<()> {
        let mut total = UsageTotals::default();
        let mut rows: Vec<Vec<String>> =
            vec![column_names(has_audio).into_iter().map(str::to_owned).collect()];
        for (key, totals) in &self.totals {
            total.add(totals);
            let fields = key.columns(NULL_PLACEHOLDER).into_iter().map(str::to_owned);
            rows.push(fields.chain(totals.columns(has_audio)).collect());
        }
        let fields = ["total", "", "", ""].map(str::to_owned);
        rows.push(fields.into_iter().chain(total.columns(has_audio)).collect());
        write_table(&rows, 4, to)
    }
}

const COLUMN_NAMES: [&str; 10] =
    ["day", "client", "deployment", "backend", "requests", "input", "output", "cached", "reasoning", "total"];
const AUDIO_COLUMN_NAMES: [&str; 4] = ["input_audio", "output_audio", "cached_audio", "audio_seconds"];

fn column_names(has_audio: bool) -> Vec<&'static str> {
    let audio: &[&str] = if has_audio { &AUDIO_COLUMN_NAMES } else { &[] };
    [&COLUMN_NAMES, audio].concat()
}

impl UsageKey {
    fn columns<'s>(&'s self, null_text: &'s str) -> [&'s str; 4] {
        let or_null = |text: &'s Option<String>| text.as_deref().unwrap_or(null_text);
        [&self.day, or_null(&self.client), or_null(&self.deployment), or_null(&self.backend)]
    }
}

impl UsageTotals {
    fn add(&mut self, other: &Self) {
        let counts = self.counts_mut();
        for (total, addend) in counts.into_iter().zip({ *other }.counts_mut()) {
            *total = total.saturating_add(*addend);
        }
    }

    fn counts_mut(&mut self) -> [&mut u64; 10] {
        let Self {
            requests,
            input_tokens,
            output_tokens,
            cached_tokens,
            reasoning_tokens,
            total_tokens,
            audio,
        } = self;
        let AudioTotals { input_audio_tokens, output_audio_tokens, cached_audio_tokens, audio_millis } =
            audio;
        [
            requests,
            input_tokens,
            output_tokens,
            cached_tokens,
            reasoning_tokens,
            total_tokens,
            input_audio_tokens,
            output_audio_tokens,
            cached_audio_tokens,
            audio_millis,
        ]
    }

    fn columns(mut self, has_audio: bool) -> impl Iterator<Item = String> {
        let seconds = (self.audio.audio_millis as f64 / 1000.0).to_string();
        let [counts @ .., _millis] = self.counts_mut().map(|count| count.to_string());
        let shown = if has_audio { counts.len() } else { 6 };
        counts.into_iter().take(shown).chain(has_audio.then_some(seconds))
    }
}

fn serialize_millis_as_seconds<S: Serializer>(millis: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(*millis as f64 / 1000.0)
}

/// Quotes a field of comma-separated values if it needs to be (RFC 4180).
fn quote_csv_field(text: &str) -> String {
    let needs_no_quotes =
        text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._- ".contains(&b)) && !text.starts_with('-');
    if needs_no_quotes { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
