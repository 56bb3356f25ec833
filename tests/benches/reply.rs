//! What a reply costs: nanoseconds over an empty XDP program, by BPF_PROG_TEST_RUN over as many peers as there are flows,
//! 65,536 at most, found in the flow table or, with nothing there, in the socket table.
//!
//! Flows are opened by running the egress program on what a host would send, connections of the socket table by
//! connecting.

use anyhow::{Context, Result, ensure};
use firewall_common::gate::{Bank, Cell};
use firewall_common::verdict::Verdict;
use ravelin::policy::model::Policy;
use ravelin_tests::agent::PREFIX;
use ravelin_tests::bench::{Record, quick, wanted};
use ravelin_tests::bpf::empty_pass;
use ravelin_tests::frame;
use ravelin_tests::kernel::{Kernel, monotonic_s, test_run};
use ravelin_tests::lab;
use ravelin_tests::netns::Namespace;
use ravelin_tests::packet::{self, ACK, SYN};
use ravelin_tests::rotate::{End, Rotation, SOURCES};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

/// Where the host's connections start from, and the port that they all go to.
const LOCAL: u16 = 40_000;
const REMOTE: u16 = 7000;
/// Connections of the socket table: each is three descriptors here.
const SOCKETS: usize = 300;

fn main() -> Result<()> {
    for ipv6 in [false, true] {
        let table = format!(
            "ns per reply over an empty XDP program, {}",
            if ipv6 { "IPv6" } else { "IPv4" }
        );
        if !wanted(&table) {
            continue;
        }
        lab::prepare()?;
        let sizes: &[usize] = if quick() {
            &[1_000, 100_000]
        } else {
            &[1_000, 100_000, 1_000_000]
        };
        for size in sizes {
            by_flow_table(&table, ipv6, *size)?;
        }
        by_socket_table(&table, ipv6)?;
    }
    Ok(())
}

/// This host.
fn host(ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(192, 0, 2, 1).into()
    }
}

/// The n-th peer.
fn peer(ipv6: bool, n: usize) -> IpAddr {
    match ipv6 {
        false => IpAddr::V4((0x0a00_0000 + n as u32 + 1).into()),
        true => IpAddr::V6((0x2001_0db8_0066 << 80 | (n as u128 + 1)).into()),
    }
}

fn by_flow_table(table: &str, ipv6: bool, size: usize) -> Result<()> {
    // A quarter full: at half, one set in fifty already has more flows than ways.
    let mut kernel = Kernel::with_flows(size as u32 * 4)?;
    kernel.enforce(&Policy::default())?;
    // More flows than peers that rotate: the rest fills the table, from other ports.
    for n in 0..size {
        let local = SocketAddr::new(host(ipv6), LOCAL + (n / SOURCES) as u16);
        let remote = SocketAddr::new(peer(ipv6, n % SOURCES), REMOTE);
        for flags in [SYN, ACK] {
            test_run(
                kernel.datapath.egress_program(),
                &framed(&packet::tcp(local, remote, flags, 1)),
                1,
            )?;
        }
    }
    let (flows, _) = kernel.datapath.flow_pressure()?;
    ensure!(
        flows >= size / 100 * 98,
        "{flows} of {size} flows are in the table"
    );
    let column = match size {
        1_000_000.. => format!("{}M flows", size / 1_000_000),
        _ => format!("{}k flows", size / 1_000),
    };
    measure(&kernel, ipv6, size.min(SOURCES), table, "flow table", &column)
}

fn by_socket_table(table: &str, ipv6: bool) -> Result<()> {
    let namespace = Namespace::unique(PREFIX, "host")?;
    // All peers are at home here.
    namespace.ip(if ipv6 {
        "-6 route add local 2001:db8:66::/64 dev lo"
    } else {
        "route add local 10.0.0.0/8 dev lo"
    })?;
    namespace.ip(&format!("address add {} dev lo", host(ipv6)))?;
    let mut kernel = Kernel::new()?;
    kernel.enforce(&Policy::default())?;
    namespace.run(|| -> Result<()> {
        let any: IpAddr = if ipv6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        let listener = TcpListener::bind((any, REMOTE)).context("listening")?;
        let mut connections = Vec::new();
        for n in 0..SOCKETS {
            let near = connect(
                SocketAddr::new(host(ipv6), LOCAL),
                SocketAddr::new(peer(ipv6, n), REMOTE),
            )?;
            connections.push((near, listener.accept().context("accepting")?));
        }
        kernel.open_gate(Bank::Tcp, LOCAL, Cell::new(monotonic_s()))?;
        measure(
            &kernel,
            ipv6,
            SOCKETS,
            table,
            "socket table",
            &format!("{SOCKETS} connections"),
        )
    })
}

/// Connects from a port that other connections have already.
fn connect(from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd;
    let family = if from.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let socket =
        socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).context("opening a socket")?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(from)).with_context(|| format!("binding to {from}"))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).with_context(|| format!("connecting to {to}"))?;
    Ok(TcpStream::from(socket))
}

fn framed(packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet[0] >> 4 == 4 {
        frame::IPV4
    } else {
        frame::IPV6
    };
    frame::ethernet([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], &[], ethertype, packet)
}

/// The fastest round of replies less the fastest round of an empty program, in turns.
fn measure(kernel: &Kernel, ipv6: bool, peers: usize, table: &str, row: &str, column: &str) -> Result<()> {
    const REPEAT: u32 = SOURCES as u32;
    let reply = framed(&packet::tcp(
        SocketAddr::new(peer(ipv6, 0), REMOTE),
        SocketAddr::new(host(ipv6), LOCAL),
        ACK,
        1,
    ));
    let (verdict, counted) = kernel.judge(&reply)?;
    ensure!(verdict == Verdict::Pass, "a reply is dropped: {counted:?}");
    let empty = empty_pass()?;
    let rotation = Rotation::new(ipv6, &End::Program(empty.as_fd()))?;
    rotation.fill(&(0..peers).map(|n| peer(ipv6, n)).collect::<Vec<_>>())?;
    let (mut base, mut full) = (u32::MAX, u32::MAX);
    let dropped = dropped(kernel)?;
    for _ in 0..if quick() { 20 } else { 60 } {
        rotation.aim(empty.as_fd())?;
        base = base.min(test_run(rotation.program(), &reply, REPEAT)?.1);
        rotation.aim(kernel.datapath.ingress_program())?;
        full = full.min(test_run(rotation.program(), &reply, REPEAT)?.1);
    }
    // A set of the flow table may have been too full for one or the other.
    let dropped = self::dropped(kernel)? - dropped;
    ensure!(
        dropped < u64::from(REPEAT),
        "{dropped} replies were dropped: {row}, {column}"
    );
    Record::new(table, row, column, f64::from(full) - f64::from(base), "ns").write()
}

/// Packets that were dropped, whatever for.
fn dropped(kernel: &Kernel) -> Result<u64> {
    let counters = kernel.datapath.counters()?;
    let closed = usize::from(firewall_common::verdict::Reason::Closed.number());
    Ok(counters.endings[closed].happened.packets)
}
