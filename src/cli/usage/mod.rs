//! `aoai-lb usage`: sums up requests and tokens of record files by day, client, deployment and backend.

mod record_fields;
mod report;
mod totals;

use std::io::{self, Write};
use std::path::PathBuf;

pub(super) use self::report::ReportFormat;
use self::report::UsageReport;
use super::cli_error::CliError;
use super::config_file::ConfigArguments;
use crate::record::list_record_files;
use crate::system_error::describe;

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
