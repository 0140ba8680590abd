//! The time of a status, by the clock of the process that it is about.

use chrono::{DateTime, Duration, FixedOffset, SecondsFormat};

use crate::admin::status::ProcessStatus;
use crate::cli::text::printable;

/// When a status was made; `None` if it does not tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReportTime(Option<DateTime<FixedOffset>>);

impl ReportTime {
    /// The time of the status of this process, in whole seconds.
    pub(super) fn new(process: &ProcessStatus) -> Self {
        let uptime = i64::try_from(process.uptime_seconds).ok().and_then(Duration::try_seconds);
        let started = DateTime::parse_from_rfc3339(&process.started).ok();
        Self(started.zip(uptime).and_then(|(started, uptime)| started.checked_add_signed(uptime)))
    }

    /// How many seconds ago this was.
    pub(super) fn age_of(self, moment: Option<&str>) -> Option<u64> {
        let moment = DateTime::parse_from_rfc3339(moment?).ok()?;
        Some(u64::try_from(self.0?.signed_duration_since(moment).num_seconds()).unwrap_or(0))
    }
}

/// A time of the admin API without its fraction of a second, for people.
pub(super) fn in_whole_seconds(moment: &str) -> String {
    match DateTime::parse_from_rfc3339(moment) {
        Ok(moment) => moment.to_rfc3339_opts(SecondsFormat::Secs, true),
        Err(_) => printable(moment),
    }
}
