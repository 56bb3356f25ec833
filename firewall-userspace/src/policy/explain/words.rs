//! The trace of a decision in sentences.

mod hint;
mod reasons;

use super::packet::PacketSpec;
use crate::api::types::{ExplainStep, Explanation};
use crate::policy::compile::{Compiled, Ending};
use crate::policy::model::{Action, Owner, Place, Policy, Rule, Service, ServiceId};
use crate::policy::{ports, prefix};
use crate::simulate::Transport;
use firewall_common::control::{Config, Failsafe};
use firewall_common::decide::{Outcome, Socket, Step};
use firewall_common::image::PortKey;
use firewall_common::verdict::{Reason, Verdict};
use ipnetwork::IpNetwork;
use reasons::{kind, meaning};
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
        let place = rule
            .map(|rule| &rule.place)
            .or(service.map(|service| &service.place));
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
        let owner = self
            .ending()
            .and_then(|ending| ending.service)
            .or_else(|| service_id(self.outcome.service));
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
            steps.push(step(
                "mode",
                "the agent only observes: this is counted as would-drop, and passes".to_owned(),
            ));
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
                format!(
                    "{protocol} {} (type {icmp_type}, code {code})",
                    self.spec.icmp_name()
                )
            }
            Transport::Raw(number) => format!("protocol {number}"),
        };
        let tags = match self.spec.vlan.len() {
            0 => "",
            1 => ", a VLAN tag, which changes nothing",
            _ => ", two VLAN tags, which change nothing",
        };
        let hops = match (self.spec.hop_limit(), self.spec.src.is_ipv4()) {
            (64, _) => String::new(),
            (hops, true) => format!(", TTL {hops}"),
            (hops, false) => format!(", hop limit {hops}"),
        };
        format!("{family}, {transport}{hops}{tags}")
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
                step(
                    "source",
                    format!("{src} is in class {class} of {classes} (sources that all rules treat alike)"),
                )
            }
            Step::Verdict { reason, .. } => self.verdict(reason)?,
            Step::Gate { open: false } => {
                step("reply", "it answers nothing that this host opened".to_owned())
            }
            Step::Gate { open: true } => step(
                "reply",
                "this host has opened something from that port: it may be an answer".to_owned(),
            ),
            Step::Flow(None) => step(
                "reply",
                "the flow table knows of nothing that it answers".to_owned(),
            ),
            Step::Flow(Some(state)) => step(
                "reply",
                format!("it answers a flow that this host opened ({})", state.word()),
            ),
            Step::Later(None) => step(
                "fragment",
                "no first fragment of its datagram was admitted before it".to_owned(),
            ),
            Step::Later(Some(reason)) => step(
                "fragment",
                format!("it follows the first fragment of its datagram ({})", reason.word()),
            ),
            Step::Quote { known: true } => step(
                "related",
                "it reports an error of something that this host sends".to_owned(),
            ),
            Step::Quote { known: false } => step(
                "related",
                "it quotes nothing that this host sends".to_owned(),
            ),
            Step::Answer { key, service } => step("answer", self.port(key, service)),
            Step::Egress { key, .. } => step("egress", format!("the egress rules for {}", show_port(key))),
            Step::Socket(socket) => step(
                "reply",
                match socket {
                    Socket::Unknown => "no socket of this host is connected to that peer: it is no answer",
                    Socket::Accepted => {
                        "that connection was accepted, not opened, by this host: it is no answer"
                    }
                    Socket::Opened => "it answers a connection that this host opened",
                }
                .to_owned(),
            ),
            Step::Default { allow } => {
                let word = if allow { "allow" } else { "deny" };
                step(
                    "default",
                    format!("what no service names: {word} (ingress in [defaults])"),
                )
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
                if !self.policy.rules.iter().any(|rule| rule.owner == Owner::Policy) {
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
            Some(network) => {
                let place = self.list_place(rule, network);
                let place = place.map_or(String::new(), |place| format!(" ({place})"));
                format!(": {src} is in {}{place}", prefix::show(network))
            }
            None => String::new(),
        };
        let overruled = match (rule.action, self.service_at_port()) {
            (Action::Deny, Some(service)) => self
                .rules_of(service, Action::Allow)
                .find(|rule| rule.any || self.covering(rule).is_some())
                .map(|allow| format!("; allow {} names it too, but deny beats allow", allow.source)),
            _ => None,
        };
        let owner = if rule.owner == Owner::Policy {
            " (on every port)"
        } else {
            ""
        };
        format!(
            "{} {}{owner}{matched}{}",
            action(rule),
            rule.source,
            overruled.unwrap_or_default()
        )
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
        let index = self
            .policy
            .services
            .iter()
            .position(|each| std::ptr::eq(each, service));
        self.policy.rules.iter().filter(move |rule| {
            rule.action == action
                && rule.owner.service().map(|id| usize::from(id.0)) == index
                && index.is_some()
        })
    }

    fn sources_of(&self, service: &Service, action: Action) -> Vec<String> {
        const SHOWN: usize = 5;
        let mut sources: Vec<String> = self
            .rules_of(service, action)
            .map(|rule| rule.source.clone())
            .collect();
        if sources.len() > SHOWN {
            let more = sources.len() - SHOWN;
            sources.truncate(SHOWN);
            sources.push(format!("{more} more"));
        }
        sources
    }

    /// The narrowest prefix of a rule that holds the source.
    fn covering(&self, rule: &Rule) -> Option<IpNetwork> {
        let lists = rule
            .lists
            .iter()
            .filter_map(|&list| self.policy.lists.get(list as usize));
        match self.spec.src {
            IpAddr::V4(src) => {
                let src = u32::from(src);
                let holds = |&&(base, len): &&(u32, u8)| {
                    len == 0 || (src ^ base) >> (32 - u32::from(len.min(32))) == 0
                };
                let (base, len) = *lists
                    .flat_map(|list| list.v4.iter().filter(holds))
                    .max_by_key(|entry| entry.1)?;
                IpNetwork::new(Ipv4Addr::from(base).into(), len).ok()
            }
            IpAddr::V6(src) => {
                let src = u128::from(src);
                let holds = |&&(base, len): &&(u128, u8)| {
                    len == 0 || (src ^ base) >> (128 - u32::from(len.min(128))) == 0
                };
                let (base, len) = *lists
                    .flat_map(|list| list.v6.iter().filter(holds))
                    .max_by_key(|entry| entry.1)?;
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
            Some(entry) => format!(
                "the agent's failsafe admits {}: no policy closes it",
                show_failsafe(entry)
            ),
            None => "the agent's failsafe admits it: no policy closes it".to_owned(),
        }
    }
}

fn step(name: &str, finding: String) -> ExplainStep {
    ExplainStep {
        step: name.to_owned(),
        finding,
    }
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

#[cfg(test)]
mod tests;
