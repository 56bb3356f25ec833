//! The trace of a decision in sentences.

use super::packet::PacketSpec;
use crate::api::types::{ExplainStep, Explanation};
use crate::policy::compile::{Compiled, Ending};
use crate::policy::model::{Action, Place, Policy, Rule, Service, ServiceId};
use crate::policy::{ports, prefix};
use crate::simulate::Transport;
use firewall_common::control::{Config, Failsafe};
use firewall_common::decide::{Outcome, Socket, Step};
use firewall_common::image::PortKey;
use firewall_common::verdict::{Reason, Verdict};
use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A decision, and all there is to tell about it.
pub struct Account<'a> {
    pub policy: &'a Policy,
    /// Of the policy file.
    pub text: &'a str,
    pub compiled: &'a Compiled,
    pub config: &'a Config,
    pub spec: &'a PacketSpec,
    /// The source is an address of this host.
    pub own_source: bool,
    pub outcome: Outcome,
    pub steps: &'a [Step],
}

impl<'a> Account<'a> {
    pub fn explanation(&self) -> Explanation {
        let reason = self.outcome.reason;
        let rule = self.rule();
        let service = self.service();
        let place = rule.map(|rule| &rule.place).or(service.map(|service| &service.place));
        Explanation {
            packet: self.spec.to_string(),
            verdict: match reason.verdict() {
                Verdict::Pass => "pass",
                Verdict::Drop => "drop",
            }
            .to_owned(),
            reason: reason.word().to_owned(),
            service: service.map(|service| service.name.clone()),
            rule: rule.map(|rule| format!("{} {}", action(rule), rule.source)),
            line: place.and_then(|place| self.line(place)),
            place: place.cloned(),
            generation: 0,
            steps: self.steps(),
            hint: self.hint(),
        }
    }

    fn ending(&self) -> Option<&Ending> {
        // The bare reasons stand first and name neither service nor rule.
        self.compiled.endings.get(self.outcome.ending as usize)
    }

    fn rule(&self) -> Option<&'a Rule> {
        let id = self.ending()?.rule?;
        self.policy.rules.get(id.0 as usize)
    }

    fn service(&self) -> Option<&'a Service> {
        let owner = self.ending().and_then(|ending| ending.service).or_else(|| service_id(self.outcome.service));
        self.service_of(owner?)
    }

    fn service_of(&self, id: ServiceId) -> Option<&'a Service> {
        self.policy.services.get(usize::from(id.0))
    }

    fn line(&self, place: &Place) -> Option<String> {
        let index = (place.line as usize).checked_sub(1)?;
        self.text.lines().nth(index).map(str::to_owned)
    }

    fn steps(&self) -> Vec<ExplainStep> {
        let mut steps = vec![step("packet", self.packet())];
        steps.extend(self.steps.iter().filter_map(|each| self.step(each)));
        if self.config.observe != 0 && self.outcome.reason.verdict() == Verdict::Drop {
            steps.push(step("mode", "the agent only observes: this is counted as would-drop, and passes".to_owned()));
        }
        steps
    }

    fn packet(&self) -> String {
        let family = if self.spec.src.is_ipv4() { "IPv4" } else { "IPv6" };
        let transport = match self.spec.transport {
            Transport::Tcp { .. } => format!("TCP, {}", self.spec.flags()),
            Transport::Udp { .. } => "UDP".to_owned(),
            Transport::Sctp { .. } => "SCTP".to_owned(),
            Transport::Icmp { icmp_type, code, .. } => {
                let protocol = if self.spec.src.is_ipv4() { "ICMP" } else { "ICMPv6" };
                format!("{protocol} {} (type {icmp_type}, code {code})", self.spec.icmp_name())
            }
            Transport::Raw(number) => format!("protocol {number}"),
        };
        let tags = match self.spec.vlan.len() {
            0 => "",
            1 => ", a VLAN tag, which changes nothing",
            _ => ", two VLAN tags, which change nothing",
        };
        format!("{family}, {transport}{tags}")
    }

    fn step(&self, each: &Step) -> Option<ExplainStep> {
        let src = self.spec.src;
        Some(match *each {
            Step::Malformed(reason) => step("packet", meaning(reason).to_owned()),
            Step::Martian => step("packet", self.martian()),
            Step::Essential(reason) => step("essential", format!("{}: no policy closes it", meaning(reason))),
            Step::Failsafe(index) => step("failsafe", self.failsafe(index)),
            Step::NotFailsafe => step("failsafe", "no failsafe rule of the agent names it".to_owned()),
            Step::Port { key, service } => step("port", self.port(key, service)),
            Step::Class(class) => {
                let classes = self.compiled.stats.classes;
                step("source", format!("{src} is in class {class} of {classes} (sources that all rules treat alike)"))
            }
            Step::Verdict { reason, .. } => self.verdict(reason)?,
            Step::Gate { open: false } => step("reply", "it answers nothing that this host opened".to_owned()),
            Step::Gate { open: true } => {
                step("reply", "this host has opened something from that port: it may be an answer".to_owned())
            }
            Step::Socket(socket) => step(
                "reply",
                match socket {
                    Socket::Unknown => "no socket of this host is connected to that peer: it is no answer",
                    Socket::Accepted => "that connection was accepted, not opened, by this host: it is no answer",
                    Socket::Opened => "it answers a connection that this host opened",
                }
                .to_owned(),
            ),
            Step::Default { allow } => {
                let word = if allow { "allow" } else { "deny" };
                step("default", format!("what no service names: {word} (ingress in [defaults])"))
            }
        })
    }

    fn port(&self, key: PortKey, service: u16) -> String {
        let port = show_port(key);
        match service_id(service).and_then(|id| self.service_of(id)) {
            Some(service) => format!("{port} belongs to service {} ({})", service.name, service.place),
            None => format!("no service names {port}"),
        }
    }

    fn verdict(&self, reason: u8) -> Option<ExplainStep> {
        let src = self.spec.src;
        let finding = match Reason::from_number(reason) {
            None => {
                if !self.policy.rules.iter().any(|rule| rule.service.is_none()) {
                    return None;
                }
                format!("the deny list of the policy does not name {src}")
            }
            Some(Reason::NotAllowed) => {
                let service = self.service()?;
                let allowed = self.sources_of(service, Action::Allow);
                match allowed.is_empty() {
                    true => format!("{} allows nobody", service.name),
                    false => format!("{} allows {}, not {src}", service.name, allowed.join(", ")),
                }
            }
            Some(reason) => match self.rule() {
                Some(rule) => self.rule_words(rule),
                None => meaning(reason).to_owned(),
            },
        };
        Some(step("rule", finding))
    }

    /// `allow @web: 10.20.3.4 is in 10.20.0.0/16`, and whom a deny overrules.
    fn rule_words(&self, rule: &Rule) -> String {
        let src = self.spec.src;
        let matched = match self.covering(rule) {
            _ if rule.any => ": every source".to_owned(),
            Some(network) if prefix::show(network) == rule.source => String::new(),
            Some(network) => format!(": {src} is in {}", prefix::show(network)),
            None => String::new(),
        };
        let overruled = match (rule.action, self.service_at_port()) {
            (Action::Deny, Some(service)) => self
                .rules_of(service, Action::Allow)
                .find(|rule| rule.any || self.covering(rule).is_some())
                .map(|allow| format!("; allow {} names it too, but deny beats allow", allow.source)),
            _ => None,
        };
        let owner = if rule.service.is_none() { " (on every port)" } else { "" };
        format!("{} {}{owner}{matched}{}", action(rule), rule.source, overruled.unwrap_or_default())
    }

    /// The service that owns the packet's port, also when a rule of the whole policy ended it.
    fn service_at_port(&self) -> Option<&'a Service> {
        let asked = self.steps.iter().find_map(|each| match each {
            Step::Port { service, .. } => Some(*service),
            _ => None,
        });
        self.service_of(service_id(asked?)?)
    }

    fn rules_of(&self, service: &Service, action: Action) -> impl Iterator<Item = &'a Rule> {
        let index = self.policy.services.iter().position(|each| std::ptr::eq(each, service));
        self.policy.rules.iter().filter(move |rule| {
            rule.action == action && rule.service.map(|id| usize::from(id.0)) == index && index.is_some()
        })
    }

    fn sources_of(&self, service: &Service, action: Action) -> Vec<String> {
        const SHOWN: usize = 5;
        let mut sources: Vec<String> = self.rules_of(service, action).map(|rule| rule.source.clone()).collect();
        if sources.len() > SHOWN {
            let more = sources.len() - SHOWN;
            sources.truncate(SHOWN);
            sources.push(format!("{more} more"));
        }
        sources
    }

    /// The narrowest prefix of a rule that holds the source.
    fn covering(&self, rule: &Rule) -> Option<IpNetwork> {
        let lists = rule.lists.iter().filter_map(|&list| self.policy.lists.get(list as usize));
        match self.spec.src {
            IpAddr::V4(src) => {
                let src = u32::from(src);
                let holds = |&&(base, len): &&(u32, u8)| len == 0 || (src ^ base) >> (32 - u32::from(len.min(32))) == 0;
                let (base, len) = *lists.flat_map(|list| list.v4.iter().filter(holds)).max_by_key(|entry| entry.1)?;
                IpNetwork::new(Ipv4Addr::from(base).into(), len).ok()
            }
            IpAddr::V6(src) => {
                let src = u128::from(src);
                let holds = |&&(base, len): &&(u128, u8)| len == 0 || (src ^ base) >> (128 - u32::from(len.min(128))) == 0;
                let (base, len) = *lists.flat_map(|list| list.v6.iter().filter(holds)).max_by_key(|entry| entry.1)?;
                IpNetwork::new(Ipv6Addr::from(base).into(), len).ok()
            }
        }
    }

    fn martian(&self) -> String {
        let (src, dst) = (self.spec.src, self.spec.destination([]));
        match (kind(src), kind(dst)) {
            _ if self.own_source => format!("{src} is an address of this host: nobody else sends from it"),
            (Some(kind), _) => format!("{src} is {kind}: it never comes from a wire"),
            (None, Some(kind)) => format!("{dst} is {kind}: nothing on a wire goes to it"),
            (None, None) => meaning(Reason::Martian).to_owned(),
        }
    }

    fn failsafe(&self, index: u32) -> String {
        match self.config.failsafe.get(index as usize) {
            Some(entry) => format!("the agent's failsafe admits {}: no policy closes it", show_failsafe(entry)),
            None => "the agent's failsafe admits it: no policy closes it".to_owned(),
        }
    }

    fn hint(&self) -> Option<String> {
        let src = self.spec.src;
        match self.outcome.reason {
            Reason::NotAllowed => {
                Some(format!("to let it in: ravelin allow {} {src}", self.service()?.name))
            }
            Reason::ServiceDenied => {
                let (service, rule) = (self.service()?, self.rule()?);
                Some(format!(
                    "deny beats allow: to let it in, take {} out of the deny list of {} ({})",
                    rule.source, service.name, rule.place
                ))
            }
            Reason::Denied => {
                let rule = self.rule()?;
                Some(match rule.source.parse::<IpNetwork>() {
                    Ok(_) => format!("to let it in: ravelin undeny {}", rule.source),
                    Err(_) => {
                        let matched = self.covering(rule).map_or(src.to_string(), prefix::show);
                        format!("to let it in, take {matched} out of {} ({})", rule.source, rule.place)
                    }
                })
            }
            Reason::Closed | Reason::IcmpError => {
                let key = self.steps.iter().find_map(|each| match each {
                    Step::Port { key, .. } => Some(*key),
                    _ => None,
                })?;
                Some(match self.sibling(key) {
                    Some((service, other)) => format!(
                        "{} has {}, not {}: to open it, add it to the ports of {} ({})",
                        service.name,
                        show_port(other),
                        show_port(key),
                        service.name,
                        service.place
                    ),
                    None => format!("to open it: ravelin service add NAME {} --allow {src}", show_port(key)),
                })
            }
            Reason::NoPolicy => Some("no policy is in force: ravelin status tells why".to_owned()),
            _ => None,
        }
    }

    /// The same port of another transport, and the service that has it: the likeliest mistake.
    fn sibling(&self, key: PortKey) -> Option<(&'a Service, PortKey)> {
        let port = key.0 as u16;
        let others = [PortKey::tcp(port), PortKey::udp(port), PortKey::sctp(port)];
        if !matches!(self.spec.transport, Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Sctp { .. }) {
            return None;
        }
        others.into_iter().filter(|other| *other != key).find_map(|other| {
            let owns = |service: &&Service| service.ports.iter().any(|(first, last)| *first <= other && other <= *last);
            self.policy.services.iter().find(owns).map(|service| (service, other))
        })
    }
}

fn step(name: &str, finding: String) -> ExplainStep {
    ExplainStep { step: name.to_owned(), finding }
}

/// The image numbers services from 1.
fn service_id(number: u16) -> Option<ServiceId> {
    number.checked_sub(1).map(ServiceId)
}

fn action(rule: &Rule) -> &'static str {
    match rule.action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    }
}

fn show_port(key: PortKey) -> String {
    ports::show(&[(key, key)]).join(", ")
}

fn show_failsafe(entry: &Failsafe) -> String {
    let protocol = match entry.protocol {
        6 => "tcp",
        17 => "udp",
        _ => "sctp",
    };
    let mask = entry.mask_high.count_ones() + entry.mask_low.count_ones();
    let base: IpAddr = match entry.version {
        4 => Ipv4Addr::from(entry.prefix_low as u32).into(),
        _ => Ipv6Addr::from(u128::from(entry.prefix_high) << 64 | u128::from(entry.prefix_low)).into(),
    };
    let from = match IpNetwork::new(base, mask as u8) {
        Ok(network) if mask > 0 => prefix::show(network),
        _ => "any".to_owned(),
    };
    format!("{protocol}/{} from {from}", entry.dst_port)
}

/// What kind of address never is an end of a packet on a wire.
fn kind(address: IpAddr) -> Option<&'static str> {
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
fn meaning(reason: Reason) -> &'static str {
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
        Reason::NoPolicy => "no policy can be read",
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet;
    use super::*;
    use crate::policy::compile::Stats;
    use crate::policy::file;
    use crate::policy::model::RuleId;
    use firewall_common::control::LINK_LACP;
    use std::path::Path;

    const POLICY: &str = r#"version = 1
deny = ["203.0.113.0/24"]

[groups]
web = ["10.20.0.0/16", "10.0.0.0/8"]

[[service]]
name  = "payments-api"
ports = ["tcp/8443"]
allow = ["@web", "198.51.100.7"]
deny  = ["10.20.66.0/24"]
"#;

    /// Tells of a decision that the test itself has made up.
    fn told(text: &str, reason: Reason, rule: Option<&str>, steps: &[Step], observe: bool) -> Explanation {
        let loaded = file::parse(POLICY, Path::new("policy.toml"), 0).unwrap();
        let policy = loaded.policy;
        let rule = rule.map(|source| {
            let index = policy.rules.iter().position(|rule| rule.source == source).unwrap();
            RuleId(index as u32)
        });
        let service = (!matches!(reason, Reason::Denied | Reason::Closed)).then_some(ServiceId(0));
        let mut endings = vec![Ending { reason: None, service: None, rule: None }; Reason::COUNT];
        endings.push(Ending { reason: Some(reason), service, rule });
        let stats = Stats { classes: 5, ..Stats::default() };
        let compiled = Compiled { image: Vec::new(), digest: [0; 32], endings, stats };
        let config = Config { observe: observe.into(), link_control: LINK_LACP, ..Config::DEFAULT };
        let spec = packet::parse(text).unwrap();
        let outcome = Outcome { reason, ending: Reason::COUNT as u32, service: u16::from(service.is_some()) };
        let account =
            Account { policy: &policy, text: POLICY, compiled: &compiled, config: &config, spec: &spec, own_source: false, outcome, steps };
        account.explanation()
    }

    fn findings(explanation: &Explanation) -> Vec<String> {
        explanation.steps.iter().map(|step| format!("{}: {}", step.step, step.finding)).collect()
    }

    fn steps(port: u16, service: u16, reason: Reason) -> [Step; 3] {
        let ending = Reason::COUNT as u32;
        [Step::Port { key: PortKey::tcp(port), service }, Step::Class(3), Step::Verdict { reason: reason.number(), ending }]
    }

    #[test]
    fn an_allow_names_rule_place_line_and_the_narrowest_prefix() {
        let told = told("tcp 10.20.3.4 -> 8443", Reason::Allowed, Some("@web"), &steps(8443, 1, Reason::Allowed), false);
        assert_eq!((told.verdict.as_str(), told.reason.as_str()), ("pass", "allowed"));
        assert_eq!(told.rule.as_deref(), Some("allow @web"));
        assert_eq!(told.place.as_ref().map(ToString::to_string).as_deref(), Some("policy.toml:10:10"));
        assert_eq!(told.line.as_deref(), Some("allow = [\"@web\", \"198.51.100.7\"]"));
        assert_eq!(
            findings(&told),
            [
                "packet: IPv4, TCP, SYN",
                "port: tcp/8443 belongs to service payments-api (policy.toml:8:9)",
                "source: 10.20.3.4 is in class 3 of 5 (sources that all rules treat alike)",
                "rule: allow @web: 10.20.3.4 is in 10.20.0.0/16",
            ]
        );
        assert_eq!(told.hint, None);
    }

    #[test]
    fn a_deny_says_which_allow_it_beats() {
        let steps = steps(8443, 1, Reason::ServiceDenied);
        let told = told("tcp 10.20.66.4 -> 8443", Reason::ServiceDenied, Some("10.20.66.0/24"), &steps, false);
        assert_eq!(
            findings(&told).last().unwrap(),
            "rule: deny 10.20.66.0/24; allow @web names it too, but deny beats allow"
        );
        assert_eq!(
            told.hint.unwrap(),
            "deny beats allow: to let it in, take 10.20.66.0/24 out of the deny list of payments-api (policy.toml:11:10)"
        );
    }

    #[test]
    fn a_deny_of_the_whole_policy_offers_undeny() {
        let steps = steps(8443, 1, Reason::Denied);
        let told = told("tcp 203.0.113.9 -> 8443", Reason::Denied, Some("203.0.113.0/24"), &steps, false);
        assert_eq!(findings(&told).last().unwrap(), "rule: deny 203.0.113.0/24 (on every port)");
        assert_eq!(told.hint.unwrap(), "to let it in: ravelin undeny 203.0.113.0/24");
        assert_eq!(told.service, None);
    }

    #[test]
    fn who_is_not_allowed_is_told_who_is_and_how_to_join() {
        let steps = steps(8443, 1, Reason::NotAllowed);
        let told = told("tcp 192.0.2.9 -> 8443", Reason::NotAllowed, None, &steps, true);
        assert_eq!(told.place.as_ref().map(|place| place.line), Some(8));
        assert_eq!(
            findings(&told)[3..],
            [
                "rule: payments-api allows @web, 198.51.100.7, not 192.0.2.9",
                "mode: the agent only observes: this is counted as would-drop, and passes",
            ]
        );
        assert_eq!(told.hint.unwrap(), "to let it in: ravelin allow payments-api 192.0.2.9");
    }

    #[test]
    fn a_closed_port_offers_a_service_or_names_the_likely_mistake() {
        let closed = |text, key| {
            let steps = [Step::Port { key, service: 0 }, Step::Gate { open: false }, Step::Default { allow: false }];
            told(text, Reason::Closed, None, &steps, false)
        };
        let plain = closed("tcp 10.20.3.4 -> 9999", PortKey::tcp(9999));
        assert_eq!(
            findings(&plain)[1..],
            [
                "port: no service names tcp/9999",
                "reply: it answers nothing that this host opened",
                "default: what no service names: deny (ingress in [defaults])",
            ]
        );
        assert_eq!(plain.hint.unwrap(), "to open it: ravelin service add NAME tcp/9999 --allow 10.20.3.4");
        let mistaken = closed("udp 10.20.3.4 -> 8443", PortKey::udp(8443));
        assert_eq!(
            mistaken.hint.unwrap(),
            "payments-api has tcp/8443, not udp/8443: to open it, add it to the ports of payments-api (policy.toml:8:9)"
        );
    }
}
