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

/// Why an interface is left out; `None` if it is filtered.
pub fn left_out(interface: &Interface, known: &BTreeMap<u32, Interface>) -> Option<String> {
    if interface.loopback {
        return Some("the loopback: what this host says to itself is its own business".into());
    }
    if interface.headers() == Headers::Unknown {
        return Some(format!(
            "its frames (hardware type {}) are neither Ethernet nor bare IP",
            interface.hardware
        ));
    }
    match interface.kind.as_deref()? {
        "bond" | "bridge" | "hsr" | "team" | "vrf" => Some(members(interface, known)),
        "ipvlan" | "ipvtap" | "macvlan" | "macvtap" | "vlan" => {
            // From another namespace: this is as low as this host sees.
            let parent = known.get(&interface.parent?)?;
            Some(match left_out(parent, known) {
                None => format!("its frames are judged on {}", parent.name),
                Some(_) if is_master(parent) => {
                    format!("its frames are judged on the members of {}", parent.name)
                }
                Some(why) => format!("it stands on {}, which is left out: {why}", parent.name),
            })
        }
        "netkit" | "veth" => Some(
            "leads to another namespace, such as a container's; name it in `interfaces` to filter it".into(),
        ),
        // OpenVPN and others make one that stands alone.
        "tun" if interface.headers() == Headers::Ethernet && interface.master.is_some() => {
            Some("leads to a guest of this host; name it in `interfaces` to filter it".into())
        }
        "dummy" => Some("nothing comes in by it".into()),
        "ifb" => Some("what it carries was judged where it came in".into()),
        "nlmon" | "vsockmon" => Some("it shows messages of this host".into()),
        _ => None,
    }
}

fn is_master(interface: &Interface) -> bool {
    matches!(
        interface.kind.as_deref(),
        Some("bond" | "bridge" | "hsr" | "team" | "vrf")
    )
}

fn members(master: &Interface, known: &BTreeMap<u32, Interface>) -> String {
    let names: Vec<&str> = known
        .values()
        .filter(|one| one.master == Some(master.index))
        .map(|one| one.name.as_str())
        .collect();
    if names.is_empty() {
        "its frames are judged on its members, of which it has none yet".into()
    } else {
        format!("its frames are judged on its members: {}", names.join(", "))
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

        fn why(&self, index: u32) -> Option<String> {
            left_out(&self.0[&index], &self.0)
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

        assert_eq!(net.why(port), None);
        for (index, words) in [
            (bond, "judged on its members: eth0"),
            (vlan, "judged on the members of bond0"),
            (bridge, "judged on its members: bond0.7, veth0"),
            (pair, "leads to another namespace"),
            (above, "judged on eth0"),
        ] {
            let why = net.why(index).unwrap_or_default();
            assert!(why.contains(words), "{why}, not {words}");
        }
    }

    #[test]
    fn a_vlan_on_what_is_left_out_is_left_out_and_one_without_its_parent_is_not() {
        let mut net = Net(BTreeMap::new());
        let pair = net.add("veth0", "veth", ETHERNET);
        let vlan = net.add("veth0.7", "vlan", ETHERNET);
        net.set(vlan, |vlan| vlan.parent = Some(pair));
        let why = net.why(vlan).unwrap_or_default();
        assert!(
            why.contains("stands on veth0, which is left out: leads to"),
            "{why}"
        );
        // A macvlan given to this namespace, whose parent is elsewhere.
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
        assert!(net.why(tap).is_some_and(|why| why.contains("guest")));
    }

    #[test]
    fn what_cannot_be_read_is_left_out_with_its_type() {
        let mut net = Net(BTreeMap::new());
        let port = net.add("ib0", "", INFINIBAND);
        assert!(net.why(port).is_some_and(|why| why.contains("hardware type 32")));
    }
}
