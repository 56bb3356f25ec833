//! `ravelin monitor`: an event a line, columns of fixed width so that a growing stream stays aligned.

use super::Style;
use super::anomalies::anomaly_sentence;
use super::human::{duration, number};
use crate::api::types::{EventRecord, MonitorRecord};
use firewall_common::verdict::Direction;
use std::time::Duration;

/// The titles over the columns of [`event`].
pub fn event_header(style: &Style) -> String {
    let line = format!(
        "{:<12} {:<10} {:<3} {:<7} {:<15} {:<14} {:<6} {:<42} {:>5}  {}",
        "TIME",
        "INTERFACE",
        "WAY",
        "VERDICT",
        "REASON",
        "NAME",
        "PROTO",
        "SOURCE -> DESTINATION",
        "BYTES",
        "MORE"
    );
    style.bold(&line) + "\n"
}

/// One event, after a line of those suppressed since the one before, if any; or that line alone.
pub fn event(record: &MonitorRecord, style: &Style) -> String {
    match record {
        MonitorRecord::Event(record) => suppressed(record.suppressed, style) + &line(record, style),
        MonitorRecord::Suppressed(record) => suppressed(record.suppressed, style),
        MonitorRecord::Anomaly(record) => {
            let text = format!("{:<12} {}", clock(&record.time), anomaly_sentence(record));
            style.warn(&text) + "\n"
        }
        MonitorRecord::Challenge(record) => {
            let more = match record.seconds {
                None => ": new connections have to prove their address".to_owned(),
                Some(seconds) => format!(" after {}", duration(Duration::from_secs(seconds))),
            };
            let text = format!(
                "{:<12} challenge of {} {}{more}",
                clock(&record.time),
                record.limit,
                record.challenge
            );
            style.warn(&text) + "\n"
        }
    }
}

fn suppressed(count: u64, style: &Style) -> String {
    match count {
        0 => String::new(),
        count => style.dim(&format!("... {} more were not shown (sampled)", number(count))) + "\n",
    }
}

fn line(record: &EventRecord, style: &Style) -> String {
    let time = clock(&record.time);
    let mut more = Vec::new();
    if !record.tcp_flags.is_empty() {
        more.push(record.tcp_flags.clone());
    }
    if !record.rule.is_empty() {
        more.push(format!("rule {}", record.rule));
    }
    if !record.vlan.is_empty() {
        let tags: Vec<String> = record.vlan.iter().map(u16::to_string).collect();
        more.push(format!("vlan {}", tags.join(",")));
    }
    let verdict = style.verdict(&record.verdict, &format!("{:<7}", record.verdict));
    let way = if record.direction == Direction::Egress.word() {
        "out"
    } else {
        "in"
    };
    let text = format!(
        "{time:<12} {:<10} {way:<3} {verdict} {:<15} {:<14} {:<6} {:<42} {:>5}  {}",
        record.interface,
        record.reason,
        dash(&record.service),
        dash(&record.protocol),
        route(record),
        record.length,
        more.join(" "),
    );
    text.trim_end().to_owned() + "\n"
}

/// The date is the reader's own: `2026-11-22T01:03:16.250Z` -> `01:03:16.250`.
fn clock(time: &str) -> &str {
    time.split_once('T')
        .map_or(time, |(_, time)| time.trim_end_matches('Z'))
}

/// From where to where, as far as the packet tells.
pub fn route(record: &EventRecord) -> String {
    if record.src.is_empty() {
        return format!("ethertype 0x{:04x}", record.ethertype);
    }
    let end = |address: &str, port: Option<u16>| match (port, address.contains(':')) {
        (None, _) => address.to_owned(),
        (Some(port), false) => format!("{address}:{port}"),
        (Some(port), true) => format!("[{address}]:{port}"),
    };
    let route = format!(
        "{} -> {}",
        end(&record.src, record.src_port),
        end(&record.dst, record.dst_port)
    );
    match (record.icmp_type, record.icmp_code) {
        (Some(kind), Some(code)) => format!("{route} type {kind} code {code}"),
        _ => route,
    }
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{AnomalyRecord, AnomalyRow, ChallengeRecord, SuppressedRecord};

    #[test]
    fn events_line_up_under_their_header() {
        let tcp = EventRecord {
            time: "2026-11-22T01:03:16.250Z".into(),
            interface: "eth0".into(),
            verdict: "drop".into(),
            reason: "not-allowed".into(),
            service: "payments-api".into(),
            protocol: "tcp".into(),
            src: "203.0.113.9".into(),
            src_port: Some(40_022),
            dst: "192.0.2.1".into(),
            dst_port: Some(8443),
            length: 74,
            tcp_flags: "SYN".into(),
            vlan: vec![10],
            ..EventRecord::default()
        };
        let ping = EventRecord {
            protocol: "icmpv6".into(),
            src: "2001:db8::9".into(),
            dst: "2001:db8::1".into(),
            src_port: None,
            dst_port: None,
            icmp_type: Some(128),
            icmp_code: Some(0),
            suppressed: 1_204,
            tcp_flags: String::new(),
            vlan: vec![],
            ..tcp.clone()
        };
        let arp = EventRecord {
            src: String::new(),
            ethertype: 0x88b5,
            protocol: String::new(),
            service: String::new(),
            reason: "ethertype".into(),
            tcp_flags: String::new(),
            vlan: vec![],
            ..tcp.clone()
        };
        let out = EventRecord {
            direction: "egress".into(),
            reason: "egress-denied".into(),
            service: "no-mail".into(),
            src: "192.0.2.1".into(),
            dst: "203.0.113.9".into(),
            dst_port: Some(25),
            vlan: vec![],
            ..tcp.clone()
        };
        let style = Style::PLAIN;
        let more = SuppressedRecord {
            suppressed: 12,
            ..SuppressedRecord::default()
        };
        let anomaly = AnomalyRecord {
            time: "2026-11-22T01:03:17.000Z".into(),
            anomaly: "begins".into(),
            row: AnomalyRow {
                service: "payments-api".into(),
                kind: "new_connections".into(),
                rate: 900.0,
                baseline: 40.0,
                ..AnomalyRow::default()
            },
            ..AnomalyRecord::default()
        };
        let challenge = |word: &str, seconds| {
            MonitorRecord::Challenge(ChallengeRecord {
                time: "2026-11-22T01:03:18.000Z".into(),
                challenge: word.into(),
                service: "api".into(),
                limit: "api/@web".into(),
                seconds,
            })
        };
        let text: String = [
            MonitorRecord::Event(tcp.into()),
            MonitorRecord::Event(ping.into()),
            MonitorRecord::Event(arp.into()),
            MonitorRecord::Event(out.into()),
            MonitorRecord::Suppressed(more),
            MonitorRecord::Anomaly(anomaly.into()),
            challenge("starts", None),
            challenge("ends", Some(75)),
        ]
        .iter()
        .map(|record| event(record, &style))
        .collect();
        let text = event_header(&style) + &text;
        assert_eq!(
            text,
            "\
TIME         INTERFACE  WAY VERDICT REASON          NAME           PROTO  SOURCE -> DESTINATION                      BYTES  MORE
01:03:16.250 eth0       in  drop    not-allowed     payments-api   tcp    203.0.113.9:40022 -> 192.0.2.1:8443           74  SYN vlan 10
... 1,204 more were not shown (sampled)
01:03:16.250 eth0       in  drop    not-allowed     payments-api   icmpv6 2001:db8::9 -> 2001:db8::1 type 128 code 0    74
01:03:16.250 eth0       in  drop    ethertype       -              -      ethertype 0x88b5                              74
01:03:16.250 eth0       out drop    egress-denied   no-mail        tcp    192.0.2.1:40022 -> 203.0.113.9:25             74  SYN
... 12 more were not shown (sampled)
01:03:17.000 anomaly begins: new connections of service payments-api at 900/s, usually 40/s
01:03:18.000 challenge of api/@web starts: new connections have to prove their address
01:03:18.000 challenge of api/@web ends after 1m 15s
"
        );
    }
}
