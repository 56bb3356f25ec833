//! Ports that nftables publishes for a container: judged before they are translated, and shown with what the policy says
//! of them.

use anyhow::{Context, Result};
use ravelin_tests::agent::binary;
use ravelin_tests::lab::{FRIEND, NODE, STRANGER};
use ravelin_tests::topology::{BEHIND, CONTAINER, CONTAINER6, Containers};
use ravelin_tests::traffic::{Echo, tcp_reaches, udp_reaches};
use serde_json::Value;
use std::net::SocketAddr;
use std::process::Command;

/// Names the published port, not the one that the container listens on.
const POLICY: &str = "version = 1
[[service]]
name = \"web\"
ports = [\"tcp/8080\"]
allow = [\"192.0.2.0/24\", \"2001:db8:1::/64\"]
";

#[test]
fn a_published_port_is_the_policys_before_it_is_translated_and_status_says_whose_it_is() -> Result<()> {
    let stage = Containers::routed()?;
    let lab = &stage.lab;
    let inner: Result<Vec<Echo>> = BEHIND
        .iter()
        .map(|(container, ..)| Echo::start(&stage.container, SocketAddr::new(*container, 80)))
        .collect();
    let _inner = inner?;
    stage.publish(8080, 80)?;
    for (_, node, _, _) in BEHIND {
        let at = SocketAddr::new(node, 8080);
        assert!(
            tcp_reaches(&lab.friend, at) && udp_reaches(&lab.stranger, at),
            "{at}"
        );
    }

    let agent = lab.agent(POLICY)?;
    for (container, node, _, _) in BEHIND {
        let at = SocketAddr::new(node, 8080);
        assert!(tcp_reaches(&lab.friend, at), "{FRIEND} is allowed at {at}");
        assert!(!udp_reaches(&lab.friend, at), "no service names udp/8080");
        assert!(
            !tcp_reaches(&lab.stranger, at),
            "{STRANGER} is not allowed at {at}"
        );
        // The port behind it is another one.
        assert!(!tcp_reaches(&lab.friend, SocketAddr::new(container, 80)));
    }

    let status = agent.status()?;
    let mut told: Vec<[&str; 5]> = status
        .published
        .iter()
        .map(|row| [&row.port, &row.to, &row.by, &row.service, &row.ruling].map(String::as_str))
        .collect();
    told.sort();
    let (v4, v6) = (format!("{CONTAINER}:80"), format!("[{CONTAINER6}]:80"));
    let web = "the service web says who reaches it";
    let closed = "closed: no service names it";
    assert_eq!(
        told,
        [
            ["tcp/8080", &v4, "nftables", "web", web],
            ["tcp/8080", &v6, "nftables", "web", web],
            ["udp/8080", &v4, "nftables", "", closed],
            ["udp/8080", &v6, "nftables", "", closed],
        ]
    );
    let table = agent.ok(&["status"])?;
    let row = |words: &[&str]| {
        let has = |line: &str| words.iter().all(|word| line.contains(word));
        table.lines().any(has)
    };
    assert!(row(&["PUBLISHED", "AT", "TO", "BY", "POLICY"]), "{table}");
    assert!(row(&["udp/8080", "any", &v4, "nftables", closed]), "{table}");

    // Without an agent: by a policy that names nothing.
    let mut doctor = Command::new(binary()?);
    doctor
        .args([
            "doctor",
            "-o",
            "json",
            "--socket",
            "/nonexistent/ravelin.sock",
            "--policy",
        ])
        .arg(agent.policy_file())
        .env_remove("RAVELIN_CONFIG");
    agent.write_policy("version = 1\n")?;
    let output = lab.node.run(move || doctor.output())?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let findings = report["findings"].as_array().context("no findings")?;
    let about: Vec<(&Value, &Value)> = findings
        .iter()
        .filter(|finding| finding["area"] == "published")
        .map(|finding| (&finding["severity"], &finding["text"]))
        .collect();
    let text = format!("nftables publishes tcp/8080 to {v4}; {closed}");
    assert_eq!(about.len(), 4, "{about:?}");
    assert!(
        about.contains(&(&Value::from("warn"), &Value::from(text.as_str()))),
        "{about:?} at {NODE}"
    );
    Ok(())
}
