//! What leaves, judged by the loaded program and the host build alike: a table of frames, and random policies against a
//! scan of all rules.

use firewall_common::image::PortKey;
use firewall_common::packet::{ethertype, tcp};
use firewall_common::verdict::{Direction, Reason};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use ravelin::policy::model::{Action, Owner, Policy, ServiceId};
use ravelin::simulate::{Flows, FrameBuilder, Node, Transport, decide_egress};
use ravelin_tests::both::{Both, DST4, DST6, hex, ip, policy};
use std::cell::RefCell;
use std::net::IpAddr;

const POLICY: &str = r#"version = 1
deny = ["203.0.113.66"]
[defaults]
egress = "deny"
[[service]]
name = "api"
ports = ["tcp/8443", "udp/8443", "sctp/8443", "icmp/echo", "proto/47"]
allow = ["198.51.100.0/24", "203.0.113.0/24", "2001:db8:1::/48"]
deny = ["198.51.100.128/25"]
[[egress]]
name = "dns"
ports = ["udp/53", "tcp/53", "sctp/53", "icmp/echo", "proto/50"]
to = ["192.0.2.53", "2001:db8:53::/64"]
[[egress]]
name = "lan"
to = ["10.0.0.0/8", "2001:db8:a::/48"]
deny = ["10.66.0.0/16", "2001:db8:a:66::/64"]
[[egress]]
name = "no-mail"
ports = ["tcp/25"]
deny = ["any"]
"#;

/// What leaves this host for a peer.
fn out(peer: IpAddr, transport: Transport) -> FrameBuilder {
    FrameBuilder::new(ip(if peer.is_ipv4() { DST4 } else { DST6 }), peer, transport)
}

fn segment(src_port: u16, dst_port: u16, flags: u8) -> Transport {
    Transport::Tcp {
        src_port,
        dst_port,
        flags,
    }
}

fn datagram(src_port: u16, dst_port: u16) -> Transport {
    Transport::Udp { src_port, dst_port }
}

fn echo(icmp_type: u8) -> Transport {
    Transport::Icmp {
        icmp_type,
        code: 0,
        id: 7,
    }
}

#[test]
fn each_destination_ends_as_its_table_says() {
    use Reason::{
        Answer, DhcpClient, EgressAllowed, EgressClosed, EgressDenied, EtherType, Mld, NeighbourDiscovery,
        Related,
    };
    const HIGH: u16 = 40_000;
    let mut both = Both::new(&policy(POLICY));
    let syn = |port| segment(HIGH, port, tcp::SYN);
    let table: &[(&str, Transport, Reason)] = &[
        // The rule, its neighbours in port, protocol and address, in both families.
        ("192.0.2.53", datagram(HIGH, 53), EgressAllowed),
        ("192.0.2.53", syn(53), EgressAllowed),
        ("192.0.2.53", segment(HIGH, 53, tcp::ACK), EgressAllowed),
        ("192.0.2.53", echo(8), EgressAllowed),
        (
            "192.0.2.53",
            Transport::Sctp {
                src_port: HIGH,
                dst_port: 53,
            },
            EgressAllowed,
        ),
        ("192.0.2.53", Transport::Raw(50), EgressAllowed),
        ("192.0.2.53", Transport::Raw(51), EgressClosed),
        ("192.0.2.53", datagram(HIGH, 52), EgressClosed),
        ("192.0.2.53", syn(54), EgressClosed),
        ("192.0.2.53", echo(13), EgressClosed),
        ("192.0.2.52", datagram(HIGH, 53), EgressClosed),
        ("192.0.2.54", datagram(HIGH, 53), EgressClosed),
        ("2001:db8:53::1", datagram(HIGH, 53), EgressAllowed),
        ("2001:db8:53::1", echo(128), EgressAllowed),
        ("2001:db8:53:1::1", datagram(HIGH, 53), EgressClosed),
        ("2001:db8:53::1", datagram(HIGH, 54), EgressClosed),
        // Every port and protocol, and a deny inside.
        ("10.1.2.3", syn(1), EgressAllowed),
        ("10.1.2.3", datagram(HIGH, 65_535), EgressAllowed),
        ("10.1.2.3", Transport::Raw(89), EgressAllowed),
        ("10.66.0.0", syn(1), EgressDenied),
        ("10.66.255.255", datagram(HIGH, 53), EgressDenied),
        ("10.65.255.255", syn(1), EgressAllowed),
        ("10.67.0.0", syn(1), EgressAllowed),
        ("11.0.0.0", syn(1), EgressClosed),
        ("2001:db8:a::1", Transport::Raw(89), EgressAllowed),
        ("2001:db8:a:66::1", syn(443), EgressDenied),
        ("2001:db8:b::1", syn(443), EgressClosed),
        // The deny of a later rule beats the allow of an earlier one at its port, and only there.
        ("10.1.2.3", syn(25), EgressDenied),
        ("10.1.2.3", syn(24), EgressAllowed),
        ("10.1.2.3", datagram(HIGH, 25), EgressAllowed),
        ("198.18.0.1", syn(25), EgressDenied),
        // The policy's own deny list is of what comes in.
        ("203.0.113.66", syn(443), EgressClosed),
        // Answers: from the port of a service to whom it allows; a SYN answers nothing.
        ("198.51.100.7", segment(8443, HIGH, tcp::SYN | tcp::ACK), Answer),
        ("198.51.100.7", segment(8443, HIGH, tcp::RST), Answer),
        ("198.51.100.7", segment(8443, HIGH, tcp::SYN), EgressClosed),
        ("198.51.100.7", datagram(8443, HIGH), Answer),
        (
            "198.51.100.7",
            Transport::Sctp {
                src_port: 8443,
                dst_port: HIGH,
            },
            Answer,
        ),
        ("198.51.100.7", echo(0), Answer),
        // A request is no answer, though the service takes requests.
        ("198.51.100.7", echo(8), EgressClosed),
        ("198.51.100.7", Transport::Raw(47), Answer),
        ("2001:db8:1::7", segment(8443, HIGH, tcp::ACK), Answer),
        ("2001:db8:1::7", echo(129), Answer),
        ("198.51.100.7", segment(8442, HIGH, tcp::ACK), EgressClosed),
        ("198.51.100.128", segment(8443, HIGH, tcp::ACK), EgressClosed),
        ("203.0.113.66", segment(8443, HIGH, tcp::ACK), EgressClosed),
        ("203.0.113.65", segment(8443, HIGH, tcp::ACK), Answer),
        ("2001:db8:2::7", segment(8443, HIGH, tcp::ACK), EgressClosed),
        // To somebody whom the service does not allow, but a rule does.
        ("10.1.2.3", segment(8443, HIGH, tcp::ACK), EgressAllowed),
        // What a host cannot live without.
        ("255.255.255.255", datagram(68, 67), DhcpClient),
        ("255.255.255.255", datagram(67, 68), EgressClosed),
        ("ff02::1:2", datagram(546, 547), DhcpClient),
        ("ff02::1:ff00:7", echo(135), NeighbourDiscovery),
        ("ff02::2", echo(133), NeighbourDiscovery),
        ("ff02::16", echo(143), Mld),
        ("224.0.0.22", Transport::Raw(2), Mld),
        ("198.18.0.1", datagram(68, 67), EgressClosed),
        ("2001:db8:b::1", datagram(546, 547), EgressClosed),
        // Errors about nothing that the receiver sent.
        ("198.18.0.1", echo(3), EgressClosed),
        ("2001:db8:b::1", echo(1), EgressClosed),
        ("198.18.0.1", echo(5), EgressClosed),
    ];
    for (peer, transport, expected) in table {
        let mut frame = out(ip(peer), *transport).payload(&[0; 40]);
        // RFC 4861 section 7.1, RFC 3810 section 5: else it is neither.
        frame.hop_limit = match expected {
            NeighbourDiscovery => 255,
            Mld => 1,
            _ => 64,
        };
        // Neighbour discovery carries its target, and tags change nothing.
        for frame in [frame.clone(), frame.clone().vlan(ethertype::VLAN, 7)] {
            let frame = frame.build();
            assert_eq!(
                both.judge_egress(&frame),
                *expected,
                "{transport:?} to {peer}: {}",
                hex(&frame)
            );
        }
    }
    for (peer, icmp_type) in [("198.18.0.1", 3), ("2001:db8:b::1", 1)] {
        let mine = out(ip(peer), syn(443));
        let asked = FrameBuilder::new(mine.dst, mine.src, syn(443)).build();
        let error = out(ip(peer), echo(icmp_type)).payload(&asked[14..]);
        assert_eq!(both.judge_egress(&error.build()), Related);
    }
    for (dst, kind) in [("ff02::2", 133), ("ff02::16", 143)] {
        let frame = out(ip(dst), echo(kind)).payload(&[0; 40]).build();
        assert_eq!(both.judge_egress(&frame), EgressClosed, "hop limit 64");
    }
    let mut arp = vec![0xff; 12];
    arp.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.resize(42, 0);
    assert_eq!(both.judge_egress(&arp), Reason::Arp);
    let mut other = vec![0xff; 12];
    other.extend_from_slice(&[0x88, 0x47]);
    other.resize(60, 0);
    assert_eq!(both.judge_egress(&other), EtherType);
    both.assert_same_tables();
}

#[test]
fn under_a_default_of_allow_only_a_deny_closes() {
    let mut both = Both::new(&policy(
        &POLICY.replace("egress = \"deny\"", "egress = \"allow\""),
    ));
    let mut ends = |peer: &str, transport| both.judge_egress(&out(ip(peer), transport).build());
    let syn = |port| segment(40_000, port, tcp::SYN);
    assert_eq!(ends("198.18.0.1", syn(443)), Reason::DefaultAllow);
    assert_eq!(ends("198.18.0.1", syn(25)), Reason::EgressDenied);
    assert_eq!(ends("10.66.1.1", syn(443)), Reason::EgressDenied);
    assert_eq!(ends("10.65.1.1", syn(443)), Reason::EgressAllowed);
    assert_eq!(ends("2001:db8:b::1", datagram(9, 9)), Reason::DefaultAllow);
}

#[test]
fn a_frame_cut_short_anywhere_does_not_leave_under_a_default_of_deny() {
    let mut both = Both::new(&policy(POLICY));
    for peer in ["10.1.2.3", "2001:db8:a::1"] {
        for transport in [segment(1, 2, tcp::SYN), datagram(1, 2)] {
            let frame = out(ip(peer), transport).vlan(ethertype::VLAN, 7).build();
            assert_eq!(both.judge_egress(&frame), Reason::EgressAllowed);
            for len in 14..frame.len() {
                let reason = both.judge_egress(&frame[..len]);
                assert!(
                    reason.number() >= Reason::FIRST_DROP,
                    "{reason:?} at {len}: {}",
                    hex(&frame)
                );
            }
        }
    }
}

#[test]
fn what_the_default_lets_in_is_answered_by_tcp_and_pings() {
    use Reason::*;
    let mut both = Both::new(&policy(
        "version = 1\n[defaults]\ningress = \"allow\"\negress = \"deny\"\n",
    ));
    let peer = "192.0.2.53";
    let tcp = |src_port, dst_port, flags| Transport::Tcp {
        src_port,
        dst_port,
        flags,
    };
    let (syn, ack) = (tcp::SYN, tcp::ACK);
    for (transport, reason) in [
        (tcp(7000, 40_000, syn | ack), Answer),
        (tcp(7000, 40_000, ack), Answer),
        (tcp(40_000, 443, syn), EgressClosed),
        (
            Transport::Udp {
                src_port: 7001,
                dst_port: 40_000,
            },
            EgressClosed,
        ),
        (
            Transport::Icmp {
                icmp_type: 0,
                code: 0,
                id: 7,
            },
            Answer,
        ),
        (
            Transport::Icmp {
                icmp_type: 8,
                code: 0,
                id: 7,
            },
            EgressClosed,
        ),
    ] {
        let reached = both.judge_egress(&out(ip(peer), transport).build());
        assert_eq!(reached, reason, "{transport:?}");
    }
    both.assert_same_tables();
}

/// Policies with services and egress rules in text.
fn policies() -> impl Strategy<Value = String> {
    let prefix = prop_oneof![
        (0..4_u8, 0..4_u8, 9..=32_u8).prop_map(|(a, b, len)| {
            let bits = (0x0a00_0000 | u32::from(a) << 16 | u32::from(b)) & (!0 << (32 - len));
            format!("\"{}/{len}\"", std::net::Ipv4Addr::from(bits))
        }),
        (0..4_u16, 0..4_u16, 30..=128_u8).prop_map(|(a, b, len)| {
            let bits = (0x2001_0db8_u128 << 96 | u128::from(a) << 80 | u128::from(b)) & (!0 << (128 - len));
            format!("\"{}/{len}\"", std::net::Ipv6Addr::from(bits))
        }),
    ];
    let entry = prop_oneof![
        6 => prefix.clone(),
        3 => (0..3_u8).prop_map(|group| format!("\"@g{group}\"")),
        1 => Just("\"any\"".to_owned()),
    ];
    let entries =
        move |most: usize| prop::collection::vec(entry.clone(), 0..most).prop_map(|list| list.join(", "));
    let groups = prop::collection::vec(
        prop::collection::vec(prefix, 0..5).prop_map(|list| list.join(", ")),
        3,
    );
    let services = prop::collection::vec((entries(4), entries(2)), 0..3);
    let ports = prop::sample::subsequence(
        vec![
            "tcp/1000-1004",
            "tcp/1003-1030",
            "udp/1002",
            "udp/1000-1040",
            "tcp/1",
            "icmp/echo",
        ],
        0..5,
    );
    let egress = prop::collection::vec((ports, entries(4), entries(3)), 0..6);
    (any::<bool>(), groups, services, egress).prop_map(|(deny, groups, services, egress)| {
        let mut text = format!(
            "version = 1\n[defaults]\negress = \"{}\"\n[groups]\n",
            if deny { "deny" } else { "allow" }
        );
        for (number, group) in groups.iter().enumerate() {
            text += &format!("g{number} = [{group}]\n");
        }
        for (number, (allow, deny)) in services.iter().enumerate() {
            let port = 2000 + number * 10;
            text += &format!(
                "[[service]]\nname = \"s{number}\"\nports = [\"tcp/{port}-{}\", \"udp/{port}\"]\nallow = [{allow}]\ndeny = [{deny}]\n",
                port + 3
            );
        }
        for (number, (ports, to, deny)) in egress.iter().enumerate() {
            text += &format!("[[egress]]\nname = \"e{number}\"\nto = [{to}]\ndeny = [{deny}]\n");
            if !ports.is_empty() {
                text += &format!("ports = {ports:?}\n");
            }
        }
        text
    })
}

/// What the policy says of what leaves, read rule by rule: the reason and the rule that decided.
fn oracle(policy: &Policy, peer: IpAddr, from: Option<PortKey>, to: PortKey) -> (Reason, Option<u32>) {
    let covers =
        |number: &usize| {
            let rule = &policy.rules[*number];
            rule.any
                || rule.lists.iter().any(|list| {
                    let list = &policy.lists[*list as usize];
                    match peer {
                        IpAddr::V4(peer) => list.v4.iter().any(|(address, len)| {
                            *len == 0 || (u32::from(peer) ^ address) >> (32 - len) == 0
                        }),
                        IpAddr::V6(peer) => list.v6.iter().any(|(address, len)| {
                            *len == 0 || (u128::from(peer) ^ address) >> (128 - len) == 0
                        }),
                    }
                })
        };
    let first = |wanted: &dyn Fn(Owner) -> bool, action: Action| {
        (0..policy.rules.len())
            .filter(|number| wanted(policy.rules[*number].owner) && policy.rules[*number].action == action)
            .find(covers)
            .map(|number| number as u32)
    };
    let holds = |ports: &[(PortKey, PortKey)], key: PortKey| {
        ports.iter().any(|(first, last)| (*first..=*last).contains(&key))
    };
    let service = from.and_then(|key| {
        policy
            .services
            .iter()
            .position(|service| holds(&service.ports, key))
    });
    if let Some(index) = service {
        let this = |owner| owner == Owner::Service(ServiceId(index as u16));
        let denied = first(&|owner| owner == Owner::Policy || this(owner), Action::Deny);
        if let (None, Some(rule)) = (denied, first(&this, Action::Allow)) {
            return (Reason::Answer, Some(rule));
        }
    }
    let meets = |owner: Owner| {
        owner.egress().is_some_and(|id| {
            let ports = &policy.egress[id.0 as usize].ports;
            ports.is_empty() || holds(ports, to)
        })
    };
    match (first(&meets, Action::Deny), first(&meets, Action::Allow)) {
        (Some(rule), _) => (Reason::EgressDenied, Some(rule)),
        (None, Some(rule)) => (Reason::EgressAllowed, Some(rule)),
        (None, None) if policy.egress_deny => (Reason::EgressClosed, None),
        (None, None) => (Reason::DefaultAllow, None),
    }
}

#[test]
fn random_policies_and_packets_that_leave_agree_with_a_scan_of_all_rules() {
    let kernel = RefCell::new(Both::new(&Policy::default()));
    let peers = prop_oneof![
        (0..4_u8, any::<u8>()).prop_map(|(a, b)| IpAddr::from([10, a, 0, b])),
        (0..4_u16, 0..8_u16).prop_map(|(a, b)| IpAddr::from([0x2001, 0xdb8, a, 0, 0, 0, 0, b])),
    ];
    let from = prop_oneof![Just(40_000_u16), 1998..2040_u16];
    let packets = prop::collection::vec((peers, from, 995..1045_u16, 0..4_u8), 80);
    let mut runner = TestRunner::new(Cases {
        cases: 120,
        failure_persistence: None,
        ..Cases::default()
    });
    runner
        .run(&(policies(), packets), |(text, packets)| {
            let policy = policy(&text);
            let mut both = kernel.borrow_mut();
            both.compiled = both.kernel.enforce(&policy).unwrap();
            for (peer, src_port, dst_port, kind) in packets {
                let (transport, from, to) = match kind {
                    0 => (
                        segment(src_port, dst_port, tcp::SYN),
                        None,
                        PortKey::tcp(dst_port),
                    ),
                    1 => (
                        segment(src_port, dst_port, tcp::ACK),
                        Some(PortKey::tcp(src_port)),
                        PortKey::tcp(dst_port),
                    ),
                    2 => (
                        datagram(src_port, dst_port),
                        Some(PortKey::udp(src_port)),
                        PortKey::udp(dst_port),
                    ),
                    _ if peer.is_ipv4() => (echo(8), None, PortKey::icmp(8)),
                    _ => (echo(128), None, PortKey::icmpv6(128)),
                };
                let frame = out(peer, transport).build();
                let reason = both.judge_egress(&frame);
                // The ending, by a node that remembers nothing: what leaves is judged by the policy alone.
                let node = Node {
                    image: &both.compiled.image,
                    config: &both.config,
                    own: &both.own,
                    flows: &Flows::default(),
                };
                let (outcome, _) = decide_egress(&node, &frame);
                let ending = both.compiled.endings[outcome.ending as usize];
                prop_assert_eq!(outcome.reason, reason);
                prop_assert_eq!(ending.direction, Direction::Egress);
                prop_assert_eq!(
                    (reason, ending.rule.map(|rule| rule.0)),
                    oracle(&policy, peer, from, to),
                    "{:?} to {} under\n{}",
                    transport,
                    peer,
                    text
                );
            }
            Ok(())
        })
        .unwrap();
}
