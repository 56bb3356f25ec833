//! `ravelin anomalies`: a line for each, with who sends most; and the sentences of the log and of `ravelin monitor`.

use super::Style;
use super::human::{bytes, duration, number};
use super::table::{left, right, table, words};
use crate::api::types::{AnomalyList, AnomalyRecord, AnomalyRow, AnomalySource};
use crate::detect::Kind;
use comfy_table::{Cell, Color};
use std::time::Duration;

/// A source with less is not worth a name.
const LEAST_SHARE: f64 = 0.03;

/// Renders what goes on, and how much there is to be judged at all.
pub fn anomalies(list: &AnomalyList, style: &Style) -> String {
    if !list.enabled {
        return "detection is off (enabled = false below [detect] in agent.toml)\n".to_owned();
    }
    let mut out = match list.anomalies.is_empty() {
        true => "nothing is far from usual\n".to_owned(),
        false => anomaly_table(&list.anomalies, style),
    };
    if list.learning > 0 {
        let text = format!(
            "{} of {} series are still being learned and not judged yet",
            number(list.learning),
            number(list.watched)
        );
        out += &style.dim(&text);
        out.push('\n');
    }
    out
}

/// A row for each anomaly.
pub(super) fn anomaly_table(rows: &[AnomalyRow], style: &Style) -> String {
    let columns = [
        left("ANOMALY"),
        left("KIND"),
        right("FOR"),
        right("RATE"),
        right("USUAL"),
        right("PEAK"),
        words("FROM"),
    ];
    let rows = rows.iter().map(|row| {
        vec![
            Cell::new(service(row)),
            Cell::new(&row.kind).fg(Color::Red),
            Cell::new(duration(Duration::from_secs(row.seconds))),
            Cell::new(rate(&row.kind, row.rate)),
            Cell::new(rate(&row.kind, row.baseline)),
            Cell::new(rate(&row.kind, row.peak)),
            Cell::new(from(&row.sources)),
        ]
    });
    table(style, &columns, rows)
}

/// `anomaly begins: 5,123 drops/s at web, usually 12/s; most from 198.51.100.7 (93 %)`
pub fn anomaly_sentence(record: &AnomalyRecord) -> String {
    let row = &record.row;
    let what = match Kind::from_word(&row.kind) {
        Some(Kind::NewConnections) => "new connections",
        Some(Kind::Drops) => "drops",
        Some(Kind::Bytes) => "traffic",
        None => &row.kind,
    };
    let at = match row.service.as_str() {
        "" => "what belongs to no service".to_owned(),
        name => format!("service {name}"),
    };
    let usual = rate(&row.kind, row.baseline);
    let from = match row.sources.is_empty() {
        true => String::new(),
        false => format!("; from {}", from(&row.sources)),
    };
    match record.end.as_deref() {
        None => format!(
            "anomaly begins: {what} of {at} at {}, usually {usual}{from}",
            rate(&row.kind, row.rate)
        ),
        Some(end) => {
            let why = match end {
                "new-normal" => format!("{} is the new normal", rate(&row.kind, row.rate)),
                _ => format!("{} again", rate(&row.kind, row.rate)),
            };
            format!(
                "anomaly ends: {what} of {at}, {why} after {}, {} at most{from}",
                duration(Duration::from_secs(row.seconds)),
                rate(&row.kind, row.peak)
            )
        }
    }
}

fn service(row: &AnomalyRow) -> &str {
    if row.service.is_empty() { "-" } else { &row.service }
}

/// `1,234/s`, `1.2 MiB/s`; below ten with a decimal.
fn rate(kind: &str, rate: f64) -> String {
    match Kind::from_word(kind) {
        Some(Kind::Bytes) => format!("{}/s", bytes(rate as u64)),
        _ if rate < 10.0 => format!("{rate:.1}/s"),
        _ => format!("{}/s", number(rate as u64)),
    }
}

fn from(sources: &[AnomalySource]) -> String {
    let named: Vec<String> = sources
        .iter()
        .filter(|source| source.share >= LEAST_SHARE)
        .map(|source| format!("{} ({:.0} %)", source.source, source.share * 100.0))
        .collect();
    match (named.is_empty(), sources.is_empty()) {
        (false, _) => named.join(", "),
        (true, false) => "many sources".to_owned(),
        (true, true) => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(source: &str, share: f64) -> AnomalySource {
        AnomalySource {
            source: source.into(),
            share,
        }
    }

    fn row() -> AnomalyRow {
        AnomalyRow {
            service: "payments-api".into(),
            kind: "drops".into(),
            since: "2026-11-22T01:03:16.250Z".into(),
            seconds: 95,
            rate: 5123.4,
            peak: 9000.0,
            baseline: 1.25,
            limit: 100.0,
            sources: vec![source("198.51.100.7", 0.93), source("2001:db8:7::/64", 0.02)],
        }
    }

    #[test]
    fn what_goes_on_is_told_with_its_sources() {
        let list = AnomalyList {
            enabled: true,
            watched: 10,
            learning: 3,
            anomalies: vec![
                row(),
                AnomalyRow {
                    service: "web".into(),
                    kind: "bytes".into(),
                    rate: 45e6,
                    peak: 50e6,
                    baseline: 2e6,
                    sources: vec![source("192.0.2.7", 0.01)],
                    ..row()
                },
                AnomalyRow {
                    service: String::new(),
                    sources: vec![],
                    ..row()
                },
            ],
        };
        assert_eq!(
            anomalies(&list, &Style::PLAIN),
            "\
ANOMALY       KIND      FOR      RATE      USUAL      PEAK  FROM
payments-api  drops  1m 35s   5,123/s      1.2/s   9,000/s  198.51.100.7 (93 %)
web           bytes  1m 35s  43 MiB/s  1.9 MiB/s  48 MiB/s  many sources
-             drops  1m 35s   5,123/s      1.2/s   9,000/s  -
3 of 10 series are still being learned and not judged yet
"
        );
        let quiet = AnomalyList {
            enabled: true,
            watched: 10,
            ..AnomalyList::default()
        };
        assert_eq!(anomalies(&quiet, &Style::PLAIN), "nothing is far from usual\n");
        let off = AnomalyList::default();
        assert!(anomalies(&off, &Style::PLAIN).contains("[detect]"));
    }

    #[test]
    fn sentences_say_what_begins_and_how_it_ends() {
        let begins = AnomalyRecord {
            anomaly: "begins".into(),
            row: row(),
            ..AnomalyRecord::default()
        };
        assert_eq!(
            anomaly_sentence(&begins),
            "anomaly begins: drops of service payments-api at 5,123/s, usually 1.2/s; from 198.51.100.7 (93 %)"
        );
        let ends = AnomalyRecord {
            anomaly: "ends".into(),
            end: Some("usual".into()),
            row: AnomalyRow {
                service: String::new(),
                rate: 2.0,
                sources: vec![],
                ..row()
            },
            ..AnomalyRecord::default()
        };
        assert_eq!(
            anomaly_sentence(&ends),
            "anomaly ends: drops of what belongs to no service, 2.0/s again after 1m 35s, 9,000/s at most"
        );
        let normal = AnomalyRecord {
            end: Some("new-normal".into()),
            ..ends
        };
        assert!(anomaly_sentence(&normal).contains("2.0/s is the new normal after 1m 35s"));
    }
}
