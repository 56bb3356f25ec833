//! The agent, if one runs, and what it says about itself.

use super::{Area, Finding, Severity};
use crate::agent::challenge;
use crate::agent::config::FailsafeRule;
use crate::api::types::Status;

/// What came of asking the agent.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    Answered(&'a Status),
    /// There is none to ask; why that is known.
    Nobody(&'a str),
    /// One may well run, but did not say; why not.
    Unheard(&'a str),
}

/// `attached`: how many interfaces the pins of the instance filter; `None` if that may not be seen.
pub fn findings(asked: Asked<'_>, attached: Option<usize>, failsafe: &[FailsafeRule]) -> Vec<Finding> {
    let finding = |severity, subject: &str, text: String| Finding::new(severity, Area::Agent, subject, text);
    let mut found = Vec::new();
    let in_force = attached.filter(|count| *count > 0).map(|count| {
        let ending = if count == 1 { "" } else { "s" };
        format!("the filter is in force on {count} interface{ending}")
    });
    match (asked, in_force) {
        (Asked::Answered(status), _) => found.extend(running(status)),
        (Asked::Unheard(why), in_force) => {
            let in_force = in_force.map(|text| format!("; {text}")).unwrap_or_default();
            found.push(
                finding(
                    Severity::Warn,
                    "agent",
                    format!("the agent could not be asked, so this is judged without it: {why}{in_force}"),
                )
                .fix("run it as root; `ravelin status` must answer"),
            );
        }
        (Asked::Nobody(why), Some(in_force)) => found.push(
            finding(
                Severity::Warn,
                "agent",
                format!("{in_force}, but no agent keeps it up to date: {why}"),
            )
            .fix("systemctl start ravelin"),
        ),
        (Asked::Nobody(why), None) if attached.is_none() => found.push(finding(
            Severity::Info,
            "agent",
            format!(
                "no agent runs, and only root sees whether one that is gone left its filter in force: {why}"
            ),
        )),
        (Asked::Nobody(why), None) => found.push(
            finding(
                Severity::Info,
                "agent",
                format!("no agent runs, so nothing is filtered yet: {why}"),
            )
            .fix("start it in observe mode first: ravelin agent --mode observe"),
        ),
    }
    // What the flags of an agent say that was not heard is not known.
    if failsafe.is_empty() && !matches!(asked, Asked::Unheard(_)) {
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
        // Told by `super::challenge`, of this policy.
        if sentence.contains(challenge::INSTEAD) {
            continue;
        }
        // What is said of the flow table ends in what to do.
        let mended = sentence
            .split_once("; ")
            .filter(|_| sentence.starts_with("the flow table "));
        found.push(match mended {
            Some((text, fix)) => finding(Severity::Warn, "degraded", text.to_owned()).fix(fix),
            None => finding(Severity::Warn, "degraded", sentence.clone()),
        });
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
        let found = findings(Asked::Answered(&status), Some(0), std::slice::from_ref(&rule));
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
        let found = findings(Asked::Answered(&status), Some(0), &[rule]);
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
        let found = findings(Asked::Nobody("none"), Some(2), &[]);
        assert_eq!(found[0].severity, Severity::Warn);
        assert!(found[0].text.contains("in force on 2 interfaces"), "{found:?}");
        let found = findings(Asked::Nobody("none"), Some(0), &[]);
        assert_eq!(
            (found[0].severity, found[1].severity),
            (Severity::Info, Severity::Warn)
        );
        assert!(found[1].text.contains("no failsafe"));
        let open: FailsafeRule = "tcp/22 from any".parse().expect("a rule");
        let found = findings(Asked::Nobody("none"), Some(0), &[open]);
        assert!(found[1].text.contains("lets everybody in"), "{found:?}");
    }

    #[test]
    fn a_flow_table_that_fills_up_has_its_fix() {
        let scrape = crate::agent::handle::FlowScrape {
            live: 300,
            max: 512,
            ..Default::default()
        };
        let status = Status {
            ready: true,
            degraded: scrape.warning().into_iter().collect(),
            ..Status::default()
        };
        let found = findings(Asked::Answered(&status), Some(1), &[]);
        let told = found.iter().find(|finding| finding.subject == "degraded");
        let fix = told
            .and_then(|finding| finding.fix.as_deref())
            .unwrap_or_default();
        assert!(
            fix.starts_with("raise `max`") && fix.ends_with("open in between"),
            "{found:?}"
        );
    }

    #[test]
    fn what_may_not_be_seen_is_not_said_to_be_absent() {
        let found = findings(Asked::Unheard("permission denied on a.sock"), None, &[]);
        assert_eq!((found.len(), found[0].severity), (1, Severity::Warn));
        assert!(
            found[0].text.ends_with("permission denied on a.sock"),
            "{found:?}"
        );
        let found = findings(Asked::Unheard("the agent is stuck"), Some(1), &[]);
        assert!(found[0].text.ends_with("in force on 1 interface"), "{found:?}");
        let found = findings(Asked::Nobody("none"), None, &[]);
        assert!(!found[0].text.contains("nothing is filtered"), "{found:?}");
    }
}
