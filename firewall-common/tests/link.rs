//! A frame is read alike with its outer tag in it or beside it, and a packet alike with an Ethernet header or without.

use firewall_common::packet::{Frame, Kind, Link, NO_VLAN, Packet, SliceFrame, ethertype, parse};
use firewall_common::verdict::Reason;

/// A frame of another link than Ethernet.
struct Linked<'a>(SliceFrame<'a>, Link);

impl<'a> Frame for Linked<'a> {
    type Window<const N: usize> = <SliceFrame<'a> as Frame>::Window<N>;

    fn link(&self) -> Link {
        self.1
    }

    fn len(&self) -> u32 {
        self.0.len()
    }

    fn window<const N: usize>(&self, at: u32) -> Option<Self::Window<N>> {
        self.0.window(at)
    }
}

/// Where the headers stand is what differs.
fn read<F: Frame>(frame: &F) -> (Result<Kind, Reason>, Packet) {
    let mut packet = Packet::EMPTY;
    let result = parse(frame, &mut packet);
    packet.transport_at = 0;
    packet.network_at = 0;
    (result, packet)
}

/// UDP from 198.51.100.7 to 192.0.2.1, port 8443.
const DATAGRAM: &[u8] = &[
    0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 198, 51, 100, 7, 192, 0, 2, 1, 0, 1, 0x20, 0xfb, 0, 8, 0, 0,
];

/// Behind the addresses: tags, the ethertype, the payload.
fn ethernet(tags: &[(u16, u16)], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    for (tag, tci) in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend(tci.to_be_bytes());
    }
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

#[test]
fn a_tag_beside_the_frame_counts_as_one_in_it() {
    // 0xffff is a tag, too, though it reads as none.
    for outer in [7, 0, 0xe00a, NO_VLAN] {
        for inner in [
            &[][..],
            &[(ethertype::VLAN, 9)],
            &[(ethertype::QINQ, 9), (ethertype::VLAN, 10)],
        ] {
            for (kind, payload) in [
                (ethertype::IPV4, DATAGRAM),
                (ethertype::IPV4, &DATAGRAM[..20]),
                (ethertype::ARP, &[0; 28]),
                (ethertype::ARP, &[0; 27]),
                (38, &[0x42; 38]),
                (0x88b5, &[0; 46]),
            ] {
                let tags = [&[(ethertype::VLAN, outer)], inner].concat();
                let (with, without) = (ethernet(&tags, kind, payload), ethernet(inner, kind, payload));
                let beside = Linked(SliceFrame(&without), Link::Untagged(outer));
                assert_eq!(
                    read(&beside),
                    read(&SliceFrame(&with)),
                    "{outer} before {inner:?}, {kind:#x}, {payload:?}"
                );
            }
        }
    }
}

#[test]
fn a_packet_without_an_ethernet_header_is_read_by_its_ethertype() {
    let frame = ethernet(&[], ethertype::IPV4, DATAGRAM);
    for len in 0..=DATAGRAM.len() {
        let bare = Linked(SliceFrame(&DATAGRAM[..len]), Link::Bare(ethertype::IPV4));
        assert_eq!(read(&bare), read(&SliceFrame(&frame[..14 + len])), "{len} bytes");
    }
    // Never ARP, nor a tag, nor LLC: such devices have no addresses and no links.
    for kind in [ethertype::ARP, ethertype::VLAN, ethertype::LACP, 38] {
        let bare = Linked(SliceFrame(DATAGRAM), Link::Bare(kind));
        assert_eq!(read(&bare).0, Ok(Kind::Other), "{kind:#x}");
    }
}
