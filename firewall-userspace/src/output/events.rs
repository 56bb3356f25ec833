//! `ravelin monitor`: an event a line, columns of fixed width so that a growing stream stays aligned.

use super::Style;
use super::human::number;
use crate::api::types::EventRecord;
use std::fmt::Write;

/// The titles over the columns of [`event`].
pub fn event_header(style: &Style) -> String {
    let line = format!(
        "{:<12} {:<10} {:<7} {:<15} {:<14} {:<6} {:<42} {:>5}  {}",
        "TIME",
        "INTERFACE",
        "VERDICT",
        "REASON",
        "SERVICE",
        "PROTO",
        "SOURCE -> DESTINATION",
        "BYTES",
        "MORE"
    );
    style.bold(&line) + "\n"
}

/// One event, after a line of those suppressed since the one before, if any.
pub fn event(record: &EventRecord, style: &Style) -> String {
    let mut out = String::new();
    if record.suppressed > 0 {
        let text = format!("... {} more were not shown (sampled)", number(record.suppressed));
        let _ = writeln!(out, "{}", style.dim(&text));
    }
    // The date is the reader's own; `2026-11-22T01:03:16.250Z` -> `01:03:16.250`.
    let time = record
        .time
        .split_once('T')
        .map_or(record.time.as_str(), |(_, time)| time.trim_end_matches('Z'));
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
    let line = format!(
        "{time:<12} {:<10} {verdict} {:<15} {:<14} {:<6} {:<42} {:>5}  {}",
        record.interface,
        record.reason,
        dash(&record.service),
        dash(&record.protocol),
        route(record),
        record.length,
        more.join(" "),
    );
    let _ = writeln!(out, "{}", line.trim_end());
    out
}

fn route(record: &EventRecord) -> String {
    if record.src.is_empty() {
        return format!("ethertype 0x{:04x}", record.ethertype);
    }
    let ports = matches!(record.protocol.as_str(), "tcp" | "udp" | "sctp");
    let end = |address: &str, port: u16| match (ports, address.contains(':')) {
        (false, _) => address.to_owned(),
        (true, false) => format!("{address}:{port}"),
        (true, true) => format!("[{address}]:{port}"),
    };
    let route = format!(
        "{} -> {}",
        end(&record.src, record.src_port),
        end(&record.dst, record.dst_port)
    );
    if record.protocol.starts_with("icmp") {
        return format!(
            "{route} type {} code {}",
            record.dst_port >> 8,
            record.dst_port & 0xff
        );
    }
    route
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            src_port: 40_022,
            dst: "192.0.2.1".into(),
            dst_port: 8443,
            length: 74,
            tcp_flags: "SYN".into(),
            vlan: vec![10],
            ..EventRecord::default()
        };
        let ping = EventRecord {
            protocol: "icmpv6".into(),
            src: "2001:db8::9".into(),
            dst: "2001:db8::1".into(),
            dst_port: 128 << 8,
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
        let style = Style::PLAIN;
        let text = event_header(&style) + &event(&tcp, &style) + &event(&ping, &style) + &event(&arp, &style);
        assert_eq!(
            text,
            "\
TIME         INTERFACE  VERDICT REASON          SERVICE        PROTO  SOURCE -> DESTINATION                      BYTES  MORE
01:03:16.250 eth0       drop    not-allowed     payments-api   tcp    203.0.113.9:40022 -> 192.0.2.1:8443           74  SYN vlan 10
... 1,204 more were not shown (sampled)
01:03:16.250 eth0       drop    not-allowed     payments-api   icmpv6 2001:db8::9 -> 2001:db8::1 type 128 code 0    74
01:03:16.250 eth0       drop    ethertype       -              -      ethertype 0x88b5                              74
"
        );
    }
}
