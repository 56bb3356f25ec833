//! `ravelin limits`: what limits hold now, a limit a row.

use super::Style;
use super::human::{duration, number};
use super::table::{left, right, table, words};
use crate::api::types::{LimitState, LimitUsed};
use comfy_table::{Cell, Color};
use std::time::Duration;

pub fn limit_states(states: &[LimitState], style: &Style) -> String {
    if states.is_empty() {
        return "The policy in force has no limits.\n".to_owned();
    }
    let columns = [
        left("LIMITED"),
        left("WHAT"),
        words("PER SOURCE"),
        words("IN ALL"),
        right("IN USE"),
        right("SOURCES"),
        left("CHALLENGED"),
    ];
    let mut rows = Vec::new();
    for state in states {
        let mut name = state.scope.as_str();
        let mut challenged = Some(match state.challenged_seconds {
            Some(seconds) => {
                Cell::new(format!("for {}", duration(Duration::from_secs(seconds)))).fg(Color::Yellow)
            }
            None => Cell::new("no"),
        });
        for value in &state.values {
            rows.push(vec![
                Cell::new(std::mem::take(&mut name)),
                Cell::new(value.limit.what.replace('_', " ")),
                Cell::new(with_burst(&value.limit.per_source, &value.limit.burst)),
                Cell::new(with_burst(&value.limit.total, &value.limit.total_burst)),
                Cell::new(in_use(value)),
                Cell::new(sources(value)),
                challenged.take().unwrap_or_else(|| Cell::new("")),
            ]);
        }
    }
    table(style, &columns, rows)
}

fn with_burst(limit: &Option<String>, burst: &Option<String>) -> String {
    match (limit, burst) {
        (None, _) => "-".to_owned(),
        (Some(limit), None) => limit.clone(),
        (Some(limit), Some(burst)) => format!("{limit}, burst {burst}"),
    }
}

fn in_use(value: &LimitUsed) -> String {
    match (value.total_spent, value.connections) {
        (_, Some(connections)) => number(connections),
        // Rounded up, so that 0 means untouched.
        (Some(spent), None) => format!("{} %", (spent * 100.0).ceil()),
        (None, None) => "-".to_owned(),
    }
}

fn sources(value: &LimitUsed) -> String {
    match (value.sources, value.room) {
        (Some(sources), Some(room)) => format!("{} of {}", number(sources), number(room)),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::LimitValue;

    #[test]
    fn limits_are_told_with_what_they_hold() {
        let text = |text: &str| Some(text.to_owned());
        let states = [
            LimitState {
                scope: "api".into(),
                service: "api".into(),
                challenged_seconds: Some(125),
                values: vec![
                    LimitUsed {
                        limit: LimitValue {
                            what: "new_connections".into(),
                            per_source: text("50/s"),
                            burst: text("100"),
                            total: text("5,000/s"),
                            total_burst: text("5,000"),
                        },
                        total_spent: Some(0.001),
                        sources: Some(1204),
                        room: Some(65_536),
                        ..LimitUsed::default()
                    },
                    LimitUsed {
                        limit: LimitValue {
                            what: "connections".into(),
                            total: text("20,000"),
                            ..LimitValue::default()
                        },
                        connections: Some(1503),
                        ..LimitUsed::default()
                    },
                ],
                ..LimitState::default()
            },
            LimitState {
                scope: "api/@partners".into(),
                service: "api".into(),
                values: vec![LimitUsed {
                    limit: LimitValue {
                        what: "packets".into(),
                        per_source: text("10/s"),
                        burst: text("10"),
                        ..LimitValue::default()
                    },
                    sources: Some(0),
                    room: Some(1024),
                    ..LimitUsed::default()
                }],
                ..LimitState::default()
            },
        ];
        assert_eq!(
            limit_states(&states, &Style::PLAIN),
            "\
LIMITED        WHAT             PER SOURCE       IN ALL                IN USE          SOURCES  CHALLENGED
api            new connections  50/s, burst 100  5,000/s, burst 5,000     1 %  1,204 of 65,536  for 2m 5s
               connections      -                20,000                 1,503                -
api/@partners  packets          10/s, burst 10   -                          -       0 of 1,024  no
"
        );
        assert_eq!(
            limit_states(&[], &Style::PLAIN),
            "The policy in force has no limits.\n"
        );
    }
}
