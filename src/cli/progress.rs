//! A line on standard error for work that takes longer than a second: rewritten in place, and erased at the end. There
//! is none if standard error is not a terminal.

use std::io::{self, IsTerminal, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::termios::tcgetwinsize;

use super::output::is_dumb_terminal;
use super::text::{in_bytes, in_words, printable, shortened};

/// Shorter work shows no progress.
const DELAY: Duration = Duration::from_secs(1);
/// The time between two updates of the line.
const UPDATE_INTERVAL: Duration = Duration::from_millis(250);
/// The width of a terminal whose width is not known.
const DEFAULT_COLUMNS: usize = 80;
/// To the first column, and clear the line (ECMA-48).
const ERASE_LINE: &str = "\r\x1b[2K";

/// The progress of some work, shown until this is dropped.
pub(super) struct Progress {
    shared: Arc<Shared>,
    /// `None` if nothing is shown.
    thread: Option<JoinHandle<()>>,
}

/// What the work and the thread that shows its progress share.
struct Shared {
    done_bytes: AtomicU64,
    line: Mutex<ProgressLine>,
    /// Notified when the work is over.
    is_over_changed: Condvar,
}

struct ProgressLine {
    /// What is done now.
    text: String,
    /// How many bytes are to be read; zero if that is not known.
    total_bytes: u64,
    is_shown: bool,
    is_over: bool,
}

impl Progress {
    /// Begins to show the progress of some work, such as `reading records`.
    pub(super) fn start(text: &str) -> Self {
        let shared = Arc::new(Shared {
            done_bytes: AtomicU64::new(0),
            line: Mutex::new(ProgressLine {
                text: printable(text),
                total_bytes: 0,
                is_shown: false,
                is_over: false,
            }),
            is_over_changed: Condvar::new(),
        });
        let is_visible = io::stderr().is_terminal() && !is_dumb_terminal();
        let for_thread = Arc::clone(&shared);
        // Without a thread there is no progress to see, and the work goes on.
        let thread = is_visible
            .then(|| thread::Builder::new().name("progress".into()).spawn(move || for_thread.show()));
        Self { shared, thread: thread.and_then(Result::ok) }
    }

    /// Says what is done now.
    pub(super) fn set_text(&self, text: &str) {
        self.shared.lock().text = printable(text);
    }

    /// Adds to the bytes that are to be read, of which a percentage is shown.
    pub(super) fn add_total_bytes(&self, bytes: u64) {
        self.shared.lock().total_bytes += bytes;
    }

    /// Counts bytes that were read.
    pub(super) fn add_done_bytes(&self, bytes: u64) {
        self.shared.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts what is read from `inner`.
    pub(super) fn count_bytes<R>(&self, inner: R) -> CountedReader<R> {
        CountedReader { inner, shared: Arc::clone(&self.shared) }
    }

    /// Prints something while the line is out of the way.
    pub(super) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        let mut line = self.shared.lock();
        line.erase();
        print()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.is_over_changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, ProgressLine> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the line until the work is over.
    fn show(&self) {
        let started = Instant::now();
        let mut line = self.lock();
        let mut pause = DELAY;
        while !line.is_over {
            let waited = self.is_over_changed.wait_timeout(line, pause);
            line = waited.unwrap_or_else(PoisonError::into_inner).0;
            if !line.is_over && started.elapsed() >= DELAY {
                let done_bytes = self.done_bytes.load(Ordering::Relaxed);
                line.draw(done_bytes, started.elapsed(), terminal_columns());
            }
            pause = UPDATE_INTERVAL.max(DELAY.saturating_sub(started.elapsed()));
        }
        line.erase();
    }
}

impl ProgressLine {
    fn draw(&mut self, done_bytes: u64, elapsed: Duration, columns: usize) {
        // A cursor behind the last column would begin a new line.
        let text = shortened(&self.to_text(done_bytes, elapsed), columns.saturating_sub(1));
        let _ = write!(io::stderr(), "{ERASE_LINE}{text}");
        self.is_shown = true;
    }

    fn erase(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            let _ = write!(io::stderr(), "{ERASE_LINE}");
        }
    }

    /// `reading records: 12 % of 1.0 GiB, 3s`
    fn to_text(&self, done_bytes: u64, elapsed: Duration) -> String {
        let Self { text, total_bytes, .. } = self;
        let amount = match (done_bytes, *total_bytes) {
            (0, 0) => String::new(),
            // A file may have grown.
            (done, total) if done > total => format!(" {},", in_bytes(done)),
            (done, total) => {
                format!(" {} % of {},", u128::from(done) * 100 / u128::from(total), in_bytes(total))
            }
        };
        format!("{text}:{amount} {}", in_words(elapsed.as_secs()))
    }
}

/// The width of the terminal that standard error is.
fn terminal_columns() -> usize {
    match tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 => size.ws_col.into(),
        _ => DEFAULT_COLUMNS,
    }
}

/// Counts the bytes that are read.
pub(super) struct CountedReader<R> {
    inner: R,
    shared: Arc<Shared>,
}

impl<R: Read> Read for CountedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.shared.done_bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_done_how_much_of_it_and_for_how_long() {
        let line = |total_bytes| ProgressLine {
            text: "reading records".to_owned(),
            total_bytes,
            is_shown: false,
            is_over: false,
        };
        for (total, done, seconds, expected) in [
            (0, 0, 3, "reading records: 3s"),
            (0, 2048, 3, "reading records: 2.0 KiB, 3s"),
            (1 << 30, 0, 1, "reading records: 0 % of 1.0 GiB, 1s"),
            (1 << 30, 1 << 29, 65, "reading records: 50 % of 1.0 GiB, 1m 5s"),
            (100, 100, 1, "reading records: 100 % of 100 B, 1s"),
            (100, 101, 1, "reading records: 101 B, 1s"),
            (u64::MAX, u64::MAX - 1, 1, "reading records: 99 % of 16777216.0 TiB, 1s"),
        ] {
            assert_eq!(line(total).to_text(done, Duration::from_secs(seconds)), expected);
        }
    }
}
