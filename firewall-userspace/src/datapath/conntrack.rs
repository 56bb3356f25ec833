//! What the kernel's connection tracking knows to be under way when the agent starts for the first time.
//!
//! The socket table knows the host's own connections. Those of containers and guests behind it, and datagrams of
//! sockets without a peer, are nobody's sockets here: under default deny their replies would drop until they are opened
//! anew. Conntrack, where the host uses it, has seen who spoke first, before and after translation. Of each entry the
//! reply tuple is what comes in from outside, as ingress sees it: remote = its source, local = its destination. To the flow
//! table goes what egress would have noted had it been attached: what was opened from here and answers from outside.
//! The responder's packets are all that such a flow admits, the opener's are judged as ever. By who opened (original source)
//! and who answers (reply source), each told by the route to it:
//!
//! | opened by | answered by | | for example |
//! |---|---|---|---|
//! | this host | outside | taken | a resolver's question; a TCP connection, which has its socket besides |
//! | inside | outside | taken | a container, routed, or translated to whichever address |
//! | inside, to an address of this host | outside | taken | a pod asks a service address that is translated to another node |
//! | outside, source translated to an own address | outside | taken, unless it came to an own address | a network behind a router with all sides filtered |
//! | outside | this host | never | any inbound connection: the policy's |
//! | outside | inside | never | a published port, a routed container: the policy's |
//! | outside, not translated | outside | never | transit: the policy's |
//! | anybody | inside, this host | never | does not pass an interface that is filtered |
//!
//! *Inside* is what is reached by an interface that is not filtered, and whose members or parent are not: a neighbour on
//! a bridge with a filtered port is not told from a guest there, and counts as outside. Loopback, groups, broadcast and
//! what no route leads to are neither.
//!
//! * A TCP connection that conntrack found midway has no known opener, so it is not taken, as a segment midway opens nothing in
//!   egress either. Conntrack marks it by tolerance in both directions (`IP_CT_TCP_FLAG_BE_LIBERAL`), as it does what it
//!   has handed to a flow table of nftables, which is told apart by its status.
//! * What egress would have dropped by its rules, or not noted, since it leaves from the port of a service, is not taken.
//! * A flow gets no more time than conntrack gives it.
//! * Absent on purpose: `/proc/net/nf_conntrack`, which does not tell what was found midway, and whose readers most kernels
//!   leave out; expectations of helpers; VRFs and rules of routing that ask for more than an address.

use super::netlink::Routes;
use super::wire::{self, Connection, Message, NetlinkError, Request};
use firewall_common::decide::{answer_key, port_key};
use firewall_common::flow::{Key, State};
use firewall_common::image::{Image, NO_SERVICE, SlicePages};
use firewall_common::packet::{Address, Packet, protocol, tcp};
use firewall_common::verdict::{Reason, Verdict};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
const CT_GET: u16 = 1 << 8 | 1;
/// Size of `struct nfgenmsg`.
const NFGENMSG: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMP_TYPE: u16 = 5;
const CTA_PROTO_ICMPV6_ID: u16 = 7;
const CTA_PROTO_ICMPV6_TYPE: u16 = 8;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;

/// `include/uapi/linux/netfilter/nf_conntrack_common.h`.
const IPS_ASSURED: u32 = 1 << 2;
const IPS_DYING: u32 = 1 << 9;
const IPS_OFFLOAD: u32 = 1 << 14;
/// `include/uapi/linux/netfilter/nf_conntrack_tcp.h`.
const IP_CT_TCP_FLAG_BE_LIBERAL: u8 = 8;
const TCP_CONNTRACK_SYN_SENT: u8 = 1;
const TCP_CONNTRACK_SYN_RECV: u8 = 2;
const TCP_CONNTRACK_ESTABLISHED: u8 = 3;
const TCP_CONNTRACK_FIN_WAIT: u8 = 4;
const TCP_CONNTRACK_CLOSE_WAIT: u8 = 5;
const TCP_CONNTRACK_LAST_ACK: u8 = 6;

const ICMP_ECHO: u8 = 8;
const ICMPV6_ECHO: u8 = 128;

/// Where an address is, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Own,
    /// Reached by an interface that is not filtered.
    Inside,
    /// Reached by this interface, which is filtered, or whose members or parent are.
    Outside(u32),
    Nowhere,
}

/// A flow that was there before the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub key: Key,
    pub state: State,
    /// The interface that leads to the remote end.
    pub ifindex: u32,
    /// What conntrack leaves it if nothing more is sent.
    pub left_s: u32,
}

/// One end to the other, as packets of this direction carry it. For ICMP both ports are the identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    src: IpAddr,
    dst: IpAddr,
    src_port: u16,
    dst_port: u16,
}

/// An entry of conntrack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    protocol: u8,
    icmp_type: u8,
    original: Tuple,
    reply: Tuple,
    status: u32,
    tcp_state: u8,
    /// `IP_CT_TCP_FLAG_*` of both directions.
    tcp_flags: [u8; 2],
    left_s: u32,
}

/// All that the host, or what is behind it, has under way with the outside; what has the least time left comes first, so
/// that it gives way if a set is too small.
/// `filtered` tells whether packets by an interface are judged; `image` is the policy in force.
pub(super) fn under_way(filtered: impl Fn(u32) -> bool, image: &[u8]) -> Result<Vec<Known>, NetlinkError> {
    // Asking would load the module, and nobody here has use for it.
    if !Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists() {
        return Ok(Vec::new());
    }
    let connection = Connection::open(NETLINK_NETFILTER)?;
    let mut routes = Routes::open()?;
    let mut side = |address: IpAddr| match routes.to(address) {
        _ if address.is_loopback() || address.is_multicast() || address.is_unspecified() => Side::Nowhere,
        Some((_, true)) => Side::Own,
        Some((ifindex, false)) if filtered(ifindex) => Side::Outside(ifindex),
        Some(_) => Side::Inside,
        None => Side::Nowhere,
    };
    let mut known = connection.dump(
        "listing the connections that the kernel tracks",
        || Request::new(CT_GET, wire::NLM_F_DUMP, &[0; NFGENMSG]),
        |message| {
            let entry = Entry::read(message)?;
            entry
                .known(&mut side)
                .filter(|known| is_noted(image, known).unwrap_or(false))
        },
    )?;
    known.sort_by_key(|known| known.left_s);
    Ok(known)
}

impl Entry {
    /// `None` for what has no two ends, or cannot be read.
    fn read(message: Message<'_>) -> Option<Entry> {
        let (mut original, mut reply, mut status, mut left_s) = (None, None, 0, 0);
        let (mut tcp_state, mut tcp_flags) = (0, [0; 2]);
        for (kind, value) in message.attributes(NFGENMSG) {
            match kind {
                CTA_TUPLE_ORIG => original = tuple(value),
                CTA_TUPLE_REPLY => reply = tuple(value),
                CTA_STATUS => status = be32(value)?,
                CTA_TIMEOUT => left_s = be32(value)?,
                CTA_PROTOINFO => {
                    let of_tcp = wire::attributes(value).find(|(kind, _)| *kind == CTA_PROTOINFO_TCP);
                    for (kind, value) in of_tcp.into_iter().flat_map(|(_, value)| wire::attributes(value)) {
                        match kind {
                            CTA_PROTOINFO_TCP_STATE => tcp_state = *value.first()?,
                            CTA_PROTOINFO_TCP_FLAGS_ORIGINAL => tcp_flags[0] = *value.first()?,
                            CTA_PROTOINFO_TCP_FLAGS_REPLY => tcp_flags[1] = *value.first()?,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        let (protocol, icmp_type, original) = original?;
        let (_, _, reply) = reply?;
        Some(Entry {
            protocol,
            icmp_type,
            original,
            reply,
            status,
            tcp_state,
            tcp_flags,
            left_s,
        })
    }

    /// The flow that this entry stands for, if it is to be taken: the table above.
    fn known(&self, mut side: impl FnMut(IpAddr) -> Side) -> Option<Known> {
        let state = self.state()?;
        let (original, reply) = (&self.original, &self.reply);
        let Side::Outside(ifindex) = side(reply.src) else {
            return None;
        };
        let opened_here = match side(original.src) {
            Side::Own | Side::Inside => true,
            Side::Outside(_) => {
                original.src != reply.dst && side(reply.dst) == Side::Own && side(original.dst) != Side::Own
            }
            Side::Nowhere => false,
        };
        if !opened_here || original.src == reply.src {
            return None;
        }
        let (remote_port, local_port) = match self.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => (reply.src_port, reply.dst_port),
            protocol::ICMP | protocol::ICMPV6 => (0, reply.dst_port),
            _ => (0, 0),
        };
        let version = if reply.src.is_ipv4() { 4 } else { 6 };
        let (local, remote) = (words(reply.dst), words(reply.src));
        Some(Known {
            key: Key::new(version, self.protocol, local, local_port, remote, remote_port),
            state,
            ifindex,
            left_s: self.left_s,
        })
    }

    /// What the flow table would call it; `None` for what is over, or begun by nobody knows whom.
    fn state(&self) -> Option<State> {
        if self.status & IPS_DYING != 0 {
            return None;
        }
        match self.protocol {
            protocol::TCP => {
                let midway = self
                    .tcp_flags
                    .iter()
                    .all(|flags| flags & IP_CT_TCP_FLAG_BE_LIBERAL != 0);
                if midway && self.status & IPS_OFFLOAD == 0 {
                    return None;
                }
                match self.tcp_state {
                    TCP_CONNTRACK_SYN_SENT | TCP_CONNTRACK_SYN_RECV => Some(State::SynSent),
                    TCP_CONNTRACK_ESTABLISHED => Some(State::Established),
                    // Conntrack does not say whose FIN it was: either may have more to say.
                    TCP_CONNTRACK_FIN_WAIT | TCP_CONNTRACK_CLOSE_WAIT | TCP_CONNTRACK_LAST_ACK => {
                        Some(State::FinOut)
                    }
                    _ => None,
                }
            }
            protocol::UDP if self.status & IPS_ASSURED != 0 => Some(State::Conversation),
            protocol::UDP => Some(State::Asked),
            protocol::ICMP => (self.icmp_type == ICMP_ECHO).then_some(State::Echo),
            protocol::ICMPV6 => (self.icmp_type == ICMPV6_ECHO).then_some(State::Echo),
            _ => Some(State::Other),
        }
    }
}

/// Whether egress would have let the first packet out and noted it. `None`: the image cannot be read.
fn is_noted(image: &[u8], known: &Known) -> Option<bool> {
    let pages = SlicePages(image);
    let image = Image::open(&pages)?;
    let key = &known.key;
    let packet = Packet {
        version: key.version(),
        protocol: key.protocol(),
        src: key.local,
        dst: key.remote,
        src_port: key.local_port(),
        dst_port: key.remote_port(),
        tcp_flags: tcp::SYN,
        icmp_type: if key.version() == 4 {
            ICMP_ECHO
        } else {
            ICMPV6_ECHO
        },
        ..Packet::EMPTY
    };
    if let Some(answers) = answer_key(&packet)
        && image.service(answers)? != NO_SERVICE
    {
        return Some(false);
    }
    if !image.judges_egress() {
        return Some(true);
    }
    let row = image.egress_row(port_key(&packet))?;
    let class = image.class(key.version(), key.remote.high, key.remote.low)?;
    Some(match Reason::from_number(image.verdict(row, class)?.reason()) {
        Some(reason) => reason.verdict() == Verdict::Pass,
        None => !image.egress_denies(),
    })
}

/// Protocol, type if it is ICMP, and both ends.
fn tuple(bytes: &[u8]) -> Option<(u8, u8, Tuple)> {
    let (mut src, mut dst, mut number, mut icmp_type) = (None, None, None, 0);
    let (mut src_port, mut dst_port) = (0, 0);
    for (kind, value) in wire::attributes(bytes) {
        match kind {
            CTA_TUPLE_IP => {
                for (kind, value) in wire::attributes(value) {
                    match kind {
                        CTA_IP_V4_SRC => src = v4(value),
                        CTA_IP_V4_DST => dst = v4(value),
                        CTA_IP_V6_SRC => src = v6(value),
                        CTA_IP_V6_DST => dst = v6(value),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_PROTO => {
                for (kind, value) in wire::attributes(value) {
                    match kind {
                        CTA_PROTO_NUM => number = value.first().copied(),
                        CTA_PROTO_SRC_PORT => src_port = be16(value)?,
                        CTA_PROTO_DST_PORT => dst_port = be16(value)?,
                        CTA_PROTO_ICMP_ID | CTA_PROTO_ICMPV6_ID => {
                            (src_port, dst_port) = (be16(value)?, be16(value)?);
                        }
                        CTA_PROTO_ICMP_TYPE | CTA_PROTO_ICMPV6_TYPE => icmp_type = *value.first()?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let tuple = Tuple {
        src: src?,
        dst: dst?,
        src_port,
        dst_port,
    };
    Some((number?, icmp_type, tuple))
}

fn v4(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .ok()
        .map(|bytes| Ipv4Addr::from(bytes).into())
}

fn v6(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 16]>::try_from(bytes)
        .ok()
        .map(|bytes| Ipv6Addr::from(bytes).into())
}

fn be16(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_be_bytes)
}

fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

fn words(address: IpAddr) -> Address {
    let [high, low] = super::halves(address);
    Address { high, low }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::flows::FlowTable;
    use crate::datapath::sys::Mapping;
    use firewall_common::flow::{SET_WORDS, TIMEOUTS};
    use std::os::fd::AsFd;

    /// The host's address on the wire, and on the containers' bridge; a service address that the host has, too.
    const OWN: &str = "192.0.2.1";
    const BRIDGE: &str = "10.88.0.1";
    const SERVICE: &str = "10.96.0.10";
    const CONTAINER: &str = "10.88.0.2";
    const OTHER: &str = "10.88.0.3";
    const PEER: &str = "198.51.100.7";
    const CLIENT: &str = "203.0.113.9";
    const WIRE: u32 = 2;

    fn side(address: IpAddr) -> Side {
        match address.to_string().as_str() {
            OWN | BRIDGE | SERVICE | "2001:db8::1" => Side::Own,
            CONTAINER | OTHER | "fd00::2" => Side::Inside,
            "255.255.255.255" => Side::Nowhere,
            _ => Side::Outside(WIRE),
        }
    }

    fn ends(src: &str, src_port: u16, dst: &str, dst_port: u16) -> Tuple {
        Tuple {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            src_port,
            dst_port,
        }
    }

    fn entry(protocol: u8, original: Tuple, reply: Tuple) -> Entry {
        Entry {
            protocol,
            icmp_type: 0,
            original,
            reply,
            status: 0,
            tcp_state: TCP_CONNTRACK_ESTABLISHED,
            tcp_flags: [3, 3],
            left_s: 100,
        }
    }

    fn tcp(original: Tuple, reply: Tuple) -> Entry {
        entry(protocol::TCP, original, reply)
    }

    /// (local, local port, remote, remote port) of what is taken.
    fn taken(entry: &Entry) -> Option<(IpAddr, u16, IpAddr, u16)> {
        let Known { key, ifindex, .. } = entry.known(side)?;
        assert_eq!(ifindex, WIRE);
        assert_eq!(key.protocol(), entry.protocol);
        let address = |address: Address| {
            let bits = u128::from(address.high) << 64 | u128::from(address.low);
            match key.version() {
                4 => Ipv4Addr::from(bits as u32).into(),
                _ => IpAddr::from(Ipv6Addr::from(bits)),
            }
        };
        Some((
            address(key.local),
            key.local_port(),
            address(key.remote),
            key.remote_port(),
        ))
    }

    #[test]
    fn what_was_opened_from_here_is_taken_as_it_comes_in() {
        let known = |local: &str, local_port, remote: &str, remote_port| {
            Some((
                local.parse().unwrap(),
                local_port,
                remote.parse().unwrap(),
                remote_port,
            ))
        };
        // A container, routed and translated: with the port that the wire sees.
        let original = ends(CONTAINER, 40000, PEER, 443);
        let routed = tcp(original, ends(PEER, 443, CONTAINER, 40000));
        assert_eq!(taken(&routed), known(CONTAINER, 40000, PEER, 443));
        let masqueraded = tcp(original, ends(PEER, 443, OWN, 1024));
        assert_eq!(taken(&masqueraded), known(OWN, 1024, PEER, 443));
        // To an address that is not one of this host, of a pool.
        let pool = tcp(original, ends(PEER, 443, "192.0.2.77", 1024));
        assert_eq!(taken(&pool), known("192.0.2.77", 1024, PEER, 443));
        // Destination translated on the way out: a proxy, a service address, one that this host has included.
        for asked in ["10.96.0.1", SERVICE] {
            let translated = tcp(ends(CONTAINER, 40000, asked, 53), ends(PEER, 5353, OWN, 1024));
            assert_eq!(taken(&translated), known(OWN, 1024, PEER, 5353));
        }
        // The host itself.
        let own = entry(
            protocol::UDP,
            ends(OWN, 123, PEER, 123),
            ends(PEER, 123, OWN, 123),
        );
        assert_eq!(taken(&own), known(OWN, 123, PEER, 123));
        // A network behind a router that filters on all sides.
        let lan = tcp(ends(CLIENT, 40000, PEER, 443), ends(PEER, 443, OWN, 1024));
        assert_eq!(taken(&lan), known(OWN, 1024, PEER, 443));
        let v6 = tcp(
            ends("fd00::2", 40000, "2001:db8:9::7", 443),
            ends("2001:db8:9::7", 443, "2001:db8::1", 40000),
        );
        assert_eq!(taken(&v6), known("2001:db8::1", 40000, "2001:db8:9::7", 443));
    }

    #[test]
    fn what_came_in_is_never_taken() {
        for (what, original, reply) in [
            (
                "to the host",
                ends(CLIENT, 40000, OWN, 22),
                ends(OWN, 22, CLIENT, 40000),
            ),
            (
                "to a published port",
                ends(CLIENT, 40000, OWN, 8080),
                ends(CONTAINER, 80, CLIENT, 40000),
            ),
            (
                "to a published port, client hidden from the container",
                ends(CLIENT, 40000, OWN, 8080),
                ends(CONTAINER, 80, BRIDGE, 40000),
            ),
            (
                "to a published port of an address that is not on an interface",
                ends(CLIENT, 40000, "192.0.2.77", 8080),
                ends(CONTAINER, 80, CLIENT, 40000),
            ),
            (
                "to a routed container",
                ends(CLIENT, 40000, CONTAINER, 80),
                ends(CONTAINER, 80, CLIENT, 40000),
            ),
            (
                "to a routed container, client hidden from it",
                ends(CLIENT, 40000, CONTAINER, 80),
                ends(CONTAINER, 80, BRIDGE, 40000),
            ),
            (
                "to a port that is handed on to another host",
                ends(CLIENT, 40000, OWN, 8080),
                ends(PEER, 80, OWN, 40000),
            ),
            (
                "in transit",
                ends(CLIENT, 40000, PEER, 80),
                ends(PEER, 80, CLIENT, 40000),
            ),
            (
                "to itself",
                ends(CLIENT, 40000, "192.0.2.77", 80),
                ends(CLIENT, 80, OWN, 40000),
            ),
        ] {
            assert_eq!(taken(&tcp(original, reply)), None, "{what}");
            assert_eq!(taken(&entry(protocol::UDP, original, reply)), None, "{what}");
        }
    }

    #[test]
    fn what_stays_inside_is_not_taken() {
        for (original, reply) in [
            // Host and container, container and container, hairpin over a published port, to the host's resolver.
            (
                ends(BRIDGE, 40000, CONTAINER, 80),
                ends(CONTAINER, 80, BRIDGE, 40000),
            ),
            (
                ends(CONTAINER, 40000, OTHER, 80),
                ends(OTHER, 80, CONTAINER, 40000),
            ),
            (ends(CONTAINER, 40000, OWN, 8080), ends(OTHER, 80, BRIDGE, 40000)),
            (
                ends(CONTAINER, 40000, BRIDGE, 53),
                ends(BRIDGE, 53, CONTAINER, 40000),
            ),
            (
                ends(OWN, 68, "255.255.255.255", 67),
                ends("255.255.255.255", 67, OWN, 68),
            ),
        ] {
            assert_eq!(taken(&tcp(original, reply)), None);
        }
    }

    #[test]
    fn states_are_those_of_the_flow_table_and_the_dead_and_found_midway_are_left_out() {
        let opened = tcp(ends(CONTAINER, 40000, PEER, 443), ends(PEER, 443, OWN, 1024));
        let state = |change: &dyn Fn(&mut Entry)| {
            let mut entry = opened;
            change(&mut entry);
            entry.known(side).map(|known| known.state)
        };
        for (tcp_state, expected) in [
            (0, None),
            (1, Some(State::SynSent)),
            (2, Some(State::SynSent)),
            (3, Some(State::Established)),
            (4, Some(State::FinOut)),
            (5, Some(State::FinOut)),
            (6, Some(State::FinOut)),
            // TIME_WAIT, CLOSE, simultaneous open.
            (7, None),
            (8, None),
            (9, None),
        ] {
            assert_eq!(
                state(&|entry| entry.tcp_state = tcp_state),
                expected,
                "{tcp_state}"
            );
        }
        const LIBERAL: u8 = IP_CT_TCP_FLAG_BE_LIBERAL;
        assert_eq!(state(&|entry| entry.tcp_flags = [LIBERAL | 2; 2]), None);
        assert_eq!(
            state(&|entry| entry.tcp_flags = [LIBERAL, 0]),
            Some(State::Established)
        );
        let offloaded = |entry: &mut Entry| (entry.tcp_flags, entry.status) = ([LIBERAL; 2], IPS_OFFLOAD);
        assert_eq!(state(&offloaded), Some(State::Established));
        assert_eq!(state(&|entry| entry.status = IPS_DYING), None);
        for (number, icmp_type, status, expected) in [
            (protocol::UDP, 0, 0, Some(State::Asked)),
            (protocol::UDP, 0, IPS_ASSURED, Some(State::Conversation)),
            (protocol::ICMP, 8, 0, Some(State::Echo)),
            (protocol::ICMP, 13, 0, None),
            (protocol::ICMPV6, 128, 0, Some(State::Echo)),
            (protocol::ICMPV6, 139, 0, None),
            (protocol::SCTP, 0, 0, Some(State::Other)),
            (47, 0, 0, Some(State::Other)),
        ] {
            let change = |entry: &mut Entry| {
                (entry.protocol, entry.icmp_type, entry.status) = (number, icmp_type, status);
            };
            assert_eq!(state(&change), expected, "protocol {number}");
        }
    }

    #[test]
    fn ports_are_those_of_the_key_that_a_reply_has() {
        let entry = |number| entry(number, ends(CONTAINER, 7, PEER, 7), ends(PEER, 7, OWN, 9));
        for (number, ports) in [
            (protocol::UDP, (9, 7)),
            (protocol::SCTP, (9, 7)),
            // Conntrack gives the keys of a GRE tunnel.
            (47, (0, 0)),
        ] {
            let taken = taken(&entry(number)).map(|(_, local, _, remote)| (local, remote));
            assert_eq!(taken, Some(ports), "protocol {number}");
        }
        let mut echo = entry(protocol::ICMP);
        echo.icmp_type = ICMP_ECHO;
        assert_eq!(
            taken(&echo).map(|(_, local, _, remote)| (local, remote)),
            Some((9, 0))
        );
    }

    /// An attribute of netlink.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn nested(kind: u16, inside: &[Vec<u8>]) -> Vec<u8> {
        attribute(kind | 0x8000, &inside.concat())
    }

    #[test]
    fn an_entry_is_read_from_its_message_and_half_of_one_is_none() {
        let tuple = |kind, src: [u8; 4], dst: [u8; 4], ports: [u16; 2]| {
            nested(
                kind,
                &[
                    nested(
                        CTA_TUPLE_IP,
                        &[attribute(CTA_IP_V4_SRC, &src), attribute(CTA_IP_V4_DST, &dst)],
                    ),
                    nested(
                        CTA_TUPLE_PROTO,
                        &[
                            attribute(CTA_PROTO_NUM, &[6]),
                            attribute(CTA_PROTO_SRC_PORT, &ports[0].to_be_bytes()),
                            attribute(CTA_PROTO_DST_PORT, &ports[1].to_be_bytes()),
                        ],
                    ),
                ],
            )
        };
        let body = [
            vec![2, 0, 0, 0],
            tuple(CTA_TUPLE_ORIG, [10, 88, 0, 2], [198, 51, 100, 7], [40000, 443]),
            tuple(CTA_TUPLE_REPLY, [198, 51, 100, 7], [192, 0, 2, 1], [443, 1024]),
            attribute(CTA_STATUS, &0x18e_u32.to_be_bytes()),
            attribute(CTA_TIMEOUT, &431_999_u32.to_be_bytes()),
            nested(
                CTA_PROTOINFO,
                &[nested(
                    CTA_PROTOINFO_TCP,
                    &[
                        attribute(CTA_PROTOINFO_TCP_STATE, &[3]),
                        attribute(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &[0x23, 0]),
                        attribute(CTA_PROTOINFO_TCP_FLAGS_REPLY, &[0x27, 0]),
                    ],
                )],
            ),
        ]
        .concat();
        let read = |body: &[u8]| {
            let header = [((16 + body.len()) as u32).to_ne_bytes(), [0, 1, 2, 0]].concat();
            let bytes = [&header, &[0; 8][..], body].concat();
            wire::messages(&bytes).next().and_then(Entry::read)
        };
        let expected = Entry {
            status: 0x18e,
            tcp_flags: [0x23, 0x27],
            left_s: 431_999,
            ..tcp(ends(CONTAINER, 40000, PEER, 443), ends(PEER, 443, OWN, 1024))
        };
        assert_eq!(read(&body), Some(expected));
        for len in 0..body.len() {
            let half = read(&body[..len]);
            assert!(
                half.is_none_or(|half| (half.original, half.reply) == (expected.original, expected.reply))
            );
        }
    }

    #[test]
    fn a_known_flow_enters_the_table_as_egress_would_have_noted_it() {
        const NOW: u32 = 1_000_000;
        let file = tempfile::tempfile().unwrap();
        let len = 64 * SET_WORDS as usize * 8;
        file.set_len(len as u64).unwrap();
        let table = FlowTable::new(Mapping::new(file.as_fd(), len, true).unwrap());
        let table = &table;
        let at = |now_s| firewall_common::flow::Flows {
            table,
            seed: 7,
            timeouts: &TIMEOUTS,
            now_s,
        };
        let mut known = tcp(ends(CONTAINER, 1, PEER, 443), ends(PEER, 443, OWN, 1))
            .known(side)
            .unwrap();
        for (port, state, left_s) in [
            (1, State::Asked, 12),
            (2, State::Conversation, 100),
            (3, State::Echo, 5),
            (4, State::Other, 500),
            (5, State::SynSent, 60),
            (6, State::Established, 86_400),
            (7, State::FinOut, 50),
        ] {
            known.key.ports = known.key.ports & !0xffff | port;
            (known.state, known.left_s) = (state, left_s);
            assert_eq!(at(NOW).came_in(&known.key, 0), None);
            assert!(table.note(&known, 7, &TIMEOUTS, NOW));
            assert_eq!(at(NOW).came_in(&known.key, 0), Some(state));
            assert_eq!(at(NOW + left_s - 1).came_in(&known.key, 0), Some(state));
            assert_eq!(at(NOW + left_s).came_in(&known.key, 0), None, "{state:?}");
            let mut other = known.key;
            other.remote.low += 1;
            assert_eq!(at(NOW).came_in(&other, 0), None);
        }
        // More than the table gives is not to be had.
        (known.state, known.left_s) = (State::Established, u32::MAX);
        known.key.ports += 100;
        assert!(table.note(&known, 7, &TIMEOUTS, NOW));
        let limit = NOW + TIMEOUTS[State::Established as usize];
        assert_eq!(at(limit - 1).came_in(&known.key, 0), Some(State::Established));
        assert_eq!(at(limit).came_in(&known.key, 0), None);
        // What egress has seen meanwhile is newer.
        at(NOW + 5).went_out(&known.key, firewall_common::flow::Sends::Fin, 3);
        known.state = State::Established;
        assert!(!table.note(&known, 7, &TIMEOUTS, NOW + 5));
        assert_eq!(at(NOW + 5).came_in(&known.key, 0), Some(State::FinOut));
    }

    #[test]
    fn what_egress_would_not_have_noted_is_left_out() {
        let image = |text: &str| {
            let loaded = crate::policy::file::parse(text, Path::new("policy.toml"), 0).unwrap();
            crate::policy::compile::compile(&loaded.policy).unwrap().image
        };
        let known = |number, remote: &str, remote_port, local_port| {
            entry(
                number,
                ends(CONTAINER, 1, remote, remote_port),
                ends(remote, remote_port, OWN, local_port),
            )
            .known(side)
            .unwrap()
        };
        let plain =
            image("version = 1\n[[service]]\nname = \"dns\"\nports = [\"tcp/53\", \"udp/53\"]\nallow = []\n");
        for (number, local_port, noted) in [
            (protocol::UDP, 53, false),
            (protocol::UDP, 54, true),
            // Only TCP tells what was opened from what was answered.
            (protocol::TCP, 53, true),
            (protocol::SCTP, 53, true),
        ] {
            let known = known(number, PEER, 443, local_port);
            assert_eq!(
                is_noted(&plain, &known),
                Some(noted),
                "protocol {number} from {local_port}"
            );
        }
        let rules = image(
            "version = 1\n[defaults]\negress = \"deny\"\n[[egress]]\nname = \"web\"\nto = [\"198.51.100.0/24\"]\n\
             ports = [\"tcp/443\"]\n",
        );
        for (number, remote, remote_port, noted) in [
            (protocol::TCP, PEER, 443, true),
            (protocol::TCP, PEER, 80, false),
            (protocol::TCP, CLIENT, 443, false),
            (protocol::UDP, PEER, 443, false),
        ] {
            let known = known(number, remote, remote_port, 1024);
            assert_eq!(
                is_noted(&rules, &known),
                Some(noted),
                "protocol {number} to {remote}"
            );
        }
        assert_eq!(is_noted(&[], &known(protocol::TCP, PEER, 443, 1024)), None);
    }

    #[test]
    fn asking_this_kernel_gives_no_error() {
        under_way(|_| true, &[]).unwrap();
    }
}
