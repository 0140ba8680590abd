//! What the demo prints, on a thread of its own: if nobody reads a pipe, only this thread waits.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

/// How long the last text may take at the end.
const LAST_TEXT_TIMEOUT: Duration = Duration::from_secs(1);

/// Prints texts in their order.
#[derive(Clone)]
pub(super) struct Printer(Sender<Text>);

/// A text, and who waits until it is printed.
struct Text {
    text: String,
    waiter: Option<Sender<()>>,
}

impl Printer {
    pub(super) fn start() -> Self {
        let (sender, texts) = channel();
        thread::spawn(move || print_all(&texts));
        Self(sender)
    }

    /// Prints a text soon.
    pub(super) fn print(&self, text: String) {
        // Fails only if standard output is closed. Then nobody reads the story, and the rest goes on.
        let _ = self.0.send(Text { text, waiter: None });
    }

    /// Prints the last text and waits until it is printed, but not for long.
    pub(super) fn finish(self, text: String) {
        let (sender, printed) = channel();
        let _ = self.0.send(Text { text, waiter: Some(sender) });
        let _ = printed.recv_timeout(LAST_TEXT_TIMEOUT);
    }
}

fn print_all(texts: &Receiver<Text>) {
    for Text { text, waiter } in texts {
        let mut out = io::stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            return;
        }
        if let Some(waiter) = waiter {
            let _ = waiter.send(());
        }
    }
}
