//! A table that fits a terminal: columns that matter less are left out, and the last column gets the rest of the line.

use crate::cli::text::{Line, Style, shortened, width};

/// Columns are this far apart.
const GAP: usize = 2;
/// The last column keeps at least so much of its text.
const MIN_LAST_COLUMN: usize = 30;
/// The first column is not cut below this.
const MIN_FIRST_COLUMN: usize = 8;

/// A column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    /// Its title.
    pub(super) title: &'static str,
    /// Whether it is text, which is aligned to the left.
    pub(super) is_text: bool,
    /// Those with a lower number are left out first; those with [`Column::ESSENTIAL`] never.
    pub(super) importance: u8,
}

impl Column {
    /// The importance of what is never left out.
    const ESSENTIAL: u8 = u8::MAX;

    /// Text that is never left out.
    pub(super) const fn text(title: &'static str) -> Self {
        Self { title, is_text: true, importance: Self::ESSENTIAL }
    }

    /// A number.
    pub(super) const fn number(title: &'static str, importance: u8) -> Self {
        Self { title, is_text: false, importance }
    }
}

/// A cell.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell with a style.
    pub(super) fn new(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Style::Plain)
    }
}

/// A table. Each row has a cell per column.
#[derive(Clone, Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub(super) fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Appends a row.
    pub(super) fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// Whether it has no rows.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The title and the rows, as lines of at most so many columns.
    pub(super) fn lines(&self, columns: Option<usize>) -> Vec<Line> {
        let widths = self.fitted_widths(columns);
        let titles = self.columns.iter().map(|column| Cell::new(column.title, Style::Bold)).collect();
        let rows = std::iter::once(&titles).chain(&self.rows);
        rows.map(|row| self.line(row, &widths).fitted(columns)).collect()
    }

    /// The width of each column; `None` for those that are left out.
    fn fitted_widths(&self, columns: Option<usize>) -> Vec<Option<usize>> {
        let natural = |index: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(index));
            let title = self.columns.get(index).map_or(0, |column| width(column.title));
            cells.map(|cell| width(&cell.text)).max().unwrap_or(0).max(title)
        };
        let mut widths: Vec<Option<usize>> =
            (0..self.columns.len()).map(|index| Some(natural(index))).collect();
        let (Some(columns), Some(last)) = (columns, widths.len().checked_sub(1)) else { return widths };
        let total = |widths: &[Option<usize>]| {
            let shown = widths.iter().enumerate().filter_map(|(index, width)| Some((index, (*width)?)));
            let widths = shown.map(|(index, width)| {
                let is_flexible = index == last && self.columns[last].is_text;
                GAP + if is_flexible { width.min(MIN_LAST_COLUMN) } else { width }
            });
            widths.sum::<usize>().saturating_sub(GAP)
        };
        while total(&widths) > columns {
            let shown = (0..widths.len()).filter(|index| widths[*index].is_some());
            let droppable = shown.filter(|index| self.columns[*index].importance != Column::ESSENTIAL);
            // A column without a value is no loss.
            let least =
                droppable.min_by_key(|index| (self.has_values(*index), self.columns[*index].importance));
            let Some(least) = least else { break };
            widths[least] = None;
        }
        if let (excess, Some(first)) = (total(&widths).saturating_sub(columns), &mut widths[0]) {
            *first = first.saturating_sub(excess).max(MIN_FIRST_COLUMN.min(*first));
        }
        widths
    }

    fn has_values(&self, index: usize) -> bool {
        let cells = self.rows.iter().filter_map(|row| row.get(index));
        cells.into_iter().any(|cell| !matches!(cell.text.as_str(), "" | "-" | "0"))
    }

    fn line(&self, row: &[Cell], widths: &[Option<usize>]) -> Line {
        let mut line = Line::default();
        let mut is_first = true;
        for ((column, cell), &width_of_column) in self.columns.iter().zip(row).zip(widths) {
            let Some(columns) = width_of_column else { continue };
            if !is_first {
                line.push(" ".repeat(GAP), Style::Plain);
            }
            is_first = false;
            let text = shortened(&cell.text, columns);
            let blanks = " ".repeat(columns.saturating_sub(width(&text)));
            if column.is_text {
                line.push(text, cell.style);
                line.push(blanks, Style::Plain);
            } else {
                line.push(blanks, Style::Plain);
                line.push(text, cell.style);
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::text::Palette;

    fn shown(columns: Option<usize>) -> Vec<String> {
        let mut table = Table::new(&[
            Column::text("BACKEND"),
            Column::text("STATE"),
            Column::number("WEIGHT", 1),
            Column::number("LEFT", 9),
            Column::number("IN FLIGHT", 5),
            Column::text("REASON"),
        ]);
        let reason = "does not answer any more, not even a free question";
        table.push(["a-backend-in-the-west", "stalled", "10", "-", "7", reason].map(Cell::from).to_vec());
        table.push(["b", "healthy", "5", "-", "0", ""].map(Cell::from).to_vec());
        let lines = table.lines(columns).into_iter().map(|line| line.render(Palette::Text));
        lines.collect()
    }

    #[test]
    fn a_table_is_whole_where_there_is_room() {
        let expected = [
            "BACKEND                STATE    WEIGHT  LEFT  IN FLIGHT  REASON",
            "a-backend-in-the-west  stalled      10     -          7  does not answer any more, not even a free question",
            "b                      healthy       5     -          0",
        ];
        assert_eq!(shown(None), expected);
        assert_eq!(shown(Some(200)), expected);
    }

    #[test]
    fn what_matters_least_goes_first_and_the_reason_keeps_its_beginning() {
        let expected = [
            "BACKEND                STATE    WEIGHT  IN FLIGHT  REASON",
            "a-backend-in-the-west  stalled      10          7  does not answer any more, not …",
            "b                      healthy       5          0",
        ];
        assert_eq!(shown(Some(82)), expected, "a column without values goes before one with values");
        let expected = [
            "BACKEND                STATE    REASON",
            "a-backend-in-the-west  stalled  does not answer any more, not…",
            "b                      healthy",
        ];
        assert_eq!(shown(Some(62)), expected);
        let expected =
            ["BACKEND        STATE    REASON", "a-backend-in-…  stalled  does not answer any more, not…"];
        assert_eq!(shown(Some(55))[1], expected[1]);
        for columns in 0..130 {
            for line in shown(Some(columns)) {
                assert!(width(&line) <= columns, "{columns}: {line}");
            }
        }
    }
}
