//! Tables of text, their columns aligned.

use std::fmt;

/// Rows under a heading.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        Table { rows: vec![headings.map(str::to_owned).to_vec()] }
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// Adds a row. Names may have any length: what is too long for a table is cut in its middle.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|cell| cut(&super::one_line(cell))).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |c: usize| self.rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                // Not by a format's width, which ends at 65,535.
                line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// The longest cell that is printed whole, in characters. Notes and reasons are shorter, as are the names of real
/// tensors.
const LONGEST: usize = 500;

/// A text with its middle left out where it is too long; both ends of a name tell it from others.
fn cut(text: &str) -> String {
    let count = text.chars().count();
    if count <= LONGEST {
        return text.to_owned();
    }
    let half = LONGEST / 2 - 10;
    let left: String = text.chars().take(half).collect();
    let right: String = text.chars().skip(count - half).collect();
    format!("{left} … {right} ({count} characters)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_any_length_are_printed() {
        for length in [1, LONGEST, LONGEST + 1, 65_535, 70_000] {
            let mut table = Table::new(["name", "note"]);
            table.row(["ä".repeat(length), "end".to_owned()]);
            let text = table.to_string();
            let longest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
            assert!(longest < LONGEST + 30, "{length}: {longest}");
            assert!(text.lines().nth(1).is_some_and(|line| line.ends_with("  end")), "{length}");
        }
    }
}
