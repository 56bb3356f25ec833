//! The loaded program and the host build of the same decision agree on every frame, verdict, reason and counters, and both
//! agree with a naive reading of the policy.

use firewall_common::image::PortKey;
use firewall_common::packet::{protocol, tcp};
use firewall_common::verdict::{Reason, Verdict};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use ravelin::policy::model::{Action, Owner, Policy, ServiceId};
use ravelin::simulate::{FrameBuilder, Node, Transport, address_key, decide};
use ravelin_tests::both::{Both, DST4, DST6, POLICY, hex, icmp, ip, policy, syn, udp, with};
use ravelin_tests::kernel::Kernel;
use std::net::IpAddr;

fn flags(bits: u8) -> FrameBuilder {
    with(
        "198.51.100.7",
        Transport::Tcp {
            src_port: 40_000,
            dst_port: 8443,
            flags: bits,
        },
    )
}

/// Hop-by-hop, destination options or routing (no segments left): eight bytes without the next header.
const PADDED: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
const ROUTED: &[u8] = &[0, 4, 0, 0, 0, 0, 0];

#[test]
fn each_matcher_ends_as_its_table_says() {
    use Reason::*;
    let allowed4 = "198.51.100.7";
    let allowed6 = "2001:db8:1::7";
    let mut other = vec![0xff; 12];
    other.extend_from_slice(&[0x88, 0x47]);
    other.resize(60, 0);
    let mut llc = vec![0xff; 12];
    llc.extend_from_slice(&[0, 46, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0]);
    llc.extend_from_slice(&syn(allowed4, 8443).build()[14..]);
    let mut arp = vec![0xff; 12];
    arp.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.resize(42, 0);
    let mut bad_version = syn(allowed4, 8443).build();
    bad_version[14] = 0x55;
    let mut bad_length = syn(allowed4, 8443).build();
    bad_length[14] = 0x44;
    let mut evil_bit = syn(allowed4, 8443);
    evil_bit.fragment = 0x8000;
    let mut later = syn(allowed4, 8443);
    later.fragment = 1;
    // All parts but the last are multiples of eight bytes.
    let mut first = syn(allowed4, 8443).payload(&[0; 4]);
    first.fragment = 0x2000;
    let mut first_short =
        FrameBuilder::new(ip(allowed4), ip(DST4), Transport::Raw(protocol::TCP)).payload(&[0; 16]);
    first_short.fragment = 0x2000;
    let mut options = syn(allowed4, 8443);
    options.options = vec![1; 40];
    let mut options_closed = options.clone();
    options_closed.transport = Transport::Tcp {
        src_port: 1,
        dst_port: 9,
        flags: tcp::SYN,
    };
    let mut bad_offset = syn(allowed4, 8443).build();
    bad_offset[14 + 20 + 12] = 0x40;
    let mut long_offset = syn(allowed4, 8443).build();
    long_offset[14 + 20 + 12] = 0xf0;
    let mut udp_short = udp(allowed4, 1, 8443).build();
    udp_short[14 + 20 + 5] = 7;
    let mut udp_long = udp(allowed4, 1, 8443).build();
    udp_long[14 + 20 + 5] = 9;
    let mut padding = FrameBuilder::new(ip(allowed4), ip(DST4), Transport::Raw(protocol::TCP))
        .payload(&[0; 4])
        .build();
    padding.extend(syn(allowed4, 8443).build()[38..].iter());
    let mut v6_bad = syn(allowed6, 8443).build();
    v6_bad[14] = 0x40;
    let fragment6 = |offset: u16| {
        // Of a datagram of its own each.
        let header = [0, (offset >> 8) as u8, offset as u8, 0, 0, 0, offset as u8];
        syn(allowed6, 8443).payload(&[0; 4]).extension(44, &header)
    };
    let eight = (0..8).fold(syn(allowed6, 8443), |frame, _| frame.extension(60, PADDED));
    let nine = (0..9).fold(syn(allowed6, 8443), |frame, _| frame.extension(60, PADDED));
    let ra = |src: &str, hop_limit| icmp(src, 134, hop_limit).build();
    let dhcp6 = |src: &str| FrameBuilder::udp(ip(src), 547, ip("fe80::1"), 546).build();
    let mut dad = FrameBuilder::new(
        ip("::"),
        ip("ff02::1:ff00:1"),
        Transport::Icmp {
            icmp_type: 135,
            code: 0,
            id: 0,
        },
    );
    dad.hop_limit = 255;
    let mut lacp = vec![0x01, 0x80, 0xc2, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0x09];
    lacp.resize(60, 0);

    let table: Vec<(&str, Vec<u8>, Reason)> = vec![
        ("allowed by a group", syn(allowed4, 8443).build(), Allowed),
        ("allowed by a group, IPv6", syn(allowed6, 8443).build(), Allowed),
        ("allowed by a literal", syn("203.0.113.1", 8443).build(), Allowed),
        ("first port of a range", syn(allowed4, 30_000).build(), Allowed),
        ("last port of a range", syn(allowed4, 30_010).build(), Allowed),
        ("past the range", syn(allowed4, 30_011).build(), Closed),
        ("before the range", syn(allowed4, 29_999).build(), Closed),
        ("UDP", udp(allowed4, 1, 8443).build(), Allowed),
        ("UDP, IPv6", udp(allowed6, 1, 8443).build(), Allowed),
        (
            "SCTP",
            with(
                allowed4,
                Transport::Sctp {
                    src_port: 1,
                    dst_port: 8443,
                },
            )
            .build(),
            Allowed,
        ),
        (
            "SCTP, port of another protocol",
            with(
                allowed4,
                Transport::Sctp {
                    src_port: 1,
                    dst_port: 80,
                },
            )
            .build(),
            Closed,
        ),
        (
            "address before the group",
            syn("198.51.99.255", 8443).build(),
            NotAllowed,
        ),
        (
            "address after the group",
            syn("198.51.101.0", 8443).build(),
            NotAllowed,
        ),
        (
            "IPv6 neighbour of the group",
            syn("2001:db8:2::7", 8443).build(),
            NotAllowed,
        ),
        (
            "service's deny beats its allow",
            syn("198.51.100.128", 8443).build(),
            ServiceDenied,
        ),
        (
            "service's deny, IPv6",
            syn("2001:db8:1:ff::1", 8443).build(),
            ServiceDenied,
        ),
        (
            "service's deny, neighbour",
            syn("2001:db8:1:fe::1", 8443).build(),
            Allowed,
        ),
        (
            "policy's deny beats an allow",
            syn("203.0.113.66", 8443).build(),
            Denied,
        ),
        ("policy's deny beats any", syn("203.0.113.66", 80).build(), Denied),
        ("policy's deny, IPv6", syn("2001:db8:bad::1", 80).build(), Denied),
        (
            "policy's deny on a closed port",
            syn("203.0.113.66", 9).build(),
            Closed,
        ),
        ("any", syn("192.0.2.200", 80).build(), Allowed),
        ("any, IPv6", syn("2001:db8:9::1", 80).build(), Allowed),
        ("nobody", syn(allowed4, 81).build(), NotAllowed),
        ("closed", syn(allowed4, 82).build(), Closed),
        ("echo request", icmp(allowed4, 8, 64).build(), Allowed),
        ("echo request, IPv6", icmp(allowed6, 128, 64).build(), Allowed),
        (
            "echo reply nobody asked for",
            icmp(allowed4, 0, 64).build(),
            Closed,
        ),
        (
            "echo reply nobody asked for, IPv6",
            icmp(allowed6, 129, 64).build(),
            Closed,
        ),
        ("unreachable", icmp(allowed4, 3, 64).build(), IcmpError),
        ("packet too big", icmp(allowed6, 2, 64).build(), IcmpError),
        ("redirect", icmp(allowed4, 5, 64).build(), IcmpError),
        (
            "ICMPv6 in IPv4",
            with(allowed4, Transport::Raw(58)).payload(&[128; 16]).build(),
            Closed,
        ),
        (
            "ICMP in IPv6",
            with(allowed6, Transport::Raw(1)).payload(&[8; 16]).build(),
            Closed,
        ),
        (
            "protocol of a service",
            with(allowed4, Transport::Raw(47)).payload(&[0; 16]).build(),
            Allowed,
        ),
        (
            "unknown protocol",
            with(allowed4, Transport::Raw(200)).payload(&[0; 16]).build(),
            Closed,
        ),
        (
            "protocol 0 in IPv4",
            with(allowed4, Transport::Raw(0)).payload(&[0; 16]).build(),
            Closed,
        ),
        (
            "no next header",
            with(allowed6, Transport::Raw(59)).build(),
            Closed,
        ),
        (
            "mobility header before an allowed port",
            syn(allowed6, 8443).extension(135, PADDED).build(),
            Closed,
        ),
        ("one tag", syn(allowed4, 8443).vlan(0x8100, 5).build(), Allowed),
        ("priority tag", syn(allowed4, 82).vlan(0x8100, 0).build(), Closed),
        (
            "two tags",
            syn(allowed6, 8443).vlan(0x88a8, 5).vlan(0x8100, 0).build(),
            Allowed,
        ),
        (
            "two tags, closed",
            syn(allowed6, 82).vlan(0x8100, 0).vlan(0x8100, 0).build(),
            Closed,
        ),
        (
            "three tags",
            syn(allowed4, 8443)
                .vlan(0x8100, 0)
                .vlan(0x8100, 0)
                .vlan(0x8100, 0)
                .build(),
            VlanDepth,
        ),
        (
            "old QinQ tag is no tag",
            syn(allowed4, 8443).vlan(0x9100, 5).build(),
            EtherType,
        ),
        ("SNAP around an allowed packet", llc, Llc),
        ("MPLS", other, EtherType),
        ("LACP when not configured", lacp, EtherType),
        ("ARP", arp, Arp),
        ("IPv4 options", options.build(), Allowed),
        ("IPv4 options, closed", options_closed.build(), Closed),
        ("IPv4 version 5", bad_version, Ipv4Header),
        ("IPv4 header of 16 bytes", bad_length, Ipv4Header),
        ("reserved flag", evil_bit.build(), Ipv4Header),
        ("later fragment", later.build(), Fragment),
        ("first fragment", first.build(), Allowed),
        ("first fragment without flags", first_short.build(), FragmentShort),
        ("ports in the padding", padding, TransportShort),
        ("TCP offset of 16", bad_offset, TcpHeader),
        ("TCP offset past the packet", long_offset, TcpHeader),
        ("null scan", flags(0).build(), TcpFlags),
        ("SYN and FIN", flags(tcp::SYN | tcp::FIN).build(), TcpFlags),
        ("SYN and RST", flags(tcp::SYN | tcp::RST).build(), TcpFlags),
        ("xmas", flags(tcp::FIN | tcp::PSH | tcp::URG).build(), TcpFlags),
        ("FIN without ACK", flags(tcp::FIN).build(), TcpFlags),
        ("ACK", flags(tcp::ACK).build(), Allowed),
        ("ACK with ECN bits", flags(tcp::ACK | 0xc0).build(), Allowed),
        ("UDP length below its header", udp_short, UdpHeader),
        ("UDP length past the packet", udp_long, UdpHeader),
        ("IPv6 version 4", v6_bad, Ipv6Header),
        (
            "hop-by-hop",
            syn(allowed6, 8443).extension(0, PADDED).build(),
            Allowed,
        ),
        (
            "hop-by-hop, closed",
            syn(allowed6, 82).extension(0, PADDED).build(),
            Closed,
        ),
        (
            "hop-by-hop twice",
            syn(allowed6, 8443)
                .extension(0, PADDED)
                .extension(0, PADDED)
                .build(),
            ExtensionHeader,
        ),
        (
            "hop-by-hop second",
            syn(allowed6, 8443)
                .extension(60, PADDED)
                .extension(0, PADDED)
                .build(),
            ExtensionHeader,
        ),
        (
            "routing",
            syn(allowed6, 8443).extension(43, ROUTED).build(),
            Allowed,
        ),
        (
            "routing with segments left",
            syn(allowed6, 8443).extension(43, &[0, 0, 1, 0, 0, 0, 0]).build(),
            RoutingHeader,
        ),
        (
            "authentication header",
            syn(allowed6, 8443)
                .extension(51, &[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1])
                .build(),
            Allowed,
        ),
        (
            "authentication header, closed",
            syn(allowed6, 82)
                .extension(51, &[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1])
                .build(),
            Closed,
        ),
        ("eight extension headers", eight.build(), Allowed),
        ("nine extension headers", nine.build(), ExtensionDepth),
        (
            "extension longer than the packet",
            syn(allowed6, 8443)
                .extension(60, &[200, 1, 4, 0, 0, 0, 0])
                .build(),
            ExtensionHeader,
        ),
        ("atomic fragment", fragment6(0).build(), Allowed),
        ("first fragment, IPv6", fragment6(1).build(), Allowed),
        ("later fragment, IPv6", fragment6(8).build(), Fragment),
        (
            "fragment in a fragment",
            fragment6(1).extension(44, &[0, 0, 1, 0, 0, 0, 1]).build(),
            ExtensionHeader,
        ),
        (
            "first fragment without ports, IPv6",
            with(allowed6, Transport::Raw(protocol::TCP))
                .payload(&[0; 8])
                .extension(44, &[0, 0, 1, 0, 0, 0, 1])
                .build(),
            FragmentShort,
        ),
        (
            "neighbour solicitation",
            icmp(allowed6, 135, 255).build(),
            NeighbourDiscovery,
        ),
        (
            "neighbour advertisement",
            icmp("fe80::7", 136, 255).build(),
            NeighbourDiscovery,
        ),
        (
            "neighbour solicitation from afar",
            icmp(allowed6, 135, 254).build(),
            Closed,
        ),
        ("duplicate address detection", dad.build(), NeighbourDiscovery),
        ("router advertisement", ra("fe80::7", 255), NeighbourDiscovery),
        ("router advertisement, not link-local", ra(allowed6, 255), Closed),
        ("router advertisement from afar", ra("fe80::7", 64), Closed),
        ("redirect, IPv6", icmp("fe80::7", 137, 255).build(), Closed),
        ("listener query", icmp("fe80::7", 130, 1).build(), Mld),
        ("listener query from afar", icmp(allowed6, 130, 1).build(), Closed),
        ("DHCP answer", udp("192.0.2.254", 67, 68).build(), DhcpClient),
        ("not a DHCP answer", udp("192.0.2.254", 66, 68).build(), Closed),
        ("DHCPv6 answer", dhcp6("fe80::9"), DhcpClient),
        ("DHCPv6 answer from afar", dhcp6(allowed6), Closed),
        ("loopback source", syn("127.0.0.1", 80).build(), Martian),
        ("loopback source, IPv6", syn("::1", 80).build(), Martian),
        ("multicast source", syn("224.0.0.1", 80).build(), Martian),
        ("multicast source, IPv6", syn("ff02::1", 80).build(), Martian),
        ("unspecified source", syn("0.0.0.0", 80).build(), Martian),
        ("unspecified source, IPv6", syn("::", 80).build(), Martian),
        ("mapped source", syn("::ffff:198.51.100.7", 80).build(), Martian),
        ("broadcast source", syn("255.255.255.255", 80).build(), Martian),
        (
            "loopback destination",
            FrameBuilder::tcp_syn(ip(allowed4), 1, ip("127.0.0.1"), 80).build(),
            Martian,
        ),
        (
            "loopback destination, IPv6",
            FrameBuilder::tcp_syn(ip(allowed6), 1, ip("::1"), 80).build(),
            Martian,
        ),
    ];
    let mut both = Both::new(&policy(POLICY));
    let mut wrong = Vec::new();
    assert_eq!(
        both.judge(&udp("192.0.2.254", 67, 68).build()),
        Closed,
        "a DHCP answer that nobody asked for"
    );
    let asks = [
        FrameBuilder::udp(ip("0.0.0.0"), 68, ip("255.255.255.255"), 67),
        FrameBuilder::udp(ip("fe80::1"), 546, ip("ff02::1:2"), 547),
    ];
    for ask in asks {
        assert_eq!(both.judge_egress(&ask.build()), DhcpClient);
    }
    for (name, frame, expected) in table {
        let reason = both.judge(&frame);
        if reason != expected {
            wrong.push(format!("{name}: {reason:?}, expected {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_policy_drops_everything_but_the_essential() {
    let kernel = Kernel::new().unwrap();
    let (verdict, counted) = kernel.judge(&syn("198.51.100.7", 80).build()).unwrap();
    assert_eq!((verdict, counted), (Verdict::Drop, vec![]));
    let (verdict, _) = kernel.judge(&icmp("fe80::7", 135, 255).build()).unwrap();
    assert_eq!(verdict, Verdict::Pass);
}

#[test]
fn default_allow_opens_what_no_service_names_and_nothing_else() {
    let mut both = Both::new(&policy(
        &POLICY.replace("[groups]", "[defaults]\ningress = \"allow\"\n[groups]"),
    ));
    for (frame, expected) in [
        (syn("192.0.2.9", 82), Reason::DefaultAllow),
        (syn("203.0.113.66", 82), Reason::Denied),
        (syn("2001:db8:bad::1", 82), Reason::Denied),
        (syn("192.0.2.9", 8443), Reason::NotAllowed),
        (syn("192.0.2.9", 81), Reason::NotAllowed),
        (icmp("192.0.2.9", 3, 64), Reason::DefaultAllow),
    ] {
        assert_eq!(both.judge(&frame.build()), expected);
    }
}

#[test]
fn observe_mode_counts_the_drop_and_passes_it() {
    use ravelin::datapath::NodeConfig;
    let mut kernel = Kernel::new().unwrap();
    kernel.enforce(&policy(POLICY)).unwrap();
    kernel
        .datapath
        .configure(&NodeConfig {
            observe: true,
            ..NodeConfig::default()
        })
        .unwrap();
    let frame = syn("198.51.100.7", 82).build();
    let (verdict, counted) = kernel.judge(&frame).unwrap();
    let ending = u32::from(Reason::Closed.number());
    assert_eq!(
        (verdict, counted),
        (Verdict::Pass, vec![(ending, true, 1, frame.len() as u64)])
    );
    kernel.datapath.configure(&NodeConfig::default()).unwrap();
    let (verdict, counted) = kernel.judge(&frame).unwrap();
    assert_eq!(
        (verdict, counted),
        (Verdict::Drop, vec![(ending, false, 1, frame.len() as u64)])
    );
}

#[test]
fn own_addresses_and_the_failsafe_come_before_the_policy() {
    use firewall_common::control::Failsafe;
    use ravelin::datapath::NodeConfig;
    let mut both = Both::new(&policy(POLICY));
    let admin = address_key(ip("192.0.2.77"));
    let failsafe = Failsafe {
        prefix_high: admin.high,
        prefix_low: admin.low,
        mask_high: u64::MAX,
        mask_low: u64::MAX,
        dst_port: 22,
        protocol: protocol::TCP,
        version: 4,
        pad: 0,
    };
    let own = [ip("192.0.2.1"), ip("2001:db8::1")];
    let config = NodeConfig {
        failsafe: vec![failsafe],
        own: own.to_vec(),
        ..NodeConfig::default()
    };
    both.kernel.datapath.configure(&config).unwrap();
    both.config.add_failsafe(failsafe).unwrap();
    for address in own {
        let key = address_key(address);
        both.config.add_own_address(key.high, key.low);
        both.own.insert(key);
    }
    assert_eq!(both.judge(&syn("192.0.2.77", 22).build()), Reason::Failsafe);
    assert_eq!(both.judge(&syn("192.0.2.76", 22).build()), Reason::Closed);
    assert_eq!(both.judge(&syn("192.0.2.77", 23).build()), Reason::Closed);
    assert_eq!(both.judge(&udp("192.0.2.77", 1, 22).build()), Reason::Closed);
    assert_eq!(both.judge(&syn("192.0.2.1", 80).build()), Reason::Martian);
    assert_eq!(both.judge(&syn("2001:db8::1", 80).build()), Reason::Martian);
    assert_eq!(both.judge(&syn("2001:db8::2", 80).build()), Reason::Allowed);
}

#[test]
fn a_frame_cut_short_anywhere_drops() {
    let mut both = Both::new(&policy(POLICY));
    let whole = [
        syn("198.51.100.7", 8443).payload(b"payload").build(),
        udp("198.51.100.7", 1, 8443).payload(b"payload").build(),
        icmp("198.51.100.7", 8, 64).build(),
        icmp("fe80::7", 135, 255).build(),
        with(
            "198.51.100.7",
            Transport::Sctp {
                src_port: 1,
                dst_port: 8443,
            },
        )
        .payload(&[0; 8])
        .build(),
        syn("2001:db8:1::7", 8443)
            .vlan(0x88a8, 1)
            .vlan(0x8100, 2)
            .extension(0, PADDED)
            .extension(60, PADDED)
            .build(),
        syn("2001:db8:1::7", 8443)
            .extension(44, &[0, 0, 0, 0, 0, 0, 1])
            .extension(51, &[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1])
            .build(),
    ];
    for frame in whole {
        assert_eq!(both.judge(&frame).verdict(), Verdict::Pass, "{}", hex(&frame));
        // The kernel runs no frame below an Ethernet header.
        for len in 14..frame.len() {
            assert_eq!(
                both.judge(&frame[..len]).verdict(),
                Verdict::Drop,
                "cut at {len} of {}",
                hex(&frame)
            );
        }
    }
}

#[test]
fn frames_of_any_bytes_end_alike_on_both_sides() {
    let both = std::cell::RefCell::new(Both::new(&policy(POLICY)));
    let seeds: Vec<Vec<u8>> = vec![
        syn("198.51.100.7", 8443).build(),
        syn("2001:db8:1::7", 8443)
            .extension(0, PADDED)
            .extension(44, &[0, 0, 1, 0, 0, 0, 1])
            .extension(60, PADDED)
            .build(),
        udp("2001:db8:1::7", 547, 546).vlan(0x8100, 1).build(),
        icmp("fe80::7", 135, 255).build(),
    ];
    let strategy = prop_oneof![
        prop::collection::vec(any::<u8>(), 14..200),
        // Nearly valid frames reach deeper than noise.
        (
            prop::sample::select(seeds),
            prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)
        )
            .prop_map(|(mut frame, edits)| {
                for (index, byte) in edits {
                    let at = index.index(frame.len());
                    frame[at] = byte;
                }
                frame
            }),
    ];
    let mut runner = TestRunner::new(Cases {
        cases: 20_000,
        failure_persistence: None,
        ..Cases::default()
    });
    runner
        .run(&strategy, |frame| {
            both.borrow_mut().judge(&frame);
            Ok(())
        })
        .unwrap();
}

/// A policy as text, from few addresses and ports so that they meet.
fn policies() -> impl Strategy<Value = String> {
    let prefix = prop_oneof![
        (0..4_u8, 0..4_u8, 9..=32_u8).prop_map(|(a, b, len)| {
            let bits =
                (0x0a00_0000 | u32::from(a) << 16 | u32::from(b) << 5 | u32::from(b)) & (!0 << (32 - len));
            format!("\"{}/{len}\"", std::net::Ipv4Addr::from(bits))
        }),
        (0..4_u16, 0..4_u16, 20..=128_u8).prop_map(|(a, b, len)| {
            let bits = (0x2001_0db8_u128 << 96 | u128::from(a) << 80 | u128::from(b) << 50 | u128::from(b))
                & (!0 << (128 - len));
            format!("\"{}/{len}\"", std::net::Ipv6Addr::from(bits))
        }),
    ];
    let list = prop::collection::vec(prefix.clone(), 0..8).prop_map(|list| list.join(", "));
    let entries = prop::collection::vec(
        prop_oneof![4 => prefix, 2 => (0..3_u8).prop_map(|group| format!("\"@g{group}\"")), 1 => Just("\"any\"".to_owned())],
        0..5,
    );
    let denials = entries.clone().prop_map(|list| {
        list.into_iter()
            .filter(|entry| entry != "\"any\"")
            .collect::<Vec<_>>()
            .join(", ")
    });
    let services = prop::collection::vec((entries.prop_map(|list| list.join(", ")), denials.clone()), 1..5);
    (any::<bool>(), denials, prop::collection::vec(list, 3), services).prop_map(|(open, deny, groups, services)| {
        let mut text = format!("version = 1\ndeny = [{deny}]\n[defaults]\ningress = \"{}\"\n[groups]\n", if open { "allow" } else { "deny" });
        for (number, group) in groups.iter().enumerate() {
            text += &format!("g{number} = [{group}]\n");
        }
        for (number, (allow, deny)) in services.iter().enumerate() {
            let port = 1000 + number * 10;
            text += &format!(
                "[[service]]\nname = \"s{number}\"\nports = [\"tcp/{port}-{}\", \"udp/{port}\"]\nallow = [{allow}]\ndeny = [{deny}]\n",
                port + 3
            );
        }
        text
    })
}

/// What the policy says, read rule by rule: service, reason and, for a match, the rule's number.
fn oracle(policy: &Policy, src: IpAddr, key: PortKey) -> (Option<usize>, Reason, Option<u32>) {
    let covers = |number: u32| {
        let rule = &policy.rules[number as usize];
        rule.any
            || rule.lists.iter().any(|list| {
                let list = &policy.lists[*list as usize];
                match src {
                    IpAddr::V4(src) => list
                        .v4
                        .iter()
                        .any(|(address, len)| *len == 0 || (u32::from(src) ^ address) >> (32 - len) == 0),
                    IpAddr::V6(src) => list
                        .v6
                        .iter()
                        .any(|(address, len)| *len == 0 || (u128::from(src) ^ address) >> (128 - len) == 0),
                }
            })
    };
    let first = |wanted: &dyn Fn(Owner, Action) -> bool| {
        (0..policy.rules.len() as u32).find(|number| {
            let rule = &policy.rules[*number as usize];
            wanted(rule.owner, rule.action) && covers(*number)
        })
    };
    let service = policy.services.iter().position(|service| {
        service
            .ports
            .iter()
            .any(|(first, last)| (first.0..=last.0).contains(&key.0))
    });
    if service.is_none() && !policy.default_allow {
        return (None, Reason::Closed, None);
    }
    if let Some(rule) = first(&|owner, _| owner == Owner::Policy) {
        return (service, Reason::Denied, Some(rule));
    }
    let Some(index) = service else {
        return (None, Reason::DefaultAllow, None);
    };
    let this = Owner::Service(ServiceId(index as u16));
    if let Some(rule) = first(&|owner, action| owner == this && action == Action::Deny) {
        return (service, Reason::ServiceDenied, Some(rule));
    }
    match first(&|owner, action| owner == this && action == Action::Allow) {
        Some(rule) => (service, Reason::Allowed, Some(rule)),
        None => (service, Reason::NotAllowed, None),
    }
}

#[test]
fn random_policies_and_packets_agree_with_a_scan_of_all_rules() {
    let kernel = std::cell::RefCell::new(Both::new(&Policy::default()));
    let sources = prop_oneof![
        (0..4_u8, any::<u8>()).prop_map(|(a, b)| IpAddr::from([10, a, 0, b])),
        (0..4_u16, any::<u16>(), any::<u16>())
            .prop_map(|(a, b, c)| IpAddr::from([0x2001, 0xdb8, a, b, 0, 0, 0, c])),
    ];
    let packets = prop::collection::vec((sources, 995..1050_u16, any::<bool>()), 100);
    let mut runner = TestRunner::new(Cases {
        cases: 150,
        failure_persistence: None,
        ..Cases::default()
    });
    runner
        .run(&(policies(), packets), |(text, packets)| {
            let policy = policy(&text);
            let mut both = kernel.borrow_mut();
            both.compiled = both.kernel.enforce(&policy).unwrap();
            for (src, port, datagram) in packets {
                let dst = ip(if src.is_ipv4() { DST4 } else { DST6 });
                let (frame, key) = match datagram {
                    true => (FrameBuilder::udp(src, 9, dst, port), PortKey::udp(port)),
                    false => (FrameBuilder::tcp_syn(src, 9, dst, port), PortKey::tcp(port)),
                };
                let frame = frame.build();
                both.judge(&frame);
                let node = Node {
                    image: &both.compiled.image,
                    config: &both.config,
                    own: &both.own,
                    flows: &both.flows,
                };
                let (outcome, _) = decide(&node, &frame);
                let ending = both.compiled.endings[outcome.ending as usize];
                let said = (
                    ending.service.map(|service| service.0 as usize),
                    outcome.reason,
                    ending.rule.map(|rule| rule.0),
                );
                prop_assert_eq!(
                    said,
                    oracle(&policy, src, key),
                    "{} to {} under\n{}",
                    src,
                    port,
                    text
                );
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_programs_stay_well_below_what_the_verifier_reads() {
    use aya::EbpfLoader;
    use aya::programs::{Program, ProgramError};
    /// The verifier gives up at a million; older kernels prune less.
    const BUDGET: u32 = 300_000;
    let mut object = EbpfLoader::new().load(ravelin::datapath::OBJECT).unwrap();
    for (name, program) in object.programs_mut() {
        let loaded: Result<(), ProgramError> = match program {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            Program::SockOps(program) => program.load(),
            other => panic!("{name} is of another type: {other:?}"),
        };
        loaded.unwrap();
        let info = program.info().unwrap();
        let read = info.verified_instruction_count();
        println!("{name}: {read:?} instructions read");
        assert!(
            read.is_some_and(|read| read < BUDGET),
            "{name}: {read:?} instructions"
        );
    }
}
