//! Frames byte by byte, and a raw sender for them: for what no socket of the host would send.
//!
//! Independent of the product's own parser and builder on purpose.

use crate::netns::Namespace;
use anyhow::{Context, Result, bail};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
pub const VLAN: u16 = 0x8100;
pub const QINQ: u16 = 0x88a8;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// An Ethernet frame. VLAN tags are (ethertype of the tag, tag control information), outermost first.
pub fn ethernet(dst: [u8; 6], src: [u8; 6], tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [dst, src].concat();
    for (tag, control) in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend(control.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet; the options are padded to words.
pub fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let words = options.len().div_ceil(4);
    let header = 20 + words * 4;
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend(((header + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.extend(options);
    packet.resize(header, 0);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// An IPv6 packet; extension headers, if any, are part of the payload.
pub fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next_header, 64]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.extend(payload);
    packet
}

/// A UDP datagram inside IPv4, with its checksum.
pub fn udp4(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16), options: &[u8], payload: &[u8]) -> Vec<u8> {
    let datagram = udp(&[src.0.octets(), dst.0.octets()].concat(), src.1, dst.1, payload);
    ipv4(src.0, dst.0, UDP, options, &datagram)
}

/// A UDP datagram inside IPv6, with its checksum, behind these extension headers, of which `first` is the number of
/// the first and whose last one says 17.
pub fn udp6(
    src: (Ipv6Addr, u16),
    dst: (Ipv6Addr, u16),
    first: u8,
    extensions: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let datagram = udp(&[src.0.octets(), dst.0.octets()].concat(), src.1, dst.1, payload);
    ipv6(
        src.0,
        dst.0,
        if extensions.is_empty() { UDP } else { first },
        &[extensions, &datagram].concat(),
    )
}

fn udp(addresses: &[u8], src_port: u16, dst_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = [src_port, dst_port, 8 + payload.len() as u16, 0]
        .map(u16::to_be_bytes)
        .concat();
    datagram.extend(payload);
    let sum = pseudo_checksum(addresses, UDP, &datagram);
    datagram[6..8].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
    datagram
}

/// A TCP segment without options inside IPv4; `flags` as on the wire (SYN = 2, ACK = 16).
pub fn tcp4(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16), flags: u8) -> Vec<u8> {
    let mut segment = [src.1, dst.1].map(u16::to_be_bytes).concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0x40, 0, 0, 0, 0, 0]);
    let sum = pseudo_checksum(&[src.0.octets(), dst.0.octets()].concat(), TCP, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ipv4(src.0, dst.0, TCP, &[], &segment)
}

fn pseudo_checksum(addresses: &[u8], protocol: u8, segment: &[u8]) -> u16 {
    let mut pseudo = addresses.to_vec();
    pseudo.extend((segment.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    pseudo.extend(segment);
    checksum(&pseudo)
}

/// The internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sends whole frames out of one interface.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
    address: libc::sockaddr_ll,
}

impl Sender {
    /// # Errors
    /// There is no such interface, or this process may not open a packet socket.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Sender> {
        namespace.run(|| Sender::open_here(interface))
    }

    /// [`Sender::open`] in the namespace of the calling thread.
    ///
    /// # Errors
    /// As there.
    pub fn open_here(interface: &str) -> Result<Sender> {
        let ifindex =
            nix::net::if_::if_nametoindex(interface).with_context(|| format!("looking for {interface}"))?;
        // SAFETY: socket() takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error()).context("opening a packet socket");
        }
        // SAFETY: the call above made `fd`, and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: ifindex.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0; 8],
        };
        Ok(Sender { socket, address })
    }

    /// # Errors
    /// The interface is down, or the frame does not fit it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: both pointers are to live objects of exactly the lengths given; the address is a sockaddr_ll.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const self.address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        match usize::try_from(sent) {
            Ok(sent) if sent == frame.len() => Ok(()),
            Ok(sent) => bail!("sent {sent} of {} bytes", frame.len()),
            Err(_) => Err(std::io::Error::last_os_error()).context("sending a frame"),
        }
    }
}

/// Hardware address of an interface.
///
/// # Errors
/// There is no such interface.
pub fn hardware_address(namespace: &Namespace, interface: &str) -> Result<[u8; 6]> {
    let text = namespace.ip(&format!("-o link show dev {interface}"))?;
    let word = text
        .split_once("link/ether ")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .with_context(|| format!("{interface} has no Ethernet address: {text}"))?;
    let mut address = [0; 6];
    for (byte, part) in address.iter_mut().zip(word.split(':')) {
        *byte = u8::from_str_radix(part, 16).with_context(|| format!("reading the address {word}"))?;
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_over_a_summed_header_is_zero() {
        let packet = udp4(
            ([192, 0, 2, 1].into(), 7),
            ([192, 0, 2, 2].into(), 9),
            &[1, 1, 1, 0],
            b"odd",
        );
        assert_eq!(checksum(&packet[..24]), 0);
        assert_eq!(pseudo_checksum(&packet[12..20], UDP, &packet[24..]), 0);
    }
}
