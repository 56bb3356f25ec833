//! The interfaces of the network namespace: a list of them, and the changes to them as they happen.
//!
//! A namespace is that of the thread that calls: sockets stay in it. Which interfaces are to be filtered is the
//! agent's decision.

use super::wire::{self, Connection, Message, NetlinkError, Request};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;

const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const RTMSG: usize = 12;
const ARPHRD_ETHER: u16 = 1;
/// PPP, raw IP of modems, IPIP, IPv6 tunnels, SIT, GRE, GRE over IPv6, and what says "none": tun, wireguard, xfrm.
const ARPHRD_BARE: [u16; 8] = [512, 519, 768, 769, 776, 778, 823, 0xfffe];

/// How the frames of a device begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Headers {
    Ethernet,
    /// With the IP header.
    None,
    Unknown,
}

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub index: u32,
    /// Has a driver of its own rather than a virtual kind, and is not the loopback.
    pub physical: bool,
    /// Frames begin with an Ethernet header.
    pub ethernet: bool,
    pub up: bool,
    pub loopback: bool,
    /// `ARPHRD_*`.
    pub hardware: u16,
    /// `veth`, `bridge`, `vlan`, ...; `None` for a device with a driver of its own.
    pub kind: Option<String>,
    /// The bond, bridge, team or VRF that it is a member of.
    pub master: Option<u32>,
    /// The interface that it stands on (or, of a veth, its other end), if that is in this namespace.
    pub parent: Option<u32>,
    pub mtu: u32,
    /// Own addresses on it. Empty in a [`Change::Link`], which does not carry them.
    pub addresses: Vec<IpAddr>,
}

impl Interface {
    pub fn headers(&self) -> Headers {
        match self.hardware {
            _ if self.ethernet => Headers::Ethernet,
            bare if ARPHRD_BARE.contains(&bare) => Headers::None,
            _ => Headers::Unknown,
        }
    }
}

/// What happened to the interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Appeared, or changed its name, state, MTU or XDP program.
    Link(Interface),
    /// Was removed, or moved to another namespace.
    Gone {
        index: u32,
        name: String,
    },
    AddressAdded {
        index: u32,
        address: IpAddr,
    },
    AddressRemoved {
        index: u32,
        address: IpAddr,
    },
    /// Changes came faster than they were read and some are lost: list anew.
    Missed,
}

/// All interfaces with their addresses, by index.
pub fn interfaces() -> Result<Vec<Interface>, NetlinkError> {
    let connection = Connection::open(NETLINK_ROUTE)?;
    let links = connection.dump(
        "listing the interfaces",
        || Request::new(RTM_GETLINK, wire::NLM_F_DUMP, &[0; IFINFOMSG]),
        |message| link(message).map(|(interface, _)| interface),
    )?;
    let addresses = connection.dump(
        "listing the addresses",
        || Request::new(RTM_GETADDR, wire::NLM_F_DUMP, &[0; IFADDRMSG]),
        address,
    )?;
    let mut by_index: HashMap<u32, Vec<IpAddr>> = HashMap::new();
    for (index, address) in addresses {
        by_index.entry(index).or_default().push(address);
    }
    let mut links: Vec<Interface> = links
        .into_iter()
        .map(|interface| Interface {
            addresses: by_index.remove(&interface.index).unwrap_or_default(),
            ..interface
        })
        .collect();
    links.sort_by_key(|interface| interface.index);
    Ok(links)
}

/// The XDP programs on an interface, by id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpPrograms {
    pub native: Option<u32>,
    pub generic: Option<u32>,
    /// Whichever mode.
    pub any: Option<u32>,
}

/// The routes of this host, asked for one address at a time.
pub(super) struct Routes {
    connection: Connection,
    known: HashMap<IpAddr, Option<(u32, bool)>>,
}

impl Routes {
    pub fn open() -> Result<Routes, NetlinkError> {
        Ok(Routes {
            connection: Connection::open(NETLINK_ROUTE)?,
            known: HashMap::new(),
        })
    }

    /// The interface that packets to an address leave by, and whether it is this host's own. `None`: none leads there, or to
    /// many at once.
    pub fn to(&mut self, address: IpAddr) -> Option<(u32, bool)> {
        let connection = &self.connection;
        *self
            .known
            .entry(address)
            .or_insert_with(|| route(connection, address))
    }
}

/// A refusal says that there is no route.
fn route(connection: &Connection, address: IpAddr) -> Option<(u32, bool)> {
    let mut fixed = [0; RTMSG];
    let request = |fixed: [u8; RTMSG], address: &[u8]| {
        Request::new(RTM_GETROUTE, wire::NLM_F_ACK, &fixed).attribute(RTA_DST, address)
    };
    let request = match address {
        IpAddr::V4(address) => {
            (fixed[0], fixed[1]) = (libc::AF_INET as u8, 32);
            request(fixed, &address.octets())
        }
        IpAddr::V6(address) => {
            (fixed[0], fixed[1]) = (libc::AF_INET6 as u8, 128);
            request(fixed, &address.octets())
        }
    };
    let mut found = None;
    let answer = |message: Message<'_>| {
        let kind = message.body.get(7).copied();
        let local = match kind {
            Some(RTN_LOCAL) => true,
            Some(RTN_UNICAST) => false,
            _ => return,
        };
        if message.kind == RTM_NEWROUTE {
            let interface = message.attributes(RTMSG).find(|(kind, _)| *kind == RTA_OIF);
            found = interface
                .and_then(|(_, index)| wire::u32_at(index, 0))
                .map(|index| (index, local));
        }
    };
    connection.call("asking for a route", request, answer).ok()?;
    found
}

/// What the interface itself says of its XDP programs; `None` if there is no such interface.
pub(super) fn xdp_programs(ifindex: u32) -> Result<Option<XdpPrograms>, NetlinkError> {
    let connection = Connection::open(NETLINK_ROUTE)?;
    let mut found = None;
    let request = Request::new(RTM_GETLINK, wire::NLM_F_ACK, &ifinfomsg(ifindex));
    let result = connection.call(
        "asking for the XDP programs of an interface",
        request,
        |message| {
            found = link(message).map(|(_, programs)| programs);
        },
    );
    match result {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(found),
    }
}

/// The changes from the moment it was made on: make it before listing the interfaces, so that none is lost.
pub struct Watch {
    socket: TokioSocket,
    waiting: VecDeque<Change>,
}

impl Watch {
    /// Needs a tokio runtime.
    pub fn new() -> io::Result<Watch> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        // A burst of a few thousand changes; more is a `Missed`, so a refusal only makes that likelier.
        let _ = socket.socket_ref().set_rx_buf_sz(1 << 20);
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        for group in [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR] {
            socket.socket_ref().add_membership(group)?;
        }
        Ok(Watch {
            socket,
            waiting: VecDeque::new(),
        })
    }

    /// The next change. Safe to drop while waiting.
    ///
    /// # Errors
    /// If the socket is broken; a lost change is not an error but [`Change::Missed`].
    pub async fn next(&mut self) -> io::Result<Change> {
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return Ok(change);
            }
            match self.socket.recv_from_full().await {
                Ok((datagram, _)) => self.waiting.extend(wire::messages(&datagram).filter_map(change)),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Change::Missed),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn change(message: Message<'_>) -> Option<Change> {
    match message.kind {
        RTM_NEWLINK => link(message).map(|(interface, _)| Change::Link(interface)),
        RTM_DELLINK => link(message).map(|(interface, _)| Change::Gone {
            index: interface.index,
            name: interface.name,
        }),
        RTM_NEWADDR => address(message).map(|(index, address)| Change::AddressAdded { index, address }),
        RTM_DELADDR => address(message).map(|(index, address)| Change::AddressRemoved { index, address }),
        _ => None,
    }
}

/// `struct ifinfomsg` that names an interface.
pub(super) fn ifinfomsg(ifindex: u32) -> [u8; IFINFOMSG] {
    let mut bytes = [0; IFINFOMSG];
    bytes[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    bytes
}

fn link(message: Message<'_>) -> Option<(Interface, XdpPrograms)> {
    // Of another family it is news from a bridge about its port: a port that leaves is a RTM_DELLINK of AF_BRIDGE.
    if message.body.first()? != &(libc::AF_UNSPEC as u8) {
        return None;
    }
    let hardware = wire::u16_at(message.body, 2)?;
    let index = wire::u32_at(message.body, 4)?;
    let flags = wire::u32_at(message.body, 8)?;
    let mut interface = Interface {
        index,
        hardware,
        ethernet: hardware == ARPHRD_ETHER,
        up: flags & libc::IFF_UP as u32 != 0,
        loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
        ..Interface::default()
    };
    let mut programs = XdpPrograms::default();
    let mut parent_elsewhere = false;
    for (kind, value) in message.attributes(IFINFOMSG) {
        match kind {
            IFLA_IFNAME => interface.name = wire::text(value),
            IFLA_MTU => interface.mtu = wire::u32_at(value, 0)?,
            IFLA_LINK => {
                interface.parent = wire::u32_at(value, 0).filter(|parent| ![0, index].contains(parent))
            }
            IFLA_LINK_NETNSID => parent_elsewhere = true,
            IFLA_MASTER => interface.master = wire::u32_at(value, 0).filter(|master| *master != 0),
            IFLA_LINKINFO => {
                interface.kind = wire::attributes(value)
                    .find(|(kind, _)| *kind == IFLA_INFO_KIND)
                    .map(|(_, kind)| wire::text(kind));
            }
            IFLA_XDP => {
                for (kind, value) in wire::attributes(value) {
                    let id = wire::u32_at(value, 0).filter(|id| *id != 0);
                    match kind {
                        IFLA_XDP_PROG_ID => programs.any = id,
                        IFLA_XDP_DRV_PROG_ID => programs.native = id,
                        IFLA_XDP_SKB_PROG_ID => programs.generic = id,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    programs.any = programs.any.or(programs.native).or(programs.generic);
    if parent_elsewhere {
        interface.parent = None;
    }
    interface.physical = !interface.loopback && interface.kind.is_none();
    Some((interface, programs))
}

fn address(message: Message<'_>) -> Option<(u32, IpAddr)> {
    let family = i32::from(*message.body.first()?);
    let index = wire::u32_at(message.body, 4)?;
    let (mut local, mut remote) = (None, None);
    for (kind, value) in message.attributes(IFADDRMSG) {
        let address = match family {
            libc::AF_INET => <[u8; 4]>::try_from(value)
                .ok()
                .map(|bytes| Ipv4Addr::from(bytes).into()),
            libc::AF_INET6 => <[u8; 16]>::try_from(value)
                .ok()
                .map(|bytes| Ipv6Addr::from(bytes).into()),
            _ => None,
        };
        match kind {
            IFA_LOCAL => local = address,
            IFA_ADDRESS => remote = address,
            _ => {}
        }
    }
    // On a point-to-point link `IFA_ADDRESS` is the peer's and `IFA_LOCAL` one's own; IPv6 mostly has only the former.
    Some((index, local.or(remote)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_the_loopback_with_its_address() {
        let list = interfaces().unwrap();
        let loopback = list.iter().find(|interface| interface.loopback).unwrap();
        assert_eq!(loopback.name, "lo");
        assert!(!loopback.physical && !loopback.ethernet);
        assert!(!loopback.up || loopback.addresses.contains(&Ipv4Addr::LOCALHOST.into()));
    }

    #[test]
    fn the_loopback_is_this_hosts_own_and_groups_are_nobodys() {
        let loopback = interfaces()
            .unwrap()
            .into_iter()
            .find(|one| one.loopback)
            .unwrap();
        let mut routes = Routes::open().unwrap();
        for _ in 0..2 {
            if loopback.up {
                assert_eq!(
                    routes.to(Ipv4Addr::LOCALHOST.into()),
                    Some((loopback.index, true))
                );
            }
            assert_eq!(routes.to(Ipv4Addr::BROADCAST.into()), None);
        }
    }

    #[test]
    fn no_interface_has_no_xdp_programs() {
        assert_eq!(xdp_programs(0x7fff_fff0).unwrap(), None);
    }
}
