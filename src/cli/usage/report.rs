//! The report of `aoai-lb usage`. Reads line by line, within a bound, and keeps only the totals.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Serialize, Serializer};

use super::grouping::{Grouping, GroupingKey, RowKey, RowOrder};
use super::provisioned::ProvisionedShares;
use super::record_fields::RecordFields;
use super::spill_load::SpillLoad;
use super::time_range::TimeRange;
use super::totals::{AudioTotals, CostTotals, OptionalColumns, UsageTotals};
use crate::cli::progress::Progress;
use crate::cli::record_files::{describe_read_problem, open_record_file};
use crate::cli::record_lines::{LineRead, RecordLines};
use crate::cli::table::write_table;
use crate::money::Amount;
use crate::names::BackendName;
use crate::system_error::describe;

/// Shown in a table for a field that is null.
const NULL_PLACEHOLDER: &str = "-";
/// How much is read at a time.
const READ_BUFFER_BYTES: usize = 256 * 1024;
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
    #[error("{}: {}", path.display(), describe_read_problem(problem))]
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

/// What a report shows besides requests and tokens.
#[derive(Debug, Default)]
pub(super) struct CostOptions {
    /// What responses cost.
    pub(super) shows_cost: bool,
    /// Only what a lower tier has answered, and how busy the higher one was.
    pub(super) only_spills: bool,
    /// The provisioned backends, if there is a configuration.
    pub(super) provisioned: Option<ProvisionedShares>,
}

/// The totals of some files.
#[derive(Debug, Default)]
pub(super) struct UsageReport {
    grouping: Grouping,
    range: TimeRange,
    options: CostOptions,
    spill_load: SpillLoad,
    /// The first day of a record.
    first_day: Option<NaiveDate>,
    totals: BTreeMap<RowKey, UsageTotals>,
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
    /// A report without any records yet; those out of the range will not count.
    pub(super) fn new(grouping: Grouping, range: TimeRange, options: CostOptions) -> Self {
        Self { grouping, range, options, ..Self::default() }
    }

    /// Adds a file, which is compressed if its name ends in `.gz`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn add_file(&mut self, path: &Path, progress: &Progress) -> Result<(), UsageError> {
        let records = open_record_file(path, progress);
        records
            .and_then(|records| self.add_lines(BufReader::with_capacity(READ_BUFFER_BYTES, records)))
            .map_err(|problem| UsageError::Read { path: path.to_owned(), problem })
    }

    fn add_lines(&mut self, reader: impl BufRead) -> io::Result<()> {
        let mut lines = RecordLines::new(reader);
        loop {
            match lines.next_line()? {
                LineRead::End => return Ok(()),
                LineRead::TooLong => self.too_long_lines += 1,
                LineRead::Line(line) if line.trim_ascii().is_empty() => {}
                LineRead::Line(line) => self.add_record(line),
            }
        }
    }

    fn add_record(&mut self, line: &[u8]) {
        let Ok(record) = serde_json::from_slice::<RecordFields<'_>>(line) else {
            self.unreadable_lines += 1;
            return;
        };
        let is_in_range = record.day().and_then(|_| self.range.contains(&record.time));
        match is_in_range {
            Some(true) => {}
            Some(false) => return,
            None => {
                self.unreadable_lines += 1;
                return;
            }
        }
        if let Ok(id) = uuid::Uuid::try_parse(&record.request_id)
            && !self.insert_id(id.as_u128())
        {
            self.duplicate_records += 1;
            return;
        }
        let mut totals = record.totals();
        if totals == UsageTotals::default() {
            return;
        }
        let key: RowKey = self.grouping.keys.iter().map(|key| record.key_text(*key)).collect();
        if self.options.shows_cost {
            let day = record.day().and_then(|day| day.parse().ok());
            self.first_day = [self.first_day, day].into_iter().flatten().min();
            let provisioned = self.options.provisioned.as_mut();
            let provisioned = provisioned.filter(|shares| {
                record.lacks_cost() && record.backend().is_some_and(|name| shares.has(name))
            });
            if let Some(shares) = provisioned {
                totals.without_cost = 0;
                shares.add(&key, &record);
                if self.options.only_spills {
                    self.spill_load.add_provisioned(&record);
                }
            }
        }
        if self.options.only_spills {
            if !record.is_spilled() {
                return;
            }
            self.spill_load.add_spill(&key, &record);
        }
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

    /// Adds the shares of what provisioned backends cost, once all records are added.
    pub(super) fn add_shares(&mut self, now: DateTime<Utc>) {
        let Some(provisioned) = self.options.provisioned.as_ref() else { return };
        for (key, share) in provisioned.shares(self.range, now) {
            // One that a lower tier has not answered has no row in a report of those.
            if let Some(totals) = self.totals.get_mut(key) {
                totals.provisioned_millionths = share.millionths();
            }
        }
    }

    /// What provisioned backends cost on the days on which nobody has used them.
    pub(super) fn idle_days(&self, now: DateTime<Utc>) -> Vec<(&BackendName, usize, Amount)> {
        match (&self.options.provisioned, self.first_day) {
            (Some(provisioned), Some(first_day)) => provisioned.idle_days(self.range, first_day, now),
            _ => Vec::new(),
        }
    }

    /// The currency of the configuration.
    pub(super) fn currency(&self) -> Option<&str> {
        self.options.provisioned.as_ref()?.currency()
    }

    /// Writes the report.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(&self, format: ReportFormat, to: &mut impl Write) -> Result<(), UsageError> {
        let options = &self.options;
        let shown = OptionalColumns {
            has_cost: options.shows_cost,
            has_provisioned: !options.only_spills
                && options.provisioned.as_ref().is_some_and(ProvisionedShares::have_costs),
            has_cache_writes: self.totals.values().any(|totals| totals.cache_write_tokens > 0),
            has_audio: self.totals.values().any(|totals| totals.audio != AudioTotals::default()),
        };
        let rows = self.sorted_rows();
        match format {
            ReportFormat::Table => self.write_as_table(&rows, shown, to)?,
            ReportFormat::Csv => {
                writeln!(to, "{}", self.column_names(shown).join(","))?;
                for (key, totals) in rows {
                    let fields = shown_texts(key, "").map(quote_csv_field);
                    let fields = fields.chain(totals.columns(shown));
                    let fields: Vec<String> = fields.chain(self.load_column(key, "")).collect();
                    writeln!(to, "{}", fields.join(","))?;
                }
            }
            ReportFormat::Json => {
                let rows = rows.into_iter().map(|(key, totals)| UsageRow {
                    key: NamedKey { names: &self.grouping.keys, texts: key },
                    totals: *totals,
                    costs: totals.costs(shown),
                    provisioned_load_percent: self.spill_load.average_percent(key),
                    cache_write_tokens: shown.has_cache_writes.then_some(totals.cache_write_tokens),
                    audio: shown.has_audio.then_some(totals.audio),
                });
                let rows: Vec<UsageRow<'_>> = rows.collect();
                serde_json::to_writer_pretty(&mut *to, &rows).map_err(io::Error::from)?;
                writeln!(to)?;
            }
        }
        Ok(())
    }

    fn sorted_rows(&self) -> Vec<(&RowKey, &UsageTotals)> {
        let mut rows: Vec<_> = self.totals.iter().collect();
        match self.grouping.order {
            RowOrder::Keys => {}
            // Rows with equal totals keep the order of their keys.
            RowOrder::Tokens => rows.sort_by_key(|(_, totals)| {
                let cost = totals.cost_millionths.saturating_add(totals.provisioned_millionths);
                Reverse((if self.options.shows_cost { cost } else { 0 }, totals.total_tokens))
            }),
        }
        rows
    }

    fn write_as_table(
        &self,
        rows: &[(&RowKey, &UsageTotals)],
        shown: OptionalColumns,
        to: &mut impl Write,
    ) -> io::Result<()> {
        let mut total = UsageTotals::default();
        let mut lines: Vec<Vec<String>> =
            vec![self.column_names(shown).into_iter().map(str::to_owned).collect()];
        for (key, totals) in rows {
            total.add(totals);
            let fields = shown_texts(key, NULL_PLACEHOLDER).map(str::to_owned);
            let fields = fields.chain(totals.columns(shown));
            lines.push(fields.chain(self.load_column(key, NULL_PLACEHOLDER)).collect());
        }
        let text_columns = self.grouping.keys.len();
        let mut last_line = vec![String::new(); text_columns];
        last_line[0] = "total".to_owned();
        last_line.extend(total.columns(shown));
        lines.push(last_line);
        write_table(&lines, text_columns, to)
    }

    fn column_names(&self, shown: OptionalColumns) -> Vec<&'static str> {
        let keys = self.grouping.keys.iter().map(|key| key.name());
        let cache_writes = shown.has_cache_writes.then_some(CACHE_WRITE_COLUMN_NAME);
        let audio: &[&str] = if shown.has_audio { &AUDIO_COLUMN_NAMES } else { &[] };
        let cost = shown.has_cost.then_some("cost").into_iter();
        let cost = cost.chain(shown.has_provisioned.then_some("provisioned"));
        let cost = cost.chain(shown.has_cost.then_some("without_cost"));
        let load = self.options.only_spills.then_some("provisioned_load");
        keys.chain(COUNT_COLUMN_NAMES)
            .chain(cost)
            .chain(cache_writes)
            .chain(audio.iter().copied())
            .chain(load)
            .collect()
    }

    /// How busy the provisioned backends were, in a report of what others have answered.
    fn load_column(&self, key: &RowKey, unknown: &str) -> Option<String> {
        let percent = self.spill_load.average_percent(key);
        self.options
            .only_spills
            .then(|| percent.map_or_else(|| unknown.to_owned(), |percent| format!("{percent}%")))
    }
}

const COUNT_COLUMN_NAMES: [&str; 6] = ["requests", "input", "output", "cached", "reasoning", "total"];
const CACHE_WRITE_COLUMN_NAME: &str = "cache_write";
const AUDIO_COLUMN_NAMES: [&str; 4] = ["input_audio", "output_audio", "cached_audio", "audio_seconds"];

fn shown_texts<'s>(key: &'s RowKey, null_text: &'s str) -> impl Iterator<Item = &'s str> {
    key.iter().map(move |text| text.as_deref().unwrap_or(null_text))
}

/// An object of the report in JSON.
#[derive(Serialize)]
struct UsageRow<'a> {
    #[serde(flatten)]
    key: NamedKey<'a>,
    #[serde(flatten)]
    totals: UsageTotals,
    #[serde(flatten)]
    costs: Option<CostTotals>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provisioned_load_percent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_write_tokens: Option<u64>,
    #[serde(flatten)]
    audio: Option<AudioTotals>,
}

/// The keys of a row with their names.
struct NamedKey<'a> {
    names: &'a [GroupingKey],
    texts: &'a RowKey,
}

impl Serialize for NamedKey<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.names.iter().map(|name| name.name()).zip(self.texts))
    }
}

/// Quotes a field of comma-separated values if it needs to be (RFC 4180).
fn quote_csv_field(text: &str) -> String {
    let needs_no_quotes =
        text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._- ".contains(&b)) && !text.starts_with('-');
    if needs_no_quotes { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

#[cfg(test)]
#[path = "report_cost_tests.rs"]
mod cost_tests;
#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
