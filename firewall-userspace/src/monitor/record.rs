//! An event of the kernel in the words of the policy that judged the packet.

use super::time::rfc3339;
use crate::agent::clock;
use crate::agent::counters::{EndingName, PASS, WOULD_DROP, verdict_word};
use crate::api::types::EventRecord;
use firewall_common::event::Event;
use firewall_common::verdict::{Direction, Reason};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Events of this many generations can still be in the ring when a policy changes.
const GENERATIONS: usize = 4;

/// What the numbers in an event stand for.
#[derive(Debug, Default)]
pub struct Directory {
    generations: VecDeque<(u64, Arc<[EndingName]>)>,
    pub interfaces: HashMap<u32, String>,
}

impl Directory {
    pub fn add_generation(&mut self, generation: u64, names: &[EndingName]) {
        self.generations.retain(|(number, _)| *number != generation);
        self.generations.push_front((generation, names.into()));
        self.generations.truncate(GENERATIONS);
    }

    /// `suppressed` is left at zero: it differs from one reader to the next.
    pub fn record(&self, event: &Event) -> EventRecord {
        let name = self
            .generations
            .iter()
            .find(|(number, _)| *number == event.generation)
            .and_then(|(_, names)| names.get(event.ending as usize));
        let reason = Reason::from_number(event.reason);
        let direction = Direction::from_number(event.direction).unwrap_or_default();
        let verdict = match (event.observed, reason) {
            (0, Some(reason)) => verdict_word(reason),
            (0, None) => PASS,
            _ => WOULD_DROP,
        };
        let (ports, icmp) = (ports(event), icmp(event));
        EventRecord {
            time: rfc3339(wall_time(event.time_ns)),
            interface: self
                .interfaces
                .get(&event.ifindex)
                .cloned()
                .unwrap_or_else(|| event.ifindex.to_string()),
            direction: direction.word().to_owned(),
            verdict: verdict.to_owned(),
            reason: reason.map_or_else(|| event.reason.to_string(), |reason| reason.word().to_owned()),
            service: name.map(|name| name.service.clone()).unwrap_or_default(),
            rule: name
                .and_then(|name| name.rule.as_ref())
                .map(|rule| format!("{} {}", rule.action, rule.source))
                .unwrap_or_default(),
            protocol: protocol(event),
            src: address(event.version, event.src_high, event.src_low),
            src_port: ports.map(|(src, _)| src),
            dst: address(event.version, event.dst_high, event.dst_low),
            dst_port: ports.map(|(_, dst)| dst),
            icmp_type: icmp.map(|[kind, _]| kind),
            icmp_code: icmp.map(|[_, code]| code),
            length: event.length,
            tcp_flags: tcp_flags(event.tcp_flags),
            vlan: [event.vlan_outer, event.vlan_inner]
                .iter()
                .filter(|tag| **tag != 0xffff)
                .map(|tag| tag & 0xfff)
                .collect(),
            ethertype: event.ethertype,
            generation: event.generation,
            suppressed: 0,
        }
    }
}

fn wall_time(monotonic_ns: u64) -> SystemTime {
    let age = clock::monotonic().saturating_sub(Duration::from_nanos(monotonic_ns));
    SystemTime::now()
        .checked_sub(age)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn protocol(event: &Event) -> String {
    protocol_word(event.version, event.protocol)
}

/// `tcp`, `icmpv6`, or the number; nothing for what is not IP.
pub fn protocol_word(version: u8, protocol: u8) -> String {
    let word = match (version, protocol) {
        (0, _) => "",
        (_, 1) => "icmp",
        (_, 6) => "tcp",
        (_, 17) => "udp",
        (_, 58) => "icmpv6",
        (_, 132) => "sctp",
        (_, number) => return number.to_string(),
    };
    word.to_owned()
}

/// Both are zero where the packet ended before them, and in fragments after the first.
fn ports(event: &Event) -> Option<(u16, u16)> {
    let has_ports = event.version != 0 && matches!(event.protocol, 6 | 17 | 132);
    let ports = (event.src_port, event.dst_port);
    (has_ports && ports != (0, 0)).then_some(ports)
}

/// Type and code, which stand in the place of the destination port.
fn icmp(event: &Event) -> Option<[u8; 2]> {
    matches!((event.version, event.protocol), (4, 1) | (6, 58)).then(|| event.dst_port.to_be_bytes())
}

fn address(version: u8, high: u64, low: u64) -> String {
    let address = match version {
        4 => IpAddr::V4(Ipv4Addr::from(low as u32)),
        6 => IpAddr::V6(Ipv6Addr::from((high as u128) << 64 | low as u128)),
        _ => return String::new(),
    };
    address.to_string()
}

fn tcp_flags(flags: u8) -> String {
    const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set: Vec<&str> = NAMES
        .iter()
        .enumerate()
        .filter(|(bit, _)| flags >> bit & 1 == 1)
        .map(|(_, name)| *name)
        .collect();
    set.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::counters::{RuleKey, ingress};

    #[test]
    fn an_event_is_told_in_the_words_of_its_own_generation() {
        let name = |service: &str| EndingName {
            service: service.into(),
            direction: ingress(),
            reason: Some("service-denied".into()),
            opens: false,
            rule: Some(RuleKey {
                service: service.into(),
                direction: ingress(),
                action: "deny".into(),
                source: "@bad".into(),
            }),
        };
        let mut directory = Directory::default();
        directory.add_generation(3, &[name("old")]);
        directory.add_generation(4, &[name("new")]);
        directory.interfaces.insert(7, "eth0".into());
        let event = Event {
            time_ns: clock::monotonic().as_nanos() as u64,
            generation: 3,
            src_low: 0xc000_0201,
            dst_low: 0xc633_6401,
            ifindex: 7,
            version: 4,
            protocol: 6,
            dst_port: 443,
            reason: Reason::ServiceDenied.number(),
            tcp_flags: 0x12,
            vlan_outer: 0x6064,
            vlan_inner: 0xffff,
            ..Event::default()
        };
        let record = directory.record(&event);
        assert_eq!(
            (record.service.as_str(), record.rule.as_str()),
            ("old", "deny @bad")
        );
        assert_eq!(
            (record.src.as_str(), record.dst.as_str(), record.dst_port),
            ("192.0.2.1", "198.51.100.1", Some(443))
        );
        assert_eq!(
            (record.verdict.as_str(), record.reason.as_str()),
            ("drop", "service-denied")
        );
        assert_eq!(
            (
                record.interface.as_str(),
                record.tcp_flags.as_str(),
                &record.vlan[..]
            ),
            ("eth0", "SYN,ACK", &[100][..])
        );

        let observed = directory.record(&Event {
            observed: 1,
            generation: 9,
            ifindex: 8,
            version: 6,
            ..event
        });
        assert_eq!(
            (observed.verdict.as_str(), observed.service.as_str()),
            ("would-drop", "")
        );
        assert_eq!(
            (observed.interface.as_str(), observed.src.as_str()),
            ("8", "::c000:201")
        );

        let ping = directory.record(&Event {
            protocol: 1,
            dst_port: 8 << 8 | 3,
            ..event
        });
        assert_eq!((ping.icmp_type, ping.icmp_code), (Some(8), Some(3)));
        assert_eq!((ping.src_port, ping.dst_port), (None, None));
        let fragment = directory.record(&Event { dst_port: 0, ..event });
        assert_eq!((fragment.src_port, fragment.icmp_type), (None, None));
    }
}
