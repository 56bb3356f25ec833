//! The interfaces that are to be filtered: what the driver makes of XDP, and who else is there.

use super::kernel::ONE_BUFFER;
use super::{Area, Finding, Severity};
use crate::api::types::InterfaceStatus;
use crate::datapath::device::Device;
use crate::datapath::netlink::Headers;
use crate::datapath::others::{Occupant, Point};
use crate::datapath::{Ingress, Interface, TcMode};
use std::collections::HashSet;

/// One of them.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub interface: Interface,
    /// Of `/sys`; `None` for a virtual one.
    pub driver: Option<String>,
    pub device: Device,
    pub occupants: Vec<Occupant>,
    /// What a running agent made of it.
    pub status: Option<InterfaceStatus>,
    /// What the agent, or the one that would start, calls itself.
    pub instance: String,
}

/// The driver of an interface, if `/sys` is that of this network namespace.
pub fn driver(interface: &Interface) -> Option<String> {
    let folder = format!("/sys/class/net/{}", interface.name);
    let index = std::fs::read_to_string(format!("{folder}/ifindex")).ok()?;
    if index.trim() != interface.index.to_string() {
        return None;
    }
    let driver = std::fs::read_link(format!("{folder}/device/driver")).ok()?;
    Some(driver.file_name()?.to_string_lossy().into_owned())
}

/// The interfaces whose packets are judged: those that are filtered, and those that stand on them.
pub fn judged(all: &[Interface], filtered: impl Fn(&Interface) -> bool) -> HashSet<u32> {
    let mut found: HashSet<u32> = all
        .iter()
        .filter(|one| filtered(one))
        .map(|one| one.index)
        .collect();
    loop {
        let before = found.len();
        for one in all {
            // A VLAN's frames are those of its parent, a bridge's those of its members.
            let stands = one.kind.as_deref() != Some("veth")
                && one.parent.is_some_and(|parent| found.contains(&parent));
            if stands {
                found.insert(one.index);
            }
            if let Some(master) = one.master.filter(|_| found.contains(&one.index)) {
                found.insert(master);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// How ingress is attached, or would be.
pub fn ingress(facts: &Facts) -> Option<Ingress> {
    if let Some(status) = &facts.status {
        return match (status.hook.as_str(), status.mode.as_str()) {
            ("xdp", "native") => Some(Ingress::Native),
            ("xdp", _) => Some(Ingress::Generic),
            ("tc", _) => Some(Ingress::Tc(TcMode::Tcx)),
            _ => None,
        };
    }
    match (facts.interface.headers(), facts.device.xdp) {
        (Headers::Unknown, _) => None,
        (Headers::None, _) => Some(Ingress::Tc(TcMode::Tcx)),
        (Headers::Ethernet, Some(xdp)) if !xdp.native => Some(Ingress::Generic),
        (Headers::Ethernet, _) => Some(Ingress::Native),
    }
}

/// About all of them. `others`: interfaces with addresses whose packets are not judged, and why not.
pub fn findings(facts: &[Facts], others: &[(String, String)]) -> Vec<Finding> {
    let mut found = Vec::new();
    if facts.is_empty() {
        found.push(
            finding(Severity::Fail, "none", "no interface is to be filtered".into())
                .fix("name some: interfaces = [\"eth*\"] in agent.toml, or --interface"),
        );
    }
    for one in facts {
        found.push(mode(one));
        found.extend(offload(one));
        found.extend(channels(one));
        found.extend(programs(one));
    }
    for (name, reason) in others {
        found.push(
            finding(
                Severity::Info,
                name,
                format!("{name} has addresses and is not filtered: {reason}"),
            )
            .fix("add it to interfaces in agent.toml, if strangers reach this host by it"),
        );
    }
    found
}

fn finding(severity: Severity, name: &str, text: String) -> Finding {
    Finding::new(severity, Area::Interface, name, text)
}

/// Native or generic: what the agent got, or what it would.
fn mode(facts: &Facts) -> Finding {
    let Interface { name, mtu, .. } = &facts.interface;
    let driver = facts
        .driver
        .as_deref()
        .or(facts.interface.kind.as_deref())
        .unwrap_or("an unknown driver");
    let about = format!("{name} ({driver}, MTU {mtu})");
    if let Some(status) = &facts.status {
        let why = status
            .detail
            .as_deref()
            .map(|detail| format!(": {detail}"))
            .unwrap_or_default();
        return match (status.hook.as_str(), status.mode.as_str()) {
            ("none", _) => finding(Severity::Fail, name, format!("{about} is not filtered{why}"))
                .fix("ravelin status shows when the agent tries again; take away what it names"),
            ("xdp", "generic") => slow(name, format!("{about} is filtered by generic XDP{why}")),
            ("xdp", mode) => finding(
                Severity::Ok,
                name,
                format!("{about} is filtered by {mode} XDP{why}"),
            ),
            (_, mode) => finding(
                Severity::Ok,
                name,
                format!("{about} is filtered at TC ({mode}){why}"),
            ),
        };
    }
    if facts.interface.headers() == Headers::None {
        let text = format!("{about} has no Ethernet headers, so it is filtered at TC");
        return finding(Severity::Ok, name, text);
    }
    match facts.device.xdp {
        None => finding(
            Severity::Info,
            name,
            format!(
                "{about}: the kernel does not tell whether the driver has native XDP; the agent tries it first"
            ),
        ),
        Some(xdp) if !xdp.native => slow(
            name,
            format!("{about}: the driver has no native XDP, generic XDP serves"),
        ),
        Some(xdp) if *mtu > ONE_BUFFER && !xdp.multi_buffer => finding(
            Severity::Warn,
            name,
            format!("{about}: the driver takes native XDP only with a smaller MTU, so generic XDP serves"),
        )
        .fix(format!(
            "ip link set dev {name} mtu {ONE_BUFFER}, if the network can do without more"
        )),
        Some(_) => finding(Severity::Ok, name, format!("{about} has native XDP")),
    }
}

/// Native XDP on a veth, of any program, makes the other end segment its bulk transfers in software (`veth_xdp_set` of
/// drivers/net/veth.c takes `NETIF_F_GSO_SOFTWARE` from it).
fn offload(facts: &Facts) -> Option<Finding> {
    let name = &facts.interface.name;
    let xdp = facts.status.as_ref().is_none_or(|status| status.hook == "xdp");
    (xdp && facts.interface.kind.as_deref() == Some("veth")).then(|| {
        finding(
            Severity::Info,
            name,
            format!(
                "{name} is a veth: XDP sheds floods best there, but takes segmentation offload from the other end, so bulk \
                 transfers into it are several times slower"
            ),
        )
        .fix(format!(
            "hook = [\"{name}=tc\", \"auto\"] in agent.toml, where throughput matters more; the verdicts are the same"
        ))
    })
}

fn slow(name: &str, text: String) -> Finding {
    finding(
        Severity::Warn,
        name,
        text + ": same verdicts, but a drop costs several times as much",
    )
    .fix("none is needed at moderate load; against floods, use a driver with native XDP")
}

fn channels(facts: &Facts) -> Option<Finding> {
    let name = &facts.interface.name;
    let channels = facts.device.channels?;
    let half = channels.max / 2;
    let native = facts
        .status
        .as_ref()
        .is_some_and(|status| status.mode == "native");
    // The driver gives XDP channels of its own to send by, as many as it has to receive by.
    if facts.driver.as_deref() == Some("ena") && channels.now > half && !native {
        return Some(
            finding(
                Severity::Warn,
                name,
                format!(
                    "{name} uses {} of {} channels, and its driver refuses native XDP beyond half of them",
                    channels.now, channels.max
                ),
            )
            .fix(format!("ethtool -L {name} combined {}", half.max(1))),
        );
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (channels.now == 1 && channels.max > 1 && cpus > 1).then(|| {
        finding(
            Severity::Info,
            name,
            format!(
                "{name} receives on 1 of {} channels, so one CPU filters all of it",
                channels.max
            ),
        )
        .fix(format!(
            "ethtool -L {name} combined {}",
            channels.max.min(cpus as u32)
        ))
    })
}

fn programs(facts: &Facts) -> Vec<Finding> {
    let name = &facts.interface.name;
    let mut found = Vec::new();
    for occupant in &facts.occupants {
        let Occupant {
            point,
            what,
            ours,
            instance,
        } = occupant;
        let of_another = instance.as_ref().filter(|instance| **instance != facts.instance);
        let finding = |severity, text| Finding::new(severity, Area::Program, name, text);
        match (point, of_another) {
            (Point::Xdp, Some(other)) => found.push(
                finding(
                    Severity::Fail,
                    format!("{name} is held by the ravelin instance {other}, and has room for one"),
                )
                .fix(format!(
                    "ravelin detach --instance {other}, or leave {name} out of the interfaces of one of the two"
                )),
            ),
            (Point::Xdp, None) if !ours => found.push(
                finding(
                    Severity::Fail,
                    format!("{name} has {what} at XDP, where there is room for one"),
                )
                .fix(format!(
                    "hook = \"{name}=tc\" in agent.toml filters after it, with the same verdicts; or, if it is not wanted, \
                     ip link set dev {name} xdp off"
                )),
            ),
            (_, None) if !ours => found.push(finding(
                Severity::Info,
                match point {
                    Point::TcEgress => format!("{name} has {what} at {point}; it sees packets after ravelin"),
                    _ => format!("{name} has {what} at {point}; it sees what ravelin lets in"),
                },
            )),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::device::{Channels, XdpFeatures};

    fn facts(mtu: u32, xdp: Option<XdpFeatures>) -> Facts {
        Facts {
            interface: Interface {
                name: "eth0".into(),
                ethernet: true,
                mtu,
                ..Interface::default()
            },
            driver: Some("ena".into()),
            device: Device { xdp, channels: None },
            instance: "default".into(),
            ..Facts::default()
        }
    }

    fn severities(facts: Facts) -> Vec<Severity> {
        findings(&[facts], &[])
            .iter()
            .map(|finding| finding.severity)
            .collect()
    }

    const NATIVE: XdpFeatures = XdpFeatures {
        native: true,
        multi_buffer: false,
        sends: true,
    };

    #[test]
    fn a_veth_at_xdp_is_told_of_the_offload() {
        let mut veth = facts(1500, Some(NATIVE));
        veth.interface.kind = Some("veth".into());
        assert_eq!(severities(veth.clone()), [Severity::Ok, Severity::Info]);
        veth.status = Some(InterfaceStatus {
            hook: "tc".into(),
            mode: "tcx".into(),
            ..InterfaceStatus::default()
        });
        assert_eq!(severities(veth), [Severity::Ok]);
    }

    #[test]
    fn the_mode_is_what_the_agent_got_or_what_it_would_get() {
        assert_eq!(severities(facts(1500, Some(NATIVE))), [Severity::Ok]);
        assert_eq!(severities(facts(9000, Some(NATIVE))), [Severity::Warn]);
        let jumbo = XdpFeatures {
            multi_buffer: true,
            ..NATIVE
        };
        assert_eq!(severities(facts(9000, Some(jumbo))), [Severity::Ok]);
        assert_eq!(
            severities(facts(1500, Some(XdpFeatures::default()))),
            [Severity::Warn]
        );
        assert_eq!(severities(facts(1500, None)), [Severity::Info]);
        for (hook, mode, severity) in [
            ("xdp", "native", Severity::Ok),
            ("xdp", "generic", Severity::Warn),
            ("tc", "tcx", Severity::Ok),
            ("none", "none", Severity::Fail),
        ] {
            let status = InterfaceStatus {
                hook: hook.into(),
                mode: mode.into(),
                ..InterfaceStatus::default()
            };
            let attached = Facts {
                status: Some(status),
                ..facts(9000, None)
            };
            assert_eq!(severities(attached), [severity], "{hook} {mode}");
        }
        assert_eq!(findings(&[], &[])[0].severity, Severity::Fail);
    }

    #[test]
    fn what_stands_on_a_filtered_interface_is_judged_and_the_rest_is_not() {
        let one = |index, kind: &str, master, parent| Interface {
            index,
            kind: (!kind.is_empty()).then(|| kind.into()),
            master,
            parent,
            ..Interface::default()
        };
        let all = [
            one(9, "vlan", None, Some(8)),
            one(8, "bond", None, None),
            one(2, "", Some(8), None),
            one(5, "bridge", None, None),
            one(6, "veth", Some(5), Some(2)),
        ];
        let judged = judged(&all, |one| one.index == 2);
        assert_eq!(judged, HashSet::from([2, 8, 9]));
    }

    #[test]
    fn a_driver_that_wants_spare_channels_is_told_with_the_command() {
        let mut full = facts(1500, Some(NATIVE));
        full.device.channels = Some(Channels { now: 8, max: 8 });
        let found = findings(&[full.clone()], &[]);
        assert_eq!(found[1].fix.as_deref(), Some("ethtool -L eth0 combined 4"));
        full.device.channels = Some(Channels { now: 4, max: 8 });
        assert_eq!(severities(full), [Severity::Ok]);
    }

    #[test]
    fn other_programs_are_named() {
        let with = |point, ours, instance: Option<&str>| {
            let mut facts = facts(1500, Some(NATIVE));
            facts.occupants = vec![Occupant {
                point,
                what: "the program \"other\" (id 7)".into(),
                ours,
                instance: instance.map(str::to_owned),
            }];
            severities(facts)
        };
        assert_eq!(with(Point::Xdp, false, None), [Severity::Ok, Severity::Fail]);
        assert_eq!(
            with(Point::Xdp, true, Some("edge")),
            [Severity::Ok, Severity::Fail]
        );
        assert_eq!(with(Point::Xdp, true, Some("default")), [Severity::Ok]);
        assert_eq!(
            with(Point::TcIngress, false, None),
            [Severity::Ok, Severity::Info]
        );
        assert_eq!(with(Point::TcEgress, true, None), [Severity::Ok]);
    }
}
