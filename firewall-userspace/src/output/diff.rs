//! What a change of policy means: who gains and who loses which port.

use super::Style;
use super::human;
use crate::api::types::{Applied, DiffLine};
use firewall_common::verdict::Direction;
use std::fmt::Write;

/// What came of a change, for people: the generation, then the difference.
pub fn applied(record: &Applied, dry_run: bool, style: &Style) -> String {
    let mut out = diff(&record.diff, style);
    let digest = record.digest.get(..12).unwrap_or(&record.digest);
    let _ = match (dry_run, record.changed) {
        (true, _) if record.diff.is_empty() => writeln!(out, "would change nothing"),
        (true, _) => writeln!(out, "dry run: nothing was changed"),
        (false, true) => writeln!(
            out,
            "{} (digest {digest})",
            style.good(&format!("generation {} is in force", record.generation))
        ),
        (false, false) => writeln!(
            out,
            "nothing changes for any packet: generation {} stays in force",
            record.generation
        ),
    };
    out
}

/// When an entry that was just written ends; `until` and `now` are Unix seconds.
pub fn ends(until: u64, now: u64) -> String {
    let text = human::utc(until);
    let today = human::utc(now);
    match (text.split_once(' '), today.split_once(' ')) {
        (Some((day, time)), Some((today, _))) if day == today => format!("ends {time}\n"),
        _ => format!("ends {text}\n"),
    }
}

/// A line per change and per who it is about.
pub fn diff(lines: &[DiffLine], style: &Style) -> String {
    let mut out = String::new();
    for line in &joined(lines) {
        let _ = match sign(line) {
            '+' => writeln!(out, "{}", style.good(&format!("+ {}", sentence(line)))),
            '-' => writeln!(out, "{}", style.bad(&format!("- {}", sentence(line)))),
            _ => writeln!(out, "{}", style.warn(&format!("~ {}", sentence(line)))),
        };
    }
    out
}

/// Lines that differ in ports alone become one.
fn joined(lines: &[DiffLine]) -> Vec<DiffLine> {
    let mut joined: Vec<DiffLine> = Vec::new();
    for line in lines {
        let same = joined.iter_mut().find(|other| {
            let key = |line: &DiffLine| (line.direction == EGRESS, sign(line));
            (key(other), &other.who, &other.service, &other.prefixes)
                == (key(line), &line.who, &line.service, &line.prefixes)
                && sign(line) != '~'
        });
        let Some(other) = same else {
            joined.push(line.clone());
            continue;
        };
        for port in &line.ports {
            if !other.ports.contains(port) {
                other.ports.push(port.clone());
            }
        }
    }
    joined
}

fn sign(line: &DiffLine) -> char {
    match line.change.as_str() {
        _ if line.who == "nobody" => '~',
        "gains" | "opens" => '+',
        "loses" | "closes" => '-',
        _ => '~',
    }
}

const EGRESS: &str = Direction::Egress.word();

fn sentence(line: &DiffLine) -> String {
    if line.direction == EGRESS {
        return egress(line);
    }
    let ports = if line.ports.is_empty() {
        String::new()
    } else {
        format!(" ({})", line.ports.join(", "))
    };
    let many = !line.prefixes.is_empty() || line.who.ends_with(" prefixes");
    let verb = match (sign(line), many) {
        ('+', false) => "gains",
        ('+', true) => "gain",
        ('-', false) => "loses",
        ('-', true) => "lose",
        _ => {
            return match line.change.as_str() {
                "opens" => format!("{}{ports} is added, and nobody may reach it", line.service),
                "closes" => format!("{}{ports} is removed, which nobody could reach", line.service),
                "limits" if line.prefixes.is_empty() => format!("limits of {}: {}", line.service, line.who),
                "limits" => format!(
                    "limits of {} for {}: {}",
                    line.service,
                    line.prefixes.join(", "),
                    line.who
                ),
                change => [change, &line.who, &line.service, ports.trim()]
                    .iter()
                    .filter(|part| !part.is_empty())
                    .copied()
                    .collect::<Vec<_>>()
                    .join(" "),
            };
        }
    };
    let what = if line.service.is_empty() {
        // Of the policy's own deny list, which holds on every port.
        let words = line.ports.join(", ");
        if many {
            words.replace("allows it", "allows them")
        } else {
            words
        }
    } else {
        format!("{}{ports}", line.service)
    };
    let mut prefixes = line.prefixes.join(", ");
    if many && !prefixes.is_empty() {
        prefixes = format!(": {prefixes}, ...");
    }
    format!("{} {verb} {what}{prefixes}", line.who)
}

/// `egress to 198.51.100.0/24 is opened (tcp/443)`
fn egress(line: &DiffLine) -> String {
    let ports = line.ports.join(", ");
    let change = match sign(line) {
        '+' => "opened",
        '-' => "closed",
        _ => return format!("{} egress {} ({ports})", line.change, line.who),
    };
    let prefixes = match line.prefixes.join(", ") {
        none if none.is_empty() => none,
        some => format!(": {some}, ..."),
    };
    format!("egress to {} is {change} ({ports}){prefixes}", line.who)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(change: &str, who: &str, service: &str, ports: &[&str]) -> DiffLine {
        DiffLine {
            direction: "ingress".into(),
            change: change.into(),
            who: who.into(),
            service: service.into(),
            ports: ports.iter().map(|port| port.to_string()).collect(),
            prefixes: Vec::new(),
        }
    }

    #[test]
    fn gains_and_losses_read_as_sentences() {
        let record = Applied {
            generation: 13,
            digest: "0123456789abcdef".into(),
            changed: true,
            warnings: Vec::new(),
            diff: vec![
                line(
                    "gains",
                    "198.51.100.0/24",
                    "payments-api",
                    &["tcp/8443", "udp/8443"],
                ),
                line("loses", "@web", "ssh", &["tcp/22"]),
                line("loses", "192.0.2.0/24", "", &["every port"]),
            ],
        };
        assert_eq!(
            applied(&record, false, &Style::PLAIN),
            "\
+ 198.51.100.0/24 gains payments-api (tcp/8443, udp/8443)
- @web loses ssh (tcp/22)
- 192.0.2.0/24 loses every port
generation 13 is in force (digest 0123456789ab)
"
        );
        assert!(applied(&record, true, &Style::PLAIN).ends_with("dry run: nothing was changed\n"));
    }

    #[test]
    fn an_end_today_needs_no_date() {
        assert_eq!(ends(1_790_003_600, 1_790_000_000), "ends 15:13:20 UTC\n");
        assert_eq!(
            ends(1_790_086_400, 1_790_000_000),
            "ends 2026-09-22 14:13:20 UTC\n"
        );
    }

    #[test]
    fn who_gains_is_said_once_and_verbs_agree() {
        let counted = |who: &str, change: &str, service: &str, ports: &[&str]| DiffLine {
            prefixes: vec!["10.1.0.0/16".into(), "10.2.0.0/16".into()],
            ..line(change, who, service, ports)
        };
        let lines = [
            line("opens", "anyone", "web", &["tcp/8444"]),
            line("gains", "anyone", "web", &["tcp/8080"]),
            line("closes", "@office", "ssh", &["tcp/22"]),
            line("opens", "nobody", "idle", &["tcp/1"]),
            line("closes", "nobody", "old", &["tcp/2"]),
            counted("22 prefixes of @web", "loses", "payments-api", &["tcp/8443"]),
            counted(
                "22 prefixes of @blocked",
                "gains",
                "",
                &["every port that allows it"],
            ),
            line("loses", "1042 prefixes", "web", &["tcp/80"]),
        ];
        assert_eq!(
            diff(&lines, &Style::PLAIN),
            "\
+ anyone gains web (tcp/8444, tcp/8080)
- @office loses ssh (tcp/22)
~ idle (tcp/1) is added, and nobody may reach it
~ old (tcp/2) is removed, which nobody could reach
- 22 prefixes of @web lose payments-api (tcp/8443): 10.1.0.0/16, 10.2.0.0/16, ...
+ 22 prefixes of @blocked gain every port that allows them: 10.1.0.0/16, 10.2.0.0/16, ...
- 1042 prefixes lose web (tcp/80)
"
        );
    }

    #[test]
    fn limits_are_told_by_whom_they_are_for() {
        let lines = [
            line(
                "limits",
                "packets unlimited -> 10/s in all (burst 10)",
                "api",
                &[],
            ),
            DiffLine {
                prefixes: vec!["@partners".into(), "192.0.2.1".into()],
                ..line("limits", "on excess drop -> ban 10m", "api", &[])
            },
        ];
        assert_eq!(
            diff(&lines, &Style::PLAIN),
            "\
~ limits of api: packets unlimited -> 10/s in all (burst 10)
~ limits of api for @partners, 192.0.2.1: on excess drop -> ban 10m
"
        );
    }

    #[test]
    fn what_leaves_is_told_by_its_destination() {
        let egress = |change: &str, who: &str, ports: &[&str]| DiffLine {
            direction: "egress".into(),
            ..line(change, who, "", ports)
        };
        let lines = [
            egress("default", "allow -> deny", &["what no egress rule opens"]),
            egress("gains", "@resolvers", &["udp/53"]),
            // The same words of what comes in are another thing.
            line("gains", "@resolvers", "dns", &["udp/53"]),
            egress("gains", "@resolvers", &["tcp/53"]),
            egress("loses", "anywhere else", &["tcp/25"]),
            DiffLine {
                prefixes: vec!["10.1.0.0/16".into()],
                ..egress("loses", "22 prefixes of @web", &["every other port"])
            },
        ];
        assert_eq!(
            diff(&lines, &Style::PLAIN),
            "\
~ default egress allow -> deny (what no egress rule opens)
+ egress to @resolvers is opened (udp/53, tcp/53)
+ @resolvers gains dns (udp/53)
- egress to anywhere else is closed (tcp/25)
- egress to 22 prefixes of @web is closed (every other port): 10.1.0.0/16, ...
"
        );
    }
}
