//! What standard output is: a terminal with its width and colors, or a file or pipe.

use std::io::{self, IsTerminal};

use rustix::termios::tcgetwinsize;

use super::text::Palette;

/// The width of the terminal that standard output is; `None` if it is none.
pub(super) fn terminal_columns() -> Option<usize> {
    let columns = tcgetwinsize(io::stdout()).ok()?.ws_col;
    (columns > 0).then_some(columns.into())
}

/// Colors for a terminal that has them, unless `NO_COLOR` is set (<https://no-color.org>).
pub(super) fn palette() -> Palette {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if !io::stdout().is_terminal() || is_set("NO_COLOR") || is_dumb_terminal() {
        Palette::Text
    } else {
        Palette::Colors
    }
}

/// Whether the terminal understands no control sequences.
pub(super) fn is_dumb_terminal() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}
