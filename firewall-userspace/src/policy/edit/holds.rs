//! What holds a source that is not in a list by itself.

use super::super::source::Source;
use super::document::entry;
use toml_edit::{Item, TableLike};

/// Groups that nest deeper than this are refused by the parser.
const MAX_DEPTH: usize = 64;

/// How `holder` holds `source`: `any`, `10.0.0.0/24`, `@web -> @office -> 10.0.0.0/24`.
pub(super) fn holds(
    groups: Option<&dyn TableLike>,
    holder: &Source,
    source: &Source,
    depth: usize,
) -> Option<String> {
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
pub(super) fn file_group(groups: Option<&dyn TableLike>, source: &Source, depth: usize) -> Option<String> {
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
