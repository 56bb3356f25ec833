//! The kernel and its settings.

use super::{Area, Finding, Severity};
use crate::host::sysctl;
use std::path::Path;

/// What is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `6.1.0-18-amd64`.
    pub release: String,
    /// A BPF file system is mounted at its usual place.
    pub bpf_fs: bool,
    /// Settings that exist, and their values.
    pub settings: Vec<(String, i64)>,
    /// The largest MTU of what is to be filtered.
    pub mtu: u32,
    /// An agent has loaded its programs into this kernel.
    pub agent: bool,
    /// No mount shows the root of cgroup v2.
    pub no_cgroup: bool,
}

const BPF_FS: &str = "/sys/fs/bpf";
/// Frames up to here fit into one buffer of a page, with the room that XDP needs.
pub const ONE_BUFFER: u32 = 3498;
const SETTINGS: [&str; 6] = [
    "net.core.bpf_jit_enable",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.conf.all.accept_redirects",
];

impl Facts {
    /// `interfaces`: names and MTUs of what is to be filtered.
    pub fn gather<'a>(interfaces: impl Iterator<Item = (&'a str, u32)>, agent: bool) -> Facts {
        let interfaces: Vec<(&str, u32)> = interfaces.collect();
        // What belongs to interfaces takes the dots in their names as slashes.
        let own = interfaces
            .iter()
            .map(|(name, _)| format!("net.ipv4.conf.{}.rp_filter", name.replace('.', "/")));
        let names = SETTINGS.into_iter().map(str::to_owned).chain(own);
        Facts {
            release: nix::sys::utsname::uname()
                .map(|name| name.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
            bpf_fs: nix::sys::statfs::statfs(Path::new(BPF_FS))
                .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC),
            settings: names
                .filter_map(|name| {
                    let value = sysctl::number(&name)?;
                    Some((name, value))
                })
                .collect(),
            mtu: interfaces.iter().map(|(_, mtu)| *mtu).max().unwrap_or(0),
            agent,
            no_cgroup: !crate::datapath::has_cgroup(),
        }
    }
}

pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = version(facts);
    if !facts.bpf_fs {
        found.push(
            Finding::new(
                Severity::Warn,
                Area::Kernel,
                BPF_FS,
                format!("no BPF file system is mounted at {BPF_FS}; the agent mounts one if it may"),
            )
            .fix(format!("mount -t bpf bpf {BPF_FS}, and keep it in /etc/fstab")),
        );
    }
    if facts.no_cgroup {
        let text = "cgroup v2 is not mounted: limits of concurrent connections are counted each second only";
        found.push(
            Finding::new(Severity::Info, Area::Kernel, "cgroup", text)
                .fix("mount -t cgroup2 none /sys/fs/cgroup, or another directory"),
        );
    }
    found.extend(settings(facts));
    if found.iter().all(|finding| finding.severity == Severity::Info) {
        let text = format!("kernel {} has what ravelin needs", facts.release);
        found.push(Finding::new(Severity::Ok, Area::Kernel, "version", text));
    }
    found
}

fn version(facts: &Facts) -> Vec<Finding> {
    let Some(version) = parse(&facts.release) else {
        let text = format!("the kernel calls itself {:?}, which is no version", facts.release);
        return vec![Finding::new(Severity::Info, Area::Kernel, "version", text)];
    };
    let finding = |severity, text: String| Finding::new(severity, Area::Kernel, "version", text);
    let release = &facts.release;
    let mut found = Vec::new();
    // What an agent has loaded is there, whatever the number says: distributions bring features back.
    if version < (5, 15) && !facts.agent {
        found.push(
            finding(
                Severity::Fail,
                format!("kernel {release} is older than 5.15, the oldest that ravelin is made for"),
            )
            .fix("boot a newer kernel; whether this one will do, only a start of the agent can tell"),
        );
    }
    if version < (5, 18) {
        let jumbo = facts.mtu > ONE_BUFFER;
        let severity = if jumbo { Severity::Warn } else { Severity::Info };
        let text = format!(
            "kernel {release} has no multi-buffer XDP (5.18): native XDP takes MTUs up to about {ONE_BUFFER}"
        );
        let found_it = finding(severity, text);
        found.push(match jumbo {
            true => {
                found_it.fix("boot kernel 5.18 or later, or lower the MTU; until then generic XDP serves")
            }
            false => found_it,
        });
    }
    if version < (6, 6) {
        found.push(
            finding(
                Severity::Info,
                format!(
                    "kernel {release} has no TCX links (6.6): what hangs at TC is a clsact filter, which others can \
                     delete; the agent puts it back"
                ),
            )
            .fix("none is needed; kernel 6.6 or later has links that nobody else can delete"),
        );
    }
    found
}

fn settings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, value) in &facts.settings {
        let finding = |severity, text: &str| {
            Finding::new(severity, Area::Kernel, name, format!("{name} = {value}: {text}"))
        };
        let set = |to: u8| format!("sysctl -w {name}={to}, and keep it in /etc/sysctl.d");
        match (name.as_str(), value) {
            ("net.core.bpf_jit_enable", 0) => found.push(
                finding(
                    Severity::Warn,
                    "BPF programs are interpreted, so each packet costs several times as much",
                )
                .fix(set(1)),
            ),
            ("net.ipv4.tcp_syncookies", 0) => found.push(
                finding(
                    Severity::Warn,
                    "a flood of connection requests at a port that is open fills its backlog",
                )
                .fix(set(1)),
            ),
            ("net.ipv4.ip_forward" | "net.ipv6.conf.all.forwarding", 1..) => found.push(finding(
                Severity::Info,
                "this host forwards; what comes in is judged before any translation, so a published port of a \
                 container needs a service by the port that the outside sees",
            )),
            ("net.ipv4.conf.all.accept_redirects", 1..) => found.push(
                finding(
                    Severity::Info,
                    "the stack would follow ICMP redirects; ravelin lets none of them in unless a service names them",
                )
                .fix(set(0)),
            ),
            _ => {}
        }
    }
    // The stack takes the larger one of an interface's and that of all.
    let all = value(facts, "net.ipv4.conf.all.rp_filter").unwrap_or(0);
    let loose: Vec<&str> = facts
        .settings
        .iter()
        .filter(|(_, value)| *value == 0 && all == 0)
        .filter_map(|(name, _)| {
            name.strip_prefix("net.ipv4.conf.")?
                .strip_suffix(".rp_filter")
                .filter(|interface| *interface != "all")
        })
        .collect();
    if !loose.is_empty() {
        let text = format!(
            "rp_filter is off on {}: a packet with an address that the policy allows passes by whichever interface it comes",
            loose.join(", ")
        );
        found.push(
            Finding::new(Severity::Info, Area::Kernel, "net.ipv4.conf.all.rp_filter", text).fix(
                "sysctl -w net.ipv4.conf.all.rp_filter=1 (2 with several ways out), if routes are symmetric",
            ),
        );
    }
    found
}

fn value(facts: &Facts, wanted: &str) -> Option<i64> {
    let (_, value) = facts.settings.iter().find(|(name, _)| name == wanted)?;
    Some(*value)
}

/// Whether a kernel of this release has multi-buffer XDP, and with it helpers that write into frames.
pub fn has_multi_buffer(release: &str) -> bool {
    parse(release).is_some_and(|version| version >= (5, 18))
}

/// `6.1` of `6.1.0-18-amd64`.
fn parse(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(release: &str, mtu: u32) -> Facts {
        Facts {
            release: release.into(),
            bpf_fs: true,
            mtu,
            ..Facts::default()
        }
    }

    fn severities(facts: &Facts) -> Vec<Severity> {
        findings(facts).iter().map(|finding| finding.severity).collect()
    }

    #[test]
    fn what_a_version_lacks_is_told() {
        use Severity::{Fail, Info, Ok, Warn};
        assert_eq!(severities(&facts("6.18.0-rc1", 9000)), [Ok]);
        assert_eq!(severities(&facts("6.1.0-18-amd64", 9000)), [Info, Ok]);
        assert_eq!(severities(&facts("5.15.0", 1500)), [Info, Info, Ok]);
        assert_eq!(severities(&facts("5.15.0", 9000)), [Warn, Info]);
        assert_eq!(severities(&facts("5.10.1", 1500)), [Fail, Info, Info]);
        let agent = Facts {
            agent: true,
            ..facts("5.14.0-570.el9", 1500)
        };
        assert_eq!(severities(&agent), [Info, Info, Ok]);
        assert_eq!(severities(&facts("odd", 1500)), [Info, Ok]);
    }

    #[test]
    fn settings_that_cost_or_open_something_are_told_with_the_command() {
        let with = |name: &str, value| Facts {
            settings: vec![(name.into(), value)],
            ..facts("6.18.0", 1500)
        };
        for (name, value, told) in [
            ("net.core.bpf_jit_enable", 0, true),
            ("net.core.bpf_jit_enable", 1, false),
            ("net.ipv4.tcp_syncookies", 0, true),
            ("net.ipv4.ip_forward", 1, true),
            ("net.ipv4.ip_forward", 0, false),
            ("net.ipv4.conf.eth0.rp_filter", 0, true),
            ("net.ipv4.conf.eth0.rp_filter", 2, false),
        ] {
            let found = findings(&with(name, value));
            let about: Vec<&Finding> = found
                .iter()
                .filter(|finding| finding.severity != Severity::Ok)
                .collect();
            assert_eq!(about.len(), usize::from(told), "{name} {value}: {about:?}");
        }
        let no_jit = &findings(&with("net.core.bpf_jit_enable", 0))[0];
        assert!(
            no_jit
                .fix
                .as_ref()
                .is_some_and(|fix| fix.starts_with("sysctl -w net.core.bpf_jit_enable=1"))
        );
        let mut strict = with("net.ipv4.conf.eth0.rp_filter", 0);
        strict.settings.push(("net.ipv4.conf.all.rp_filter".into(), 1));
        assert_eq!(severities(&strict), [Severity::Ok]);
    }

    #[test]
    fn without_cgroups_connections_are_counted_otherwise() {
        let facts = Facts {
            no_cgroup: true,
            ..facts("6.18.0", 1500)
        };
        let found = findings(&facts);
        let cgroup = found.iter().find(|finding| finding.subject == "cgroup");
        assert!(
            cgroup.is_some_and(|finding| finding.text.contains("counted each second only")),
            "{found:?}"
        );
    }

    #[test]
    fn without_a_bpf_file_system_there_is_a_command() {
        let bare = Facts {
            bpf_fs: false,
            ..facts("6.18.0", 1500)
        };
        let found = findings(&bare);
        assert_eq!(found.len(), 1);
        assert!(
            found[0]
                .fix
                .as_ref()
                .is_some_and(|fix| fix.contains("mount -t bpf"))
        );
    }
}
