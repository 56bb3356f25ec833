//! `ravelin flows`: how full the table is, then a line a flow.

use super::Style;
use super::human::{duration, number};
use super::table::{left, right, table};
use crate::api::types::{FlowList, FlowRow};
use comfy_table::Cell;
use std::time::Duration;

/// Renders a list of flows.
pub fn flows(list: &FlowList, style: &Style) -> String {
    let displaced = match list.displaced {
        0 => String::new(),
        count => format!(", {} displaced", number(count)),
    };
    let mut out = format!("{} of {} flows{displaced}\n", number(list.live), number(list.max));
    if !list.flows.is_empty() {
        out.push('\n');
        out.push_str(&rows(&list.flows, style));
    }
    let more = list.matched.saturating_sub(list.flows.len() as u64);
    if more > 0 {
        out += &style.dim(&format!("... and {} more (--limit)", number(more)));
        out.push('\n');
    }
    out
}

fn rows(flows: &[FlowRow], style: &Style) -> String {
    let columns = [
        left("DIRECTION"),
        left("PROTO"),
        left("LOCAL"),
        left("REMOTE"),
        left("STATE"),
        left("NAME"),
        left("RULE"),
        left("INTERFACE"),
        right("AGE"),
        right("IDLE"),
        right("EXPIRES"),
    ];
    let time = |seconds: Option<u64>| match seconds {
        Some(seconds) => duration(Duration::from_secs(seconds)),
        None => "-".to_owned(),
    };
    let dash = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.to_owned()
        }
    };
    table(
        style,
        &columns,
        flows.iter().map(|row| {
            vec![
                Cell::new(&row.direction),
                Cell::new(&row.protocol),
                Cell::new(end(&row.local, row.local_port.or(row.echo_id))),
                Cell::new(end(&row.remote, row.remote_port)),
                Cell::new(&row.state),
                Cell::new(dash(&row.service)),
                Cell::new(dash(&row.rule)),
                Cell::new(dash(&row.interface)),
                Cell::new(time(row.age_seconds)),
                Cell::new(time(row.idle_seconds)),
                Cell::new(time(row.expires_seconds)),
            ]
        }),
    )
}

fn end(address: &str, port: Option<u16>) -> String {
    match port {
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
        None => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_told_with_their_ages_and_the_rest_is_counted() {
        let opened = FlowRow {
            direction: "egress".into(),
            protocol: "tcp".into(),
            local: "192.0.2.1".into(),
            local_port: Some(43_210),
            remote: "2001:db8::80".into(),
            remote_port: Some(443),
            state: "established".into(),
            service: "web".into(),
            rule: "allow any".into(),
            interface: "eth0".into(),
            age_seconds: Some(3_700),
            idle_seconds: Some(2),
            expires_seconds: Some(431_998),
            ..FlowRow::default()
        };
        let accepted = FlowRow {
            direction: "ingress".into(),
            service: String::new(),
            rule: String::new(),
            interface: String::new(),
            age_seconds: None,
            idle_seconds: None,
            expires_seconds: None,
            ..opened.clone()
        };
        let list = FlowList {
            live: 1_204,
            max: 262_144,
            displaced: 3,
            matched: 1_205,
            flows: vec![opened, accepted],
        };
        assert_eq!(
            flows(&list, &Style::PLAIN),
            "\
1,204 of 262,144 flows, 3 displaced

DIRECTION  PROTO  LOCAL            REMOTE              STATE        NAME  RULE       INTERFACE    AGE  IDLE  EXPIRES
egress     tcp    192.0.2.1:43210  [2001:db8::80]:443  established  web   allow any  eth0       1h 1m    2s   4d 23h
ingress    tcp    192.0.2.1:43210  [2001:db8::80]:443  established  -     -          -              -     -        -
... and 1,203 more (--limit)
"
        );
        let empty = FlowList {
            max: 512,
            ..FlowList::default()
        };
        assert_eq!(flows(&empty, &Style::PLAIN), "0 of 512 flows\n");
    }
}
