//! Tables without lines: a header, columns two spaces apart, nothing at the end of a line.

use super::Style;
use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table, presets};

/// A column of a table.
#[derive(Clone, Copy)]
pub struct Column {
    title: &'static str,
    alignment: CellAlignment,
}

pub const fn left(title: &'static str) -> Column {
    Column {
        title,
        alignment: CellAlignment::Left,
    }
}

pub const fn right(title: &'static str) -> Column {
    Column {
        title,
        alignment: CellAlignment::Right,
    }
}

/// Renders rows under columns, with a line feed at the end. No rows: the header alone.
pub fn table(style: &Style, columns: &[Column], rows: impl IntoIterator<Item = Vec<Cell>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if style.colour() {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    match style.width {
        Some(width) => table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    table.set_header(
        columns
            .iter()
            .map(|column| Cell::new(column.title).add_attribute(Attribute::Bold)),
    );
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in columns.iter().enumerate() {
        if let Some(target) = table.column_mut(index) {
            target.set_padding((0, 2)).set_cell_alignment(column.alignment);
        }
    }
    let mut out = String::new();
    for line in table.lines() {
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// `a, b, c and 7 more`: as many as a glance takes, all of it is in the JSON.
pub fn list(items: &[String]) -> String {
    const SHOWN: usize = 8;
    if items.is_empty() {
        return "-".to_owned();
    }
    if items.len() <= SHOWN + 1 {
        return items.join(", ");
    }
    format!("{} and {} more", items[..SHOWN].join(", "), items.len() - SHOWN)
}

/// The text, each line moved to the right.
pub fn indent(text: &str, by: &str) -> String {
    text.lines()
        .map(|line| format!("{by}{line}").trim_end().to_owned() + "\n")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_trailing_spaces() {
        let rows = [("a", "1"), ("long name", "23")];
        let rows = rows.map(|(name, count)| vec![Cell::new(name), Cell::new(count)]);
        let text = table(&Style::PLAIN, &[left("NAME"), right("COUNT")], rows);
        assert_eq!(text, "NAME       COUNT\na              1\nlong name     23\n");
    }

    #[test]
    fn long_lists_are_cut() {
        let items: Vec<String> = (0..20).map(|index| index.to_string()).collect();
        assert_eq!(list(&items), "0, 1, 2, 3, 4, 5, 6, 7 and 12 more");
        assert_eq!(list(&items[..9]), "0, 1, 2, 3, 4, 5, 6, 7, 8");
        assert_eq!(list(&[]), "-");
    }
}
