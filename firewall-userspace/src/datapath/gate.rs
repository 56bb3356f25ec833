//! The gate's cells seen from user space: opened for connections that are older than the programs, closed when
//! neither a socket nor a flow uses the port any more.
//!
//! Layout and meaning: `firewall_common::gate`. The kernel writes whole words without locks, so a sweep
//! compares and swaps, against what it read before it asked for sockets and flows: one that was opened in between has
//! changed its cell, or is in the dump.

use super::flows::{Flow, now_s};
use super::{
    DatapathError,
    conntrack::Known,
    sys::Mapping,
    wire::{self, Connection, NetlinkError, Request},
};
use firewall_common::gate::{Bank, CELLS, CELLS_PER_BANK, Cell};
use firewall_common::packet::protocol;
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;
use std::{
    collections::{HashMap, HashSet},
    io,
    sync::atomic::Ordering,
};

/// A cell younger than this is never closed: its socket may be about to appear.
const YOUNG_SECONDS: u32 = 120;
/// The same of a cell that was shut.
const SHUT_SECONDS: u32 = 3600;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Size of `struct inet_diag_req_v2`.
const INET_DIAG_REQ: usize = 56;

/// States of `include/net/tcp_states.h`.
const TCP_SYN_RECV: u8 = 3;
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;
const TCP_NEW_SYN_RECV: u8 = 12;
const TCP_BOUND_INACTIVE: u8 = 13;

/// The cells, and what the sweep before thought stale.
pub(super) struct Gate {
    cells: Mapping,
    /// Egress has not written the cells so far: the first sweep opens those of the connections that there are.
    /// Later the socket table is no source, for it does not tell who opened a connection whose listener is gone.
    fresh: bool,
    /// Index and word of open cells without a socket. A dump can miss a socket when its hash chain changes while
    /// it is read, so a cell is closed by the second sweep that finds it so.
    stale: HashMap<u32, u64>,
}

impl Gate {
    pub fn new(cells: Mapping, fresh: bool) -> Gate {
        Gate {
            cells,
            fresh,
            stale: HashMap::new(),
        }
    }

    /// Closes the cells of connections that the host had; the first time, opens those of connections that it has. `flows`
    /// reads the live flows, after the cells.
    pub fn refresh(
        &mut self,
        flows: impl FnOnce() -> Result<Vec<Flow>, DatapathError>,
    ) -> Result<(), DatapathError> {
        let now_s = now_s()?;
        let open: Vec<(u32, u64)> = (0..CELLS)
            .map(|index| (index, self.cells.load_u64(index as usize * 8)))
            .filter(|(_, word)| *word != 0)
            .collect();
        let sockets = Sockets::read()?;
        let flowing: HashSet<u32> = flows()?.iter().filter_map(cell).collect();

        if std::mem::take(&mut self.fresh) {
            // Old enough to be closed as soon as the socket is gone.
            let seed = Cell::new(now_s.saturating_sub(YOUNG_SECONDS + 1));
            for index in sockets.opened() {
                let _ = self.swap(index, 0, seed.0);
            }
        }
        let stale: HashMap<u32, u64> = open
            .into_iter()
            .filter(|(index, word)| {
                // What serves a shut port may stand behind this host, where no socket tells that it is gone.
                let young = if Cell(*word).is_shut() {
                    SHUT_SECONDS
                } else {
                    YOUNG_SECONDS
                };
                age(*word, now_s) > young && !sockets.holds(*index) && !flowing.contains(index)
            })
            .collect();
        for (index, word) in &stale {
            if self.stale.get(index) == Some(word) {
                let _ = self.swap(*index, *word, 0);
            }
        }
        self.stale = stale;
        Ok(())
    }

    /// Opens the cell of a flow that was there before the programs.
    pub fn open(&self, known: &Known, now_s: u32) {
        let bank = match known.key.protocol() {
            protocol::TCP => Bank::Tcp,
            protocol::UDP => Bank::Udp,
            _ => return,
        };
        let _ = self.swap(bank.cell(known.key.local_port()), 0, Cell::new(now_s).0);
    }

    /// Shuts UDP ports.
    pub fn shut(&self, ports: impl IntoIterator<Item = u16>) -> Result<(), DatapathError> {
        let word = Cell::shut(now_s()?).0;
        for port in ports {
            let cell = self.cells.u64(Bank::Udp.cell(port) as usize * 8);
            cell.store(word, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The cells that are open or shut now, by index.
    pub fn open_cells(&self) -> HashMap<u32, Cell> {
        let cells = (0..CELLS).map(|index| (index, Cell(self.cells.load_u64(index as usize * 8))));
        cells.filter(|(_, cell)| cell.0 != 0).collect()
    }

    /// Fails when the kernel was faster, which then knows better.
    fn swap(&self, index: u32, from: u64, to: u64) -> Result<u64, u64> {
        self.cells
            .u64(index as usize * 8)
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
    }
}

/// Seconds since a cell was written. One from the future is new.
fn age(word: u64, now_s: u32) -> u32 {
    let age = now_s.wrapping_add(1).wrapping_sub(word as u32);
    if age > u32::MAX / 2 { 0 } else { age }
}

/// The cell of a flow's local port.
fn cell(flow: &Flow) -> Option<u32> {
    let bank = match flow.key.protocol() {
        protocol::TCP => Bank::Tcp,
        protocol::UDP => Bank::Udp,
        _ => return None,
    };
    flow.is_live().then(|| bank.cell(flow.key.local_port()))
}

/// Local ports of the sockets of this network namespace.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sockets {
    /// Of any socket.
    tcp: HashSet<u16>,
    udp: HashSet<u16>,
    tcp_listening: HashSet<u16>,
    /// With a peer.
    tcp_connected: HashSet<u16>,
    udp_connected: HashSet<u16>,
}

impl Sockets {
    fn read() -> Result<Sockets, DatapathError> {
        match Sockets::from_diag() {
            // Without CONFIG_INET_DIAG.
            Err(error) if error.errno() == Some(libc::ENOENT) => {
                Sockets::from_proc().map_err(DatapathError::system("reading the socket table of /proc"))
            }
            result => Ok(result?),
        }
    }

    fn from_diag() -> Result<Sockets, NetlinkError> {
        let connection = Connection::open(NETLINK_SOCK_DIAG)?;
        let mut sockets = Sockets::default();
        for family in [libc::AF_INET, libc::AF_INET6] {
            for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
                let mut body = [0; INET_DIAG_REQ];
                body[0] = family as u8;
                body[1] = protocol as u8;
                // All states.
                body[4..8].fill(0xff);
                let found = connection.dump(
                    "listing the sockets",
                    || Request::new(SOCK_DIAG_BY_FAMILY, wire::NLM_F_DUMP, &body),
                    |message| {
                        // inet_diag_msg: family, state, timer, retransmits, then the ports in network order.
                        let [_, state, _, _, p0, p1, q0, q1, ..] = *message.body else {
                            return None;
                        };
                        Some((state, u16::from_be_bytes([p0, p1]), u16::from_be_bytes([q0, q1])))
                    },
                )?;
                for (state, local, remote) in found {
                    sockets.add(protocol, state, local, remote);
                }
            }
        }
        Ok(sockets)
    }

    fn from_proc() -> io::Result<Sockets> {
        let mut sockets = Sockets::default();
        for (file, protocol) in [
            ("tcp", libc::IPPROTO_TCP),
            ("tcp6", libc::IPPROTO_TCP),
            ("udp", libc::IPPROTO_UDP),
            ("udp6", libc::IPPROTO_UDP),
        ] {
            match std::fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
                Ok(text) => sockets.add_table(protocol, &text),
                // Without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sockets)
    }

    /// Lines of `sl local_address rem_address st ...`, addresses and ports in hexadecimal.
    fn add_table(&mut self, protocol: i32, text: &str) {
        let port = |field: &str| u16::from_str_radix(field.rsplit_once(':')?.1, 16).ok();
        for line in text.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (Some(local), Some(remote), Some(state)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if let (Some(local), Some(remote), Ok(state)) =
                (port(local), port(remote), u8::from_str_radix(state, 16))
            {
                self.add(protocol, state, local, remote);
            }
        }
    }

    fn add(&mut self, protocol: i32, state: u8, local: u16, remote: u16) {
        if protocol == libc::IPPROTO_UDP {
            self.udp.insert(local);
            if remote != 0 {
                self.udp_connected.insert(local);
            }
            return;
        }
        self.tcp.insert(local);
        match state {
            TCP_LISTEN => {
                self.tcp_listening.insert(local);
            }
            TCP_SYN_RECV | TCP_NEW_SYN_RECV | TCP_CLOSE | TCP_BOUND_INACTIVE => {}
            _ => {
                self.tcp_connected.insert(local);
            }
        }
    }

    /// Cells that must be open. A listener on the port makes its connections accepted ones.
    fn opened(&self) -> impl Iterator<Item = u32> {
        let tcp = self
            .tcp_connected
            .difference(&self.tcp_listening)
            .map(|port| Bank::Tcp.cell(*port));
        tcp.chain(self.udp_connected.iter().map(|port| Bank::Udp.cell(*port)))
    }

    /// Whether a socket has the port of a cell.
    fn holds(&self, index: u32) -> bool {
        let port = (index % CELLS_PER_BANK) as u16;
        match index / CELLS_PER_BANK {
            0 => self.tcp.contains(&port),
            _ => self.udp.contains(&port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn both_socket_tables_show_what_was_opened_and_what_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let datagram = UdpSocket::bind("[::1]:0")
            .or_else(|_| UdpSocket::bind("127.0.0.1:0"))
            .unwrap();
        datagram.connect(datagram.local_addr().unwrap()).unwrap();
        let port = |address: io::Result<std::net::SocketAddr>| address.unwrap().port();
        let (listening, opened, udp) = (
            port(listener.local_addr()),
            port(client.local_addr()),
            port(datagram.local_addr()),
        );
        for sockets in [Sockets::from_diag().unwrap(), Sockets::from_proc().unwrap()] {
            let cells: HashSet<u32> = sockets.opened().collect();
            assert!(cells.contains(&Bank::Tcp.cell(opened)));
            assert!(!cells.contains(&Bank::Tcp.cell(listening)));
            assert!(cells.contains(&Bank::Udp.cell(udp)));
            assert!(sockets.holds(Bank::Tcp.cell(listening)) && sockets.holds(Bank::Udp.cell(udp)));
        }
    }

    #[test]
    fn lines_of_the_socket_table_that_make_no_sense_are_passed_over() {
        let mut sockets = Sockets::default();
        sockets.add_table(
            libc::IPPROTO_TCP,
            "header\n 0: 0100007F:1F90 0200007F:0050 01 x\n1: x\n\n2: a b c\n",
        );
        assert_eq!(sockets.opened().collect::<Vec<_>>(), [Bank::Tcp.cell(8080)]);
    }

    #[test]
    fn a_cell_from_the_future_is_new() {
        assert_eq!(age(Cell::new(100).0, 100), 0);
        assert_eq!(age(Cell::new(100).0, 221), 121);
        assert_eq!(age(Cell::new(100).0, 99), 0);
    }
}
