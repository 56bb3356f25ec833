//! Every way in: what is filtered by default and what not, members of bridges, tunnels, devices without Ethernet headers,
//! and TC where XDP is another's.

use anyhow::{Context, Result, ensure};
use ravelin::api::types::{CounterRow, InterfaceStatus, Status};
use ravelin_tests::frame::{self, Sender};
use ravelin_tests::lab::{EVERYTHING, FRIEND, INTERFACES, NODE, NODE_B, NODE6, NOTHING, STRANGER};
use ravelin_tests::traffic::{self, Echo};
use ravelin_tests::tun::{Kind, Tun};
use ravelin_tests::{Agent, Lab, wait};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

const POLICY: &str = "version = 1\n[[service]]\nname = \"web\"\nports = [\"udp/8080\", \"tcp/8080\"]\nallow = [\"192.0.2.2\", \"2001:db8:1::2\"]\n";

/// Inside of tunnels: node, friend, and somebody who is not allowed.
const INNER: [Ipv4Addr; 3] = [
    Ipv4Addr::new(203, 0, 113, 1),
    Ipv4Addr::new(203, 0, 113, 2),
    Ipv4Addr::new(203, 0, 113, 3),
];
const INNER6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 3),
];

/// What the friend may do outside of a tunnel: the tunnel itself. Inside: the service.
const TUNNEL_POLICY: &str = "version = 1
[[service]]
name = \"tunnel\"
ports = [\"udp/4789\", \"udp/51820\", \"proto/4\", \"proto/41\", \"proto/47\"]
allow = [\"192.0.2.2\"]
[[service]]
name = \"web\"
ports = [\"udp/8080\", \"tcp/8080\"]
allow = [\"203.0.113.2\", \"2001:db8:9::2\"]
";

fn covered<'a>(status: &'a Status, name: &str) -> Result<&'a InterfaceStatus> {
    status
        .interfaces
        .iter()
        .find(|each| each.name == name)
        .with_context(|| format!("{name} is not among {:?}", status.interfaces))
}

/// Why an interface is not filtered.
fn left_out(status: &Status, name: &str) -> Result<String> {
    status
        .uncovered
        .iter()
        .find(|each| each.name == name)
        .map(|each| each.reason.clone())
        .with_context(|| format!("{name} is not among {:?}", status.uncovered))
}

/// Packets and bytes by (service, reason), of what came in.
fn counted(agent: &Agent) -> Result<BTreeMap<(String, String), (u64, u64)>> {
    let rows: Vec<CounterRow> = agent.json(&["counters"])?;
    Ok(rows
        .into_iter()
        .filter(|row| row.direction == "ingress")
        .map(|row| ((row.service, row.reason), (row.count.packets, row.count.bytes)))
        .collect())
}

/// Waits until these packets and bytes, and no others of their reason, are counted.
fn wait_counted(agent: &Agent, service: &str, reason: &str, expected: (u64, u64)) {
    let key = (service.to_owned(), reason.to_owned());
    wait::until(&format!("{expected:?} to end as {reason}"), || {
        match counted(agent) {
            Ok(counts) if counts.get(&key) == Some(&expected) => Ok(()),
            Ok(counts) => Err(format!("{counts:?}")),
            Err(error) => Err(format!("{error:#}")),
        }
    });
}

#[test]
fn by_default_what_leads_outside_is_filtered_and_the_rest_is_named_with_its_reason() -> Result<()> {
    let lab = Lab::new()?;
    lab.node.ip("link add br0 type bridge")?;
    lab.node.ip("link set eth1 master br0")?;
    let _tun = Tun::new(&lab.node, "tun0", Kind::Tun)?;
    let _tap = Tun::new(&lab.node, "tap0", Kind::Tap)?;
    let _guest = Tun::new(&lab.node, "vnet0", Kind::Tap)?;
    lab.node.ip("link set vnet0 master br0")?;
    let has_vlan = lab.node.vlan("eth0", "eth0.7", 7).is_ok();
    let has_macvlan = lab.node.ip("link add mac0 link tap0 type macvlan").is_ok();
    let agent = Agent::start(&lab.node, &[], POLICY)?;

    let status = agent.status()?;
    let tun = covered(&status, "tun0")?;
    assert_eq!((tun.hook.as_str(), tun.kind.as_str()), ("tc", "tun"), "{tun:?}");
    let tap = covered(&status, "tap0")?;
    assert_eq!((tap.hook.as_str(), tap.kind.as_str()), ("xdp", "tun"), "{tap:?}");
    assert_eq!(status.interfaces.len(), 2, "{:?}", status.interfaces);
    for (name, words) in [
        ("lo", "loopback"),
        ("eth0", "leads to another namespace"),
        ("eth1", "leads to another namespace"),
        ("vnet0", "guest"),
        ("br0", "on its members, and none of them is filtered"),
    ] {
        let reason = left_out(&status, name)?;
        assert!(reason.contains(words), "{name}: {reason}");
    }
    if has_vlan {
        assert_eq!(left_out(&status, "eth0.7")?, "what it stands on is not filtered");
    } else {
        println!("SKIPPED: this kernel has no VLAN interfaces (CONFIG_VLAN_8021Q)");
    }
    if has_macvlan {
        assert!(left_out(&status, "mac0")?.contains("judged on tap0"));
    } else {
        println!("SKIPPED: this kernel has no macvlan interfaces (CONFIG_MACVLAN)");
    }
    let text = agent.ok(&["status"])?;
    assert!(
        text.contains("NOT FILTERED") && text.contains("judged on its members"),
        "{text}"
    );

    // A guest's that leaves the bridge is nobody's, and back.
    lab.node.ip("link set vnet0 nomaster")?;
    let follows = |wanted: bool| {
        wait::until("vnet0 to be followed", || match agent.status() {
            Ok(status) if covered(&status, "vnet0").is_ok() == wanted => Ok(()),
            Ok(status) => Err(format!("{:?}", status.interfaces)),
            Err(error) => Err(format!("{error:#}")),
        });
    };
    follows(true);
    lab.node.ip("link set vnet0 master br0")?;
    follows(false);
    Ok(())
}

#[test]
fn a_member_of_a_bridge_is_judged_once_for_the_bridge() -> Result<()> {
    let lab = Lab::new()?;
    // The address moves to the bridge.
    lab.node.ip("link add br0 type bridge")?;
    lab.node.ip("link set br0 up")?;
    lab.node.ip(&format!("address del {NODE}/24 dev eth0"))?;
    lab.node.ip(&format!("address del {NODE6}/64 dev eth0"))?;
    lab.node.ip("link set eth0 master br0")?;
    lab.node.address("br0", &format!("{NODE}/24"))?;
    lab.node.address("br0", &format!("{NODE6}/64"))?;
    let _echo = lab.serve(8080)?;
    let _other = lab.serve(8082)?;
    for hook in ["xdp", "tc"] {
        let agent = lab.agent_with(POLICY, &["--hook", hook])?;
        let status = agent.status()?;
        let eth0 = covered(&status, "eth0")?;
        assert_eq!((eth0.hook.as_str(), eth0.kind.as_str()), (hook, "veth in br0"));
        assert!(left_out(&status, "br0")?.contains("judged on its members: eth0"));
        assert_eq!(lab.friend_reaches(8080), EVERYTHING);
        assert_eq!(lab.friend_reaches(8082), NOTHING);
        // Each packet is counted once.
        let before = agent.counts()?;
        let source = frame::hardware_address(&lab.friend, "eth0")?;
        let target = frame::hardware_address(&lab.node, "br0")?;
        let sender = Sender::open(&lab.friend, "eth0")?;
        for _ in 0..5 {
            let packet = frame::udp4((STRANGER, 7), (NODE, 8080), &[], b"once");
            sender.send(&frame::ethernet(target, source, &[], frame::IPV4, &packet))?;
        }
        wait::until_equal("five packets to be counted", &5, || {
            agent
                .counts()
                .map_or(0, |counts| counts.since(&before).of("web", "drop", "not-allowed"))
        });
    }
    Ok(())
}

/// The verdicts at XDP and at TC agree, and so do packets and bytes, whatever tags stand before: at TC the outer one is
/// not in the frame any more.
#[test]
fn tags_are_judged_and_counted_alike_at_both_hooks() -> Result<()> {
    let lab = Lab::new()?;
    let target = frame::hardware_address(&lab.node, "eth0")?;
    let source = frame::hardware_address(&lab.friend, "eth0")?;
    let stacks = [
        &[][..],
        &[(frame::VLAN, 0)],
        &[(frame::VLAN, 7)],
        &[(frame::QINQ, 7), (frame::VLAN, 9)],
        &[(frame::VLAN, 0), (frame::VLAN, 7)],
        &[(frame::VLAN, 1), (frame::VLAN, 2), (frame::VLAN, 3)],
    ];
    for hook in ["xdp", "tc"] {
        let agent = Agent::start_with(&lab.node, &["eth0"], POLICY, &["--hook", hook])?;
        assert_eq!(covered(&agent.status()?, "eth0")?.hook, hook);
        let sender = Sender::open(&lab.friend, "eth0")?;
        let (mut allowed, mut denied, mut deep) = ((0, 0), (0, 0), (0, 0));
        for tags in stacks {
            for (from, sum) in [(FRIEND, &mut allowed), (STRANGER, &mut denied)] {
                let packet = frame::udp4((from, 7), (NODE, 8080), &[], b"tagged and of some length");
                let frame = frame::ethernet(target, source, tags, frame::IPV4, &packet);
                sender.send(&frame)?;
                let sum = if tags.len() > 2 { &mut deep } else { sum };
                *sum = (sum.0 + 1, sum.1 + frame.len() as u64);
            }
        }
        wait_counted(&agent, "web", "allowed", allowed);
        wait_counted(&agent, "web", "not-allowed", denied);
        wait_counted(&agent, "", "vlan-depth", deep);
    }
    Ok(())
}

#[test]
fn where_xdp_is_anothers_tc_gives_the_same_verdicts() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let _shut = lab.serve(8082)?;
    // The other one lets everything pass.
    let open = "version = 1\n[defaults]\ningress = \"allow\"\n";
    let other = Agent::start_with(&lab.node, &INTERFACES, open, &["--metrics", "127.0.0.1:9478"])?;

    // By default the agent does not step aside by itself, but says what would do.
    let mut agent = Agent::prepare(&lab.node, &INTERFACES, POLICY, &[])?;
    agent.launch(&lab.node)?;
    wait::until("the way out to be named", || {
        let status = agent.status().map_err(|error| format!("{error:#}"))?;
        let detail = covered(&status, "eth0")
            .map_err(|error| format!("{error:#}"))?
            .detail
            .clone()
            .unwrap_or_default();
        // It is ravelin itself, so that is the way out it names.
        if detail.contains("ravelin detach --instance") {
            Ok(())
        } else {
            Err(detail)
        }
    });
    drop(agent);

    for flags in [&["--hook", "tc"][..], &["--hook", "tc", "--without", "tcx"]] {
        let agent = lab.agent_with(POLICY, flags)?;
        let status = agent.status()?;
        for name in INTERFACES {
            assert_eq!(covered(&status, name)?.hook, "tc");
        }
        assert_eq!(lab.friend_reaches(8080), EVERYTHING);
        assert_eq!(
            (lab.stranger_reaches(8080), lab.friend_reaches(8082)),
            (NOTHING, NOTHING)
        );
        // The host's own outbound traffic goes on.
        let _far = Echo::start(&lab.stranger, SocketAddr::from((STRANGER, 7000)))?;
        assert!(traffic::udp_reaches(
            &lab.node,
            SocketAddr::from((STRANGER, 7000))
        ));
        assert!(traffic::tcp_reaches(
            &lab.node,
            SocketAddr::from((STRANGER, 7000))
        ));
        assert!(other.status()?.ready, "the other one is undisturbed");
        // A filter of clsact outlives its agent and its pins.
        agent.ok(&["detach", "--yes"])?;
    }
    wait::until_equal("the other one's policy to be all there is", &EVERYTHING, || {
        lab.stranger_reaches(8082)
    });
    Ok(())
}

#[test]
fn a_hook_for_some_interfaces_only() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let agent = lab.agent_with(POLICY, &["--hook", "eth1=tc"])?;
    let status = agent.status()?;
    assert_eq!(covered(&status, "eth0")?.hook, "xdp");
    assert_eq!(covered(&status, "eth1")?.hook, "tc");
    assert_eq!(
        (lab.friend_reaches(8080), lab.stranger_reaches(8080)),
        (EVERYTHING, NOTHING)
    );
    Ok(())
}

/// A start with another hook moves the filter without a moment between.
#[test]
fn changing_the_hook_leaves_no_gap() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent(POLICY)?;
    let trial = traffic::Trial::start(
        &lab.node,
        (&lab.friend, SocketAddr::from((NODE, 8080))),
        (&lab.stranger, SocketAddr::from((NODE_B, 8080))),
        1000,
    )?;
    for hook in ["tc", "xdp", "tc"] {
        agent.kill()?;
        agent.set_flag("--hook", hook);
        agent.launch(&lab.node)?;
        agent.wait_ready()?;
        assert_eq!(covered(&agent.status()?, "eth1")?.hook, hook);
        trial.advance(100);
    }
    trial.finish()?.all_right()
}

/// Policy for what comes in by a device of the test.
fn tun_setup(lab: &Lab, name: &str) -> Result<()> {
    lab.node.address(name, &format!("{}/24", INNER[0]))?;
    lab.node.address(name, &format!("{}/64", INNER6[0]))
}

#[test]
fn a_device_without_ethernet_headers_meets_the_same_policy() -> Result<()> {
    let lab = Lab::new()?;
    let tun = Tun::new(&lab.node, "tun0", Kind::Tun)?;
    tun_setup(&lab, "tun0")?;
    let _echo = Echo::start(&lab.node, SocketAddr::from((INNER[0], 8080)))?;
    let _echo6 = Echo::start(&lab.node, SocketAddr::from((INNER6[0], 8080)))?;
    let agent = Agent::start(&lab.node, &[], TUNNEL_POLICY)?;
    let status = agent.status()?;
    let device = covered(&status, "tun0")?;
    assert_eq!(device.hook, "tc", "{device:?}");

    let udp4 = |from: usize, port| frame::udp4((INNER[from], 7), (INNER[0], port), &[], b"by the tunnel");
    let udp6 =
        |from: usize, port| frame::udp6((INNER6[from], 7), (INNER6[0], port), 0, &[], b"by the tunnel");
    let (mut allowed, mut denied, mut closed) = ((0, 0), (0, 0), (0, 0));
    for (packets, sum) in [
        ([udp4(1, 8080), udp6(1, 8080)], &mut allowed),
        ([udp4(2, 8080), udp6(2, 8080)], &mut denied),
        ([udp4(1, 8081), udp6(1, 8081)], &mut closed),
    ] {
        for packet in packets {
            tun.send(&packet)?;
            *sum = (sum.0 + 1, sum.1 + packet.len() as u64);
        }
    }
    // From the IP header on: there is nothing before it.
    wait_counted(&agent, "web", "allowed", allowed);
    wait_counted(&agent, "web", "not-allowed", denied);
    wait_counted(&agent, "", "closed", closed);
    // The allowed ones were answered, and only they.
    let answers = |packet: &[u8]| packet.ends_with(b"by the tunnel");
    let mut to = Vec::new();
    for _ in 0..2 {
        let packet = tun.receive(answers)?;
        to.push(match packet[0] >> 4 {
            4 => packet[16..20].to_vec(),
            _ => packet[24..40].to_vec(),
        });
    }
    to.sort_by_key(Vec::len);
    assert_eq!(to, [INNER[1].octets().to_vec(), INNER6[1].octets().to_vec()]);

    // What the host opens by it is answered, what nobody asked for is not.
    let socket = lab.node.run(|| UdpSocket::bind((INNER[0], 9000)))?;
    socket.set_read_timeout(Some(wait::PATIENCE))?;
    socket.send_to(b"question", (INNER[2], 53))?;
    tun.receive(|packet| packet.ends_with(b"question"))?;
    tun.send(&frame::udp4((INNER[1], 53), (INNER[0], 9000), &[], b"unasked"))?;
    tun.send(&frame::udp4((INNER[2], 53), (INNER[0], 9000), &[], b"answer"))?;
    let mut buffer = [0; 64];
    let (length, _) = socket.recv_from(&mut buffer)?;
    assert_eq!(&buffer[..length], b"answer");
    Ok(())
}

/// Headers that the driver left in pages are looked for there, as XDP would have seen them.
#[test]
fn headers_outside_of_the_linear_part_are_found() -> Result<()> {
    const LONG: usize = 6000;
    for (kind, name) in [(Kind::Tun, "tun0"), (Kind::Tap, "tap0")] {
        let lab = Lab::new()?;
        let tun = Tun::new(&lab.node, name, kind)?;
        lab.node.ip(&format!("link set {name} mtu 9000"))?;
        tun_setup(&lab, name)?;
        let agent = Agent::start_with(&lab.node, &[name], TUNNEL_POLICY, &["--hook", "tc"])?;
        // Eight headers, each as long as makes the chain some hundred bytes.
        let chain: Vec<u8> = (0..8)
            .flat_map(|index| {
                let next = if index == 7 { 17 } else { 60 };
                let mut header = vec![next, 5, 1, 44];
                header.resize(48, 0);
                header
            })
            .collect();
        let payload = vec![7; LONG];
        let target = match kind {
            Kind::Tun => None,
            Kind::Tap => Some(frame::hardware_address(&lab.node, name)?),
        };
        let (mut allowed, mut denied) = ((0, 0), (0, 0));
        for (from, sum) in [(1, &mut allowed), (2, &mut denied)] {
            for (kind, packet) in [
                (
                    frame::IPV4,
                    frame::udp4((INNER[from], 7), (INNER[0], 8080), &[1; 40], &payload),
                ),
                (
                    frame::IPV6,
                    frame::udp6((INNER6[from], 7), (INNER6[0], 8080), 60, &chain, &payload),
                ),
            ] {
                let (frame, linear) = match target {
                    None => (packet, 1),
                    Some(target) => (frame::ethernet(target, [2; 6], &[], kind, &packet), 14),
                };
                tun.send_scattered(&frame, linear)?;
                *sum = (sum.0 + 1, sum.1 + frame.len() as u64);
            }
        }
        wait_counted(&agent, "web", "allowed", allowed);
        wait_counted(&agent, "web", "not-allowed", denied);
    }
    Ok(())
}

/// The inner traffic is judged on the tunnel's device, the packets around it on the one below.
fn through_a_tunnel(add: impl Fn(IpAddr, IpAddr) -> String, hook: &str) -> Result<bool> {
    let lab = Lab::new()?;
    for (namespace, local, remote, inner) in [(&lab.node, NODE, FRIEND, 0), (&lab.friend, FRIEND, NODE, 1)] {
        let command = add(local.into(), remote.into());
        if let Err(error) = namespace.ip(&format!("link add name tunnel0 {command}")) {
            println!(
                "SKIPPED: this kernel makes no `{command}`: {:#}",
                error.root_cause()
            );
            return Ok(false);
        }
        namespace.ip("link set tunnel0 mtu 1300 up")?;
        namespace.address("tunnel0", &format!("{}/24", INNER[inner]))?;
    }
    let mut agent = Agent::start_with(&lab.node, &["eth0", "tunnel0"], TUNNEL_POLICY, &["--hook", hook])?;
    let status = agent.status()?;
    println!("tunnel0: {:?}", covered(&status, "tunnel0")?);

    let reaches = |port| {
        let to = SocketAddr::from((INNER[0], port));
        (
            traffic::tcp_reaches(&lab.friend, to),
            traffic::udp_reaches(&lab.friend, to),
        )
    };
    let _echo = Echo::start(&lab.node, SocketAddr::from((INNER[0], 8080)))?;
    let _shut = Echo::start(&lab.node, SocketAddr::from((INNER[0], 8082)))?;
    assert_eq!((reaches(8080), reaches(8082)), ((true, true), (false, false)));
    // Inside is not outside: whoever may use the tunnel may not use the service.
    assert_eq!(lab.friend_reaches(8080), NOTHING);
    let counts = agent.counts()?;
    assert!(counts.of("tunnel", "pass", "allowed") > 0, "{counts:?}");
    assert!(counts.of("web", "pass", "allowed") > 0, "{counts:?}");

    // Without the tunnel's own packets nothing comes in.
    let shut = TUNNEL_POLICY.replace("allow = [\"192.0.2.2\"]", "allow = []");
    ensure!(shut != TUNNEL_POLICY, "the policy does not name the friend");
    agent.apply(&shut)?;
    assert_eq!(reaches(8080), (false, false));
    agent.terminate()?;
    Ok(true)
}

#[test]
fn a_vxlan_is_judged_inside_and_outside() -> Result<()> {
    for hook in ["auto", "tc"] {
        through_a_tunnel(
            |local, remote| format!("type vxlan id 7 dstport 4789 local {local} remote {remote}"),
            hook,
        )?;
    }
    Ok(())
}

#[test]
fn tunnels_without_ethernet_headers_are_judged_inside_and_outside() -> Result<()> {
    for kind in ["gre", "ipip"] {
        through_a_tunnel(
            |local, remote| format!("type {kind} local {local} remote {remote}"),
            "auto",
        )?;
    }
    through_a_tunnel(
        |local, remote| format!("type gretap local {local} remote {remote}"),
        "auto",
    )?;
    Ok(())
}

/// On such a device the outer headers still stand before the packet.
#[test]
fn a_gre_device_without_a_fixed_peer_is_judged_by_what_it_carries() -> Result<()> {
    let lab = Lab::new()?;
    if let Err(error) = lab
        .node
        .ip(&format!("link add name tunnel0 type gre local {NODE} key 5"))
    {
        println!("SKIPPED: this kernel has no GRE: {:#}", error.root_cause());
        return Ok(());
    }
    lab.node.ip("link set tunnel0 up")?;
    lab.node.address("tunnel0", &format!("{}/24", INNER[0]))?;
    let agent = Agent::start(&lab.node, &["tunnel0"], TUNNEL_POLICY)?;
    let source = frame::hardware_address(&lab.friend, "eth0")?;
    let target = frame::hardware_address(&lab.node, "eth0")?;
    let sender = Sender::open(&lab.friend, "eth0")?;
    let (mut allowed, mut denied) = ((0, 0), (0, 0));
    for (from, sum) in [(1, &mut allowed), (2, &mut denied)] {
        let inner = frame::udp4((INNER[from], 7), (INNER[0], 8080), &[], b"inside");
        // A key of 5.
        let gre = [&[0x20, 0, 8, 0, 0, 0, 0, 5][..], &inner].concat();
        let packet = frame::ipv4(FRIEND, NODE, 47, &[], &gre);
        sender.send(&frame::ethernet(target, source, &[], frame::IPV4, &packet))?;
        *sum = (sum.0 + 1, sum.1 + inner.len() as u64);
    }
    wait_counted(&agent, "web", "allowed", allowed);
    wait_counted(&agent, "web", "not-allowed", denied);
    Ok(())
}

#[test]
fn wireguard_is_judged_inside_and_outside() -> Result<()> {
    let lab = Lab::new()?;
    if let Err(error) = lab.node.ip("link add name tunnel0 type wireguard") {
        println!("SKIPPED: this kernel has no wireguard: {:#}", error.root_cause());
        return Ok(());
    }
    // Keys take a program that not every machine has; that the device is covered does not.
    let agent = Agent::start(&lab.node, &[], TUNNEL_POLICY)?;
    let status = agent.status()?;
    let device = covered(&status, "tunnel0")?;
    assert_eq!((device.hook.as_str(), device.kind.as_str()), ("tc", "wireguard"));
    Ok(())
}

#[test]
fn a_bond_is_judged_on_its_members() -> Result<()> {
    let lab = Lab::new()?;
    if let Err(error) = lab.node.ip("link add name bond0 type bond mode active-backup") {
        println!("SKIPPED: this kernel has no bonds: {:#}", error.root_cause());
        return Ok(());
    }
    lab.node.ip("link set eth0 down")?;
    lab.node.ip("link set eth0 master bond0")?;
    lab.node.ip("link set bond0 up")?;
    lab.node.address("bond0", &format!("{NODE}/24"))?;
    lab.node.address("bond0", &format!("{NODE6}/64"))?;
    let _echo = lab.serve(8080)?;
    let agent = lab.agent(POLICY)?;
    let status = agent.status()?;
    assert_eq!(covered(&status, "eth0")?.kind, "veth in bond0");
    assert!(left_out(&status, "bond0")?.contains("judged on its members: eth0"));
    assert_eq!(lab.friend_reaches(8080), EVERYTHING);
    let _shut = lab.serve(8082)?;
    assert_eq!(lab.friend_reaches(8082), NOTHING);
    Ok(())
}

/// A macvlan's frames are judged on the device that it stands on.
#[test]
fn a_macvlan_is_judged_on_its_parent() -> Result<()> {
    let lab = Lab::new()?;
    if let Err(error) = lab
        .node
        .ip("link add name mac0 link eth0 type macvlan mode bridge")
    {
        println!("SKIPPED: this kernel has no macvlan: {:#}", error.root_cause());
        return Ok(());
    }
    lab.node.ip("link set mac0 up")?;
    let address = Ipv4Addr::new(192, 0, 2, 9);
    lab.node.address("mac0", &format!("{address}/24"))?;
    let _echo = Echo::start(&lab.node, SocketAddr::from((address, 8080)))?;
    let _shut = Echo::start(&lab.node, SocketAddr::from((address, 8082)))?;
    let agent = Agent::start(&lab.node, &["eth0"], POLICY)?;
    assert_eq!(
        left_out(&agent.status()?, "mac0")?,
        "its frames are judged on eth0"
    );
    let reaches = |port| {
        let to = SocketAddr::from((address, port));
        (
            traffic::tcp_reaches(&lab.friend, to),
            traffic::udp_reaches(&lab.friend, to),
        )
    };
    assert_eq!((reaches(8080), reaches(8082)), ((true, true), (false, false)));
    Ok(())
}
