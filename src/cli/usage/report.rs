//! The report of `aoai-lb usage`. Reads line by line, within a bound, and keeps only the totals.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use serde::Serialize;

use super::record_fields::RecordFields;
use super::totals::{AudioTotals, UsageTotals};
use crate::cli::record_lines::{LineRead, read_record_line};
use crate::cli::table::write_table;
use crate::system_error::describe;

/// Shown in a table for a field that is null.
const NULL_PLACEHOLDER: &str = "-";
/// How many record ids are kept to find duplicates. A record that is delivered twice follows soon after
/// the first.
const MAX_REMEMBERED_IDS: usize = 100_000;

/// The format of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum ReportFormat {
    /// Columns for a terminal, with a line of totals.
    Table,
    /// Comma-separated values with a header line.
    Csv,
    /// A JSON array of objects.
    Json,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub(super) enum UsageError {
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

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct UsageKey {
    day: String,
    client: Option<String>,
    deployment: Option<String>,
    backend: Option<String>,
}

/// The totals of some files.
#[derive(Debug, Default)]
pub(super) struct UsageReport {
    totals: BTreeMap<UsageKey, UsageTotals>,
    seen_ids: HashSet<u128>,
    ids_by_age: VecDeque<u128>,
    /// Lines that are not records.
    pub(super) unreadable_lines: u64,
    /// Lines that are longer than a record can be.
    pub(super) too_long_lines: u64,
    /// Records that were delivered twice.
    pub(super) duplicate_records: u64,
}

impl UsageReport {
    /// Adds a file, which is compressed if its name ends in `.gz`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn add_file(&mut self, path: &Path) -> Result<(), UsageError> {
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
    pub(super) fn write(&self, format: ReportFormat, to: &mut impl Write) -> Result<(), UsageError> {
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

/// Quotes a field of comma-separated values if it needs to be (RFC 4180).
fn quote_csv_field(text: &str) -> String {
    let needs_no_quotes =
        text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._- ".contains(&b)) && !text.starts_with('-');
    if needs_no_quotes { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
