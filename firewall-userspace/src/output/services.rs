//! `ravelin services` and `ravelin rules`.

use super::Style;
use super::human::{bytes, number};
use super::table::{left, list, right, table, words};
use crate::api::types::{RuleRow, ServiceRow};
use comfy_table::{Cell, Color};

/// What may reach what, a service a row.
pub fn services(rows: &[ServiceRow], style: &Style) -> String {
    let columns = [
        left("SERVICE"),
        words("PORTS"),
        words("ALLOW"),
        words("DENY"),
        right("PASSED"),
        right("DROPPED"),
        left("PLACE"),
    ];
    table(
        style,
        &columns,
        rows.iter().map(|row| {
            vec![
                Cell::new(&row.name),
                Cell::new(list(&row.ports)),
                Cell::new(if row.allow.is_empty() {
                    "nobody".to_owned()
                } else {
                    list(&row.allow)
                }),
                Cell::new(list(&row.deny)),
                Cell::new(number(row.passed.packets)),
                Cell::new(number(row.dropped.packets)),
                Cell::new(format!("{}:{}", row.place.path, row.place.line)),
            ]
        }),
    )
}

/// Every rule, and what it has matched.
pub fn rules(rows: &[RuleRow], style: &Style) -> String {
    let columns = [
        left("SERVICE"),
        left("ACTION"),
        left("SOURCE"),
        right("PREFIXES"),
        right("PACKETS"),
        right("BYTES"),
        left("PLACE"),
    ];
    table(
        style,
        &columns,
        rows.iter().map(|row| {
            let colour = if row.action == "allow" {
                Color::Green
            } else {
                Color::Red
            };
            vec![
                Cell::new(if row.service.is_empty() {
                    "(all)"
                } else {
                    &row.service
                }),
                Cell::new(&row.action).fg(colour),
                Cell::new(&row.source),
                Cell::new(number(row.prefixes as u64)),
                Cell::new(number(row.count.packets)),
                Cell::new(bytes(row.count.bytes)),
                Cell::new(row.place.to_string()),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::Count;
    use crate::policy::model::Place;

    fn place(line: u32) -> Place {
        Place {
            path: "policy.toml".into(),
            line,
            column: 10,
        }
    }

    #[test]
    fn services_show_who_reaches_what() {
        let rows = [
            ServiceRow {
                name: "payments-api".into(),
                ports: vec!["tcp/8443".into(), "tcp/30000-30010".into()],
                allow: vec!["@web".into(), "198.51.100.7".into()],
                deny: vec!["10.20.66.0/24".into()],
                place: place(12),
                passed: Count {
                    packets: 12_345,
                    bytes: 1,
                },
                dropped: Count { packets: 7, bytes: 1 },
            },
            ServiceRow {
                name: "ssh".into(),
                ports: vec!["tcp/22".into()],
                place: place(20),
                ..ServiceRow::default()
            },
        ];
        assert_eq!(
            services(&rows, &Style::PLAIN),
            "\
SERVICE       PORTS                      ALLOW               DENY           PASSED  DROPPED  PLACE
payments-api  tcp/8443, tcp/30000-30010  @web, 198.51.100.7  10.20.66.0/24  12,345        7  policy.toml:12
ssh           tcp/22                     nobody              -                   0        0  policy.toml:20
"
        );
    }

    #[test]
    fn rules_show_their_place() {
        let rows = [
            RuleRow {
                action: "deny".into(),
                source: "@blocked".into(),
                prefixes: 1_000_000,
                place: place(2),
                count: Count {
                    packets: 1_000,
                    bytes: 64_000,
                },
                ..RuleRow::default()
            },
            RuleRow {
                service: "ssh".into(),
                action: "allow".into(),
                source: "198.51.100.7/32".into(),
                prefixes: 1,
                place: place(14),
                count: Count::default(),
            },
        ];
        assert_eq!(
            rules(&rows, &Style::PLAIN),
            "\
SERVICE  ACTION  SOURCE            PREFIXES  PACKETS   BYTES  PLACE
(all)    deny    @blocked         1,000,000    1,000  62 KiB  policy.toml:2:10
ssh      allow   198.51.100.7/32          1        0     0 B  policy.toml:14:10
"
        );
    }
}
