//! Replies and the table that lets them in: what an outsider tries, and what the host may rely on.

use anyhow::{Context, Result};
use ravelin_tests::lab::{FAMILIES, Family, INTERFACES};
use ravelin_tests::packet::{self, ACK, FIN, RST, SYN, Wire};
use ravelin_tests::topology::{BEHIND, Containers};
use ravelin_tests::traffic::{self, Echo, PROBE};
use ravelin_tests::{Agent, Lab, wait};
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// Nothing is open.
const CLOSED: &str = "version = 1\n";
/// The friend may reach 8080.
const WEB: &str = r#"
version = 1

[[service]]
name  = "web"
ports = ["tcp/8080", "udp/8080"]
allow = ["192.0.2.2", "2001:db8:1::2"]
"#;

const STRAY: (&str, &str, &str) = ("", "drop", "closed");
const REPLY: (&str, &str, &str) = ("", "pass", "reply");

/// The address after this one.
fn neighbour(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) + 1).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) + 1).into()),
    }
}

/// Answers that are all wrong in one thing: another address, another port of either side, another protocol.
fn almost_answers(
    peer: SocketAddr,
    local: SocketAddr,
    make: fn(SocketAddr, SocketAddr) -> Vec<u8>,
    other_protocol: fn(SocketAddr, SocketAddr) -> Vec<u8>,
) -> Vec<(&'static str, Vec<u8>)> {
    let moved = |address: SocketAddr| SocketAddr::new(address.ip(), address.port() ^ 1);
    vec![
        (
            "from a neighbour",
            make(SocketAddr::new(neighbour(peer.ip()), peer.port()), local),
        ),
        ("from another port", make(moved(peer), local)),
        ("to another port", make(peer, moved(local))),
        (
            "with the ports exchanged",
            make(
                SocketAddr::new(peer.ip(), local.port()),
                SocketAddr::new(local.ip(), peer.port()),
            ),
        ),
        ("by another protocol", other_protocol(peer, local)),
    ]
}

fn datagram(src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    packet::udp(src, dst, b"forged")
}

fn segment(src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    packet::tcp(src, dst, ACK, 1)
}

/// Each is dropped as closed; the true answer passes.
fn only_the_true_answer_passes(
    agent: &Agent,
    wire: &Wire,
    almost: Vec<(&'static str, Vec<u8>)>,
    answer: &[u8],
) -> Result<()> {
    for (what, packet) in almost {
        agent.expect(STRAY, 1, || wire.send(&packet)).context(what)?;
    }
    agent
        .expect(REPLY, 1, || wire.send(answer))
        .context("the true answer")
}

#[test]
fn a_reply_comes_only_from_the_peer_port_and_protocol_that_the_host_asked() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(CLOSED)?;
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, "eth0"))?;
    for Family { node, friend, .. } in FAMILIES {
        let peer = SocketAddr::new(friend, 7000);
        for connected in [false, true] {
            let (near, _far) = traffic::udp_pair(&lab.node, &lab.friend, peer, connected)?;
            let local = SocketAddr::new(node, near.local_addr()?.port());
            let almost = almost_answers(peer, local, datagram, segment);
            only_the_true_answer_passes(&agent, &wire, almost, &datagram(peer, local))?;
        }
        let (near, _far) = traffic::tcp_pair(&lab.node, &lab.friend, peer)?;
        let local = near.local_addr()?;
        let almost = almost_answers(peer, local, segment, datagram);
        only_the_true_answer_passes(&agent, &wire, almost, &segment(peer, local))?;
        // Nor is an open connection a way to open another one.
        agent.expect(STRAY, 1, || wire.send(&packet::tcp(peer, local, SYN, 1)))?;
    }
    Ok(())
}

/// The same where no socket of the host knows anything.
#[test]
fn a_reply_comes_only_from_the_peer_port_and_protocol_that_a_container_asked() -> Result<()> {
    let stage = Containers::routed()?;
    let agent = Agent::start(&stage.lab.node, &INTERFACES, CLOSED)?;
    let wire = Wire::open((&stage.lab.friend, "eth0"), (&stage.lab.node, "eth0"))?;
    for (_, _, friend, _) in BEHIND {
        let peer = SocketAddr::new(friend, 7000);
        let (near, far) = traffic::udp_pair(&stage.container, &stage.lab.friend, peer, true)?;
        let local = far.peer_addr()?;
        let almost = almost_answers(peer, local, datagram, segment);
        only_the_true_answer_passes(&agent, &wire, almost, &datagram(peer, local))?;
        drop((near, far));

        let (near, far) = traffic::tcp_pair(&stage.container, &stage.lab.friend, peer)?;
        let local = far.peer_addr()?;
        let almost = almost_answers(peer, local, segment, datagram);
        only_the_true_answer_passes(&agent, &wire, almost, &segment(peer, local))?;
        agent.expect(STRAY, 1, || wire.send(&packet::tcp(peer, local, SYN, 1)))?;
        drop((near, far));
    }
    Ok(())
}

#[test]
fn an_echo_reply_comes_only_from_the_peer_asked_and_with_the_id_asked() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(CLOSED)?;
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, "eth0"))?;
    for Family { node, friend, .. } in FAMILIES {
        assert!(traffic::ping_reaches(&lab.node, friend));
        let id = u32::from(traffic::ping_id());
        let (request, reply) = if node.is_ipv4() { (8, 0) } else { (128, 129) };
        let echo = |src, kind, id: u32| packet::icmp(src, node, kind, 0, id << 16 | 2, b"forged");
        for (what, packet) in [
            ("from a neighbour", echo(neighbour(friend), reply, id)),
            ("with another id", echo(friend, reply, id ^ 1)),
            ("a request", echo(friend, request, id)),
        ] {
            agent.expect(STRAY, 1, || wire.send(&packet)).context(what)?;
        }
        agent.expect(REPLY, 1, || wire.send(&echo(friend, reply, id)))?;
    }
    Ok(())
}

#[test]
fn every_peer_of_an_unconnected_socket_may_answer() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.agent(CLOSED)?;
    for Family {
        node,
        friend,
        stranger,
        ..
    } in FAMILIES
    {
        let unspecified: IpAddr = if node.is_ipv4() {
            [0; 4].into()
        } else {
            [0; 16].into()
        };
        let _echo = [
            Echo::start(&lab.friend, (friend, 7000).into())?,
            Echo::start(&lab.friend, (friend, 7001).into())?,
            Echo::start(&lab.stranger, (stranger, 7000).into())?,
        ];
        let socket = lab.node.run(|| UdpSocket::bind((unspecified, 0)))?;
        socket.set_read_timeout(Some(PROBE))?;
        let mut asked: Vec<SocketAddr> = vec![
            (friend, 7000).into(),
            (friend, 7001).into(),
            (stranger, 7000).into(),
        ];
        for peer in &asked {
            socket.send_to(b"hello", peer)?;
        }
        let mut answered = Vec::new();
        while let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
            answered.push(from);
            if answered.len() == asked.len() {
                break;
            }
        }
        asked.sort();
        answered.sort();
        assert_eq!(answered, asked);
    }
    Ok(())
}

#[test]
fn connected_sockets_older_than_the_agent_go_on() -> Result<()> {
    let lab = Lab::new()?;
    let mut pairs = Vec::new();
    for Family { friend, .. } in FAMILIES {
        let at = SocketAddr::new(friend, 7000);
        pairs.push((
            traffic::tcp_pair(&lab.node, &lab.friend, at)?,
            traffic::udp_pair(&lab.node, &lab.friend, at, true)?,
        ));
    }
    let _agent = lab.agent(CLOSED)?;
    for ((near, far), (here, there)) in &mut pairs {
        // The peer speaks first: the host has sent nothing since the agent is there.
        assert!(traffic::tcp_hears(far, near), "TCP from {:?}", far.local_addr());
        assert!(
            traffic::udp_hears(there, here),
            "UDP from {:?}",
            there.local_addr()
        );
        assert!(traffic::tcp_hears(near, far) && traffic::udp_hears(here, there));
    }
    Ok(())
}

/// The host's own socket lives on, and goes on sending: neither lends the client a way back in.
#[test]
fn revoking_cuts_a_connection_whose_host_goes_on_sending() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(WEB)?;
    for family in FAMILIES {
        for without in [WEB.replace("allow = [", "allow = [] #"), CLOSED.to_owned()] {
            agent.apply(WEB)?;
            let at = SocketAddr::new(family.node, 8080);
            let (mut client, mut server) = traffic::tcp_pair(&lab.friend, &lab.node, at)?;
            assert!(
                traffic::tcp_hears(&mut client, &mut server) && traffic::tcp_hears(&mut server, &mut client)
            );
            agent.apply(&without)?;
            // What the server says still leaves, and is sent again and again: no acknowledgement comes back, and no word.
            assert!(traffic::tcp_hears(&mut server, &mut client));
            for _ in 0..2 {
                assert!(!traffic::tcp_hears(&mut client, &mut server), "{without}");
            }
        }
    }
    Ok(())
}

/// A connection of a container, of which no socket of the host knows: only the flow table lets its replies in.
fn container_connection(
    stage: &Containers,
    friend: IpAddr,
) -> Result<(std::net::TcpStream, std::net::TcpStream, SocketAddr, SocketAddr)> {
    let peer = SocketAddr::new(friend, 7000);
    let (near, far) = traffic::tcp_pair(&stage.container, &stage.lab.friend, peer)?;
    let local = far.peer_addr()?;
    Ok((near, far, peer, local))
}

#[test]
fn a_reset_by_the_host_ends_its_flow() -> Result<()> {
    let stage = Containers::routed()?;
    let agent = Agent::start(&stage.lab.node, &INTERFACES, CLOSED)?;
    let wire = Wire::open((&stage.lab.friend, "eth0"), (&stage.lab.node, "eth0"))?;
    for (_, _, friend, _) in BEHIND {
        let (near, far, peer, local) = container_connection(&stage, friend)?;
        agent.expect(REPLY, 1, || wire.send(&segment(peer, local)))?;
        // To close with a zero linger time is to reset.
        nix::sys::socket::setsockopt(
            &near,
            nix::sys::socket::sockopt::Linger,
            &libc::linger {
                l_onoff: 1,
                l_linger: 0,
            },
        )?;
        drop(near);
        wait::until("the reset to arrive", || match far.peek(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
            other => Err(format!("{other:?}")),
        });
        agent.expect(STRAY, 1, || wire.send(&segment(peer, local)))?;
    }
    Ok(())
}

#[test]
fn a_forged_reset_does_not_end_a_connection_whose_host_goes_on_sending() -> Result<()> {
    let stage = Containers::routed()?;
    let agent = Agent::start(&stage.lab.node, &INTERFACES, CLOSED)?;
    let wire = Wire::open((&stage.lab.friend, "eth0"), (&stage.lab.node, "eth0"))?;
    for (_, _, friend, _) in BEHIND {
        let (mut near, mut far, peer, local) = container_connection(&stage, friend)?;
        for flags in [RST, RST | ACK, FIN | ACK] {
            // The sequence number is a guess, and wrong: the container's own stack ignores it.
            agent.expect(REPLY, 1, || {
                wire.send(&packet::tcp(peer, local, flags, 0x1234_5678))
            })?;
            assert!(traffic::tcp_hears(&mut near, &mut far));
            assert!(traffic::tcp_hears(&mut far, &mut near));
        }
    }
    Ok(())
}
