//! What an outsider can do to the flow table: nothing. What time and a restart do to it.

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use ravelin::api::types::FlowList;
use ravelin_tests::kernel::flood;
use ravelin_tests::lab::{FAMILIES, Family, INTERFACES};
use ravelin_tests::packet::{self, ACK, FIN, Piece, RST, SYN, TCP, UDP, Wire};
use ravelin_tests::program::run;
use ravelin_tests::rotate::{End, Rotation, SOURCES};
use ravelin_tests::topology::{BEHIND, Containers};
use ravelin_tests::traffic::{self, ping_reaches};
use ravelin_tests::{Agent, Lab, Namespace, wait};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Anybody may reach 8080; all else is closed.
const WEB: &str = r#"
version = 1

[[service]]
name  = "web"
ports = ["tcp/8080", "udp/8080", "icmp/echo"]
allow = ["any"]
"#;
const CLOSED: &str = "version = 1\n";
const STRAY: (&str, &str, &str) = ("", "drop", "closed");
const REPLY: (&str, &str, &str) = ("", "pass", "reply");

/// The whole table as it stands in the kernel, set by set.
fn table(agent: &Agent) -> Result<Vec<[u64; 64]>> {
    let versions = std::fs::read_dir(agent.pins()).context("reading the pins")?;
    let path = versions
        .flatten()
        .map(|entry| entry.path().join("FLOWS"))
        .find(|path| path.exists())
        .context("no FLOWS among the pins")?;
    let map = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
    let map: Array<MapData, [u64; 64]> = Map::Array(map).try_into()?;
    map.iter().map(|set| set.context("reading a set")).collect()
}

/// Flows of the host: an unconnected socket that asked the friend, an open connection, and a ping.
struct Opened {
    udp: (UdpSocket, UdpSocket),
    tcp: (std::net::TcpStream, std::net::TcpStream),
}

impl Opened {
    fn new(lab: &Lab, family: &Family) -> Result<Opened> {
        let peer = SocketAddr::new(family.friend, 7000);
        let opened = Opened {
            udp: traffic::udp_pair(&lab.node, &lab.friend, peer, false)?,
            tcp: traffic::tcp_pair(&lab.node, &lab.friend, peer)?,
        };
        ensure!(
            ping_reaches(&lab.node, family.friend),
            "ping to {}",
            family.friend
        );
        Ok(opened)
    }

    /// Local ports: UDP, TCP.
    fn ports(&self) -> Result<[u16; 2]> {
        Ok([self.udp.0.local_addr()?.port(), self.tcp.0.local_addr()?.port()])
    }

    fn answers(&mut self) -> bool {
        self.udp.1.send(b"still?").is_ok()
            && self.udp.0.recv(&mut [0; 16]).is_ok()
            && traffic::tcp_hears(&mut self.tcp.1, &mut self.tcp.0)
    }
}

/// All that an outsider may try, from an address of its choice, at the node's open, closed and asking ports.
fn tries(src: IpAddr, node: IpAddr, [udp, tcp]: [u16; 2]) -> Vec<Vec<u8>> {
    let from = |port| SocketAddr::new(src, port);
    let to = |port| SocketAddr::new(node, port);
    let mut tries = Vec::new();
    for port in [8080, 9, tcp] {
        for flags in [SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK] {
            tries.push(packet::tcp(from(7000), to(port), flags, 1));
        }
    }
    for port in [8080, 9, udp] {
        tries.push(packet::udp(from(7000), to(port), b"hello"));
        tries.push(packet::udp(from(53), to(port), b"hello"));
    }
    let (request, reply) = if node.is_ipv4() { (8, 0) } else { (128, 129) };
    for kind in [request, reply] {
        tries.push(packet::icmp(
            src,
            node,
            kind,
            0,
            u32::from(traffic::ping_id()) << 16 | 1,
            b"hello",
        ));
    }
    let quoted = packet::udp(to(udp), from(7000), b"quoted");
    tries.push(packet::unreachable(src, node, &quoted));
    tries.push(packet::too_big(src, node, 1400, &quoted));
    for protocol in [UDP, TCP] {
        let first = Piece {
            id: 9,
            offset: 0,
            more: true,
        };
        let later = Piece {
            id: 9,
            offset: 64,
            more: false,
        };
        tries.push(packet::fragment(src, node, protocol, first, &[0; 64]));
        tries.push(packet::fragment(src, node, protocol, later, &[0; 64]));
    }
    tries.push(packet::ip(src, node, 47, &[0; 16]));
    tries.push(packet::ip(src, node, 132, &[0; 16]));
    tries
}

#[test]
fn nothing_from_outside_creates_or_refreshes_a_flow() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(WEB)?;
    // With servers on the service's ports, so that the host answers, and with none, so that it refuses.
    for serve in [true, false] {
        let _echo = serve.then(|| lab.serve(8080)).transpose()?;
        for family in &FAMILIES {
            let mut opened = Opened::new(&lab, family)?;
            let before = table(&agent)?;
            ensure!(
                before.iter().any(|set| set[..8].iter().any(|tag| *tag != 0)),
                "the measure works"
            );
            let ports = opened.ports()?;
            let wire = Wire::open((&lab.stranger, "eth0"), (&lab.node, "eth1"))?;
            for attempt in tries(family.stranger, family.node_b, ports)
                .into_iter()
                .chain(tries(family.stranger, family.node, ports))
            {
                wire.send(&attempt)?;
            }
            // The peer itself, right address and ports: its answers pass, and lengthen nothing.
            let peer = SocketAddr::new(family.friend, 7000);
            let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, "eth0"))?;
            agent.expect(REPLY, 50, || {
                (0..50).try_for_each(|_| {
                    wire.send(&packet::udp(peer, (family.node, ports[0]).into(), b"answer"))
                })
            })?;
            assert!(table(&agent)? == before, "the table has changed, {family:?}");
            assert!(opened.answers());
        }
    }
    Ok(())
}

/// Spoofed from 65,536 addresses, as fast as one core can make them.
#[test]
fn a_million_spoofed_packets_leave_the_flow_table_as_it_was() -> Result<()> {
    const FRAMES: u32 = 1_000_000;
    let lab = Lab::new()?;
    let agent = lab.agent(WEB)?;
    // Frames that are redirected into a veth need NAPI at both of its ends.
    run(&lab.stranger, "ethtool", &["-K", "eth0", "gro", "on"])?;
    let mut opened = FAMILIES
        .iter()
        .map(|family| Opened::new(&lab, family))
        .collect::<Result<Vec<_>>>()?;
    let before = table(&agent)?;
    let counts = agent.counts()?;
    for (family, opened) in FAMILIES.iter().zip(&opened) {
        let [udp, tcp] = opened.ports()?;
        let wire = Wire::open((&lab.stranger, "eth0"), (&lab.node, "eth1"))?;
        let from = SocketAddr::new(family.stranger, 7000);
        let frames = [
            packet::tcp(from, (family.node, 9).into(), SYN, 1),
            packet::tcp(from, (family.node, tcp).into(), ACK, 1),
            packet::tcp(from, (family.node, tcp).into(), RST, 1),
            packet::udp(from, (family.node, udp).into(), &[0; 32]),
            packet::udp(from, (family.node, 9).into(), &[0; 32]),
        ];
        let frames = frames.map(|packet| wire.frame(&packet));
        spoof(&lab.stranger, family.node.is_ipv6(), &frames, FRAMES / 10)?;
    }
    let counts = agent.counts()?.since(&counts);
    let dropped = counts.of("", "drop", "closed");
    ensure!(
        dropped > u64::from(FRAMES) / 10 * 9,
        "{dropped} of {FRAMES} packets were judged: {counts:?}"
    );
    assert!(table(&agent)? == before, "the table has changed");
    assert!(opened.iter_mut().all(Opened::answers));
    Ok(())
}

/// Sends each frame this often, each time from another address.
fn spoof(from: &Namespace, ipv6: bool, frames: &[Vec<u8>], times: u32) -> Result<()> {
    let sources: Vec<IpAddr> = (0..SOURCES as u32)
        .map(|n| match ipv6 {
            false => IpAddr::V4((0x2d00_0000 + n * 251).into()),
            true => IpAddr::V6(((0x2001_0db8_0066 << 80) | (u128::from(n) * 65_537)).into()),
        })
        .collect();
    let ifindex = from.ifindex("eth0")?;
    from.run(|| {
        let rotation = Rotation::new(ipv6, &End::Redirect(ifindex))?;
        rotation.fill(&sources)?;
        frames
            .iter()
            .try_for_each(|frame| flood(rotation.program(), frame, times))
    })
}

#[test]
fn flows_survive_the_death_and_restart_of_the_agent() -> Result<()> {
    let stage = Containers::routed()?;
    let mut agent = Agent::start(&stage.lab.node, &INTERFACES, CLOSED)?;
    let mut pairs = Vec::new();
    for (_, _, friend, _) in BEHIND {
        let at = SocketAddr::new(friend, 7000);
        pairs.push((
            traffic::tcp_pair(&stage.container, &stage.lab.friend, at)?,
            traffic::udp_pair(&stage.container, &stage.lab.friend, at, true)?,
        ));
    }
    let mut all_answer = || {
        pairs.iter_mut().all(|((near, far), (here, there))| {
            traffic::tcp_hears(far, near) && traffic::udp_hears(there, here)
        })
    };
    agent.kill()?;
    assert!(all_answer(), "without an agent");
    agent.launch(&stage.lab.node)?;
    agent.wait_ready()?;
    assert!(all_answer(), "with a new agent");
    Ok(())
}

/// An agent whose flows live as long as this section says.
fn agent_with_timeouts(stage: &Containers, timeouts: &str) -> Result<Agent> {
    let config = tempfile::NamedTempFile::new()?;
    std::fs::write(config.path(), format!("[flows.timeouts]\n{timeouts}"))?;
    let flags = ["--config", &config.path().to_string_lossy()];
    Agent::start_with(&stage.lab.node, &INTERFACES, CLOSED, &flags)
}

/// Waits until no live flow leads to this peer; gives how long that took.
fn wait_until_gone(agent: &Agent, peer: SocketAddr) -> Duration {
    wait::until(&format!("the flow to {peer} to end"), || {
        let list: FlowList = agent.json(&["flows"]).map_err(|error| format!("{error:#}"))?;
        let left = list
            .flows
            .into_iter()
            .find(|flow| flow.remote == peer.ip().to_string() && flow.remote_port == Some(peer.port()));
        match left {
            None => Ok(()),
            Some(flow) => Err(format!("{flow:?}")),
        }
    })
    .1
}

#[test]
fn an_orderly_end_ends_the_flow() -> Result<()> {
    let stage = Containers::routed()?;
    let agent = agent_with_timeouts(&stage, "closing = \"2s\"\nreset = \"2s\"\n")?;
    let wire = Wire::open((&stage.lab.friend, "eth0"), (&stage.lab.node, "eth0"))?;
    for (_, _, friend, _) in BEHIND {
        let peer = SocketAddr::new(friend, 7000);
        let (near, far) = traffic::tcp_pair(&stage.container, &stage.lab.friend, peer)?;
        let local = far.peer_addr()?;
        for (one, other) in [(&near, &far), (&far, &near)] {
            one.shutdown(std::net::Shutdown::Write)?;
            assert_eq!(other.peek(&mut [0])?, 0, "the end arrives");
        }
        assert!(wait_until_gone(&agent, peer) < Duration::from_secs(5));
        agent.expect(STRAY, 1, || wire.send(&packet::tcp(peer, local, ACK, 1)))?;
    }
    Ok(())
}

/// It shortens what is left of the flow to `reset`; the host's next word makes good for it.
#[test]
fn a_forged_reset_lasts_until_the_host_speaks() -> Result<()> {
    let stage = Containers::routed()?;
    let agent = agent_with_timeouts(&stage, "reset = \"2s\"\n")?;
    let wire = Wire::open((&stage.lab.friend, "eth0"), (&stage.lab.node, "eth0"))?;
    for (_, _, friend, _) in BEHIND {
        let peer = SocketAddr::new(friend, 7000);
        let (mut near, mut far) = traffic::tcp_pair(&stage.container, &stage.lab.friend, peer)?;
        let local = far.peer_addr()?;
        let reset = packet::tcp(peer, local, RST, 0x1234_5678);
        agent.expect(REPLY, 1, || wire.send(&reset))?;
        wait_until_gone(&agent, peer);
        agent.expect(STRAY, 1, || wire.send(&packet::tcp(peer, local, ACK, 1)))?;
        assert!(traffic::tcp_hears(&mut near, &mut far));
        assert!(traffic::tcp_hears(&mut far, &mut near));
        // While the host speaks, none of them has an effect.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            wire.send(&reset)?;
            assert!(traffic::tcp_hears(&mut near, &mut far));
            assert!(traffic::tcp_hears(&mut far, &mut near));
        }
    }
    Ok(())
}

#[test]
fn an_expired_flow_admits_nothing_however_busy_its_peer() -> Result<()> {
    let stage = Containers::routed()?;
    let agent = agent_with_timeouts(&stage, "udp = \"2s\"\nudp_conversation = \"2s\"\n")?;
    for (_, _, friend, _) in BEHIND {
        let at = SocketAddr::new(friend, 7000);
        let (here, there) = traffic::udp_pair(&stage.container, &stage.lab.friend, at, true)?;
        let asked = Instant::now();
        // The peer never falls silent; the container does.
        here.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut answers = 0;
        while there.send(b"more").is_ok() && here.recv(&mut [0; 16]).is_ok() {
            answers += 1;
            ensure!(
                asked.elapsed().as_secs() < 5,
                "answers pass after {:?}",
                asked.elapsed()
            );
        }
        ensure!(
            answers > 0 && asked.elapsed().as_millis() >= 1000,
            "{answers} in {:?}",
            asked.elapsed()
        );
        agent.expect(STRAY, 1, || {
            there.send(b"more")?;
            Ok(())
        })?;
        // To ask again opens it again.
        here.send(b"again")?;
        there.recv(&mut [0; 16])?;
        assert!(traffic::udp_hears(&there, &here));
    }
    Ok(())
}
