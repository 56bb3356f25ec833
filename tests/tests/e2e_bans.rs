//! Bans on real interfaces: they cut what is open, end by themselves, survive the agent, and never shut out the failsafe.

use anyhow::{Context, Result};
use ravelin::api::types::{BanList, BanRow, Banned, Explanation, Unbanned};
use ravelin_tests::lab::{FRIEND, FRIEND6, INTERFACES, NODE, NODE6, STRANGER};
use ravelin_tests::packet::{self, ACK, FIN, RST, SYN, Wire};
use ravelin_tests::program;
use ravelin_tests::traffic::{tcp_echoes, tcp_open, tcp_reaches};
use ravelin_tests::{Agent, Lab, wait};
use std::net::SocketAddr;

const POLICY: &str = r#"
version = 1

[[service]]
name = "web"
ports = ["tcp/8080", "udp/8080"]
allow = ["any"]

[[service]]
name = "ssh"
ports = ["tcp/8022"]
allow = ["any"]
"#;

const PORT: u16 = 8080;
const SSH: u16 = 8022;

/// An agent with a configuration file, in which `[bans]` stands.
fn agent(lab: &Lab, config: &str, flags: &[&str]) -> Result<(Agent, tempfile::TempDir)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, config)?;
    let path = path.to_str().context("a path of text")?.to_owned();
    let agent = lab.agent_with(POLICY, &[&["--config", &path], flags].concat())?;
    Ok((agent, dir))
}

fn bans(agent: &Agent) -> Result<Vec<BanRow>> {
    Ok(agent.json::<BanList>(&["bans"])?.bans)
}

fn prefixes(agent: &Agent) -> Result<Vec<String>> {
    Ok(bans(agent)?.into_iter().map(|row| row.prefix).collect())
}

/// What a command that has to fail says.
#[track_caller]
fn refused(agent: &Agent, arguments: &[&str], words: &str) -> Result<()> {
    let output = agent.cli(arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(said.contains(words), "{arguments:?} said: {said}");
    Ok(())
}

fn at(node: impl Into<std::net::IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(node.into(), port)
}

#[test]
fn a_ban_cuts_what_is_open_and_what_is_new_until_it_is_taken_back() -> Result<()> {
    let lab = Lab::new()?;
    let _servers = [lab.serve(PORT)?, lab.serve(SSH)?];
    let agent = lab.agent(POLICY)?;
    let mut open = lab.friend.run(|| tcp_open(at(NODE, PORT)))?;
    assert!(tcp_echoes(&mut open), "before the ban");

    let done: Banned = agent.json(&["ban", &FRIEND.to_string(), "--why", "scans, ticket 7"])?;
    assert_eq!((done.ban.until, done.kept), (None, true));
    assert!(!tcp_echoes(&mut open), "a connection that was open goes on");
    assert!(
        !tcp_reaches(&lab.friend, at(NODE, PORT)),
        "a new connection comes in"
    );
    assert!(
        !tcp_reaches(&lab.friend, at(NODE, SSH)),
        "another service is open"
    );
    assert!(
        tcp_reaches(&lab.friend, at(NODE6, PORT)),
        "another family is shut"
    );
    assert!(lab.stranger_reaches(PORT)[0], "a stranger is shut out");
    assert!(agent.counts()?.of("", "drop", "banned") > 0);

    // What there is to see of it.
    let text = agent.ok(&["bans"])?;
    assert!(
        text.contains("192.0.2.2") && text.contains("for ever") && text.contains("scans, ticket 7"),
        "{text}"
    );
    let text = agent.ok(&["status"])?;
    assert!(text.contains("1 by command, 0 automatic"), "{text}");
    // No, it would not pass: that is exit status 1.
    let output = agent.cli(&["explain", "tcp", &FRIEND.to_string(), "to", "8080", "-o", "json"])?;
    let told: Explanation = serde_json::from_slice(&output.stdout)?;
    assert_eq!((told.verdict.as_str(), told.reason.as_str()), ("drop", "banned"));
    let step = told
        .steps
        .iter()
        .find(|step| step.step == "ban")
        .context("a step")?;
    assert_eq!(
        step.finding,
        "192.0.2.2 is banned for ever, by the operator: scans, ticket 7"
    );
    assert_eq!(
        told.hint.as_deref(),
        Some("to let it in: ravelin unban 192.0.2.2")
    );
    assert_eq!(
        agent.metric(&lab.node, "ravelin_bans", &[("origin", "operator")])?,
        1.0
    );
    assert_eq!(
        agent.metric(&lab.node, "ravelin_bans_total", &[("origin", "operator")])?,
        1.0
    );

    let lifted: Unbanned = agent.json(&["unban", &FRIEND.to_string()])?;
    assert_eq!(lifted.unbanned.len(), 1);
    // TCP has kept what was lost meanwhile.
    wait::until("the connection to go on", || match tcp_echoes(&mut open) {
        true => Ok(()),
        false => Err("no answer".to_owned()),
    });
    assert!(tcp_reaches(&lab.friend, at(NODE, PORT)), "still banned");
    assert_eq!(bans(&agent)?, []);
    assert_eq!(
        agent.metric(&lab.node, "ravelin_bans", &[("origin", "operator")])?,
        0.0
    );
    assert!(
        agent
            .log()
            .contains("banned 192.0.2.2 for ever, by command: \"scans, ticket 7\"")
    );
    assert!(agent.log().contains("the ban of 192.0.2.2 is over, by command"));
    Ok(())
}

#[test]
fn a_ban_ends_by_itself_though_the_agent_is_dead() -> Result<()> {
    let lab = Lab::new()?;
    let _servers = lab.serve(PORT)?;
    let mut agent = lab.agent(POLICY)?;
    let prefix = "2001:db8:1::/64";
    // The node's own network, so that it has to be meant.
    agent.ok(&["ban", prefix, "--for", "4s", "--force"])?;
    agent.ok(&["ban", &FRIEND.to_string(), "--for", "1h"])?;
    agent.kill()?;
    // In force without an agent, and over without one.
    wait::until("the ban to end", || {
        match tcp_reaches(&lab.friend, at(NODE6, PORT)) {
            true => Ok(()),
            false => Err("shut out".to_owned()),
        }
    });
    assert!(
        !tcp_reaches(&lab.friend, at(NODE, PORT)),
        "the longer ban is over, too"
    );
    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    assert_eq!(prefixes(&agent)?, ["192.0.2.2"]);
    assert!(
        !tcp_reaches(&lab.friend, at(NODE, PORT)),
        "the agent has lifted it"
    );
    Ok(())
}

#[test]
fn a_live_ban_is_in_force_while_the_agent_is_dead() -> Result<()> {
    let lab = Lab::new()?;
    let _servers = lab.serve(PORT)?;
    let mut agent = lab.agent(POLICY)?;
    agent.ok(&["ban", &FRIEND.to_string(), "--for", "1h"])?;
    agent.ok(&["ban", &FRIEND6.to_string(), "--for", "1h"])?;
    agent.kill()?;
    assert_eq!(lab.friend_reaches(PORT), [false; 4]);
    assert!(lab.stranger_reaches(PORT)[0]);
    Ok(())
}

#[test]
fn bans_survive_a_restart_and_even_the_loss_of_their_table() -> Result<()> {
    let lab = Lab::new()?;
    let _servers = lab.serve(PORT)?;
    let mut agent = lab.agent(POLICY)?;
    agent.ok(&["ban", &FRIEND.to_string(), "--for", "1h", "--why", "first"])?;
    agent.ok(&["ban", &FRIEND6.to_string(), "--why", "second"])?;
    let before = bans(&agent)?;
    agent.terminate()?;
    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    let same = |list: &[BanRow]| -> Vec<(String, u64, Option<u64>, String)> {
        let one = |row: &BanRow| (row.prefix.clone(), row.since, row.until, row.why.clone());
        list.iter().map(one).collect()
    };
    // To the second, of clocks that are cut to seconds.
    let close = |one: &[BanRow], other: &[BanRow]| {
        let (one, other) = (same(one), same(other));
        one.len() == other.len()
            && one.iter().zip(&other).all(|(one, other)| {
                (&one.0, one.1, &one.3) == (&other.0, other.1, &other.3)
                    && match (one.2, other.2) {
                        (Some(one), Some(other)) => one.abs_diff(other) <= 1,
                        (one, other) => one == other,
                    }
            })
    };
    let after = bans(&agent)?;
    assert!(close(&before, &after), "{before:?}\n{after:?}");
    assert_eq!(lab.friend_reaches(PORT), [false; 4]);
    assert_eq!(
        agent.metric(&lab.node, "ravelin_bans_total", &[("origin", "operator")])?,
        2.0
    );

    // As after a restart of the machine: nothing is left in the kernel.
    agent.ok(&["detach", "--yes"])?;
    agent.terminate()?;
    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    let after = bans(&agent)?;
    assert!(close(&before, &after), "{before:?}\n{after:?}");
    assert_eq!(lab.friend_reaches(PORT), [false; 4]);
    Ok(())
}

#[test]
fn the_failsafe_stays_open_to_who_is_banned_and_its_sources_never_are() -> Result<()> {
    let lab = Lab::new()?;
    let _servers = [lab.serve(PORT)?, lab.serve(SSH)?];
    let mut agent = lab.agent_with(POLICY, &["--failsafe", "tcp/8022 from any"])?;
    agent.ok(&["ban", &FRIEND.to_string()])?;
    assert!(!tcp_reaches(&lab.friend, at(NODE, PORT)), "not banned");
    assert!(tcp_reaches(&lab.friend, at(NODE, SSH)), "the failsafe is shut");

    // A failsafe that names the source ends its ban.
    agent.set_flag("--failsafe", "tcp/8022 from 192.0.2.2");
    agent.terminate()?;
    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    assert!(tcp_reaches(&lab.friend, at(NODE, PORT)), "still banned");
    assert_eq!(bans(&agent)?, []);
    for prefix in ["192.0.2.2", "192.0.2.0/30"] {
        refused(
            &agent,
            &["ban", prefix, "--force"],
            &format!("{prefix} is not banned: the failsafe \"tcp/8022 from 192.0.2.2\" names sources of it"),
        )?;
    }
    Ok(())
}

#[test]
fn what_is_refused_says_what_can_be_done() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    for (arguments, words) in [
        (&["ban", "192.0.2.1"][..], "192.0.2.1 is an address of this host"),
        (
            &["ban", "192.0.2.0/24"],
            "holds 192.0.2.1, an address of this host",
        ),
        (
            &["ban", "4.0.0.0/6"],
            "prefixes shorter than /8 are banned with --force only",
        ),
        (
            &["ban", "2400::/12"],
            "prefixes shorter than /16 are banned with --force only",
        ),
        (&["ban", "0.0.0.0/0", "--force"], "everybody"),
        (&["ban", "127.0.0.1", "--force"], "127.0.0.1 is loopback"),
        (&["ban", "ff02::1", "--force"], "ff02::1 is multicast"),
        (&["ban", "::", "--force"], ":: is unspecified"),
        (&["ban", "255.255.255.255"], "255.255.255.255 is broadcast"),
        (
            &["ban", "fe80::9"],
            "fe80::9 is link-local: it may be the gateway",
        ),
        (&["ban", "203.0.113.9", "--why", ""], "the reason is empty"),
        (
            &["ban", "203.0.113.9", "--why", &"x".repeat(300)],
            "\"xxxxxxxxxxxxxxxxxxxxxxxx…\" has 300 characters; 200 fit",
        ),
        (
            &["ban", "203.0.113.9/24"],
            "write 203.0.113.0/24 for the network, 203.0.113.9 for the host",
        ),
        (&["ban", "@web"], "ravelin deny"),
        (&["ban", "203.0.113.9", "--for", "10"], "has no unit"),
        (&["ban", "203.0.113.9", "--why", "a\nb"], "one line"),
        (
            &["unban", "203.0.113.9"],
            "203.0.113.9 is not banned; `ravelin bans` lists what is",
        ),
        (&["unban"], "--all"),
    ] {
        refused(&agent, arguments, words)?;
    }
    assert_eq!(bans(&agent)?, []);

    agent.ok(&["ban", "203.0.113.0/24"])?;
    refused(
        &agent,
        &["unban", "203.0.113.9"],
        "203.0.113.9 itself is not banned, but 203.0.113.0/24 around it is",
    )?;
    refused(
        &agent,
        &["unban", "203.0.0.0/16"],
        "but 203.0.113.0/24 within it is",
    )?;

    // Eight lengths of a family, and a ninth.
    for len in 25..32 {
        agent.ok(&["ban", &format!("203.0.113.0/{len}")])?;
    }
    refused(
        &agent,
        &["ban", "198.51.100.7"],
        "the kernel looks for no more: /24, /25, /26, /27, /28, /29, /30, /31",
    )?;
    agent.ok(&["ban", "198.51.100.128/25"])?;
    agent.ok(&["ban", "2001:db8:7::/48"])?;
    // One that is not used any more makes room.
    agent.ok(&["unban", "203.0.113.0/31"])?;
    agent.ok(&["ban", "198.51.100.7"])?;

    // A second word on the same prefix takes the place of the first, but for an end that is sooner.
    refused(
        &agent,
        &["ban", "198.51.100.7", "--for", "1h"],
        "would end a ban sooner, which takes --force: 198.51.100.7 is banned for ever, by the operator",
    )?;
    let again = ["ban", "198.51.100.7", "--for", "1h", "--why", "again"];
    let done: Banned = agent.json(&[&again[..], &["--force"]].concat())?;
    assert!(done.before.is_some_and(|before| before.until.is_none()));
    assert_eq!(done.ban.why, "again");
    let done: Banned = agent.json(&["ban", "198.51.100.7", "--for", "2h"])?;
    assert_eq!(done.ban.why, "again");
    let lifted: Unbanned = agent.json(&["unban", "--all"])?;
    assert_eq!(lifted.unbanned.len(), 10);
    assert_eq!(bans(&agent)?, []);
    assert_eq!(agent.ok(&["unban", "--all"])?, "nothing was banned\n");
    assert!(!agent.log().contains(" 0 bans"), "{}", agent.log());
    Ok(())
}

#[test]
fn nobody_bans_the_session_that_they_type_in() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let typed = |arguments: &[&str]| {
        std::process::Command::new(ravelin_tests::agent::binary()?)
            .args(arguments)
            .arg("--socket")
            .arg(agent.socket())
            .env("SSH_CONNECTION", "203.0.113.9 40000 192.0.2.1 22")
            .output()
            .context("starting ravelin")
    };
    let output = typed(&["ban", "203.0.113.0/24"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("holds 203.0.113.9, from which you are logged in"),
        "{said}"
    );
    assert!(typed(&["ban", "203.0.113.128/25"])?.status.success());
    assert!(typed(&["ban", "203.0.113.0/24", "--force"])?.status.success());
    assert_eq!(bans(&agent)?.len(), 2);
    Ok(())
}

#[test]
fn a_full_table_refuses_and_forgets_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let _servers = lab.serve(PORT)?;
    let (agent, _dir) = agent(&lab, "[bans]\nmax = 16\n", &[])?;
    agent.ok(&["ban", &STRANGER.to_string()])?;
    for host in 1..16 {
        agent.ok(&["ban", &format!("203.0.113.{host}")])?;
    }
    refused(
        &agent,
        &["ban", &FRIEND.to_string()],
        "the table of bans is full: it holds 16; `ravelin unban` makes room",
    )?;
    assert!(lab.friend_reaches(PORT)[0], "not banned, but shut out");
    assert!(!lab.stranger_reaches(PORT)[0], "a ban that was there is gone");
    let list: BanList = agent.json(&["bans"])?;
    assert_eq!((list.max, list.bans.len()), (16, 16));
    // What ends makes room.
    agent.ok(&["ban", "203.0.113.1", "--for", "1s", "--force"])?;
    wait::until("the agent to take out what is over", || {
        let output = agent
            .cli(&["ban", &FRIEND.to_string()])
            .map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    });
    assert!(!lab.friend_reaches(PORT)[0], "not banned");
    assert!(agent.log().contains("the ban of 203.0.113.1 is over"));
    Ok(())
}

/// Three connections of a source, then one an hour; more, and a source that has proven its address is banned.
fn limited(ban: &str) -> String {
    let limits = format!(
        "ports = [\"tcp/8080\", \"udp/8080\"]\nallow = [\"any\"]\n[service.limits]\n\
         new_connections = {{ per_source = \"1/h\", burst = 4 }}\non_excess = \"ban {ban}\"\n"
    );
    POLICY.replacen(
        "ports = [\"tcp/8080\", \"udp/8080\"]\nallow = [\"any\"]\n",
        &limits,
        1,
    )
}

/// A node whose peers take what XDP sends back, which answers with cookies.
fn proving(ban: &str, flags: &[&str]) -> Result<(Lab, Agent)> {
    let lab = Lab::new()?;
    for peer in [&lab.friend, &lab.stranger] {
        program::run(peer, "ethtool", &["-K", "eth0", "gro", "on"])?;
    }
    lab.node.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let agent = lab.agent_with(&limited(ban), flags)?;
    wait::until("challenges", || match agent.log() {
        log if log.contains("challenges can be given") => Ok(()),
        log => Err(log),
    });
    Ok((lab, agent))
}

/// Opens connections until the condition holds.
fn insist(lab: &Lab, what: &str, mut until: impl FnMut() -> Result<bool>) {
    wait::until(what, || {
        let _ = lab.friend.run(|| tcp_open(at(NODE, PORT)));
        match until() {
            Ok(true) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn who_proved_the_address_and_exceeds_is_banned_and_longer_each_time() -> Result<()> {
    let (lab, mut agent) = proving("2s", &[])?;
    let _servers = [lab.serve(PORT)?, lab.serve(SSH)?];
    let row = |agent: &Agent| -> Result<Option<BanRow>> { Ok(bans(agent)?.into_iter().next()) };
    let mut first = None;
    insist(&lab, "the first ban", || {
        first = row(&agent)?;
        Ok(first.is_some())
    });
    let first = first.context("a ban")?;
    assert_eq!(
        (
            first.prefix.as_str(),
            first.origin.as_str(),
            first.service.as_str()
        ),
        ("192.0.2.2", "automatic", "web")
    );
    assert!(agent.counts()?.of("web", "drop", "limit-source-new") > 0);
    assert!(lab.stranger_reaches(SSH)[0], "somebody else is shut out");
    // It ends, and what gives reason again ends later: 4 s, 8 s. The agent may die in between.
    insist(&lab, "the second ban", || {
        Ok(row(&agent)?.is_some_and(|row| row.strikes >= 2))
    });
    agent.kill()?;
    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    insist(&lab, "the third ban", || {
        Ok(row(&agent)?.is_some_and(|row| row.strikes >= 3))
    });
    let third = row(&agent)?.context("a ban")?;
    assert_eq!(third.service, "web");
    // Both ends are seconds of the wall clock.
    let seconds = third.until.context("an end")? - third.since;
    assert!((7..=9).contains(&seconds), "{third:?}");
    // For the whole host, not only for the service.
    assert!(
        !tcp_reaches(&lab.friend, at(NODE, SSH)),
        "another service is open"
    );
    assert!(
        tcp_reaches(&lab.friend, at(NODE6, SSH)),
        "another address is shut out"
    );
    // Of those before the kill only one that is in force is known.
    assert!(agent.metric(&lab.node, "ravelin_bans_total", &[("service", "web")])? >= 1.0);
    let log = agent.log();
    assert!(log.contains("banned 192.0.2.2 for 2s, by service web"), "{log}");
    assert!(
        log.contains("banned 192.0.2.2 for 8s, by service web, strike 3"),
        "{log}"
    );
    // The operator's word over it forgives nothing.
    let done: Banned = agent.json(&["ban", &FRIEND.to_string(), "--for", "1h"])?;
    assert_eq!((done.ban.origin.as_str(), done.ban.strikes), ("operator", 3));
    Ok(())
}

#[test]
fn forged_packets_ban_nobody() -> Result<()> {
    let (lab, agent) = proving("1h", &[])?;
    let _servers = lab.serve(PORT)?;
    let wire = Wire::open((&lab.stranger, "eth0"), (&lab.node, INTERFACES[1]))?;
    // The friend's own address, from where it is not; all that can be made up without hearing an answer.
    let counted = || -> Result<u64> { Ok(agent.counts()?.0.values().sum()) };
    let before = counted()?;
    let (to, mut sent) = (at(NODE, PORT), 0);
    for number in 0..2000_u16 {
        let from = at(FRIEND, 20_000 + number);
        for flags in [SYN, ACK, FIN | ACK, RST] {
            wire.send(&packet::tcp(from, to, flags, u32::from(number) * 7919))?;
        }
        wire.send(&packet::udp(from, to, b"flood"))?;
        sent += 5;
    }
    wait::until("all of it to be judged", || match counted() {
        Ok(now) if now >= before + sent => Ok(()),
        other => Err(format!("{other:?} of {}", before + sent)),
    });
    let counts = agent.counts()?;
    assert!(counts.of("web", "drop", "challenged") > 0, "{counts:?}");
    assert_eq!((bans(&agent)?, counts.of("", "drop", "banned")), (vec![], 0));
    assert!(
        tcp_reaches(&lab.friend, to),
        "who was forged is shut out: {counts:?}"
    );
    assert_eq!(bans(&agent)?, []);
    Ok(())
}

#[test]
fn a_source_of_the_failsafe_is_limited_and_not_banned() -> Result<()> {
    let (lab, agent) = proving("1h", &["--failsafe", "tcp/8022 from 192.0.2.2"])?;
    let _servers = [lab.serve(PORT)?, lab.serve(SSH)?];
    insist(&lab, "excess", || {
        Ok(agent.counts()?.of("web", "drop", "limit-source-new") > 3)
    });
    assert_eq!(bans(&agent)?, []);
    assert!(tcp_reaches(&lab.friend, at(NODE, SSH)), "the failsafe is shut");
    Ok(())
}
