//! One change to the text of a policy that leaves every other byte as it is.
//!
//! `toml_edit` says where things stand; the change itself is a splice ([`splice`]), so that comments, order and
//! layout survive. The result is not checked here: whoever edits parses it again and refuses it as a whole.

mod splice;

use super::diagnostic::{Findings, PolicyError, Text, did_you_mean};
use super::file::suggest_service;
use super::source::{self, NAME_HINT, Source, SourceError, is_name};
use super::{ports, until};
use crate::api::types::Edit;
use std::ops::Range;
use std::path::Path;
use toml_edit::{Datetime, Document, Item, TableLike, Value};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// Nothing to do: the policy says so already.
    #[error("{0}")]
    Unchanged(String),
    /// The policy is not TOML.
    #[error(transparent)]
    Syntax(#[from] PolicyError),
    /// What was asked cannot be done.
    #[error("{message}{}", hint.as_ref().map_or(String::new(), |hint| format!("\n  hint: {hint}")))]
    Refused { message: String, hint: Option<String> },
}

impl From<SourceError> for EditError {
    fn from(error: SourceError) -> EditError {
        EditError::Refused {
            message: error.message,
            hint: error.hint,
        }
    }
}

fn refused<T>(message: impl Into<String>, hint: impl Into<Option<String>>) -> Result<T, EditError> {
    Err(EditError::Refused {
        message: message.into(),
        hint: hint.into(),
    })
}

/// The text with one change made. `now` is in unix seconds.
///
/// # Errors
/// [`EditError::Unchanged`] when the text says so already; otherwise why it cannot be done.
pub fn edit(text: &str, change: &Edit, now: u64) -> Result<String, EditError> {
    match change {
        Edit::Allow {
            service,
            source,
            for_seconds,
        } => add(
            text,
            List::Service(service, "allow"),
            source,
            end(now, *for_seconds)?,
        ),
        Edit::Deny { source, for_seconds } => add(text, List::Policy, source, end(now, *for_seconds)?),
        Edit::Revoke { service, source } => remove(text, List::Service(service, "allow"), source),
        Edit::Undeny { source } => remove(text, List::Policy, source),
        Edit::ServiceUndeny { service, source } => remove(text, List::Service(service, "deny"), source),
        Edit::ServiceAdd {
            name,
            ports,
            allow,
            deny,
        } => service_add(text, name, ports, allow, deny),
        Edit::ServiceSet {
            name,
            ports,
            allow,
            deny,
        } => {
            let lists = [("ports", ports), ("allow", allow), ("deny", deny)];
            let mut changed = text.to_string();
            service(&parse(text)?, name)?;
            for (key, items) in lists {
                if let Some(items) = items {
                    changed = service_set(&changed, name, key, items)?;
                }
            }
            match changed == text {
                true => Err(EditError::Unchanged(format!("service \"{name}\" is so already"))),
                false => Ok(changed),
            }
        }
        Edit::ServiceRemove { name } => {
            let document = parse(text)?;
            let table = service(&document, name)?;
            let Some(header) = table.header else {
                return refused(
                    "the services stand in one list",
                    Some("write each as [[service]]".into()),
                );
            };
            Ok(splice::remove_block(
                text,
                header,
                splice::end_of_values(table.table).unwrap_or(0),
            ))
        }
    }
}

fn end(now: u64, for_seconds: Option<u64>) -> Result<Option<Datetime>, EditError> {
    let Some(seconds) = for_seconds else {
        return Ok(None);
    };
    if seconds == 0 {
        return refused(
            "an entry for no time at all",
            Some("give it a time such as 10m or 2h".into()),
        );
    }
    match now.checked_add(seconds).and_then(until::from_unix) {
        Some(end) => Ok(Some(end)),
        None => refused(format!("{seconds} seconds from now is past the year 9999"), None),
    }
}

fn parse(text: &str) -> Result<Document<&str>, EditError> {
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
enum List<'a> {
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
struct Entry {
    /// `None`: not readable.
    source: Option<Source>,
    until: Option<Datetime>,
    span: Range<usize>,
}

fn entry(value: &Value) -> Entry {
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
struct Service<'d> {
    table: &'d dyn TableLike,
    header: Option<Range<usize>>,
}

fn services<'d>(document: &'d Document<&str>) -> Vec<Service<'d>> {
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

fn name<'d>(service: &Service<'d>) -> Option<&'d str> {
    service.table.get("name").and_then(Item::as_str)
}

fn service<'d>(document: &'d Document<&str>, wanted: &str) -> Result<Service<'d>, EditError> {
    let services = services(document);
    let hint = suggest_service(wanted, services.iter().filter_map(name));
    match services.into_iter().find(|service| name(service) == Some(wanted)) {
        Some(service) => Ok(service),
        None => refused(format!("no service \"{wanted}\""), hint),
    }
}

/// The table that holds a list, and the list if it is there.
fn list<'d>(
    document: &'d Document<&str>,
    which: List<'_>,
) -> Result<(Option<Service<'d>>, Option<&'d toml_edit::Array>), EditError> {
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

fn line(text: &str, offset: usize) -> usize {
    text[..offset].bytes().filter(|&byte| byte == b'\n').count() + 1
}

/// What a source means here; host bits are refused, for either reading may be meant.
fn wanted(document: &Document<&str>, which: List<'_>, text: &str) -> Result<Source, EditError> {
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

fn write_entry(source: &Source, until: Option<Datetime>) -> String {
    match until {
        None => format!("\"{source}\""),
        Some(until) => format!("{{ source = \"{source}\", until = {until} }}"),
    }
}

fn add(text: &str, which: List<'_>, source: &str, until: Option<Datetime>) -> Result<String, EditError> {
    let document = parse(text)?;
    let source = wanted(&document, which, source)?;
    let (service, array) = list(&document, which)?;
    let written = write_entry(&source, until);
    let Some(array) = array else {
        let key = if let List::Service(_, key) = which {
            key
        } else {
            "deny"
        };
        let list = format!("[{written}]");
        return match service {
            None => Ok(splice::add_root_key(text, &document, key, &list)),
            Some(Service { header: None, .. }) => inline_service(which, key),
            Some(Service {
                table,
                header: Some(header),
            }) => Ok(splice::add_key(text, table, header, key, &list)),
        };
    };
    let entries: Vec<Entry> = array.iter().map(entry).collect();
    let Some(there) = entries
        .iter()
        .find(|entry| entry.source.as_ref() == Some(&source))
    else {
        let spans: Vec<_> = entries.into_iter().map(|entry| entry.span).collect();
        return Ok(splice::insert(
            text,
            array.span().unwrap_or_default(),
            &spans,
            &written,
        ));
    };
    let at = line(text, there.span.start);
    match (there.until, until) {
        (None, Some(_)) => {
            let then = "take it out first to give it an end";
            Err(EditError::Unchanged(format!(
                "{source} is in {which} for good (line {at}); {then}"
            )))
        }
        (before, after) if before == after => Err(EditError::Unchanged(format!(
            "{source} is in {which} already (line {at})"
        ))),
        _ => Ok(splice::replace(text, there.span.clone(), &written)),
    }
}

fn remove(text: &str, which: List<'_>, source: &str) -> Result<String, EditError> {
    let document = parse(text)?;
    let source = source::parse(source)?.source;
    let (_, array) = list(&document, which)?;
    let entries: Vec<Entry> = array
        .into_iter()
        .flat_map(|array| array.iter().map(entry))
        .collect();
    if let Some(index) = entries
        .iter()
        .position(|entry| entry.source.as_ref() == Some(&source))
    {
        let spans: Vec<_> = entries.into_iter().map(|entry| entry.span).collect();
        return Ok(splice::remove(text, &spans, index));
    }
    let groups = document.get("groups").and_then(Item::as_table_like);
    for entry in &entries {
        let Some(holder) = &entry.source else { continue };
        let Some(way) = holds(groups, holder, &source, 0) else {
            continue;
        };
        let at = line(text, entry.span.start);
        let hint = match which {
            List::Service(name, "allow") => format!(
                "revoke {holder} as a whole, change what it holds, or add {source} to the deny list of \"{name}\""
            ),
            List::Policy | List::Service(..) => {
                format!("take {holder} out as a whole, or change what it holds")
            }
        };
        return refused(
            format!("{source} is not in {which} itself: it is held by {way} (line {at})"),
            hint,
        );
    }
    let files: Vec<String> = entries
        .iter()
        .filter_map(|entry| file_group(groups, entry.source.as_ref()?, 0))
        .collect();
    let also = match files.is_empty() {
        true => String::new(),
        false => format!(" (list files are not looked into here: {})", files.join(", ")),
    };
    Err(EditError::Unchanged(format!("{source} is not in {which}{also}")))
}

/// Groups that nest deeper than this are refused by the parser.
const MAX_DEPTH: usize = 64;

/// How `holder` holds `source`: `any`, `10.0.0.0/24`, `@web -> @office -> 10.0.0.0/24`.
fn holds(groups: Option<&dyn TableLike>, holder: &Source, source: &Source, depth: usize) -> Option<String> {
    match (holder, source) {
        (holder, source) if holder == source && depth > 0 => Some(holder.to_string()),
        (Source::Any, _) => Some("any".into()),
        (Source::Prefix(outer), Source::Prefix(inner)) => {
            let inside = outer.prefix() <= inner.prefix() && outer.contains(inner.ip());
            inside.then(|| holder.to_string())
        }
        (Source::Group(name), _) if depth < MAX_DEPTH => {
            let members = groups?.get(name)?.as_array()?;
            let members = members.iter().filter_map(|member| entry(member).source);
            let way = members
                .into_iter()
                .find_map(|member| holds(groups, &member, source, depth + 1))?;
            Some(format!("{holder} -> {way}"))
        }
        _ => None,
    }
}

/// `@blocked is lists/blocked.txt`, if the group is a list file or holds one.
fn file_group(groups: Option<&dyn TableLike>, source: &Source, depth: usize) -> Option<String> {
    let Source::Group(name) = source else { return None };
    let item = groups?.get(name).filter(|_| depth < MAX_DEPTH)?;
    if let Some(file) = item
        .as_table_like()
        .and_then(|table| table.get("file"))
        .and_then(Item::as_str)
    {
        return Some(format!("{source} is {file}"));
    }
    let members = item.as_array()?.iter().filter_map(|member| entry(member).source);
    members
        .into_iter()
        .find_map(|member| file_group(groups, &member, depth + 1))
}

fn service_add(
    text: &str,
    name: &str,
    ports: &[String],
    allow: &[String],
    deny: &[String],
) -> Result<String, EditError> {
    let document = parse(text)?;
    if !is_name(name) {
        return refused(
            format!("\"{name}\" cannot name a service"),
            Some(NAME_HINT.into()),
        );
    }
    if let Ok(there) = service(&document, name) {
        let at = there.header.map_or(String::new(), |span| {
            format!(" (line {})", line(text, span.start))
        });
        let hint = format!("change it with: ravelin service set {name}");
        return refused(format!("service \"{name}\" is there already{at}"), hint);
    }
    if matches!(document.get("service"), Some(Item::Value(_))) {
        return refused(
            "the services stand in one list",
            Some("write each as [[service]]".into()),
        );
    }
    if ports.is_empty() {
        return refused(
            "a service needs ports",
            Some("name at least one, such as tcp/8443".into()),
        );
    }
    let ports = port_items(ports)?;
    let allow = source_items(&document, List::Service(name, "allow"), allow)?;
    let deny = source_items(&document, List::Service(name, "deny"), deny)?;
    let list = |items: &[String]| format!("[{}]", items.join(", "));
    let mut lines = vec![
        "[[service]]".to_string(),
        format!("name  = \"{name}\""),
        format!("ports = {}", list(&ports)),
        format!("allow = {}", list(&allow)),
    ];
    if !deny.is_empty() {
        lines.push(format!("deny  = {}", list(&deny)));
    }
    Ok(splice::append_block(text, &lines))
}

/// Port texts as TOML strings, each once.
fn port_items(ports: &[String]) -> Result<Vec<String>, EditError> {
    let mut items = Vec::new();
    for port in ports {
        if let Err(error) = ports::parse(port) {
            return refused(error.message, error.hint);
        }
        let item = format!("\"{port}\"");
        if !items.contains(&item) {
            items.push(item);
        }
    }
    Ok(items)
}

/// Sources as TOML strings, each once.
fn source_items(
    document: &Document<&str>,
    which: List<'_>,
    sources: &[String],
) -> Result<Vec<String>, EditError> {
    let mut items = Vec::new();
    for source in sources {
        let item = write_entry(&wanted(document, which, source)?, None);
        if !items.contains(&item) {
            items.push(item);
        }
    }
    Ok(items)
}

/// Makes a list of a service hold just these items; what stays keeps its place and comments.
fn service_set(text: &str, name: &str, key: &'static str, items: &[String]) -> Result<String, EditError> {
    let items = match key {
        "ports" if items.is_empty() => {
            let hint = format!("remove it with: ravelin service remove {name}");
            return refused(format!("service \"{name}\" needs ports"), hint);
        }
        "ports" => port_items(items)?,
        _ => source_items(&parse(text)?, List::Service(name, key), items)?,
    };
    let mut text = text.to_string();
    while let Some(next) = service_set_step(&text, List::Service(name, key), key, &items)? {
        text = next;
    }
    Ok(text)
}

/// One step to that end, or `None` at the end. Adds before it removes, so that a list never loses its layout.
fn service_set_step(
    text: &str,
    which: List<'_>,
    key: &'static str,
    items: &[String],
) -> Result<Option<String>, EditError> {
    let document = parse(text)?;
    let (service, array) = list(&document, which)?;
    let Some(array) = array else {
        let list = format!("[{}]", items.join(", "));
        return match service {
            _ if items.is_empty() => Ok(None),
            Some(Service {
                table,
                header: Some(header),
            }) => Ok(Some(splice::add_key(text, table, header, key, &list))),
            _ => inline_service(which, key),
        };
    };
    // An element as it would be written anew: temporary entries are never what is wanted.
    let canonical = |value: &Value| match (key, entry(value)) {
        ("ports", _) => value.as_str().map(|port| format!("\"{port}\"")),
        (
            _,
            Entry {
                source: Some(source),
                until: None,
                ..
            },
        ) => Some(write_entry(&source, None)),
        _ => None,
    };
    let there: Vec<Option<String>> = array.iter().map(canonical).collect();
    let spans: Vec<_> = array
        .iter()
        .map(|value| value.span().unwrap_or_default())
        .collect();
    if let Some(missing) = items
        .iter()
        .find(|item| !there.iter().flatten().any(|there| there == *item))
    {
        return Ok(Some(splice::insert(
            text,
            array.span().unwrap_or_default(),
            &spans,
            missing,
        )));
    }
    let wanted = |index: usize| {
        there[index].as_ref().is_some_and(|item| items.contains(item))
            && !there[..index].contains(&there[index])
    };
    Ok((0..there.len())
        .find(|&index| !wanted(index))
        .map(|index| splice::remove(text, &spans, index)))
}

fn inline_service<T>(which: List<'_>, key: &str) -> Result<T, EditError> {
    refused(
        format!("{which} is missing, and the service is an inline table"),
        format!("add {key} = [] to it"),
    )
}

#[cfg(test)]
mod tests;
