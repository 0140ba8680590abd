//! `aoai-lb usage`: sums up requests and tokens of record files, by default by day, client, deployment and backend.

mod grouping;
mod record_fields;
mod report;
mod time_range;
mod totals;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;

use self::grouping::{Grouping, GroupingParser};
use self::report::{ReportFormat, UsageReport};
use self::time_range::{TimePoint, TimeRange};
use super::cli_error::CliError;
use super::config_file::ConfigArguments;
use super::progress::Progress;
use super::record_files::total_bytes;
use crate::record::list_record_files;
use crate::system_error::describe;

/// The arguments of `aoai-lb usage`.
#[derive(Args)]
pub(super) struct UsageArguments {
    /// Record files (JSON Lines), including rotated and compressed (.gz) ones. Without any, those that the
    /// configuration names in `record.jsonl`.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    config: ConfigArguments,
    /// The output format.
    #[arg(long, value_enum, default_value_t = ReportFormat::Table)]
    format: ReportFormat,
    /// Sum up by these keys only, a comma-separated list such as client,class: the columns, from left to right. The
    /// rows are sorted by tokens, the largest first. Without it the keys are day,client,deployment,backend, and the
    /// rows are sorted by them.
    #[arg(long, value_name = "KEYS", value_parser = GroupingParser)]
    by: Option<Grouping>,
    /// Count only what arrived at this time or later: a duration back from now (30m, 24h, 7d), a date (2026-11-01, from
    /// midnight UTC) or a time in the format of RFC 3339 (2026-11-01T08:00:00Z).
    #[arg(long, value_name = "TIME", value_parser = TimePoint::parse)]
    since: Option<TimePoint>,
    /// Count only what arrived before this time, which is given as for --since.
    #[arg(long, value_name = "TIME", value_parser = TimePoint::parse)]
    until: Option<TimePoint>,
}

/// Prints the report of the files, or without any, of those that the configuration names.
pub(super) fn run(arguments: UsageArguments) -> Result<(), CliError> {
    let UsageArguments { files, config, format, by, since, until } = arguments;
    let range = TimeRange::new(since, until, SystemTime::now().into())?;
    let files = if files.is_empty() { configured_files(&config)? } else { files };
    let mut report = UsageReport::new(by.unwrap_or_default(), range);
    let progress = Progress::start("reading records");
    progress.add_total_bytes(total_bytes(&files));
    for file in &files {
        report.add_file(file, &progress)?;
    }
    drop(progress);
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
