//! `ravelin status`: what a person woken at night needs, the verdict first.

use super::Style;
use super::anomalies::anomaly_table;
use super::fleet_status;
use super::human::{bytes, duration, number, utc};
use super::table::{indent, left, right, table, words};
use crate::api::types::{InterfaceStatus, PublishedPort, Status, Uncovered};
use comfy_table::{Cell, Color};
use std::fmt::Write;
use std::time::Duration;

/// Renders the agent's status; `now` in Unix seconds, for ages.
pub fn status(record: &Status, now: u64, style: &Style) -> String {
    let mut out = headline(record, style);
    let mut field = |name: &str, value: &str| {
        let _ = writeln!(out, "  {} {value}", style.dim(&format!("{name:<10}")));
    };

    let uptime = duration(Duration::from_secs(record.uptime_seconds));
    field(
        "agent",
        &format!(
            "ravelin {}, pid {}, up {uptime}, kernel {}",
            record.version, record.pid, record.kernel
        ),
    );
    let policy = &record.policy;
    if policy.generation == 0 {
        field(
            "policy",
            &style.bad(&format!("none in force (expected at {})", policy.path)),
        );
    } else {
        let age = duration(Duration::from_secs(now.saturating_sub(policy.applied_at)));
        let origin = match policy.origin.as_str() {
            "last-good" => style.warn(&format!(
                "the last good copy, because {} is gone or bad",
                policy.path
            )),
            "kernel" => style.warn("an earlier agent; neither its file nor a copy can be read"),
            "file" => policy.path.clone(),
            "fleet" => "the fleet alone: there is no policy file".to_owned(),
            other => format!("{} ({other})", policy.path),
        };
        field(
            "policy",
            &format!("generation {} from {origin}", policy.generation),
        );
        if policy.applied_at > 0 {
            field("applied", &format!("{} ({age} ago)", utc(policy.applied_at)));
        }
        field("digest", &policy.digest);
        let stats = &policy.stats;
        field(
            "content",
            &format!(
                "{}, {}, {} IPv4 and {} IPv6 prefixes in {}, image {}",
                match stats.egress {
                    0 => plural(stats.services, "service"),
                    egress => format!(
                        "{}, {}",
                        plural(stats.services, "service"),
                        plural(egress, "egress rule")
                    ),
                },
                match stats.limits {
                    0 => plural(stats.rules, "rule"),
                    limits => format!("{}, {}", plural(stats.rules, "rule"), plural(limits, "limit")),
                },
                number(stats.prefixes_v4 as u64),
                number(stats.prefixes_v6 as u64),
                plural(stats.classes, "class"),
                bytes(stats.image_bytes as u64),
            ),
        );
    }
    let flows = &record.flows;
    if flows.max > 0 {
        let displaced = match flows.displaced {
            0 => String::new(),
            count => format!(", {} displaced", number(count)),
        };
        let text = format!("{} of {}{displaced}", number(flows.live), number(flows.max));
        field("flows", &text);
    }
    let limits = &record.limits;
    if policy.stats.limits > 0 {
        let mut text = format!(
            "tables of {} of {}",
            bytes(limits.memory),
            bytes(limits.memory_max)
        );
        if limits.counting != "off" {
            text = format!("{text}, {}", plural(limits.connections as usize, "connection"));
        }
        field("limits", &text);
    }
    if !limits.challenged.is_empty() {
        let text = format!(
            "{}: new connections have to prove their address",
            limits.challenged.join(", ")
        );
        field("challenged", &style.warn(&text));
    }
    let bans = &record.bans;
    if bans.by_operator + bans.automatic > 0 {
        let text = format!(
            "{} by command, {} automatic, of {}",
            number(bans.by_operator),
            number(bans.automatic),
            number(bans.max)
        );
        field("bans", &text);
    }
    if let Some(of_fleet) = &record.fleet {
        field("fleet", &fleet_status::line(of_fleet, now, style));
    }
    if record.failsafe.is_empty() {
        field("failsafe", &style.dim("none"));
    }
    for (index, entry) in record.failsafe.iter().enumerate() {
        field(if index == 0 { "failsafe" } else { "" }, entry);
    }

    if let Some(error) = &policy.last_error {
        let kept = match policy.generation {
            0 => "nothing is in force".to_owned(),
            generation => format!("generation {generation} stays in force"),
        };
        let _ = writeln!(
            out,
            "\n{}",
            style.bad(&format!("The last reload failed; {kept}:"))
        );
        out.push_str(&indent(error, "  "));
    }
    if let Some(of_fleet) = &record.fleet {
        out.push_str(&fleet_status::documents(of_fleet, style));
    }
    if !record.interfaces.is_empty() {
        out.push('\n');
        out.push_str(&interfaces(&record.interfaces, style));
    }
    let repaired: Vec<&InterfaceStatus> = record.interfaces.iter().filter(|each| each.repairs > 0).collect();
    if !repaired.is_empty() {
        let _ = writeln!(out, "\n{}", style.warn("Taken off by somebody else and put back"));
        for each in repaired {
            let last = each.last_repair.as_deref().unwrap_or("unknown");
            let times = plural(each.repairs as usize, "time");
            out.push_str(&indent(&format!("{}: {times}, last: {last}", each.name), "  "));
        }
    }
    if let Some(last) = &record.drift.last {
        let _ = writeln!(out, "\n{}", style.warn("Changed by somebody else and put back"));
        let times = plural(record.drift.found as usize, "time");
        let age = duration(Duration::from_secs(
            now.saturating_sub(record.drift.last_at.unwrap_or(now)),
        ));
        out.push_str(&indent(&format!("{times}, last {age} ago: {last}"), "  "));
    }
    if !record.uncovered.is_empty() {
        out.push('\n');
        out.push_str(&uncovered(&record.uncovered, style));
    }
    if !record.published.is_empty() {
        out.push('\n');
        out.push_str(&published(&record.published, style));
    }
    if !record.unmatched.is_empty() {
        let text = format!("No interface matches {}.", record.unmatched.join(", "));
        let _ = writeln!(out, "\n{}", style.warn(&text));
    }
    if !record.anomalies.is_empty() {
        out.push('\n');
        out.push_str(&anomaly_table(&record.anomalies, style));
    }
    if !policy.temporary.is_empty() {
        let _ = writeln!(out, "\n{}", style.bold("Temporary entries"));
        let widest = policy
            .temporary
            .iter()
            .map(|entry| entry.entry.chars().count())
            .max()
            .unwrap_or(0);
        for entry in &policy.temporary {
            let left = duration(Duration::from_secs(entry.seconds_left));
            let _ = writeln!(out, "  {:<widest$}  ends in {left}", entry.entry);
        }
    }
    if !policy.warnings.is_empty() {
        let _ = writeln!(out, "\n{}", style.warn("Warnings of the policy"));
        for warning in &policy.warnings {
            out.push_str(&indent(warning, "  "));
        }
    }
    if !record.warnings.is_empty() {
        let _ = writeln!(out, "\n{}", style.warn("Warnings of the agent's configuration"));
        for warning in &record.warnings {
            out.push_str(&indent(warning, "  "));
        }
    }
    if !record.degraded.is_empty() {
        let _ = writeln!(out, "\n{}", style.warn("Degraded"));
        for sentence in &record.degraded {
            out.push_str(&indent(sentence, "  "));
        }
    }
    out
}

fn headline(record: &Status, style: &Style) -> String {
    let instance = style.bold(&record.instance);
    let state = match (record.ready, record.mode.as_str()) {
        (true, "observe") => style.warn("observing: drops are counted, nothing is dropped"),
        (true, _) => style.good("enforcing"),
        (false, _) => style.bad(&format!("not ready: {}", why_not_ready(record))),
    };
    format!("{instance}: {state}\n")
}

fn why_not_ready(record: &Status) -> String {
    if record.policy.generation == 0 {
        return "no policy is in force".to_owned();
    }
    let bare: Vec<&str> = record
        .interfaces
        .iter()
        .filter(|each| each.hook == "none")
        .map(|each| each.name.as_str())
        .collect();
    match (bare.is_empty(), record.interfaces.is_empty()) {
        (false, _) => format!("nothing is attached to {}", bare.join(", ")),
        (true, true) => "no interface is attached".to_owned(),
        (true, false) if !record.unmatched.is_empty() => {
            format!("no interface matches {}", record.unmatched.join(", "))
        }
        (true, false) => "the agent is still starting".to_owned(),
    }
}

fn interfaces(records: &[InterfaceStatus], style: &Style) -> String {
    let columns = [
        left("INTERFACE"),
        left("KIND"),
        left("JUMBO"),
        left("INGRESS"),
        right("PASSED IN"),
        right("DROPPED IN"),
        left("EGRESS"),
        right("PASSED OUT"),
        right("DROPPED OUT"),
        words("NOTE"),
    ];
    let rows = records.iter().map(|each| {
        let colour = match (each.hook.as_str(), each.mode.as_str()) {
            ("none", _) => Color::Red,
            (_, "generic") => Color::Yellow,
            _ => Color::Green,
        };
        let ingress = match each.hook.as_str() {
            "none" => "none".to_owned(),
            hook => format!("{hook} {}", each.mode),
        };
        vec![
            Cell::new(&each.name),
            Cell::new(&each.kind),
            Cell::new(if each.frags { "yes" } else { "no" }),
            Cell::new(ingress).fg(colour),
            Cell::new(number(each.passed.packets)),
            Cell::new(number(each.dropped.packets)),
            Cell::new(&each.egress),
            Cell::new(number(each.egress_passed.packets)),
            Cell::new(number(each.egress_dropped.packets)),
            Cell::new(each.detail.as_deref().unwrap_or("")),
        ]
    });
    table(style, &columns, rows)
}

fn published(records: &[PublishedPort], style: &Style) -> String {
    let columns = [
        left("PUBLISHED"),
        left("AT"),
        left("TO"),
        left("BY"),
        words("POLICY"),
    ];
    let rows = records.iter().map(|each| {
        let colour = if each.service.is_empty() {
            Color::Yellow
        } else {
            Color::Green
        };
        vec![
            Cell::new(&each.port),
            Cell::new(each.address.as_deref().unwrap_or("any")),
            Cell::new(&each.to),
            Cell::new(&each.by),
            Cell::new(&each.ruling).fg(colour),
        ]
    });
    table(style, &columns, rows)
}

fn uncovered(records: &[Uncovered], style: &Style) -> String {
    let columns = [left("NOT FILTERED"), left("KIND"), words("WHY")];
    let rows = records.iter().map(|each| {
        vec![
            Cell::new(&each.name),
            Cell::new(&each.kind),
            Cell::new(&each.reason),
        ]
    });
    table(style, &columns, rows)
}

/// `1 service`, `2 services`.
pub fn plural(count: usize, noun: &str) -> String {
    let ending = match (count, noun.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{} {noun}{ending}", number(count as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{Count, DriftStatus, LimitStatus, PolicyStatus, Temporary};
    use crate::policy::compile::Stats;

    fn record() -> Status {
        Status {
            version: "0.1.0".into(),
            instance: "default".into(),
            pid: 4711,
            kernel: "6.18.0".into(),
            mode: "enforce".into(),
            uptime_seconds: 93_784,
            ready: true,
            failsafe: vec![
                "tcp/22 from 203.0.113.9/32".into(),
                "tcp/22 from 2001:db8::/48".into(),
            ],
            limits: LimitStatus {
                challenged: vec!["api/@web".into()],
                counting: "program".into(),
                connections: 1,
                memory: 1_572_864,
                memory_max: 256_000_000,
            },
            drift: DriftStatus {
                found: 1,
                last: Some("somebody changed the policy in force in the maps of the kernel".into()),
                last_at: Some(1_795_309_396),
            },
            policy: PolicyStatus {
                path: "/etc/ravelin/policy.toml".into(),
                generation: 12,
                digest: "5f2b8c1d".into(),
                applied_at: 1_795_309_396,
                origin: "file".into(),
                stats: Stats {
                    services: 3,
                    egress: 2,
                    rules: 1,
                    limits: 2,
                    prefixes_v4: 1_000_123,
                    prefixes_v6: 12,
                    classes: 14,
                    image_bytes: 1_300_000,
                },
                ..PolicyStatus::default()
            },
            interfaces: vec![
                InterfaceStatus {
                    name: "eth0".into(),
                    ifindex: 2,
                    kind: "physical".into(),
                    hook: "xdp".into(),
                    mode: "native".into(),
                    xdp: "native".into(),
                    egress: "tcx".into(),
                    frags: true,
                    detail: None,
                    repairs: 0,
                    last_repair: None,
                    passed: Count {
                        packets: 1_234_567,
                        bytes: 987_654_321,
                    },
                    dropped: Count {
                        packets: 12,
                        bytes: 720,
                    },
                    egress_passed: Count {
                        packets: 654_321,
                        bytes: 123_456_789,
                    },
                    egress_dropped: Count {
                        packets: 3,
                        bytes: 180,
                    },
                },
                InterfaceStatus {
                    name: "eth1".into(),
                    ifindex: 3,
                    kind: "physical in br0".into(),
                    hook: "xdp".into(),
                    mode: "generic".into(),
                    repairs: 2,
                    last_repair: Some("somebody detached its XDP link; put back after 251 ms at most".into()),
                    xdp: "generic".into(),
                    egress: "clsact".into(),
                    frags: false,
                    detail: Some("the driver has no native XDP".into()),
                    ..InterfaceStatus::default()
                },
            ],
            uncovered: vec![Uncovered {
                name: "br0".into(),
                ifindex: 4,
                kind: "bridge".into(),
                reason: "its frames are judged on its members: eth1".into(),
            }],
            ..Status::default()
        }
    }

    #[test]
    fn a_healthy_node_fits_a_screen() {
        let text = status(&record(), 1_795_309_396 + 200, &Style::PLAIN);
        assert_eq!(
            text,
            "\
default: enforcing
  agent      ravelin 0.1.0, pid 4711, up 1d 2h, kernel 6.18.0
  policy     generation 12 from /etc/ravelin/policy.toml
  applied    2026-11-22 01:03:16 UTC (3m 20s ago)
  digest     5f2b8c1d
  content    3 services, 2 egress rules, 1 rule, 2 limits, 1,000,123 IPv4 and 12 IPv6 prefixes in 14 classes, image 1.2 MiB
  limits     tables of 1.5 MiB of 244 MiB, 1 connection
  challenged api/@web: new connections have to prove their address
  failsafe   tcp/22 from 203.0.113.9/32
             tcp/22 from 2001:db8::/48

INTERFACE  KIND             JUMBO  INGRESS      PASSED IN  DROPPED IN  EGRESS  PASSED OUT  DROPPED OUT  NOTE
eth0       physical         yes    xdp native   1,234,567          12  tcx        654,321            3
eth1       physical in br0  no     xdp generic          0           0  clsact           0            0  the driver has no native XDP

Taken off by somebody else and put back
  eth1: 2 times, last: somebody detached its XDP link; put back after 251 ms at most

Changed by somebody else and put back
  1 time, last 3m 20s ago: somebody changed the policy in force in the maps of the kernel

NOT FILTERED  KIND    WHY
br0           bridge  its frames are judged on its members: eth1
"
        );
    }

    #[test]
    fn trouble_is_said_first_and_in_sentences() {
        let mut record = record();
        record.drift = DriftStatus::default();
        record.mode = "observe".into();
        record.policy.origin = "last-good".into();
        record.policy.last_error = Some("policy.toml:3:9: unknown key \"alow\"\n  3 | alow = []".into());
        record.policy.temporary = vec![Temporary {
            entry: "deny 203.0.113.0/24".into(),
            seconds_left: 7140,
        }];
        record.warnings = vec!["the failsafe \"tcp/22 from any\" lets everybody in".into()];
        record.degraded = vec!["kernel 5.15 has no multi-buffer XDP (5.18): jumbo frames drop".into()];
        record.failsafe.clear();
        record.interfaces.clear();
        record.uncovered.clear();
        let text = status(&record, 1_795_309_396, &Style::PLAIN);
        assert_eq!(
            text,
            "\
default: observing: drops are counted, nothing is dropped
  agent      ravelin 0.1.0, pid 4711, up 1d 2h, kernel 6.18.0
  policy     generation 12 from the last good copy, because /etc/ravelin/policy.toml is gone or bad
  applied    2026-11-22 01:03:16 UTC (0s ago)
  digest     5f2b8c1d
  content    3 services, 2 egress rules, 1 rule, 2 limits, 1,000,123 IPv4 and 12 IPv6 prefixes in 14 classes, image 1.2 MiB
  limits     tables of 1.5 MiB of 244 MiB, 1 connection
  challenged api/@web: new connections have to prove their address
  failsafe   none

The last reload failed; generation 12 stays in force:
  policy.toml:3:9: unknown key \"alow\"
    3 | alow = []

Temporary entries
  deny 203.0.113.0/24  ends in 1h 59m

Warnings of the agent's configuration
  the failsafe \"tcp/22 from any\" lets everybody in

Degraded
  kernel 5.15 has no multi-buffer XDP (5.18): jumbo frames drop
"
        );
    }

    #[test]
    fn the_headline_says_why_a_node_is_not_ready() {
        let mut record = record();
        record.ready = false;
        record.interfaces[1].hook = "none".into();
        assert_eq!(
            headline(&record, &Style::PLAIN),
            "default: not ready: nothing is attached to eth1\n"
        );
        record.policy.generation = 0;
        assert_eq!(
            headline(&record, &Style::PLAIN),
            "default: not ready: no policy is in force\n"
        );
    }

    #[test]
    fn published_ports_are_listed_with_what_the_policy_says() {
        let row = |port: &str, address: Option<&str>, service: &str, ruling: &str| PublishedPort {
            port: port.into(),
            address: address.map(str::to_owned),
            to: "10.88.0.2:80".into(),
            by: "nftables".into(),
            service: service.into(),
            ruling: ruling.into(),
        };
        let rows = [
            row("tcp/8080", None, "web", "the service web says who reaches it"),
            row(
                "udp/5000-5010",
                Some("192.0.2.1"),
                "",
                "closed: no service names it",
            ),
        ];
        assert_eq!(
            published(&rows, &Style::PLAIN),
            "\
PUBLISHED      AT         TO            BY        POLICY
tcp/8080       any        10.88.0.2:80  nftables  the service web says who reaches it
udp/5000-5010  192.0.2.1  10.88.0.2:80  nftables  closed: no service names it
"
        );
    }
}
