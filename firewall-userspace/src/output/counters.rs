//! `ravelin counters`: every way packets have ended, once or again and again with rates.

use super::Style;
use super::human::{bytes, number};
use super::table::{left, right, table};
use crate::api::types::{Count, CounterRow};
use comfy_table::{Cell, Color};
use std::time::Duration;

/// The rows of the reading before, and how long ago it was: packets and bytes become rates.
#[derive(Clone, Copy, Debug)]
pub struct Rates<'a> {
    pub before: &'a [CounterRow],
    pub elapsed: Duration,
}

/// Counters, with a column of packets and bytes per second if there is a reading before this one.
pub fn counters(rows: &[CounterRow], rates: Option<Rates<'_>>, style: &Style) -> String {
    let mut columns = vec![
        left("DIRECTION"),
        left("NAME"),
        left("VERDICT"),
        left("REASON"),
        right("PACKETS"),
        right("BYTES"),
    ];
    if rates.is_some() {
        columns.extend([right("PACKETS/S"), right("BYTES/S")]);
    }
    table(
        style,
        &columns,
        rows.iter().map(|row| {
            let colour = match row.verdict.as_str() {
                "pass" => Color::Green,
                "drop" => Color::Red,
                _ => Color::Yellow,
            };
            let mut cells = vec![
                Cell::new(&row.direction),
                Cell::new(if row.service.is_empty() { "-" } else { &row.service }),
                Cell::new(&row.verdict).fg(colour),
                Cell::new(&row.reason),
                Cell::new(number(row.count.packets)),
                Cell::new(bytes(row.count.bytes)),
            ];
            if let Some(rates) = rates {
                let (packets, octets) = rates.of(row);
                cells.extend([Cell::new(number(packets)), Cell::new(bytes(octets))]);
            }
            cells
        }),
    )
}

impl Rates<'_> {
    fn of(&self, row: &CounterRow) -> (u64, u64) {
        let same = |other: &&CounterRow| {
            (&other.service, &other.direction, &other.verdict, &other.reason)
                == (&row.service, &row.direction, &row.verdict, &row.reason)
        };
        let before = self
            .before
            .iter()
            .find(same)
            .map_or(Count::default(), |other| other.count);
        let seconds = self.elapsed.as_secs_f64().max(0.001);
        let rate = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds).round() as u64;
        (
            rate(row.count.packets, before.packets),
            rate(row.count.bytes, before.bytes),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(service: &str, verdict: &str, reason: &str, packets: u64) -> CounterRow {
        let count = Count {
            packets,
            bytes: packets * 64,
        };
        CounterRow {
            service: service.into(),
            direction: "ingress".into(),
            verdict: verdict.into(),
            reason: reason.into(),
            count,
        }
    }

    #[test]
    fn counters_have_a_row_per_ending() {
        let rows = [row("", "drop", "closed", 1_000), row("ssh", "pass", "allowed", 5)];
        assert_eq!(
            counters(&rows, None, &Style::PLAIN),
            "\
DIRECTION  NAME  VERDICT  REASON   PACKETS   BYTES
ingress    -     drop     closed     1,000  62 KiB
ingress    ssh   pass     allowed        5   320 B
"
        );
    }

    #[test]
    fn rates_compare_with_the_reading_before() {
        let before = [row("", "drop", "closed", 1_000)];
        let leaving = CounterRow {
            direction: "egress".into(),
            ..row("", "drop", "closed", 8)
        };
        let rows = [row("", "drop", "closed", 3_000), leaving];
        let rates = Rates {
            before: &before,
            elapsed: Duration::from_secs(2),
        };
        assert_eq!(
            counters(&rows, Some(rates), &Style::PLAIN),
            "\
DIRECTION  NAME  VERDICT  REASON  PACKETS    BYTES  PACKETS/S  BYTES/S
ingress    -     drop     closed    3,000  188 KiB      1,000   62 KiB
egress     -     drop     closed        8    512 B          4    256 B
"
        );
    }
}
