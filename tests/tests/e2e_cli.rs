//! The command line against a running agent: golden sessions, exit codes, records, and edits that last.

use anyhow::{Context, Result, ensure};
use ravelin::api::types::{Applied, EventRecord, Explanation, MonitorRecord};
use ravelin_tests::agent::{METRICS, binary};
use ravelin_tests::lab::{EVERYTHING, NODE_B, NOTHING};
use ravelin_tests::{Agent, Lab, session, traffic, wait};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const POLICY: &str = r#"# Keep this comment.
version = 1

[groups]
web = ["10.20.0.0/16", "2001:db8:10::/48"]

[[service]]
name  = "payments-api"
ports = ["tcp/8443", "udp/8443"]   # both
allow = ["@web"]
"#;

#[test]
fn a_session_reads_as_recorded() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    session::replay(
        &agent,
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sessions/edit.session"),
    )
}

#[test]
fn a_session_with_egress_rules_reads_as_recorded() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(&POLICY.replace("[groups]", "[defaults]\negress = \"deny\"\n\n[groups]"))?;
    session::replay(
        &agent,
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sessions/egress.session"),
    )
}

#[test]
fn exit_codes_tell_no_from_wrong_usage() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    for (arguments, code) in [
        (&["status"][..], 0),
        (&["explain", "tcp", "10.20.3.4", "to", "8443"], 0),
        (&["explain", "tcp", "192.0.2.7", "to", "8443"], 1),
        (&["allow", "nothing", "192.0.2.7"], 1),
        (&["revoke", "payments-api", "192.0.2.7"], 1),
        (&["status", "--no-such-flag"], 2),
        (&["no-such-command"], 2),
    ] {
        let output = agent.cli(arguments)?;
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

#[test]
fn without_an_agent_a_command_says_what_to_do() -> Result<()> {
    let output = Command::new(binary()?)
        .args(["status", "--socket", "/nonexistent/ravelin.sock"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("/nonexistent/ravelin.sock") && said.contains("ravelin agent"),
        "{said}"
    );
    Ok(())
}

#[test]
fn an_edit_takes_effect_and_keeps_the_comments() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8443)?;
    let mut agent = lab.agent(POLICY)?;
    assert_eq!(lab.stranger_reaches(8443), NOTHING);
    let applied: Applied = agent.json(&["allow", "payments-api", "198.51.100.2"])?;
    ensure!(applied.changed && !applied.diff.is_empty(), "{applied:?}");
    agent.ok(&["allow", "payments-api", "2001:db8:2::2"])?;
    assert_eq!(lab.stranger_reaches(8443), EVERYTHING);
    let text = std::fs::read_to_string(agent.policy_file())?;
    assert!(
        text.contains("# Keep this comment.") && text.contains("# both"),
        "{text}"
    );

    agent.kill()?;
    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    assert_eq!(lab.stranger_reaches(8443), EVERYTHING);
    agent.ok(&["revoke", "payments-api", "198.51.100.2"])?;
    agent.ok(&["revoke", "payments-api", "2001:db8:2::2"])?;
    assert_eq!(lab.stranger_reaches(8443), NOTHING);
    Ok(())
}

#[test]
fn a_temporary_allow_ends_by_itself() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8443)?;
    let agent = lab.agent(POLICY)?;
    agent.ok(&["allow", "payments-api", "198.51.100.2", "--for", "3s"])?;
    let to = SocketAddr::new(NODE_B.into(), 8443);
    assert!(traffic::udp_reaches(&lab.stranger, to));
    assert_eq!(agent.status()?.policy.temporary.len(), 1);
    let (_, took) = wait::until("the allow to end", || {
        match traffic::udp_reaches(&lab.stranger, to) {
            false => Ok(()),
            true => Err("it still reaches the service"),
        }
    });
    assert!(took < Duration::from_secs(6), "{took:?}");
    wait::until_equal("the entry to leave the file", &false, || {
        std::fs::read_to_string(agent.policy_file()).is_ok_and(|text| text.contains("198.51.100.2"))
    });
    Ok(())
}

#[test]
fn a_temporary_deny_ends_across_a_restart() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8443)?;
    let mut agent = lab.agent(&POLICY.replace("[\"@web\"]", "[\"any\"]"))?;
    assert_eq!(lab.stranger_reaches(8443), EVERYTHING);
    agent.ok(&["deny", "198.51.100.0/24", "--for", "4s"])?;
    assert_eq!(lab.stranger_reaches(8443), [false, false, true, true]);
    agent.kill()?;
    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    let to = SocketAddr::new(NODE_B.into(), 8443);
    let (_, took) = wait::until("the deny to end", || {
        match traffic::udp_reaches(&lab.stranger, to) {
            true => Ok(()),
            false => Err("it is still denied"),
        }
    });
    assert!(took < Duration::from_secs(8), "{took:?}");
    Ok(())
}

#[test]
fn a_dry_run_shows_the_difference_and_changes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let before = agent.status()?.policy;
    let file = agent.policy_file().with_file_name("next.toml");
    std::fs::write(&file, POLICY.replace("\"@web\"", "\"@web\", \"198.51.100.0/24\""))?;
    let file = file
        .to_str()
        .context("a temporary directory with a strange name")?;
    let shown: Applied = agent.json(&["apply", "-f", file, "--dry-run"])?;
    assert!(!shown.changed, "{shown:?}");
    let line = shown.diff.first().context("a dry run without a difference")?;
    assert_eq!(
        (line.change.as_str(), line.who.as_str(), line.service.as_str()),
        ("gains", "198.51.100.0/24", "payments-api")
    );
    assert_eq!(agent.status()?.policy.digest, before.digest);

    let applied: Applied = agent.json(&["apply", "-f", file])?;
    assert!(applied.changed, "{applied:?}");
    assert_ne!(agent.status()?.policy.digest, before.digest);
    Ok(())
}

#[test]
fn explain_agrees_with_what_happens() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8443)?;
    let agent = lab.agent(&POLICY.replace("10.20.0.0/16", "192.0.2.0/24"))?;
    let explain = |packet: &[&str]| -> Result<Explanation> {
        let output = agent.cli(&[&["explain"], packet, &["-o", "json"]].concat())?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let friend = explain(&["tcp", "192.0.2.2", "to", "192.0.2.1:8443"])?;
    assert_eq!(
        (friend.verdict.as_str(), friend.reason.as_str()),
        ("pass", "allowed")
    );
    assert_eq!(
        (friend.service.as_deref(), friend.rule.as_deref()),
        (Some("payments-api"), Some("allow @web"))
    );
    let stranger = explain(&["tcp", "198.51.100.2", "to", "198.51.100.1:8443"])?;
    assert_eq!(
        (stranger.verdict.as_str(), stranger.reason.as_str()),
        ("drop", "not-allowed")
    );
    assert!(
        stranger
            .place
            .is_some_and(|place| place.path.ends_with("policy.toml"))
            && !stranger.steps.is_empty()
    );
    assert!(lab.friend_reaches(8443)[0] && !lab.stranger_reaches(8443)[0]);
    Ok(())
}

#[test]
fn monitor_shows_a_drop_as_it_happens() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
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
        traffic::udp_reaches(&lab.stranger, SocketAddr::new(NODE_B.into(), 8443));
        let lines: Vec<String> = events.try_iter().collect();
        lines
            .iter()
            .filter_map(|line| serde_json::from_str::<EventRecord>(line).ok())
            .find(|event| event.dst_port == Some(8443))
            .ok_or_else(|| format!("{lines:?}"))
    });
    child.kill()?;
    child.wait()?;
    reader
        .join()
        .map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    assert_eq!(
        (event.verdict.as_str(), event.reason.as_str()),
        ("drop", "not-allowed"),
        "{event:?}"
    );
    assert_eq!(
        (event.src.as_str(), event.protocol.as_str()),
        ("198.51.100.2", "udp"),
        "{event:?}"
    );
    assert_eq!(
        (event.service.as_str(), event.interface.as_str()),
        ("payments-api", "eth1"),
        "{event:?}"
    );
    Ok(())
}

#[test]
fn monitor_tells_how_many_it_did_not_show_though_nothing_follows() -> Result<()> {
    const FLOOD: u64 = 3000;
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let mut child = Command::new(binary()?)
        .args(["monitor", "-o", "json", "--socket"])
        .arg(agent.socket())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().context("the pipe of a child")?;
    let (send, records) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(stdout).lines().map_while(Result::ok);
        for record in lines.map(|line| serde_json::from_str::<MonitorRecord>(&line)) {
            if send.send(record).is_err() {
                break;
            }
        }
    });
    let to_closed = SocketAddr::new(NODE_B.into(), 4000);
    wait::until("the stream to be open", || {
        traffic::udp_reaches(&lab.stranger, to_closed);
        records.try_iter().next().map(drop).ok_or("no event")
    });
    let mut told = 0;
    lab.stranger.run(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..FLOOD {
            socket.send_to(b"knock", to_closed)?;
        }
        Ok(())
    })?;
    // Nothing is sent any more: events shown and events not shown come to all that was.
    wait::until("every event to be accounted for", || {
        for record in records.try_iter() {
            told += match record.map_err(|error| error.to_string())? {
                MonitorRecord::Event(event) => 1 + event.suppressed,
                MonitorRecord::Suppressed(record) => record.suppressed,
                // Of no packet.
                MonitorRecord::Anomaly(_) | MonitorRecord::Challenge(_) => 0,
            };
        }
        (told >= FLOOD).then_some(()).ok_or_else(|| format!("{told}"))
    });
    child.kill()?;
    child.wait()?;
    reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))
}

#[test]
fn a_mistake_at_the_first_start_changes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let taken = lab.node.run(|| TcpListener::bind("127.0.0.1:9479"))?;
    let bad = POLICY.replace("tcp/8443", "tpc/8443");
    for (policy, flags, said) in [
        (bad.as_str(), &[][..], "tpc"),
        (
            POLICY,
            &["--metrics", "127.0.0.1:9479"][..],
            "another process has the port",
        ),
    ] {
        let agent = Agent::prepare(&lab.node, &["eth0"], policy, flags)?;
        let mut command = agent.command()?;
        let output = lab.node.run(move || command.output())?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains(said) && !agent.pins().exists(), "{log}");
    }
    // Later, filtering is worth more than its metrics.
    let mut agent = Agent::start(&lab.node, &["eth0"], POLICY)?;
    agent.terminate()?;
    let taken_too = lab.node.run(|| TcpListener::bind(METRICS))?;
    agent.launch(&lab.node)?;
    let status = agent.wait_ready()?;
    assert!(
        status
            .degraded
            .iter()
            .any(|sentence| sentence.contains("another process has the port")),
        "{:?}",
        status.degraded
    );
    drop((taken, taken_too));
    Ok(())
}

#[test]
fn only_root_and_the_agent_may_change_things() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    // Even with the socket opened to everybody.
    for (path, mode) in [
        (agent.socket(), 0o666),
        (
            agent.socket().parent().map(Path::to_owned).unwrap_or_default(),
            0o755,
        ),
    ] {
        set_mode(&path, mode)?;
    }
    set_mode(
        agent.policy_file().parent().context("a file has a directory")?,
        0o755,
    )?;
    let as_nobody = |arguments: &[&str]| -> Result<std::process::Output> {
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(readable_binary(&agent)?)
            .args(arguments)
            .arg("--socket")
            .arg(agent.socket())
            .output()
            .context("starting setpriv (package util-linux)")
    };
    let read = as_nobody(&["status"])?;
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let before = agent.status()?.policy.digest;
    let change = as_nobody(&["allow", "payments-api", "198.51.100.2"])?;
    assert_eq!(
        change.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&change.stderr)
    );
    assert_eq!(agent.status()?.policy.digest, before);
    Ok(())
}

/// A copy of the binary where anybody may run it.
fn readable_binary(agent: &Agent) -> Result<std::path::PathBuf> {
    let copy = agent.policy_file().with_file_name("ravelin");
    if !copy.exists() {
        std::fs::copy(binary()?, &copy)?;
        set_mode(&copy, 0o755)?;
    }
    Ok(copy)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("changing the mode of {}", path.display()))
}

#[test]
fn the_socket_is_for_root_and_its_group() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let mode = |path: &Path| -> Result<u32> { Ok(path.metadata()?.permissions().mode() & 0o777) };
    assert_eq!(mode(&agent.socket())?, 0o660);
    assert_eq!(
        mode(agent.socket().parent().context("a socket has a directory")?)?,
        0o750
    );
    Ok(())
}

#[test]
fn completions_and_manual_pages_can_be_printed() -> Result<()> {
    for arguments in [
        &["completions", "bash"][..],
        &["completions", "zsh"],
        &["completions", "fish"],
        &["man"],
    ] {
        let output = Command::new(binary()?).args(arguments).output()?;
        assert!(
            output.status.success() && output.stdout.len() > 500,
            "{arguments:?}: {output:?}"
        );
    }
    Ok(())
}
