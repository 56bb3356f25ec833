//! The fleet as an operator sees it: documents, their lists, bans, nodes.

use super::Style;
use super::diff::diff;
use super::human::{bytes, duration, number, utc};
use super::table::{cut, left, right, table, words};
use crate::api::types::DiffLine;
use comfy_table::Cell;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// A document or a ban of the fleet, as far as its statement says.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Signed {
    pub name: String,
    /// The selector.
    pub nodes: String,
    pub version: u64,
    /// Unix seconds.
    pub issued: u64,
    pub expires: Option<u64>,
    /// Empty if nobody was asked for whose signature counts.
    pub signer: String,
    pub fingerprint: String,
    /// Hex BLAKE3 of what was signed.
    pub digest: String,
    /// `ok`, `unchecked`, or why nodes do not take it: `unsigned`, `bad-signature`, `unknown-signer`, `not-permitted`,
    /// `malformed`, `too-large`, `expired`, `not-yet`.
    pub state: String,
    /// The same in words, where something is wrong.
    pub problem: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PolicyRow {
    #[serde(flatten)]
    pub signed: Signed,
    /// Registered nodes that it is meant for.
    pub meant: usize,
    /// Those of them that report this version.
    pub applied: usize,
    pub deleted: bool,
}

/// `ravelin policies`; `now` in Unix seconds.
pub fn policies(rows: &[PolicyRow], now: u64, style: &Style) -> String {
    if rows.is_empty() {
        return "no policies\n".to_owned();
    }
    let columns = [
        left("NAME"),
        right("VERSION"),
        right("APPLIED"),
        left("STATE"),
        right("AGE"),
        right("EXPIRES"),
        left("SIGNER"),
        cut("NODES"),
    ];
    let lines = rows.iter().map(|row| {
        let signed = &row.signed;
        vec![
            Cell::new(&signed.name),
            Cell::new(signed.version),
            Cell::new(format!("{}/{}", row.applied, row.meant)),
            Cell::new(&signed.state),
            Cell::new(span(now.saturating_sub(signed.issued))),
            Cell::new(left_of(signed.expires, now)),
            Cell::new(or_dash(&signed.signer)),
            Cell::new(&signed.nodes),
        ]
    });
    table(style, &columns, lines) + &problems(rows.iter().map(|row| &row.signed), style)
}

fn problems<'a>(rows: impl Iterator<Item = &'a Signed>, style: &Style) -> String {
    let mut out = String::new();
    for row in rows.filter(|row| !row.problem.is_empty()) {
        let _ = writeln!(out, "{}: {}", style.bad(&row.name), row.problem);
    }
    match out.is_empty() {
        true => out,
        false => format!("\n{out}"),
    }
}

/// A ban of the whole fleet.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FleetBanRow {
    #[serde(flatten)]
    pub signed: Signed,
    pub why: String,
}

/// `ravelin bans --fleet`.
pub fn fleet_bans(rows: &[FleetBanRow], now: u64, style: &Style) -> String {
    if rows.is_empty() {
        return "no bans of the fleet\n".to_owned();
    }
    let columns = [
        left("PREFIX"),
        right("SINCE"),
        right("LEFT"),
        left("STATE"),
        left("SIGNER"),
        left("NODES"),
        cut("WHY"),
    ];
    let lines = rows.iter().map(|row| {
        let signed = &row.signed;
        vec![
            Cell::new(&signed.name),
            Cell::new(format!("{} ago", span(now.saturating_sub(signed.issued)))),
            Cell::new(match signed.expires {
                None => "for ever".to_owned(),
                Some(_) => left_of(signed.expires, now),
            }),
            Cell::new(&signed.state),
            Cell::new(or_dash(&signed.signer)),
            Cell::new(&signed.nodes),
            Cell::new(or_dash(&row.why)),
        ]
    });
    table(style, &columns, lines) + &problems(rows.iter().map(|row| &row.signed), style)
}

/// What a change of the fleet came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Published {
    pub name: String,
    pub nodes: String,
    /// Of a dry run, the next one.
    pub version: u64,
    pub digest: String,
    pub expires: Option<u64>,
    pub signer: String,
    /// Something was stored.
    pub changed: bool,
    /// Names of registered nodes that it is meant for.
    pub meant: Vec<String>,
    pub diff: Vec<DiffLine>,
    /// Bytes of list objects that were stored.
    pub list_bytes: u64,
}

/// What came of a change; `done` says so in a sentence.
pub fn published(record: &Published, done: &str, dry_run: bool, style: &Style) -> String {
    let mut out = diff(&record.diff, style);
    if !record.changed {
        match (dry_run, record.diff.is_empty()) {
            (true, true) => out.push_str("would change nothing for any packet\n"),
            (true, false) => out.push_str("dry run: nothing was changed\n"),
            (false, _) => {
                let _ = writeln!(
                    out,
                    "nothing to change: \"{}\" is version {} already",
                    record.name, record.version
                );
            }
        }
    } else {
        let by = match record.signer.as_str() {
            "" => String::new(),
            signer => format!(", signed by {signer}"),
        };
        let expires = record
            .expires
            .map(|at| format!(", until {}", utc(at)))
            .unwrap_or_default();
        let done = style.good(done);
        let _ = writeln!(out, "{done}{by}{expires}");
    }
    if record.list_bytes > 0 {
        let _ = writeln!(out, "{} of lists were stored", bytes(record.list_bytes));
    }
    let _ = match &record.meant[..] {
        [] => writeln!(
            out,
            "{}",
            style.warn(&format!("no node that is registered matches {}", record.nodes))
        ),
        names => writeln!(out, "meant for {}: {}", nodes_in_words(names.len()), few(names)),
    };
    out
}

fn nodes_in_words(count: usize) -> String {
    match count {
        1 => "1 node".to_owned(),
        count => format!("{} nodes", number(count as u64)),
    }
}

/// The first of many names.
fn few(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {} more", number(more as u64)),
    }
}

/// A node, what it should have in force, and what it says.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NodeRow {
    pub name: String,
    /// `ok`, `behind`, `failed`, `degraded`, `silent` (registered, but never reported) or `gone` (not registered).
    pub state: String,
    pub labels: BTreeMap<String, String>,
    pub addresses: Vec<String>,
    /// Of the agent.
    pub agent: String,
    pub mode: String,
    pub ready: bool,
    pub generation: u64,
    /// Hex BLAKE3 of the image in force.
    pub digest: String,
    /// Version in force by document.
    pub documents: BTreeMap<String, u64>,
    /// Version that should be in force, by document: where it is another.
    pub wanted: BTreeMap<String, u64>,
    /// Why, by document.
    pub rejected: BTreeMap<String, String>,
    pub last_error: Option<String>,
    pub degraded: Vec<String>,
    /// Unix seconds: since when it is as it says.
    pub since: u64,
}

/// `ravelin nodes`; `now` in Unix seconds.
pub fn nodes(rows: &[NodeRow], now: u64, style: &Style) -> String {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for row in rows {
        *counts.entry(&row.state).or_default() += 1;
    }
    let counts: Vec<String> = ["ok", "behind", "failed", "degraded", "silent", "gone"]
        .iter()
        .filter_map(|state| Some(format!("{} {state}", number(*counts.get(state)?))))
        .collect();
    let mut out = match counts.is_empty() {
        true => return "no nodes\n".to_owned(),
        false => format!("{}: {}\n\n", nodes_in_words(rows.len()), counts.join(", ")),
    };
    let columns = [
        left("NAME"),
        left("STATE"),
        right("SINCE"),
        left("MODE"),
        right("GENERATION"),
        left("DIGEST"),
        words("DOCUMENTS"),
        words("WHY"),
    ];
    let lines = rows.iter().map(|row| {
        let mut documents: Vec<String> = row
            .documents
            .iter()
            .map(|(name, version)| match row.wanted.get(name) {
                Some(wanted) => format!("{name} {version} of {wanted}"),
                None => format!("{name} {version}"),
            })
            .collect();
        let lacks = row
            .wanted
            .iter()
            .filter(|(name, _)| !row.documents.contains_key(*name));
        documents.extend(lacks.map(|(name, wanted)| format!("{name} - of {wanted}")));
        vec![
            Cell::new(&row.name),
            Cell::new(&row.state),
            Cell::new(match row.since {
                0 => "-".to_owned(),
                since => span(now.saturating_sub(since)),
            }),
            Cell::new(or_dash(&row.mode)),
            Cell::new(row.generation),
            Cell::new(or_dash(row.digest.get(..12).unwrap_or(&row.digest))),
            Cell::new(or_dash(&documents.join(", "))),
            Cell::new(or_dash(&why(row))),
        ]
    });
    out.push_str(&table(style, &columns, lines));
    out
}

fn why(row: &NodeRow) -> String {
    let mut all: Vec<String> = row
        .rejected
        .iter()
        .map(|(name, why)| format!("{name}: {why}"))
        .collect();
    all.extend(row.last_error.clone());
    all.extend(row.degraded.iter().cloned());
    if all.is_empty() && row.state == "failed" {
        all.push("not in force on every interface".to_owned());
    }
    all.join("; ").replace('\n', " ")
}

/// A list file of a document.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ListRow {
    pub policy: String,
    pub file: String,
    /// Digest of its root.
    pub root: String,
    pub prefixes: u64,
    pub objects: u64,
    pub bytes: u64,
    /// Objects that the store lacks.
    pub missing: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Lists {
    pub lists: Vec<ListRow>,
    /// Objects that no document leads to.
    pub unused: u64,
    pub unused_bytes: u64,
    /// They were deleted.
    pub pruned: bool,
}

/// `ravelin lists`.
pub fn fleet_lists(record: &Lists, style: &Style) -> String {
    let columns = [
        left("POLICY"),
        left("FILE"),
        right("PREFIXES"),
        right("OBJECTS"),
        right("SIZE"),
        right("MISSING"),
    ];
    let lines = record.lists.iter().map(|row| {
        vec![
            Cell::new(&row.policy),
            Cell::new(&row.file),
            Cell::new(number(row.prefixes)),
            Cell::new(number(row.objects)),
            Cell::new(bytes(row.bytes)),
            Cell::new(number(row.missing)),
        ]
    });
    let mut out = match record.lists.is_empty() {
        true => "no lists\n".to_owned(),
        false => table(style, &columns, lines),
    };
    let _ = match (record.unused, record.pruned) {
        (0, _) => Ok(()),
        (count, true) => writeln!(
            out,
            "\n{} objects that no policy names were deleted",
            number(count)
        ),
        (count, false) => writeln!(
            out,
            "\n{} objects ({}) that no policy names; `ravelin lists --prune` deletes them",
            number(count),
            bytes(record.unused_bytes)
        ),
    };
    out
}

fn left_of(expires: Option<u64>, now: u64) -> String {
    match expires {
        None => "never".to_owned(),
        Some(at) if at <= now => "over".to_owned(),
        Some(at) => span(at - now),
    }
}

fn or_dash(text: &str) -> &str {
    match text {
        "" => "-",
        text => text,
    }
}

fn span(seconds: u64) -> String {
    duration(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_305_600;

    fn signed(name: &str) -> Signed {
        Signed {
            name: name.into(),
            nodes: "role=payments".into(),
            version: 7,
            issued: NOW - 60,
            expires: Some(NOW + 86_400),
            signer: "alice@example.org".into(),
            state: "ok".into(),
            ..Signed::default()
        }
    }

    #[test]
    fn policies_show_who_has_applied_them_and_what_is_wrong() {
        let bad = Signed {
            expires: None,
            signer: String::new(),
            state: "bad-signature".into(),
            problem: "the signature does not hold: it is over other bytes, or of another key".into(),
            ..signed("web")
        };
        let rows = [
            PolicyRow {
                signed: signed("payments"),
                meant: 3,
                applied: 2,
                deleted: false,
            },
            PolicyRow {
                signed: bad,
                meant: 1,
                applied: 0,
                deleted: false,
            },
        ];
        assert_eq!(
            policies(&rows, NOW, &Style::PLAIN),
            "\
NAME      VERSION  APPLIED  STATE          AGE  EXPIRES  SIGNER             NODES
payments        7      2/3  ok              1m       1d  alice@example.org  role=payments
web             7      0/1  bad-signature   1m    never  -                  role=payments

web: the signature does not hold: it is over other bytes, or of another key
"
        );
        assert_eq!(policies(&[], NOW, &Style::PLAIN), "no policies\n");
    }

    #[test]
    fn nodes_show_at_a_glance_who_is_behind_and_why() {
        let node = |name: &str, state: &str| NodeRow {
            name: name.into(),
            state: state.into(),
            mode: "enforce".into(),
            generation: 4,
            digest: "0123456789abcdef".into(),
            documents: BTreeMap::from([("payments".into(), 7)]),
            since: NOW - 5,
            ..NodeRow::default()
        };
        let behind = NodeRow {
            wanted: BTreeMap::from([("payments".into(), 8), ("web".into(), 1)]),
            rejected: BTreeMap::from([("payments".into(), "bad-signature".into())]),
            ..node("web-2", "failed")
        };
        let silent = NodeRow {
            name: "web-3".into(),
            state: "silent".into(),
            ..NodeRow::default()
        };
        assert_eq!(
            nodes(&[node("web-1", "ok"), behind, silent], NOW, &Style::PLAIN),
            "\
3 nodes: 1 ok, 1 failed, 1 silent

NAME   STATE   SINCE  MODE     GENERATION  DIGEST        DOCUMENTS                    WHY
web-1  ok         5s  enforce           4  0123456789ab  payments 7                   -
web-2  failed     5s  enforce           4  0123456789ab  payments 7 of 8, web - of 1  payments: bad-signature
web-3  silent      -  -                 0  -             -                            -
"
        );
    }

    #[test]
    fn a_change_says_what_it_does_and_for_whom() {
        let record = Published {
            name: "payments".into(),
            nodes: "role=payments".into(),
            version: 8,
            signer: "alice@example.org".into(),
            changed: true,
            expires: Some(NOW),
            meant: (0..10).map(|number| format!("n{number}")).collect(),
            list_bytes: 2048,
            ..Published::default()
        };
        assert_eq!(
            published(&record, "version 8 of payments is stored", false, &Style::PLAIN),
            "version 8 of payments is stored, signed by alice@example.org, until 2026-11-22 00:00:00 UTC\n\
             2.0 KiB of lists were stored\nmeant for 10 nodes: n0, n1, n2, n3, n4, n5, n6, n7 and 2 more\n"
        );
        let nobody = Published {
            changed: false,
            meant: Vec::new(),
            list_bytes: 0,
            ..record
        };
        assert_eq!(
            published(&nobody, "", true, &Style::PLAIN),
            "would change nothing for any packet\nno node that is registered matches role=payments\n"
        );
    }

    #[test]
    fn lists_say_what_could_go() {
        let record = Lists {
            lists: vec![ListRow {
                policy: "payments".into(),
                file: "lists/x.txt".into(),
                prefixes: 1_000_000,
                objects: 500,
                bytes: 2 << 20,
                ..ListRow::default()
            }],
            unused: 2,
            unused_bytes: 1024,
            pruned: false,
        };
        assert_eq!(
            fleet_lists(&record, &Style::PLAIN),
            "\
POLICY    FILE          PREFIXES  OBJECTS     SIZE  MISSING
payments  lists/x.txt  1,000,000      500  2.0 MiB        0

2 objects (1.0 KiB) that no policy names; `ravelin lists --prune` deletes them
"
        );
    }
}
