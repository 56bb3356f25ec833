//! What Prometheus sees.

use anyhow::{Context, Result};
use ravelin_tests::lab::{EVERYTHING, NOTHING};
use ravelin_tests::{Agent, Lab, wait};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const POLICY: &str = "version = 1\n[[service]]\nname = \"web\"\nports = [\"udp/8080\", \"tcp/8080\"]\nallow = [\"192.0.2.2\", \"2001:db8:1::/48\"]\n";

#[test]
fn promtool_accepts_the_page() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let agent = lab.agent(POLICY)?;
    assert_eq!(
        (lab.friend_reaches(8080), lab.stranger_reaches(8080)),
        (EVERYTHING, NOTHING)
    );
    let (code, page) = agent.http(&lab.node, "/metrics")?;
    assert_eq!(code, 200);
    let promtool =
        std::env::var_os("RAVELIN_PROMTOOL").map_or_else(|| PathBuf::from("promtool"), PathBuf::from);
    let mut child = Command::new(&promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {} (`cargo xtask setup` fetches it)", promtool.display()))?;
    child
        .stdin
        .take()
        .context("the pipe of a child that was given one")?
        .write_all(page.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success() && said.is_empty(),
        "{}\n{page}",
        String::from_utf8_lossy(&said)
    );
    Ok(())
}

#[test]
fn the_metrics_that_are_promised_are_there() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let (_, page) = agent.http(&lab.node, "/metrics")?;
    for name in [
        "ravelin_packets_total",
        "ravelin_bytes_total",
        "ravelin_policy_generation",
        "ravelin_policy_last_reload_successful",
        "ravelin_policy_image_bytes",
        "ravelin_policy_classes",
        "ravelin_policy_prefixes",
        "ravelin_events_suppressed_total",
        "ravelin_flows",
        "ravelin_flows_max",
        "ravelin_flows_created_total",
        "ravelin_flows_displaced_total",
        "ravelin_flows_lost_total",
        "ravelin_build_info",
        "process_resident_memory_bytes",
    ] {
        assert!(
            page.lines()
                .any(|line| line.starts_with(&format!("# TYPE {name} "))),
            "{name} is missing:\n{page}"
        );
    }
    assert!(
        page.lines()
            .all(|line| line.starts_with('#') || !line.contains("192.0.2.")),
        "an address: {page}"
    );
    Ok(())
}

/// The page, the command line and the wire agree, to the packet.
#[test]
fn the_page_agrees_with_the_command_line() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let agent = lab.agent(POLICY)?;
    assert_eq!(
        (lab.friend_reaches(8080), lab.stranger_reaches(8080)),
        (EVERYTHING, NOTHING)
    );
    for (verdict, reason) in [("pass", "allowed"), ("drop", "not-allowed")] {
        let labels = [("service", "web"), ("verdict", verdict), ("reason", reason)];
        wait::until(&format!("both to agree on {verdict}"), || {
            let (before, page, after) = (
                agent
                    .counts()
                    .map_err(|error| format!("{error:#}"))?
                    .of("web", verdict, reason),
                agent
                    .metric(&lab.node, "ravelin_packets_total", &labels)
                    .map_err(|error| format!("{error:#}"))?,
                agent
                    .counts()
                    .map_err(|error| format!("{error:#}"))?
                    .of("web", verdict, reason),
            );
            match before == after && page == before as f64 && before >= 4 {
                true => Ok(()),
                false => Err(format!(
                    "{before} on the command line, {page} on the page, then {after}"
                )),
            }
        });
    }
    Ok(())
}

#[test]
fn totals_only_grow_across_reload_and_restart() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let mut agent = lab.agent(POLICY)?;
    assert_eq!(lab.stranger_reaches(8080), NOTHING);
    let dropped = |agent: &Agent| {
        agent.metric(
            &lab.node,
            "ravelin_packets_total",
            &[("service", "web"), ("verdict", "drop")],
        )
    };
    let first = dropped(&agent)?;
    assert!(first >= 4.0, "{first}");
    agent.apply(&POLICY.replace("192.0.2.2", "192.0.2.3"))?;
    let second = dropped(&agent)?;
    assert!(second >= first, "{first} became {second} by a reload");
    agent.terminate()?;
    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    let third = dropped(&agent)?;
    assert!(third >= second, "{second} became {third} by a restart");
    Ok(())
}

#[test]
fn labels_are_bounded_by_the_policy() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let samples = |agent: &Agent| -> Result<BTreeSet<String>> {
        let (_, page) = agent.http(&lab.node, "/metrics")?;
        let names = page
            .lines()
            .filter(|line| line.starts_with("ravelin_packets_total"));
        Ok(names
            .filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()))
            .collect())
    };
    let _echo = lab.serve(8080)?;
    assert_eq!(
        (lab.friend_reaches(8080), lab.stranger_reaches(8080)),
        (EVERYTHING, NOTHING)
    );
    let before = samples(&agent)?;
    for port in 20_000..20_020 {
        ravelin_tests::traffic::udp_reaches(&lab.stranger, (ravelin_tests::lab::NODE_B, port).into());
    }
    let added = &samples(&agent)? - &before;
    // Twenty more ports, at most one more way to end.
    assert!(added.len() <= 2, "{added:?}");
    Ok(())
}

#[test]
fn health_and_readiness_are_told_apart() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    assert_eq!(agent.http(&lab.node, "/healthz")?.0, 200);
    assert_eq!(agent.http(&lab.node, "/readyz")?.0, 200);
    assert_eq!(agent.http(&lab.node, "/nothing")?.0, 404);

    let mut waiting = Agent::prepare(&lab.stranger, &["wan9"], POLICY, &[])?;
    waiting.launch(&lab.stranger)?;
    wait::until("an agent without its interface to serve", || {
        match waiting.http(&lab.stranger, "/healthz") {
            Ok((200, _)) => Ok(()),
            Ok((code, body)) => Err(format!("{code} {body}")),
            Err(error) => Err(format!("{error:#}")),
        }
    });
    assert_eq!(waiting.http(&lab.stranger, "/readyz")?.0, 503);
    Ok(())
}
