//! Services that come, go, or get other lists.

use super::super::ports;
use super::super::source::{NAME_HINT, is_name};
use super::document::{Entry, List, Service, entry, line, list, parse, service, wanted, write_entry};
use super::{EditError, refused, splice};
use toml_edit::{Document, Item, Value};

pub(super) fn add(
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

/// `None` leaves a list as it is.
pub(super) fn set(
    text: &str,
    name: &str,
    ports: Option<&[String]>,
    allow: Option<&[String]>,
    deny: Option<&[String]>,
) -> Result<String, EditError> {
    service(&parse(text)?, name)?;
    let mut changed = text.to_string();
    for (key, items) in [("ports", ports), ("allow", allow), ("deny", deny)] {
        if let Some(items) = items {
            changed = set_list(&changed, name, key, items)?;
        }
    }
    match changed == text {
        true => Err(EditError::Unchanged(format!("service \"{name}\" is so already"))),
        false => Ok(changed),
    }
}

pub(super) fn remove(text: &str, name: &str) -> Result<String, EditError> {
    let document = parse(text)?;
    let service = service(&document, name)?;
    let Some(header) = service.header else {
        let hint = "write each as [[service]]".to_string();
        return refused("the services stand in one list", Some(hint));
    };
    let last = splice::end_of_values(service.table).unwrap_or(header.end);
    Ok(splice::remove_block(text, header, last))
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
fn set_list(text: &str, name: &str, key: &'static str, items: &[String]) -> Result<String, EditError> {
    let items = match key {
        "ports" if items.is_empty() => {
            let hint = format!("remove it with: ravelin service remove {name}");
            return refused(format!("service \"{name}\" needs ports"), hint);
        }
        "ports" => port_items(items)?,
        _ => source_items(&parse(text)?, List::Service(name, key), items)?,
    };
    let mut text = text.to_string();
    while let Some(next) = set_step(&text, List::Service(name, key), key, &items)? {
        text = next;
    }
    Ok(text)
}

/// One step to that end, or `None` at the end. Adds before it removes, so that a list never loses its layout.
fn set_step(
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

pub(super) fn inline_service<T>(which: List<'_>, key: &str) -> Result<T, EditError> {
    refused(
        format!("{which} is missing, and the service is an inline table"),
        format!("add {key} = [] to it"),
    )
}
