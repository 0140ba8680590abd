//! The log: lines on standard error, as a person at a terminal or the journal wants them.

use std::io::Write;
use std::os::unix::fs::MetadataExt;

use log::{Level, Log, Metadata, Record};

/// What is logged where `RUST_LOG` does not say: the engine speaks only when something is wrong.
const DEFAULT_FILTER: &str = "warn,aoai_lb=info";

/// What the engine calls an error although it is the other side's business, or none: by target and
/// beginning. It happens per connection, and records, refusals or our own lines tell of it.
const SUPPRESSED_MESSAGES: [(&str, &str); 4] = [
    ("pingora_core::services::listening", "Downstream handshake"),
    ("pingora_core::apps", "H2 handshake error"),
    ("pingora_core::connectors", "failed to acquire reusable stream"),
    ("pingora_core::server::transfer_fd", "No incoming socket transfer"),
];

/// Begins to log. `RUST_LOG` chooses what.
pub(super) fn init_logging() {
    let mut builder =
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(DEFAULT_FILTER));
    if logs_to_journal() {
        builder.format(|out, record| {
            // sd-daemon(3): the journal takes the priority from the line, and knows the time.
            let text = record.args().to_string();
            for line in text.lines() {
                writeln!(out, "<{}>{line}", syslog_priority(record.level()))?;
            }
            Ok(())
        });
    }
    let logger = builder.build();
    log::set_max_level(logger.filter());
    // There is one only if somebody has begun already, and then it is good enough.
    let _ = log::set_boxed_logger(Box::new(FilteredLogger(logger)));
}

/// The priorities of syslog(3).
fn syslog_priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Whether standard error is the journal: systemd.exec(5), `JOURNAL_STREAM`.
fn logs_to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = std::fs::metadata("/proc/self/fd/2").map(|file| format!("{}:{}", file.dev(), file.ino()));
    stderr.is_ok_and(|stderr| stderr == stream)
}

/// Keeps to itself what libraries say to their developers: the engine's includes whole requests,
/// with keys and prompts.
struct FilteredLogger(env_logger::Logger);

impl Log for FilteredLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let is_own_target = metadata.target().starts_with(env!("CARGO_CRATE_NAME"));
        (is_own_target || metadata.level() <= Level::Info) && self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) && !is_suppressed(record) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

fn is_suppressed(record: &Record<'_>) -> bool {
    let mut candidates =
        SUPPRESSED_MESSAGES.iter().filter(|(target, _)| record.target().starts_with(target)).peekable();
    if candidates.peek().is_none() {
        return false;
    }
    let text = record.args().to_string();
    candidates.any(|(_, beginning)| text.starts_with(beginning))
}
