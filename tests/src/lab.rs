//! The usual stage: a node with two interfaces, a friend on one and a stranger on the other, IPv4 and IPv6.

use crate::agent::{self, Agent, PREFIX};
use crate::netns::{Namespace, link};
use crate::traffic::{self, Echo};
use anyhow::{Result, ensure};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const FRIEND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const NODE_B: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
pub const FRIEND6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
pub const NODE6_B: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
pub const STRANGER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2);

/// The node's interface to the friend, and the one to the stranger.
pub const INTERFACES: [&str; 2] = ["eth0", "eth1"];

/// The addresses of one family.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub node: IpAddr,
    pub friend: IpAddr,
    /// The node's address on the stranger's side.
    pub node_b: IpAddr,
    pub stranger: IpAddr,
}

/// IPv4 and IPv6.
pub const FAMILIES: [Family; 2] = [
    Family {
        node: IpAddr::V4(NODE),
        friend: IpAddr::V4(FRIEND),
        node_b: IpAddr::V4(NODE_B),
        stranger: IpAddr::V4(STRANGER),
    },
    Family {
        node: IpAddr::V6(NODE6),
        friend: IpAddr::V6(FRIEND6),
        node_b: IpAddr::V6(NODE6_B),
        stranger: IpAddr::V6(STRANGER6),
    },
];

/// Three namespaces, linked. The peers' own interface is `eth0`.
#[derive(Debug)]
pub struct Lab {
    pub node: Namespace,
    pub friend: Namespace,
    pub stranger: Namespace,
}

impl Lab {
    /// # Errors
    /// Needs root.
    pub fn new() -> Result<Lab> {
        Lab::with_mtu(1500)
    }

    /// # Errors
    /// Needs root.
    pub fn with_mtu(mtu: u32) -> Result<Lab> {
        prepare()?;
        let lab = Lab {
            node: Namespace::unique(PREFIX, "node")?,
            friend: Namespace::unique(PREFIX, "friend")?,
            stranger: Namespace::unique(PREFIX, "stranger")?,
        };
        lab.link_friend(mtu)?;
        link((&lab.node, INTERFACES[1]), (&lab.stranger, "eth0"), mtu)?;
        lab.node.address(INTERFACES[1], &format!("{NODE_B}/24"))?;
        lab.node.address(INTERFACES[1], &format!("{NODE6_B}/64"))?;
        lab.stranger.address("eth0", &format!("{STRANGER}/24"))?;
        lab.stranger.address("eth0", &format!("{STRANGER6}/64"))?;
        Ok(lab)
    }

    /// Makes the link between node and friend; again after it was deleted.
    ///
    /// # Errors
    /// It is there already.
    pub fn link_friend(&self, mtu: u32) -> Result<()> {
        link((&self.node, INTERFACES[0]), (&self.friend, "eth0"), mtu)?;
        self.node.address(INTERFACES[0], &format!("{NODE}/24"))?;
        self.node.address(INTERFACES[0], &format!("{NODE6}/64"))?;
        self.friend.address("eth0", &format!("{FRIEND}/24"))?;
        self.friend.address("eth0", &format!("{FRIEND6}/64"))
    }

    /// Starts an agent on both interfaces of the node and waits until it is ready.
    ///
    /// # Errors
    /// See [`Agent::start`].
    pub fn agent(&self, policy: &str) -> Result<Agent> {
        Agent::start(&self.node, &INTERFACES, policy)
    }

    /// [`Lab::agent`] with more flags.
    ///
    /// # Errors
    /// See [`Agent::start`].
    pub fn agent_with(&self, policy: &str, flags: &[&str]) -> Result<Agent> {
        Agent::start_with(&self.node, &INTERFACES, policy, flags)
    }

    /// Echo servers of the node on a port, TCP and UDP, at each of its four addresses.
    ///
    /// # Errors
    /// The port is taken.
    pub fn serve(&self, port: u16) -> Result<Vec<Echo>> {
        let addresses: [IpAddr; 4] = [NODE.into(), NODE_B.into(), NODE6.into(), NODE6_B.into()];
        addresses
            .into_iter()
            .map(|address| Echo::start(&self.node, SocketAddr::new(address, port)))
            .collect()
    }

    /// What of the node's port the friend reaches: (TCP 4, UDP 4, TCP 6, UDP 6).
    pub fn friend_reaches(&self, port: u16) -> [bool; 4] {
        reaches(&self.friend, NODE.into(), NODE6.into(), port)
    }

    /// What of the node's port the stranger reaches.
    pub fn stranger_reaches(&self, port: u16) -> [bool; 4] {
        reaches(&self.stranger, NODE_B.into(), NODE6_B.into(), port)
    }
}

/// Makes room for a stage: what killed tests left goes.
///
/// # Errors
/// This is not root.
pub fn prepare() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "these tests make network namespaces: run them as root"
    );
    agent::sweep();
    Namespace::sweep(PREFIX);
    Ok(())
}

/// Nothing of it.
pub const NOTHING: [bool; 4] = [false; 4];
/// TCP and UDP, over IPv4 and IPv6.
pub const EVERYTHING: [bool; 4] = [true; 4];

/// What of a port the namespace reaches at these addresses: (TCP 4, UDP 4, TCP 6, UDP 6).
pub fn reaches(from: &Namespace, v4: IpAddr, v6: IpAddr, port: u16) -> [bool; 4] {
    let (v4, v6) = (SocketAddr::new(v4, port), SocketAddr::new(v6, port));
    traffic::at_once([
        &|| traffic::tcp_reaches(from, v4),
        &|| traffic::udp_reaches(from, v4),
        &|| traffic::tcp_reaches(from, v6),
        &|| traffic::udp_reaches(from, v6),
    ])
}
