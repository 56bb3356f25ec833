//! One change to the text of a policy that leaves every other byte as it is.
//!
//! `toml_edit` says where things stand; the change itself is a splice ([`splice`]), so that comments, order and
//! layout survive. The result is not checked here: whoever edits parses it again and refuses it as a whole.

mod blocks;
mod document;
mod holds;
mod splice;

use super::diagnostic::PolicyError;
use super::source::{self, SourceError};
use super::until;
use crate::api::types::Edit;
use blocks::inline_block;
use document::{Block, Entry, Kind, List, entry, kind_of, line, list, parse, wanted, write_entry};
use holds::{file_group, holds};
use toml_edit::{Datetime, Item};

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
        } => add(text, opens(text, service)?, source, end(now, *for_seconds)?),
        Edit::Deny { source, for_seconds } => add(text, List::Policy, source, end(now, *for_seconds)?),
        Edit::Revoke { service, source } => remove(text, opens(text, service)?, source),
        Edit::Undeny { source } => remove(text, List::Policy, source),
        Edit::ServiceUndeny { service, source } => {
            remove(text, List::Of(kind_of(text, service)?, service, "deny"), source)
        }
        Edit::ServiceAdd {
            name,
            ports,
            allow,
            deny,
        } => blocks::add(text, Kind::Service, name, ports, allow, deny),
        Edit::ServiceSet {
            name,
            ports,
            allow,
            deny,
        } => {
            let lists = [ports, allow, deny].map(Option::as_deref);
            blocks::set(text, Kind::Service, name, lists)
        }
        Edit::ServiceRemove { name } => blocks::remove(text, Kind::Service, name),
        Edit::EgressAdd {
            name,
            ports,
            to,
            deny,
        } => blocks::add(text, Kind::Egress, name, ports, to, deny),
        Edit::EgressSet {
            name,
            ports,
            to,
            deny,
        } => blocks::set(text, Kind::Egress, name, [ports, to, deny].map(Option::as_deref)),
        Edit::EgressRemove { name } => blocks::remove(text, Kind::Egress, name),
    }
}

/// The list of those whom a service lets in, or an egress rule lets out to.
fn opens<'a>(text: &str, name: &'a str) -> Result<List<'a>, EditError> {
    let kind = kind_of(text, name)?;
    Ok(List::Of(kind, name, kind.opens()))
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

fn add(text: &str, which: List<'_>, source: &str, until: Option<Datetime>) -> Result<String, EditError> {
    let document = parse(text)?;
    let source = wanted(&document, which, source)?;
    let (block, array) = list(&document, which)?;
    let written = write_entry(&source, until);
    let Some(array) = array else {
        let key = which.key();
        let list = format!("[{written}]");
        return match block {
            None => Ok(splice::add_root_key(text, &document, key, &list)),
            Some(Block { header: None, .. }) => inline_block(which, key),
            Some(Block {
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
            List::Of(kind, name, key) if key == kind.opens() => format!(
                "revoke {holder} as a whole, change what it holds, or add {source} to the deny list of \"{name}\""
            ),
            List::Policy | List::Of(..) => {
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

#[cfg(test)]
mod tests;
