//! What no host gains by banning: networks that no packet comes in from, and those whose holders are other ones on each link.
//! What this host adds of its own, its addresses and its failsafe, is for [`super::banning`].

use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// Why there is nothing to ban, to follow "192.0.2.1 is ". As `is_martian` of `firewall_common::decide` has it.
pub(super) fn pointless(network: IpNetwork) -> Option<&'static str> {
    const LOOPBACK: &str = "loopback: nothing comes in from there, what says so is dropped as martian anyway";
    const MULTICAST: &str =
        "multicast, which is nobody's source address: what says so is dropped as martian anyway";
    const UNSPECIFIED: &str = "unspecified: only hosts that ask for an address speak from there, anything else is dropped as \
                               martian anyway";
    const BROADCAST: &str =
        "broadcast, which is nobody's source address: what says so is dropped as martian anyway";
    let len = network.prefix();
    match network.network() {
        IpAddr::V4(v4) if v4.is_loopback() && len >= 8 => Some(LOOPBACK),
        IpAddr::V4(v4) if v4.is_multicast() && len >= 4 => Some(MULTICAST),
        IpAddr::V4(v4) if v4.octets()[0] == 0 && len >= 8 => Some(UNSPECIFIED),
        IpAddr::V4(v4) if v4.is_broadcast() => Some(BROADCAST),
        IpAddr::V6(v6) if v6.is_loopback() && len == 128 => Some(LOOPBACK),
        IpAddr::V6(v6) if v6.is_multicast() && len >= 8 => Some(MULTICAST),
        IpAddr::V6(v6) if v6.is_unspecified() && len == 128 => Some(UNSPECIFIED),
        _ => None,
    }
}

/// Within fe80::/10: routers speak from there (RFC 4861 section 4.2), and any link may have the same address.
pub(super) fn is_link_local(network: IpNetwork) -> bool {
    match network.network() {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local() && network.prefix() >= 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_speaks_from_is_pointless() {
        for (text, word) in [
            ("127.0.0.1/32", "loopback"),
            ("127.0.0.0/8", "loopback"),
            ("::1/128", "loopback"),
            ("224.0.0.0/4", "multicast"),
            ("239.1.2.0/24", "multicast"),
            ("ff02::1/128", "multicast"),
            ("ff00::/8", "multicast"),
            ("0.0.0.0/32", "unspecified"),
            ("::/128", "unspecified"),
            ("255.255.255.255/32", "broadcast"),
        ] {
            let why = pointless(text.parse().unwrap());
            assert!(why.is_some_and(|why| why.starts_with(word)), "{text}: {why:?}");
        }
        for text in [
            "126.0.0.0/8",
            "128.0.0.0/8",
            "223.255.255.0/24",
            "240.0.0.0/8",
            "1.0.0.0/8",
            "192.0.2.1/32",
            "::2/128",
            "fe00::/8",
            "2001:db8::/32",
        ] {
            assert_eq!(pointless(text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn link_local_networks_are_known() {
        for (text, expected) in [
            ("fe80::1/128", true),
            ("fe80::/10", true),
            ("febf::/64", true),
            ("fec0::/10", false),
            ("2001:db8::/32", false),
            ("169.254.0.1/32", false),
        ] {
            assert_eq!(is_link_local(text.parse().unwrap()), expected, "{text}");
        }
    }
}
