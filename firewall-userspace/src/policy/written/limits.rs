//! `[service.limits]`, `[[service.limit]]` and `[defaults.limits]` as written: their shape, not yet their meaning.

use super::super::diagnostic::Findings;
use super::super::limits::Kind;
use super::super::limits::text::{self, Scope};
use super::entries::{kind as kind_of, word};
use super::{Span, Word, known_keys};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A table of limits.
#[derive(Debug)]
pub struct Limits {
    /// Where the table begins: its header, or its brace.
    pub span: Span,
    /// By [`Kind`].
    pub kinds: [Option<Pair>; 4],
    pub v4: Option<Value>,
    pub v6: Option<Value>,
    pub on_excess: Option<Word>,
}

/// What is written under one kind.
#[derive(Debug, Default)]
pub struct Pair {
    pub per_source: Option<Value>,
    pub burst: Option<Value>,
    pub total: Option<Value>,
    pub total_burst: Option<Value>,
}

/// A number or a text.
#[derive(Clone, Debug)]
pub struct Value {
    pub content: Content,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum Content {
    Text(String),
    Number(u64),
}

/// A `[[service.limit]]`.
#[derive(Debug)]
pub struct Limit {
    /// Whom it is for; empty only next to an error.
    pub sources: Vec<Word>,
    pub limits: Limits,
}

const KEYS: [&str; 6] = [
    "new_connections",
    "packets",
    "bytes",
    "connections",
    "source",
    "on_excess",
];
const KEYS_OF_A_GROUP: [&str; 6] = [
    "for",
    "new_connections",
    "packets",
    "bytes",
    "connections",
    "on_excess",
];

/// Where a key belongs that does not stand among `known`, if it is one of limits.
pub(super) fn misplaced(name: &str, known: &[&str]) -> Option<&'static str> {
    let has = |key: &str| known.contains(&key);
    match name {
        "source" if has("for") => {
            Some("what counts as one source stands in [service.limits], for all of the service")
        }
        "for" if has("on_excess") => Some("limits for some sources begin with [[service.limit]]"),
        "burst" | "total_burst" if has("per_source") => Some("connections at the same time have no burst"),
        "rate" | "rates" | "ratelimit" | "rate_limit" if has("limits") => {
            Some("rates stand in [service.limits]")
        }
        name if has("limits") && KEYS.contains(&name) => {
            Some("limits stand in a table of their own: [service.limits]")
        }
        "new" | "connection_rate" | "syn" if has("new_connections") => {
            Some("did you mean \"new_connections\"?")
        }
        "concurrent" | "conns" if has("new_connections") => Some("did you mean \"connections\"?"),
        _ => None,
    }
}

/// `limits` of a service or of the defaults; `of` is the header of the table.
pub(super) fn read_limits(
    limits: &Spanned<DeValue<'_>>,
    of: &str,
    findings: &mut Findings<'_>,
) -> Option<Limits> {
    let DeValue::Table(table) = limits.get_ref() else {
        let message = format!("\"limits\" is {}, not a table", kind_of(limits.get_ref()));
        let hint = match limits.get_ref() {
            DeValue::Array(_) if of == "service.limits" => {
                "there is one [service.limits]; limits for some sources begin with [[service.limit]]"
                    .to_owned()
            }
            _ => format!("write [{of}], and packets = {{ per_source = \"20k/s\" }} below it"),
        };
        findings.error(&limits.span(), message, Some(hint));
        return None;
    };
    known_keys(table, &format!("[{of}]"), &KEYS, findings);
    Some(read_table(table, limits.span(), findings))
}

/// `[[service.limit]]`.
pub(super) fn read_limit(limit: &Spanned<DeValue<'_>>, findings: &mut Findings<'_>) -> Option<Limit> {
    let DeValue::Table(table) = limit.get_ref() else {
        let message = format!("a limit is {}, not a table", kind_of(limit.get_ref()));
        findings.error(&limit.span(), message, Some(FOR_HINT.into()));
        return None;
    };
    known_keys(table, "a [[service.limit]]", &KEYS_OF_A_GROUP, findings);
    let sources = match table.get("for") {
        Some(value) => read_for(value, findings),
        None => {
            let hint = "write for = \"@group\"; limits for everybody stand in [service.limits]";
            findings.error(
                &limit.span(),
                "this limit does not say for whom",
                Some(hint.into()),
            );
            Vec::new()
        }
    };
    Some(Limit {
        sources,
        limits: read_table(table, limit.span(), findings),
    })
}

const FOR_HINT: &str = "write [[service.limit]], and for = \"@group\" below it";

fn read_for(value: &Spanned<DeValue<'_>>, findings: &mut Findings<'_>) -> Vec<Word> {
    let one = std::slice::from_ref(value);
    let items = match value.get_ref() {
        DeValue::Array(items) => &items[..],
        _ => one,
    };
    if items.is_empty() {
        let hint = "write for = \"@group\", for = \"PREFIX\", or a list of both";
        findings.error(&value.span(), "\"for\" is empty", Some(hint.into()));
    }
    let mut words = Vec::new();
    for item in items {
        if let DeValue::Table(_) = item.get_ref() {
            let hint = "name its source here, and keep its end in \"allow\"";
            findings.error(
                &item.span(),
                "a temporary entry cannot stand in \"for\"",
                Some(hint.into()),
            );
            continue;
        }
        words.extend(word(item, "for", findings));
    }
    words
}

fn read_table(table: &DeTable<'_>, span: Span, findings: &mut Findings<'_>) -> Limits {
    let kinds = Kind::ALL.map(|kind| read_pair(kind, table.get(kind.key())?, findings));
    let (mut v4, mut v6) = (None, None);
    if let Some(source) = table.get("source") {
        match source.get_ref() {
            DeValue::Table(lengths) => {
                known_keys(lengths, "source", &["v4", "v6"], findings);
                let mut length = |key| value(lengths.get(key)?, key, "a number of bits", "24", findings);
                (v4, v6) = (length("v4"), length("v6"));
            }
            other => findings.error(
                &source.span(),
                format!("\"source\" is {}, not a table", kind_of(other)),
                Some("write source = { v4 = 32, v6 = 64 }".into()),
            ),
        }
    }
    let on_excess = table.get("on_excess");
    Limits {
        span,
        kinds,
        v4,
        v6,
        on_excess: on_excess.and_then(|value| word(value, "on_excess", findings)),
    }
}

/// How a pair of limits of this kind is written.
fn example(kind: Kind) -> &'static str {
    match kind {
        Kind::NewConnections => "{ per_source = \"50/s\", burst = 100, total = \"5000/s\" }",
        Kind::Packets => "{ per_source = \"20k/s\", total = \"500k/s\" }",
        Kind::Bytes => "{ per_source = \"10MB/s\", total = \"100MB/s\" }",
        Kind::Connections => "{ per_source = 200, total = 20000 }",
    }
}

/// What stands alone where a table belongs, as one limit of it.
fn meant(kind: Kind, text: &str) -> Option<String> {
    if kind == Kind::Connections {
        return text::connections(text).ok().map(|number| number.to_string());
    }
    let is_good = |text: &str| text::rate(text, kind, Scope::Source).is_ok();
    let meant = match is_good(text) {
        true => Some(text.to_owned()),
        false => text::with_unit(text, kind, "/s", &is_good),
    };
    meant.map(|rate| format!("\"{rate}\""))
}

fn read_pair(kind: Kind, pair: &Spanned<DeValue<'_>>, findings: &mut Findings<'_>) -> Option<Pair> {
    let key = kind.key();
    let unlimited = |span: Span| Value {
        content: Content::Text(UNLIMITED.to_owned()),
        span,
    };
    let table = match pair.get_ref() {
        DeValue::Table(table) => table,
        DeValue::String(text) if text == UNLIMITED => {
            return Some(Pair {
                per_source: Some(unlimited(pair.span())),
                total: Some(unlimited(pair.span())),
                ..Pair::default()
            });
        }
        other => {
            let meant = match other {
                DeValue::String(text) => meant(kind, text),
                DeValue::Integer(number) if number.radix() == 10 => meant(kind, number.as_str()),
                _ => None,
            };
            let hint = match (meant, other) {
                (Some(meant), _) => {
                    format!("write {key} = {{ per_source = {meant} }}, or total = {meant}")
                }
                (None, DeValue::String(text)) if text::means_unlimited(text) => {
                    format!("write {key} = \"{UNLIMITED}\", or {key} = {}", example(kind))
                }
                _ => format!("write {key} = {}", example(kind)),
            };
            let message = format!("\"{key}\" is {}, not a table", kind_of(other));
            findings.error(&pair.span(), message, Some(hint));
            return None;
        }
    };
    let known: &[&'static str] = match kind {
        Kind::Connections => &["per_source", "total"],
        _ => &["per_source", "burst", "total", "total_burst"],
    };
    known_keys(table, key, known, findings);
    if table.is_empty() {
        let hint = format!("write {key} = {}", example(kind));
        findings.error(&pair.span(), format!("\"{key}\" says nothing"), Some(hint));
    }
    let (limit, limit_example) = match kind {
        Kind::Connections => ("a number", "200"),
        _ => (
            "a rate",
            if kind == Kind::Bytes {
                "\"10MB/s\""
            } else {
                "\"50/s\""
            },
        ),
    };
    let (burst, burst_example) = match kind {
        Kind::Bytes => ("a size", "\"1MB\""),
        _ => ("a number", "100"),
    };
    let mut get = |key: &str, what, example| {
        table
            .get(key)
            .filter(|_| known.contains(&key))
            .and_then(|given| value(given, key, what, example, findings))
    };
    Some(Pair {
        per_source: get("per_source", limit, limit_example),
        burst: get("burst", burst, burst_example),
        total: get("total", limit, limit_example),
        total_burst: get("total_burst", burst, burst_example),
    })
}

/// What takes a default away.
pub const UNLIMITED: &str = "unlimited";

/// A number or a text, of which `what` is expected.
fn value(
    given: &Spanned<DeValue<'_>>,
    key: &str,
    what: &str,
    example: &str,
    findings: &mut Findings<'_>,
) -> Option<Value> {
    let span = given.span();
    let content = match given.get_ref() {
        DeValue::String(text) => Content::Text(text.to_string()),
        DeValue::Integer(number) => match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Content::Number(number),
            Err(_) if number.as_str().starts_with('-') => {
                let message = format!("\"{key}\" is negative, not {what}");
                findings.error(&span, message, Some(format!("write {key} = {example}")));
                return None;
            }
            Err(_) => {
                let message = format!("the number of \"{key}\" is too large");
                findings.error(&span, message, Some(format!("write {key} = {example}")));
                return None;
            }
        },
        other => {
            let message = format!("\"{key}\" is {}, not {what}", kind_of(other));
            findings.error(&span, message, Some(format!("write {key} = {example}")));
            return None;
        }
    };
    Some(Value { content, span })
}
