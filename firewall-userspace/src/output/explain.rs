//! `ravelin explain`: the verdict, the rule and its place, then every step on the way.

use super::Style;
use super::table::indent;
use crate::api::types::Explanation;
use firewall_common::verdict::{Direction, Reason};
use std::fmt::Write;

/// Renders an explanation.
pub fn explanation(record: &Explanation, style: &Style) -> String {
    let mut out = String::new();
    let verdict = style.verdict(&record.verdict, &record.verdict.to_uppercase());
    let _ = writeln!(out, "{verdict} {} ({})", record.packet, record.reason);
    if let Some(service) = &record.service {
        let egress = record.direction == Direction::Egress.word() && record.reason != Reason::Answer.word();
        let what = if egress { "egress " } else { "service" };
        let _ = writeln!(out, "  {} {service}", style.dim(what));
    }
    if let Some(rule) = &record.rule {
        let _ = writeln!(out, "  {} {rule}", style.dim("rule   "));
    }
    if let Some(place) = &record.place {
        let _ = writeln!(out, "  {} {place}", style.dim("place  "));
    }
    if let (Some(line), Some(place)) = (&record.line, &record.place) {
        out.push_str(&indent(
            &format!("{} | {}", place.line, line.trim_end()),
            "          ",
        ));
    }
    if !record.steps.is_empty() {
        out.push('\n');
        let widest = record.steps.iter().map(|step| step.step.len()).max().unwrap_or(0);
        for step in &record.steps {
            let _ = writeln!(
                out,
                "  {}  {}",
                style.dim(&format!("{:<widest$}", step.step)),
                step.finding
            );
        }
    }
    if let Some(hint) = &record.hint {
        let _ = writeln!(out, "\n{}", style.bold(hint));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::ExplainStep;
    use crate::policy::model::Place;

    #[test]
    fn an_explanation_leads_with_the_verdict_and_ends_with_the_way_out() {
        let record = Explanation {
            packet: "tcp 10.20.66.4:49152 -> 192.0.2.1:8443 [SYN]".into(),
            direction: "ingress".into(),
            verdict: "drop".into(),
            reason: "service-denied".into(),
            service: Some("payments-api".into()),
            rule: Some("deny 10.20.66.0/24".into()),
            place: Some(Place {
                path: "policy.toml".into(),
                line: 16,
                column: 10,
            }),
            line: Some("deny  = [\"10.20.66.0/24\"]".into()),
            generation: 3,
            steps: vec![
                ExplainStep {
                    step: "packet".into(),
                    finding: "IPv4, TCP, 54 bytes".into(),
                },
                ExplainStep {
                    step: "port".into(),
                    finding: "tcp/8443 belongs to payments-api".into(),
                },
            ],
            hint: Some("deny beats allow".into()),
        };
        assert_eq!(
            explanation(&record, &Style::PLAIN),
            "\
DROP tcp 10.20.66.4:49152 -> 192.0.2.1:8443 [SYN] (service-denied)
  service payments-api
  rule    deny 10.20.66.0/24
  place   policy.toml:16:10
          16 | deny  = [\"10.20.66.0/24\"]

  packet  IPv4, TCP, 54 bytes
  port    tcp/8443 belongs to payments-api

deny beats allow
"
        );
    }
}
