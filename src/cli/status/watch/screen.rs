//! The screen of a terminal: taken over for `status --watch`, and given back however that ends.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::queue;
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, DisableLineWrap, EnableLineWrap, EndSynchronizedUpdate,
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use rustix::termios::tcgetwinsize;

use crate::cli::output::is_dumb_terminal;
use crate::cli::text::{Line, Palette};

/// What a terminal has that does not tell its size.
const DEFAULT_SIZE: ScreenSize = ScreenSize { columns: 80, rows: 24 };

/// The size of a screen in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ScreenSize {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

/// Whether standard output is a terminal that understands control sequences, and has a keyboard.
pub(in crate::cli::status) fn is_available() -> bool {
    let has_keyboard = || io::stdin().is_terminal() || File::open("/dev/tty").is_ok();
    io::stdout().is_terminal() && !is_dumb_terminal() && has_keyboard()
}

/// The screen, until it is dropped.
pub(super) struct Screen {
    /// Whether the terminal is not restored yet. A panic restores it before its message is printed.
    is_taken: Arc<AtomicBool>,
    /// What the screen shows now.
    shown: Vec<String>,
    shown_size: Option<ScreenSize>,
}

impl Screen {
    /// Takes over the terminal.
    ///
    /// # Errors
    /// If it cannot be used.
    pub(super) fn open() -> io::Result<Self> {
        enable_raw_mode()?;
        let is_taken = Arc::new(AtomicBool::new(true));
        let (taken, previous_hook) = (Arc::clone(&is_taken), panic::take_hook());
        panic::set_hook(Box::new(move |info| {
            restore(&taken);
            previous_hook(info);
        }));
        let screen = Self { is_taken, shown: Vec::new(), shown_size: None };
        let mut out = Vec::new();
        queue!(out, EnterAlternateScreen, Hide, DisableLineWrap)?;
        io::stdout().write_all(&out)?;
        Ok(screen)
    }

    /// How large it is now.
    pub(super) fn size(&self) -> ScreenSize {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                ScreenSize { columns: size.ws_col.into(), rows: size.ws_row.into() }
            }
            _ => DEFAULT_SIZE,
        }
    }

    /// Shows these lines in place of those before. What is as it was is not written again.
    ///
    /// # Errors
    /// If the terminal cannot be written to.
    pub(super) fn show(&mut self, lines: Vec<Line>, size: ScreenSize, palette: Palette) -> io::Result<()> {
        let lines: Vec<String> = lines
            .into_iter()
            .take(size.rows)
            .map(|line| line.fitted(Some(size.columns)).render(palette))
            .collect();
        let mut out = Vec::new();
        queue!(out, BeginSynchronizedUpdate)?;
        if self.shown_size != Some(size) {
            queue!(out, Clear(ClearType::All))?;
            self.shown.clear();
        }
        for (row, line) in lines.iter().enumerate() {
            if self.shown.get(row) != Some(line) {
                // The rest of the row is cleared first: a cursor behind the last column would clear that.
                queue!(out, MoveTo(0, to_row(row)), Clear(ClearType::UntilNewLine))?;
                out.extend_from_slice(line.as_bytes());
            }
        }
        if lines.len() < self.shown.len() {
            queue!(out, MoveTo(0, to_row(lines.len())), Clear(ClearType::FromCursorDown))?;
        }
        queue!(out, EndSynchronizedUpdate)?;
        (self.shown, self.shown_size) = (lines, Some(size));
        let mut stdout = io::stdout().lock();
        stdout.write_all(&out)?;
        stdout.flush()
    }

    /// Has the next [`Screen::show`] write everything.
    pub(super) fn forget(&mut self) {
        self.shown_size = None;
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore(&self.is_taken);
    }
}

fn to_row(row: usize) -> u16 {
    u16::try_from(row).unwrap_or(u16::MAX)
}

/// Gives the terminal back, once. Nothing can be done if that fails.
fn restore(is_taken: &AtomicBool) {
    if !is_taken.swap(false, Ordering::AcqRel) {
        return;
    }
    let mut out = Vec::new();
    let _ = queue!(out, EndSynchronizedUpdate, EnableLineWrap, Show, LeaveAlternateScreen);
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(&out).and_then(|()| stdout.flush());
    let _ = disable_raw_mode();
}
