//! `aoai-lb usage`: sums up requests and tokens of record files by day, client, deployment and backend.
//! Reads line by line, within a bound, and keeps only the totals.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};

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
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    cached_tokens: Option<u64>,
    #[serde(default)]
    reasoning_tokens: Option<u64>,
    #[serde(default)]
    total_tokens: Option<u64>,
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
        let to_owned = |text: &Option<Cow<'_, str>>| text.as_ref().map(|text| text.clone().into_owned());
        let deployment = record.deployment.as_ref().map(|name| name.to_ascii_lowercase());
        let key = UsageKey {
            day: day.to_owned(),
            client: to_owned(&record.client),
            deployment,
            backend: to_owned(&record.backend),
        };
        let totals = self.totals.entry(key).or_default();
        totals.add(&UsageTotals {
            requests: 1,
            input_tokens: record.input_tokens.unwrap_or(0),
            output_tokens: record.output_tokens.unwrap_or(0),
            cached_tokens: record.cached_tokens.unwrap_or(0),
            reasoning_tokens: record.reasoning_tokens.unwrap_or(0),
            total_tokens: record.total_tokens.unwrap_or(0),
        });
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
        match format {
            ReportFormat::Table => self.write_as_table(to)?,
            ReportFormat::Csv => {
                writeln!(to, "{}", COLUMN_NAMES.join(","))?;
                for (key, totals) in &self.totals {
                    let fields: Vec<String> = key.columns("").into_iter().map(quote_csv_field).collect();
                    let counts: Vec<String> = totals.counts().iter().map(u64::to_string).collect();
                    writeln!(to, "{},{}", fields.join(","), counts.join(","))?;
                }
            }
            ReportFormat::Json => {
                #[derive(Serialize)]
                struct UsageRow<'a> {
                    #[serde(flatten)]
                    key: &'a UsageKey,
                    #[serde(flatten)]
                    totals: &'a UsageTotals,
                }
                let rows: Vec<UsageRow<'_>> =
                    self.totals.iter().map(|(key, totals)| UsageRow { key, totals }).collect();
                serde_json::to_writer_pretty(&mut *to, &rows).map_err(io::Error::from)?;
                writeln!(to)?;
            }
        }
        Ok(())
    }

    fn write_as_table(&self, to: &mut impl Write) -> io::Result<()> {
        let mut total = UsageTotals::default();
        let mut rows: Vec<Vec<String>> = vec![COLUMN_NAMES.map(str::to_owned).to_vec()];
        for (key, totals) in &self.totals {
            total.add(totals);
            let fields = key.columns(NULL_PLACEHOLDER).into_iter().map(str::to_owned);
            rows.push(fields.chain(totals.counts().iter().map(u64::to_string)).collect());
        }
        let fields = ["total", "", "", ""].map(str::to_owned);
        rows.push(fields.into_iter().chain(total.counts().iter().map(u64::to_string)).collect());
        write_table(&rows, 4, to)
    }
}

const COLUMN_NAMES: [&str; 10] =
    ["day", "client", "deployment", "backend", "requests", "input", "output", "cached", "reasoning", "total"];

impl UsageKey {
    fn columns<'s>(&'s self, null_text: &'s str) -> [&'s str; 4] {
        let or_null = |text: &'s Option<String>| text.as_deref().unwrap_or(null_text);
        [&self.day, or_null(&self.client), or_null(&self.deployment), or_null(&self.backend)]
    }
}

impl UsageTotals {
    fn add(&mut self, other: &Self) {
        let Self { requests, input_tokens, output_tokens, cached_tokens, reasoning_tokens, total_tokens } =
            self;
        for (total, addend) in
            [requests, input_tokens, output_tokens, cached_tokens, reasoning_tokens, total_tokens]
                .into_iter()
                .zip(other.counts())
        {
            *total = total.saturating_add(addend);
        }
    }

    fn counts(&self) -> [u64; 6] {
        [
            self.requests,
            self.input_tokens,
            self.output_tokens,
            self.cached_tokens,
            self.reasoning_tokens,
            self.total_tokens,
        ]
    }
}

/// Quotes a field of comma-separated values if it needs to be (RFC 4180).
fn quote_csv_field(text: &str) -> String {
    let needs_no_quotes =
        text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._- ".contains(&b)) && !text.starts_with('-');
    if needs_no_quotes { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn record_line(n: u128, day: u32, client: Option<&str>, deployment: &str, tokens: Option<u64>) -> String {
        let id = uuid::Uuid::from_u128(n);
        serde_json::json!({
            "time": format!("2026-11-{day:02}T08:00:00.000000Z"), "request_id": id.to_string(), "client": client,
            "deployment": deployment, "backend": "east", "input_tokens": tokens, "output_tokens": tokens,
            "cached_tokens": null, "reasoning_tokens": null, "total_tokens": tokens.map(|t| 2 * t),
            "prompt": "a \"quoted\" prompt with \\u0000 and a } in it",
        })
        .to_string()
            + "\n"
    }

    #[test]
    fn a_record_counts_once_whether_its_file_is_plain_or_compressed() {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("exchanges.jsonl");
        let compressed = directory.path().join("exchanges-1.jsonl.gz");
        let text = record_line(1, 23, Some("team-a"), "gpt-4o", Some(10))
            + &record_line(2, 23, Some("team-a"), "GPT-4o", Some(5))
            + "not a record\n\n"
            + &record_line(3, 24, None, "gpt-4o", None)
            + "{\"time\":\"2026-11-24T";
        std::fs::write(&plain, text).unwrap();
        let mut gz = GzEncoder::new(File::create(&compressed).unwrap(), Compression::fast());
        gz.write_all(
            (record_line(4, 22, Some("team-b"), "gpt-4o", Some(1))
                + &record_line(1, 23, Some("team-a"), "gpt-4o", Some(10)))
                .as_bytes(),
        )
        .unwrap();
        gz.finish().unwrap();
        let mut report = UsageReport::default();
        report.add_file(&plain).unwrap();
        report.add_file(&compressed).unwrap();
        assert_eq!((report.unreadable_lines, report.duplicate_records), (1, 1));
        let formatted = |format| {
            let mut out = Vec::new();
            report.write(format, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            formatted(ReportFormat::Csv),
            "day,client,deployment,backend,requests,input,output,cached,reasoning,total\n\
             2026-11-22,team-b,gpt-4o,east,1,1,1,0,0,2\n\
             2026-11-23,team-a,gpt-4o,east,2,15,15,0,0,30\n\
             2026-11-24,,gpt-4o,east,1,0,0,0,0,0\n"
        );
        let json: serde_json::Value = serde_json::from_str(&formatted(ReportFormat::Json)).unwrap();
        assert_eq!((&json[1]["total_tokens"], &json[2]["client"]), (&30.into(), &serde_json::Value::Null));
        let table = formatted(ReportFormat::Table);
        assert!(table.lines().last().unwrap().starts_with("total"), "{table}");
        assert!(table.contains("2026-11-24  -       gpt-4o      east"), "{table}");
        assert!(report.add_file(Path::new("/no/such/file")).is_err());
    }

    #[test]
    fn a_csv_field_is_quoted_if_it_needs_to_be() {
        for (text, expected) in
            [("team-a", "team-a"), ("", ""), ("a,b", "\"a,b\""), ("=1+1", "\"=1+1\""), ("a\"b", "\"a\"\"b\"")]
        {
            assert_eq!(quote_csv_field(text), expected);
        }
    }
}
