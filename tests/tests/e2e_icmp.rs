//! ICMP errors: those about what the host does get in, so that path MTU discovery works; all others do not.

use anyhow::{Context, Result};
use ravelin_tests::agent::PREFIX;
use ravelin_tests::lab::{FAMILIES, Family};
use ravelin_tests::netns::link;
use ravelin_tests::packet::{self, ACK, ICMP, ICMPV6, TCP, UDP, Wire};
use ravelin_tests::program::{nft, run};
use ravelin_tests::topology::{ENDS, NARROW, NarrowPath};
use ravelin_tests::traffic;
use ravelin_tests::{Agent, Lab, Namespace};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

const CLOSED: &str = "version = 1\n";
/// The friend, and the far end of the narrow path, may reach 8080.
const WEB: &str = r#"
version = 1

[[service]]
name  = "web"
ports = ["tcp/8080", "udp/8080"]
allow = ["192.0.2.2", "2001:db8:1::2", "203.0.113.2", "2001:db8:3::2"]
"#;

const RELATED: (&str, &str, &str) = ("", "pass", "related");
const FORGED: (&str, &str, &str) = ("", "drop", "icmp-error");

/// More than a few full packets.
const BULK: usize = 200_000;

/// Sends [`BULK`] bytes and waits until the other end has them all.
fn carries(mut from: TcpStream, mut to: TcpStream) -> Result<bool> {
    // Retransmission takes its time; without discovery it would take for ever.
    to.set_read_timeout(Some(Duration::from_secs(3)))?;
    from.set_write_timeout(Some(Duration::from_secs(3)))?;
    std::thread::scope(|scope| {
        scope.spawn(move || from.write_all(&vec![7; BULK]));
        let mut buffer = vec![0; BULK];
        Ok(to.read_exact(&mut buffer).is_ok())
    })
}

/// The path MTU that the namespace has learned to an address.
fn learned(namespace: &Namespace, to: IpAddr) -> Result<Option<u32>> {
    let route = namespace.ip(&format!("route get {to}"))?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1).map(|mtu| mtu.parse().context("an MTU")).transpose()
}

#[test]
fn path_mtu_discovery_of_what_the_host_opens() -> Result<()> {
    let path = NarrowPath::new()?;
    let discovers = |far| -> Result<()> {
        let (near_end, far_end) = traffic::tcp_pair(&path.node, &path.far, (far, 7000).into())?;
        assert!(carries(near_end, far_end)?, "TCP to {far}");
        assert_eq!(learned(&path.node, far)?, Some(NARROW));
        Ok(())
    };
    // The stage itself works, without a filter.
    for (_, far) in ENDS {
        discovers(far)?;
        path.node.ip("route flush cache")?;
        path.node.ip("-6 route flush cache")?;
        assert_eq!(learned(&path.node, far)?, None);
    }
    let agent = Agent::start(&path.node, &["eth0"], CLOSED)?;
    for (_, far) in ENDS {
        let before = agent.counts()?;
        discovers(far)?;
        let counts = agent.counts()?.since(&before);
        assert!(counts.of("", "pass", "related") >= 1, "{counts:?}");
        assert_eq!(counts.verdict("drop"), 0, "{counts:?}");
    }
    Ok(())
}

#[test]
fn path_mtu_discovery_of_udp() -> Result<()> {
    let path = NarrowPath::new()?;
    let agent = Agent::start(&path.node, &["eth0"], CLOSED)?;
    for (_, far) in ENDS {
        let (here, there) = traffic::udp_pair(&path.node, &path.far, (far, 7000).into(), true)?;
        // The first large one is lost, and a router tells why.
        agent.expect(RELATED, 1, || {
            here.send(&[7; 1440])?;
            Ok(())
        })?;
        assert_eq!(learned(&path.node, far)?, Some(NARROW));
        // A connected socket is told, too.
        let told = here.take_error()?.and_then(|error| error.raw_os_error());
        assert_eq!(told, Some(libc::EMSGSIZE));
        here.send(&[7; 1440])?;
        assert_eq!(
            there.recv(&mut [0; 1500])?,
            1440,
            "the next one goes in fragments"
        );
        there.send(&[7; 1200])?;
        assert_eq!(here.recv(&mut [0; 1500])?, 1200);
    }
    Ok(())
}

/// Of IPv6 only hosts cut datagrams up: the error quotes a fragment, and the first one tells of which flow.
#[test]
fn path_mtu_discovery_of_a_datagram_in_fragments() -> Result<()> {
    let path = NarrowPath::new()?;
    let agent = Agent::start(&path.node, &["eth0"], WEB)?;
    let (node, far) = ENDS[1];
    let answers = |here: &UdpSocket, there: &UdpSocket| -> Result<()> {
        agent.expect(RELATED, 1, || {
            here.send(&[7; 4000])?;
            Ok(())
        })?;
        assert_eq!(learned(&path.node, far)?, Some(NARROW));
        here.take_error()?;
        here.send(&[7; 4000])?;
        assert_eq!(there.recv(&mut [0; 5000])?, 4000);
        Ok(())
    };
    // What the host asks.
    let (here, there) = traffic::udp_pair(&path.node, &path.far, (far, 7000).into(), true)?;
    answers(&here, &there)?;
    // What a service answers.
    path.node.ip("-6 route flush cache")?;
    let (there, here) = traffic::udp_pair(&path.far, &path.node, (node, 8080).into(), true)?;
    answers(&here, &there)
}

#[test]
fn path_mtu_discovery_of_a_service() -> Result<()> {
    let path = NarrowPath::new()?;
    let agent = Agent::start(&path.node, &["eth0"], WEB)?;
    for (node, far) in ENDS {
        let before = agent.counts()?;
        let (client, server) = traffic::tcp_pair(&path.far, &path.node, (node, 8080).into())?;
        assert!(carries(server, client)?, "TCP from {far}");
        assert_eq!(learned(&path.node, far)?, Some(NARROW));
        let counts = agent.counts()?.since(&before);
        assert!(counts.of("", "pass", "related") >= 1, "{counts:?}");
    }
    Ok(())
}

#[test]
fn path_mtu_discovery_of_a_masqueraded_container() -> Result<()> {
    let path = NarrowPath::new()?;
    let container = Namespace::unique(PREFIX, "container")?;
    link((&path.node, "pod0"), (&container, "eth0"), 1500)?;
    path.node.address("pod0", "10.88.0.1/24")?;
    path.node.address("pod0", "fd00:88::1/64")?;
    container.address("eth0", "10.88.0.2/24")?;
    container.address("eth0", "fd00:88::2/64")?;
    container.ip("route add default via 10.88.0.1")?;
    container.ip("-6 route add default via fd00:88::1")?;
    path.node.sysctl("net/ipv4/ip_forward", "1")?;
    path.node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    nft(
        &path.node,
        "table inet nat_out { chain post { type nat hook postrouting priority 100; oifname \"eth0\" masquerade; }\n}\n",
    )?;
    let agent = Agent::start(&path.node, &["eth0"], CLOSED)?;
    for (_, far) in ENDS {
        let before = agent.counts()?;
        let (near_end, far_end) = traffic::tcp_pair(&container, &path.far, (far, 7000).into())?;
        assert!(carries(near_end, far_end)?, "TCP to {far}");
        assert_eq!(learned(&container, far)?, Some(NARROW));
        assert!(agent.counts()?.since(&before).of("", "pass", "related") >= 1);
    }
    Ok(())
}

/// A service without ports: what it sends is an echo reply, and an error about that one quotes it.
#[test]
fn path_mtu_discovery_of_echo_replies() -> Result<()> {
    let path = NarrowPath::new()?;
    let policy = "version = 1\n[[service]]\nname = \"ping\"\nports = [\"icmp/echo\"]\nallow = [\"any\"]\n";
    let _agent = Agent::start(&path.node, &["eth0"], policy)?;
    for (node, _) in ENDS {
        // The first ones of each end are lost to discovery.
        let arguments = [
            "-n",
            "-c",
            "5",
            "-i",
            "0.2",
            "-W",
            "1",
            "-s",
            "1400",
            &node.to_string(),
        ];
        let said = run(&path.far, "ping", &arguments)?;
        assert!(
            said.contains(" 3 received") || said.contains(" 4 received") || said.contains(" 5 received"),
            "{said}"
        );
    }
    Ok(())
}

/// The first bytes of what the host sent: what an error quotes.
fn quote(protocol: u8, src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    match protocol {
        TCP => packet::tcp(src, dst, ACK, 1),
        _ => packet::udp(src, dst, b"quoted"),
    }
}

#[test]
fn errors_pass_only_if_they_quote_what_the_host_does() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(WEB)?;
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, "eth0"))?;
    for Family {
        node,
        friend,
        stranger,
        ..
    } in FAMILIES
    {
        // Some router: an error comes from anywhere.
        let router: IpAddr = if node.is_ipv4() {
            [203, 0, 113, 9].into()
        } else {
            "2001:db8:9::9".parse()?
        };
        let error = |quoted: &[u8]| packet::too_big(router, node, 1400, quoted);
        let peer = SocketAddr::new(friend, 7000);
        let (tcp, _far) = traffic::tcp_pair(&lab.node, &lab.friend, peer)?;
        let (udp, _far_udp) = traffic::udp_pair(&lab.node, &lab.friend, peer, false)?;
        let (client, _server) = traffic::tcp_pair(&lab.friend, &lab.node, (node, 8080).into())?;
        let tcp = tcp.local_addr()?;
        let udp = SocketAddr::new(node, udp.local_addr()?.port());
        let client = client.local_addr()?;
        let service = SocketAddr::new(node, 8080);

        for (what, quoted) in [
            ("a TCP flow", quote(TCP, tcp, peer)),
            ("a UDP flow", quote(UDP, udp, peer)),
            ("a connection of a service", quote(TCP, service, client)),
        ] {
            agent
                .expect(RELATED, 1, || wire.send(&error(&quoted)))
                .context(what)?;
            agent
                .expect(RELATED, 1, || {
                    wire.send(&packet::unreachable(router, node, &quoted))
                })
                .context(what)?;
        }

        let other = |address: SocketAddr| SocketAddr::new(address.ip(), address.port() ^ 1);
        let whole = quote(TCP, tcp, peer);
        let header = if node.is_ipv4() { 20 } else { 40 };
        for (what, quoted) in [
            ("another peer", quote(TCP, tcp, (stranger, 7000).into())),
            ("another port of the peer", quote(TCP, tcp, other(peer))),
            ("another port of the host", quote(TCP, other(tcp), peer)),
            ("another protocol", quote(UDP, tcp, peer)),
            ("what the peer sent, not the host", quote(TCP, peer, tcp)),
            (
                "somebody else's packet",
                quote(TCP, (stranger, tcp.port()).into(), peer),
            ),
            (
                "a peer that the service does not allow",
                quote(TCP, service, (stranger, 5000).into()),
            ),
            ("an error about nothing", Vec::new()),
            ("a header alone", whole[..header].to_vec()),
            ("a header and half the ports", whole[..header + 2].to_vec()),
            ("half a header", whole[..header / 2].to_vec()),
            ("an error", packet::unreachable(node, peer.ip(), &whole)),
        ] {
            agent
                .expect_drops(1, || wire.send(&error(&quoted)))
                .context(what)?;
        }
        agent.expect(FORGED, 1, || {
            wire.send(&error(&quote(UDP, (node, 9).into(), peer)))
        })?;
    }
    Ok(())
}

#[test]
fn a_redirect_is_dropped_whatever_it_quotes() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(CLOSED)?;
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, "eth0"))?;
    let [v4, v6] = FAMILIES;
    for family in [v4, v6] {
        let (tcp, _far) = traffic::tcp_pair(&lab.node, &lab.friend, (family.friend, 7000).into())?;
        let quoted = quote(TCP, tcp.local_addr()?, (family.friend, 7000).into());
        let redirect = match (family.node, family.stranger) {
            (IpAddr::V4(_), IpAddr::V4(gateway)) => {
                packet::icmp(family.friend, family.node, 5, 1, gateway.into(), &quoted)
            }
            (IpAddr::V6(_), IpAddr::V6(gateway)) => {
                let router: IpAddr = "fe80::1".parse()?;
                let rest = [gateway.octets(), [0; 16]].concat();
                let mut packet = packet::icmp(router, family.node, 137, 0, 0, &rest);
                packet[7] = 255;
                packet
            }
            _ => continue,
        };
        assert!([ICMP, ICMPV6].contains(&packet::icmp_of(family.node)));
        agent
            .expect_drops(1, || wire.send(&redirect))
            .with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}

/// A probe of somebody who looks for the way to a service is answered by the host: an error that leaves.
#[test]
fn errors_of_the_host_leave() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.agent(WEB)?;
    for Family { node, .. } in FAMILIES {
        // The service's port is open, and nobody listens there.
        let socket = lab.friend.run(|| -> Result<UdpSocket> {
            let any: IpAddr = if node.is_ipv4() {
                [0; 4].into()
            } else {
                [0; 16].into()
            };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect((node, 8080))?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(traffic::PROBE))?;
        socket.send(b"anybody?")?;
        let error = socket.recv(&mut [0; 16]).err().map(|error| error.kind());
        assert_eq!(error, Some(std::io::ErrorKind::ConnectionRefused));
        let refused = lab.friend.run(|| TcpStream::connect((node, 8080)));
        assert_eq!(
            refused.err().map(|error| error.kind()),
            Some(std::io::ErrorKind::ConnectionRefused)
        );
    }
    Ok(())
}
