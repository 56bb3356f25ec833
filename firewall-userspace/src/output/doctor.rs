//! `ravelin doctor`: findings, the worst first, each with its fix.

use super::Style;
use super::status::plural;
use crate::doctor::{Report, Severity};
use std::fmt::Write;

/// Renders a report: a line that sums up, then two lines a finding.
pub fn doctor(report: &Report, style: &Style) -> String {
    let (fails, warnings) = (report.count(Severity::Fail), report.count(Severity::Warn));
    let verdict = match fails {
        0 => style.good("nothing would break"),
        1 => style.bad("1 thing would break"),
        count => style.bad(&format!("{count} things would break")),
    };
    let mut out = format!(
        "{verdict}, {}; judged by {}\n\n",
        plural(warnings, "warning"),
        report.policy
    );
    for finding in &report.findings {
        let word = format!("{:<4}", finding.severity);
        let word = match finding.severity {
            Severity::Fail => style.bad(&word),
            Severity::Warn => style.warn(&word),
            Severity::Info => style.dim(&word),
            Severity::Ok => style.good(&word),
        };
        let _ = writeln!(out, "{word}  {}", finding.text);
        if let Some(fix) = &finding.fix {
            let _ = writeln!(out, "      {}", style.dim(&format!("fix: {fix}")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Area, Finding};

    #[test]
    fn a_report_begins_with_what_it_comes_to() {
        let report = Report::new(
            "policy.toml".into(),
            vec![
                Finding::new(
                    Severity::Ok,
                    Area::Kernel,
                    "version",
                    "kernel 6.18.0 has what ravelin needs",
                ),
                Finding::new(
                    Severity::Fail,
                    Area::Listener,
                    "tcp/80",
                    "nginx (pid 7) listens on 0.0.0.0:80",
                )
                .fix("ravelin service add nginx tcp/80 --allow PREFIX"),
            ],
        );
        assert_eq!(
            doctor(&report, &Style::PLAIN),
            "\
1 thing would break, 0 warnings; judged by policy.toml

fail  nginx (pid 7) listens on 0.0.0.0:80
      fix: ravelin service add nginx tcp/80 --allow PREFIX
ok    kernel 6.18.0 has what ravelin needs
"
        );
    }
}
