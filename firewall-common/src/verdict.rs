//! Every way a packet can end: a [`Verdict`], and the [`Reason`] for it.
//!
//! A reason has a stable number, never reused: it is a counter index, a word in the event stream and a label
//! value. Reasons below [`Reason::FIRST_DROP`] pass, the others drop.

/// What happens to the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Pass,
    Drop,
}

/// Which way a packet goes, seen from the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    #[default]
    Ingress = 0,
    Egress = 1,
}

impl Direction {
    pub const ALL: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    /// The word people read.
    pub const fn word(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }

    pub const fn from_number(number: u8) -> Option<Direction> {
        match number {
            0 => Some(Direction::Ingress),
            1 => Some(Direction::Egress),
            _ => None,
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $word:literal;)*) => {
        /// Why a packet ended as it did.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name = $number,)* }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Reason] = &[$(Reason::$name),*];

            /// The word people read: in metrics, events and tables.
            pub const fn word(self) -> &'static str {
                match self { $(Reason::$name => $word,)* }
            }

            /// The reason with this number, if there is one.
            pub const fn from_number(number: u8) -> Option<Reason> {
                match number { $($number => Some(Reason::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// A rule of the service allows the source.
    Allowed = 1, "allowed";
    /// Answers something that this host opened.
    Reply = 2, "reply";
    /// No service names the port and the policy's default is to allow.
    DefaultAllow = 3, "default-allow";
    /// ARP.
    Arp = 4, "arp";
    /// IPv6 neighbour discovery with hop limit 255 (RFC 4861).
    NeighbourDiscovery = 5, "neighbour-discovery";
    /// Multicast listener discovery from the link (RFC 3810).
    Mld = 6, "mld";
    /// An answer to the DHCP or DHCPv6 client of this host.
    DhcpClient = 7, "dhcp-client";
    /// LACP, LLDP or EAPOL, as configured.
    LinkControl = 8, "link-control";
    /// The operator's failsafe, which no policy closes.
    Failsafe = 9, "failsafe";
    /// A rule for what leaves allows the destination.
    EgressAllowed = 10, "egress-allowed";
    /// Leaves from a service to a peer that it allows.
    Answer = 11, "answer";
    /// An ICMP error about something that is allowed: a flow that the host opened, or a service's connection.
    Related = 12, "related";

    /// The policy's deny list names the source.
    Denied = 16, "denied";
    /// The service's deny list names the source.
    ServiceDenied = 17, "service-denied";
    /// A service has the port, but no rule of it allows the source.
    NotAllowed = 18, "not-allowed";
    /// No service names the port or protocol and the policy's default is to deny.
    Closed = 19, "closed";
    /// An ethertype that is neither IP nor essential, under default deny.
    EtherType = 20, "ethertype";
    /// An 802.3 LLC or SNAP frame, which no policy can see into.
    Llc = 21, "llc";
    /// A source address that cannot come from the wire: own, loopback, multicast, broadcast, unspecified.
    Martian = 22, "martian";
    /// A fragment other than the first.
    Fragment = 23, "fragment";
    /// A first fragment too short to hold its ports (RFC 7112, RFC 1858).
    FragmentShort = 24, "fragment-short";
    /// An ICMP error that no service names.
    IcmpError = 25, "icmp-error";
    /// A rule for what leaves denies the destination.
    EgressDenied = 26, "egress-denied";
    /// No rule for what leaves allows the destination and the policy's default for egress is to deny.
    EgressClosed = 27, "egress-closed";
    /// A fragment that overlaps another of its datagram.
    FragmentOverlap = 28, "fragment-overlap";
    /// A fragment whose datagram the fragment table has no room for.
    FragmentTable = 29, "fragment-table";
    /// The source is banned for a time.
    Banned = 30, "banned";

    /// Shorter than its Ethernet or VLAN header.
    EthernetShort = 32, "ethernet-short";
    /// More than two VLAN tags.
    VlanDepth = 33, "vlan-depth";
    /// Shorter than its ARP packet.
    ArpShort = 34, "arp-short";
    /// A bad version, header length, total length or reserved flag in the IPv4 header.
    Ipv4Header = 35, "ipv4-header";
    /// A bad version or payload length in the IPv6 header.
    Ipv6Header = 36, "ipv6-header";
    /// Shorter than its IP header or the length that the header claims.
    IpShort = 37, "ip-short";
    /// An IPv6 extension header out of place or longer than the packet.
    ExtensionHeader = 38, "extension-header";
    /// More IPv6 extension headers than are walked.
    ExtensionDepth = 39, "extension-depth";
    /// An IPv6 routing header with segments left (RFC 5095).
    RoutingHeader = 40, "routing-header";
    /// Shorter than its transport header.
    TransportShort = 41, "transport-short";
    /// A bad data offset in the TCP header.
    TcpHeader = 42, "tcp-header";
    /// A combination of TCP flags that no implementation sends.
    TcpFlags = 43, "tcp-flags";
    /// A bad length in the UDP header.
    UdpHeader = 44, "udp-header";

    /// The source opens more connections than a limit of the service bears.
    LimitSourceNew = 45, "limit-source-new";
    /// All sources together open more connections than a limit of the service bears.
    LimitTotalNew = 46, "limit-total-new";
    /// The source sends more packets than a limit of the service bears.
    LimitSourcePackets = 47, "limit-source-packets";
    /// All sources together send more packets than a limit of the service bears.
    LimitTotalPackets = 48, "limit-total-packets";
    /// The source sends more bytes than a limit of the service bears.
    LimitSourceBytes = 49, "limit-source-bytes";
    /// All sources together send more bytes than a limit of the service bears.
    LimitTotalBytes = 50, "limit-total-bytes";
    /// The source has as many connections as a limit of the service bears.
    LimitSourceConnections = 51, "limit-source-connections";
    /// All sources together have as many connections as a limit of the service bears.
    LimitTotalConnections = 52, "limit-total-connections";
    /// A connection over a limit was answered with a SYN cookie: the source may prove its address.
    Challenged = 53, "challenged";
    /// A TCP segment that belongs to no connection, while the service gives SYN cookies.
    NoConnection = 54, "no-connection";

    /// No policy image could be read.
    NoPolicy = 56, "no-policy";
}

impl Reason {
    /// Size of a table indexed by reason number.
    pub const COUNT: usize = 64;
    /// Numbers from here on drop.
    pub const FIRST_DROP: u8 = 16;
    /// The first of the reasons of excess: what a limit has to say. They are [`Self::EXCESS`] in a row.
    pub const FIRST_EXCESS: u8 = 45;
    pub const EXCESS: u32 = 10;

    pub const fn number(self) -> u8 {
        self as u8
    }

    pub const fn verdict(self) -> Verdict {
        if self.number() < Self::FIRST_DROP {
            Verdict::Pass
        } else {
            Verdict::Drop
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_ordered_and_fit_the_tables() {
        assert!(
            Reason::ALL
                .windows(2)
                .all(|pair| pair[0].number() < pair[1].number())
        );
        for reason in Reason::ALL {
            assert!((reason.number() as usize) < Reason::COUNT);
            assert_eq!(Reason::from_number(reason.number()), Some(*reason));
        }
    }
}
