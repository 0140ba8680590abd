//! Text for a terminal: spans with a style, how many columns they take, and what a terminal must not get.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// How a span looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Style {
    #[default]
    Plain,
    Bold,
    /// Less important than the rest.
    Dim,
    /// All is well.
    Good,
    /// Normal, but worth a look.
    Notice,
    /// Something is not as it should be.
    Warning,
    /// Something fails.
    Bad,
}

/// What the output may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Palette {
    /// Text only: for files, pipes and `NO_COLOR`.
    Text,
    /// Bold and dim text, without colors.
    Attributes,
    /// Colors as well.
    Colors,
}

impl Palette {
    /// The parameters of the SGR sequence (ECMA-48) of a style; `None` for none.
    fn parameters(self, style: Style) -> Option<&'static str> {
        match (self, style) {
            (Self::Text, _) | (_, Style::Plain) => None,
            (_, Style::Bold) => Some("1"),
            (_, Style::Dim) => Some("2"),
            (Self::Attributes, Style::Good | Style::Notice) => None,
            (Self::Attributes, Style::Warning | Style::Bad) => Some("1"),
            (Self::Colors, Style::Good) => Some("32"),
            (Self::Colors, Style::Notice) => Some("36"),
            (Self::Colors, Style::Warning) => Some("33"),
            (Self::Colors, Style::Bad) => Some("1;31"),
        }
    }
}

/// A line of spans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line(Vec<(String, Style)>);

impl Line {
    /// A line with one span. It must be safe for a terminal, as [`printable`] makes it.
    pub(super) fn new(text: impl Into<String>, style: Style) -> Self {
        Self(vec![(text.into(), style)])
    }

    /// A line without a style.
    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self::new(text, Style::Plain)
    }

    /// Appends a span.
    pub(super) fn push(&mut self, text: impl Into<String>, style: Style) {
        self.0.push((text.into(), style));
    }

    /// The line with another span.
    pub(super) fn with(mut self, text: impl Into<String>, style: Style) -> Self {
        self.push(text, style);
        self
    }

    /// The line with another one after it.
    pub(super) fn followed_by(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// The same text, less important.
    pub(super) fn dimmed(self) -> Self {
        Self(self.0.into_iter().map(|(text, _)| (text, Style::Dim)).collect())
    }

    /// The line without blanks at its end and, with `columns`, cut to so many. A cut is shown with `…`.
    pub(super) fn fitted(self, columns: Option<usize>) -> Self {
        let Self(mut spans) = self;
        while spans.last().is_some_and(|(text, _)| text.trim().is_empty()) {
            spans.pop();
        }
        if let Some((text, _)) = spans.last_mut() {
            text.truncate(text.trim_end().len());
        }
        let Some(mut left) = columns else { return Self(spans) };
        if spans.iter().map(|(text, _)| width(text)).sum::<usize>() <= left {
            return Self(spans);
        }
        let mut kept = Vec::new();
        for (text, style) in spans {
            // The `…` needs a column.
            if width(&text) >= left {
                kept.push((cut(&text, left), style));
                break;
            }
            left -= width(&text);
            kept.push((text, style));
        }
        Self(kept)
    }

    /// The bytes for the terminal.
    pub(super) fn render(&self, palette: Palette) -> String {
        let spans = self.0.iter().map(|(text, style)| match palette.parameters(*style) {
            Some(parameters) if !text.trim().is_empty() => format!("\x1b[{parameters}m{text}\x1b[0m"),
            _ => text.clone(),
        });
        spans.collect()
    }
}

/// How many columns a text takes.
pub(super) fn width(text: &str) -> usize {
    text.width()
}

/// The text, cut to so many columns if it has more.
pub(super) fn shortened(text: &str, columns: usize) -> String {
    if width(text) > columns { cut(text, columns) } else { text.to_owned() }
}

/// As much of the text as fits in so many columns together with `…`.
fn cut(text: &str, columns: usize) -> String {
    let Some(room) = columns.checked_sub(1) else { return String::new() };
    let mut used = 0;
    let fits = |character: &char| {
        used += character.width().unwrap_or(0);
        used <= room
    };
    let mut kept: String = text.chars().take_while(fits).collect();
    kept.push('…');
    kept
}

/// The text in one line and without what a terminal would act on. Names and errors come from other services.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.trim().chars() {
        match character {
            '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => {
                if !out.ends_with(' ') {
                    out.push(' ');
                }
            }
            _ if is_unsafe_in_terminal(character) => out.push('\u{fffd}'),
            character => out.push(character),
        }
    }
    out
}

/// Whether a terminal acts on it: control characters, and those that reorder text.
pub(super) fn is_unsafe_in_terminal(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A duration as people write it: `45s`, `3m 5s`, `45m`, `3h 20m`, `5d 3h`.
pub(super) fn in_words(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600, seconds / 60);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..600 => format!("{minutes}m {}s", seconds % 60),
        600..3600 => format!("{minutes}m"),
        3600..172_800 => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// A time left or an age in milliseconds, in whole seconds, rounded up.
pub(super) fn in_words_ms(ms: u64) -> String {
    in_words(ms.div_ceil(1000))
}

/// A number of bytes as people read it: `12 B`, `1.5 MiB`.
pub(super) fn in_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

/// What stands for an unknown value.
pub(super) fn or_unknown(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// A count with its noun.
pub(super) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_to_its_columns_and_shows_it() {
        let line = Line::new("west", Style::Bad).with("  ", Style::Plain).with("资源不可用", Style::Plain);
        for (columns, expected) in [
            (0, ""),
            (1, "…"),
            (3, "we…"),
            (4, "wes…"),
            (5, "west…"),
            (6, "west …"),
            (7, "west  …"),
            (8, "west  …"),
            (9, "west  资…"),
            (15, "west  资源不可…"),
            (16, "west  资源不可用"),
            (80, "west  资源不可用"),
        ] {
            let shown = line.clone().fitted(Some(columns)).render(Palette::Text);
            assert_eq!(shown, expected, "{columns}");
            assert!(width(&shown) <= columns);
        }
        assert_eq!(Line::plain("a  ").fitted(None).render(Palette::Text), "a");
        let line = line.fitted(Some(3));
        assert_eq!(line.render(Palette::Colors), "\u{1b}[1;31mwe…\u{1b}[0m");
        assert_eq!(line.render(Palette::Attributes), "\u{1b}[1mwe…\u{1b}[0m");
    }

    #[test]
    fn nothing_from_outside_reaches_the_terminal_as_a_command() {
        for (text, expected) in [
            ("plain", "plain"),
            ("two\r\nlines\tand a tab\n", "two lines and a tab"),
            ("\u{1b}[2Jgone\u{7}", "\u{fffd}[2Jgone\u{fffd}"),
            ("\u{9b}31m \u{7f}", "\u{fffd}31m \u{fffd}"),
            ("a\u{202e}b", "a\u{fffd}b"),
            ("é e\u{301} 资源", "é e\u{301} 资源"),
        ] {
            assert_eq!(printable(text), expected, "{text:?}");
        }
    }

    #[test]
    fn durations_are_as_exact_as_people_need_them() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m 0s"),
            (754, "12m"),
            (3600, "1h 0m"),
            (172_799, "47h 59m"),
            (172_800, "2d 0h"),
        ] {
            assert_eq!(in_words(seconds), expected);
        }
        assert_eq!((in_words_ms(1), in_words_ms(2000)), ("1s".to_owned(), "2s".to_owned()));
    }

    #[test]
    fn bytes_are_in_a_unit_that_people_read() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_572_864, "1.5 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(in_bytes(bytes), expected);
        }
    }
}
