//! Splices into the text of a TOML file that keep its layout.
//!
//! An entry that stands alone on its lines is added and removed as lines, with the comment behind it; any other
//! as text between commas. What is added last and removed again leaves the text as it was.

use std::ops::Range;
use toml_edit::{Document, Item, TableLike};

pub fn replace(text: &str, span: Range<usize>, with: &str) -> String {
    format!("{}{with}{}", &text[..span.start], &text[span.end..])
}

/// Adds an element behind the last of an array. `array` spans the brackets.
pub fn insert(text: &str, array: Range<usize>, elements: &[Range<usize>], entry: &str) -> String {
    let newline = newline(text);
    let Some(last) = elements.last() else {
        let inner = &text[array.start + 1..array.end - 1];
        if !inner.contains('\n') {
            return replace(text, array, &format!("[{entry}]"));
        }
        // Only comments: a line of its own before the bracket.
        let bracket = array.end - 1;
        let line = line_start(text, bracket);
        if !text[line..bracket].trim().is_empty() {
            return replace(text, bracket..bracket, entry);
        }
        let comment = inner
            .lines()
            .map(str::trim_end)
            .find(|line| line.trim_start().starts_with('#'));
        let indent = match comment.filter(|comment| comment.starts_with([' ', '\t'])) {
            Some(comment) => indent_of(comment).to_string(),
            None => format!("{}    ", &text[line..bracket]),
        };
        return replace(text, line..line, &format!("{indent}{entry},{newline}"));
    };
    let indent = &text[line_start(text, last.start)..last.start];
    if elements.len() > 1 && !text[elements[elements.len() - 2].end..last.start].contains('\n')
        || !indent.trim().is_empty()
    {
        return replace(text, last.end..last.end, &format!(", {entry}"));
    }
    let line_end = line_end(text, last.end);
    if line_end >= array.end {
        // The bracket closes on the same line.
        return replace(text, last.end..last.end, &format!(",{newline}{indent}{entry}"));
    }
    match comma_after(text, last.end) {
        Some(comma) if comma < line_end => {
            replace(text, line_end..line_end, &format!("{indent}{entry},{newline}"))
        }
        Some(_) => replace(text, last.end..last.end, &format!(", {entry}")),
        None => {
            let with_line = replace(text, line_end..line_end, &format!("{indent}{entry}{newline}"));
            replace(&with_line, last.end..last.end, ",")
        }
    }
}

/// Takes out an element of an array, with the comment behind it if both have their lines for themselves.
pub fn remove(text: &str, elements: &[Range<usize>], index: usize) -> String {
    let element = &elements[index];
    let previous = index.checked_sub(1).map(|previous| &elements[previous]);
    let next = elements.get(index + 1);
    let comma = comma_after(text, element.end);
    if let Some(lines) = own_lines(text, element, comma) {
        let without = replace(text, lines, "");
        // A last element without a comma: the one before becomes the last.
        return match previous.filter(|_| next.is_none() && comma.is_none()) {
            Some(previous) => match comma_after(&without, previous.end) {
                Some(comma) => replace(&without, comma..comma + 1, ""),
                None => without,
            },
            None => without,
        };
    }
    let clear = |between: Range<usize>| !text[between].contains('#');
    let same_line = |between: Range<usize>| !text[between].contains('\n');
    match (previous, next) {
        (Some(previous), _) if same_line(previous.end..element.start) => {
            replace(text, previous.end..element.end, "")
        }
        (_, Some(next)) if clear(element.end..next.start) => replace(text, element.start..next.start, ""),
        (Some(previous), None) if clear(previous.end..element.start) => {
            replace(text, previous.end..element.end, "")
        }
        _ => {
            // Comments stand between: only the element and one comma go.
            let comma = comma.or_else(|| comma_after(text, previous?.end));
            let without = match comma {
                Some(comma) if comma > element.start => {
                    replace(&replace(text, comma..comma + 1, ""), element.clone(), "")
                }
                Some(comma) => replace(&replace(text, element.clone(), ""), comma..comma + 1, ""),
                None => replace(text, element.clone(), ""),
            };
            tidy(&without, element.start)
        }
    }
}

/// Blanks that are all there is between two brackets go.
fn tidy(text: &str, at: usize) -> String {
    let start = text[..at].trim_end_matches([' ', '\t']).len();
    let end = text.len() - text[at..].trim_start_matches([' ', '\t']).len();
    match text[..start].ends_with('[') && text[end..].starts_with(']') {
        true => replace(text, start..end, ""),
        false => text.into(),
    }
}

/// The lines of an element with its comma and comment, if nothing else stands on them.
fn own_lines(text: &str, element: &Range<usize>, comma: Option<usize>) -> Option<Range<usize>> {
    let start = line_start(text, element.start);
    let end = line_end(text, element.end);
    let behind = match comma {
        Some(comma) if comma < end => comma + 1,
        Some(_) => return None,
        None => element.end,
    };
    let rest = text[behind..end].trim();
    let alone = text[start..element.start].trim().is_empty() && (rest.is_empty() || rest.starts_with('#'));
    alone.then_some(start..end)
}

/// Where the comma behind an element stands: blanks and comments may come before it.
fn comma_after(text: &str, at: usize) -> Option<usize> {
    let mut comment = false;
    for (offset, byte) in text[at..].bytes().enumerate() {
        match byte {
            b'\n' => comment = false,
            b'#' => comment = true,
            b',' if !comment => return Some(at + offset),
            b' ' | b'\t' | b'\r' => {}
            _ if comment => {}
            _ => return None,
        }
    }
    None
}

/// Takes out a key with its value and the comment behind it. Both stand in a table of their own.
pub fn remove_key(text: &str, key: usize, value_end: usize) -> String {
    replace(text, line_start(text, key)..line_end(text, value_end), "")
}

/// Adds a key to a `[[service]]` or `[[egress]]` table, below the one that it follows and laid out like it.
pub fn add_key(text: &str, table: &dyn TableLike, header: Range<usize>, key: &str, value: &str) -> String {
    const ORDER: [&str; 5] = ["name", "ports", "allow", "to", "deny"];
    let follows = ORDER.iter().take_while(|other| **other != key);
    let below = follows
        .filter(|other| table.contains_key(other))
        .last()
        .unwrap_or(&"ports");
    let model = table
        .key(below)
        .and_then(|key| key.span())
        .zip(table.get(below).and_then(Item::span));
    let (start, end) = match model {
        Some((key, value)) => (Some(key.start), value.end),
        None => (None, end_of_values(table).unwrap_or(header.end)),
    };
    let indent = start.map_or("", |start| &text[line_start(text, start)..start]);
    // Equal signs that stand below one another go on doing so.
    let columns: Vec<usize> = table
        .iter()
        .filter(|(_, item)| item.is_value())
        .filter_map(|(name, _)| table.key(name)?.span())
        .filter_map(|span| text[span.start..].find('='))
        .collect();
    let column = match columns.as_slice() {
        [first, rest @ ..] if rest.iter().all(|column| column == first) => *first,
        _ => 0,
    };
    let key = format!("{key:width$}", width = column.saturating_sub(1));
    insert_line(text, end, &format!("{indent}{key} = {value}"))
}

/// Adds a key before the first table, below `version`.
pub fn add_root_key(text: &str, document: &Document<&str>, key: &str, value: &str) -> String {
    match document.get("version").and_then(Item::span) {
        Some(version) => insert_line(text, version.end, &format!("{key} = {value}")),
        None => format!("{key} = {value}{}{text}", newline(text)),
    }
}

/// Inserts a line below the one that holds `at`.
fn insert_line(text: &str, at: usize, line: &str) -> String {
    let (end, newline) = (line_end(text, at), newline(text));
    match text[..end].ends_with('\n') {
        true => replace(text, end..end, &format!("{line}{newline}")),
        false => replace(text, end..end, &format!("{newline}{line}{newline}")),
    }
}

/// Adds lines at the end of the file, behind a blank one.
pub fn append_block(text: &str, lines: &[String]) -> String {
    let newline = newline(text);
    let mut result = text.to_string();
    if !result.is_empty() && !result.ends_with('\n') {
        result += newline;
    }
    if !result.is_empty() {
        result += newline;
    }
    for line in lines {
        result += line;
        result += newline;
    }
    result
}

/// Where the last value of a table ends, those of the tables in it included.
pub fn end_of_values(table: &dyn TableLike) -> Option<usize> {
    let end = |item: &Item| {
        let inner = match item {
            Item::Table(table) => end_of_values(table),
            Item::ArrayOfTables(tables) => tables.iter().filter_map(|table| end_of_values(table)).max(),
            Item::Value(_) | Item::None => None,
        };
        let headers = match item {
            Item::ArrayOfTables(tables) => tables
                .iter()
                .filter_map(|table| table.span())
                .map(|span| span.end)
                .max(),
            item => item.span().map(|span| span.end),
        };
        inner.max(headers)
    };
    table.iter().filter_map(|(_, item)| end(item)).max()
}

/// Takes out a table: its header, its lines to the end of the last value, and the comments that touch it above
/// and below. Of the blank lines around it, those above go too.
pub fn remove_block(text: &str, header: Range<usize>, last_value: usize) -> String {
    let mut start = line_start(text, header.start);
    let mut end = line_end(text, last_value.max(header.end));
    while start > 0 {
        let above = line_start(text, start - 1);
        if !text[above..start].trim_start().starts_with('#') {
            break;
        }
        start = above;
    }
    // Comments below belong to the table unless they touch the next one.
    let mut below = end;
    while below < text.len() && text[below..line_end(text, below)].trim_start().starts_with('#') {
        below = line_end(text, below);
    }
    if below == text.len() || text[below..line_end(text, below)].trim().is_empty() {
        end = below;
    }
    while start > 0 {
        let above = line_start(text, start - 1);
        if !text[above..start].trim().is_empty() {
            break;
        }
        start = above;
    }
    let mut result = replace(text, start..end, "");
    if start == 0 {
        let blank = result.len() - result.trim_start_matches(['\r', '\n']).len();
        result.replace_range(..blank, "");
    }
    result
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

/// Behind the line end.
fn line_end(text: &str, at: usize) -> usize {
    text[at..]
        .find('\n')
        .map_or(text.len(), |newline| at + newline + 1)
}

fn indent_of(line: &str) -> &str {
    &line[..line.len() - line.trim_start().len()]
}

fn newline(text: &str) -> &'static str {
    match text.find('\n') {
        Some(at) if text[..at].ends_with('\r') => "\r\n",
        _ => "\n",
    }
}
