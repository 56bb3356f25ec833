//! Where the services, lists and entries of a policy stand in its text.

use super::super::diagnostic::{Findings, PolicyError, Text, did_you_mean};
use super::super::file::suggest_service;
use super::super::source::{self, Source};
use super::{EditError, refused};
use std::ops::Range;
use std::path::Path;
use toml_edit::{Array, Datetime, Document, Item, TableLike, Value};

pub(super) fn parse(text: &str) -> Result<Document<&str>, EditError> {
    Document::parse(text).map_err(|error| {
        let mut findings = Findings::new(Text::new(Path::new("the policy"), text));
        let span = error.span().unwrap_or(text.len()..text.len());
        findings.error(&span, error.message(), None);
        EditError::Syntax(PolicyError {
            errors: findings.errors,
        })
    })
}

/// A list of sources in a policy.
#[derive(Clone, Copy)]
pub(super) enum List<'a> {
    /// The policy's deny list.
    Policy,
    /// `allow` or `deny` of a service.
    Service(&'a str, &'static str),
}

impl std::fmt::Display for List<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            List::Policy => f.write_str("the deny list of the policy"),
            List::Service(name, key) => write!(f, "the {key} list of service \"{name}\""),
        }
    }
}

/// An entry of a list as it stands in the text.
pub(super) struct Entry {
    /// `None`: not readable.
    pub(super) source: Option<Source>,
    pub(super) until: Option<Datetime>,
    pub(super) span: Range<usize>,
}

pub(super) fn entry(value: &Value) -> Entry {
    let table = value.as_inline_table();
    let text = match table {
        Some(table) => table.get("source").and_then(Value::as_str),
        None => value.as_str(),
    };
    Entry {
        source: text
            .and_then(|text| source::parse(text).ok())
            .map(|parsed| parsed.source),
        until: table
            .and_then(|table| table.get("until"))
            .and_then(Value::as_datetime)
            .copied(),
        span: value.span().unwrap_or_default(),
    }
}

/// A service's table, and where its `[[service]]` stands.
pub(super) struct Service<'d> {
    pub(super) table: &'d dyn TableLike,
    pub(super) header: Option<Range<usize>>,
}

pub(super) fn services<'d>(document: &'d Document<&str>) -> Vec<Service<'d>> {
    let tables: Vec<Service<'d>> = match document.get("service") {
        Some(Item::ArrayOfTables(tables)) => tables
            .iter()
            .map(|table| Service {
                table,
                header: table.span(),
            })
            .collect(),
        Some(Item::Value(Value::Array(tables))) => {
            let tables = tables.iter().filter_map(Value::as_inline_table);
            tables.map(|table| Service { table, header: None }).collect()
        }
        _ => Vec::new(),
    };
    tables
}

pub(super) fn name<'d>(service: &Service<'d>) -> Option<&'d str> {
    service.table.get("name").and_then(Item::as_str)
}

pub(super) fn service<'d>(document: &'d Document<&str>, wanted: &str) -> Result<Service<'d>, EditError> {
    let services = services(document);
    let hint = suggest_service(wanted, services.iter().filter_map(name));
    match services.into_iter().find(|service| name(service) == Some(wanted)) {
        Some(service) => Ok(service),
        None => refused(format!("no service \"{wanted}\""), hint),
    }
}

/// The table that holds a list, and the list if it is there.
pub(super) fn list<'d>(
    document: &'d Document<&str>,
    which: List<'_>,
) -> Result<(Option<Service<'d>>, Option<&'d Array>), EditError> {
    let (service, item) = match which {
        List::Policy => (None, document.get("deny")),
        List::Service(name, key) => {
            let service = service(document, name)?;
            let item = service.table.get(key);
            (Some(service), item)
        }
    };
    match item.map(|item| item.as_array()) {
        None => Ok((service, None)),
        Some(Some(array)) => Ok((service, Some(array))),
        Some(None) => refused(format!("{which} is not a list"), None),
    }
}

pub(super) fn line(text: &str, offset: usize) -> usize {
    text[..offset].bytes().filter(|&byte| byte == b'\n').count() + 1
}

/// What a source means here; host bits are refused, for either reading may be meant.
pub(super) fn wanted(document: &Document<&str>, which: List<'_>, text: &str) -> Result<Source, EditError> {
    let parsed = source::parse(text)?;
    if parsed.host_bits {
        let host = text.split('/').next().unwrap_or_default();
        let hint = format!(
            "write \"{}\" for the prefix, \"{host}\" for the host",
            parsed.source
        );
        return refused(format!("host bits are set in \"{text}\""), hint);
    }
    match &parsed.source {
        Source::Any if matches!(which, List::Policy) => {
            let message = "a deny of \"any\" for the whole policy closes every port to everybody";
            return refused(
                message,
                Some("revoke what a service allows, or remove the service".into()),
            );
        }
        Source::Group(name) => {
            let groups = document.get("groups").and_then(Item::as_table_like);
            if !groups.is_some_and(|groups| groups.contains_key(name)) {
                let names = groups
                    .into_iter()
                    .flat_map(|groups| groups.iter().map(|(name, _)| name));
                return refused(format!("no group \"@{name}\""), did_you_mean(name, "@", names));
            }
        }
        Source::Any | Source::Prefix(_) => {}
    }
    Ok(parsed.source)
}

pub(super) fn write_entry(source: &Source, until: Option<Datetime>) -> String {
    match until {
        None => format!("\"{source}\""),
        Some(until) => format!("{{ source = \"{source}\", until = {until} }}"),
    }
}
