//! The log: lines on standard error, as a person at a terminal or the journal wants them.

use std::io::Write;
use std::os::unix::fs::MetadataExt;

use log::{Level, Log, Metadata, Record};

/// What is logged where `RUST_LOG` does not say: the engine speaks only when something is wrong.
const USUAL: &str = "warn,aoai_lb=info";

/// What the engine calls an error although it is the other side's business, or none: by target and
/// beginning. It happens per connection, and records, refusals or our own lines tell of it.
const NO_ERRORS: [(&str, &str); 4] = [
    ("pingora_core::services::listening", "Downstream handshake"),
    ("pingora_core::apps", "H2 handshake error"),
    ("pingora_core::connectors", "failed to acquire reusable stream"),
    ("pingora_core::server::transfer_fd", "No incoming socket transfer"),
];

/// Begins to log. `RUST_LOG` chooses what.
pub(crate) fn start() {
    let mut builder = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(USUAL));
    if is_journal() {
        builder.format(|out, record| {
            // sd-daemon(3): the journal takes the priority from the line, and knows the time.
            let text = record.args().to_string();
            for line in text.lines() {
                writeln!(out, "<{}>{line}", priority(record.level()))?;
            }
            Ok(())
        });
    }
    let logger = builder.build();
    log::set_max_level(logger.filter());
    // There is one only if somebody has begun already, and then it is good enough.
    let _ = log::set_boxed_logger(Box::new(Discreet(logger)));
}

/// The priorities of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Whether standard error is the journal: systemd.exec(5), `JOURNAL_STREAM`.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let there = std::fs::metadata("/proc/self/fd/2").map(|there| format!("{}:{}", there.dev(), there.ino()));
    there.is_ok_and(|there| there == stream)
}

/// Keeps to itself what libraries say to their developers: the engine's includes whole requests,
/// with keys and prompts.
struct Discreet(env_logger::Logger);

impl Log for Discreet {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let is_ours = metadata.target().starts_with(env!("CARGO_CRATE_NAME"));
        (is_ours || metadata.level() <= Level::Info) && self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) && !is_no_error(record) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

fn is_no_error(record: &Record<'_>) -> bool {
    let mut known = NO_ERRORS.iter().filter(|(target, _)| record.target().starts_with(target)).peekable();
    if known.peek().is_none() {
        return false;
    }
    let text = record.args().to_string();
    known.any(|(_, beginning)| text.starts_with(beginning))
}
