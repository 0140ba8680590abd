//! `aoai-lb usage`: sums up requests and tokens of record files, by default by day, client, deployment and backend.

mod grouping;
mod provisioned;
mod record_fields;
mod report;
mod spill_load;
mod time_range;
mod totals;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;

use self::grouping::{Grouping, GroupingParser};
use self::provisioned::ProvisionedShares;
use self::report::{CostOptions, ReportFormat, UsageReport};
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
    /// Also show what the responses cost, as their records say, and how many are left out because they have no cost.
    /// What provisioned backends cost by the hour is shared out by tokens, if the configuration can be read. With --by,
    /// the rows are sorted by cost.
    #[arg(long)]
    cost: bool,
    /// Only what a lower tier has answered, by deployment, reason and backend, with its cost and how busy the provisioned
    /// backends were in the same minutes, in percent of their busiest minute.
    #[arg(long)]
    spill: bool,
}

/// Prints the report of the files, or without any, of those that the configuration names.
pub(super) fn run(arguments: UsageArguments) -> Result<(), CliError> {
    let UsageArguments { files, config, format, by, since, until, cost, spill } = arguments;
    let now = SystemTime::now().into();
    let range = TimeRange::new(since, until, now)?;
    let shows_cost = cost || spill;
    let provisioned = if shows_cost { configured_provisioned(&config, files.is_empty())? } else { None };
    let files = if files.is_empty() { configured_files(&config)? } else { files };
    let grouping = if spill { Grouping::for_spills(by) } else { by.unwrap_or_default() };
    let options = CostOptions { shows_cost, only_spills: spill, provisioned };
    let mut report = UsageReport::new(grouping, range, options);
    let progress = Progress::start("reading records");
    progress.add_total_bytes(total_bytes(&files));
    for file in &files {
        report.add_file(file, &progress)?;
    }
    drop(progress);
    report.add_shares(now);
    let mut out = io::BufWriter::new(io::stdout().lock());
    report.write(format, &mut out)?;
    out.flush()?;
    let currency = report.currency().unwrap_or_default().to_owned();
    for (backend, days, amount) in report.idle_days(now) {
        writeln!(
            io::stderr(),
            "not shared out: {amount} {currency} of {backend}, which nobody has used on {days} days"
        )?;
    }
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

/// The provisioned backends of the configuration. It may be missing or invalid if it is not needed for anything else.
fn configured_provisioned(
    config: &ConfigArguments,
    is_needed: bool,
) -> Result<Option<ProvisionedShares>, CliError> {
    match config.load_without_secrets() {
        Ok(loaded) => Ok(Some(ProvisionedShares::new(&loaded.checked.config))),
        Err(error) if is_needed => Err(error),
        Err(_) => {
            let file = config.file().display();
            writeln!(
                io::stderr(),
                "what provisioned backends cost is left out: {file} cannot be used (aoai-lb check -c {file} says why)"
            )?;
            Ok(None)
        }
    }
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
