//! Flows, fragments and ICMP errors on the loaded programs and on the host build: verdict, reason, counters and the tables
//! themselves are the same on both sides.

use firewall_common::counter::Tally;
use firewall_common::flow::State;
use firewall_common::packet::{protocol, tcp};
use firewall_common::verdict::Reason::*;
use ravelin::datapath::NodeConfig;
use ravelin::simulate::{FrameBuilder, Transport};
use ravelin_tests::both::{Both, POLICY, dst, ip, policy, with};

const ACK: u8 = tcp::ACK;

/// What the host sends: from its address to a peer.
fn out(peer: &str, transport: Transport) -> Vec<u8> {
    FrameBuilder::new(dst(peer), ip(peer), transport).build()
}

/// What a peer sends to the host.
fn came(peer: &str, transport: Transport) -> Vec<u8> {
    with(peer, transport).build()
}

fn tcp(src_port: u16, dst_port: u16, flags: u8) -> Transport {
    Transport::Tcp {
        src_port,
        dst_port,
        flags,
    }
}

fn datagram(src_port: u16, dst_port: u16) -> Transport {
    Transport::Udp { src_port, dst_port }
}

fn echo(icmp_type: u8, id: u16) -> Transport {
    Transport::Icmp {
        icmp_type,
        code: 0,
        id,
    }
}

#[test]
fn a_reply_comes_from_the_peer_port_and_protocol_that_was_asked_only() {
    let mut both = Both::new(&policy(POLICY));
    for (peer, other, request, reply) in [
        ("192.0.2.53", "192.0.2.54", 8, 0),
        ("2001:db8:53::1", "2001:db8:53::2", 128, 129),
    ] {
        // Nothing is a reply before anything went out.
        for transport in [
            tcp(443, 40_000, tcp::SYN | ACK),
            datagram(53, 40_001),
            echo(reply, 7),
            Transport::Raw(50),
        ] {
            assert_eq!(both.judge(&came(peer, transport)), Closed);
        }
        for transport in [
            tcp(40_000, 443, tcp::SYN),
            datagram(40_001, 53),
            echo(request, 7),
            Transport::Raw(50),
        ] {
            assert_eq!(both.judge_egress(&out(peer, transport)), DefaultAllow);
        }
        for (peer, transport, reason) in [
            (peer, tcp(443, 40_000, tcp::SYN | ACK), Reply),
            (peer, tcp(443, 40_000, ACK), Reply),
            (peer, tcp(443, 40_000, tcp::SYN), Closed),
            (peer, tcp(444, 40_000, ACK), Closed),
            (peer, tcp(443, 40_001, ACK), Closed),
            (other, tcp(443, 40_000, ACK), Closed),
            (peer, datagram(443, 40_000), Closed),
            (peer, datagram(53, 40_001), Reply),
            (peer, datagram(54, 40_001), Closed),
            (peer, datagram(53, 40_002), Closed),
            (other, datagram(53, 40_001), Closed),
            (peer, tcp(53, 40_001, ACK), Closed),
            (peer, echo(reply, 7), Reply),
            (peer, echo(reply, 8), Closed),
            (other, echo(reply, 7), Closed),
            (peer, Transport::Raw(50), Reply),
            (peer, Transport::Raw(49), Closed),
            (other, Transport::Raw(50), Closed),
        ] {
            let reached = both.judge(&came(peer, transport));
            assert_eq!(reached, reason, "{transport:?} of {peer}");
        }
    }
    both.assert_same_tables();
    // A denied peer may not even answer.
    let denied = "203.0.113.66";
    both.judge_egress(&out(denied, datagram(40_003, 53)));
    assert_eq!(both.judge(&came(denied, datagram(53, 40_003))), Denied);
    both.assert_same_tables();
}

#[test]
fn what_leaves_from_a_service_answers_and_opens_nothing() {
    let mut both = Both::new(&policy(POLICY));
    let (client, stranger) = ("198.51.100.7", "192.0.2.9");
    let sctp = Transport::Sctp {
        src_port: 8443,
        dst_port: 9,
    };
    let before = both.kernel.datapath.tables();
    for (peer, transport, reason) in [
        (client, tcp(8443, 40_000, tcp::SYN | ACK), Answer),
        (client, datagram(8443, 40_000), Answer),
        (client, sctp, Answer),
        (stranger, echo(0, 7), Answer),
        (stranger, Transport::Raw(47), Answer),
        // The stranger is no client: nothing of this answers, and none of it opens.
        (stranger, tcp(8443, 40_000, ACK), DefaultAllow),
        (stranger, datagram(8443, 40_000), DefaultAllow),
    ] {
        let reached = both.judge_egress(&out(peer, transport));
        assert_eq!(reached, reason, "{transport:?} to {peer}");
    }
    assert_eq!(both.kernel.datapath.tables(), before);
    assert_eq!(both.judge(&came(stranger, datagram(40_000, 8443))), NotAllowed);
    assert_eq!(both.judge(&came(stranger, tcp(40_000, 8443, ACK))), NotAllowed);
    // A SYN opens, whatever port it comes from, and its answer comes in.
    both.judge_egress(&out(stranger, tcp(8443, 40_000, tcp::SYN)));
    assert_eq!(both.judge(&came(stranger, tcp(40_000, 8443, ACK))), Reply);
    assert_eq!(both.judge(&came(stranger, tcp(40_001, 8443, ACK))), NotAllowed);
    both.assert_same_tables();
}

#[test]
fn a_server_whose_service_went_does_not_let_its_clients_back_in() {
    let mut both = Both::new(&policy(POLICY));
    let client = "198.51.100.7";
    assert_eq!(both.judge(&came(client, datagram(40_000, 8443))), Allowed);
    assert_eq!(both.judge_egress(&out(client, datagram(8443, 40_000))), Answer);
    both.compiled = both.kernel.enforce(&policy("version = 1")).unwrap();
    both.take_over_tables();
    // It goes on sending.
    assert_eq!(
        both.judge_egress(&out(client, datagram(8443, 40_000))),
        DefaultAllow
    );
    assert_eq!(both.judge(&came(client, datagram(40_000, 8443))), Closed);
    // Other ports, and connections from this one, open as ever.
    both.judge_egress(&out(client, datagram(8442, 40_000)));
    assert_eq!(both.judge(&came(client, datagram(40_000, 8442))), Reply);
    both.judge_egress(&out(client, tcp(8443, 443, tcp::SYN)));
    assert_eq!(both.judge(&came(client, tcp(443, 8443, ACK))), Reply);
    both.assert_same_tables();
}

#[test]
fn flows_end_as_their_states_say() {
    let mut both = Both::new(&policy(POLICY));
    let peer = "192.0.2.53";
    let state = |both: &Both| {
        let flows = both.kernel.datapath.flows().unwrap();
        flows.first().map(|flow| (flow.state, flow.is_live()))
    };
    let back = |flags| came(peer, tcp(443, 40_000, flags));
    both.judge_egress(&out(peer, tcp(40_000, 443, tcp::SYN)));
    assert_eq!(state(&both), Some((State::SynSent, true)));
    both.judge(&back(tcp::SYN | ACK));
    both.judge_egress(&out(peer, tcp(40_000, 443, ACK)));
    assert_eq!(state(&both), Some((State::Established, true)));
    both.judge(&back(tcp::FIN | ACK));
    assert_eq!(state(&both), Some((State::FinIn, true)));
    both.judge_egress(&out(peer, tcp(40_000, 443, tcp::FIN | ACK)));
    assert_eq!(state(&both), Some((State::Closing, true)));
    both.judge(&back(tcp::RST));
    assert_eq!(state(&both), Some((State::Reset, true)));
    both.assert_same_tables();
    both.judge_egress(&out(peer, tcp(40_000, 443, tcp::RST)));
    assert_eq!(state(&both), None);
    assert_eq!(both.judge(&back(ACK)), Closed);
    both.assert_same_tables();
}

#[test]
fn an_expired_flow_admits_nothing() {
    let mut both = Both::new(&policy(POLICY));
    both.config.flow_timeouts = [0; State::COUNT];
    let config = NodeConfig {
        flow_timeouts: both.config.flow_timeouts,
        ..NodeConfig::default()
    };
    both.kernel.datapath.configure(&config).unwrap();
    let peer = "192.0.2.53";
    both.judge_egress(&out(peer, tcp(40_000, 443, tcp::SYN)));
    both.judge_egress(&out(peer, datagram(40_001, 53)));
    assert_eq!(both.kernel.datapath.flows().unwrap().len(), 2);
    assert_eq!(both.judge(&came(peer, tcp(443, 40_000, ACK))), Closed);
    assert_eq!(both.judge(&came(peer, datagram(53, 40_001))), Closed);
    both.assert_same_tables();
}

#[test]
fn nothing_that_comes_in_touches_the_flow_table() {
    let mut both = Both::new(&policy(POLICY));
    let peer = "192.0.2.53";
    both.judge_egress(&out(peer, tcp(40_000, 443, tcp::SYN)));
    both.judge_egress(&out(peer, datagram(40_001, 53)));
    let before = both.kernel.datapath.tables();
    for flags in [0, tcp::SYN, ACK, tcp::SYN | ACK, tcp::PSH | ACK] {
        for port in [80, 443, 8443, 40_000] {
            for peer in [peer, "198.51.100.7"] {
                both.kernel.judge(&came(peer, tcp(443, port, flags))).unwrap();
            }
        }
    }
    both.kernel.judge(&came(peer, datagram(53, 40_001))).unwrap();
    assert_eq!(both.kernel.datapath.tables(), before);
}

#[test]
fn a_full_table_displaces_in_the_order_of_idleness_on_both_sides() {
    let mut both = Both::new(&policy(POLICY));
    for port in 1..3000 {
        both.judge_egress(&out("192.0.2.53", datagram(port, 53)));
    }
    both.assert_same_tables();
    assert_eq!(both.kernel.datapath.flow_pressure().unwrap(), (512, 512));
    let tally = |tally| both.kernel.datapath.tally(tally).unwrap();
    assert_eq!(tally(Tally::FlowCreated), 2999);
    assert_eq!(tally(Tally::FlowDisplaced), 2999 - 512);
    assert_eq!(tally(Tally::FlowLost), 0);
}

const MORE: u16 = 0x2000;

/// Part of an IPv4 datagram: `place` as in its header's field.
fn part4(src: &str, place: u16, transport: Transport, payload: &[u8]) -> Vec<u8> {
    let mut frame = with(src, transport).payload(payload);
    frame.fragment = place;
    frame.build()
}

/// Part of an IPv6 datagram of UDP: a fragment header, then the rest.
fn part6(src: &str, offset: u16, more: bool, id: u32, body: &[u8]) -> Vec<u8> {
    let place = (offset | u16::from(more)).to_be_bytes();
    let mut header = vec![0, place[0], place[1]];
    header.extend_from_slice(&id.to_be_bytes());
    let frame = with(src, Transport::Raw(protocol::UDP)).payload(body);
    frame.extension(protocol::FRAGMENT, &header).build()
}

#[test]
fn later_fragments_of_ipv4_follow_their_first() {
    let mut both = Both::new(&policy(POLICY));
    let raw = Transport::Raw(protocol::UDP);
    let tiny = Transport::Raw(protocol::TCP);
    let first = datagram(40_000, 8443);
    let (client, stranger) = ("198.51.100.7", "192.0.2.9");
    // 8 bytes of UDP and 32 of payload are five units.
    for (what, frame, reason) in [
        (
            "without a first",
            part4(client, MORE | 5, raw, &[0; 40]),
            Fragment,
        ),
        ("the first", part4(client, MORE, first, &[0; 32]), Allowed),
        ("the third", part4(client, MORE | 10, raw, &[0; 40]), Allowed),
        ("the second", part4(client, MORE | 5, raw, &[0; 40]), Allowed),
        (
            "another's",
            part4("198.51.100.8", MORE | 15, raw, &[0; 40]),
            Fragment,
        ),
        ("the last", part4(client, 15, raw, &[0; 13]), Allowed),
        ("after the last", part4(client, 20, raw, &[0; 8]), Fragment),
        ("a stranger's", part4(stranger, MORE, first, &[0; 32]), NotAllowed),
        ("after a stranger's", part4(stranger, 5, raw, &[0; 32]), Fragment),
        ("another first", part4(client, MORE, first, &[0; 32]), Allowed),
        ("an overlap", part4(client, 4, raw, &[0; 32]), FragmentOverlap),
        (
            "after the overlap",
            part4(client, 5, raw, &[0; 32]),
            FragmentOverlap,
        ),
        (
            "too short",
            part4("198.51.100.9", MORE, tiny, &[0; 8]),
            FragmentShort,
        ),
    ] {
        assert_eq!(both.judge(&frame), reason, "{what}");
    }
    both.assert_same_tables();
}

#[test]
fn later_fragments_of_ipv6_follow_their_first() {
    let mut both = Both::new(&policy(POLICY));
    let (client, stranger) = ("2001:db8:1::7", "2001:db8::9");
    // From port 40,000 to 8443, 80 bytes.
    let mut body = vec![0x9c, 0x40, 0x20, 0xfb, 0, 80, 0, 0];
    body.resize(40, 0);
    for (what, frame, reason) in [
        ("without a first", part6(client, 40, true, 9, &[0; 40]), Fragment),
        ("the first", part6(client, 0, true, 9, &body), Allowed),
        ("the last", part6(client, 40, false, 9, &[0; 33]), Allowed),
        ("another's", part6(client, 40, false, 10, &[0; 33]), Fragment),
        ("a stranger's", part6(stranger, 0, true, 9, &body), NotAllowed),
        ("another first", part6(client, 0, true, 11, &body), Allowed),
        (
            "an overlap",
            part6(client, 32, false, 11, &[0; 33]),
            FragmentOverlap,
        ),
        (
            "atomic and short",
            part6(client, 0, false, 12, &body[..8]),
            UdpHeader,
        ),
    ] {
        assert_eq!(both.judge(&frame), reason, "{what}");
    }
    both.assert_same_tables();
}

/// An ICMP error of `router` about a packet that the host sent.
fn error(router: &str, icmp_type: u8, sent: &[u8]) -> Vec<u8> {
    let transport = Transport::Icmp {
        icmp_type,
        code: 0,
        id: 0,
    };
    with(router, transport).payload(&sent[14..]).build()
}

#[test]
fn icmp_errors_pass_if_they_are_about_what_this_host_sends() {
    let mut both = Both::new(&policy(POLICY));
    for (router, peer, client, stranger, denied, unreachable, request, reply) in [
        (
            "192.0.2.254",
            "192.0.2.53",
            "198.51.100.7",
            "192.0.2.9",
            "203.0.113.66",
            3,
            8,
            0,
        ),
        (
            "2001:db8::fe",
            "2001:db8:53::1",
            "2001:db8:1::7",
            "2001:db8:2::9",
            "2001:db8:bad::1",
            1,
            128,
            129,
        ),
    ] {
        let report = |both: &mut Both, sent: &[u8]| both.judge(&error(router, unreachable, sent));
        for transport in [
            tcp(40_000, 443, tcp::SYN),
            datagram(40_001, 53),
            echo(request, 7),
            Transport::Raw(50),
        ] {
            let sent = FrameBuilder::new(dst(peer), ip(peer), transport);
            let sent = sent.payload(&[0; 16]).build();
            assert_eq!(report(&mut both, &sent), IcmpError, "{transport:?}");
            both.judge_egress(&sent);
            assert_eq!(report(&mut both, &sent), Related, "{transport:?}");
        }
        let by_service = |peer: &str, port| out(peer, tcp(port, 40_000, ACK));
        assert_eq!(report(&mut both, &by_service(client, 8443)), Related);
        assert_eq!(report(&mut both, &by_service(stranger, 8443)), IcmpError);
        assert_eq!(report(&mut both, &by_service(client, 8444)), IcmpError);
        // Echo is open to everybody; a reply that nobody may ask for would be another matter.
        assert_eq!(report(&mut both, &out(stranger, echo(reply, 9))), Related);
        let sent = out(peer, tcp(40_000, 443, ACK));
        // What another host sent is nothing to this one.
        let foreign = FrameBuilder::new(ip(stranger), ip(peer), tcp(40_000, 443, ACK));
        assert_eq!(report(&mut both, &foreign.build()), IcmpError);
        assert_eq!(report(&mut both, &sent[..sent.len() - 18]), IcmpError);
        // A denied router reports nothing.
        assert_eq!(both.judge(&error(denied, unreachable, &sent)), Denied);
    }
    let sent = out("192.0.2.53", tcp(40_000, 443, ACK));
    // A source quench is obsolete (RFC 6633), a redirect changes routes; the others are about the connection.
    for (icmp_type, reason) in [(4, IcmpError), (5, IcmpError), (11, Related), (12, Related)] {
        assert_eq!(both.judge(&error("192.0.2.254", icmp_type, &sent)), reason);
    }
    both.assert_same_tables();
}

#[test]
fn no_bytes_that_go_out_are_judged_otherwise_by_the_kernel() {
    let mut both = Both::new(&policy(POLICY));
    let frames = [
        out("192.0.2.53", tcp(40_000, 443, tcp::SYN)),
        out("2001:db8:53::1", datagram(40_001, 53)),
        out("192.0.2.53", echo(8, 7)),
        out("198.51.100.7", tcp(8443, 40_000, ACK)),
        part4("192.0.2.9", MORE, datagram(40_000, 8443), &[0; 32]),
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    let mut reasons = std::collections::HashSet::new();
    for _ in 0..3000 {
        let mut frame = frames[random() % frames.len()].clone();
        for _ in 0..1 + random() % 3 {
            let at = random() % frame.len();
            frame[at] = random() as u8;
        }
        reasons.insert(both.judge_egress(&frame));
    }
    both.assert_same_tables();
    assert!(reasons.contains(&DefaultAllow) && reasons.contains(&Answer));
}
