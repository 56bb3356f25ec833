//! `ravelin check`: what a policy file means, or what is wrong with it.

use super::Style;
use super::human::{bytes, number};
use super::limits::limits;
use super::services::every_port;
use super::status::plural;
use super::table::{left, list, table, words};
use crate::api::types::LimitRow;
use crate::policy::compile::Stats;
use crate::policy::diagnostic::Diagnostic;
use comfy_table::Cell;
use serde::Serialize;
use std::fmt::Write;

/// What `ravelin check -o json` prints.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CheckReport {
    pub path: String,
    pub valid: bool,
    pub errors: Vec<CheckFinding>,
    pub warnings: Vec<CheckFinding>,
    /// What no service names: `allow` or `deny`.
    pub default: String,
    /// What leaves and no egress rule names: `allow` or `deny`.
    pub default_egress: String,
    pub stats: Stats,
    /// Hex BLAKE3 of the image, as `status` shows it on a node that enforces this policy.
    pub digest: String,
    /// Files that were read besides the policy itself.
    pub files: Vec<String>,
    pub services: Vec<CheckService>,
    pub egress: Vec<CheckEgress>,
}

/// A mistake or a warning, for programs such as editors.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CheckFinding {
    /// Of the policy, or of a list file.
    pub path: String,
    /// From 1. 0: the file as a whole.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    pub message: String,
    pub hint: Option<String>,
    /// All of it as people read it, with the pointer into the line.
    pub text: String,
}

impl From<&Diagnostic> for CheckFinding {
    fn from(found: &Diagnostic) -> CheckFinding {
        CheckFinding {
            path: found.place.path.clone(),
            line: found.place.line,
            column: found.place.column,
            message: found.message.clone(),
            hint: found.hint.clone(),
            text: found.to_string(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CheckService {
    pub name: String,
    pub ports: Vec<String>,
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    /// Groups of sources first, then everybody else.
    pub limits: Vec<LimitRow>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CheckEgress {
    pub name: String,
    /// None: every port and protocol.
    pub ports: Vec<String>,
    pub to: Vec<String>,
    pub deny: Vec<String>,
}

/// Renders a valid report. Errors and warnings are messages: they go to standard error, not here.
pub fn check(report: &CheckReport, style: &Style) -> String {
    let stats = &report.stats;
    let mut out = format!("{}: {}\n", report.path, style.good("valid"));
    let mut field = |name: &str, value: &str| {
        let _ = writeln!(out, "  {} {value}", style.dim(&format!("{name:<9}")));
    };
    field("services", &number(stats.services as u64));
    if stats.egress > 0 {
        field("egress", &plural(stats.egress, "rule"));
    }
    field("rules", &number(stats.rules as u64));
    if stats.limits > 0 {
        field("limits", &number(stats.limits as u64));
    }
    field(
        "prefixes",
        &format!(
            "{} IPv4, {} IPv6",
            number(stats.prefixes_v4 as u64),
            number(stats.prefixes_v6 as u64)
        ),
    );
    field("classes", &number(stats.classes as u64));
    field(
        "image",
        &format!(
            "{} ({} bytes)",
            bytes(stats.image_bytes as u64),
            number(stats.image_bytes as u64)
        ),
    );
    field("digest", &report.digest);
    let defaults = format!("ingress {}, egress {}", report.default, report.default_egress);
    field("default", &defaults);
    if !report.files.is_empty() {
        field("lists", &list(&report.files));
    }
    if !report.warnings.is_empty() {
        field("warnings", &style.warn(&plural(report.warnings.len(), "warning")));
    }
    if !report.services.is_empty() {
        let columns = [left("SERVICE"), words("PORTS"), words("ALLOW"), words("DENY")];
        let rows = report.services.iter().map(|service| {
            vec![
                Cell::new(&service.name),
                Cell::new(list(&service.ports)),
                Cell::new(if service.allow.is_empty() {
                    "nobody".to_owned()
                } else {
                    list(&service.allow)
                }),
                Cell::new(list(&service.deny)),
            ]
        });
        out.push('\n');
        out.push_str(&table(style, &columns, rows));
    }
    let limited = limits(
        report
            .services
            .iter()
            .map(|row| (row.name.as_str(), row.limits.as_slice())),
        style,
    );
    if !limited.is_empty() {
        out.push('\n');
        out.push_str(&limited);
    }
    if !report.egress.is_empty() {
        let columns = [left("EGRESS"), words("PORTS"), words("TO"), words("DENY")];
        let rows = report.egress.iter().map(|rule| {
            vec![
                Cell::new(&rule.name),
                Cell::new(every_port(&rule.ports)),
                Cell::new(list(&rule.to)),
                Cell::new(list(&rule.deny)),
            ]
        });
        out.push('\n');
        out.push_str(&table(style, &columns, rows));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_told_in_parts() {
        let text = "version = 1\n[defaults]\negress = \"alow\"\n";
        let error = crate::policy::file::parse(text, std::path::Path::new("p.toml"), 0).unwrap_err();
        let found = CheckFinding::from(&error.errors[0]);
        assert_eq!((found.path.as_str(), found.line, found.column), ("p.toml", 3, 10));
        assert_eq!(found.message, "unknown default \"alow\" (\"deny\" or \"allow\")");
        assert_eq!(found.hint.as_deref(), Some("did you mean \"allow\"?"));
        assert_eq!(found.text, error.to_string());
    }

    #[test]
    fn a_valid_policy_is_told_in_numbers_and_services() {
        let report = CheckReport {
            path: "policy.toml".into(),
            valid: true,
            default: "deny".into(),
            default_egress: "deny".into(),
            stats: Stats {
                services: 1,
                egress: 2,
                rules: 3,
                limits: 0,
                prefixes_v4: 4,
                prefixes_v6: 1,
                classes: 4,
                image_bytes: 65_536,
            },
            digest: "5f2b".into(),
            services: vec![CheckService {
                name: "payments-api".into(),
                ports: vec!["tcp/8443".into()],
                allow: vec!["@web".into()],
                deny: vec![],
                ..CheckService::default()
            }],
            egress: vec![
                CheckEgress {
                    name: "dns".into(),
                    ports: vec!["udp/53".into(), "tcp/53".into()],
                    to: vec!["@resolvers".into()],
                    deny: vec![],
                },
                CheckEgress {
                    name: "lan".into(),
                    ports: vec![],
                    to: vec!["10.0.0.0/8".into()],
                    deny: vec!["10.66.0.0/16".into()],
                },
            ],
            ..CheckReport::default()
        };
        assert_eq!(
            check(&report, &Style::PLAIN),
            "\
policy.toml: valid
  services  1
  egress    2 rules
  rules     3
  prefixes  4 IPv4, 1 IPv6
  classes   4
  image     64 KiB (65,536 bytes)
  digest    5f2b
  default   ingress deny, egress deny

SERVICE       PORTS     ALLOW  DENY
payments-api  tcp/8443  @web   -

EGRESS  PORTS           TO          DENY
dns     udp/53, tcp/53  @resolvers  -
lan     every port      10.0.0.0/8  10.66.0.0/16
"
        );
    }
}
