//! What gets through: a real agent, real sockets, IPv4 and IPv6.

use anyhow::Result;
use ravelin_tests::frame::{self, Sender};
use ravelin_tests::lab::{
    EVERYTHING, FRIEND, FRIEND6, NODE, NODE_B, NODE6, NODE6_B, NOTHING, STRANGER, STRANGER6,
};
use ravelin_tests::traffic::{self, Echo, ping_reaches, tcp_reaches, udp_reaches, udp_reaches_with};
use ravelin_tests::{Agent, Lab, wait};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

/// The friend may reach 8080; 8081 is a service that allows nobody; all else is closed.
const POLICY: &str = r#"
version = 1

[groups]
friends = ["192.0.2.0/24", "2001:db8:1::/48"]

[[service]]
name  = "web"
ports = ["tcp/8080", "udp/8080"]
allow = ["@friends"]

[[service]]
name  = "nobody"
ports = ["tcp/8081", "udp/8081"]
"#;

#[test]
fn admits_the_allowed_and_drops_the_rest() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = [lab.serve(8080)?, lab.serve(8081)?, lab.serve(9090)?];
    let agent = lab.agent(POLICY)?;

    assert_eq!(lab.friend_reaches(8080), EVERYTHING);
    assert_eq!(lab.stranger_reaches(8080), NOTHING);
    assert_eq!(lab.friend_reaches(8081), NOTHING);
    assert_eq!(lab.friend_reaches(9090), NOTHING);

    let counts = agent.counts()?;
    assert!(counts.of("web", "pass", "allowed") >= 6, "{counts:?}");
    assert!(counts.of("web", "drop", "not-allowed") >= 4, "{counts:?}");
    assert!(counts.of("nobody", "drop", "not-allowed") >= 4, "{counts:?}");
    assert!(counts.of("", "drop", "closed") >= 4, "{counts:?}");
    Ok(())
}

#[test]
fn a_deny_beats_every_allow_on_every_port() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = [lab.serve(8080)?, lab.serve(8081)?];
    let agent = lab.agent(
        r#"
        version = 1
        deny = ["198.51.100.2", "2001:db8:2::2"]

        [[service]]
        name = "web"
        ports = ["tcp/8080", "udp/8080"]
        allow = ["any"]

        [[service]]
        name = "api"
        ports = ["tcp/8081", "udp/8081"]
        allow = ["any"]
        deny = ["192.0.2.0/25", "2001:db8:1::/64"]
        "#,
    )?;
    assert_eq!(lab.friend_reaches(8080), EVERYTHING);
    assert_eq!(lab.stranger_reaches(8080), NOTHING);
    assert_eq!(lab.friend_reaches(8081), NOTHING);
    assert_eq!(lab.stranger_reaches(8081), NOTHING);

    let counts = agent.counts()?;
    assert!(counts.of("api", "drop", "service-denied") >= 4, "{counts:?}");
    let denied: u64 = counts
        .0
        .iter()
        .filter(|((_, _, reason), _)| reason == "denied")
        .map(|(_, count)| count)
        .sum();
    assert!(denied >= 8, "{counts:?}");
    Ok(())
}

#[test]
fn the_default_verdict_can_be_to_allow() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = [lab.serve(8080)?, lab.serve(9090)?];
    let _agent = lab.agent(&POLICY.replace("[groups]", "[defaults]\ningress = \"allow\"\n\n[groups]"))?;
    assert_eq!(lab.stranger_reaches(9090), EVERYTHING);
    assert_eq!(lab.stranger_reaches(8080), NOTHING);
    assert_eq!(lab.friend_reaches(8080), EVERYTHING);
    Ok(())
}

#[test]
fn ping_is_a_service_of_both_families() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent("version = 1\n[[service]]\nname = \"ping\"\nports = [\"icmp/echo\"]\nallow = [\"192.0.2.2\", \"2001:db8:1::2\"]\n")?;
    assert!(ping_reaches(&lab.friend, NODE.into()));
    assert!(ping_reaches(&lab.friend, NODE6.into()));
    assert!(!ping_reaches(&lab.stranger, NODE_B.into()));
    assert!(!ping_reaches(&lab.stranger, NODE6_B.into()));
    assert!(agent.counts()?.of("ping", "drop", "not-allowed") >= 2);
    Ok(())
}

#[test]
fn what_the_host_opens_works_under_default_deny() -> Result<()> {
    let lab = Lab::new()?;
    let addresses: [IpAddr; 2] = [FRIEND.into(), FRIEND6.into()];
    let _echo = addresses
        .map(|address| Echo::start(&lab.friend, SocketAddr::new(address, 7000)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let _agent = lab.agent(POLICY)?;
    for address in addresses {
        let to = SocketAddr::new(address, 7000);
        assert!(tcp_reaches(&lab.node, to), "tcp to {to}");
        assert!(udp_reaches(&lab.node, to), "udp to {to}");
        assert!(ping_reaches(&lab.node, address), "ping to {address}");
    }
    Ok(())
}

#[test]
fn a_connection_that_is_older_than_the_agent_goes_on() -> Result<()> {
    let lab = Lab::new()?;
    let addresses: [IpAddr; 2] = [FRIEND.into(), FRIEND6.into()];
    for address in addresses {
        let to = SocketAddr::new(address, 7000);
        let _echo = Echo::start(&lab.friend, to)?;
        let mut stream = lab.node.run(|| traffic::tcp_open(to))?;
        assert!(traffic::tcp_echoes(&mut stream));
        let _agent = lab.agent(POLICY)?;
        // The host has sent nothing on it since the agent is there.
        assert!(traffic::tcp_echoes(&mut stream), "to {to}");
    }
    Ok(())
}

#[test]
fn an_outsider_cannot_answer_what_the_host_never_asked() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    // The host talks to the friend from this port; the stranger aims at the same port.
    let socket = lab.node.run(|| UdpSocket::bind((NODE, 40000)))?;
    socket.connect((FRIEND, 7000))?;
    socket.send(b"hello")?;
    let to = frame::hardware_address(&lab.node, "eth1")?;
    let from = frame::hardware_address(&lab.stranger, "eth0")?;
    let sender = Sender::open(&lab.stranger, "eth0")?;
    let before = agent.counts()?;
    sender.send(&frame::ethernet(
        to,
        from,
        &[],
        frame::IPV4,
        &frame::udp4((STRANGER, 7000), (NODE, 40000), &[], b"x"),
    ))?;
    sender.send(&frame::ethernet(
        to,
        from,
        &[],
        frame::IPV4,
        &frame::tcp4((STRANGER, 7000), (NODE, 40000), 16),
    ))?;
    wait::until_equal("both to be dropped as closed", &2, || {
        agent
            .counts()
            .map_or(0, |counts| counts.since(&before).of("", "drop", "closed"))
    });
    Ok(())
}

#[test]
fn revoking_cuts_an_established_connection() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let agent = lab.agent(POLICY)?;
    let mut streams: Vec<TcpStream> = [
        SocketAddr::new(NODE.into(), 8080),
        SocketAddr::new(NODE6.into(), 8080),
    ]
    .into_iter()
    .map(|to| lab.friend.run(|| traffic::tcp_open(to)))
    .collect::<Result<_>>()?;
    assert!(streams.iter_mut().all(traffic::tcp_echoes));
    agent.apply(&POLICY.replace("[\"@friends\"]", "[]"))?;
    assert!(!streams.iter_mut().any(traffic::tcp_echoes));
    Ok(())
}

#[test]
fn the_failsafe_stays_open_whatever_the_policy_says() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = [lab.serve(22)?, lab.serve(8080)?];
    let policy = "version = 1\ndeny = [\"192.0.2.0/24\"]\n";
    let flags = ["--failsafe", "tcp/22 from 192.0.2.2"];
    let mut agent = lab.agent_with(policy, &flags)?;
    let only_tcp4 = [true, false, false, false];
    assert_eq!(lab.friend_reaches(22), only_tcp4);
    assert_eq!(lab.friend_reaches(8080), NOTHING);
    assert_eq!(lab.stranger_reaches(22), NOTHING);
    assert!(agent.counts()?.of("", "pass", "failsafe") > 0);

    // Nor does it close while no agent runs, or while the next one starts.
    agent.kill()?;
    assert_eq!(lab.friend_reaches(22), only_tcp4);
    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    assert_eq!(lab.friend_reaches(22), only_tcp4);
    Ok(())
}

#[test]
fn observing_counts_what_enforcing_drops() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let agent = lab.agent_with(POLICY, &["--mode", "observe"])?;
    assert_eq!(lab.stranger_reaches(8080), EVERYTHING);
    let observed = agent.counts()?;
    assert!(
        observed.of("web", "would-drop", "not-allowed") >= 4,
        "{observed:?}"
    );
    assert_eq!(observed.of("web", "drop", "not-allowed"), 0, "{observed:?}");

    agent.ok(&["enforce"])?;
    assert_eq!(lab.stranger_reaches(8080), NOTHING);
    let enforced = agent.counts()?.since(&observed);
    assert!(enforced.of("web", "drop", "not-allowed") >= 4, "{enforced:?}");
    assert_eq!(enforced.verdict("would-drop"), 0, "{enforced:?}");

    agent.ok(&["observe"])?;
    assert_eq!(lab.stranger_reaches(8080), EVERYTHING);
    Ok(())
}

/// Linux delivers frames with a priority tag (VLAN 0), and with two of them, to the sockets of the interface itself.
#[test]
fn priority_tags_are_no_way_around() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let tag = (frame::VLAN, 0);
    for tags in [&[tag][..], &[tag, tag]] {
        for (peer, from, to, interface, allowed) in [
            (&lab.friend, FRIEND, NODE, "eth0", true),
            (&lab.stranger, STRANGER, NODE_B, "eth1", false),
        ] {
            let socket = lab.node.run(|| UdpSocket::bind((to, 8080)))?;
            socket.set_read_timeout(Some(if allowed { wait::PATIENCE } else { traffic::PROBE }))?;
            let source = frame::hardware_address(peer, "eth0")?;
            let target = frame::hardware_address(&lab.node, interface)?;
            let packet = frame::udp4((from, 7), (to, 8080), &[], b"tagged");
            let before = agent.counts()?;
            Sender::open(peer, "eth0")?.send(&frame::ethernet(target, source, tags, frame::IPV4, &packet))?;
            assert_eq!(
                socket.recv(&mut [0; 64]).is_ok(),
                allowed,
                "{} tags from {from}",
                tags.len()
            );
            let (verdict, reason) = if allowed {
                ("pass", "allowed")
            } else {
                ("drop", "not-allowed")
            };
            assert_eq!(
                agent.counts()?.since(&before).of("web", verdict, reason),
                1,
                "{} tags from {from}",
                tags.len()
            );
        }
    }
    Ok(())
}

/// The verdict inside a VLAN is that of the packet. Counted, not received: not every kernel has VLAN interfaces.
#[test]
fn a_vlan_is_judged_like_the_rest() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    for tags in [
        &[(frame::VLAN, 7)][..],
        &[(frame::QINQ, 7), (frame::VLAN, 9)],
        &[(frame::VLAN, 0), (frame::VLAN, 7)],
    ] {
        for (peer, interface, v4, v6, verdict, reason) in [
            (
                &lab.friend,
                "eth0",
                (FRIEND, NODE),
                (FRIEND6, NODE6),
                "pass",
                "allowed",
            ),
            (
                &lab.stranger,
                "eth1",
                (STRANGER, NODE_B),
                (STRANGER6, NODE6_B),
                "drop",
                "not-allowed",
            ),
        ] {
            let source = frame::hardware_address(peer, "eth0")?;
            let target = frame::hardware_address(&lab.node, interface)?;
            let sender = Sender::open(peer, "eth0")?;
            let before = agent.counts()?;
            let packet = frame::udp4((v4.0, 7), (v4.1, 8080), &[], b"tagged");
            sender.send(&frame::ethernet(target, source, tags, frame::IPV4, &packet))?;
            let packet = frame::udp6((v6.0, 7), (v6.1, 8080), 0, &[], b"tagged");
            sender.send(&frame::ethernet(target, source, tags, frame::IPV6, &packet))?;
            wait::until_equal(&format!("two packets to end as {reason}"), &2, || {
                agent
                    .counts()
                    .map_or(0, |counts| counts.since(&before).of("web", verdict, reason))
            });
        }
    }
    Ok(())
}

#[test]
fn a_vlan_interface_meets_the_same_policy() -> Result<()> {
    let lab = Lab::new()?;
    if let Err(error) = lab.node.vlan("eth0", "eth0.7", 7) {
        println!("SKIPPED: this kernel has no VLAN interfaces (CONFIG_VLAN_8021Q): {error:#}");
        return Ok(());
    }
    lab.node.address("eth0.7", "10.10.0.1/24")?;
    lab.friend.vlan("eth0", "eth0.7", 7)?;
    lab.friend.address("eth0.7", "10.10.0.2/24")?;
    let to = SocketAddr::from(([10, 10, 0, 1], 8080));
    let _echo = Echo::start(&lab.node, to)?;
    let agent = lab.agent(&POLICY.replace("[\"192.0.2.0/24\"", "[\"10.10.0.0/24\""))?;
    assert!(udp_reaches(&lab.friend, to) && tcp_reaches(&lab.friend, to));
    agent.apply(POLICY)?;
    assert!(!udp_reaches(&lab.friend, to) && !tcp_reaches(&lab.friend, to));
    Ok(())
}

#[test]
fn frames_that_no_socket_sends_end_with_their_reason() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let to = frame::hardware_address(&lab.node, "eth1")?;
    let from = frame::hardware_address(&lab.stranger, "eth0")?;
    let sender = Sender::open(&lab.stranger, "eth0")?;
    let v4 = |src| frame::udp4((src, 7), (NODE_B, 8080), &[], b"x");
    let tag = (frame::VLAN, 0);
    let hop_by_hop = [17, 0, 1, 4, 0, 0, 0, 0];
    let mut truncated = v4(STRANGER);
    truncated.truncate(24);

    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        (
            "web",
            "not-allowed",
            frame::ethernet(
                to,
                from,
                &[],
                frame::IPV4,
                &frame::udp4((STRANGER, 7), (NODE_B, 8080), &[1, 1, 1, 0], b"x"),
            ),
        ),
        (
            "web",
            "not-allowed",
            frame::ethernet(
                to,
                from,
                &[(frame::QINQ, 5), (frame::VLAN, 6)],
                frame::IPV4,
                &v4(STRANGER),
            ),
        ),
        (
            "web",
            "not-allowed",
            frame::ethernet(to, from, &[tag], frame::IPV4, &v4(STRANGER)),
        ),
        (
            "web",
            "not-allowed",
            frame::ethernet(
                to,
                from,
                &[],
                frame::IPV6,
                &frame::udp6((STRANGER6, 7), (NODE6_B, 8080), 0, &hop_by_hop, b"x"),
            ),
        ),
        (
            "",
            "vlan-depth",
            frame::ethernet(to, from, &[tag, tag, tag], frame::IPV4, &v4(STRANGER)),
        ),
        (
            "",
            "martian",
            frame::ethernet(to, from, &[], frame::IPV4, &v4([127, 0, 0, 1].into())),
        ),
        (
            "",
            "martian",
            frame::ethernet(to, from, &[], frame::IPV4, &v4(NODE)),
        ),
        (
            "",
            "ip-short",
            frame::ethernet(to, from, &[], frame::IPV4, &truncated),
        ),
        ("", "ethertype", frame::ethernet(to, from, &[], 0x88b5, &[0; 46])),
        ("", "llc", frame::ethernet(to, from, &[], 46, &[0xaa; 46])),
    ];
    for (service, reason, bytes) in cases {
        let before = agent.counts()?;
        sender.send(&bytes)?;
        wait::until_equal(&format!("one drop of \"{service}\" as {reason}"), &1, || {
            agent
                .counts()
                .map_or(0, |counts| counts.since(&before).of(service, "drop", reason))
        });
    }
    Ok(())
}

#[test]
fn jumbo_datagrams_meet_the_same_policy() -> Result<()> {
    let lab = Lab::with_mtu(9000)?;
    let _echo = lab.serve(8080)?;
    let agent = lab.agent(POLICY)?;
    for length in [1400, 3600, 8900] {
        assert!(
            udp_reaches_with(&lab.friend, SocketAddr::new(NODE.into(), 8080), length),
            "{length} bytes"
        );
        assert!(
            udp_reaches_with(&lab.friend, SocketAddr::new(NODE6.into(), 8080), length),
            "{length} bytes"
        );
        assert!(
            !udp_reaches_with(&lab.stranger, SocketAddr::new(NODE_B.into(), 8080), length),
            "{length} bytes"
        );
    }
    let status = agent.status()?;
    assert!(
        status.interfaces.iter().all(|interface| interface.frags),
        "{:?}",
        status.interfaces
    );
    Ok(())
}

#[test]
fn a_service_of_many_sources_and_ports_admits_each() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = [
        lab.serve(30000)?,
        lab.serve(30005)?,
        lab.serve(30010)?,
        lab.serve(30011)?,
    ];
    let _agent: Agent = lab.agent(
        "version = 1\n[[service]]\nname = \"range\"\nports = [\"tcp/30000-30010\", \"udp/30000-30010\"]\nallow = [\"198.51.100.2\", \"2001:db8:2::/126\"]\n",
    )?;
    for port in [30000, 30005, 30010] {
        assert_eq!(lab.stranger_reaches(port), EVERYTHING, "port {port}");
        assert_eq!(lab.friend_reaches(port), NOTHING, "port {port}");
    }
    assert_eq!(lab.stranger_reaches(30011), NOTHING);
    Ok(())
}
