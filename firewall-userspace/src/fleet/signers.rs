//! Whose signatures count: the file `allowed_signers` of OpenSSH (ssh-keygen(1), ALLOWED SIGNERS).
//!
//! A line names principals, options and a key. A key signs statements as its principals, which roles are given to; as
//! `node:NAME` it signs the registration of that node and nothing else. What is not understood refuses the whole file with
//! its line: half a list of keys would be a silent answer to a typing error. Absent on purpose: certificates, and times
//! without `Z`, which would mean another moment on each node.

use super::pattern;
use super::signature::{self, Signature};
use super::{TrustError, statement};
use crate::policy::until;
use ssh_key::PublicKey;
use ssh_key::public::KeyData;
use std::path::{Path, PathBuf};

/// What principals of nodes begin with.
pub const NODE_PREFIX: &str = "node:";
/// Bytes of the file at most.
const MAX_FILE: u64 = 4 << 20;

/// The keys that count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signers {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    line: usize,
    /// Patterns, as the file has them.
    principals: Vec<String>,
    /// Patterns; empty: all.
    namespaces: Vec<String>,
    valid_after: Option<u64>,
    valid_before: Option<u64>,
    key: KeyData,
}

/// Why a file of signers was refused.
#[derive(Debug, thiserror::Error)]
pub enum SignersError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}: {message}", path.display())]
    Line {
        path: PathBuf,
        line: usize,
        message: String,
    },
    #[error("{}: no line of it names a key, so nothing could be signed", .0.display())]
    Empty(PathBuf),
}

impl Signers {
    /// # Errors
    /// What keeps the file from being read or used.
    pub fn read(path: &Path) -> Result<Signers, SignersError> {
        let text = super::read_small(path, MAX_FILE).map_err(|source| SignersError::Read {
            path: path.to_owned(),
            source,
        })?;
        Signers::parse(&text, path)
    }

    /// # Errors
    /// The first line that is not understood.
    pub fn parse(text: &str, path: &Path) -> Result<Signers, SignersError> {
        let mut entries = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim_matches([' ', '\t', '\r']);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let number = index + 1;
            entries.push(entry(line, number).map_err(|message| SignersError::Line {
                path: path.to_owned(),
                line: number,
                message,
            })?);
        }
        match entries.is_empty() {
            true => Err(SignersError::Empty(path.to_owned())),
            false => Ok(Signers { entries }),
        }
    }

    /// The principals as which the key of `signature` may sign statements at `now`; without a time, as which it ever may.
    /// The signature itself is not looked at.
    ///
    /// # Errors
    /// `unknown-signer`.
    pub fn operator(&self, signature: &Signature, now: Option<u64>) -> Result<Vec<String>, TrustError> {
        let entries = self.entries_of(signature, signature::POLICY, now)?;
        let names: Vec<String> = entries
            .iter()
            .flat_map(|entry| &entry.principals)
            .filter(|name| !name.starts_with('!') && !name.starts_with(NODE_PREFIX))
            .cloned()
            .collect();
        match names.is_empty() {
            true => Err(unknown(signature, "is a node's, which signs no policies")),
            false => Ok(names),
        }
    }

    /// Whether the key of `signature` may sign the registration of the node `name` at `now`. The signature itself is not
    /// looked at.
    ///
    /// # Errors
    /// `unknown-signer`.
    pub fn node(&self, signature: &Signature, name: &str, now: Option<u64>) -> Result<(), TrustError> {
        let principal = format!("{NODE_PREFIX}{name}");
        // `*` stands for all operators, not for all nodes as well.
        let named = |entry: &Entry| {
            let patterns = entry.principals.iter().map(String::as_str);
            pattern::list_fits(
                patterns.filter(|pattern| pattern.trim_start_matches('!').starts_with(NODE_PREFIX)),
                &principal,
            )
        };
        match self
            .entries_of(signature, signature::NODE, now)?
            .into_iter()
            .any(named)
        {
            true => Ok(()),
            false => Err(unknown(signature, &format!("is not that of {principal}"))),
        }
    }

    /// The lines of this key that hold for the namespace and the time.
    fn entries_of(
        &self,
        signature: &Signature,
        namespace: &str,
        now: Option<u64>,
    ) -> Result<Vec<&Entry>, TrustError> {
        let mut refused = "is not among the allowed signers".to_owned();
        let mut found = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.key == *signature.key()) {
            let namespaces = entry.namespaces.iter().map(String::as_str);
            if !entry.namespaces.is_empty() && !pattern::list_fits(namespaces, namespace) {
                refused = format!("may sign only in the namespaces {}", entry.namespaces.join(","));
            } else if let (Some(after), Some(now)) = (entry.valid_after, now)
                && now < after
            {
                refused = format!("may sign from {} on", statement::time(Some(after)));
            } else if let (Some(before), Some(now)) = (entry.valid_before, now)
                && now >= before
            {
                refused = format!("might sign until {}", statement::time(Some(before)));
            } else {
                found.push(entry);
            }
        }
        match found.is_empty() {
            true => Err(unknown(signature, &refused)),
            false => Ok(found),
        }
    }
}

fn unknown(signature: &Signature, why: &str) -> TrustError {
    TrustError::UnknownSigner {
        fingerprint: signature.fingerprint(),
        why: why.to_owned(),
    }
}

/// Options of a line, as they come to be known.
#[derive(Default)]
struct Options {
    namespaces: Vec<String>,
    valid_after: Option<u64>,
    valid_before: Option<u64>,
}

fn entry(line: &str, number: usize) -> Result<Entry, String> {
    if key(line).is_some() {
        return Err(
            "no principals stand before the key: a line begins with whose it is, such as alice@example.org"
                .into(),
        );
    }
    let (principals, rest) = word(line)?;
    let principals = list(&unquoted(principals), "principals")?;
    let (options, key) = match key(rest) {
        Some(key) => (Options::default(), key?),
        None => {
            let (options, behind) = word(rest)?;
            let key = key(behind).unwrap_or_else(|| {
                let shown: String = rest.chars().take(30).collect();
                Err(format!(
                    "{shown:?} is no key: a line is written \"PRINCIPALS [OPTIONS] TYPE KEY\", such as \
                     \"alice@example.org namespaces=\\\"ravelin-policy\\\" ssh-ed25519 AAAA...\""
                ))
            })?;
            (read_options(options)?, key)
        }
    };
    Ok(Entry {
        line: number,
        principals,
        namespaces: options.namespaces,
        valid_after: options.valid_after,
        valid_before: options.valid_before,
        key,
    })
}

/// The first word, with its quotes, and what follows its blanks.
fn word(text: &str) -> Result<(&str, &str), String> {
    let mut quoted = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b' ' | b'\t' if !quoted => return Ok((&text[..at], text[at..].trim_start_matches([' ', '\t']))),
            _ => {}
        }
    }
    match quoted {
        true => Err("a quotation mark is never closed".into()),
        false => Ok((text, "")),
    }
}

fn unquoted(text: &str) -> String {
    text.chars().filter(|&char| char != '"').collect()
}

/// What stands between the quotation marks that OpenSSH wants around a value.
fn dequoted(name: &str, value: &str) -> Result<String, String> {
    let inner = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    match inner.filter(|inner| !inner.contains(['"', '\\'])) {
        Some(inner) => Ok(inner.to_owned()),
        None => Err(format!(
            "option {name}: its value stands in quotation marks, {name}=\"...\""
        )),
    }
}

fn list(text: &str, what: &str) -> Result<Vec<String>, String> {
    let items: Vec<String> = text.split(',').map(str::to_owned).collect();
    if items.iter().any(|item| item.trim_start_matches('!').is_empty()) {
        return Err(format!("an empty word among the {what}"));
    }
    if let Some(odd) = items
        .iter()
        .find(|item| !item.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        return Err(format!("{odd:?} among the {what} is not plain ASCII"));
    }
    Ok(items)
}

/// `None` if `text` does not begin with the name of a key type.
fn key(text: &str) -> Option<Result<KeyData, String>> {
    let kind = text.split([' ', '\t']).next().unwrap_or_default();
    let named = ["ssh-", "ecdsa-", "sk-", "webauthn-"]
        .iter()
        .any(|start| kind.starts_with(start));
    if !named || kind.contains('=') {
        return None;
    }
    if kind.contains("-cert-v") {
        return Some(Err(format!(
            "{kind}: certificates are not supported, only the keys themselves"
        )));
    }
    let key = match PublicKey::from_openssh(text) {
        Ok(key) => key.key_data().clone(),
        Err(error) => return Some(Err(format!("the key of type {kind} cannot be read: {error}"))),
    };
    if let KeyData::Rsa(rsa) = &key {
        const LEAST: usize = 2048;
        const MOST: usize = 4096;
        let bits = rsa.n.as_positive_bytes().map_or(0, <[u8]>::len) * 8;
        if !(LEAST..=MOST).contains(&bits) {
            return Some(Err(format!(
                "an RSA key of {bits} bits; {LEAST} to {MOST} are accepted"
            )));
        }
    }
    if signature::signature_algorithms(&key).is_empty() {
        return Some(Err(format!(
            "keys of type {kind} are not accepted (ssh-ed25519, ecdsa-sha2-nistp256, -nistp384, -nistp521, ssh-rsa, \
             sk-ssh-ed25519@openssh.com, sk-ecdsa-sha2-nistp256@openssh.com)"
        )));
    }
    Some(Ok(key))
}

fn read_options(text: &str) -> Result<Options, String> {
    let mut options = Options::default();
    let mut rest = text;
    while !rest.is_empty() {
        let (option, next) = option(rest);
        rest = next;
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(dequoted(name, value)?)),
            None => (option, None),
        };
        let value = |what: &str| value.clone().ok_or_else(|| format!("option {name} needs {what}"));
        let twice = |given: bool| match given {
            true => Err(format!("option {name} stands twice")),
            false => Ok(()),
        };
        match name.to_ascii_lowercase().as_str() {
            "namespaces" => {
                twice(!options.namespaces.is_empty())?;
                options.namespaces = list(
                    &value("a list, such as namespaces=\"ravelin-policy\"")?,
                    "namespaces",
                )?;
            }
            "valid-after" => {
                twice(options.valid_after.is_some())?;
                options.valid_after = Some(moment(&value("a time")?)?);
            }
            "valid-before" => {
                twice(options.valid_before.is_some())?;
                options.valid_before = Some(moment(&value("a time")?)?);
            }
            "cert-authority" => {
                return Err(
                    "option cert-authority: certificates are not supported; list the keys that sign themselves".into(),
                );
            }
            _ => {
                return Err(format!(
                    "option {name:?} is not known (namespaces, valid-after, valid-before)"
                ));
            }
        }
    }
    if let (Some(after), Some(before)) = (options.valid_after, options.valid_before)
        && before <= after
    {
        return Err("valid-before is not later than valid-after".into());
    }
    Ok(options)
}

/// The first of options with commas between, and the others.
fn option(text: &str) -> (&str, &str) {
    let mut quoted = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b',' if !quoted => return (&text[..at], &text[at + 1..]),
            _ => {}
        }
    }
    (text, "")
}

/// `YYYYMMDDZ`, `YYYYMMDDHHMMZ` or `YYYYMMDDHHMMSSZ`.
fn moment(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a time such as 20270101Z or 202701011530Z");
    let Some(digits) = text.strip_suffix('Z') else {
        return Err(match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => format!(
                "the time {text} has no time zone, so it would be another moment on each node: write {text}Z, in UTC"
            ),
            false => wrong(),
        });
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) || !matches!(digits.len(), 8 | 12 | 14) {
        return Err(wrong());
    }
    let full = format!("{digits:0<14}");
    let part = |range: std::ops::Range<usize>| &full[range];
    let written = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0..4),
        part(4..6),
        part(6..8),
        part(8..10),
        part(10..12),
        part(12..14)
    );
    written
        .parse()
        .ok()
        .as_ref()
        .and_then(until::to_unix)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests;
