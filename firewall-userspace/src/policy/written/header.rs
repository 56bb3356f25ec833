//! `[policy]`: what makes a policy a document of a fleet: its name, and the nodes that it is meant for.

use super::super::diagnostic::Findings;
use super::super::source::{NAME_HINT, is_name};
use super::{Word, kind, known_keys, word};
use crate::fleet::selector::Selector;
use toml::Spanned;
use toml::de::DeValue;

/// The header as written.
#[derive(Debug)]
pub struct Header {
    pub name: Word,
    pub nodes: Selector,
}

const FORM: &str = "write name = \"payments\" and nodes = \"role=payments\" below [policy]";

/// Both keys are needed: no document is for every node by accident.
pub(super) fn read_header(header: &Spanned<DeValue<'_>>, findings: &mut Findings<'_>) -> Option<Header> {
    let DeValue::Table(table) = header.get_ref() else {
        let message = format!("\"policy\" is {}, not a table", kind(header.get_ref()));
        findings.error(&header.span(), message, Some(FORM.into()));
        return None;
    };
    known_keys(table, "[policy]", &["name", "nodes"], findings);
    let name = match table.get("name") {
        Some(name) => word(name, "name", findings),
        None => {
            findings.error(&header.span(), "[policy] has no \"name\"", Some(FORM.into()));
            None
        }
    };
    let name = name.filter(|name| {
        let good = is_name(&name.text);
        if !good {
            let message = format!("\"{}\" cannot name a policy", name.text);
            findings.error(&name.span, message, Some(NAME_HINT.into()));
        }
        good
    });
    let nodes = match table.get("nodes") {
        Some(nodes) => selector(nodes, findings),
        None => {
            let hint = "write nodes = \"role=payments\", or nodes = \"*\" for every node";
            findings.error(&header.span(), "[policy] has no \"nodes\"", Some(hint.into()));
            None
        }
    };
    Some(Header {
        name: name?,
        nodes: nodes?,
    })
}

/// Which nodes. What selects none by its own words is a mistake.
pub(super) fn selector(value: &Spanned<DeValue<'_>>, findings: &mut Findings<'_>) -> Option<Selector> {
    let text = word(value, "nodes", findings)?;
    match Selector::parse(&text.text) {
        Ok(selector) => {
            if let Some(key) = selector.contradiction() {
                let message = format!(
                    "no node can match \"{selector}\": its conditions on \"{key}\" exclude each other"
                );
                findings.error(&text.span, message, None);
            }
            Some(selector)
        }
        Err(error) => {
            let span = super::super::file::inside(&text, &error.at, findings);
            findings.error(&span, error.message, Some(error.hint));
            None
        }
    }
}
