//! Ports that the host takes by itself when it asks somebody something. A service that names them has them judged by
//! its own rules: an answer to what the host asked from such a UDP port is dropped, now and then, as the port falls.
//! (A TCP connection that the host opens is remembered at any port.)

use super::diagnostic::{Diagnostic, Text};
use super::file::Loaded;
use super::model::{Action, Owner, Policy, ServiceId};
use std::ops::{Range, RangeInclusive};
use std::path::Path;

/// Where a kernel takes ports from for sockets that name none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPorts {
    range: RangeInclusive<u16>,
    /// Within the range, but never taken.
    reserved: Vec<RangeInclusive<u16>>,
}

impl Default for LocalPorts {
    /// A kernel that nobody told otherwise.
    fn default() -> LocalPorts {
        LocalPorts {
            range: 32_768..=60_999,
            reserved: Vec::new(),
        }
    }
}

/// A range of UDP ports as a service names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpRange {
    pub service: ServiceId,
    pub ports: RangeInclusive<u16>,
    /// In the text of the policy.
    pub span: Range<usize>,
}

impl LocalPorts {
    /// The values of `ip_local_port_range` and `ip_local_reserved_ports`.
    pub fn parse(range: &str, reserved: &str) -> Option<LocalPorts> {
        let mut ends = range.split_whitespace().map(str::parse);
        let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else {
            return None;
        };
        let reserved = reserved
            .split(',')
            .filter(|each| !each.is_empty())
            .map(|each| {
                let (first, last) = each.split_once('-').unwrap_or((each, each));
                Some(first.parse().ok()?..=last.parse().ok()?)
            })
            .collect::<Option<_>>()?;
        Some(LocalPorts {
            range: first..=last,
            reserved,
        })
    }

    /// Whether the kernel may take this port.
    pub fn contains(&self, port: u16) -> bool {
        self.shared(&(port..=port)) > 0
    }

    /// How many of `ports` the kernel may take.
    fn shared(&self, ports: &RangeInclusive<u16>) -> usize {
        let free = |port: &u16| !self.reserved.iter().any(|reserved| reserved.contains(port));
        let first = *ports.start().max(self.range.start());
        let last = *ports.end().min(self.range.end());
        (first..=last).filter(free).count()
    }
}

/// Warnings about the ranges that share ports with `local`. A single port is left alone: the service holds it, so the
/// kernel gives it to nobody else.
pub fn warnings(loaded: &Loaded, path: &Path, local: &LocalPorts) -> Vec<Diagnostic> {
    let told: Vec<(&UdpRange, usize)> = loaded
        .udp_ranges
        .iter()
        .filter(|range| range.ports.len() > 1 && !admits_anybody(&loaded.policy, range.service))
        .map(|range| (range, local.shared(&range.ports)))
        .filter(|(_, shared)| *shared > 0)
        .collect();
    if told.is_empty() {
        return Vec::new();
    }
    let text = Text::new(path, &loaded.text);
    told.into_iter()
        .map(|(range, shared)| {
            let (first, last) = (range.ports.start(), range.ports.end());
            let message = format!(
                "{shared} of these ports are among those that the host takes for its own queries ({}-{}): what answers \
                 them is judged by the rules of this service, and dropped if they do not allow it",
                local.range.start(),
                local.range.end()
            );
            let hint = format!(
                "narrow the range, or add {first}-{last} to the list in net.ipv4.ip_local_reserved_ports"
            );
            text.diagnostic(range.span.clone(), message).hint(hint)
        })
        .collect()
}

fn admits_anybody(policy: &Policy, service: ServiceId) -> bool {
    let mut own = policy
        .rules
        .iter()
        .filter(|rule| rule.owner == Owner::Service(service));
    own.any(|rule| rule.any && rule.action == Action::Allow)
}

#[cfg(test)]
mod tests {
    use super::super::file::parse;
    use super::*;

    fn told(ports: &str, allow: &str, local: &LocalPorts) -> Vec<Diagnostic> {
        let text = format!(
            "version = 1\n[[service]]\nname = \"rtp\"\nports = [\"tcp/5060\", \"{ports}\"]\nallow = [\"{allow}\"]\n"
        );
        let path = Path::new("p.toml");
        let loaded = parse(&text, path, 0).unwrap();
        warnings(&loaded, path, local)
    }

    #[test]
    fn a_udp_range_among_the_hosts_own_ports_is_told() {
        let local = LocalPorts::default();
        let found = told("udp/60000-61000", "192.0.2.0/24", &local);
        assert_eq!(found.len(), 1);
        assert!(
            found[0]
                .to_string()
                .starts_with("p.toml:4:22: 1000 of these ports are among those"),
            "{}",
            found[0]
        );
        assert!(
            found[0]
                .to_string()
                .contains("add 60000-61000 to the list in net.ipv4.ip_local_reserved_ports")
        );
        for (ports, allow) in [
            ("udp/61000-65535", "192.0.2.0/24"),
            ("udp/10000-32767", "192.0.2.0/24"),
            ("udp/51820", "192.0.2.0/24"),
            ("tcp/32768-60999", "192.0.2.0/24"),
            ("udp/60000-61000", "any"),
        ] {
            assert_eq!(told(ports, allow, &local), [], "{ports} {allow}");
        }
    }

    #[test]
    fn the_settings_of_the_host_count() {
        let reserved = LocalPorts::parse("32768\t60999", "50000,60000-60900").unwrap();
        let found = told("udp/60000-61000", "192.0.2.0/24", &reserved);
        assert!(found[0].message.starts_with("99 of"), "{}", found[0]);
        let moved = LocalPorts::parse("1024 2048", "").unwrap();
        assert_eq!(told("udp/60000-61000", "192.0.2.0/24", &moved), []);
        assert_eq!(LocalPorts::parse("", ""), None);
        assert_eq!(LocalPorts::parse("1024 2048", "x"), None);
    }
}
