//! Packets of either family, named by their addresses: whole, in fragments, and as the errors that quote them.
//!
//! Independent of the product's own parser and builder, as [`crate::frame`] is.

use crate::frame::{self, Sender, checksum};
use crate::netns::Namespace;
use anyhow::Result;
use std::net::{IpAddr, SocketAddr};

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

/// TCP flags as on the wire.
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// The number of ICMP in the family of this address.
pub fn icmp_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { ICMP } else { ICMPV6 }
}

/// A packet without options or extension headers.
///
/// # Panics
/// The addresses are not of one family.
pub fn ip(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => frame::ipv4(src, dst, protocol, &[], payload),
        (IpAddr::V6(src), IpAddr::V6(dst)) => frame::ipv6(src, dst, protocol, payload),
        _ => panic!("{src} and {dst} are not of one family"),
    }
}

/// A UDP datagram, without its IP header.
pub fn udp_payload(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut datagram = [src.port(), dst.port(), 8 + payload.len() as u16, 0]
        .map(u16::to_be_bytes)
        .concat();
    datagram.extend(payload);
    let sum = transport_checksum(src.ip(), dst.ip(), UDP, &datagram);
    datagram[6..8].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
    datagram
}

/// A UDP datagram in its packet.
pub fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    ip(src.ip(), dst.ip(), UDP, &udp_payload(src, dst, payload))
}

/// A TCP segment without options or payload, in its packet.
pub fn tcp(src: SocketAddr, dst: SocketAddr, flags: u8, sequence: u32) -> Vec<u8> {
    let mut segment = [src.port(), dst.port()].map(u16::to_be_bytes).concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 0, 0x50, flags, 0x40, 0, 0, 0, 0, 0]);
    with_checksum(src.ip(), dst.ip(), segment)
}

/// A TCP segment in its packet; its checksum is filled in.
pub fn with_checksum(src: IpAddr, dst: IpAddr, mut segment: Vec<u8>) -> Vec<u8> {
    let sum = transport_checksum(src, dst, TCP, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ip(src, dst, TCP, &segment)
}

/// An ICMP message of the addresses' family in its packet: type, code, the four bytes behind the checksum, the rest.
pub fn icmp(src: IpAddr, dst: IpAddr, kind: u8, code: u8, word: u32, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(word.to_be_bytes());
    message.extend(rest);
    let sum = match src {
        IpAddr::V4(_) => checksum(&message),
        IpAddr::V6(_) => transport_checksum(src, dst, ICMPV6, &message),
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(src, dst, icmp_of(src), &message)
}

/// "Packet too big", or "fragmentation needed": what path MTU discovery lives by.
pub fn too_big(src: IpAddr, dst: IpAddr, mtu: u32, quoted: &[u8]) -> Vec<u8> {
    match src {
        IpAddr::V4(_) => icmp(src, dst, 3, 4, mtu, &quoted[..quoted.len().min(548)]),
        IpAddr::V6(_) => icmp(src, dst, 2, 0, mtu, &quoted[..quoted.len().min(1232)]),
    }
}

/// "Port unreachable".
pub fn unreachable(src: IpAddr, dst: IpAddr, quoted: &[u8]) -> Vec<u8> {
    match src {
        IpAddr::V4(_) => icmp(src, dst, 3, 3, 0, quoted),
        IpAddr::V6(_) => icmp(src, dst, 1, 4, 0, quoted),
    }
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub id: u32,
    /// In bytes, a multiple of eight.
    pub offset: usize,
    /// Whether others follow.
    pub more: bool,
}

/// One fragment of a packet.
///
/// # Panics
/// The addresses are not of one family.
pub fn fragment(src: IpAddr, dst: IpAddr, protocol: u8, piece: Piece, payload: &[u8]) -> Vec<u8> {
    let offset = piece.offset as u16;
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut packet = frame::ipv4(src, dst, protocol, &[], payload);
            packet[4..6].copy_from_slice(&(piece.id as u16).to_be_bytes());
            let flags = if piece.more { 0x2000 } else { 0 };
            packet[6..8].copy_from_slice(&(flags | (offset / 8)).to_be_bytes());
            packet[10..12].fill(0);
            let sum = checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            packet
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            const FRAGMENT: u8 = 44;
            let mut extension = vec![protocol, 0];
            extension.extend((offset | u16::from(piece.more)).to_be_bytes());
            extension.extend(piece.id.to_be_bytes());
            extension.extend(payload);
            frame::ipv6(src, dst, FRAGMENT, &extension)
        }
        _ => panic!("{src} and {dst} are not of one family"),
    }
}

/// All fragments of a packet, in order, with at most `size` bytes of its payload in each.
pub fn fragments(
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    id: u32,
    payload: &[u8],
    size: usize,
) -> Vec<Vec<u8>> {
    let count = payload.len().div_ceil(size);
    payload
        .chunks(size)
        .enumerate()
        .map(|(index, chunk)| {
            let piece = Piece {
                id,
                offset: index * size,
                more: index + 1 < count,
            };
            fragment(src, dst, protocol, piece, chunk)
        })
        .collect()
}

fn transport_checksum(src: IpAddr, dst: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let mut pseudo = Vec::new();
    for address in [src, dst] {
        match address {
            IpAddr::V4(v4) => pseudo.extend(v4.octets()),
            IpAddr::V6(v6) => pseudo.extend(v6.octets()),
        }
    }
    pseudo.extend((segment.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    pseudo.extend(segment);
    checksum(&pseudo)
}

/// One direction of a link: sends packets out of one end, addressed to the hardware of the other.
#[derive(Debug)]
pub struct Wire {
    sender: Sender,
    src: [u8; 6],
    dst: [u8; 6],
}

impl Wire {
    /// # Errors
    /// An interface is missing, or this process may not open a packet socket.
    pub fn open(from: (&Namespace, &str), to: (&Namespace, &str)) -> Result<Wire> {
        Ok(Wire {
            sender: Sender::open(from.0, from.1)?,
            src: frame::hardware_address(from.0, from.1)?,
            dst: frame::hardware_address(to.0, to.1)?,
        })
    }

    /// The frame that carries this packet.
    pub fn frame(&self, packet: &[u8]) -> Vec<u8> {
        let ethertype = match packet.first().map(|byte| byte >> 4) {
            Some(4) => frame::IPV4,
            _ => frame::IPV6,
        };
        frame::ethernet(self.dst, self.src, &[], ethertype, packet)
    }

    /// # Errors
    /// The interface is down, or the packet does not fit it.
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        self.sender.send(&self.frame(packet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_carry_the_whole_payload_once() {
        let payload: Vec<u8> = (0..100).collect();
        for (src, dst, header) in [("192.0.2.1", "192.0.2.2", 20), ("2001:db8::1", "2001:db8::2", 48)] {
            let (Ok(src), Ok(dst)) = (src.parse(), dst.parse()) else {
                panic!("addresses");
            };
            let pieces = fragments(src, dst, UDP, 7, &payload, 48);
            let carried: Vec<u8> = pieces.iter().flat_map(|piece| piece[header..].to_vec()).collect();
            assert_eq!(carried, payload);
            assert_eq!(pieces.len(), 3);
        }
    }

    #[test]
    fn both_checksums_of_an_icmp_error_are_right() {
        let quoted = [0x45; 28];
        let packet = too_big([192, 0, 2, 1].into(), [192, 0, 2, 2].into(), 1300, &quoted);
        assert_eq!((checksum(&packet[..20]), checksum(&packet[20..])), (0, 0));
    }
}
