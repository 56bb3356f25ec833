//! Which nodes something is meant for: labels of a node, and conditions on them, all of which must hold.
//!
//! `role=payments, zone!=eu-1` · `zone in (eu-1, eu-2)` · `zone notin (eu-1)` · `gpu` · `!canary` · `*` for every node.
//! The label `name` is the node's own name. As in Kubernetes, `key!=value` and `key notin (..)` also hold on a node that
//! has no such label: who wants the label to be there says so, `zone, zone!=eu-1`.
//!
//! Nothing selects by accident: an empty text is refused, every node is written `*`. What is absent on purpose: "or"
//! beyond one label, patterns, order.

use serde::{Deserialize, Serialize};
use std::collections::btree_map;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// The label that every node has: its name.
pub const NAME: &str = "name";

/// Characters of a label's key at most.
const MAX_KEY: usize = 63;
/// Characters of a value at most: those of a host name.
const MAX_VALUE: usize = 253;
/// Labels of a node at most, its name included.
const MAX_LABELS: usize = 64;
/// Bytes of a selector at most.
const MAX_TEXT: usize = 64 << 10;

/// The labels of a node, `name` among them. Each key and value is well-formed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    #[error(
        "\"{0}\" cannot name a node (letters, digits, \".\", \"_\" and \"-\", beginning with a letter or a digit, {MAX_VALUE} at most)"
    )]
    Node(String),
    #[error("the label \"name\" is the name of the node, \"{node}\", and cannot be \"{label}\"")]
    Name { node: String, label: String },
    #[error("a node without a name")]
    Nameless,
    #[error(
        "\"{0}\" cannot be the key of a label (letters, digits, \".\", \"_\", \"-\" and \"/\", beginning with a letter or a digit, {MAX_KEY} at most)"
    )]
    Key(String),
    #[error(
        "label \"{key}\": \"{value}\" cannot be a value (letters, digits, \".\", \"_\", \"-\", \"/\", \":\", \"@\" and \"+\", beginning with a letter or a digit, {MAX_VALUE} at most)"
    )]
    Value { key: String, value: String },
    #[error("{0} labels, more than {MAX_LABELS}")]
    TooMany(usize),
}

impl Labels {
    /// The labels of the node `node`; the label `name` need not be among `labels`.
    ///
    /// # Errors
    /// A name, key or value that is not well-formed, a label `name` that is another than the node's, too many labels.
    pub fn new(node: &str, labels: impl IntoIterator<Item = (String, String)>) -> Result<Labels, LabelError> {
        let mut all: BTreeMap<String, String> = labels.into_iter().collect();
        match all.get(NAME) {
            Some(label) if label != node => {
                return Err(LabelError::Name {
                    node: node.to_owned(),
                    label: label.clone(),
                });
            }
            _ => all.insert(NAME.to_owned(), node.to_owned()),
        };
        Labels::try_from(all)
    }

    /// The name of the node.
    pub fn node(&self) -> &str {
        &self.0[NAME]
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// By key.
    pub fn iter(&self) -> btree_map::Iter<'_, String, String> {
        self.0.iter()
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = LabelError;

    fn try_from(labels: BTreeMap<String, String>) -> Result<Labels, LabelError> {
        let node = labels.get(NAME).ok_or(LabelError::Nameless)?;
        if !is_node_name(node) {
            return Err(LabelError::Node(node.clone()));
        }
        if labels.len() > MAX_LABELS {
            return Err(LabelError::TooMany(labels.len()));
        }
        for (key, value) in &labels {
            if !is_key(key) {
                return Err(LabelError::Key(key.clone()));
            }
            if !is_value(value) {
                return Err(LabelError::Value {
                    key: key.clone(),
                    value: value.clone(),
                });
            }
        }
        Ok(Labels(labels))
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

impl fmt::Display for Labels {
    /// Without the name: `role=payments, zone=eu-1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others = self.0.iter().filter(|(key, _)| *key != NAME);
        for (at, (key, value)) in others.enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

/// Whether a text can name a node: it is part of keys in the store and a label of metrics.
pub fn is_node_name(text: &str) -> bool {
    is_plain(text, MAX_VALUE, b"._-")
}

fn is_key(text: &str) -> bool {
    is_plain(text, MAX_KEY, b"._-/")
}

fn is_value(text: &str) -> bool {
    is_plain(text, MAX_VALUE, b"._-/:@+")
}

/// Letters, digits and `others`, beginning with a letter or a digit.
fn is_plain(text: &str, most: usize, others: &[u8]) -> bool {
    let bytes = text.as_bytes();
    (1..=most).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || others.contains(byte))
}

/// Which nodes: all conditions hold. Without a condition every node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector(Vec<Condition>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Condition {
    key: String,
    wants: Wants,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Wants {
    Any,
    None,
    /// The label is there with one of these values. Not empty.
    In(BTreeSet<String>),
    /// The label has none of these values, or is not there. Not empty.
    NotIn(BTreeSet<String>),
}

impl Wants {
    fn holds(&self, value: Option<&str>) -> bool {
        match (self, value) {
            (Wants::Any, value) => value.is_some(),
            (Wants::None, value) => value.is_none(),
            (Wants::In(values), Some(value)) => values.contains(value),
            (Wants::In(_), None) => false,
            (Wants::NotIn(values), Some(value)) => !values.contains(value),
            (Wants::NotIn(_), None) => true,
        }
    }
}

/// What is wrong with a selector, and with which bytes of its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SelectorError {
    pub message: String,
    pub at: Range<usize>,
    pub hint: String,
}

const FORMS: &str = "write \"role=payments\", \"zone!=eu-1\", \"zone in (eu-1, eu-2)\", \"zone notin (eu-1)\", \"gpu\", \
                     \"!canary\", several with commas between, or \"*\" for every node";

impl Selector {
    /// Every node.
    pub fn every() -> Selector {
        Selector(Vec::new())
    }

    /// Reads a selector.
    ///
    /// # Errors
    /// The first thing that is wrong, with the forms that are accepted.
    pub fn parse(text: &str) -> Result<Selector, SelectorError> {
        if text.len() > MAX_TEXT {
            return Err(error(0..0, format!("a selector of more than {MAX_TEXT} bytes")));
        }
        let pieces = split(text)?;
        if let [(_, "")] = pieces[..] {
            let found = error(0..text.len(), "a selector without a condition");
            return Err(SelectorError {
                hint: "every node is written \"*\"".into(),
                ..found
            });
        }
        if let [(_, "*")] = pieces[..] {
            return Ok(Selector::every());
        }
        let conditions = pieces.into_iter().map(|(at, piece)| condition(at, piece));
        Ok(Selector(conditions.collect::<Result<_, _>>()?))
    }

    /// Whether a node with these labels is meant.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0
            .iter()
            .all(|condition| condition.wants.holds(labels.get(&condition.key)))
    }

    /// Whether any node could be meant by both. Exact: if so, there are labels that both match.
    pub fn may_overlap(&self, other: &Selector) -> bool {
        self.contradiction_with(other).is_none()
    }

    /// The key whose conditions leave no node.
    pub fn contradiction(&self) -> Option<&str> {
        self.contradiction_with(self)
    }

    /// Conditions on different keys never contradict each other, so each key is looked at for itself. Values are as
    /// good as endless: those that are excluded never exhaust them.
    fn contradiction_with<'a>(&'a self, other: &'a Selector) -> Option<&'a str> {
        let mut by_key: BTreeMap<&str, Vec<&Wants>> = BTreeMap::new();
        for condition in self.0.iter().chain(&other.0) {
            by_key.entry(&condition.key).or_default().push(&condition.wants);
        }
        let possible = |key: &str, wants: &[&Wants]| {
            let holds = |value| wants.iter().all(|wants| wants.holds(value));
            // Every node has a name.
            if key != NAME && holds(None) {
                return true;
            }
            let narrowest = wants.iter().find_map(|wants| match wants {
                Wants::In(values) => Some(values),
                _ => None,
            });
            match narrowest {
                Some(values) => values.iter().any(|value| holds(Some(value))),
                None => !wants.iter().any(|wants| matches!(wants, Wants::None)),
            }
        };
        by_key
            .into_iter()
            .find(|(key, wants)| !possible(key, wants))
            .map(|(key, _)| key)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Selector, SelectorError> {
        Selector::parse(text)
    }
}

impl TryFrom<String> for Selector {
    type Error = SelectorError;

    fn try_from(text: String) -> Result<Selector, SelectorError> {
        Selector::parse(&text)
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> String {
        selector.to_string()
    }
}

impl fmt::Display for Selector {
    /// One form for one meaning of each condition; it reads back as the same selector.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("*");
        }
        for (at, Condition { key, wants }) in self.0.iter().enumerate() {
            f.write_str(if at > 0 { ", " } else { "" })?;
            match wants {
                Wants::Any => f.write_str(key)?,
                Wants::None => write!(f, "!{key}")?,
                Wants::In(values) => listed(f, key, "=", "in", values)?,
                Wants::NotIn(values) => listed(f, key, "!=", "notin", values)?,
            }
        }
        Ok(())
    }
}

fn listed(
    f: &mut fmt::Formatter<'_>,
    key: &str,
    sign: &str,
    word: &str,
    values: &BTreeSet<String>,
) -> fmt::Result {
    let texts: Vec<&str> = values.iter().map(String::as_str).collect();
    match texts[..] {
        [value] => write!(f, "{key}{sign}{value}"),
        _ => write!(f, "{key} {word} ({})", texts.join(", ")),
    }
}

fn error(at: Range<usize>, message: impl Into<String>) -> SelectorError {
    SelectorError {
        message: message.into(),
        at,
        hint: FORMS.into(),
    }
}

/// The pieces between commas outside of parentheses, without spaces around, each with where it starts.
fn split(text: &str) -> Result<Vec<(usize, &str)>, SelectorError> {
    let mut pieces = Vec::new();
    let (mut start, mut open) = (0, None);
    for (at, c) in text.char_indices() {
        match (c, open) {
            ('(', None) => open = Some(at),
            (')', Some(_)) => open = None,
            ('(', Some(_)) | (')', None) => {
                return Err(error(at..at + 1, format!("a \"{c}\" too many")));
            }
            (',', None) => {
                pieces.push(trimmed(start, &text[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    if let Some(at) = open {
        return Err(error(at..at + 1, "a \"(\" that is not closed"));
    }
    pieces.push(trimmed(start, &text[start..]));
    Ok(pieces)
}

fn trimmed(at: usize, piece: &str) -> (usize, &str) {
    let ahead = piece.len() - piece.trim_start().len();
    (at + ahead, piece.trim())
}

/// One condition; `at` is where it starts.
fn condition(at: usize, piece: &str) -> Result<Condition, SelectorError> {
    let whole = at..at + piece.len();
    if piece.is_empty() {
        return Err(error(whole, "a condition is missing beside this comma"));
    }
    if piece == "*" {
        return Err(error(whole, "\"*\" stands for every node, and stands alone"));
    }
    if let Some((before, values)) = piece.split_once('(') {
        return in_list(at, piece, before, values);
    }
    if let Some((key, value)) = piece.split_once("!=") {
        let wants = Wants::NotIn(BTreeSet::from([one_value(at, piece, key, value)?]));
        return Ok(Condition {
            key: key.trim().to_owned(),
            wants,
        });
    }
    if let Some((key, value)) = piece.split_once('=') {
        // Two signs are the habit of many.
        let value = value.strip_prefix('=').unwrap_or(value);
        let wants = Wants::In(BTreeSet::from([one_value(at, piece, key, value)?]));
        return Ok(Condition {
            key: key.trim().to_owned(),
            wants,
        });
    }
    let (key, wants) = match piece.strip_prefix('!') {
        Some(key) => (key.trim(), Wants::None),
        None => (piece, Wants::Any),
    };
    Ok(Condition {
        key: checked_key(&whole, key)?,
        wants,
    })
}

/// `key in (a, b)`, `key notin (a, b)`, split at the parenthesis.
fn in_list(at: usize, piece: &str, before: &str, values: &str) -> Result<Condition, SelectorError> {
    let whole = at..at + piece.len();
    let Some((values, "")) = values.split_once(')') else {
        return Err(error(whole, format!("\"{piece}\" goes on behind its values")));
    };
    let words: Vec<&str> = before.split_whitespace().collect();
    let (key, among) = match words[..] {
        [key, "in"] => (key, true),
        [key, "notin"] | [key, "not", "in"] => (key, false),
        _ => {
            let message = format!("\"{piece}\" says neither \"in\" nor \"notin\" of a label");
            return Err(error(whole, message));
        }
    };
    let key = checked_key(&whole, key)?;
    let values: Vec<&str> = values.split(',').map(str::trim).collect();
    if let [""] = values[..] {
        return Err(error(whole, format!("\"{piece}\" has no values")));
    }
    let values = values.into_iter().map(|value| checked_value(&whole, &key, value));
    let values = values.collect::<Result<_, _>>()?;
    let wants = if among {
        Wants::In(values)
    } else {
        Wants::NotIn(values)
    };
    Ok(Condition { key, wants })
}

fn one_value(at: usize, piece: &str, key: &str, value: &str) -> Result<String, SelectorError> {
    let whole = at..at + piece.len();
    let key = checked_key(&whole, key.trim())?;
    checked_value(&whole, &key, value.trim())
}

fn checked_key(at: &Range<usize>, key: &str) -> Result<String, SelectorError> {
    if is_key(key) {
        return Ok(key.to_owned());
    }
    let found = error(at.clone(), format!("\"{key}\" cannot be the key of a label"));
    if key.contains("||") || key.contains(" or ") {
        return Err(SelectorError {
            hint:
                "several values of one label are written \"zone in (eu-1, eu-2)\"; there is no other \"or\""
                    .into(),
            ..found
        });
    }
    Err(found)
}

fn checked_value(at: &Range<usize>, key: &str, value: &str) -> Result<String, SelectorError> {
    if value.is_empty() {
        return Err(error(at.clone(), format!("a value of \"{key}\" is missing")));
    }
    if key == NAME && !is_node_name(value) {
        return Err(error(at.clone(), format!("\"{value}\" cannot name a node")));
    }
    if !is_value(value) {
        let found = error(at.clone(), format!("\"{value}\" cannot be the value of a label"));
        let hint = match value.contains('*') {
            true => "values are compared whole: there are no patterns".to_owned(),
            false if value.contains("||") || value.contains(" or ") => {
                format!("several values are written \"{key} in (a, b)\"")
            }
            false if value.contains("&&") || value.contains(" and ") => {
                "conditions are separated by commas".to_owned()
            }
            false => found.hint.clone(),
        };
        return Err(SelectorError { hint, ..found });
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests;
