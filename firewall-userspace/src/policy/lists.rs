//! List files: one prefix a line, `#` comments, blank lines.
//!
//! Written for a million lines: plain lines take a fast path ([`plain`]), everything else (comments, host bits,
//! mistakes) takes the slow way, which has the last word on what is accepted.

mod plain;

use super::diagnostic::{Diagnostic, snippet};
use super::model::{Place, PrefixList};
use super::prefix;
use ipnetwork::IpNetwork;
use std::path::Path;

/// Errors of one file that are worth reading.
const MAX_ERRORS: usize = 20;

/// What a list file holds.
#[derive(Debug, Default)]
pub struct List {
    pub prefixes: PrefixList,
    /// One summary of all prefixes with host bits set.
    pub warning: Option<Diagnostic>,
}

/// # Errors
/// A finding for each bad line, up to 20.
pub fn parse(bytes: &[u8], path: &Path) -> Result<List, Vec<Diagnostic>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let lines = bytes.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let mut reader = Reader {
        path,
        lines,
        list: PrefixList::default(),
        host_bits: None,
        errors: Vec::new(),
    };
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        if let Some((address, length, next)) = plain::v4(bytes, at) {
            reader.push_v4(address, length, line);
            at = next;
        } else if let Some((address, length, next)) = plain::v6(bytes, at) {
            reader.push_v6(address, length, line);
            at = next;
        } else {
            let rest = &bytes[at..];
            let end = rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
            reader.slow(&rest[..end], line);
            at += end + 1;
            if reader.errors.len() >= MAX_ERRORS {
                break;
            }
        }
        line += 1;
    }
    reader.finish(at < bytes.len())
}

struct Reader<'a> {
    path: &'a Path,
    lines: usize,
    list: PrefixList,
    /// How many, and the first: its line and what is meant.
    host_bits: Option<(usize, Diagnostic)>,
    errors: Vec<Diagnostic>,
}

impl Reader<'_> {
    #[inline]
    fn push_v4(&mut self, address: u32, length: u8, line: usize) {
        if self.list.v4.capacity() == 0 {
            self.list.v4.reserve_exact(self.lines - line + 1);
        }
        self.list.v4.push((address, length));
    }

    #[inline]
    fn push_v6(&mut self, address: u128, length: u8, line: usize) {
        if self.list.v6.capacity() == 0 {
            self.list.v6.reserve_exact(self.lines - line + 1);
        }
        self.list.v6.push((address, length));
    }

    fn slow(&mut self, raw: &[u8], line: usize) {
        let text = raw.split(|&byte| byte == b'#').next().unwrap_or_default();
        let blanks = text.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let text = text.trim_ascii();
        if text.is_empty() {
            return;
        }
        let Ok(text) = std::str::from_utf8(text) else {
            let found = self.diagnostic(raw, line, blanks, text.len(), "this line is not UTF-8".into());
            return self.errors.push(found);
        };
        match prefix::parse(text) {
            Ok(parsed) => {
                if parsed.host_bits {
                    match &mut self.host_bits {
                        Some((count, _)) => *count += 1,
                        None => {
                            let meant = prefix::show(parsed.network);
                            let found = self.diagnostic(raw, line, blanks, text.len(), meant);
                            self.host_bits = Some((1, found));
                        }
                    }
                }
                match parsed.network {
                    IpNetwork::V4(network) => self.push_v4(network.ip().into(), network.prefix(), line),
                    IpNetwork::V6(network) => self.push_v6(network.ip().into(), network.prefix(), line),
                }
            }
            Err(error) => {
                let message = match text {
                    text if text.starts_with('@') || text == "any" => {
                        format!("\"{text}\" cannot stand in a list file, which holds prefixes only")
                    }
                    _ => error.to_string(),
                };
                let mut found = self.diagnostic(raw, line, blanks, text.len(), message);
                found.hint = match error {
                    prefix::PrefixError::Everybody(_) => {
                        Some("write \"any\" in the allow list of a service instead".into())
                    }
                    _ if text.contains([',', ' ', '\t', ';']) => Some("one prefix a line".into()),
                    error => error.hint(),
                };
                self.errors.push(found);
            }
        }
    }

    fn diagnostic(
        &self,
        raw: &[u8],
        line: usize,
        column: usize,
        width: usize,
        message: String,
    ) -> Diagnostic {
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        let place = Place {
            path: self.path.display().to_string(),
            line,
            column: column as u32 + 1,
        };
        let snippet = snippet(line, &String::from_utf8_lossy(raw), column, width);
        Diagnostic {
            message,
            place,
            snippet,
            hint: None,
        }
    }

    fn finish(mut self, stopped: bool) -> Result<List, Vec<Diagnostic>> {
        if stopped {
            let message = format!("more lines follow that were not read: stopped after {MAX_ERRORS} errors");
            self.errors.push(Diagnostic::whole_file(self.path, message));
        }
        if !self.errors.is_empty() {
            return Err(self.errors);
        }
        // A list of both families reserved for each as if it had all lines.
        if self.list.v4.capacity() > 2 * self.list.v4.len() {
            self.list.v4.shrink_to_fit();
        }
        if self.list.v6.capacity() > 2 * self.list.v6.len() {
            self.list.v6.shrink_to_fit();
        }
        let warning = self.host_bits.map(|(count, first)| {
            let message = match count {
                1 => format!("host bits are set; read as {}", first.message),
                _ => format!(
                    "host bits are set in {count} prefixes, here the first; read as {}",
                    first.message
                ),
            };
            Diagnostic { message, ..first }
        });
        Ok(List {
            prefixes: self.list,
            warning,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> List {
        parse(text.as_bytes(), Path::new("lists/blocked.txt")).unwrap()
    }

    fn errors(text: &[u8]) -> Vec<String> {
        let errors = parse(text, Path::new("lists/blocked.txt")).unwrap_err();
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn reads_comments_blanks_and_line_ends_of_all_kinds() {
        let list = read(
            "\u{feff}# head\r\n198.51.100.0/24\r\n\r\n  203.0.113.9 # trailing\n\t\n2001:db8::/32#x\n192.0.2.1",
        );
        assert_eq!(
            list.prefixes.v4,
            [(0xc633_6400, 24), (0xcb00_7109, 32), (0xc000_0201, 32)]
        );
        assert_eq!(list.prefixes.v6, [(0x2001_0db8 << 96, 32)]);
        assert_eq!(list.warning, None);
        assert!(read("").prefixes.is_empty());
        assert!(read("# nothing").prefixes.is_empty());
    }

    #[test]
    fn host_bits_are_one_warning_for_the_whole_file() {
        let list = read("192.0.2.0/24\n192.0.2.9/24\n198.51.100.1/24\n2001:db8::1/64\n");
        assert_eq!(list.prefixes.v4[1..], [(0xc000_0200, 24), (0xc633_6400, 24)]);
        assert_eq!(
            list.warning.unwrap().to_string(),
            "lists/blocked.txt:2:1: host bits are set in 3 prefixes, here the first; read as 192.0.2.0/24\n    \
             2 | 192.0.2.9/24\n      | ^^^^^^^^^^^^"
        );
    }

    #[test]
    fn errors_name_the_line_and_stop_after_twenty() {
        assert_eq!(
            errors(b"192.0.2.1\n  192.0.2.300 # typo\n\xff\n0.0.0.0/0\n192.0.2.1 192.0.2.2\n@web"),
            [
                "lists/blocked.txt:2:3: \"192.0.2.300\" is not an address or a prefix\n    2 |   192.0.2.300 # typo\n      |   ^^^^^^^^^^^\n  hint: write an address such as \"198.51.100.7\" or a prefix such as \"2001:db8:10::/48\"",
                "lists/blocked.txt:3:1: this line is not UTF-8\n    3 | \u{fffd}\n      | ^",
                "lists/blocked.txt:4:1: \"0.0.0.0/0\" means everybody, which is written \"any\"\n    4 | 0.0.0.0/0\n      | ^^^^^^^^^\n  hint: write \"any\" in the allow list of a service instead",
                "lists/blocked.txt:5:1: \"192.0.2.1 192.0.2.2\" is not an address or a prefix\n    5 | 192.0.2.1 192.0.2.2\n      | ^^^^^^^^^^^^^^^^^^^\n  hint: one prefix a line",
                "lists/blocked.txt:6:1: \"@web\" cannot stand in a list file, which holds prefixes only\n    6 | @web\n      | ^^^^\n  hint: write an address such as \"198.51.100.7\" or a prefix such as \"2001:db8:10::/48\"",
            ]
        );
        let many = errors("x\n".repeat(1000).as_bytes());
        assert_eq!(many.len(), 21);
        assert_eq!(
            many[20],
            "lists/blocked.txt: more lines follow that were not read: stopped after 20 errors"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes, Path::new("x"));
        }
    }
}
