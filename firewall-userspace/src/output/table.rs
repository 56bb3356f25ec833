//! Tables without lines: a header, columns two spaces apart, nothing at the end of a line.

use super::Style;
use comfy_table::{
    Attribute, Cell, CellAlignment, ColumnConstraint, ContentArrangement, Row, Table, Width, presets,
};

/// Spaces between columns.
const GAP: u16 = 2;
/// A column of words keeps this width however narrow the terminal is.
const NARROWEST: u16 = 18;

/// A column of a table.
#[derive(Clone, Copy)]
pub struct Column {
    title: &'static str,
    alignment: CellAlignment,
    wraps: bool,
    cut: bool,
}

pub const fn left(title: &'static str) -> Column {
    Column {
        title,
        alignment: CellAlignment::Left,
        wraps: false,
        cut: false,
    }
}

pub const fn right(title: &'static str) -> Column {
    Column {
        title,
        alignment: CellAlignment::Right,
        wraps: false,
        cut: false,
    }
}

/// A column of words, which gives way when the terminal is narrow; the others keep their width.
pub const fn words(title: &'static str) -> Column {
    Column {
        title,
        alignment: CellAlignment::Left,
        wraps: true,
        cut: false,
    }
}

/// A column of words that are cut, with an ellipsis, where a narrow terminal ends: a row stays a line.
pub const fn cut(title: &'static str) -> Column {
    Column {
        cut: true,
        ..words(title)
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
    let cut = style.width.is_some() && columns.iter().any(|column| column.cut);
    for row in rows {
        let mut row = Row::from(row);
        if cut {
            row.max_height(1);
        }
        table.add_row(row);
    }
    let widths = table.column_max_content_widths();
    for (index, column) in columns.iter().enumerate() {
        if let Some(target) = table.column_mut(index) {
            target.set_padding((0, GAP)).set_cell_alignment(column.alignment);
            let width = widths.get(index).copied().unwrap_or_default();
            target.set_constraint(match column.wraps {
                true => ColumnConstraint::LowerBoundary(Width::Fixed(width.min(NARROWEST) + GAP)),
                false => ColumnConstraint::ContentWidth,
            });
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
    fn only_words_give_way_on_a_narrow_terminal() {
        let mut style = Style::PLAIN;
        style.width = Some(30);
        let row = vec![
            Cell::new("payments-api"),
            Cell::new("@web, 198.51.100.7, 192.0.2.0/24"),
            Cell::new("1,234"),
        ];
        let text = table(&style, &[left("SERVICE"), words("ALLOW"), right("PASSED")], [row]);
        assert!(text.lines().count() > 2, "{text}");
        assert!(
            text.contains("payments-api") && text.contains(" 1,234\n"),
            "{text}"
        );
    }

    #[test]
    fn long_lists_are_cut() {
        let items: Vec<String> = (0..20).map(|index| index.to_string()).collect();
        assert_eq!(list(&items), "0, 1, 2, 3, 4, 5, 6, 7 and 12 more");
        assert_eq!(list(&items[..9]), "0, 1, 2, 3, 4, 5, 6, 7, 8");
        assert_eq!(list(&[]), "-");
    }
}
