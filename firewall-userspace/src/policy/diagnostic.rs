//! What is wrong with a policy, and where: path, line and column, the source line with a pointer into it, and
//! what would be accepted.
//!
//! Every finding about a text is made here, so all look the same. Lines and columns count from 1, columns in
//! characters. A finding about a whole file has line 0 and no snippet.

use super::model::Place;
use std::fmt;
use std::ops::Range;
use std::path::Path;

/// One finding. `Display` prints all of it, over several lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub message: String,
    pub place: Place,
    /// The source line, and under it a line of carets.
    pub snippet: String,
    pub hint: Option<String>,
}

impl Diagnostic {
    /// About a file as a whole, or one that cannot be read.
    pub fn whole_file(path: &Path, message: impl Into<String>) -> Diagnostic {
        let place = Place {
            path: path.display().to_string(),
            line: 0,
            column: 0,
        };
        Diagnostic {
            message: message.into(),
            place,
            snippet: String::new(),
            hint: None,
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Diagnostic {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}",
            escaped(&self.place.to_string()),
            escaped(&self.message)
        )?;
        if !self.snippet.is_empty() {
            write!(f, "\n{}", self.snippet)?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {}", escaped(hint))?;
        }
        Ok(())
    }
}

/// Why a policy was refused: everything that one pass could find. `Display` prints all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    pub errors: Vec<Diagnostic>,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyError {}

/// A text with its path, to turn byte spans into places.
pub struct Text<'a> {
    pub path: String,
    pub text: &'a str,
    /// Offset of the start of each line.
    lines: Vec<usize>,
    /// Characters before each block of [`BLOCK`] bytes: a text of one line may have many findings.
    chars: Vec<usize>,
}

const BLOCK: usize = 1024;
/// Bytes of a line before and behind a finding that are looked at to show it.
const WINDOW: usize = 1024;

impl<'a> Text<'a> {
    pub fn new(path: &Path, text: &'a str) -> Text<'a> {
        let starts = text
            .bytes()
            .enumerate()
            .filter(|&(_, byte)| byte == b'\n')
            .map(|(at, _)| at + 1);
        let blocks = text.as_bytes().chunks(BLOCK).scan(0, |before, block| {
            let here = *before;
            *before += beginnings(block);
            Some(here)
        });
        Text {
            path: path.display().to_string(),
            text,
            lines: std::iter::once(0).chain(starts).collect(),
            chars: blocks.collect(),
        }
    }

    pub fn place(&self, offset: usize) -> Place {
        let (line, start) = self.line_of(offset);
        Place {
            path: self.path.clone(),
            line: line as u32 + 1,
            column: (self.chars_before(self.boundary(offset)) - self.chars_before(start)) as u32 + 1,
        }
    }

    pub fn diagnostic(&self, span: Range<usize>, message: impl Into<String>) -> Diagnostic {
        let place = self.place(span.start);
        let (line, start) = self.line_of(span.start);
        let end = self.lines.get(line + 1).map_or(self.text.len(), |next| next - 1);
        let at = self.boundary(span.start);
        // What is cut off here, the snippet would not show.
        let from = self.boundary(span.start.saturating_sub(WINDOW)).max(start);
        let to = self.boundary(span.start + WINDOW).min(end.max(start)).max(at);
        let width = self.text[at..self.boundary(span.end.clamp(span.start, span.start + WINDOW))]
            .lines()
            .next()
            .map_or(0, |text| text.chars().count());
        let column = self.text[from..at].chars().count();
        let snippet = snippet(place.line, &self.text[from..to], column, width);
        Diagnostic {
            message: message.into(),
            place,
            snippet,
            hint: None,
        }
    }

    /// Index of the line that holds `offset`, and where it starts.
    fn line_of(&self, offset: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|&start| start <= offset) - 1;
        (line, self.lines[line])
    }

    /// Characters of the text before an offset.
    fn chars_before(&self, offset: usize) -> usize {
        let block = offset / BLOCK;
        // Behind the last byte there may be no block.
        let before = self.chars.get(block).copied();
        match before {
            Some(before) => before + beginnings(&self.text.as_bytes()[block * BLOCK..offset]),
            None => {
                let last = self.chars.len().saturating_sub(1);
                self.chars.last().map_or(0, |before| {
                    before + beginnings(&self.text.as_bytes()[last * BLOCK..offset])
                })
            }
        }
    }

    fn boundary(&self, offset: usize) -> usize {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }
}

/// Bytes that begin a character.
fn beginnings(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
}

/// Characters of a source line that are shown; a longer one is cut around the pointer.
const SHOWN: usize = 100;

/// The source line with its number, and carets under `width` characters from `column` (from 0).
pub fn snippet(line: u32, source: &str, column: usize, width: usize) -> String {
    let chars: Vec<char> = source.trim_end().chars().map(printable).collect();
    let column = column.min(chars.len());
    let first = if chars.len() <= SHOWN {
        0
    } else {
        column.saturating_sub(SHOWN / 3)
    };
    let last = chars.len().min(first + SHOWN);
    let shown: String = chars[first..last].iter().collect();
    // Tabs stay tabs, so that the carets stand where the terminal puts the text.
    let indent: String = chars[first..column]
        .iter()
        .map(|&c| if c == '\t' { '\t' } else { ' ' })
        .collect();
    let carets = "^".repeat(width.min(last.saturating_sub(column)).max(1));
    let (before, after) = (
        if first > 0 { "…" } else { "" },
        if last < chars.len() { "…" } else { "" },
    );
    let pad = if first > 0 { " " } else { "" };
    format!("{line:>5} | {before}{shown}{after}\n      | {pad}{indent}{carets}")
}

/// What could drive a terminal is shown as a replacement character, so that columns stay.
fn printable(c: char) -> char {
    match c {
        '\t' => '\t',
        c if drives_a_terminal(c) => char::REPLACEMENT_CHARACTER,
        c => c,
    }
}

fn drives_a_terminal(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What could drive a terminal, or pass for a line of its own, as escapes.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if drives_a_terminal(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Collects what is found in one text.
pub struct Findings<'a> {
    pub text: Text<'a>,
    pub errors: Vec<Diagnostic>,
    pub warnings: Vec<Diagnostic>,
    /// Beyond [`MOST`] of each kind, which are only counted.
    pub more_errors: usize,
    pub more_warnings: usize,
}

/// Findings of a kind that are kept.
const MOST: usize = 1000;

impl<'a> Findings<'a> {
    pub fn new(text: Text<'a>) -> Findings<'a> {
        Findings {
            text,
            errors: Vec::new(),
            warnings: Vec::new(),
            more_errors: 0,
            more_warnings: 0,
        }
    }

    /// Whether further errors are only counted, so that they need no words.
    pub fn is_full(&self) -> bool {
        self.errors.len() >= MOST
    }

    pub fn error(&mut self, span: &Range<usize>, message: impl Into<String>, hint: Option<String>) {
        if self.is_full() {
            self.more_errors += 1;
            return;
        }
        let found = self.text.diagnostic(span.clone(), message);
        self.errors.push(Diagnostic { hint, ..found });
    }

    pub fn warn(&mut self, span: &Range<usize>, message: impl Into<String>, hint: Option<String>) {
        if self.warnings.len() >= MOST {
            self.more_warnings += 1;
            return;
        }
        let found = self.text.diagnostic(span.clone(), message);
        self.warnings.push(Diagnostic { hint, ..found });
    }
}

/// The candidate that `word` most likely stands for.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).max(1);
    let near = candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate));
    near.filter(|&(edits, _)| edits <= allowed)
        .min_by_key(|&(edits, _)| edits)
        .map(|(_, candidate)| candidate)
}

/// `did you mean "candidate"?`, if one is near. `sigil` stands before the name.
pub fn did_you_mean<'a>(
    word: &str,
    sigil: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    nearest(word, candidates).map(|candidate| format!("did you mean \"{sigil}{candidate}\"?"))
}

/// Insertions, deletions, replacements and swaps of neighbours between two words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (
        a.to_lowercase().chars().collect(),
        b.to_lowercase().chars().collect(),
    );
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut next = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (row[j - 1] + same).min(row[j] + 1).min(next[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_into_the_line_by_characters() {
        let text = Text::new(Path::new("p.toml"), "# ümlaut\nname = \"ü\" # x\r\nlast");
        let found = text.diagnostic(17..21, "odd name").hint("write u");
        let expected = "p.toml:2:8: odd name\n    2 | name = \"ü\" # x\n      |        ^^^\n  hint: write u";
        assert_eq!(found.to_string(), expected);
        assert_eq!(text.place(1000).line, 3);
    }

    #[test]
    fn columns_of_long_texts_are_those_of_a_count() {
        let line = "aü€𝄞".repeat(900);
        let text = format!("# first\n{line}\n{line}");
        let places = Text::new(Path::new("p"), &text);
        for offset in (0..=text.len()).filter(|at| text.is_char_boundary(*at)) {
            let start = text[..offset].rfind('\n').map_or(0, |at| at + 1);
            let place = places.place(offset);
            assert_eq!(
                place.column as usize,
                text[start..offset].chars().count() + 1,
                "{offset}"
            );
        }
        assert_eq!(Text::new(Path::new("p"), "").place(0).column, 1);
        // At the end of a block, and of the text.
        let block = "x".repeat(BLOCK);
        assert_eq!(
            Text::new(Path::new("p"), &block).place(BLOCK).column as usize,
            BLOCK + 1
        );
        // What is shown of a line is the same, however long it is.
        let shown = |line: &str| {
            Text::new(Path::new("p"), line)
                .diagnostic(1500..1505, "odd")
                .snippet
        };
        let short = "y".repeat(1700);
        assert_eq!(shown(&short), shown(&format!("{short}{short}")));
        assert_eq!(shown(&short).lines().nth(1).unwrap().matches('^').count(), 5);
    }

    #[test]
    fn cuts_long_lines_around_the_pointer_and_hides_control_characters() {
        let line = format!("{}\u{1b}[31m{}", "x".repeat(200), "y".repeat(200));
        let shown = snippet(1, &line, 200, 1);
        let (source, carets) = shown.split_once('\n').unwrap();
        assert!(source.contains('\u{fffd}') && !source.contains('\u{1b}'));
        assert!(source.chars().count() < 115);
        let column = carets.chars().position(|c| c == '^').unwrap();
        assert_eq!(source.chars().nth(column), Some('\u{fffd}'));
    }

    #[test]
    fn what_a_policy_says_cannot_drive_the_terminal() {
        let text = Text::new(Path::new("p\n.toml"), "x = \"\u{1b}[2J\"");
        let found = text
            .diagnostic(4..5, "unknown name \"\u{1b}[31m\nerror: all is well\u{202e}\"")
            .hint("not \u{7}");
        assert_eq!(
            found.to_string(),
            "p\\n.toml:1:5: unknown name \"\\u{1b}[31m\\nerror: all is well\\u{202e}\"\n    \
             1 | x = \"\u{fffd}[2J\"\n      |     ^\n  hint: not \\u{7}"
        );
    }

    #[test]
    fn suggests_only_what_is_near() {
        assert_eq!(nearest("servce", ["version", "service"]), Some("service"));
        assert_eq!(nearest("wbe", ["web", "office"]), Some("web"));
        assert_eq!(nearest("xyz", ["web", "office"]), None);
    }
}
