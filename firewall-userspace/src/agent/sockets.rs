//! The connected sockets of this host, for `explain`: what the kernel programs ask the socket table one packet at a
//! time, read from `/proc` for all at once.

use crate::host;
use crate::host::sockets::TCP;
use crate::simulate::address_key;
use firewall_common::control::AddressKey;
use firewall_common::decide::Socket;
use std::collections::{HashMap, HashSet};

/// Protocol, peer address and port, local port.
pub type Sockets = HashMap<(u8, AddressKey, u16, u16), Socket>;

/// What cannot be read is left out: then fewer packets are explained as replies.
pub fn connected() -> Sockets {
    of(&host::sockets::table())
}

/// What the kernel programs would find of these.
pub fn of(table: &[host::sockets::Socket]) -> Sockets {
    let listening: HashSet<u16> = table
        .iter()
        .filter(|socket| socket.protocol == TCP && socket.is_listening())
        .map(|socket| socket.local.port())
        .collect();
    let connected = table.iter().filter(|socket| socket.is_connected());
    connected
        .map(|socket| {
            let port = socket.local.port();
            // A listener on the port of a connection makes it an accepted one.
            let accepted = socket.protocol == TCP && (socket.is_half_accepted() || listening.contains(&port));
            let kind = if accepted {
                Socket::Accepted
            } else {
                Socket::Opened
            };
            (
                (
                    socket.protocol,
                    address_key(socket.peer.ip()),
                    socket.peer.port(),
                    port,
                ),
                kind,
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::sockets::UDP;
    use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};

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
}
