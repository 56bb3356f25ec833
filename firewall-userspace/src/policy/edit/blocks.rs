//! Services and egress rules that come, go, or get other lists.

use super::super::ports;
use super::super::source::{NAME_HINT, is_name};
use super::document::{
    Block, Entry, Kind, List, block, blocks, entry, find, line, list, parse, wanted, write_entry,
};
use super::{EditError, refused, splice};
use std::collections::BTreeSet;
use toml_edit::{Document, Item, Value};

/// `opens` are the sources of a service, the destinations of an egress rule.
pub(super) fn add(
    text: &str,
    kind: Kind,
    name: &str,
    ports: &[String],
    opens: &[String],
    deny: &[String],
) -> Result<String, EditError> {
    let document = parse(text)?;
    let word = kind.word();
    if !is_name(name) {
        let article = if kind == Kind::Egress { "an" } else { "a" };
        return refused(
            format!("\"{name}\" cannot name {article} {word}"),
            Some(NAME_HINT.into()),
        );
    }
    if let Some((taken_by, there)) = find(&document, name) {
        let at = there.header.map_or(String::new(), |span| {
            format!(" (line {})", line(text, span.start))
        });
        let hint = if taken_by == kind {
            format!("change it with: ravelin {} set {name}", kind.key())
        } else {
            "services and egress rules are told apart by their names: take another".to_owned()
        };
        return refused(
            format!("{} \"{name}\" is there already{at}", taken_by.word()),
            hint,
        );
    }
    if matches!(document.get(kind.key()), Some(Item::Value(_))) {
        return refused(
            format!("the {word}s stand in one list"),
            Some(format!("write each as [[{}]]", kind.key())),
        );
    }
    if kind == Kind::Service && ports.is_empty() {
        return refused(
            "a service needs ports",
            Some("name at least one, such as tcp/8443".into()),
        );
    }
    if kind == Kind::Egress && opens.is_empty() && deny.is_empty() {
        return refused(
            "an egress rule needs destinations",
            Some("name those that it opens with --to, or those that it denies with --deny".into()),
        );
    }
    let ports = port_items(ports)?;
    let opens = source_items(&document, List::Of(kind, name, kind.opens()), opens)?;
    let deny = source_items(&document, List::Of(kind, name, "deny"), deny)?;
    let list = |items: &[String]| format!("[{}]", items.join(", "));
    let mut lines = vec![format!("[[{}]]", kind.key()), format!("name  = \"{name}\"")];
    if !ports.is_empty() {
        lines.push(format!("ports = {}", list(&ports)));
    }
    if kind == Kind::Service || !opens.is_empty() {
        lines.push(format!("{:5} = {}", kind.opens(), list(&opens)));
    }
    if !deny.is_empty() {
        lines.push(format!("deny  = {}", list(&deny)));
    }
    Ok(splice::append_block(text, &lines))
}

/// `lists` are the ports, those that are let through and those that are denied; `None` leaves a list as it is.
pub(super) fn set(
    text: &str,
    kind: Kind,
    name: &str,
    lists: [Option<&[String]>; 3],
) -> Result<String, EditError> {
    block(&parse(text)?, kind, name)?;
    let mut changed = text.to_string();
    for (key, items) in ["ports", kind.opens(), "deny"].into_iter().zip(lists) {
        if let Some(items) = items {
            changed = set_list(&changed, kind, name, key, items)?;
        }
    }
    match changed == text {
        true => Err(EditError::Unchanged(format!(
            "{} \"{name}\" is so already",
            kind.word()
        ))),
        false => Ok(changed),
    }
}

pub(super) fn remove(text: &str, kind: Kind, name: &str) -> Result<String, EditError> {
    let document = parse(text)?;
    let block = block(&document, kind, name)?;
    let Some(header) = block.header else {
        let hint = format!("write each as [[{}]]", kind.key());
        return refused(format!("the {}s stand in one list", kind.word()), hint);
    };
    let last = splice::end_of_values(block.table).unwrap_or(header.end);
    let without = splice::remove_block(text, header, last);
    // TOML lets other tables stand between a service and its limits.
    match parse(&without) {
        Ok(after) if is_without(&document, &after, kind) => Ok(without),
        _ => refused(
            format!(
                "other tables stand between {} \"{name}\" and its limits",
                kind.word()
            ),
            Some(format!(
                "move [{0}.limits] and [[{0}.limit]] next to their [[{0}]]",
                kind.key()
            )),
        ),
    }
}

/// Whether the second document is the first without one block, as far as tables go.
fn is_without(before: &Document<&str>, after: &Document<&str>, kind: Kind) -> bool {
    let count = |document: &Document<&str>, of: Kind| blocks(document, of).len();
    let keys = |document: &Document<&str>| -> BTreeSet<String> {
        let keys = document.iter().map(|(key, _)| key.to_owned());
        keys.filter(|key| key != kind.key()).collect()
    };
    let groups = |document: &Document<&str>| {
        let groups = document.get("groups").and_then(Item::as_table_like);
        groups.map_or(0, |groups| groups.iter().count())
    };
    [Kind::Service, Kind::Egress].iter().all(|&of| {
        let gone = usize::from(of == kind);
        count(before, of) == count(after, of) + gone
    }) && keys(before) == keys(after)
        && groups(before) == groups(after)
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

/// Makes a list hold just these items; what stays keeps its place and comments.
fn set_list(
    text: &str,
    kind: Kind,
    name: &str,
    key: &'static str,
    items: &[String],
) -> Result<String, EditError> {
    let items = match key {
        "ports" if items.is_empty() && kind == Kind::Egress => return every_port(text, name),
        "ports" if items.is_empty() => {
            let hint = format!("remove it with: ravelin service remove {name}");
            return refused(format!("service \"{name}\" needs ports"), hint);
        }
        "ports" => port_items(items)?,
        _ => source_items(&parse(text)?, List::Of(kind, name, key), items)?,
    };
    let mut text = text.to_string();
    while let Some(next) = set_step(&text, List::Of(kind, name, key), key, &items)? {
        text = next;
    }
    Ok(text)
}

/// Takes the ports of an egress rule out, so that it holds every port.
fn every_port(text: &str, name: &str) -> Result<String, EditError> {
    let document = parse(text)?;
    let Block { table, header } = block(&document, Kind::Egress, name)?;
    let key = table.key("ports").and_then(|key| key.span());
    let Some((key, value)) = key.zip(table.get("ports").and_then(Item::span)) else {
        return Ok(text.to_owned());
    };
    match header {
        Some(_) => Ok(splice::remove_key(text, key.start, value.end)),
        None => refused(
            format!("egress rule \"{name}\" is an inline table"),
            Some("take \"ports\" out of it".into()),
        ),
    }
}

/// One step to that end, or `None` at the end. Adds before it removes, so that a list never loses its layout.
fn set_step(
    text: &str,
    which: List<'_>,
    key: &'static str,
    items: &[String],
) -> Result<Option<String>, EditError> {
    let document = parse(text)?;
    let (block, array) = list(&document, which)?;
    let Some(array) = array else {
        let list = format!("[{}]", items.join(", "));
        return match block {
            _ if items.is_empty() => Ok(None),
            Some(Block {
                table,
                header: Some(header),
            }) => Ok(Some(splice::add_key(text, table, header, key, &list))),
            _ => inline_block(which, key),
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

pub(super) fn inline_block<T>(which: List<'_>, key: &str) -> Result<T, EditError> {
    refused(
        format!("{which} is missing, and it is an inline table"),
        format!("add {key} = [] to it"),
    )
}
