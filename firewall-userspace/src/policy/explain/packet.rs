//! A packet as people describe it: `tcp 10.20.3.4 -> 8443`, `icmp echo from 2001:db8::7`, `out tcp -> 198.51.100.7:443`.
//!
//! What is left out is filled in as a usual packet has it: an unprivileged source port, a SYN, an echo request.
//! [`PacketSpec`] prints with everything filled in, so that what was assumed can be seen.

mod parse;

pub use parse::parse;

use crate::policy::icmp;
use crate::simulate::Transport;
use firewall_common::packet::tcp;
use firewall_common::verdict::Direction;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One packet, all filled in but the address of this host, which is the host's to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketSpec {
    pub direction: Direction,
    /// The other end: the source of what comes in, the destination of what leaves.
    pub peer: IpAddr,
    /// This end.
    pub own: Option<IpAddr>,
    pub transport: Transport,
    /// Outer tag first, two at most.
    pub vlan: Vec<u16>,
    /// TTL or hop limit, if not the usual one.
    pub ttl: Option<u8>,
}

/// Why a text describes no packet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PacketError {
    message: String,
}

/// Flags of TCP by name, in the order they are shown.
const FLAGS: [(&str, u8); 8] = [
    ("syn", tcp::SYN),
    ("ack", tcp::ACK),
    ("fin", tcp::FIN),
    ("rst", tcp::RST),
    ("psh", tcp::PSH),
    ("urg", tcp::URG),
    ("ece", 64),
    ("cwr", 128),
];

impl PacketSpec {
    /// The address of this host: as given, or of `own` one of the right family and scope, or one for documentation.
    pub fn own(&self, own: impl IntoIterator<Item = IpAddr>) -> IpAddr {
        // A neighbour that sends from its link-local address sends to one.
        let on_link = link_local_v6(self.peer);
        let mine = || {
            own.into_iter()
                .filter(|address| address.is_ipv4() == self.is_ipv4() && link_local_v6(*address) == on_link)
                .min()
        };
        self.own.or_else(mine).unwrap_or(match self.peer {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            IpAddr::V6(peer) if on_link => {
                let [one, two] = [1, 2].map(|last| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last));
                IpAddr::V6(if peer == one { two } else { one })
            }
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        })
    }

    pub fn is_ipv4(&self) -> bool {
        self.peer.is_ipv4()
    }

    /// Source and destination.
    pub fn ends(&self) -> (IpAddr, IpAddr) {
        let own = self.own([]);
        match self.direction {
            Direction::Ingress => (self.peer, own),
            Direction::Egress => (own, self.peer),
        }
    }

    /// TTL or hop limit: as given, or what the protocol demands, or the usual one.
    pub fn hop_limit(&self) -> u8 {
        let usual = match self.transport {
            // RFC 4861 and RFC 3810: proof that the packet crossed no router.
            Transport::Icmp { icmp_type, .. } if !self.is_ipv4() => match icmp_type {
                133..=137 => 255,
                130..=132 | 143 => 1,
                _ => 64,
            },
            _ => 64,
        };
        self.ttl.unwrap_or(usual)
    }

    /// `SYN`, `SYN,ACK`; empty if the packet is not TCP.
    pub fn flags(&self) -> String {
        let Transport::Tcp { flags, .. } = self.transport else {
            return String::new();
        };
        let names = FLAGS
            .iter()
            .filter(|(_, bit)| flags & bit != 0)
            .map(|(name, _)| name.to_uppercase());
        let names: Vec<String> = names.collect();
        if names.is_empty() {
            "no flags".to_owned()
        } else {
            names.join(",")
        }
    }

    /// `echo`, or the number.
    pub fn icmp_name(&self) -> String {
        let Transport::Icmp { icmp_type, .. } = self.transport else {
            return String::new();
        };
        let name = if self.is_ipv4() {
            icmp::v4_name(icmp_type)
        } else {
            icmp::v6_name(icmp_type)
        };
        name.map_or_else(|| icmp_type.to_string(), str::to_owned)
    }
}

fn link_local_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// With everything filled in, as [`parse()`] reads it.
impl fmt::Display for PacketSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |address: IpAddr, port: u16| match address {
            IpAddr::V4(v4) => format!("{v4}:{port}"),
            IpAddr::V6(v6) => format!("[{v6}]:{port}"),
        };
        let (src, dst) = self.ends();
        if self.direction == Direction::Egress {
            f.write_str("out ")?;
        }
        match self.transport {
            Transport::Tcp {
                src_port,
                dst_port,
                flags,
            } => {
                write!(f, "tcp {} -> {}", end(src, src_port), end(dst, dst_port))?;
                let names: Vec<&str> = FLAGS
                    .iter()
                    .filter(|(_, bit)| flags & bit != 0)
                    .map(|row| row.0)
                    .collect();
                write!(
                    f,
                    " flags {}",
                    if names.is_empty() {
                        "none".to_owned()
                    } else {
                        names.join(",")
                    }
                )?;
            }
            Transport::Udp { src_port, dst_port } => {
                write!(f, "udp {} -> {}", end(src, src_port), end(dst, dst_port))?;
            }
            Transport::Sctp { src_port, dst_port } => {
                write!(f, "sctp {} -> {}", end(src, src_port), end(dst, dst_port))?;
            }
            Transport::Icmp { code, .. } => {
                let protocol = if self.is_ipv4() { "icmp" } else { "icmpv6" };
                write!(f, "{protocol} {} from {src} -> {dst}", self.icmp_name())?;
                if code != 0 {
                    write!(f, " code {code}")?;
                }
            }
            Transport::Raw(number) => write!(f, "proto {number} from {src} -> {dst}")?,
        }
        if !self.vlan.is_empty() {
            let tags: Vec<String> = self.vlan.iter().map(u16::to_string).collect();
            write!(f, " vlan {}", tags.join(","))?;
        }
        if let Some(ttl) = self.ttl {
            write!(f, " ttl {ttl}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
