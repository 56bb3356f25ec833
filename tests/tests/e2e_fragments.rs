//! Fragments: the first decides, later ones follow, and what is dropped is dropped before the stack spends memory on it.

use anyhow::Result;
use ravelin_tests::lab::{FAMILIES, Family};
use ravelin_tests::packet::{self, Piece, TCP, UDP, Wire};
use ravelin_tests::traffic::{Echo, PROBE, udp_reaches_with};
use ravelin_tests::{Lab, stack};
use std::net::{SocketAddr, UdpSocket};

/// The friend may reach 8080 by TCP and UDP.
const POLICY: &str = r#"
version = 1

[[service]]
name  = "web"
ports = ["tcp/8080", "udp/8080", "icmp/echo"]
allow = ["192.0.2.2", "2001:db8:1::2"]
"#;

const OVERLAP: (&str, &str, &str) = ("", "drop", "fragment-overlap");
const ALONE: (&str, &str, &str) = ("", "drop", "fragment");
const SHORT: (&str, &str, &str) = ("", "drop", "fragment-short");

/// Payload bytes of a fragment, as on a link of 1,500 bytes.
const SIZE: usize = 1400;

fn word(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

/// A socket of the node that waits [`PROBE`] for a datagram.
fn socket(lab: &Lab, family: &Family) -> Result<UdpSocket> {
    let socket = lab.node.run(|| UdpSocket::bind((family.node, 8080)))?;
    socket.set_read_timeout(Some(PROBE))?;
    Ok(socket)
}

fn receives(socket: &UdpSocket, expected: &[u8]) -> bool {
    let mut buffer = vec![0; 1 << 16];
    socket
        .recv(&mut buffer)
        .is_ok_and(|length| buffer[..length] == *expected)
}

/// The fragments of a datagram of 8,000 bytes to the service.
fn datagram(src: SocketAddr, family: &Family, id: u32) -> Vec<Vec<u8>> {
    let payload = packet::udp_payload(src, (family.node, 8080).into(), &word(8000));
    packet::fragments(src.ip(), family.node, UDP, id, &payload, SIZE)
}

#[test]
fn large_datagrams_of_sockets_pass_both_ways() -> Result<()> {
    let lab = Lab::new()?;
    let _services = lab.serve(8080)?;
    let _peers = FAMILIES
        .iter()
        .map(|family| Echo::start(&lab.friend, (family.friend, 7000).into()))
        .collect::<Result<Vec<_>>>()?;
    let agent = lab.agent(POLICY)?;
    for (index, family) in FAMILIES.iter().enumerate() {
        // In by a service, out by its answer.
        assert!(
            udp_reaches_with(&lab.friend, (family.node, 8080).into(), 8000),
            "{family:?}"
        );
        // Out by the host, in by the reply.
        assert!(
            udp_reaches_with(&lab.node, (family.friend, 7000).into(), 8000),
            "{family:?}"
        );
        let before = stack::reassembly(&lab.node)?;
        assert!(before[index] >= 12, "the stack reassembled them: {before:?}");

        // One from the stranger: its first ends as any packet would, the five others have none to follow.
        let counts = agent.counts()?;
        assert!(
            !udp_reaches_with(&lab.stranger, (family.node_b, 8080).into(), 8000),
            "{family:?}"
        );
        let counts = agent.counts()?.since(&counts);
        assert_eq!(counts.of("web", "drop", "not-allowed"), 1, "{counts:?}");
        assert_eq!(counts.of("", "drop", "fragment"), 5, "{counts:?}");
        assert_eq!(
            stack::reassembly(&lab.node)?,
            before,
            "none of them cost the stack anything"
        );
    }
    Ok(())
}

#[test]
fn later_fragments_follow_the_first_in_any_order() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, "eth0"))?;
    for family in &FAMILIES {
        let socket = socket(&lab, family)?;
        let orders: [[usize; 6]; 3] = [[0, 1, 2, 3, 4, 5], [0, 5, 4, 3, 2, 1], [0, 3, 1, 5, 2, 4]];
        for (id, order) in orders.into_iter().enumerate() {
            let pieces = datagram((family.friend, 5000).into(), family, 100 + id as u32);
            agent.expect(("web", "pass", "allowed"), 6, || {
                order.into_iter().try_for_each(|index| wire.send(&pieces[index]))
            })?;
            assert!(receives(&socket, &word(8000)), "{order:?} {family:?}");
        }
    }
    Ok(())
}

/// What the documentation says of it: the one that overtakes is lost, and with it the datagram; the next is whole again.
#[test]
fn a_later_fragment_that_overtakes_the_first_is_dropped() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, "eth0"))?;
    for family in &FAMILIES {
        let socket = socket(&lab, family)?;
        let pieces = datagram((family.friend, 5000).into(), family, 200);
        agent.expect(ALONE, 1, || {
            [1, 0, 2, 3, 4, 5]
                .into_iter()
                .try_for_each(|index| wire.send(&pieces[index]))
        })?;
        assert!(!receives(&socket, &word(8000)), "{family:?}");
        let pieces = datagram((family.friend, 5000).into(), family, 201);
        pieces.iter().try_for_each(|piece| wire.send(piece))?;
        assert!(receives(&socket, &word(8000)), "{family:?}");
    }
    Ok(())
}

#[test]
fn a_later_fragment_without_its_own_first_never_reaches_reassembly() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, "eth0"))?;
    for (index, family) in FAMILIES.iter().enumerate() {
        let rest = word(SIZE);
        let later = |src, protocol, id| {
            let piece = Piece {
                id,
                offset: SIZE,
                more: true,
            };
            packet::fragment(src, family.node, protocol, piece, &rest)
        };
        agent.expect(ALONE, 1, || wire.send(&later(family.friend, UDP, 300)))?;
        assert_eq!(stack::reassembly(&lab.node)?[index], 0);

        // Beside an admitted first: another id, another protocol, another source.
        let first = &datagram((family.friend, 5000).into(), family, 301)[0];
        agent.expect(("web", "pass", "allowed"), 1, || wire.send(first))?;
        assert_eq!(stack::reassembly(&lab.node)?[index], 1, "the measure works");
        let mut strays = vec![later(family.friend, UDP, 302), later(family.stranger, UDP, 301)];
        if family.node.is_ipv4() {
            // IPv6 tells datagrams apart by addresses and id alone (RFC 8200 section 4.5).
            strays.push(later(family.friend, TCP, 301));
        }
        for stray in strays {
            agent.expect(ALONE, 1, || wire.send(&stray))?;
        }
        assert_eq!(stack::reassembly(&lab.node)?[index], 1);
    }
    Ok(())
}

#[test]
fn denied_fragments_never_reach_reassembly() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let wire = Wire::open((&lab.stranger, "eth0"), (&lab.node, "eth1"))?;
    for (id, family) in FAMILIES.iter().enumerate() {
        let mut pieces = datagram((family.stranger, 5000).into(), family, id as u32);
        agent.expect(("web", "drop", "not-allowed"), 1, || wire.send(&pieces.remove(0)))?;
        agent.expect(ALONE, 5, || pieces.iter().try_for_each(|piece| wire.send(piece)))?;

        let src = (family.stranger, 5000).into();
        let payload = packet::udp_payload(src, (family.node, 9).into(), &word(8000));
        let mut pieces = packet::fragments(family.stranger, family.node, UDP, 77, &payload, SIZE);
        agent.expect(("", "drop", "closed"), 1, || wire.send(&pieces.remove(0)))?;
        agent.expect(ALONE, 5, || pieces.iter().try_for_each(|piece| wire.send(piece)))?;
    }
    assert_eq!(stack::reassembly(&lab.node)?, [0, 0]);
    Ok(())
}

/// Teardrop, and RFC 5722: a fragment that overlaps another kills the datagram.
#[test]
fn overlapping_fragments_are_dropped_and_end_the_datagram() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, "eth0"))?;
    for (index, family) in FAMILIES.iter().enumerate() {
        let socket = socket(&lab, family)?;
        let piece = |id, offset, more, length| {
            let piece = Piece { id, offset, more };
            packet::fragment(family.friend, family.node, UDP, piece, &word(length))
        };
        let overlaps: [(&str, Vec<Vec<u8>>); 4] = [
            ("inside the first (teardrop)", vec![piece(400, 24, false, 8)]),
            ("over the first's end", vec![piece(401, SIZE - 8, true, SIZE)]),
            (
                "over a later one",
                vec![piece(402, SIZE, true, SIZE), piece(402, 2 * SIZE - 8, true, SIZE)],
            ),
            ("over the ports (RFC 3128)", vec![piece(403, 8, true, SIZE)]),
        ];
        for (what, mut pieces) in overlaps {
            let (before, id) = (stack::reassembly(&lab.node)?[index], id_of(&pieces[0], family));
            let whole = datagram((family.friend, 5000).into(), family, id);
            let legitimate = pieces.len() as u64;
            let bad = pieces.pop().unwrap_or_default();
            agent.expect(("web", "pass", "allowed"), legitimate, || {
                wire.send(&whole[0])?;
                pieces.iter().try_for_each(|piece| wire.send(piece))
            })?;
            agent.expect(OVERLAP, 1, || wire.send(&bad))?;
            // The rest of what was a legitimate datagram does not follow any more.
            let rest = &whole[3..];
            agent.expect_drops(rest.len() as u64, || {
                rest.iter().try_for_each(|piece| wire.send(piece))
            })?;
            assert!(!receives(&socket, &word(8000)), "{what}, {family:?}");
            let reached = stack::reassembly(&lab.node)?[index] - before;
            assert_eq!(
                reached, legitimate,
                "{what}: what was admitted before, {family:?}"
            );
        }
    }
    Ok(())
}

/// The id of a fragment that [`packet::fragment`] made.
fn id_of(packet: &[u8], family: &Family) -> u32 {
    let bytes: [u8; 4] = match family.node.is_ipv4() {
        true => [0, 0, packet[4], packet[5]],
        false => [packet[44], packet[45], packet[46], packet[47]],
    };
    u32::from_be_bytes(bytes)
}

/// A second first, with other ports, must not lend an admitted datagram to a closed port, nor the other way round.
#[test]
fn a_second_first_fragment_does_not_inherit_the_first() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, "eth0"))?;
    for family in &FAMILIES {
        let listener = lab.node.run(|| UdpSocket::bind((family.node, 9)))?;
        listener.set_read_timeout(Some(PROBE))?;
        let src: SocketAddr = (family.friend, 5000).into();
        let open = datagram(src, family, 500);
        let payload = packet::udp_payload(src, (family.node, 9).into(), &word(8000));
        let closed = packet::fragments(family.friend, family.node, UDP, 500, &payload, SIZE);
        agent.expect(("web", "pass", "allowed"), 1, || wire.send(&open[0]))?;
        let before = agent.counts()?;
        wire.send(&closed[0])?;
        closed[1..].iter().try_for_each(|piece| wire.send(piece))?;
        assert!(!receives(&listener, &word(8000)), "{family:?}");
        let counts = agent.counts()?.since(&before);
        assert!(
            counts.verdict("drop") >= 1,
            "the second first was dropped: {counts:?}"
        );
    }
    Ok(())
}

/// RFC 1858 and RFC 7112: a first fragment in which the ports or flags are not all there.
#[test]
fn a_first_fragment_too_short_to_judge_is_dropped_before_reassembly() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, "eth0"))?;
    for family in &FAMILIES {
        let first = Piece {
            id: 600,
            offset: 0,
            more: true,
        };
        let ports = [5000_u16, 8080].map(u16::to_be_bytes).concat();
        let mut cut = ports.clone();
        cut.extend([0; 4]);
        for (what, protocol, payload) in [
            ("TCP without its flags", TCP, &cut),
            ("UDP cut in its header", UDP, &ports),
        ] {
            let packet = packet::fragment(family.friend, family.node, protocol, first, payload);
            agent
                .expect(SHORT, 1, || wire.send(&packet))
                .map_err(|error| error.context(what))?;
        }
        if family.node.is_ipv6() {
            // Destination options that go on in the next fragment.
            const OPTIONS: u8 = 60;
            let packet = packet::fragment(
                family.friend,
                family.node,
                OPTIONS,
                first,
                &[UDP, 3, 1, 4, 0, 0, 0, 0],
            );
            agent.expect(SHORT, 1, || wire.send(&packet))?;
        }
    }
    assert_eq!(stack::reassembly(&lab.node)?, [0, 0]);
    Ok(())
}

/// RFC 6946: a fragment header around a whole packet is a whole packet, and is judged as one.
#[test]
fn an_atomic_fragment_is_judged_as_the_packet_it_is() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent(POLICY)?;
    let family = &FAMILIES[1];
    let atomic = |src, dst, port| {
        let payload = packet::udp_payload((src, 5000).into(), (dst, port).into(), b"whole");
        packet::fragment(
            src,
            dst,
            UDP,
            Piece {
                id: 700,
                offset: 0,
                more: false,
            },
            &payload,
        )
    };
    let friend = Wire::open((&lab.friend, "eth0"), (&lab.node, "eth0"))?;
    let stranger = Wire::open((&lab.stranger, "eth0"), (&lab.node, "eth1"))?;
    let socket = socket(&lab, family)?;
    agent.expect(("web", "pass", "allowed"), 1, || {
        friend.send(&atomic(family.friend, family.node, 8080))
    })?;
    assert!(receives(&socket, b"whole"));
    agent.expect(("", "drop", "closed"), 1, || {
        friend.send(&atomic(family.friend, family.node, 9))
    })?;
    agent.expect(("web", "drop", "not-allowed"), 1, || {
        stranger.send(&atomic(family.stranger, family.node, 8080))
    })?;
    // It lends its verdict to no fragment.
    let later = Piece {
        id: 700,
        offset: SIZE,
        more: false,
    };
    agent.expect(ALONE, 1, || {
        friend.send(&packet::fragment(
            family.friend,
            family.node,
            UDP,
            later,
            &word(8),
        ))
    })
}
