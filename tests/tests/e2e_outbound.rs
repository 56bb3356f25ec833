//! Egress rules and the rest of the host: what no rule shuts off, open connections, fragments, containers. What the rules
//! themselves do is in `e2e_egress.rs`.

use anyhow::Result;
use firewall_common::verdict::Direction;
use ravelin_tests::agent::Counts;
use ravelin_tests::frame::{self, Sender};
use ravelin_tests::lab::{self, EVERYTHING, FAMILIES, Family, INTERFACES, NODE, NODE6, NOTHING};
use ravelin_tests::packet::{self, Piece, UDP};
use ravelin_tests::topology::{CONTAINER, CONTAINER6, Containers};
use ravelin_tests::traffic::{self, Echo, ping_reaches, udp_reaches_with};
use ravelin_tests::{Agent, Lab, wait};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Nothing may leave but answers of a service that the friend may reach.
const SHUT: &str = r#"
version = 1

[defaults]
egress = "deny"

[[service]]
name  = "web"
ports = ["tcp/8080", "udp/8080", "icmp/echo"]
allow = ["192.0.2.2", "2001:db8:1::2"]
"#;

/// Beside it, two ports of the friend and of a part of the stranger's network.
const OPENED: &str = r#"
[[egress]]
name  = "peers"
ports = ["tcp/7000", "udp/7000"]
to    = ["192.0.2.0/24", "198.51.100.0/24", "2001:db8:1::/64", "2001:db8:2::/64"]
deny  = ["198.51.100.2", "2001:db8:2::2"]
"#;

fn left(agent: &Agent) -> Result<Counts> {
    agent.counts_of(Direction::Egress)
}

fn echoes(lab: &Lab, port: u16) -> Result<Vec<Echo>> {
    let mut servers = Vec::new();
    for Family { friend, stranger, .. } in FAMILIES {
        servers.push(Echo::start(&lab.friend, SocketAddr::new(friend, port))?);
        servers.push(Echo::start(&lab.stranger, SocketAddr::new(stranger, port))?);
    }
    Ok(servers)
}

/// What the node reaches of a port: of the friend, and of the stranger.
fn node_reaches(lab: &Lab, port: u16) -> [[bool; 4]; 2] {
    let [v4, v6] = FAMILIES;
    [
        lab::reaches(&lab.node, v4.friend, v6.friend, port),
        lab::reaches(&lab.node, v4.stranger, v6.stranger, port),
    ]
}

#[test]
fn only_what_a_rule_opens_may_leave() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = [echoes(&lab, 7000)?, echoes(&lab, 7001)?];
    let agent = lab.agent(&format!("{SHUT}{OPENED}"))?;
    assert_eq!(node_reaches(&lab, 7000), [EVERYTHING, NOTHING]);
    assert_eq!(node_reaches(&lab, 7001), [NOTHING, NOTHING]);
    for Family { friend, .. } in FAMILIES {
        assert!(!ping_reaches(&lab.node, friend));
    }
    let counts = left(&agent)?;
    assert!(counts.of("peers", "pass", "egress-allowed") >= 4, "{counts:?}");
    assert!(counts.of("peers", "drop", "egress-denied") >= 4, "{counts:?}");
    assert!(counts.of("", "drop", "egress-closed") >= 10, "{counts:?}");

    // Without a default of deny the rule's own deny still counts, and all else may leave.
    agent.apply(&format!(
        "{}{OPENED}",
        SHUT.replace("egress = \"deny\"", "egress = \"allow\"")
    ))?;
    assert_eq!(node_reaches(&lab, 7000), [EVERYTHING, NOTHING]);
    assert_eq!(node_reaches(&lab, 7001), [EVERYTHING, EVERYTHING]);
    Ok(())
}

#[test]
fn answers_of_a_service_leave_whatever_the_egress_policy_says() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = [lab.serve(8080)?, lab.serve(22)?];
    // A rule that denies all, by name: it is not asked about answers.
    let policy = format!("{SHUT}\n[[egress]]\nname = \"none\"\ndeny = [\"any\"]\n");
    let agent = lab.agent_with(&policy, &["--failsafe", "tcp/22 from 192.0.2.2"])?;
    assert_eq!(lab.friend_reaches(8080), EVERYTHING);
    assert_eq!(
        lab.friend_reaches(22),
        [true, false, false, false],
        "the failsafe"
    );
    for Family { node, node_b, .. } in FAMILIES {
        assert!(ping_reaches(&lab.friend, node));
        assert!(!ping_reaches(&lab.stranger, node_b));
        assert!(
            udp_reaches_with(&lab.friend, (node, 8080).into(), 8000),
            "an answer in fragments"
        );
    }
    let counts = left(&agent)?;
    assert!(counts.of("web", "pass", "answer") >= 20, "{counts:?}");
    assert_eq!(counts.verdict("drop"), 0, "{counts:?}");
    Ok(())
}

#[test]
fn arp_neighbour_discovery_dhcp_and_errors_cannot_be_shut_off() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let agent = lab.agent(&format!(
        "{SHUT}\n[[egress]]\nname = \"none\"\ndeny = [\"any\"]\n"
    ))?;
    for namespace in [&lab.node, &lab.friend] {
        namespace.ip("neigh flush all")?;
    }
    let before = left(&agent)?;
    assert_eq!(lab.friend_reaches(8080), EVERYTHING);
    let counts = left(&agent)?.since(&before);
    assert!(counts.of("", "pass", "arp") >= 1, "{counts:?}");
    assert!(counts.of("", "pass", "neighbour-discovery") >= 1, "{counts:?}");

    // What a DHCP client sends through its packet socket.
    let sender = Sender::open(&lab.node, "eth0")?;
    let own = frame::hardware_address(&lab.node, "eth0")?;
    let discover = packet::udp(
        (Ipv4Addr::UNSPECIFIED, 68).into(),
        (Ipv4Addr::BROADCAST, 67).into(),
        &[1, 1, 6, 0],
    );
    let link_local: Ipv6Addr = "fe80::1".parse()?;
    let servers: Ipv6Addr = "ff02::1:2".parse()?;
    let solicit = packet::udp((link_local, 546).into(), (servers, 547).into(), &[1, 0, 0, 1]);
    for (ethertype, packet) in [(frame::IPV4, &discover), (frame::IPV6, &solicit)] {
        let before = left(&agent)?;
        sender.send(&frame::ethernet([0xff; 6], own, &[], ethertype, packet))?;
        wait::until_equal("a DHCP request to leave", &1, || {
            left(&agent).map_or(0, |now| now.since(&before).of("", "pass", "dhcp-client"))
        });
    }

    // The host's own "port unreachable": the stack answers a datagram to a port of the service where nobody listens.
    drop(_echo);
    for Family { node, .. } in FAMILIES {
        let socket = lab
            .friend
            .run(|| std::net::UdpSocket::bind(if node.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }))?;
        socket.connect((node, 8080))?;
        socket.set_read_timeout(Some(traffic::PROBE))?;
        socket.send(b"anybody?")?;
        let error = socket.recv(&mut [0; 8]).err().map(|error| error.kind());
        assert_eq!(error, Some(std::io::ErrorKind::ConnectionRefused), "{node}");
    }
    Ok(())
}

#[test]
fn shutting_egress_cuts_an_open_connection_that_no_rule_names() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent("version = 1\n")?;
    for Family { friend, stranger, .. } in FAMILIES {
        agent.apply("version = 1\n")?;
        let named = SocketAddr::new(friend, 7000);
        let unnamed = SocketAddr::new(stranger, 7001);
        let (mut kept, mut kept_far) = traffic::tcp_pair(&lab.node, &lab.friend, named)?;
        let (mut cut, mut cut_far) = traffic::tcp_pair(&lab.node, &lab.stranger, unnamed)?;
        assert!(traffic::tcp_hears(&mut cut, &mut cut_far) && traffic::tcp_hears(&mut kept, &mut kept_far));
        agent.apply(&format!("{SHUT}{OPENED}"))?;
        assert!(!traffic::tcp_hears(&mut cut, &mut cut_far));
        assert!(traffic::tcp_hears(&mut kept, &mut kept_far));
        assert!(traffic::tcp_hears(&mut kept_far, &mut kept));
    }
    Ok(())
}

#[test]
fn fragments_leave_after_their_first_or_not_at_all() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = [echoes(&lab, 7000)?, echoes(&lab, 7001)?];
    let agent = lab.agent(&format!("{SHUT}{OPENED}"))?;
    let sender = Sender::open(&lab.node, "eth0")?;
    let (own, peer) = (
        frame::hardware_address(&lab.node, "eth0")?,
        frame::hardware_address(&lab.friend, "eth0")?,
    );
    for Family {
        node,
        friend,
        stranger,
        ..
    } in FAMILIES
    {
        assert!(
            udp_reaches_with(&lab.node, (friend, 7000).into(), 8000),
            "{friend}"
        );
        for to in [(friend, 7001), (stranger, 7000)] {
            let before = left(&agent)?;
            assert!(!udp_reaches_with(&lab.node, to.into(), 8000));
            // The stack gives up a datagram whose first fragment does not leave, unless all waited for the neighbour.
            let counts = left(&agent)?.since(&before);
            assert!(counts.verdict("drop") >= 1, "{counts:?}");
            assert_eq!(counts.of("peers", "pass", "egress-allowed"), 0, "{counts:?}");
        }
        // One that never had a first.
        let piece = Piece {
            id: 800,
            offset: 1400,
            more: false,
        };
        let stray = packet::fragment(node, friend, UDP, piece, &[0; 64]);
        let ethertype = if node.is_ipv4() { frame::IPV4 } else { frame::IPV6 };
        let before = left(&agent)?;
        // A packet socket is told of it by ENOBUFS.
        let _ = sender.send(&frame::ethernet(peer, own, &[], ethertype, &stray));
        wait::until_equal("a drop", &1, || {
            left(&agent).map_or(0, |now| now.since(&before).of("", "drop", "fragment"))
        });
    }
    Ok(())
}

#[test]
fn what_containers_send_obeys_the_egress_policy() -> Result<()> {
    let stage = Containers::masqueraded()?;
    stage.publish(8080, 80)?;
    let _echo = [echoes(&stage.lab, 7000)?, echoes(&stage.lab, 7001)?];
    let _inner = [
        Echo::start(&stage.container, (CONTAINER, 80).into())?,
        Echo::start(&stage.container, (CONTAINER6, 80).into())?,
    ];
    let _agent = Agent::start(&stage.lab.node, &INTERFACES, &format!("{SHUT}{OPENED}"))?;
    let [v4, v6] = FAMILIES;
    let reaches = |[v4, v6]: [IpAddr; 2], port| lab::reaches(&stage.container, v4, v6, port);
    assert_eq!(reaches([v4.friend, v6.friend], 7000), EVERYTHING);
    assert_eq!(reaches([v4.friend, v6.friend], 7001), NOTHING);
    assert_eq!(reaches([v4.stranger, v6.stranger], 7000), NOTHING);
    // Answers of what is published leave.
    let friend = lab::reaches(&stage.lab.friend, NODE.into(), NODE6.into(), 8080);
    assert_eq!(friend, EVERYTHING);
    Ok(())
}
