//! What leaves the node: the egress rules on a wire, with real sockets, by command, and as they are counted and told.

use anyhow::{Context, Result};
use firewall_common::verdict::Direction;
use ravelin::api::types::{EventRecord, Explanation, RuleRow, ServiceRow};
use ravelin_tests::agent::binary;
use ravelin_tests::lab::{EVERYTHING, FRIEND, FRIEND6, NODE, NODE_B, NOTHING, STRANGER, STRANGER6, reaches};
use ravelin_tests::traffic::{self, Echo};
use ravelin_tests::{Agent, Lab, wait};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};

const POLICY: &str = r#"version = 1

[defaults]
egress = "deny"

[[service]]
name  = "web"
ports = ["tcp/8443", "udp/8443", "udp/8444"]
allow = ["192.0.2.0/24", "2001:db8:1::/64"]

[[egress]]
name  = "peers"                                # comments stay
ports = ["tcp/7000", "udp/7000"]
to    = ["192.0.2.2", "2001:db8:1::2"]
"#;

/// Echo servers of the friend and the stranger on a port.
fn peers_serve(lab: &Lab, port: u16) -> Result<Vec<Echo>> {
    let ends: [(_, IpAddr); 4] = [
        (&lab.friend, FRIEND.into()),
        (&lab.friend, FRIEND6.into()),
        (&lab.stranger, STRANGER.into()),
        (&lab.stranger, STRANGER6.into()),
    ];
    let start = |(namespace, address): (_, IpAddr)| Echo::start(namespace, SocketAddr::new(address, port));
    ends.into_iter().map(start).collect()
}

fn reaches_friend(lab: &Lab, port: u16) -> [bool; 4] {
    reaches(&lab.node, FRIEND.into(), FRIEND6.into(), port)
}

fn reaches_stranger(lab: &Lab, port: u16) -> [bool; 4] {
    reaches(&lab.node, STRANGER.into(), STRANGER6.into(), port)
}

fn explain(agent: &Agent, packet: &[&str]) -> Result<Explanation> {
    let output = agent.cli(&[&["explain", "out"], packet, &["-o", "json"]].concat())?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn nothing_leaves_but_what_a_rule_opens() -> Result<()> {
    let lab = Lab::new()?;
    let _echoes = [peers_serve(&lab, 7000)?, peers_serve(&lab, 7001)?];
    // Before any neighbour is known: what a host cannot live without leaves, or nothing here would.
    let agent = lab.agent(POLICY)?;
    assert_eq!(reaches_friend(&lab, 7000), EVERYTHING);
    assert_eq!(reaches_friend(&lab, 7001), NOTHING);
    assert_eq!(reaches_stranger(&lab, 7000), NOTHING);
    let counts = agent.counts_of(Direction::Egress)?;
    assert!(counts.of("peers", "pass", "egress-allowed") >= 4, "{counts:?}");
    assert!(counts.of("", "drop", "egress-closed") >= 8, "{counts:?}");
    let labels = [
        ("direction", "egress"),
        ("service", "peers"),
        ("reason", "egress-allowed"),
    ];
    assert!(agent.metric(&lab.node, "ravelin_packets_total", &labels)? >= 4.0);

    let ping = || traffic::ping_reaches(&lab.node, FRIEND.into());
    assert!(!ping());
    agent.ok(&["egress", "add", "ping", "icmp/echo", "--to", "any"])?;
    assert!(ping() && traffic::ping_reaches(&lab.node, STRANGER6.into()));
    Ok(())
}

#[test]
fn a_destination_comes_and_goes_by_command_and_cuts_what_is_open() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = peers_serve(&lab, 7000)?;
    let agent = lab.agent(POLICY)?;
    agent.ok(&["allow", "peers", "198.51.100.2"])?;
    assert_eq!(reaches_stranger(&lab, 7000), [true, true, false, false]);
    let text = std::fs::read_to_string(agent.policy_file())?;
    assert!(
        text.contains("# comments stay") && text.contains("\"198.51.100.2\""),
        "{text}"
    );
    let mut open = lab
        .node
        .run(|| traffic::tcp_open(SocketAddr::new(STRANGER.into(), 7000)))?;
    assert!(traffic::tcp_echoes(&mut open));
    agent.ok(&["revoke", "peers", "198.51.100.2"])?;
    assert!(
        !traffic::tcp_echoes(&mut open),
        "the connection outlives its rule"
    );
    assert_eq!(reaches_stranger(&lab, 7000), NOTHING);

    // A deny beats the allow of another rule, written before or after it.
    agent.ok(&["egress", "add", "all", "--to", "any"])?;
    assert_eq!(reaches_stranger(&lab, 7000), EVERYTHING);
    agent.ok(&["egress", "add", "never", "tcp/7000", "--deny", "198.51.100.0/24"])?;
    assert_eq!(reaches_stranger(&lab, 7000), [false, true, true, true]);
    agent.ok(&["egress", "remove", "never"])?;
    assert_eq!(reaches_stranger(&lab, 7000), EVERYTHING);
    agent.ok(&["egress", "set", "all", "--port", "udp/7000"])?;
    assert_eq!(reaches_stranger(&lab, 7000), [false, true, false, true]);
    Ok(())
}

#[test]
fn a_service_answers_whom_it_allows_and_opens_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8443)?;
    let agent = lab.agent(POLICY)?;
    assert_eq!(lab.friend_reaches(8443), EVERYTHING);
    let row = |name: &str| -> Result<ServiceRow> {
        let rows: Vec<ServiceRow> = agent.json(&["services"])?;
        let found = rows.into_iter().find(|row| row.name == name);
        found.with_context(|| format!("a row of {name}"))
    };
    let (web, peers) = (row("web")?, row("peers")?);
    assert_eq!(
        (web.direction.as_str(), peers.direction.as_str()),
        ("ingress", "egress")
    );
    assert!(web.answered.packets >= 4 && web.passed.packets >= 4, "{web:?}");
    let rules: Vec<RuleRow> = agent.json(&["rules"])?;
    let answered: u64 = rules.iter().map(|rule| rule.answered.packets).sum();
    assert_eq!(answered, row("web")?.answered.packets, "{rules:?}");

    // From the port of a service to somebody it does not allow: no answer, and no rule opens it.
    let heard = |from: IpAddr, to: (&ravelin_tests::Namespace, IpAddr)| -> Result<bool> {
        let to_end = SocketAddr::new(to.1, 9000);
        let far = to.0.run(|| UdpSocket::bind(to_end))?;
        far.set_read_timeout(Some(traffic::PROBE))?;
        let near = lab.node.run(|| UdpSocket::bind(SocketAddr::new(from, 8444)))?;
        near.send_to(b"ravelin", to_end)?;
        Ok(far.recv(&mut [0; 16]).is_ok())
    };
    assert!(heard(NODE.into(), (&lab.friend, FRIEND.into()))?);
    assert!(!heard(NODE_B.into(), (&lab.stranger, STRANGER.into()))?);
    // Nor does it answer any more whom it does not allow any more.
    let mut open = lab
        .friend
        .run(|| traffic::tcp_open(SocketAddr::new(NODE.into(), 8443)))?;
    assert!(traffic::tcp_echoes(&mut open));
    agent.ok(&["revoke", "web", "192.0.2.0/24"])?;
    assert!(!heard(NODE.into(), (&lab.friend, FRIEND.into()))?);
    assert!(!traffic::tcp_echoes(&mut open));
    Ok(())
}

#[test]
fn the_failsafe_is_answered_whatever_the_rules_say() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8022)?;
    let agent = lab.agent_with(POLICY, &["--failsafe", "tcp/8022 from 192.0.2.0/24"])?;
    assert_eq!(lab.friend_reaches(8022), [true, false, false, false]);
    agent.ok(&["egress", "add", "nothing", "--deny", "any"])?;
    assert_eq!(lab.friend_reaches(8022), [true, false, false, false]);
    Ok(())
}

#[test]
fn observing_lets_everything_out_and_counts_what_would_not() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = peers_serve(&lab, 7001)?;
    let agent = lab.agent_with(POLICY, &["--mode", "observe"])?;
    assert_eq!(reaches_stranger(&lab, 7001), EVERYTHING);
    let counts = agent.counts_of(Direction::Egress)?;
    assert!(counts.of("", "would-drop", "egress-closed") >= 4, "{counts:?}");
    assert_eq!(counts.of("", "drop", "egress-closed"), 0, "{counts:?}");
    agent.ok(&["enforce"])?;
    assert_eq!(reaches_stranger(&lab, 7001), NOTHING);
    Ok(())
}

#[test]
fn explain_and_monitor_tell_of_what_leaves() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let allowed = explain(&agent, &["tcp", "to", "192.0.2.2:7000"])?;
    assert_eq!(
        (
            allowed.verdict.as_str(),
            allowed.reason.as_str(),
            allowed.service.as_deref()
        ),
        ("pass", "egress-allowed", Some("peers"))
    );
    assert_eq!(
        allowed.packet,
        "out tcp 192.0.2.1:49152 -> 192.0.2.2:7000 flags syn"
    );
    assert!(allowed.place.is_some_and(|place| place.line == 14));
    let closed = explain(&agent, &["tcp", "to", "198.51.100.2:7000"])?;
    assert_eq!(
        (closed.verdict.as_str(), closed.reason.as_str()),
        ("drop", "egress-closed")
    );
    assert_eq!(
        closed.hint.as_deref(),
        Some("to let it out: ravelin allow peers 198.51.100.2")
    );

    let mut child = Command::new(binary()?)
        .args(["monitor", "-o", "json", "--socket"])
        .arg(agent.socket())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child
        .stdout
        .take()
        .context("the pipe of a child that was given one")?;
    let (send, events) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    // Until the stream is open nobody listens, and the kernel writes nothing: so one probe after the other.
    let (event, _) = wait::until("the drop of a probe to be shown", || {
        traffic::udp_reaches(&lab.node, SocketAddr::new(STRANGER.into(), 7000));
        let lines: Vec<String> = events.try_iter().collect();
        lines
            .iter()
            .filter_map(|line| serde_json::from_str::<EventRecord>(line).ok())
            .find(|event| event.dst_port == Some(7000))
            .ok_or_else(|| format!("{lines:?}"))
    });
    child.kill()?;
    child.wait()?;
    reader
        .join()
        .map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    assert_eq!(
        (
            event.direction.as_str(),
            event.verdict.as_str(),
            event.reason.as_str()
        ),
        ("egress", "drop", "egress-closed"),
        "{event:?}"
    );
    assert_eq!(
        (event.src.as_str(), event.dst.as_str(), event.interface.as_str()),
        ("198.51.100.1", "198.51.100.2", "eth1"),
        "{event:?}"
    );
    Ok(())
}
