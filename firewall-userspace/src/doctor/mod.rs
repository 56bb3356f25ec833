//! `ravelin doctor`: what would stop this host from working under default deny, each with its fix.
//!
//! Looks and never touches: nothing is attached, loaded or changed. Each file judges one kind of facts, which it is
//! given, so that the judgement is tested without the facts: [`kernel`], [`interfaces`], [`agent`], [`sockets`],
//! [`published`], [`challenge`]. What the
//! policy does to a socket's packets is asked of the one decision ([`judge`]).

pub mod agent;
pub mod challenge;
pub mod interfaces;
pub mod judge;
pub mod kernel;
pub mod published;
pub mod sockets;

use serde::Serialize;
use std::fmt;

/// How bad it is. Ordered: the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something would break, or break in.
    Fail,
    /// Worse than it need be.
    Warn,
    /// Good to know.
    Info,
    Ok,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Fail => "fail",
            Severity::Warn => "warn",
            Severity::Info => "info",
            Severity::Ok => "ok",
        })
    }
}

/// What a finding is about; within a severity, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    Agent,
    Policy,
    Listener,
    Connection,
    Published,
    Interface,
    Program,
    Kernel,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub area: Area,
    /// `tcp/8080`, `eth0`, `net.core.bpf_jit_enable`.
    pub subject: String,
    /// One sentence.
    pub text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    pub fn new(
        severity: Severity,
        area: Area,
        subject: impl Into<String>,
        text: impl Into<String>,
    ) -> Finding {
        Finding {
            severity,
            area,
            subject: subject.into(),
            text: text.into(),
            fix: None,
        }
    }

    pub fn fix(mut self, fix: impl Into<String>) -> Finding {
        self.fix = Some(fix.into());
        self
    }
}

/// What `ravelin doctor -o json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Nothing failed.
    pub healthy: bool,
    /// What sockets were judged by: `the policy in force`, a path, `an empty policy`.
    pub policy: String,
    /// The worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn new(policy: String, mut findings: Vec<Finding>) -> Report {
        findings.sort();
        Report {
            healthy: findings.iter().all(|finding| finding.severity != Severity::Fail),
            policy,
            findings,
        }
    }

    pub fn count(&self, severity: Severity) -> usize {
        let of_it = |finding: &&Finding| finding.severity == severity;
        self.findings.iter().filter(of_it).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_and_decides() {
        let finding = |severity, area| Finding::new(severity, area, "x", "y");
        let report = Report::new(
            "p".into(),
            vec![
                finding(Severity::Ok, Area::Agent),
                finding(Severity::Warn, Area::Kernel),
                finding(Severity::Warn, Area::Policy),
            ],
        );
        assert!(report.healthy && report.findings[0].area == Area::Policy);
        assert_eq!(
            (report.count(Severity::Warn), report.count(Severity::Fail)),
            (2, 0)
        );
        let report = Report::new(
            "p".into(),
            vec![
                finding(Severity::Info, Area::Agent),
                finding(Severity::Fail, Area::Kernel),
            ],
        );
        assert!(!report.healthy && report.findings[0].severity == Severity::Fail);
    }
}
