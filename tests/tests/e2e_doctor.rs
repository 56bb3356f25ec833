//! `ravelin doctor` against what then happens: without an agent, with one, and beside another one's programs.

use anyhow::{Context, Result};
use ravelin_tests::agent::binary;
use ravelin_tests::lab::{FRIEND, NODE, STRANGER};
use ravelin_tests::traffic::{self, Echo};
use ravelin_tests::{Agent, Lab};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

const CLOSED: &str =
    "version = 1\n[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\nallow = [\"192.0.2.0/24\"]\n";
const OPEN: &str = "version = 1\n[[service]]\nname = \"echo\"\nports = [\"tcp/8080\", \"udp/8080\"]\n\
                    allow = [\"192.0.2.0/24\"]\n";

/// The exit code and the report of a doctor in the namespace of the node.
fn doctor(lab: &Lab, arguments: &[&str]) -> Result<(Option<i32>, Value)> {
    let mut command = Command::new(binary()?);
    command
        .args(["doctor", "-o", "json"])
        .args(arguments)
        .env_remove("RAVELIN_CONFIG");
    let output = lab.node.run(move || command.output())?;
    let report = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok((output.status.code(), report))
}

/// Severities and texts of the findings in an area.
fn about<'a>(report: &'a Value, area: &str) -> Vec<(&'a str, &'a str)> {
    let word = |finding: &'a Value, key: &str| finding[key].as_str().unwrap_or_default();
    let findings = report["findings"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    findings
        .iter()
        .filter(|finding| finding["area"] == area)
        .map(|finding| (word(finding, "severity"), word(finding, "text")))
        .collect()
}

fn write(folder: &Path, name: &str, text: &str) -> Result<String> {
    let path = folder.join(name);
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}

#[test]
fn what_it_says_of_sockets_is_what_then_happens() -> Result<()> {
    const INTERFACES: [&str; 4] = ["--interface", "eth0", "--interface", "eth1"];
    const NOBODY: [&str; 2] = ["--socket", "/nonexistent/ravelin.sock"];
    let lab = Lab::new()?;
    let folder = tempfile::tempdir()?;
    let _node = lab.serve(8080)?;
    let abroad = SocketAddr::new(STRANGER.into(), 9000);
    let _stranger = Echo::start(&lab.stranger, abroad)?;
    let here = SocketAddr::new(NODE.into(), 8080);
    let mut inbound = lab.friend.run(|| traffic::tcp_open(here))?;
    let mut outbound = lab.node.run(|| traffic::tcp_open(abroad))?;
    assert!(traffic::tcp_echoes(&mut inbound) && traffic::tcp_echoes(&mut outbound));

    let closed = write(folder.path(), "closed.toml", CLOSED)?;
    let arguments = [&INTERFACES[..], &NOBODY, &["--policy", &closed]].concat();
    let (code, report) = doctor(&lab, &arguments)?;
    assert_eq!(
        (code, &report["healthy"]),
        (Some(1), &Value::Bool(false)),
        "{report:#}"
    );
    let listeners = about(&report, "listener");
    assert!(
        listeners.iter().any(|(severity, text)| {
            *severity == "fail" && text.contains("tcp/8080") && text.contains("(pid ")
        }),
        "{report:#}"
    );
    let connections = about(&report, "connection");
    assert_eq!(connections.len(), 2, "{report:#}");
    assert!(
        connections[0].0 == "fail"
            && connections[0].1.contains(&format!("from {FRIEND}:"))
            && connections[0].1.contains("would be cut (closed)"),
        "{report:#}"
    );
    assert_eq!(
        connections[1],
        ("ok", "1 connection that this host opened would go on")
    );
    let native = about(&report, "interface");
    let native = native
        .iter()
        .filter(|(severity, text)| *severity == "ok" && text.contains("native XDP"));
    assert_eq!(native.count(), 2, "{report:#}");

    let open = write(folder.path(), "open.toml", OPEN)?;
    let failsafe = ["--failsafe", "tcp/22 from 192.0.2.2"];
    let arguments = [&INTERFACES[..], &NOBODY, &failsafe, &["--policy", &open]].concat();
    let (code, report) = doctor(&lab, &arguments)?;
    assert_eq!(
        (code, &report["healthy"]),
        (Some(0), &Value::Bool(true)),
        "{report:#}"
    );
    assert!(
        about(&report, "connection")
            .iter()
            .all(|(severity, _)| *severity == "ok"),
        "{report:#}"
    );

    // It was right: one is cut, the other goes on.
    let agent = lab.agent(CLOSED)?;
    assert!(!traffic::tcp_echoes(&mut inbound) && traffic::tcp_echoes(&mut outbound));
    let socket = agent.socket().display().to_string();
    let (code, report) = doctor(&lab, &["--socket", &socket])?;
    assert_eq!(
        (code, report["policy"].as_str()),
        (Some(1), Some("the policy in force"))
    );
    assert!(
        about(&report, "agent")
            .iter()
            .any(|(severity, text)| *severity == "ok" && text.contains("in force")),
        "{report:#}"
    );
    assert!(about(&report, "program").is_empty(), "{report:#}");
    let (code, report) = doctor(&lab, &["--socket", &socket, "--policy", &open])?;
    assert_eq!(code, Some(0), "{report:#}");
    Ok(())
}

#[test]
fn another_ones_programs_are_named() -> Result<()> {
    let lab = Lab::new()?;
    let folder = tempfile::tempdir()?;
    let open = write(folder.path(), "open.toml", OPEN)?;
    let other = Agent::start(&lab.node, &["eth0"], OPEN)?;
    let arguments = [
        "--socket",
        "/nonexistent/ravelin.sock",
        "--interface",
        "eth0",
        "--policy",
        &open,
    ];
    let (code, report) = doctor(&lab, &arguments)?;
    assert_eq!(code, Some(1), "{report:#}");
    let programs = about(&report, "program");
    assert!(
        matches!(programs[..], [("fail", text)] if text.contains(other.instance())),
        "{report:#}"
    );
    let named = [&arguments[..], &["--instance", other.instance()]].concat();
    let (code, report) = doctor(&lab, &named)?;
    assert!(
        about(&report, "agent")
            .iter()
            .any(|(severity, text)| *severity == "warn" && text.contains("no agent keeps it up to date")),
        "{report:#}"
    );
    assert_eq!(code, Some(0), "{report:#}");

    // No configuration names the interface; its pins do.
    let unnamed = [
        "--socket",
        "/nonexistent/ravelin.sock",
        "--policy",
        &open,
        "--instance",
        other.instance(),
    ];
    let (_, report) = doctor(&lab, &unnamed)?;
    assert!(
        about(&report, "agent")
            .iter()
            .any(|(severity, text)| *severity == "warn" && text.contains("in force on 1 interface,")),
        "{report:#}"
    );
    Ok(())
}
