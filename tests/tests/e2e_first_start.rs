//! The agent's first start in the middle of what goes on, under default deny: what was opened from here, or from behind here,
//! goes on; what came in and the policy does not allow ends.

use anyhow::{Context, Result, ensure};
use ravelin_tests::lab::{NODE_B, NODE6_B};
use ravelin_tests::netns::Namespace;
use ravelin_tests::program::nft;
use ravelin_tests::topology::{BEHIND, Containers};
use ravelin_tests::traffic::{PROBE, tcp_hears, tcp_open, udp_hears, udp_pair};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;

/// Allows nothing.
const CLOSED: &str = "version = 1\n";
/// What comes to these ports is for the friend alone.
const WEB: &str = "version = 1
[[service]]
name = \"web\"
ports = [\"tcp/8080\", \"udp/8081\", \"tcp/8090\", \"udp/8091\"]
allow = [\"192.0.2.0/24\", \"2001:db8:1::/64\"]
";

/// Both ends of a connection over TCP and of one over UDP, whose port is the one after. The server still listens, and its UDP
/// socket has no peer: else the socket table would take it for the one that opened.
struct Pairs {
    tcp: (TcpStream, TcpStream),
    udp: (UdpSocket, UdpSocket),
    /// Where the client is, seen from the server.
    client: SocketAddr,
    _listener: TcpListener,
}

impl Pairs {
    /// What `client` opens to an address that leads to `inner` of the server.
    fn open(client: &Namespace, server: &Namespace, at: SocketAddr, inner: SocketAddr) -> Result<Pairs> {
        let after = |one: SocketAddr| SocketAddr::new(one.ip(), one.port() + 1);
        let (_listener, tcp) = tcp_through(client, server, at, inner)?;
        let (udp, client) = udp_through(client, server, after(at), after(inner))?;
        let mut pairs = Pairs {
            tcp,
            udp,
            client,
            _listener,
        };
        let heard = (pairs.there(), pairs.back());
        ensure!(
            heard == ([true; 2], [true; 2]),
            "{heard:?} before there is an agent"
        );
        Ok(pairs)
    }

    /// Whether the server hears the client: (TCP, UDP).
    fn there(&mut self) -> [bool; 2] {
        [
            tcp_hears(&mut self.tcp.0, &mut self.tcp.1),
            udp_hears(&self.udp.0, &self.udp.1),
        ]
    }

    /// Whether the client hears the server.
    fn back(&mut self) -> [bool; 2] {
        [
            tcp_hears(&mut self.tcp.1, &mut self.tcp.0),
            udp_hears_from(&self.udp.1, self.client, &self.udp.0),
        ]
    }
}

fn tcp_through(
    client: &Namespace,
    server: &Namespace,
    at: SocketAddr,
    inner: SocketAddr,
) -> Result<(TcpListener, (TcpStream, TcpStream))> {
    let listener = server.run(|| TcpListener::bind(inner))?;
    let near = client
        .run(|| tcp_open(at))
        .with_context(|| format!("from {} to {at}", client.name()))?;
    let (far, _) = listener.accept()?;
    far.set_read_timeout(Some(PROBE))?;
    far.set_nodelay(true)?;
    Ok((listener, (near, far)))
}

fn udp_through(
    client: &Namespace,
    server: &Namespace,
    at: SocketAddr,
    inner: SocketAddr,
) -> Result<((UdpSocket, UdpSocket), SocketAddr)> {
    let far = server.run(|| UdpSocket::bind(inner))?;
    far.set_read_timeout(Some(PROBE))?;
    let any: IpAddr = if at.is_ipv4() {
        [0; 4].into()
    } else {
        [0_u16; 8].into()
    };
    let near = client.run(|| UdpSocket::bind((any, 0)))?;
    near.set_read_timeout(Some(PROBE))?;
    near.connect(at)?;
    near.send(b"hello")?;
    let (_, from) = far
        .recv_from(&mut [0; 16])
        .with_context(|| format!("from {} to {at}", client.name()))?;
    Ok(((near, far), from))
}

/// As [`udp_hears`], from a socket without a peer.
fn udp_hears_from(from: &UdpSocket, at: SocketAddr, to: &UdpSocket) -> bool {
    let mut heard = [0; 16];
    from.send_to(b"ravelin", at).is_ok()
        && to
            .recv(&mut heard)
            .is_ok_and(|length| heard[..length] == *b"ravelin")
}

/// Has the kernel track what passes the node, translated or not. False, said aloud, if it cannot.
fn track(node: &Namespace) -> Result<bool> {
    nft(
        node,
        "table inet track {\nchain pre { type filter hook prerouting priority 0;\nct state invalid accept\n}\n\
         chain out { type filter hook output priority 0;\nct state invalid accept\n}\n}\n",
    )?;
    let tracks = node.run(|| Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists());
    if !tracks {
        println!("SKIPPED: this kernel tracks no connections (CONFIG_NF_CONNTRACK)");
    }
    Ok(tracks)
}

fn container_goes_on(stage: &Containers, translated: bool) -> Result<()> {
    let (lab, container) = (&stage.lab, &stage.container);
    let mut opened = Vec::new();
    for (own, node, _, stranger) in BEHIND {
        let at = SocketAddr::new(stranger, 4000);
        opened.push((
            Pairs::open(container, &lab.stranger, at, at)?,
            if translated { node_b(node) } else { own },
        ));
    }
    let agent = lab.agent(CLOSED)?;
    for (pairs, local) in &mut opened {
        // The outside speaks first: nothing has gone out since the agent is there.
        assert_eq!(pairs.back(), [true; 2], "to {local}");
        assert_eq!(
            (pairs.there(), pairs.back()),
            ([true; 2], [true; 2]),
            "to {local}"
        );
        // The very peer may answer, from the very port.
        let remote = pairs.tcp.1.local_addr()?.ip();
        let knock = lab.stranger.run(|| UdpSocket::bind((remote, 0)))?;
        knock.connect((*local, pairs.client.port()))?;
        agent.expect(("", "drop", "closed"), 1, || {
            Ok(knock.send(b"knock").map(drop)?)
        })?;
    }
    Ok(())
}

/// The node's address on the stranger's side.
fn node_b(node: IpAddr) -> IpAddr {
    if node.is_ipv4() {
        NODE_B.into()
    } else {
        NODE6_B.into()
    }
}

#[test]
fn what_a_container_opened_goes_on_if_it_is_masqueraded() -> Result<()> {
    let stage = Containers::masqueraded()?;
    if track(&stage.lab.node)? {
        container_goes_on(&stage, true)?;
    }
    Ok(())
}

#[test]
fn what_a_container_opened_goes_on_if_it_is_routed() -> Result<()> {
    let stage = Containers::routed()?;
    if track(&stage.lab.node)? {
        container_goes_on(&stage, false)?;
    }
    Ok(())
}

/// Container, host and a published port, each opened by the friend and by the stranger. The policy decides, and it names
/// the friend.
#[test]
fn what_came_in_goes_on_for_those_who_are_allowed_and_ends_for_the_rest() -> Result<()> {
    let stage = Containers::masqueraded()?;
    let lab = &stage.lab;
    if !track(&lab.node)? {
        return Ok(());
    }
    for (family, container) in [("ip", BEHIND[0].0), ("ip6", BEHIND[1].0)] {
        let rules: String = [(8080, 80), (8090, 90)]
            .into_iter()
            .map(|(port, inner)| {
                let (tcp, udp) = (
                    SocketAddr::new(container, inner),
                    SocketAddr::new(container, inner + 1),
                );
                format!(
                    "fib daddr type local tcp dport {port} dnat to {tcp}\n\
                     fib daddr type local udp dport {} dnat to {udp}\n",
                    port + 1
                )
            })
            .collect();
        nft(
            &lab.node,
            &format!(
                "table {family} publish {{ chain pre {{ type nat hook prerouting priority -100;\n{rules}}}\n}}\n"
            ),
        )?;
    }
    let mut allowed = Vec::new();
    let mut denied = Vec::new();
    for (container, node, _, _) in BEHIND {
        let inner = SocketAddr::new(container, 80);
        let published = SocketAddr::new(node, 8080);
        allowed.push(Pairs::open(&lab.friend, &stage.container, published, inner)?);
        let inner = SocketAddr::new(container, 90);
        let published = SocketAddr::new(node_b(node), 8090);
        denied.push(Pairs::open(&lab.stranger, &stage.container, published, inner)?);
        // Another port of the host, that no service names.
        let host = SocketAddr::new(node_b(node), 9000);
        denied.push(Pairs::open(&lab.stranger, &lab.node, host, host)?);
        // The container by its own address, as long as it is routed.
        let routed = SocketAddr::new(container, 9000);
        denied.push(Pairs::open(&lab.stranger, &stage.container, routed, routed)?);
    }
    let agent = lab.agent(WEB)?;
    for pairs in &mut allowed {
        assert_eq!((pairs.there(), pairs.back()), ([true; 2], [true; 2]));
    }
    for pairs in &mut denied {
        assert_eq!(pairs.there(), [false; 2]);
    }
    let counts = agent.counts()?;
    assert!(counts.of("web", "drop", "not-allowed") >= 4, "{counts:?}");
    assert!(counts.of("", "drop", "closed") >= 8, "{counts:?}");
    Ok(())
}

/// A resolver asks from a socket without a peer: no socket table knows whom.
#[test]
fn the_answer_to_a_question_of_the_host_comes_in() -> Result<()> {
    let stage = Containers::routed()?;
    let lab = &stage.lab;
    if !track(&lab.node)? {
        return Ok(());
    }
    let mut asked = Vec::new();
    for (_, _, _, stranger) in BEHIND {
        let at = SocketAddr::new(stranger, 5353);
        asked.push(udp_pair(&lab.node, &lab.stranger, at, false)?);
    }
    let _agent = lab.agent(CLOSED)?;
    for (near, far) in &asked {
        assert!(udp_hears(far, near), "{:?}", far.local_addr());
    }
    Ok(())
}

/// Conntrack that begins midway takes whoever speaks first for the one that opened: here the server.
#[test]
fn who_opened_what_conntrack_found_midway_is_not_believed() -> Result<()> {
    let stage = Containers::routed()?;
    let lab = &stage.lab;
    let mut opened = Vec::new();
    for (container, _, _, _) in BEHIND {
        let at = SocketAddr::new(container, 9000);
        opened.push(tcp_through(&lab.stranger, &stage.container, at, at)?);
    }
    if !track(&lab.node)? {
        return Ok(());
    }
    for (_, (near, far)) in &mut opened {
        ensure!(tcp_hears(far, near), "before there is an agent");
    }
    let table = lab
        .node
        .run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"));
    if let Ok(table) = table {
        for (container, ..) in BEHIND {
            let known = |line: &str| match container {
                IpAddr::V4(own) => line.contains(&format!("ESTABLISHED src={own} ")),
                // Written in full.
                IpAddr::V6(_) => line.contains("ESTABLISHED src=fd00:0088:"),
            };
            assert!(
                table.lines().any(known),
                "the server is taken for the one that opened: {table}"
            );
        }
    }
    let agent = lab.agent(CLOSED)?;
    for (_, (near, far)) in &mut opened {
        assert!(!tcp_hears(near, far), "{:?}", near.local_addr());
    }
    assert!(agent.counts()?.of("", "drop", "closed") >= 2);
    Ok(())
}
