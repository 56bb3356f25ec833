//! Limits of a policy file, from the file to the wire: who may open how much, what is counted, what a change keeps.

use anyhow::Result;
use ravelin::api::types::{Explanation, RuleRow, ServiceRow};
use ravelin_tests::lab::{NODE, NODE_B, NODE6, NODE6_B};
use ravelin_tests::netns::Namespace;
use ravelin_tests::traffic::{tcp_reaches, udp_reaches};
use ravelin_tests::{Agent, Lab};
use std::net::{IpAddr, SocketAddr};

/// Everybody may open three connections at once, then one an hour; friends ten, from a group of their own.
const POLICY: &str = r#"
version = 1

[groups]
friends = ["192.0.2.0/24", "2001:db8:1::/48"]

[[service]]
name  = "web"
ports = ["tcp/8080", "udp/8080"]
allow = ["any"]

[service.limits]
new_connections = { per_source = "1/h", burst = 3 }

[[service.limit]]
for             = "@friends"
new_connections = { per_source = "1/h", burst = 10 }
"#;

/// How many of so many connections, one after the other, are answered.
fn opened(from: &Namespace, to: impl Into<IpAddr>, tries: usize) -> usize {
    let to = SocketAddr::new(to.into(), 8080);
    (0..tries).filter(|_| tcp_reaches(from, to)).count()
}

fn metric(agent: &Agent, lab: &Lab) -> Result<f64> {
    let labels = [("service", "web"), ("source", "any")];
    agent.metric(&lab.node, "ravelin_connections_opened_total", &labels)
}

#[test]
fn a_source_opens_what_its_limit_bears() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let agent = lab.agent(POLICY)?;
    assert_eq!(metric(&agent, &lab)?, 0.0);
    assert_eq!(opened(&lab.stranger, NODE_B, 5), 3);
    assert_eq!(opened(&lab.stranger, NODE6_B, 4), 3);
    // The friend has a group's limit, which the stranger has not used up.
    assert_eq!(opened(&lab.friend, NODE, 11), 10);
    assert_eq!(opened(&lab.friend, NODE6, 8), 8);

    let counts = agent.counts()?;
    assert!(counts.of("web", "drop", "limit-source-new") >= 4, "{counts:?}");
    assert_eq!(metric(&agent, &lab)?, 24.0);
    let services: Vec<ServiceRow> = agent.json(&["services"])?;
    assert_eq!((services[0].opened, services[0].limits.len()), (24, 2));
    let rules: Vec<RuleRow> = agent.json(&["rules"])?;
    assert_eq!((rules[0].source.as_str(), rules[0].opened), ("any", 24));
    // What goes on, and what is no connection, is not limited by it.
    assert!(udp_reaches(&lab.stranger, SocketAddr::new(NODE_B.into(), 8080)));
    // What a source has used up is not a part of what is explained.
    let told: Explanation = agent.json(&["explain", "tcp", "198.51.100.2", "to", "8080"])?;
    assert_eq!((told.verdict.as_str(), told.reason.as_str()), ("pass", "allowed"));
    let steps: Vec<&str> = told
        .steps
        .iter()
        .filter(|step| step.step == "limit")
        .map(|step| step.finding.as_str())
        .collect();
    assert!(
        steps[0].starts_with("new connections 1/h a source (burst 3) ("),
        "{steps:?}"
    );
    Ok(())
}

#[test]
fn a_change_of_policy_and_a_restart_are_no_amnesty() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let mut agent = lab.agent(POLICY)?;
    assert_eq!(opened(&lab.stranger, NODE_B, 3), 3);
    let other = POLICY.replace(
        "[[service]]\nname  = \"web\"",
        "[[service]]\nname = \"first\"\nports = [\"tcp/81\"]\n[service.limits]\npackets.total = \"10/s\"\n\n\
         [[service]]\nname  = \"web\"",
    );
    agent.apply(&other)?;
    assert_eq!(opened(&lab.stranger, NODE_B, 1), 0);
    agent.kill()?;
    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    assert_eq!(opened(&lab.stranger, NODE_B, 1), 0);
    assert_eq!(opened(&lab.friend, NODE, 1), 1);
    // A higher burst, and the three that were opened are remembered.
    agent.apply(&other.replace("burst = 3", "burst = 4"))?;
    assert_eq!(opened(&lab.stranger, NODE_B, 3), 1);
    Ok(())
}

#[test]
fn a_total_is_shared_and_that_of_the_service_holds_for_its_groups() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let agent = lab.agent(
        &POLICY
            .replace(
                "new_connections = { per_source = \"1/h\", burst = 3 }",
                "new_connections = { total = \"1/h\", total_burst = 8 }",
            )
            .replace(
                "new_connections = { per_source = \"1/h\", burst = 10 }",
                "new_connections = { total = \"1/h\", total_burst = 5 }",
            ),
    )?;
    // The group's own total, of both families together.
    assert_eq!(opened(&lab.friend, NODE, 3), 3);
    assert_eq!(opened(&lab.friend, NODE6, 3), 2);
    // They count in the service's.
    assert_eq!(opened(&lab.stranger, NODE_B, 5), 3);
    let counts = agent.counts()?;
    assert!(counts.of("web", "drop", "limit-total-new") >= 3, "{counts:?}");
    assert_eq!(counts.of("web", "drop", "limit-source-new"), 0, "{counts:?}");
    Ok(())
}
