//! The connected sockets of this host, for `explain`: what the kernel programs ask the socket table one packet at a
//! time, read from `/proc` for all at once.

use crate::simulate::address_key;
use firewall_common::control::AddressKey;
use firewall_common::decide::Socket;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol, peer address and port, local port.
pub type Sockets = HashMap<(u8, AddressKey, u16, u16), Socket>;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// States of `include/net/tcp_states.h`.
const TCP_LISTEN: u8 = 10;
const TCP_SYN_RECV: u8 = 3;

/// What cannot be read is left out: then fewer packets are explained as replies.
pub fn connected() -> Sockets {
    let mut rows = Vec::new();
    for (file, protocol) in [("tcp", TCP), ("tcp6", TCP), ("udp", UDP), ("udp6", UDP)] {
        if let Ok(text) = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
            rows.extend(text.lines().skip(1).filter_map(|line| row(protocol, line)));
        }
    }
    sockets(&rows)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    protocol: u8,
    local_port: u16,
    peer: IpAddr,
    peer_port: u16,
    state: u8,
}

/// `sl local_address rem_address st ...`, in hexadecimal.
fn row(protocol: u8, line: &str) -> Option<Row> {
    let mut fields = line.split_whitespace().skip(1);
    let (_, local_port) = endpoint(fields.next()?)?;
    let (peer, peer_port) = endpoint(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    Some(Row {
        protocol,
        local_port,
        peer,
        peer_port,
        state,
    })
}

/// Addresses are words of the machine's order that hold bytes of the wire's.
fn endpoint(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16)
            .ok()
            .map(u32::to_ne_bytes)
    };
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        _ => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            // A socket of both families talks to IPv4 peers, too.
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
    };
    Some((address, port))
}

fn sockets(rows: &[Row]) -> Sockets {
    let listening: HashSet<u16> = rows
        .iter()
        .filter(|row| row.protocol == TCP && row.state == TCP_LISTEN)
        .map(|row| row.local_port)
        .collect();
    let connected = rows.iter().filter(|row| row.peer_port != 0);
    connected
        .map(|row| {
            // A listener on the port of a connection makes it an accepted one.
            let accepted =
                row.protocol == TCP && (row.state == TCP_SYN_RECV || listening.contains(&row.local_port));
            let socket = if accepted {
                Socket::Accepted
            } else {
                Socket::Opened
            };
            (
                (row.protocol, address_key(row.peer), row.peer_port, row.local_port),
                socket,
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn tells_what_was_opened_from_what_was_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let server = listener.local_addr().expect("bound");
        let opened = TcpStream::connect(server).expect("connected");
        let client = opened.local_addr().expect("connected");
        let datagrams = UdpSocket::bind("[::1]:0").expect("bound");
        datagrams.connect("[::1]:9").expect("connected");
        let local = datagrams.local_addr().expect("bound").port();

        let sockets = connected();
        let home = address_key(server.ip());
        assert_eq!(
            sockets.get(&(TCP, home, server.port(), client.port())),
            Some(&Socket::Opened)
        );
        assert_eq!(
            sockets.get(&(TCP, home, client.port(), server.port())),
            Some(&Socket::Accepted)
        );
        let loopback = address_key(Ipv6Addr::LOCALHOST.into());
        assert_eq!(sockets.get(&(UDP, loopback, 9, local)), Some(&Socket::Opened));
    }

    #[test]
    fn mapped_addresses_are_those_of_the_wire() {
        let line = "0: 0000000000000000FFFF00000100007F:01BB 0000000000000000FFFF0000020200C0:C000 01 0";
        let row = row(TCP, line).expect("a row");
        assert_eq!(
            (row.peer.to_string().as_str(), row.peer_port, row.local_port),
            ("192.0.2.2", 49152, 443)
        );
    }
}
