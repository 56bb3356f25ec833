//! Which interfaces are filtered when nobody names any: the lowest devices that bring in what is not of this host.
//!
//! Each packet is judged once, at the lowest device that carries it. A bond, bridge or team is judged on its members,
//! a VLAN or macvlan on its parent, tags and all. What a tunnel carries is judged on the tunnel's own device, and
//! the packets around it where they come in. A kind that nobody here has heard of is filtered. Left out is
//! what leads to containers and guests of this host: their packets to the outside come from this host, and what comes
//! in for them is judged where it comes in.
//!
//! Pure: a list of interfaces in, a reason out.

use crate::datapath::Interface;
use crate::datapath::netlink::Headers;
use std::collections::BTreeMap;

/// All interfaces, by index.
pub type Known = BTreeMap<u32, Interface>;

/// Why an interface is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Loopback,
    /// Neither Ethernet nor bare IP.
    Headers,
    /// Its members are judged.
    Members,
    /// What it stands on is judged.
    Parent,
    Namespace,
    Guest,
    NothingComes,
    JudgedBefore,
    Messages,
}

/// `None`: it is filtered.
pub fn left_out(interface: &Interface, known: &Known) -> Option<Why> {
    if interface.loopback {
        return Some(Why::Loopback);
    }
    if interface.headers() == Headers::Unknown {
        return Some(Why::Headers);
    }
    match interface.kind.as_deref()? {
        "bond" | "bridge" | "hsr" | "team" | "vrf" => Some(Why::Members),
        // One whose parent is in another namespace is as low as this one sees.
        "ipvlan" | "ipvtap" | "macvlan" | "macvtap" | "vlan" => interface
            .parent
            .filter(|parent| known.contains_key(parent))
            .map(|_| Why::Parent),
        "netkit" | "veth" => Some(Why::Namespace),
        // OpenVPN and others make one that stands alone.
        "tun" if interface.headers() == Headers::Ethernet && interface.master.is_some() => Some(Why::Guest),
        "dummy" => Some(Why::NothingComes),
        "ifb" => Some(Why::JudgedBefore),
        "nlmon" | "vsockmon" => Some(Why::Messages),
        _ => None,
    }
}

/// Whether packets by an interface are judged: on it, on its members, or on what it stands on.
pub fn judged(index: u32, known: &Known, filtered: &impl Fn(u32) -> bool) -> bool {
    if filtered(index) {
        return true;
    }
    let Some(interface) = known.get(&index) else {
        return false;
    };
    match left_out(interface, known) {
        Some(Why::Members) => known
            .values()
            .any(|one| one.master == Some(index) && judged(one.index, known, filtered)),
        Some(Why::Parent) => interface
            .parent
            .is_some_and(|parent| judged(parent, known, filtered)),
        _ => false,
    }
}

/// Why an interface is not filtered, in words; `filtered` says which are. With `named`, somebody named those that are to
/// be.
pub fn words(interface: &Interface, known: &Known, filtered: impl Fn(u32) -> bool, named: bool) -> String {
    let why = left_out(interface, known);
    let elsewhere = match why {
        Some(Why::Members) => on_members(interface, known, &filtered),
        Some(Why::Parent) => on_parent(interface, known, &filtered),
        _ => None,
    };
    if let Some(words) = elsewhere {
        return words;
    }
    match why {
        Some(Why::Loopback) => "the loopback: what this host says to itself is its own business".into(),
        Some(Why::Headers) => format!(
            "its frames (hardware type {}) are neither Ethernet nor bare IP",
            interface.hardware
        ),
        _ if named => "no pattern of `interfaces` names it".into(),
        Some(Why::Members) => "its frames are judged on its members, and none of them is filtered".into(),
        Some(Why::Parent) => "what it stands on is not filtered".into(),
        Some(Why::Namespace) => {
            "leads to another namespace, such as a container's; name it in `interfaces` to filter it".into()
        }
        Some(Why::Guest) => "leads to a guest of this host; name it in `interfaces` to filter it".into(),
        Some(Why::NothingComes) => "nothing comes in by it".into(),
        Some(Why::JudgedBefore) => "what it carries was judged where it came in".into(),
        Some(Why::Messages) => "it shows messages of this host".into(),
        None => "about to be filtered".into(),
    }
}

fn on_members(master: &Interface, known: &Known, filtered: &impl Fn(u32) -> bool) -> Option<String> {
    let members = known.values().filter(|one| one.master == Some(master.index));
    let (judged, not): (Vec<&Interface>, Vec<&Interface>) = members.partition(|one| filtered(one.index));
    let names = |list: &[&Interface]| {
        let names: Vec<&str> = list.iter().map(|one| one.name.as_str()).collect();
        names.join(", ")
    };
    match (judged.is_empty(), not.is_empty()) {
        (true, _) => None,
        (false, true) => Some(format!(
            "its frames are judged on its members: {}",
            names(&judged)
        )),
        (false, false) => Some(format!(
            "its frames are judged on its members: {} (not on {})",
            names(&judged),
            names(&not)
        )),
    }
}

fn on_parent(interface: &Interface, known: &Known, filtered: &impl Fn(u32) -> bool) -> Option<String> {
    let parent = known.get(&interface.parent?)?;
    let member = |one: &Interface| one.master == Some(parent.index) && filtered(one.index);
    if filtered(parent.index) {
        Some(format!("its frames are judged on {}", parent.name))
    } else if known.values().any(member) {
        Some(format!("its frames are judged on the members of {}", parent.name))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETHERNET: u16 = 1;
    const NONE: u16 = 0xfffe;
    const INFINIBAND: u16 = 32;

    struct Net(BTreeMap<u32, Interface>);

    impl Net {
        fn add(&mut self, name: &str, kind: &str, hardware: u16) -> u32 {
            let index = self.0.len() as u32 + 1;
            let interface = Interface {
                name: name.into(),
                index,
                hardware,
                ethernet: hardware == ETHERNET,
                kind: (!kind.is_empty()).then(|| kind.into()),
                ..Interface::default()
            };
            self.0.insert(index, interface);
            index
        }

        fn set(&mut self, index: u32, change: impl FnOnce(&mut Interface)) {
            change(self.0.get_mut(&index).expect("it was added"));
        }

        fn why(&self, index: u32) -> Option<Why> {
            left_out(&self.0[&index], &self.0)
        }

        fn words(&self, index: u32, filtered: &[u32], named: bool) -> String {
            words(&self.0[&index], &self.0, |one| filtered.contains(&one), named)
        }
    }

    #[test]
    fn the_lowest_device_of_each_stack_is_filtered() {
        let mut net = Net(BTreeMap::new());
        let port = net.add("eth0", "", ETHERNET);
        let bond = net.add("bond0", "bond", ETHERNET);
        let vlan = net.add("bond0.7", "vlan", ETHERNET);
        let bridge = net.add("br0", "bridge", ETHERNET);
        let pair = net.add("veth0", "veth", ETHERNET);
        let above = net.add("mac0", "macvlan", ETHERNET);
        net.set(port, |port| port.master = Some(bond));
        net.set(vlan, |vlan| {
            (vlan.parent, vlan.master) = (Some(bond), Some(bridge))
        });
        net.set(pair, |pair| pair.master = Some(bridge));
        net.set(above, |above| above.parent = Some(port));

        for (index, why, by_default) in [
            (port, None, "about to be filtered"),
            (
                bond,
                Some(Why::Members),
                "its frames are judged on its members: eth0",
            ),
            (
                vlan,
                Some(Why::Parent),
                "its frames are judged on the members of bond0",
            ),
            (
                bridge,
                Some(Why::Members),
                "its frames are judged on its members, and none of them is filtered",
            ),
            (
                pair,
                Some(Why::Namespace),
                "leads to another namespace, such as a container's; name it in `interfaces` to filter it",
            ),
            (above, Some(Why::Parent), "its frames are judged on eth0"),
        ] {
            assert_eq!(net.why(index), why);
            assert_eq!(net.words(index, &[port], false), by_default);
        }
        for (index, is_judged) in [
            (bond, true),
            (vlan, true),
            (bridge, true),
            (pair, false),
            (99, false),
        ] {
            assert_eq!(judged(index, &net.0, &|one| one == port), is_judged, "{index}");
        }
        assert!(!judged(bridge, &net.0, &|one| one == above));
        // Somebody named other ones.
        for (index, words) in [
            (
                bridge,
                "its frames are judged on its members: veth0 (not on bond0.7)",
            ),
            (bond, "no pattern of `interfaces` names it"),
            (above, "no pattern of `interfaces` names it"),
        ] {
            assert_eq!(net.words(index, &[pair], true), words);
        }
    }

    #[test]
    fn what_stands_on_another_namespaces_device_is_filtered() {
        let mut net = Net(BTreeMap::new());
        let given = net.add("eth0", "macvlan", ETHERNET);
        assert_eq!(net.why(given), None);
    }

    #[test]
    fn tunnels_are_filtered_with_and_without_ethernet_headers() {
        let mut net = Net(BTreeMap::new());
        for (kind, hardware) in [
            ("vxlan", ETHERNET),
            ("geneve", ETHERNET),
            ("gretap", ETHERNET),
            ("gre", 778),
            ("ip6gre", 823),
            ("ipip", 768),
            ("sit", 776),
            ("wireguard", NONE),
            ("tun", NONE),
            ("tun", ETHERNET),
            ("xfrm", NONE),
            ("ppp", 512),
            ("never-heard-of", ETHERNET),
            // A modem.
            ("", 519),
        ] {
            let index = net.add(kind, kind, hardware);
            assert_eq!(net.why(index), None, "{kind} of hardware type {hardware}");
        }
    }

    #[test]
    fn a_tap_in_a_bridge_is_a_guests() {
        let mut net = Net(BTreeMap::new());
        let tap = net.add("vnet0", "tun", ETHERNET);
        net.set(tap, |tap| tap.master = Some(99));
        assert_eq!(net.why(tap), Some(Why::Guest));
    }

    #[test]
    fn what_cannot_be_read_is_left_out_with_its_type() {
        let mut net = Net(BTreeMap::new());
        let port = net.add("ib0", "", INFINIBAND);
        assert_eq!(net.why(port), Some(Why::Headers));
        assert!(net.words(port, &[], true).contains("hardware type 32"));
    }
}
