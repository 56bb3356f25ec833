//! The agent, if one runs, and what it says about itself.

use super::{Area, Finding, Severity};
use crate::agent::config::FailsafeRule;
use crate::api::types::Status;

/// `status` is `None` if no agent could be asked; `why` says so. `attached`: how many interfaces the pins of an agent
/// that is gone still filter.
pub fn findings(
    status: Option<&Status>,
    why: &str,
    attached: usize,
    failsafe: &[FailsafeRule],
) -> Vec<Finding> {
    let finding = |severity, subject: &str, text: String| Finding::new(severity, Area::Agent, subject, text);
    let mut found = Vec::new();
    match status {
        None if attached > 0 => found.push(
            finding(
                Severity::Warn,
                "agent",
                format!(
                    "the filter is in force on {attached} interfaces, but no agent keeps it up to date: {why}"
                ),
            )
            .fix("systemctl start ravelin"),
        ),
        None => found.push(
            finding(
                Severity::Info,
                "agent",
                format!("no agent runs, so nothing is filtered yet: {why}"),
            )
            .fix("start it in observe mode first: ravelin agent --mode observe"),
        ),
        Some(status) => found.extend(running(status)),
    }
    if failsafe.is_empty() {
        found.push(
            finding(
                Severity::Warn,
                "failsafe",
                "no failsafe is configured: a mistake in the policy can shut out whoever manages this host".into(),
            )
            .fix("failsafe = [\"tcp/22 from PREFIX\"] in agent.toml, with the prefix that you manage this host from"),
        );
    }
    for warning in failsafe.iter().flat_map(FailsafeRule::warnings) {
        found.push(finding(Severity::Warn, "failsafe", warning));
    }
    found
}

fn running(status: &Status) -> Vec<Finding> {
    let finding = |severity, subject: &str, text: String| Finding::new(severity, Area::Agent, subject, text);
    let mut found = Vec::new();
    if status.ready {
        let doing = match status.mode.as_str() {
            "observe" => "and only counts what would be dropped",
            _ => "and drops what the policy drops",
        };
        found.push(finding(
            Severity::Ok,
            "agent",
            format!(
                "the agent has generation {} in force {doing}",
                status.policy.generation
            ),
        ));
    } else {
        found.push(
            finding(
                Severity::Fail,
                "agent",
                "the agent runs, but does not filter every interface that it was asked to".into(),
            )
            .fix("ravelin status says why"),
        );
    }
    if let Some(error) = &status.policy.last_error {
        let first = error.lines().next().unwrap_or_default();
        found.push(
            Finding::new(
                Severity::Fail,
                Area::Policy,
                &status.policy.path,
                format!("the policy file was refused, so an older policy stays in force: {first}"),
            )
            .fix(format!("ravelin check {}", status.policy.path)),
        );
    }
    for name in &status.unmatched {
        found.push(
            finding(Severity::Warn, name, format!("no interface matches {name}"))
                .fix("take it out of the patterns, unless it comes later"),
        );
    }
    for sentence in &status.degraded {
        found.push(finding(Severity::Warn, "degraded", sentence.clone()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_healthy_when_it_is_ready() {
        let rule: FailsafeRule = "tcp/22 from 203.0.113.9".parse().expect("a rule");
        let status = Status {
            ready: true,
            mode: "enforce".into(),
            ..Status::default()
        };
        let found = findings(Some(&status), "", 0, std::slice::from_ref(&rule));
        assert_eq!(
            found.iter().map(|finding| finding.severity).collect::<Vec<_>>(),
            [Severity::Ok]
        );
        let mut status = Status {
            ready: false,
            degraded: vec!["no TCX".into()],
            ..status
        };
        status.policy.last_error = Some("policy.toml:3:1: oops\n  3 | x".into());
        let found = findings(Some(&status), "", 0, &[rule]);
        assert_eq!(
            found
                .iter()
                .filter(|finding| finding.severity == Severity::Fail)
                .count(),
            2
        );
        assert!(
            found
                .iter()
                .any(|finding| finding.text.ends_with("policy.toml:3:1: oops"))
        );
    }

    #[test]
    fn without_an_agent_it_matters_whether_the_filter_is_in_force() {
        assert_eq!(findings(None, "none", 2, &[])[0].severity, Severity::Warn);
        let found = findings(None, "none", 0, &[]);
        assert_eq!(
            (found[0].severity, found[1].severity),
            (Severity::Info, Severity::Warn)
        );
        assert!(found[1].text.contains("no failsafe"));
        let open: FailsafeRule = "tcp/22 from any".parse().expect("a rule");
        let found = findings(None, "none", 0, &[open]);
        assert!(found[1].text.contains("lets everybody in"), "{found:?}");
    }
}
