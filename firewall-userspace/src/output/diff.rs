//! What a change of policy means: who gains and who loses which port.

use super::Style;
use crate::api::types::{Applied, DiffLine};
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

/// A line per change.
pub fn diff(lines: &[DiffLine], style: &Style) -> String {
    let mut out = String::new();
    for line in lines {
        let ports = if line.ports.is_empty() {
            String::new()
        } else {
            format!(" ({})", line.ports.join(", "))
        };
        let text = match line.change.as_str() {
            // Of the policy's own deny list, which holds on every port.
            "gains" | "loses" if line.service.is_empty() => {
                format!("{} {} {}", line.who, line.change, line.ports.join(", "))
            }
            "gains" | "loses" => format!("{} {} {}{ports}", line.who, line.change, line.service),
            "opens" | "closes" => format!("{} {}{ports}", line.service, line.change),
            _ => [line.change.as_str(), &line.who, &line.service, ports.trim()]
                .iter()
                .filter(|part| !part.is_empty())
                .copied()
                .collect::<Vec<_>>()
                .join(" "),
        };
        let _ = match line.change.as_str() {
            "gains" | "opens" => writeln!(out, "{}", style.good(&format!("+ {text}"))),
            "loses" | "closes" => writeln!(out, "{}", style.bad(&format!("- {text}"))),
            _ => writeln!(out, "{}", style.warn(&format!("~ {text}"))),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(change: &str, who: &str, service: &str, ports: &[&str]) -> DiffLine {
        DiffLine {
            change: change.into(),
            who: who.into(),
            service: service.into(),
            ports: ports.iter().map(|port| port.to_string()).collect(),
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
}
