//! Reasons and addresses in words.

use firewall_common::verdict::Reason;
use std::net::IpAddr;

/// What kind of address never is an end of a packet on a wire.
pub fn kind(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_multicast() => Some("a multicast address"),
        _ if address.is_unspecified() => Some("the unspecified address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("an address of network 0"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("an IPv4 address inside IPv6"),
        _ => None,
    }
}

/// A sentence per reason.
pub fn meaning(reason: Reason) -> &'static str {
    match reason {
        Reason::Allowed => "a rule of the service allows the source",
        Reason::Reply => "it answers something that this host opened",
        Reason::DefaultAllow => "no service names it, and the default is to allow",
        Reason::Arp => "ARP",
        Reason::NeighbourDiscovery => "IPv6 neighbour discovery from the link",
        Reason::Mld => "multicast listener discovery from the link",
        Reason::DhcpClient => "an answer to the DHCP client of this host",
        Reason::LinkControl => "link control (LACP, LLDP, EAPOL)",
        Reason::Failsafe => "the agent's failsafe admits it",
        Reason::EgressAllowed => "a rule for what leaves allows the destination",
        Reason::Answer => "it leaves from a service to a peer that the service allows",
        Reason::Related => "an ICMP error about something that is allowed",
        Reason::Denied => "the deny list of the policy names the source",
        Reason::ServiceDenied => "the deny list of the service names the source",
        Reason::NotAllowed => "no rule of the service allows the source",
        Reason::Closed => "no service names the port or protocol",
        Reason::EtherType => "neither IP nor essential",
        Reason::Llc => "an LLC or SNAP frame, which no policy sees into",
        Reason::Martian => "a source that cannot come from a wire",
        Reason::Fragment => "a fragment other than the first, which has no ports to judge",
        Reason::FragmentShort => "a first fragment too short to hold its ports",
        Reason::IcmpError => "an ICMP error that no service names",
        Reason::EgressDenied => "a rule for what leaves denies the destination",
        Reason::EgressClosed => "no rule for what leaves allows the destination",
        Reason::FragmentOverlap => "a fragment that overlaps another of its datagram",
        Reason::FragmentTable => "a fragment whose datagram the fragment table has no room for",
        Reason::Banned => "the source is banned",
        Reason::EthernetShort => "shorter than its Ethernet header",
        Reason::VlanDepth => "more than two VLAN tags",
        Reason::ArpShort => "shorter than its ARP packet",
        Reason::Ipv4Header => "a bad IPv4 header",
        Reason::Ipv6Header => "a bad IPv6 header",
        Reason::IpShort => "shorter than its IP header claims",
        Reason::ExtensionHeader => "an IPv6 extension header out of place or too long",
        Reason::ExtensionDepth => "more IPv6 extension headers than are walked",
        Reason::RoutingHeader => "an IPv6 routing header with segments left",
        Reason::TransportShort => "shorter than its transport header",
        Reason::TcpHeader => "a bad TCP header length",
        Reason::TcpFlags => "TCP flags that no implementation sends together",
        Reason::UdpHeader => "a bad UDP length",
        Reason::LimitSourceNew => "the source opens more connections than its limit",
        Reason::LimitTotalNew => "all sources together open more connections than the limit",
        Reason::LimitSourcePackets => "the source sends more packets than its limit",
        Reason::LimitTotalPackets => "all sources together send more packets than the limit",
        Reason::LimitSourceBytes => "the source sends more bytes than its limit",
        Reason::LimitTotalBytes => "all sources together send more bytes than the limit",
        Reason::LimitSourceConnections => "the source has as many connections as its limit",
        Reason::LimitTotalConnections => "all sources together have as many connections as the limit",
        Reason::Challenged => "over a limit: a SYN cookie asks the source to prove its address",
        Reason::NoConnection => "it belongs to no connection, and the service asks for proof",
        Reason::NoPolicy => "no policy can be read",
    }
}
