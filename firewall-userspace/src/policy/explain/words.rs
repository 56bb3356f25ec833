//! The trace of a decision in sentences.

mod hint;
mod reasons;

use super::packet::PacketSpec;
use crate::api::types::{ExplainStep, Explanation};
use crate::policy::compile::{Compiled, Ending};
use crate::policy::egress::holds;
use crate::policy::limits::{Kind, Limits, read::listed as listed_sources};
use crate::policy::model::{Action, Egress, Owner, Place, Policy, Rule, Service, ServiceId};
use crate::policy::{ports, prefix};
use crate::simulate::Transport;
use firewall_common::control::{Config, Failsafe};
use firewall_common::decide::{Outcome, Socket, Step};
use firewall_common::image::PortKey;
use firewall_common::verdict::{Direction, Reason, Verdict};
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
            direction: self.spec.direction.word().to_owned(),
            service: self.owner_name().map(str::to_owned),
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

    /// The service that it met, or the egress rule that decided.
    fn owner_name(&self) -> Option<&'a str> {
        match (self.service(), self.rule()) {
            (Some(service), _) => Some(&service.name),
            (None, Some(rule)) => self.egress_of(rule).map(|egress| &*egress.name),
            (None, None) => None,
        }
    }

    fn egress_of(&self, rule: &Rule) -> Option<&'a Egress> {
        self.policy.egress.get(usize::from(rule.owner.egress()?.0))
    }

    fn leaves(&self) -> bool {
        self.spec.direction == Direction::Egress
    }

    fn service_of(&self, id: ServiceId) -> Option<&'a Service> {
        self.policy.services.get(usize::from(id.0))
    }

    fn line(&self, place: &Place) -> Option<String> {
        let index = (place.line as usize).checked_sub(1)?;
        self.text.lines().nth(index).map(str::to_owned)
    }

    fn steps(&self) -> Vec<ExplainStep> {
        let mut steps = vec![step("packet", packet(self.spec))];
        for each in self.steps {
            steps.extend(self.step(each));
            if let Step::Verdict { .. } = each {
                steps.extend(self.limits());
            }
        }
        if self.config.observe != 0 && self.outcome.reason.verdict() == Verdict::Drop {
            steps.push(step(
                "mode",
                "the agent only observes: this is counted as would-drop, and passes".to_owned(),
            ));
        }
        steps
    }

    fn step(&self, each: &Step) -> Option<ExplainStep> {
        let peer = self.spec.peer;
        Some(match *each {
            Step::Malformed(reason) => step("packet", meaning(reason).to_owned()),
            Step::Martian => step("packet", self.martian()),
            Step::Essential(reason) => step(
                "essential",
                format!("{}: no policy closes it", self.essential(reason)),
            ),
            Step::Failsafe(index) => step("failsafe", self.failsafe(index)),
            Step::NotFailsafe => step("failsafe", "no failsafe rule of the agent names it".to_owned()),
            Step::Banned => step("ban", meaning(Reason::Banned).to_owned()),
            Step::Port { key, service } => step("port", self.port(key, service)),
            Step::Class(class) => {
                let classes = self.compiled.stats.classes;
                let (name, alike) = match self.spec.direction {
                    Direction::Ingress => ("source", "sources"),
                    Direction::Egress => ("peer", "addresses"),
                };
                step(
                    name,
                    format!("{peer} is in class {class} of {classes} ({alike} that all rules treat alike)"),
                )
            }
            Step::Verdict { reason, .. } => self.verdict(reason)?,
            // Told with the verdict.
            Step::Limit { excess: None, .. } => return None,
            Step::Limit {
                excess: Some(reason), ..
            } => step("limit", meaning(reason).to_owned()),
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
                format!(
                    "it follows the first fragment of its datagram ({})",
                    reason.word()
                ),
            ),
            Step::Quote { known: true } => step(
                "related",
                "it reports an error of something that this host sends".to_owned(),
            ),
            Step::Quote { known: false } => {
                step("related", "it quotes nothing that this host sends".to_owned())
            }
            Step::Answer { key, service } => step("answer", self.answer(key, service)?),
            Step::Egress { key, .. } => step("port", self.egress_port(key)),
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
                let finding = match self.spec.direction {
                    Direction::Ingress => format!("what no service names: {word} (ingress in [defaults])"),
                    Direction::Egress => format!("what no egress rule names: {word} (egress in [defaults])"),
                };
                step("default", finding)
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
        let peer = self.spec.peer;
        let finding = match Reason::from_number(reason) {
            None if self.leaves() => {
                let names = self.egress_at_port();
                match names.as_slice() {
                    // Told with the port.
                    [] => return None,
                    names => format!(
                        "{} {} not name {peer}",
                        listed(names),
                        if names.len() == 1 { "does" } else { "do" }
                    ),
                }
            }
            None => {
                if !self.policy.rules.iter().any(|rule| rule.owner == Owner::Policy) {
                    return None;
                }
                format!("the deny list of the policy does not name {peer}")
            }
            Some(Reason::NotAllowed) => {
                let service = self.service()?;
                let allowed = self.sources_of(service, Action::Allow);
                match allowed.is_empty() {
                    true => format!("{} allows nobody", service.name),
                    false => format!("{} allows {}, not {peer}", service.name, allowed.join(", ")),
                }
            }
            Some(reason) => match self.rule() {
                Some(rule) => self.rule_words(rule),
                None => meaning(reason).to_owned(),
            },
        };
        Some(step("rule", finding))
    }

    /// What the service bears of the source that it allows.
    fn limits(&self) -> Vec<ExplainStep> {
        let Some(ending) = self.ending() else {
            return Vec::new();
        };
        let (Some(id), Some(_), false) = (ending.service, ending.rule, self.leaves()) else {
            return Vec::new();
        };
        let Some(service) = self
            .service_of(id)
            .filter(|_| ending.reason == Some(Reason::Allowed))
        else {
            return Vec::new();
        };
        let group = service.groups.iter().find(|group| self.holds(&group.lists));
        let limits = group.map_or(&service.limits, |group| &group.limits);
        let tcp = matches!(self.spec.transport, Transport::Tcp { .. });
        let kinds = Kind::ALL.into_iter().filter(|kind| tcp || !kind.needs_tcp());
        let phrases = |limits: &Limits| -> Vec<String> {
            kinds.clone().filter_map(|kind| limits.phrase(kind)).collect()
        };
        let place = limits
            .place
            .as_ref()
            .map_or(String::new(), |place| format!(" ({place})"));
        let mut findings = Vec::new();
        match (group, phrases(limits)) {
            (None, none) if none.is_empty() => {}
            (None, some) => findings.push(format!("{}{place}", some.join("; "))),
            (Some(group), none) if none.is_empty() => findings.push(format!(
                "for {}: nothing is limited ({})",
                listed_sources(&group.sources),
                group.place
            )),
            (Some(group), some) => findings.push(format!(
                "for {}: {} ({})",
                listed_sources(&group.sources),
                some.join("; "),
                group.place
            )),
        }
        let totals = phrases(&service.limits.only_totals());
        if group.is_some() && !totals.is_empty() {
            findings.push(format!(
                "with all others of {}: {}",
                service.name,
                totals.join("; ")
            ));
        }
        if !findings.is_empty() {
            let length = if self.spec.is_ipv4() {
                limits.source.v4
            } else {
                limits.source.v6
            };
            findings.push(format!("on excess {}; a source is a /{length}", limits.on_excess));
        }
        findings
            .into_iter()
            .map(|finding| step("limit", finding))
            .collect()
    }

    /// `allow @web: 10.20.3.4 is in 10.20.0.0/16`, and whom a deny overrules.
    fn rule_words(&self, rule: &Rule) -> String {
        let peer = self.spec.peer;
        let matched = match self.covering(rule) {
            _ if rule.any && self.leaves() => ": every destination".to_owned(),
            _ if rule.any => ": every source".to_owned(),
            Some(network) if prefix::show(network) == rule.source => String::new(),
            Some(network) => {
                let place = self.list_place(rule, network);
                let place = place.map_or(String::new(), |place| format!(" ({place})"));
                format!(": {peer} is in {}{place}", prefix::show(network))
            }
            None => String::new(),
        };
        let owner = |rule: &Rule| match (rule.owner, self.egress_of(rule)) {
            (Owner::Policy, _) => " (on every port)".to_owned(),
            (_, Some(egress)) => format!(" of egress rule {}", egress.name),
            (_, None) => String::new(),
        };
        let overruled = self.overruled(rule).map(|allow| {
            format!(
                "; allow {}{} names it too, but deny beats allow",
                allow.source,
                owner(allow)
            )
        });
        format!(
            "{} {}{}{matched}{}",
            action(rule),
            rule.source,
            owner(rule),
            overruled.unwrap_or_default()
        )
    }

    /// An allow that names the peer as well, and would have decided but for this deny.
    fn overruled(&self, deny: &Rule) -> Option<&'a Rule> {
        if deny.action != Action::Deny {
            return None;
        }
        let names =
            |rule: &&Rule| rule.action == Action::Allow && (rule.any || self.covering(rule).is_some());
        if deny.owner.egress().is_some() {
            let key = self.port_of_egress()?;
            let mut rules = self.policy.rules.iter();
            return rules
                .find(|rule| names(rule) && self.egress_of(rule).is_some_and(|each| holds(each, key)));
        }
        self.rules_of(self.service_at_port()?, Action::Allow).find(names)
    }

    /// The port that the egress rules were asked for.
    fn port_of_egress(&self) -> Option<PortKey> {
        self.steps.iter().find_map(|each| match each {
            Step::Egress { key, .. } => Some(*key),
            _ => None,
        })
    }

    fn egress_port(&self, key: PortKey) -> String {
        let port = show_port(key);
        match self.egress_at_port().as_slice() {
            [] => format!("no egress rule holds {port}"),
            [one] => format!("egress rule {one} holds {port}"),
            names => format!("egress rules {} hold {port}", listed(names)),
        }
    }

    /// What leaves from a port of a service is an answer if the service allows the peer.
    fn answer(&self, key: PortKey, service: u16) -> Option<String> {
        let service = self.service_of(service_id(service)?)?;
        let from = format!(
            "{} belongs to service {} ({})",
            show_port(key),
            service.name,
            service.place
        );
        let peer = self.spec.peer;
        Some(match (self.outcome.reason, self.rule()) {
            (Reason::Answer, Some(rule)) => format!("{from}: {}", self.rule_words(rule)),
            _ => format!("{from}, which does not let {peer} in: it is no answer"),
        })
    }

    fn essential(&self, reason: Reason) -> &'static str {
        match reason {
            Reason::DhcpClient if self.leaves() => "a request of the DHCP client of this host",
            Reason::Mld if self.leaves() => "what this host says of its multicast groups",
            Reason::NeighbourDiscovery if self.leaves() => "IPv6 neighbour discovery",
            Reason::Related if self.leaves() => "an ICMP error",
            reason => meaning(reason),
        }
    }

    /// The egress rules that hold the port of what leaves, by name.
    fn egress_at_port(&self) -> Vec<&'a str> {
        let Some(key) = self.port_of_egress() else {
            return Vec::new();
        };
        let holding = self.policy.egress.iter().filter(|rule| holds(rule, key));
        holding.map(|rule| &*rule.name).collect()
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

    /// The narrowest prefix of a rule that holds the peer.
    fn covering(&self, rule: &Rule) -> Option<IpNetwork> {
        self.narrowest(&rule.lists)
    }

    fn holds(&self, lists: &[u32]) -> bool {
        self.narrowest(lists).is_some()
    }

    /// The narrowest prefix of these lists that holds the peer.
    fn narrowest(&self, lists: &[u32]) -> Option<IpNetwork> {
        let lists = lists
            .iter()
            .filter_map(|&list| self.policy.lists.get(list as usize));
        match self.spec.peer {
            IpAddr::V4(peer) => {
                let peer = u32::from(peer);
                let holds = |&&(base, len): &&(u32, u8)| {
                    len == 0 || (peer ^ base) >> (32 - u32::from(len.min(32))) == 0
                };
                let (base, len) = *lists
                    .flat_map(|list| list.v4.iter().filter(holds))
                    .max_by_key(|entry| entry.1)?;
                IpNetwork::new(Ipv4Addr::from(base).into(), len).ok()
            }
            IpAddr::V6(peer) => {
                let peer = u128::from(peer);
                let holds = |&&(base, len): &&(u128, u8)| {
                    len == 0 || (peer ^ base) >> (128 - u32::from(len.min(128))) == 0
                };
                let (base, len) = *lists
                    .flat_map(|list| list.v6.iter().filter(holds))
                    .max_by_key(|entry| entry.1)?;
                IpNetwork::new(Ipv6Addr::from(base).into(), len).ok()
            }
        }
    }

    fn martian(&self) -> String {
        let (src, dst) = self.spec.ends();
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
                "{}the agent's failsafe admits {}: no policy closes it",
                if self.leaves() { "it answers, for " } else { "" },
                show_failsafe(entry)
            ),
            None => "the agent's failsafe admits it: no policy closes it".to_owned(),
        }
    }
}

/// A packet that stays on this host. No filter sees it, so none is asked.
pub fn unjudged(spec: &PacketSpec) -> Explanation {
    let finding = format!(
        "{} is this host itself: it does not leave by a filtered interface; nothing judges it",
        spec.peer
    );
    Explanation {
        packet: spec.to_string(),
        direction: spec.direction.word().to_owned(),
        verdict: "pass".to_owned(),
        reason: "not-filtered".to_owned(),
        service: None,
        rule: None,
        place: None,
        line: None,
        generation: 0,
        steps: vec![step("packet", packet(spec)), step("interface", finding)],
        hint: None,
    }
}

fn packet(spec: &PacketSpec) -> String {
    let family = if spec.is_ipv4() { "IPv4" } else { "IPv6" };
    let transport = match spec.transport {
        Transport::Tcp { .. } => format!("TCP, {}", spec.flags()),
        Transport::Udp { .. } => "UDP".to_owned(),
        Transport::Sctp { .. } => "SCTP".to_owned(),
        Transport::Icmp { icmp_type, code, .. } => {
            let protocol = if spec.is_ipv4() { "ICMP" } else { "ICMPv6" };
            format!("{protocol} {} (type {icmp_type}, code {code})", spec.icmp_name())
        }
        Transport::Raw(number) => format!("protocol {number}"),
    };
    let tags = match spec.vlan.len() {
        0 => "",
        1 => ", a VLAN tag, which changes nothing",
        _ => ", two VLAN tags, which change nothing",
    };
    let hops = match (spec.hop_limit(), spec.is_ipv4()) {
        (64, _) => String::new(),
        (hops, true) => format!(", TTL {hops}"),
        (hops, false) => format!(", hop limit {hops}"),
    };
    let way = if spec.direction == Direction::Egress {
        ", leaves this host"
    } else {
        ""
    };
    format!("{family}, {transport}{hops}{tags}{way}")
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

/// `dns`, `dns and lan`, `dns, lan and 3 more`
fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [one, other] => format!("{one} and {other}"),
        [one, other, more @ ..] => format!("{one}, {other} and {} more", more.len()),
    }
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
