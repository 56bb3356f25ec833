//! The entries of allow and deny lists, and single words.

use super::super::diagnostic::Findings;
use super::super::until;
use super::{Entry, Word, known_keys};
use toml::Spanned;
use toml::de::DeValue;

/// An allow or deny list.
pub(super) fn entries(list: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings<'_>) -> Vec<Entry> {
    let DeValue::Array(items) = list.get_ref() else {
        let hint = match list.get_ref() {
            DeValue::String(text) => format!("write {key} = [\"{text}\"]"),
            _ => format!("write {key} = [\"@group\", \"PREFIX\"]"),
        };
        findings.error(
            &list.span(),
            format!("\"{key}\" is {}, not a list", kind(list.get_ref())),
            Some(hint),
        );
        return Vec::new();
    };
    items.iter().filter_map(|item| entry(item, findings)).collect()
}

const TEMPORARY: &str = "a temporary entry is { source = \"203.0.113.9\", until = 2026-11-22T05:00:00Z }";

fn entry(item: &Spanned<DeValue<'_>>, findings: &mut Findings<'_>) -> Option<Entry> {
    let span = item.span();
    let DeValue::Table(table) = item.get_ref() else {
        return word(item, "an entry", findings).map(|source| Entry {
            source,
            until: None,
            span,
        });
    };
    known_keys(table, "a temporary entry", &["source", "until"], findings);
    let (Some(source), Some(until)) = (table.get("source"), table.get("until")) else {
        let missing = if table.contains_key("source") {
            "until"
        } else {
            "source"
        };
        findings.error(
            &span,
            format!("a temporary entry without \"{missing}\""),
            Some(TEMPORARY.into()),
        );
        return None;
    };
    let end = match until.get_ref() {
        DeValue::Datetime(at) => until::to_unix(at),
        _ => None,
    };
    if end.is_none() {
        let message = "\"until\" is not a date with time and offset";
        findings.error(
            &until.span(),
            message,
            Some("write a time such as 2026-11-22T05:00:00Z".into()),
        );
    }
    let source = word(source, "source", findings)?;
    Some(Entry {
        source,
        until: Some(end?),
        span,
    })
}

pub(super) fn word(value: &Spanned<DeValue<'_>>, what: &str, findings: &mut Findings<'_>) -> Option<Word> {
    match value.get_ref() {
        DeValue::String(text) => Some(Word {
            text: text.to_string(),
            span: value.span(),
        }),
        other => {
            let message = match what {
                "name" | "nodes" | "file" | "ingress" | "egress" | "source" | "for" | "on_excess" => {
                    format!("\"{what}\" is {}, not a string", kind(other))
                }
                what => format!("{what} is {}, not a string", kind(other)),
            };
            let source = &findings.text.text[value.span()];
            let hint = match other {
                DeValue::Integer(_) if what == "a port" => {
                    Some(format!("write \"tcp/{source}\" or \"udp/{source}\""))
                }
                DeValue::Array(_) | DeValue::Table(_) => None,
                _ => Some(format!("write \"{source}\"")),
            };
            findings.error(&value.span(), message, hint);
            None
        }
    }
}

pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
