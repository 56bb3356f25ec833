//! The TCP and UDP sockets of the caller's network namespace, from `/proc`, and the processes that hold them.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// States of `include/net/tcp_states.h`.
const TCP_ESTABLISHED: u8 = 1;
const TCP_SYN_RECV: u8 = 3;
const TCP_CLOSE_WAIT: u8 = 8;
const TCP_LISTEN: u8 = 10;

/// One socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    pub local: SocketAddr,
    /// Port 0: connected to nobody.
    pub peer: SocketAddr,
    state: u8,
    /// 0: held by no process.
    pub inode: u64,
}

/// Who holds a socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process {
    pub name: String,
    pub pid: u32,
}

impl Socket {
    /// `sl local_address rem_address st ... uid timeout inode`, addresses, ports and state in hexadecimal.
    pub fn parse(protocol: u8, line: &str) -> Option<Socket> {
        let mut fields = line.split_whitespace().skip(1);
        let local = endpoint(fields.next()?)?;
        let peer = endpoint(fields.next()?)?;
        let state = u8::from_str_radix(fields.next()?, 16).ok()?;
        Some(Socket {
            protocol,
            local,
            peer,
            state,
            inode: fields.nth(5).and_then(|inode| inode.parse().ok()).unwrap_or(0),
        })
    }

    pub fn is_connected(&self) -> bool {
        self.peer.port() != 0
    }

    /// Waits for peers that it did not name: a TCP listener, or a UDP socket with a port of its own.
    pub fn is_listening(&self) -> bool {
        match self.protocol {
            TCP => self.state == TCP_LISTEN,
            _ => !self.is_connected() && self.local.port() != 0,
        }
    }

    /// A connection that has been asked for and not accepted yet.
    pub fn is_half_accepted(&self) -> bool {
        self.protocol == TCP && self.state == TCP_SYN_RECV
    }

    /// A TCP connection whose peer sends no more.
    pub fn is_half_closed(&self) -> bool {
        self.protocol == TCP && self.state == TCP_CLOSE_WAIT
    }

    /// Data may still come in, or go out.
    pub fn is_open(&self) -> bool {
        match self.protocol {
            TCP => matches!(self.state, TCP_ESTABLISHED | TCP_CLOSE_WAIT),
            _ => self.is_connected(),
        }
    }
}

/// All of them. What cannot be read is left out.
pub fn table() -> Vec<Socket> {
    let files = [("tcp", TCP), ("tcp6", TCP), ("udp", UDP), ("udp6", UDP)];
    let texts = files.into_iter().filter_map(|(file, protocol)| {
        Some((
            std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok()?,
            protocol,
        ))
    });
    texts
        .flat_map(|(text, protocol)| {
            let rows = text
                .lines()
                .skip(1)
                .filter_map(|line| Socket::parse(protocol, line));
            rows.collect::<Vec<_>>()
        })
        .collect()
}

/// Addresses are words of the machine's order that hold bytes of the wire's.
fn endpoint(text: &str) -> Option<SocketAddr> {
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
    Some(SocketAddr::new(address, port))
}

/// The processes that hold these sockets, by inode; of those that share one, the first. Processes that the caller may
/// not look into are left out.
pub fn holders(inodes: &HashSet<u64>) -> HashMap<u64, Process> {
    let mut found = HashMap::new();
    let mut pids: Vec<u32> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    for pid in pids {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        for descriptor in descriptors {
            let inode = std::fs::read_link(descriptor.path())
                .ok()
                .and_then(|target| socket_inode(target.to_str()?));
            if let Some(inode) = inode.filter(|inode| inodes.contains(inode)) {
                found.entry(inode).or_insert_with(|| Process {
                    name: name_of(pid),
                    pid,
                });
            }
        }
    }
    found
}

/// `socket:[12345]`.
fn socket_inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn name_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(
        |_| "a process that ended".to_owned(),
        |name| name.trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_listener_and_its_connection_are_found_with_their_process() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        let opened = TcpStream::connect(address).expect("connected");
        let client = opened.local_addr().expect("connected");
        let table = table();
        let listening = table
            .iter()
            .find(|socket| socket.local == address && socket.is_listening())
            .expect("the listener");
        let connected = table
            .iter()
            .find(|socket| socket.local == client && socket.peer == address)
            .expect("the connection");
        assert!(connected.is_open() && !connected.is_listening() && !listening.is_open());
        let holders = holders(&HashSet::from([listening.inode, connected.inode]));
        for socket in [listening, connected] {
            assert_eq!(holders[&socket.inode].pid, std::process::id());
        }
    }

    #[test]
    fn mapped_addresses_are_those_of_the_wire() {
        let line = "0: 0000000000000000FFFF00000100007F:01BB 0000000000000000FFFF0000020200C0:C000 01 \
                    00000000:00000000 00:00000000 00000000  1000 0 4711 1";
        let socket = Socket::parse(TCP, line).expect("a row");
        assert_eq!(
            (
                socket.peer.to_string().as_str(),
                socket.local.port(),
                socket.inode
            ),
            ("192.0.2.2:49152", 443, 4711)
        );
        assert_eq!(Socket::parse(TCP, "0: 0100007F:01BB"), None);
    }
}
