//! Sets up the log: lines on standard error, with priorities if that is the journal.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use log::{Level, Log, Metadata, Record};

use super::engine_messages::in_plain_words;
use super::log_limiter::{LogLimiter, place_of};

/// The filter of most commands if `RUST_LOG` is not set: Pingora logs warnings and errors only.
const DEFAULT_FILTER: &str = "warn,aoai_lb=info";

/// Starts logging with the filter of `RUST_LOG`.
pub(super) fn init_logging() {
    init_logging_with_filter(DEFAULT_FILTER);
}

/// Starts logging with the filter of `RUST_LOG`, or if that is not set, with this one.
pub(super) fn init_logging_with_filter(default_filter: &'static str) {
    let mut builder =
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default_filter));
    if is_stderr_journal() {
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
    // Fails only if there is a logger already, which is kept.
    let limiter = Mutex::default();
    let _ = log::set_boxed_logger(Box::new(FilteredLogger { logger, limiter }));
}

/// Prints why a command failed, in the journal with the priority of an error.
pub(super) fn print_failure(text: &str) {
    let prefix =
        if is_stderr_journal() { format!("<{}>", syslog_priority(Level::Error)) } else { String::new() };
    for line in text.lines() {
        // Nobody can be told if this fails.
        let _ = writeln!(std::io::stderr(), "{prefix}{line}");
    }
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
fn is_stderr_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = std::fs::metadata("/proc/self/fd/2").map(|file| format!("{}:{}", file.dev(), file.ino()));
    stderr.is_ok_and(|stderr| stderr == stream)
}

/// Drops debug and trace messages of libraries, even if `RUST_LOG` asks for them: those of Pingora contain
/// whole requests, with keys and prompts. Puts the other lines of libraries in plain words, and limits lines that
/// clients can cause.
struct FilteredLogger {
    logger: env_logger::Logger,
    limiter: Mutex<LogLimiter>,
}

impl FilteredLogger {
    fn log_within_limit(&self, record: &Record<'_>) {
        if is_caused_by_clients(record) { self.log_limited(record) } else { self.logger.log(record) }
    }

    /// Writes a line unless its place has written one within the last minute.
    fn log_limited(&self, record: &Record<'_>) {
        let permit = {
            let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
            limiter.permit(place_of(record, is_own(record.target())), Instant::now())
        };
        match permit {
            None => {}
            Some(0) => self.logger.log(record),
            Some(left_out) => self.logger.log(
                &Record::builder()
                    .metadata(record.metadata().clone())
                    .module_path(record.module_path())
                    .args(format_args!("{} ({left_out} more lines like this were left out)", record.args()))
                    .build(),
            ),
        }
    }
}

fn is_own(target: &str) -> bool {
    target.starts_with(env!("CARGO_CRATE_NAME"))
}

/// Whether clients can cause such lines as often as they like: warnings and errors of libraries, and of our
/// own code that handles the connections of clients.
fn is_caused_by_clients(record: &Record<'_>) -> bool {
    let handles_clients = record.target().starts_with(concat!(env!("CARGO_CRATE_NAME"), "::proxy::client"));
    record.level() <= Level::Warn && (!is_own(record.target()) || handles_clients)
}

impl Log for FilteredLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        (is_own(metadata.target()) || metadata.level() <= Level::Info) && self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if is_own(record.target()) {
            return self.log_within_limit(record);
        }
        if let Some(text) = in_plain_words(record.target(), &record.args().to_string()) {
            let place = (record.module_path(), record.file(), record.line());
            self.log_within_limit(
                &Record::builder()
                    .metadata(record.metadata().clone())
                    .module_path(place.0)
                    .file(place.1)
                    .line(place.2)
                    .args(format_args!("{text}"))
                    .build(),
            );
        }
    }

    fn flush(&self) {
        self.logger.flush();
    }
}
