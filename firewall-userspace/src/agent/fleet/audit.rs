//! The audit log: a line of JSON for each document and each ban that came in force or was refused, by the log (target `audit`) and in
//! `audit.jsonl` of the state directory, which is kept to a bounded size.

use crate::fleet::documents::Document;
use crate::fleet::node::Refusal;
use crate::fleet::orders::Order;
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const FILE: &str = "audit.jsonl";
/// A file of this size gives way to a new one; one old file is kept.
const MOST: u64 = 4 << 20;
/// Characters of a text that is told: it may quote what a stranger wrote.
const LONGEST: usize = 500;
/// Refusals that one look writes; a store full of garbage has more.
const AT_ONCE: usize = 100;

pub struct Audit {
    path: PathBuf,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    /// Unix seconds.
    time: u64,
    event: &'a str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signer: Option<&'a str>,
    /// Of the bytes that the store had.
    digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

impl Audit {
    pub fn new(state_dir: &Path) -> Audit {
        Audit {
            path: state_dir.join(FILE),
        }
    }

    /// What was refused since the last time.
    pub fn refused(&self, refusals: &[Refusal], now: u64) {
        for refusal in refusals.iter().take(AT_ONCE) {
            log::warn!(
                "{} is refused ({}): {}",
                refusal.key,
                refusal.rejection.word,
                short(&refusal.rejection.text)
            );
            self.write(&Line {
                time: now,
                event: "refused",
                key: &refusal.key,
                version: refusal.version,
                signer: refusal.signer.as_deref(),
                digest: refusal.digest.to_string(),
                reason: Some(refusal.rejection.word),
                text: Some(short(&refusal.rejection.text)),
            });
        }
        if let Some(more @ 1..) = refusals.len().checked_sub(AT_ONCE) {
            log::warn!("{more} more refusals are not told");
        }
    }

    /// A document that came in force, or is not any more.
    pub fn changed(&self, document: &Document, event: &str, now: u64) {
        let statement = &document.verified.statement;
        log::info!(
            "policy {} version {} of {}: {event}",
            statement.name,
            statement.version,
            document.verified.signer
        );
        self.write(&Line {
            time: now,
            event,
            key: &statement.key(),
            version: Some(statement.version),
            signer: Some(&document.verified.signer),
            digest: document.stored_as.to_string(),
            reason: None,
            text: None,
        });
    }

    /// A ban that was carried out.
    pub fn ordered(&self, order: &Order, now: u64) {
        let event = if order.terms.is_some() {
            "banned"
        } else {
            "unbanned"
        };
        log::info!("{} is {event} by {}", order.prefix, order.signer);
        self.write(&Line {
            time: now,
            event,
            key: &order.key,
            version: Some(order.version),
            signer: Some(&order.signer),
            digest: order.digest.to_string(),
            reason: None,
            text: None,
        });
    }

    fn write(&self, line: &Line<'_>) {
        let Ok(mut text) = serde_json::to_string(line) else {
            return;
        };
        log::info!(target: "audit", "{text}");
        text.push('\n');
        if let Err(error) = self.append(text.as_bytes()) {
            log::warn!("cannot write {}: {error}", self.path.display());
        }
    }

    fn append(&self, line: &[u8]) -> io::Result<()> {
        if std::fs::metadata(&self.path).is_ok_and(|file| file.len() >= MOST) {
            std::fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
        }
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        file.write_all(line)
    }
}

/// On one line, and not too long.
fn short(text: &str) -> String {
    let mut short: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST)
        .collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::node::Rejection;
    use crate::fleet::statement::Digest;

    fn refusal(text: &str) -> Refusal {
        Refusal {
            key: "policies/web".into(),
            digest: Digest::of(b"x"),
            version: Some(3),
            signer: None,
            rejection: Rejection::new("older", text),
        }
    }

    #[test]
    fn a_refusal_is_a_line_of_json_whatever_it_quotes() {
        let dir = tempfile::tempdir().expect("a directory");
        let audit = Audit::new(dir.path());
        let nasty = format!("\u{1b}[2J\n\"{}", "x".repeat(10_000));
        audit.refused(&[refusal("it is version 2"), refusal(&nasty)], 7);
        let text = std::fs::read_to_string(dir.path().join(FILE)).expect("written");
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(
            (lines[0]["reason"].as_str(), lines[0]["version"].as_u64()),
            (Some("older"), Some(3))
        );
        assert!(
            lines[1]["text"]
                .as_str()
                .is_some_and(|text| text.len() < 600 && !text.contains('\u{1b}'))
        );
    }

    #[test]
    fn the_log_stays_within_two_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let audit = Audit::new(dir.path());
        let path = dir.path().join(FILE);
        for round in 0..3 {
            std::fs::write(&path, vec![b'\n'; MOST as usize]).expect("written");
            audit.refused(&[refusal("again")], round);
        }
        assert!(std::fs::metadata(&path).expect("there").len() < 1000);
        assert_eq!(std::fs::read_dir(dir.path()).expect("read").count(), 2);
    }
}
