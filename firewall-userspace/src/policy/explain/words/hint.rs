//! What to do about a drop.

use super::{Account, show_port};
use crate::policy::diagnostic::Text;
use crate::policy::egress::holds;
use crate::policy::model::{Egress, Owner, Place, Rule, Service};
use crate::policy::{groups, ports, prefix};
use crate::simulate::Transport;
use firewall_common::decide::Step;
use firewall_common::image::PortKey;
use firewall_common::verdict::Reason;
use ipnetwork::IpNetwork;
use std::collections::HashSet;
use std::path::Path;
use toml::de::{DeTable, DeValue};

impl<'a> Account<'a> {
    /// A sentence with the command or the place that would let the packet in; none where nothing should.
    pub(super) fn hint(&self) -> Option<String> {
        let peer = self.spec.peer;
        match self.outcome.reason {
            Reason::NotAllowed => Some(format!(
                "to let it in: ravelin allow {} {peer}",
                self.service()?.name
            )),
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
                        let matched = self.covering(rule).map_or(peer.to_string(), prefix::show);
                        let place = self
                            .covering(rule)
                            .and_then(|network| self.list_place(rule, network))
                            .or_else(|| self.group_place(&rule.source))
                            .unwrap_or_else(|| rule.place.clone());
                        format!("to let it in, take {matched} out of {} ({place})", rule.source)
                    }
                })
            }
            Reason::Closed | Reason::IcmpError => {
                let key = self.steps.iter().find_map(|each| match each {
                    Step::Port { key, .. } => Some(*key),
                    _ => None,
                })?;
                // A deny of the policy stands before any service that could be made here.
                let deny = self
                    .policy
                    .rules
                    .iter()
                    .find(|rule| rule.owner == Owner::Policy && self.covering(rule).is_some());
                if let Some(deny) = deny {
                    return Some(format!(
                        "no service would let it in: deny {} of the policy names {peer} ({})",
                        deny.source, deny.place
                    ));
                }
                // What no policy can open, such as port 0.
                ports::parse(&show_port(key)).ok()?;
                Some(match self.sibling(key) {
                    Some((service, other)) => format!(
                        "{} has {}, not {}: to open it, add it to the ports of {} ({})",
                        service.name,
                        show_port(other),
                        show_port(key),
                        service.name,
                        service.place
                    ),
                    None => format!(
                        "to open it: ravelin service add NAME {} --allow {peer}",
                        show_port(key)
                    ),
                })
            }
            Reason::EgressDenied => {
                let rule = self.rule()?;
                Some(format!(
                    "deny beats allow: to let it out, take {} out of the deny list of egress rule {} ({})",
                    rule.source,
                    self.egress_of(rule)?.name,
                    rule.place
                ))
            }
            Reason::EgressClosed => {
                let key = self.port_of_egress()?;
                ports::parse(&show_port(key)).ok()?;
                // One that is for this port already; those for every port would open more than was asked for.
                let own = |rule: &&Egress| !rule.ports.is_empty() && holds(rule, key);
                Some(match self.policy.egress.iter().find(own) {
                    Some(rule) => format!("to let it out: ravelin allow {} {peer}", rule.name),
                    None => format!(
                        "to let it out: ravelin egress add NAME {} --to {peer}",
                        show_port(key)
                    ),
                })
            }
            Reason::Martian => (self.own_source || self.spec.ends().0.is_loopback()).then(|| {
                "what this host sends to itself comes in by no filtered interface; nothing judges that"
                    .to_owned()
            }),
            Reason::NoPolicy => Some("no policy is in force: ravelin status tells why".to_owned()),
            _ => None,
        }
    }

    /// Where the file defines the group that a rule names.
    fn group_place(&self, source: &str) -> Option<Place> {
        let root = DeTable::parse(self.text).ok()?;
        let groups = root.get_ref().get("groups")?.get_ref().as_table()?;
        let start = groups.get(source.strip_prefix('@')?)?.span().start;
        let path = &self.policy.rules.first()?.place.path;
        Some(Text::new(Path::new(path), self.text).place(start))
    }

    /// The line of the list file that a rule has a prefix from.
    pub(super) fn list_place(&self, rule: &Rule, network: IpNetwork) -> Option<Place> {
        let root = DeTable::parse(self.text).ok()?;
        let groups = root.get_ref().get("groups")?.get_ref().as_table()?;
        let folder = Path::new(&rule.place.path).parent().unwrap_or(Path::new(""));
        let mut open = vec![rule.source.strip_prefix('@')?];
        let mut seen = HashSet::new();
        while let Some(name) = open.pop() {
            let Some(group) = groups.get(name).filter(|_| seen.insert(name)) else {
                continue;
            };
            match group.get_ref() {
                DeValue::Array(members) => {
                    let names = members.iter().filter_map(|member| member.get_ref().as_str());
                    open.extend(names.filter_map(|text| text.strip_prefix('@')));
                }
                DeValue::Table(table) => {
                    let path = folder.join(table.get("file")?.get_ref().as_str()?);
                    if let Some((line, column)) = line_in(&path, network) {
                        let path = path.display().to_string();
                        return Some(Place { path, line, column });
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// The same port of another transport, and the service that has it: the likeliest mistake.
    fn sibling(&self, key: PortKey) -> Option<(&'a Service, PortKey)> {
        let port = key.0 as u16;
        let others = [PortKey::tcp(port), PortKey::udp(port), PortKey::sctp(port)];
        if !matches!(
            self.spec.transport,
            Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Sctp { .. }
        ) {
            return None;
        }
        others
            .into_iter()
            .filter(|other| *other != key)
            .find_map(|other| {
                let owns = |service: &&Service| {
                    service
                        .ports
                        .iter()
                        .any(|(first, last)| *first <= other && other <= *last)
                };
                self.policy
                    .services
                    .iter()
                    .find(owns)
                    .map(|service| (service, other))
            })
    }
}

/// Line and column of a prefix in a list file; `None` also if the file has changed since.
fn line_in(path: &Path, network: IpNetwork) -> Option<(u32, u32)> {
    let bytes = groups::read(path).ok()?;
    let lines = bytes.split(|&byte| byte == b'\n').enumerate();
    lines
        .filter_map(|(at, line)| Some((at, std::str::from_utf8(line).ok()?)))
        .find_map(|(at, line)| {
            let entry = line.split('#').next().unwrap_or_default();
            let column = entry.len() - entry.trim_start().len() + 1;
            let parsed = prefix::parse(entry.trim()).ok()?;
            (parsed.network == network).then_some((at as u32 + 1, column as u32))
        })
}
