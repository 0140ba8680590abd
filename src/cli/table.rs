//! Formats tables for terminals.

use std::io::{self, Write};

/// Writes rows as columns; the first row is the head. The first `text_columns` columns are aligned to
/// the left, the others to the right.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write_table(rows: &[Vec<String>], text_columns: usize, to: &mut impl Write) -> io::Result<()> {
    let length = |text: &String| text.chars().count();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(length).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (n, (text, width)) in row.iter().zip(&widths).enumerate() {
            let gap = if n == 0 { "" } else { "  " };
            line += &if n < text_columns {
                format!("{gap}{text:<width$}")
            } else {
                format!("{gap}{text:>width$}")
            };
        }
        writeln!(to, "{}", line.trim_end())?;
    }
    Ok(())
}
