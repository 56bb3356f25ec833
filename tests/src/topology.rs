//! Stages larger than [`Lab`]: a container behind the node, and a path with a narrow link in the middle.

use crate::agent::PREFIX;
use crate::lab::{FRIEND, FRIEND6, Lab, NODE, NODE_B, NODE6, NODE6_B, STRANGER, STRANGER6};
use crate::netns::{Namespace, link};
use crate::program::nft;
use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const CONTAINER: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
pub const CONTAINER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 2);
const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const BRIDGE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 1);

/// The usual stage, and a namespace behind the node that stands for a container. Only the uplinks are filtered.
#[derive(Debug)]
pub struct Containers {
    pub lab: Lab,
    pub container: Namespace,
}

impl Containers {
    /// The container's address is its own on the wire: friend and stranger have a route to it.
    ///
    /// # Errors
    /// Needs root.
    pub fn routed() -> Result<Containers> {
        let lab = Lab::new()?;
        let container = Namespace::unique(PREFIX, "container")?;
        link((&lab.node, "pod0"), (&container, "eth0"), 1500)?;
        lab.node.address("pod0", &format!("{BRIDGE}/24"))?;
        lab.node.address("pod0", &format!("{BRIDGE6}/64"))?;
        container.address("eth0", &format!("{CONTAINER}/24"))?;
        container.address("eth0", &format!("{CONTAINER6}/64"))?;
        container.ip(&format!("route add default via {BRIDGE}"))?;
        container.ip(&format!("-6 route add default via {BRIDGE6}"))?;
        for (peer, v4, v6) in [(&lab.friend, NODE, NODE6), (&lab.stranger, NODE_B, NODE6_B)] {
            peer.ip(&format!("route add default via {v4}"))?;
            peer.ip(&format!("-6 route add default via {v6}"))?;
        }
        forward(&lab.node)?;
        Ok(Containers { lab, container })
    }

    /// The container goes out with the node's address (masquerade).
    ///
    /// # Errors
    /// Needs root and nftables.
    pub fn masqueraded() -> Result<Containers> {
        let stage = Containers::routed()?;
        for family in ["ip", "ip6"] {
            nft(
                &stage.lab.node,
                &format!(
                    "table {family} nat_out {{ chain post {{ type nat hook postrouting priority 100;\n\
                     oifname \"eth*\" masquerade\n}}\n}}\n"
                ),
            )?;
        }
        Ok(stage)
    }

    /// Publishes a port of the node: what comes there goes to another port of the container (DNAT), TCP and UDP.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn publish(&self, port: u16, inner: u16) -> Result<()> {
        for (family, to) in [
            ("ip", format!("{CONTAINER}:{inner}")),
            ("ip6", format!("[{CONTAINER6}]:{inner}")),
        ] {
            nft(
                &self.lab.node,
                &format!(
                    "table {family} nat_in {{ chain pre {{ type nat hook prerouting priority -100;\n\
                     fib daddr type local tcp dport {port} dnat to {to}\n\
                     fib daddr type local udp dport {port} dnat to {to}\n}}\n}}\n"
                ),
            )?;
        }
        Ok(())
    }
}

/// Addresses by family: (container, node, friend, stranger).
pub const BEHIND: [(IpAddr, IpAddr, IpAddr, IpAddr); 2] = [
    (
        IpAddr::V4(CONTAINER),
        IpAddr::V4(NODE),
        IpAddr::V4(FRIEND),
        IpAddr::V4(STRANGER),
    ),
    (
        IpAddr::V6(CONTAINER6),
        IpAddr::V6(NODE6),
        IpAddr::V6(FRIEND6),
        IpAddr::V6(STRANGER6),
    ),
];

/// The largest packet that the link in the middle of a [`NarrowPath`] takes.
pub const NARROW: u32 = 1300;

/// node - near router - narrow link - far router - far end. Both ends believe in 1500 bytes until a router tells.
#[derive(Debug)]
pub struct NarrowPath {
    pub node: Namespace,
    pub near: Namespace,
    pub far_router: Namespace,
    pub far: Namespace,
}

/// Addresses by family: (node, far end).
pub const ENDS: [(IpAddr, IpAddr); 2] = [
    (
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2)),
    ),
    (
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 2)),
    ),
];

impl NarrowPath {
    /// # Errors
    /// Needs root.
    pub fn new() -> Result<NarrowPath> {
        crate::lab::prepare()?;
        let path = NarrowPath {
            node: Namespace::unique(PREFIX, "node")?,
            near: Namespace::unique(PREFIX, "near")?,
            far_router: Namespace::unique(PREFIX, "router")?,
            far: Namespace::unique(PREFIX, "far")?,
        };
        let NarrowPath {
            node,
            near,
            far_router,
            far,
        } = &path;
        link((node, "eth0"), (near, "eth0"), 1500)?;
        link((near, "eth1"), (far_router, "eth0"), NARROW)?;
        link((far_router, "eth1"), (far, "eth0"), 1500)?;
        for (namespace, interface, v4, v6) in [
            (node, "eth0", "192.0.2.1/24", "2001:db8:1::1/64"),
            (near, "eth0", "192.0.2.2/24", "2001:db8:1::2/64"),
            (near, "eth1", "198.51.100.1/24", "2001:db8:2::1/64"),
            (far_router, "eth0", "198.51.100.2/24", "2001:db8:2::2/64"),
            (far_router, "eth1", "203.0.113.1/24", "2001:db8:3::1/64"),
            (far, "eth0", "203.0.113.2/24", "2001:db8:3::2/64"),
        ] {
            namespace.address(interface, v4)?;
            namespace.address(interface, v6)?;
        }
        for (namespace, v4, v6) in [
            (node, "192.0.2.2", "2001:db8:1::2"),
            (near, "198.51.100.2", "2001:db8:2::2"),
            (far_router, "198.51.100.1", "2001:db8:2::1"),
            (far, "203.0.113.1", "2001:db8:3::1"),
        ] {
            namespace.ip(&format!("route add default via {v4}"))?;
            namespace.ip(&format!("-6 route add default via {v6}"))?;
        }
        forward(near)?;
        forward(far_router)?;
        Ok(path)
    }
}

/// Makes a router of the namespace.
fn forward(namespace: &Namespace) -> Result<()> {
    namespace.sysctl("net/ipv4/ip_forward", "1")?;
    namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    // Every error is told, however many there are: tests count on each.
    namespace.sysctl("net/ipv4/icmp_ratelimit", "0")?;
    namespace.sysctl("net/ipv6/icmp/ratelimit", "0")
}
