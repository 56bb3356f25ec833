//! `ravelin services` and `ravelin rules`.

use super::Style;
use super::human::{bytes, number};
use super::limits::limits;
use super::table::{left, list, right, table, words};
use crate::api::types::{RuleRow, ServiceRow};
use comfy_table::{Cell, Color};
use firewall_common::verdict::Direction;

/// What may reach what, a service a row; then what may leave, an egress rule a row.
pub fn services(rows: &[ServiceRow], style: &Style) -> String {
    let (leaving, services): (Vec<&ServiceRow>, Vec<&ServiceRow>) =
        rows.iter().partition(|row| row.direction == EGRESS);
    let place = |row: &ServiceRow| Cell::new(format!("{}:{}", row.place.path, row.place.line));
    let mut out = String::new();
    if !services.is_empty() || leaving.is_empty() {
        let columns = [
            left("SERVICE"),
            words("PORTS"),
            words("ALLOW"),
            words("DENY"),
            right("PASSED"),
            right("DROPPED"),
            right("ANSWERED"),
            right("OPENED"),
            left("PLACE"),
        ];
        let cells = |row: &ServiceRow| {
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
                Cell::new(number(row.answered.packets)),
                Cell::new(number(row.opened)),
                place(row),
            ]
        };
        out.push_str(&table(style, &columns, services.iter().map(|row| cells(row))));
    }
    let limited = limits(
        services
            .iter()
            .map(|row| (row.name.as_str(), row.limits.as_slice())),
        style,
    );
    if !limited.is_empty() {
        out.push('\n');
        out.push_str(&limited);
    }
    if !leaving.is_empty() {
        let columns = [
            left("EGRESS"),
            words("PORTS"),
            words("TO"),
            words("DENY"),
            right("PASSED"),
            right("DROPPED"),
            left("PLACE"),
        ];
        let cells = |row: &ServiceRow| {
            vec![
                Cell::new(&row.name),
                Cell::new(every_port(&row.ports)),
                Cell::new(list(&row.allow)),
                Cell::new(list(&row.deny)),
                Cell::new(number(row.passed.packets)),
                Cell::new(number(row.dropped.packets)),
                place(row),
            ]
        };
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&table(style, &columns, leaving.iter().map(|row| cells(row))));
    }
    out
}

const EGRESS: &str = Direction::Egress.word();

/// The ports of an egress rule.
pub(super) fn every_port(ports: &[String]) -> String {
    if ports.is_empty() {
        "every port".to_owned()
    } else {
        list(ports)
    }
}

/// Every rule, and what it has matched.
pub fn rules(rows: &[RuleRow], style: &Style) -> String {
    let columns = [
        left("DIRECTION"),
        left("NAME"),
        left("ACTION"),
        left("PEER"),
        right("PREFIXES"),
        right("PACKETS"),
        right("BYTES"),
        right("ANSWERED"),
        right("OPENED"),
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
            let [answered, opened] = match (&*row.direction, &*row.action) {
                (EGRESS, _) | (_, "deny") => ["-".to_owned(), "-".to_owned()],
                _ => [number(row.answered.packets), number(row.opened)],
            };
            vec![
                Cell::new(&row.direction),
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
                Cell::new(answered),
                Cell::new(opened),
                Cell::new(row.place.to_string()),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{Count, LimitRow, LimitValue};
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
                direction: "ingress".into(),
                ports: vec!["tcp/8443".into(), "tcp/30000-30010".into()],
                allow: vec!["@web".into(), "198.51.100.7".into()],
                deny: vec!["10.20.66.0/24".into()],
                place: place(12),
                passed: Count {
                    packets: 12_345,
                    bytes: 1,
                },
                dropped: Count { packets: 7, bytes: 1 },
                answered: Count {
                    packets: 9_876,
                    bytes: 1,
                },
                opened: 1_234,
                limits: vec![LimitRow {
                    scope: "payments-api".into(),
                    limits: vec![LimitValue {
                        what: "connections".into(),
                        total: Some("20,000".into()),
                        ..LimitValue::default()
                    }],
                    source_v4: 32,
                    source_v6: 64,
                    on_excess: "challenge".into(),
                    ..LimitRow::default()
                }],
            },
            ServiceRow {
                name: "no-mail".into(),
                direction: "egress".into(),
                ports: vec!["tcp/25".into()],
                deny: vec!["any".into()],
                place: place(30),
                dropped: Count { packets: 3, bytes: 1 },
                ..ServiceRow::default()
            },
            ServiceRow {
                name: "lan".into(),
                direction: "egress".into(),
                allow: vec!["@internal".into()],
                place: place(26),
                ..ServiceRow::default()
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
SERVICE       PORTS                      ALLOW               DENY           PASSED  DROPPED  ANSWERED  OPENED  PLACE
payments-api  tcp/8443, tcp/30000-30010  @web, 198.51.100.7  10.20.66.0/24  12,345        7     9,876   1,234  policy.toml:12
ssh           tcp/22                     nobody              -                   0        0         0       0  policy.toml:20

LIMITED       FOR        WHAT         PER SOURCE  IN ALL  ON EXCESS
payments-api  everybody  connections  -           20,000  challenge

EGRESS   PORTS       TO         DENY  PASSED  DROPPED  PLACE
no-mail  tcp/25      -          any        0        3  policy.toml:30
lan      every port  @internal  -          0        0  policy.toml:26
"
        );
    }

    #[test]
    fn rules_show_their_place() {
        let rows = [
            RuleRow {
                direction: "ingress".into(),
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
                direction: "ingress".into(),
                action: "allow".into(),
                source: "198.51.100.7".into(),
                prefixes: 1,
                place: place(14),
                count: Count::default(),
                answered: Count {
                    packets: 5,
                    bytes: 500,
                },
                opened: 3,
            },
            RuleRow {
                service: "lan".into(),
                direction: "egress".into(),
                action: "allow".into(),
                source: "@internal".into(),
                prefixes: 2,
                place: place(26),
                ..RuleRow::default()
            },
        ];
        assert_eq!(
            rules(&rows, &Style::PLAIN),
            "\
DIRECTION  NAME   ACTION  PEER           PREFIXES  PACKETS   BYTES  ANSWERED  OPENED  PLACE
ingress    (all)  deny    @blocked      1,000,000    1,000  62 KiB         -       -  policy.toml:2:10
ingress    ssh    allow   198.51.100.7          1        0     0 B         5       3  policy.toml:14:10
egress     lan    allow   @internal             2        0     0 B         -       -  policy.toml:26:10
"
        );
    }
}
