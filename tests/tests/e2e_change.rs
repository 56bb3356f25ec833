//! Change under traffic: reload, kill, restart, upgrade, stop and detach, each datagram accounted for.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use ravelin_tests::lab::{EVERYTHING, INTERFACES, NODE, NODE_B, NODE6, NODE6_B, NOTHING};
use ravelin_tests::traffic::{Trial, Verdicts};
use ravelin_tests::{Agent, Lab, wait};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

const PORT: u16 = 8080;
/// Datagrams a second, each way.
const RATE: u32 = 2000;

/// A policy that admits the friend and not the stranger; `filler` services and prefixes before them move every number
/// that the image holds.
fn policy(filler: u32) -> String {
    let mut text = String::from("version = 1\n");
    if filler % 2 == 1 {
        text.push_str("deny = [\"203.0.113.0/24\"]\n");
    }
    for service in 0..filler {
        text.push_str(&format!(
            "\n[[service]]\nname = \"filler-{service}\"\nports = [\"udp/{}\", \"tcp/{}\"]\nallow = [\"10.{service}.0.0/16\", \"2001:db8:{service:x}00::/40\"]\n",
            9000 + service,
            9000 + service
        ));
    }
    text.push_str(
        "\n[[service]]\nname = \"web\"\nports = [\"udp/8080\", \"tcp/8080\"]\nallow = [\"192.0.2.0/24\", \"2001:db8:1::/64\"]\n",
    );
    text
}

/// Traffic over IPv4 and IPv6 at once.
struct Trials(Trial, Trial);

impl Trials {
    fn start(lab: &Lab) -> Result<Trials> {
        let trial = |open: SocketAddr, shut| {
            Trial::start(&lab.node, (&lab.friend, open), (&lab.stranger, shut), RATE)
        };
        Ok(Trials(
            trial(
                SocketAddr::new(NODE.into(), PORT),
                SocketAddr::new(NODE_B.into(), PORT),
            )?,
            trial(
                SocketAddr::new(NODE6.into(), PORT),
                SocketAddr::new(NODE6_B.into(), PORT),
            )?,
        ))
    }

    fn advance(&self, datagrams: u64) {
        self.0.advance(datagrams);
        self.1.advance(datagrams);
    }

    /// Stops; fails for a single wrong verdict, in either direction.
    fn finish(self, what: &str) -> Result<()> {
        for (family, trial) in [("IPv4", self.0), ("IPv6", self.1)] {
            let verdicts: Verdicts = trial.finish()?;
            println!(
                "{what}, {family}: {} of {} allowed came in (longest gap {:?}), {} of {} denied came in",
                verdicts.allowed.count,
                verdicts.allowed_sent,
                verdicts.allowed.longest_gap,
                verdicts.denied.count,
                verdicts.denied_sent
            );
            verdicts
                .all_right()
                .with_context(|| format!("{what}, {family}"))?;
        }
        Ok(())
    }
}

#[test]
fn thirty_reloads_under_traffic_make_no_wrong_verdict() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(&policy(0))?;
    let trials = Trials::start(&lab)?;
    let first = agent.status()?.policy.generation;
    for round in 1..=30 {
        agent.apply(&policy(round % 7))?;
        trials.advance(20);
    }
    let last = agent.status()?.policy.generation;
    trials.finish("30 reloads")?;
    ensure!(
        last >= first + 30,
        "generation {first} became {last}: not every reload was one"
    );
    Ok(())
}

#[test]
fn kill_9_and_restart_under_traffic_make_no_wrong_verdict() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent(&policy(2))?;
    let trials = Trials::start(&lab)?;
    for round in 0..5 {
        agent.kill()?;
        trials.advance(200);
        // A restart after an edit that no agent saw.
        agent.write_policy(&policy(round))?;
        agent.launch(&lab.node)?;
        agent.wait_ready()?;
        trials.advance(200);
    }
    trials.finish("5 times kill -9 and restart")
}

#[test]
fn counts_survive_kill_9_and_restart() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent(&policy(1))?;
    assert_eq!(lab.stranger_reaches(PORT), NOTHING);
    let before = agent.counts()?;
    assert!(before.of("web", "drop", "not-allowed") >= 4, "{before:?}");
    agent.kill()?;
    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    let after = agent.counts()?;
    assert!(
        after.of("web", "drop", "not-allowed") >= before.of("web", "drop", "not-allowed"),
        "{before:?} {after:?}"
    );
    Ok(())
}

#[test]
fn killed_in_the_middle_of_a_reload_it_keeps_one_policy_or_the_other() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent(&policy(1))?;
    let trials = Trials::start(&lab)?;
    for round in 0..5 {
        agent.write_policy(&policy(round + 2))?;
        agent.signal(Signal::SIGHUP)?;
        agent.kill()?;
        trials.advance(100);
        agent.launch(&lab.node)?;
        agent.wait_ready()?;
    }
    trials.finish("5 kills in the middle of a reload")
}

#[test]
fn sigterm_leaves_the_data_path_in_force() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent(&policy(1))?;
    let trials = Trials::start(&lab)?;
    let status = agent.terminate()?;
    ensure!(
        status.success(),
        "the agent ended with {status} on SIGTERM:\n{}",
        agent.log()
    );
    trials.advance(400);
    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    trials.finish("SIGTERM and start")
}

#[test]
fn a_bad_policy_changes_nothing_and_says_where_it_is_wrong() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent(&policy(1))?;
    let before = agent.status()?;
    let trials = Trials::start(&lab)?;

    let bad = policy(1).replace("udp/8080", "upd/8080");
    agent.write_policy(&bad)?;
    let output = agent.cli(&["reload"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("policy.toml:") && said.contains("upd") && said.contains('^'),
        "{said}"
    );

    let after = agent.status()?;
    assert_eq!(
        (after.policy.generation, &after.policy.digest),
        (before.policy.generation, &before.policy.digest)
    );
    assert!(
        after
            .policy
            .last_error
            .as_deref()
            .is_some_and(|error| error.contains("upd")),
        "{after:?}"
    );
    assert_eq!(
        agent.metric(&lab.node, "ravelin_policy_last_reload_successful", &[])?,
        0.0
    );

    // Not even a restart on the bad file does: the last good policy is on the disk.
    agent.kill()?;
    agent.launch(&lab.node)?;
    let restarted = agent.wait_ready()?;
    assert_eq!(restarted.policy.digest, before.policy.digest);
    assert_eq!(restarted.policy.origin, "last-good");
    trials.advance(100);
    trials.finish("a bad policy")?;

    agent.apply(&policy(2))?;
    let cured = agent.status()?;
    assert_eq!(
        (cured.policy.last_error.as_deref(), cured.policy.origin.as_str()),
        (None, "file")
    );
    assert_eq!(
        agent.metric(&lab.node, "ravelin_policy_last_reload_successful", &[])?,
        1.0
    );
    Ok(())
}

#[test]
fn the_last_good_policy_holds_when_the_file_is_gone() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(PORT)?;
    let mut agent = lab.agent(&policy(1))?;
    let digest = agent.status()?.policy.digest;
    agent.kill()?;
    std::fs::remove_file(agent.policy_file())?;
    agent.launch(&lab.node)?;
    let status = agent.wait_ready()?;
    assert_eq!(
        (status.policy.origin.as_str(), status.policy.digest),
        ("last-good", digest)
    );
    assert_eq!(
        (lab.friend_reaches(PORT), lab.stranger_reaches(PORT)),
        (EVERYTHING, NOTHING)
    );
    Ok(())
}

#[test]
fn a_changed_file_applies_by_itself_and_on_sighup() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(PORT)?;
    let agent = lab.agent(&policy(0))?;
    let generation = || agent.status().map_or(0, |status| status.policy.generation);
    let first = generation();
    agent.write_policy(&policy(1))?;
    let (second, took) = wait::until("the changed file to be applied", || match generation() {
        now if now > first => Ok(now),
        now => Err(format!("generation {now}")),
    });
    println!("a changed file was in force after {took:?}");
    agent.write_policy(&policy(0).replace("192.0.2.0/24", "198.51.100.0/24"))?;
    agent.signal(Signal::SIGHUP)?;
    wait::until("SIGHUP to apply the file", || match generation() {
        now if now > second => Ok(()),
        now => Err(format!("generation {now}")),
    });
    assert_eq!(lab.stranger_reaches(PORT), [true, true, false, false]);
    Ok(())
}

#[test]
fn a_second_agent_of_the_instance_exits_and_disturbs_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(&policy(1))?;
    let before = agent.status()?;
    let trials = Trials::start(&lab)?;
    let mut second = agent.command()?;
    let output = lab.node.run(move || second.output())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains(agent.instance()),
        "the sentence names the instance: {said}"
    );
    let after = agent.status()?;
    assert_eq!(
        (before.pid, before.policy.generation),
        (after.pid, after.policy.generation)
    );
    trials.advance(100);
    trials.finish("a second agent")
}

#[test]
fn detach_removes_all_with_and_without_an_agent() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(PORT)?;
    let mut agent = lab.agent(&policy(1))?;
    assert_eq!(lab.stranger_reaches(PORT), NOTHING);
    agent.terminate()?;
    assert_eq!(lab.stranger_reaches(PORT), NOTHING);
    detach(&lab, &agent)?;
    assert_eq!(lab.stranger_reaches(PORT), EVERYTHING);
    assert_bare(&lab, &agent)?;

    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    assert_eq!(lab.stranger_reaches(PORT), NOTHING);
    detach(&lab, &agent)?;
    assert_eq!(lab.stranger_reaches(PORT), EVERYTHING);
    assert_bare(&lab, &agent)
}

#[test]
fn detach_on_exit_is_the_other_wish() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(PORT)?;
    let mut agent = lab.agent_with(&policy(1), &["--detach-on-exit"])?;
    assert_eq!(lab.stranger_reaches(PORT), NOTHING);
    let status = agent.terminate()?;
    ensure!(
        status.success(),
        "the agent ended with {status}:\n{}",
        agent.log()
    );
    assert_eq!(lab.stranger_reaches(PORT), EVERYTHING);
    assert_bare(&lab, &agent)
}

/// `ravelin detach`, run in the node's namespace.
fn detach(lab: &Lab, agent: &Agent) -> Result<()> {
    let output = lab
        .node
        .run(|| agent.cli(&["detach", "--yes", "--instance", agent.instance()]))?;
    ensure!(
        output.status.success(),
        "`ravelin detach` failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// No program on the interfaces and nothing pinned.
fn assert_bare(lab: &Lab, agent: &Agent) -> Result<()> {
    for interface in INTERFACES {
        let shown = lab.node.ip(&format!("-d link show dev {interface}"))?;
        ensure!(
            !shown.contains("xdp"),
            "a program is left on {interface}: {shown}"
        );
    }
    ensure!(!agent.pins().exists(), "{} is left", agent.pins().display());
    Ok(())
}

#[test]
fn nothing_is_left_behind() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(PORT)?;
    let mut agent = lab.agent(&policy(1))?;
    assert_eq!(lab.friend_reaches(PORT), EVERYTHING);
    detach(&lab, &agent)?;
    let (pins, socket, instance) = (agent.pins(), agent.socket(), agent.instance().to_owned());
    let pid = agent.pid().context("the agent runs")?;
    agent.terminate()?;
    assert_bare(&lab, &agent)?;
    ensure!(!socket.exists(), "{} is left", socket.display());
    for interface in INTERFACES {
        let filters = lab.node.run(|| {
            let arguments = ["filter", "show", "dev", interface, "egress"];
            std::process::Command::new("tc").args(arguments).output()
        })?;
        ensure!(
            filters.status.success(),
            "{}",
            String::from_utf8_lossy(&filters.stderr)
        );
        ensure!(
            filters.stdout.is_empty(),
            "{}",
            String::from_utf8_lossy(&filters.stdout)
        );
    }

    let namespaces = [lab.node.path(), lab.friend.path(), lab.stranger.path()];
    let dir = agent.policy_file();
    drop(agent);
    drop(lab);
    for path in namespaces.iter().chain([&pins, &dir]) {
        ensure!(!path.exists(), "{} is left", path.display());
    }
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    ensure!(
        !String::from_utf8_lossy(&line).contains(&instance),
        "process {pid} is left"
    );
    Ok(())
}

/// A client of a server of the node, seen from the client: does an exchange on its one socket still work?
fn exchanges(socket: &UdpSocket) -> bool {
    let mut buffer = [0; 64];
    socket.send(b"still there?").is_ok() && socket.recv(&mut buffer).is_ok()
}

#[test]
fn a_client_of_a_datagram_server_is_cut_when_its_service_goes() -> Result<()> {
    let lab = Lab::new()?;
    let _servers = lab.serve(PORT)?;
    let agent = lab.agent(&policy(0))?;
    let client = lab.friend.run(|| -> Result<UdpSocket> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(SocketAddr::new(NODE.into(), PORT))?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        Ok(socket)
    })?;
    ensure!(exchanges(&client), "the service admits the friend");
    // The server has just answered this very peer, which makes it no peer that the host asked.
    agent.apply("version = 1\n")?;
    for _ in 0..3 {
        ensure!(
            !exchanges(&client),
            "the service is gone, its client still gets in"
        );
    }
    agent.apply(&policy(0))?;
    ensure!(exchanges(&client), "the service is back");

    // The same when enforcement begins: while observing, everybody was answered.
    agent.apply("version = 1\n")?;
    agent.ok(&["observe"])?;
    ensure!(exchanges(&client), "observing stops nobody");
    agent.ok(&["enforce"])?;
    for _ in 0..3 {
        ensure!(!exchanges(&client), "enforcing lets the client of before in");
    }
    Ok(())
}
