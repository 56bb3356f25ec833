//! Where the services, egress rules, lists and entries of a policy stand in its text.

use super::super::diagnostic::{Findings, PolicyError, Text, did_you_mean};
use super::super::file::suggest_name;
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

/// What has a name of its own in a policy: the tables of `[[service]]` and of `[[egress]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Service,
    Egress,
}

impl Kind {
    /// The key of the tables, which is also the command that edits them.
    pub(super) fn key(self) -> &'static str {
        match self {
            Kind::Service => "service",
            Kind::Egress => "egress",
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Kind::Service => "service",
            Kind::Egress => "egress rule",
        }
    }

    fn with_article(self) -> &'static str {
        match self {
            Kind::Service => "a service",
            Kind::Egress => "an egress rule",
        }
    }

    /// The key of the list of those that are let through.
    pub(super) fn opens(self) -> &'static str {
        match self {
            Kind::Service => "allow",
            Kind::Egress => "to",
        }
    }
}

/// A list of sources or destinations in a policy.
#[derive(Clone, Copy)]
pub(super) enum List<'a> {
    /// The policy's deny list.
    Policy,
    /// A list of a service or an egress rule, by its key.
    Of(Kind, &'a str, &'static str),
}

impl List<'_> {
    pub(super) fn key(self) -> &'static str {
        match self {
            List::Policy => "deny",
            List::Of(_, _, key) => key,
        }
    }
}

impl std::fmt::Display for List<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            List::Policy => f.write_str("the deny list of the policy"),
            List::Of(kind, name, "to") => write!(f, "the \"to\" list of {} \"{name}\"", kind.word()),
            List::Of(kind, name, key) => write!(f, "the {key} list of {} \"{name}\"", kind.word()),
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

/// The table of a service or an egress rule, and where its `[[...]]` stands.
pub(super) struct Block<'d> {
    pub(super) table: &'d dyn TableLike,
    pub(super) header: Option<Range<usize>>,
}

pub(super) fn blocks<'d>(document: &'d Document<&str>, kind: Kind) -> Vec<Block<'d>> {
    let tables: Vec<Block<'d>> = match document.get(kind.key()) {
        Some(Item::ArrayOfTables(tables)) => tables
            .iter()
            .map(|table| Block {
                table,
                header: table.span(),
            })
            .collect(),
        Some(Item::Value(Value::Array(tables))) => {
            let tables = tables.iter().filter_map(Value::as_inline_table);
            tables.map(|table| Block { table, header: None }).collect()
        }
        _ => Vec::new(),
    };
    tables
}

pub(super) fn name<'d>(block: &Block<'d>) -> Option<&'d str> {
    block.table.get("name").and_then(Item::as_str)
}

pub(super) fn block<'d>(
    document: &'d Document<&str>,
    kind: Kind,
    wanted: &str,
) -> Result<Block<'d>, EditError> {
    let blocks = blocks(document, kind);
    let hint = match find(document, wanted) {
        Some((other, _)) if other != kind => Some(format!(
            "\"{wanted}\" is {}: see ravelin {} --help",
            other.with_article(),
            other.key()
        )),
        _ => suggest_name(kind.word(), wanted, blocks.iter().filter_map(name)),
    };
    match blocks.into_iter().find(|block| name(block) == Some(wanted)) {
        Some(block) => Ok(block),
        None => refused(format!("no {} \"{wanted}\"", kind.word()), hint),
    }
}

/// Which of both has the name, and where.
pub(super) fn find<'d>(document: &'d Document<&str>, wanted: &str) -> Option<(Kind, Block<'d>)> {
    [Kind::Service, Kind::Egress].into_iter().find_map(|kind| {
        let found = blocks(document, kind)
            .into_iter()
            .find(|block| name(block) == Some(wanted))?;
        Some((kind, found))
    })
}

/// Which of both has a name that is given without saying which.
pub(super) fn kind_of(text: &str, wanted: &str) -> Result<Kind, EditError> {
    let document = parse(text)?;
    if let Some((kind, _)) = find(&document, wanted) {
        return Ok(kind);
    }
    let (services, egress) = (blocks(&document, Kind::Service), blocks(&document, Kind::Egress));
    if egress.is_empty() {
        return block(&document, Kind::Service, wanted).map(|_| Kind::Service);
    }
    let names: Vec<&str> = services.iter().chain(&egress).filter_map(name).collect();
    refused(
        format!("no service and no egress rule \"{wanted}\""),
        suggest_name("service", wanted, names.iter().copied()),
    )
}

/// The table that holds a list, and the list if it is there.
pub(super) fn list<'d>(
    document: &'d Document<&str>,
    which: List<'_>,
) -> Result<(Option<Block<'d>>, Option<&'d Array>), EditError> {
    let (found, item) = match which {
        List::Policy => (None, document.get("deny")),
        List::Of(kind, name, key) => {
            let found = block(document, kind, name)?;
            let item = found.table.get(key);
            (Some(found), item)
        }
    };
    match item.map(|item| item.as_array()) {
        None => Ok((found, None)),
        Some(Some(array)) => Ok((found, Some(array))),
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
