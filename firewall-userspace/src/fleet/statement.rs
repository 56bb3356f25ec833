//! What is signed: a statement of an operator about one policy document or one ban, and the envelope that carries it.
//!
//! A statement is a header of lines in a fixed order and the text of the document:
//!
//! ```text
//! ravelin-policy 1
//! name: payments
//! nodes: role=payments
//! version: 7
//! issued: 2026-11-22T10:30:00Z
//! expires: 2027-02-20T10:30:00Z
//! list lists/partners.txt: b3:6f0c...
//! text: 1234
//!
//! version = 1
//! ...
//! ```
//!
//! The bytes that were signed are kept and compared as they are; nothing signed is ever written anew. The parser takes
//! what [`Statement::to_bytes`] writes and nothing else, so one statement has one form. All of this is read before any
//! signature is looked at: lengths are bounded, and nothing here says that a statement is true.

use super::TrustError;
use super::signature::{self, Signature};
use crate::policy::{prefix, source, until};
use std::collections::BTreeMap;
use std::fmt;

/// Bytes of an envelope at most: etcd takes 1.5 MB in a request.
pub const MAX_ENVELOPE: usize = 1 << 20;
/// Bytes of a node selector at most.
const MAX_NODES: usize = 4096;
/// List files of one document at most.
const MAX_LISTS: usize = 1024;
/// Bytes of the path of a list file at most.
const MAX_LIST_NAME: usize = 255;
/// Bytes of a line of the header at most: the longest is the selector's.
const MAX_LINE: usize = MAX_NODES + 64;
/// Characters of the reason of a ban at most.
pub const MAX_WHY: usize = 200;

/// BLAKE3 of stored bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    /// `None` unless it is 64 digits of lower-case hexadecimal.
    pub fn from_hex(text: &str) -> Option<Digest> {
        let lower = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 64 || !text.as_bytes().iter().all(lower) {
            return None;
        }
        blake3::Hash::from_hex(text)
            .ok()
            .map(|hash| Digest(*hash.as_bytes()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b3:{self}")
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        Digest::from_hex(&text)
            .ok_or_else(|| serde::de::Error::custom("not a digest of 64 hexadecimal digits"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// This document is in force.
    Policy,
    /// No document of this name is.
    Delete,
    Ban,
    Unban,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Policy, Kind::Delete, Kind::Ban, Kind::Unban];

    pub fn word(self) -> &'static str {
        match self {
            Kind::Policy => "policy",
            Kind::Delete => "delete",
            Kind::Ban => "ban",
            Kind::Unban => "unban",
        }
    }

    /// What the versions of a name are counted in: a deletion is the next version of its document.
    pub fn subject(self) -> Subject {
        match self {
            Kind::Policy | Kind::Delete => Subject::Policy,
            Kind::Ban | Kind::Unban => Subject::Ban,
        }
    }
}

/// What a statement is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    Policy,
    Ban,
}

impl Subject {
    /// The directory of the store, with its slash.
    pub fn directory(self) -> &'static str {
        match self {
            Subject::Policy => "policies/",
            Subject::Ban => "bans/",
        }
    }

    /// The key below the store's prefix.
    pub fn key(self, name: &str) -> String {
        format!("{}{}", self.directory(), name.replace('/', "_"))
    }

    pub fn word(self) -> &'static str {
        match self {
            Subject::Policy => "policy",
            Subject::Ban => "ban",
        }
    }
}

/// What an operator says. [`Statement::parse`] yields, and [`Statement::check`] accepts, only what can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    pub kind: Kind,
    /// Of the document; of a ban its prefix, as [`prefix::show`] writes it.
    pub name: String,
    /// The selector of the nodes this is for.
    pub nodes: String,
    /// From 1, higher than that of any statement before it with this subject and name.
    pub version: u64,
    /// Unix seconds.
    pub issued: u64,
    /// Unix seconds from which on it is not accepted any more; `None`: never.
    pub expires: Option<u64>,
    /// The list files of the document, as its text writes their paths, and what each holds.
    pub lists: BTreeMap<String, Digest>,
    /// The document as its author wrote it; of a ban what [`BanTerms`] writes.
    pub text: String,
}

/// Why bytes are no statement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the statement: {message}")]
pub struct StatementError {
    /// From 1.
    pub line: usize,
    pub message: String,
}

impl Statement {
    /// The key below the store's prefix.
    pub fn key(&self) -> String {
        self.kind.subject().key(&self.name)
    }

    /// The bytes that are signed.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = format!(
            "ravelin-{} 1\nname: {}\nnodes: {}\nversion: {}\nissued: {}\nexpires: {}\n",
            self.kind.word(),
            self.name,
            self.nodes,
            self.version,
            time(Some(self.issued)),
            time(self.expires),
        );
        for (name, digest) in &self.lists {
            out += &format!("list {name}: b3:{digest}\n");
        }
        out += &format!("text: {}\n\n", self.text.len());
        out += &self.text;
        out.into_bytes()
    }

    /// Whether this can be written down and read back.
    ///
    /// # Errors
    /// What is wrong, by the line at which it would stand.
    pub fn check(&self) -> Result<(), StatementError> {
        Statement::parse(&self.to_bytes()).map(drop)
    }

    /// Reads all of `bytes`.
    ///
    /// # Errors
    /// The first line that is not as [`Statement::to_bytes`] writes it.
    pub fn parse(bytes: &[u8]) -> Result<Statement, StatementError> {
        let mut lines = Lines { rest: bytes, line: 0 };
        let (statement, text_line) = read(&mut lines)?;
        if !lines.rest.is_empty() {
            let message = format!("{} bytes follow the text", lines.rest.len());
            return Err(StatementError {
                line: text_line,
                message,
            });
        }
        Ok(statement)
    }

    /// Reads a statement at the start of `bytes`; the rest is left.
    fn parse_front(bytes: &[u8]) -> Result<(Statement, &[u8]), StatementError> {
        let mut lines = Lines { rest: bytes, line: 0 };
        let (statement, _) = read(&mut lines)?;
        Ok((statement, lines.rest))
    }
}

/// Reads a statement, and says on which line its text begins.
fn read(lines: &mut Lines<'_>) -> Result<(Statement, usize), StatementError> {
    let all = lines.rest;
    let first = lines.next()?;
    let kind = Kind::ALL.into_iter().find(|kind| {
        first
            .strip_prefix("ravelin-")
            .and_then(|rest| rest.strip_suffix(" 1"))
            == Some(kind.word())
    });
    let kind = kind.ok_or_else(|| {
        lines.error(format!(
            "{} begins no statement that this ravelin knows (ravelin-policy 1, ravelin-delete 1, ravelin-ban 1, ravelin-unban 1)",
            quoted(first)
        ))
    })?;
    let name = lines.field("name")?;
    check_name(kind, name).map_err(|message| lines.error(message))?;
    let nodes = lines.field("nodes")?;
    if nodes.is_empty() || nodes.len() > MAX_NODES || nodes.trim() != nodes {
        return Err(lines.error(format!(
            "a selector of nodes has 1 to {MAX_NODES} bytes, without blanks around it"
        )));
    }
    let version = lines.field("version")?;
    let version = number(version)
        .filter(|&version| version >= 1)
        .ok_or_else(|| lines.error(format!("version {} is not a number from 1", quoted(version))))?;
    let issued = lines.time("issued")?;
    let issued = issued.ok_or_else(|| lines.error("\"issued\" is a time, not \"never\"".into()))?;
    let expires = lines.time("expires")?;
    if expires.is_some_and(|expires| expires <= issued) {
        return Err(lines.error("it expires before it is issued".into()));
    }
    let mut lists = BTreeMap::new();
    let mut line = lines.next()?;
    while let Some(rest) = line.strip_prefix("list ") {
        let entry = rest.rsplit_once(": b3:");
        let entry = entry.and_then(|(file, hex)| Some((file, Digest::from_hex(hex)?)));
        let (file, digest) = entry.ok_or_else(|| {
            lines.error("a list is written \"list FILE: b3:\" and 64 hexadecimal digits".into())
        })?;
        check_list_name(file).map_err(|message| lines.error(message))?;
        if lists
            .last_key_value()
            .is_some_and(|(last, _): (&String, _)| last.as_str() >= file)
        {
            return Err(lines.error("lists stand in the order of their names, each once".into()));
        }
        lists.insert(file.to_owned(), digest);
        if lists.len() > MAX_LISTS {
            return Err(lines.error(format!("more than {MAX_LISTS} lists")));
        }
        line = lines.next()?;
    }
    if kind != Kind::Policy && !lists.is_empty() {
        return Err(lines.error(format!("a statement of kind \"{}\" has no lists", kind.word())));
    }
    let length = line.strip_prefix("text: ").and_then(number);
    let length = length.and_then(|length| usize::try_from(length).ok());
    let length =
        length.ok_or_else(|| lines.error(format!("{} is not \"text: \" and its length", quoted(line))))?;
    if !lines.next()?.is_empty() {
        return Err(lines.error("a blank line stands between header and text".into()));
    }
    let text_line = lines.line + 1;
    let at_text = |message: String| StatementError {
        line: text_line,
        message,
    };
    let Some((text, rest)) = lines.rest.split_at_checked(length) else {
        return Err(at_text(format!(
            "the text has {} bytes, not the {length} of the header",
            lines.rest.len()
        )));
    };
    let text = std::str::from_utf8(text).map_err(|error| {
        at_text(format!(
            "the text is not UTF-8 from its byte {} on",
            error.valid_up_to()
        ))
    })?;
    check_text(kind, expires, text).map_err(at_text)?;
    lines.rest = rest;
    let statement = Statement {
        kind,
        name: name.to_owned(),
        nodes: nodes.to_owned(),
        version,
        issued,
        expires,
        lists,
        text: text.to_owned(),
    };
    // Each part has one form; this holds whatever a part forgets to check.
    if statement.to_bytes() != all[..all.len() - rest.len()] {
        return Err(at_text("it is not written the one way that is signed".into()));
    }
    Ok((statement, text_line))
}

/// The lines of a header: printable ASCII that ends in a line feed.
struct Lines<'a> {
    rest: &'a [u8],
    /// The last line that was read, from 1.
    line: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<&'a str, StatementError> {
        self.line += 1;
        let window = &self.rest[..self.rest.len().min(MAX_LINE + 1)];
        let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
            return Err(self.error(match self.rest.len() {
                0 => "it ends before its text".into(),
                length if length <= MAX_LINE => "it ends amid a line of its header".into(),
                _ => format!("a line of the header has at most {MAX_LINE} bytes"),
            }));
        };
        let line = &self.rest[..end];
        if let Some(at) = line.iter().position(|byte| !(b' '..=b'~').contains(byte)) {
            let byte = line[at];
            return Err(self.error(format!(
                "byte {byte:#04x} in column {}: headers are printable ASCII",
                at + 1
            )));
        }
        self.rest = &self.rest[end + 1..];
        // Printable ASCII is UTF-8.
        Ok(std::str::from_utf8(line).unwrap_or_default())
    }

    /// The value of the line `key: value`.
    fn field(&mut self, key: &str) -> Result<&'a str, StatementError> {
        let line = self.next()?;
        let value = line.strip_prefix(key).and_then(|rest| rest.strip_prefix(": "));
        value.ok_or_else(|| self.error(format!("{} stands where \"{key}: \" is expected", quoted(line))))
    }

    fn time(&mut self, key: &str) -> Result<Option<u64>, StatementError> {
        let value = self.field(key)?;
        if value == "never" {
            return Ok(None);
        }
        match read_time(value) {
            Some(seconds) => Ok(Some(seconds)),
            None => Err(self.error(format!(
                "{} is not a time such as 2026-11-22T10:30:00Z",
                quoted(value)
            ))),
        }
    }

    fn error(&self, message: String) -> StatementError {
        StatementError {
            line: self.line,
            message,
        }
    }
}

/// Of somebody else's bytes as much as a message bears.
fn quoted(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((at, _)) => format!("{:?}…", &text[..at]),
    }
}

/// Decimal, without sign and leading zeros.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// RFC 3339 in UTC by seconds, or `never`.
pub fn time(seconds: Option<u64>) -> String {
    let datetime = seconds.map(until::from_unix);
    match datetime {
        None => "never".into(),
        Some(Some(datetime)) => datetime.to_string(),
        // Past the year 9999; not read back.
        Some(None) => "too late".into(),
    }
}

fn read_time(text: &str) -> Option<u64> {
    let seconds = until::to_unix(&text.parse().ok()?)?;
    (time(Some(seconds)) == text).then_some(seconds)
}

fn check_name(kind: Kind, name: &str) -> Result<(), String> {
    match kind.subject() {
        Subject::Policy if source::is_name(name) => Ok(()),
        Subject::Policy => Err(format!(
            "{} cannot name a document; {}",
            quoted(name),
            source::NAME_HINT
        )),
        Subject::Ban => match prefix::parse(name) {
            Ok(parsed) if prefix::show(parsed.network) == name => Ok(()),
            Ok(parsed) => Err(format!(
                "a ban of {} is named {}",
                quoted(name),
                prefix::show(parsed.network)
            )),
            Err(error) => Err(error.to_string()),
        },
    }
}

/// The path of a list file is relative, stays below the directory of its document and has one form.
///
/// # Errors
/// What is wrong with it.
pub fn check_list_name(name: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/');
    if name.is_empty() || name.len() > MAX_LIST_NAME || !name.bytes().all(plain) {
        return Err(format!(
            "the list file {} is not named by 1 to {MAX_LIST_NAME} of letters, digits, \".\", \"_\", \"-\" and \"/\"",
            quoted(name)
        ));
    }
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!(
            "the list file {} is not a plain path below the document's directory",
            quoted(name)
        ));
    }
    Ok(())
}

fn check_text(kind: Kind, expires: Option<u64>, text: &str) -> Result<(), String> {
    match kind {
        Kind::Policy => {
            if text.is_empty() || !text.ends_with('\n') {
                return Err("the text of a document ends in a line feed".into());
            }
            if text.contains('\0') {
                return Err("the text holds a NUL".into());
            }
            if text.lines().any(|line| line.starts_with(signature::BEGIN)) {
                return Err("a line of the text looks like the start of a signature".into());
            }
            Ok(())
        }
        Kind::Delete if expires.is_some() => Err("a deletion does not expire".into()),
        Kind::Delete | Kind::Unban => match text {
            "" => Ok(()),
            _ => Err(format!("a statement of kind \"{}\" has no text", kind.word())),
        },
        Kind::Ban => match BanTerms::parse(text)?.until {
            until if until == expires => Ok(()),
            _ => Err("a ban expires when it ends".into()),
        },
    }
}

/// What the text of a ban says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BanTerms {
    /// Unix seconds; `None`: for good.
    pub until: Option<u64>,
    /// One line, may be empty.
    pub why: String,
}

impl BanTerms {
    pub fn to_text(&self) -> String {
        let until = time(self.until);
        match self.why.as_str() {
            "" => format!("until: {until}\n"),
            why => format!("until: {until}\nwhy: {why}\n"),
        }
    }

    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<BanTerms, String> {
        let wrong =
            || "a ban says \"until: \" with a time or never, then perhaps \"why: \" with one line".to_owned();
        let (until, why) = match text.strip_suffix('\n').ok_or_else(wrong)?.split_once('\n') {
            None => (text.trim_end(), ""),
            Some((until, why)) => (until, why.strip_prefix("why: ").ok_or_else(wrong)?),
        };
        let until = match until.strip_prefix("until: ").ok_or_else(wrong)? {
            "never" => None,
            time => Some(read_time(time).ok_or_else(wrong)?),
        };
        if why.chars().any(char::is_control) || why.chars().count() > MAX_WHY || why.trim() != why {
            return Err(format!(
                "the reason of a ban is one line of at most {MAX_WHY} characters"
            ));
        }
        let terms = BanTerms {
            until,
            why: why.to_owned(),
        };
        match terms.to_text() == text {
            true => Ok(terms),
            false => Err(wrong()),
        }
    }
}

/// A statement and its signature as they are stored, not yet believed.
#[derive(Clone, Debug)]
pub struct Envelope {
    bytes: Vec<u8>,
    /// Bytes of the statement, at the start.
    signed: usize,
    claims: Statement,
    signature: Signature,
}

impl Envelope {
    /// # Errors
    /// `too-large`, `malformed` or `unsigned`.
    pub fn parse(bytes: &[u8]) -> Result<Envelope, TrustError> {
        if bytes.len() > MAX_ENVELOPE {
            return Err(TrustError::TooLarge { bytes: bytes.len() });
        }
        let (claims, rest) = Statement::parse_front(bytes)?;
        if rest.is_empty() {
            return Err(TrustError::Unsigned);
        }
        Ok(Envelope {
            signed: bytes.len() - rest.len(),
            signature: Signature::parse(rest)?,
            bytes: bytes.to_owned(),
            claims,
        })
    }

    /// Joins what was signed and the signature, which is not verified here.
    ///
    /// # Errors
    /// As [`Envelope::parse`].
    pub fn seal(statement: &[u8], armored: &str) -> Result<Envelope, TrustError> {
        Envelope::parse(&[statement, armored.as_bytes()].concat())
    }

    /// As stored.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the signature is over.
    pub fn statement_bytes(&self) -> &[u8] {
        &self.bytes[..self.signed]
    }

    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// What it says, of which nothing is proven before [`super::Trust::verify`].
    pub fn claims(&self) -> &Statement {
        &self.claims
    }

    /// Of the statement: what tells one version from another. Signatures of one statement may differ.
    pub fn digest(&self) -> Digest {
        Digest::of(self.statement_bytes())
    }
}

#[cfg(test)]
mod tests;
