//! The part of `ravelin status` about the fleet that a node belongs to.

use super::Style;
use super::human::{duration, utc};
use super::table::{indent, left, right, table};
use crate::api::fleet::{DocumentRow, FleetStatus};
use comfy_table::Cell;
use std::fmt::Write;
use std::time::Duration;

/// A line for the head of the status.
pub(super) fn line(fleet: &FleetStatus, now: u64, style: &Style) -> String {
    let age = |since: u64| duration(Duration::from_secs(now.saturating_sub(since)));
    match (fleet.connected, fleet.last_contact) {
        (true, _) => {
            let registered = match fleet.registered {
                true => String::new(),
                false => style.warn(", not registered"),
            };
            format!("{} by {}{registered}", fleet.name, fleet.store)
        }
        (false, 0) => {
            let text = format!("{}: {} is out of reach", fleet.name, fleet.store);
            style.warn(&text)
        }
        (false, _) => {
            let text = format!(
                "{}: {} is out of reach for {}",
                fleet.name,
                fleet.store,
                age(fleet.since)
            );
            style.warn(&text)
        }
    }
}

/// The documents, and what is wrong with those that are not in force.
pub(super) fn documents(fleet: &FleetStatus, style: &Style) -> String {
    let mut out = String::new();
    if let Some(error) = &fleet.error {
        let text = "The fleet's store is out of reach; what is in force stays:";
        let _ = writeln!(out, "\n{}", style.warn(text));
        out.push_str(&indent(error, "  "));
    }
    if fleet.documents.is_empty() {
        return out;
    }
    let _ = writeln!(out, "\n{}", style.bold("Policies of the fleet"));
    let rows = fleet.documents.iter().map(|document| {
        vec![
            Cell::new(&document.name),
            Cell::new(
                document
                    .version
                    .map_or("-".to_owned(), |version| version.to_string()),
            ),
            Cell::new(state(document)),
            Cell::new(document.signer.as_deref().unwrap_or("-")),
            Cell::new(document.expires.map_or("never".to_owned(), utc)),
        ]
    });
    let columns = [
        left("NAME"),
        right("VERSION"),
        left("STATE"),
        left("SIGNED BY"),
        left("EXPIRES"),
    ];
    out.push_str(&table(style, &columns, rows));
    for document in fleet
        .documents
        .iter()
        .filter(|document| document.state != "in-force")
    {
        let kept = match document.version {
            Some(version) => format!("version {version} stays in force"),
            None => "nothing of it is in force".to_owned(),
        };
        let why = match (document.state.as_str(), &document.text) {
            ("withheld", _) => "the store has it no more, and nobody signed that it is to end".to_owned(),
            (_, Some(text)) => text.clone(),
            ("coming", None) => "it is about to come in force".to_owned(),
            (_, None) => continue,
        };
        let _ = writeln!(out, "{}", style.warn(&format!("{}: {kept}:", document.name)));
        out.push_str(&indent(&why, "  "));
    }
    out
}

fn state(document: &DocumentRow) -> String {
    match (&document.reason, document.offered) {
        (Some(reason), Some(offered)) => format!("version {offered} refused: {reason}"),
        (Some(reason), None) => format!("refused: {reason}"),
        (None, _) => document.state.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_document_says_what_stays_and_why() {
        let fleet = FleetStatus {
            name: "web-1".into(),
            store: "/srv/policies".into(),
            since: 1000,
            last_contact: 900,
            error: Some("/srv/policies: reading it: no such file".into()),
            documents: vec![
                DocumentRow {
                    name: "web".into(),
                    state: "rejected".into(),
                    version: Some(3),
                    signer: Some("alice@example.net".into()),
                    offered: Some(4),
                    reason: Some("bad-signature".into()),
                    text: Some("the signature does not hold".into()),
                    ..DocumentRow::default()
                },
                DocumentRow {
                    name: "db".into(),
                    state: "withheld".into(),
                    version: Some(1),
                    ..DocumentRow::default()
                },
            ],
            ..FleetStatus::default()
        };
        let style = Style::PLAIN;
        assert_eq!(
            line(&fleet, 1060, &style),
            "web-1: /srv/policies is out of reach for 1m"
        );
        let text = documents(&fleet, &style);
        for part in [
            "no such file",
            "version 4 refused: bad-signature",
            "web: version 3 stays in force:\n  the signature does not hold",
            "db: version 1 stays in force:\n  the store has it no more",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
